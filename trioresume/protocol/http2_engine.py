"""What both ends of an HTTP/2 connection share: h2's books, without the content and the fields.

h2 keeps the books: the states of the streams, HPACK, the settings, the windows. Each end reads
the frames itself, see :mod:`trioresume.server.http.http2.engine` and
:mod:`trioresume.client.http.http2.engine`. This module has what they do alike:

* **Content does not pass through h2**: its copies would cost more than all the rest of an
  upload. Of ordinary DATA frames h2's windows learn only the length.
* **h2 does not judge the fields**: it would end the connection for a malformed one. Its decoder
  keeps them for :mod:`trioresume.protocol.http2_head`, and shows h2 hardly any.
* **GOAWAY does not end the streams.** h2 sends nothing after it has sent or received one, but a
  stream that has begun may end (RFC 9113, section 6.8). So h2 sees no GOAWAY.
* **The peer decides nothing about our memory.** The table of our HPACK encoder stays at 4 KiB
  even if the peer allows more. h2 remembers only a few closed streams, and of the peer's
  settings only those that HTTP/2 knows. Useless frames cost the peer's allowance.
* **An idle connection is small.** h2 keeps a ``deque`` of 760 bytes for each setting, and hpack
  one for each table of fields. Here they are lists (:class:`_ShortQueue`).

h2's methods and attributes that begin with an underscore are used in two classes,
:class:`_PeerSettings` and :class:`Books`. tests/server/http/http2/test_engine.py compares them
with h2's own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import h2.config
import h2.connection
import h2.events
import hpack
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from h2.stream import StreamState
from hyperframe.frame import DataFrame, GoAwayFrame

from trioresume.protocol.allowance import Allowance

if TYPE_CHECKING:
    from collections import deque

    from h2.windows import WindowManager

__all__ = ["BaseEngine", "Books", "ConnectionFault", "Pair"]

FRAME_HEAD = 9
MOST_FRAME = 16 * 1024
"""The largest payload of a frame that is read: the default, which every peer keeps to."""
TABLE_SIZE = 4096
"""Bytes of the table of each HPACK direction: the default."""
LAST_STREAM = LARGEST_WINDOW = 2**31 - 1
MOST_REMEMBERED = 256
"""Closed streams that h2 remembers, for frames that were on their way."""

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8

_KNOWN_SETTINGS = frozenset(SettingCodes)

# The states of a stream in which more content may come, and in which we may send.
_RECEIVING = frozenset({StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL})
_SENDING = frozenset({StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE})

Pair = tuple[bytes, bytes]


class ConnectionFault(Exception):
    """The peer broke a rule of the connection. A GOAWAY waits to be sent; then close."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _KeepingDecoder(hpack.Decoder):
    """Decodes a field section, keeps it for us, and shows h2 hardly any of it.

    A client's h2 needs the ``:status``, which makes a response interim or final. A server's
    sees nothing: with a ``:status`` in a request it would end the connection.
    """

    section: Sequence[Pair] = ()

    def __init__(self, most: int, *, shows_status: bool) -> None:
        super().__init__(most)
        self._shows_status = shows_status

    def decode(self, data: bytes, raw: bool = False) -> Iterable[hpack.HeaderTuple]:
        decoded = list(super().decode(data, raw=True))
        self.section = cast("list[Pair]", decoded)
        if self._shows_status and decoded and decoded[0][0] == b":status":
            return decoded[:1]
        return []


class _ShortQueue(list[Any]):
    """Stands for a ``deque`` of h2 or hpack. A list takes a tenth of the memory."""

    __slots__ = ()

    def appendleft(self, item: object) -> None:
        self.insert(0, item)

    def popleft(self) -> object:
        return self.pop(0)


class _PeerSettings(Settings):
    """The settings of the peer, small.

    Settings that HTTP/2 does not know are ignored (RFC 9113, section 6.5.2). h2 would keep
    each of 65,536 that a peer can send.
    """

    def __init__(self, *, client: bool) -> None:
        super().__init__(client=client)
        for code, values in self._settings.items():
            self._settings[code] = cast("deque[int]", _ShortQueue(values))

    def __setitem__(self, key: SettingCodes | int, value: int) -> None:
        if key not in _KNOWN_SETTINGS:
            return
        if key not in self._settings:
            # None says, as in h2, that there was no value before.
            self._settings[key] = cast("deque[int]", _ShortQueue([None]))
        super().__setitem__(key, value)


class Books(h2.connection.H2Connection):
    """h2's connection, and the ways into it that h2 does not offer."""

    MAX_CLOSED_STREAMS = MOST_REMEMBERED

    def is_receiving(self, stream_id: int) -> bool:
        """Whether more content of the stream may come."""
        stream = self.streams.get(stream_id)
        return stream is not None and stream.state_machine.state in _RECEIVING

    def is_sending(self, stream_id: int) -> bool:
        """Whether more may be sent on the stream."""
        stream = self.streams.get(stream_id)
        return stream is not None and stream.state_machine.state in _SENDING

    def take_length(self, stream_id: int, length: int) -> bool:
        """Note an ordinary DATA frame that does not end its stream.

        Returns False, and notes nothing, if the frame is not ordinary. Raises
        :class:`h2.exceptions.FlowControlError` if it exceeds a window.
        """
        stream = self.streams.get(stream_id)
        if stream is None or stream.state_machine.state not in _RECEIVING:
            return False
        self.window.window_consumed(length)
        stream._inbound_window_manager.window_consumed(length)
        return True

    def window_of(self, stream_id: int) -> WindowManager:
        """Return the window for content on an open stream."""
        return self.streams[stream_id]._inbound_window_manager

    @property
    def window(self) -> WindowManager:
        """The window for content on the whole connection."""
        return self._inbound_flow_control_window_manager

    def take_frame(self, frame: DataFrame) -> list[h2.events.Event]:
        """Note any DATA frame, as ``receive_data`` does."""
        return self._receive_frame(frame)

    def open_window(self, stream_id: int, size: int) -> bool:
        """Note an ordinary WINDOW_UPDATE. Returns False, and notes nothing, for any other."""
        holder = self.streams.get(stream_id) if stream_id else self
        if holder is None or not size:
            return False
        window = holder.outbound_flow_control_window + size
        if window > LARGEST_WINDOW:
            return False
        holder.outbound_flow_control_window = window
        return True

    def spend(self, stream_id: int, length: int) -> None:
        """Note *length* bytes of content that are sent past h2."""
        self.outbound_flow_control_window -= length
        self.streams[stream_id].outbound_flow_control_window -= length

    def forget_closed(self) -> None:
        """Free what h2 holds of streams that are closed."""
        self._open_streams(1)

    @property
    def has_output(self) -> bool:
        return bool(self._data_to_send)

    @property
    def in_section(self) -> bool:
        """Whether a CONTINUATION has to come next."""
        return bool(self.incoming_buffer._headers_buffer)


class BaseEngine:
    """One end of an HTTP/2 connection.

    *settings* are this end's. *most_section* is the size in bytes up to which HPACK decodes a
    field section. *window* is the number of bytes of content that may be on their way on the
    whole connection.
    """

    costs: ClassVar[Mapping[int, float]] = {}
    """Units of the allowance for a frame of each type; 1 for others."""

    def __init__(
        self,
        settings: Settings,
        *,
        client_side: bool,
        most_section: int,
        window: int,
        now: float,
    ) -> None:
        self._books = Books(
            h2.config.H2Configuration(
                client_side=client_side,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self._books.local_settings = settings
        self._books.remote_settings = _PeerSettings(client=not client_side)
        self._decoder = _KeepingDecoder(most_section, shows_status=client_side)
        self._books.decoder = self._decoder
        for coder in self._decoder, self._books.encoder:
            coder.header_table.dynamic_entries = cast("deque[Pair]", _ShortQueue())
        self._most_section = most_section
        self._section = 0
        """Bytes of the field section that is being read."""
        self._allowance = Allowance(now)
        self._now = now
        self._window = window
        self._output = bytearray()
        self._fault: ConnectionFault | None = None
        self._books.initiate_connection()
        self._credit_connection()

    @property
    def is_faulty(self) -> bool:
        """Whether the peer broke a rule of the connection, and was told so."""
        return self._fault is not None

    def _charge(self, kind: int, flags: int, length: int) -> None:
        """Charge the peer for a frame. Raises :class:`ConnectionFault` for one too many."""
        cost = self.costs.get(kind, 1)
        if kind == DATA:
            self._allowance.earn(length)
            cost = 0 if length or flags & END_STREAM else 1
        elif kind in (PING, SETTINGS) and flags & ACK:
            cost = 0.5
        if cost and not self._allowance.spend(cost, self._now):
            raise self._end(ErrorCodes.ENHANCE_YOUR_CALM, "too many useless frames")

    def _adopt_table_size(self) -> None:
        """Take over the size of HPACK's table from the peer's settings, if it is small."""
        self._books.encoder.header_table_size = min(
            TABLE_SIZE, self._books.remote_settings.header_table_size
        )

    def take_output(self) -> bytearray:
        """Return the frames to be sent, which the caller sends in this order."""
        self._collect()
        output, self._output = self._output, bytearray()
        return output

    def _collect(self) -> None:
        self._output += self._books.data_to_send()

    def may_send(self, stream: int) -> bool:
        """Whether the peer still takes more of *stream*."""
        return self._fault is None and self._books.is_sending(stream)

    def room(self, stream: int) -> int:
        """Return how many bytes of content the peer takes on *stream* now."""
        if not self.may_send(stream):
            return 0
        return max(0, self._books.local_flow_control_window(stream))

    def grant(self, stream: int, size: int) -> None:
        """Let the peer send *size* bytes more on *stream*, if it is still sending."""
        if size and self._fault is None and self._books.is_receiving(stream):
            self._books.increment_flow_control_window(size, stream)

    def _credit_connection(self) -> None:
        missing = self._window - self._books.inbound_flow_control_window
        if missing > 0 and self._fault is None:
            self._books.increment_flow_control_window(missing)

    def _reset(self, stream: int, code: ErrorCodes) -> None:
        """Close *stream* now, unless it is closed."""
        known = self._books.streams.get(stream)
        if self._fault is None and known is not None and not known.closed:
            self._books.reset_stream(stream, code)

    @property
    def last_stream(self) -> int:
        """The newest stream that the peer has begun."""
        return self._books.highest_inbound_stream_id

    def go_away(self, last: int = 0, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Queue a GOAWAY. Streams of the peer up to *last* go on; h2 does not learn of it."""
        self._collect()
        frame = GoAwayFrame(0, last_stream_id=last, error_code=code)
        self._output += frame.serialize()

    def _end(self, code: int, reason: str) -> ConnectionFault:
        """Queue the GOAWAY of a fault; return the exception to be raised."""
        if self._fault is None:
            self._fault = ConnectionFault(code, reason)
            self.go_away(self.last_stream, ErrorCodes(code))
        return self._fault
