"""The client's end of an HTTP/2 connection without its socket: bytes in, events out.

h2 keeps the books: the states of the streams, HPACK, the settings, the windows. This module
reads the frames itself, for the reasons that the server's engine has, too:

* **Content does not pass through h2**, in either direction: its copies would cost more than
  all the rest of an upload. Of DATA frames only h2's windows learn the length, and the
  frames that open windows, of which an upload gets thousands, go to them directly.
* **A malformed response hurts one stream.** h2 would end the connection for it. So its
  decoder shows it no field but ``:status``. The fields go to
  :mod:`trioresume.protocol.http2_head`, and the length of the content is checked here.
* **GOAWAY does not end the streams** that it leaves alone, and h2 sees none.
* **A frame is refused at its head**, before its payload is buffered: if it is too large, if a
  field section grows too large, or if the server floods the connection with frames that
  mean nothing (see :mod:`trioresume.protocol.allowance`).

h2's methods and attributes that begin with an underscore are used in one class,
:class:`_Books`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from h2.stream import StreamState
from hyperframe.frame import DataFrame, GoAwayFrame

from trioresume.protocol.allowance import Allowance

__all__ = [
    "ConnectionFault",
    "Content",
    "ContentEnded",
    "Engine",
    "ErrorCodes",
    "Event",
    "GoingAway",
    "Reset",
    "Section",
    "SettingsCame",
    "WindowOpened",
    "name_of",
]

FRAME_HEAD = 9
MOST_FRAME = 16 * 1024
"""The largest payload of a frame that is read: the default, which every server keeps to."""
STREAM_WINDOW = 1 << 20
"""Bytes of a response's content that may come before the caller has taken any."""
CONNECTION_WINDOW = 16 << 20
"""The same for all streams together. The windows of the streams are the real limit."""
TABLE_SIZE = 4096
"""Bytes of the table of each HPACK direction: the default."""
SECTION_FACTOR = 2
"""A field section may be this many times larger than the server was told."""
LAST_STREAM = LARGEST_WINDOW = 2**31 - 1
MOST_REMEMBERED = 256
"""Closed streams that h2 remembers, for frames that were on their way."""

_KNOWN_SETTINGS = frozenset(SettingCodes)
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE = 0, 1, 3, 4, 5
_PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 6, 7, 8, 9
_END_STREAM = _ACK = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8

# Units of the allowance for a frame of each type; 1 for others. Time and content of ours refill
# it. A field section costs nothing here: RoundTrip counts interim responses.
_COSTS = {
    _DATA: 0,  # an empty one costs 1
    _HEADERS: 0,
    _CONTINUATION: 0,  # their bytes and their number are limited
    _WINDOW_UPDATE: 0.5,
}

# The states of a stream in which more of its response may come, and in which we may send.
_RECEIVING = frozenset({StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL})
_SENDING = frozenset({StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE})
# RFC 9110, section 8.6: these have no content, whatever Content-Length says.
_BODILESS = frozenset({b"204", b"304"})

# HPACK must not put these into its tables (RFC 7541, section 7.1.3).
_SECRET = frozenset({b"authorization", b"cookie", b"proxy-authorization"})

Pair = tuple[bytes, bytes]


class Section(NamedTuple):
    """A head came, interim or final."""

    stream: int
    pairs: Sequence[Pair]


class Content(NamedTuple):
    """Content of a response came."""

    stream: int
    data: bytes


class ContentEnded(NamedTuple):
    """A response is whole."""

    stream: int


class Reset(NamedTuple):
    """The stream is closed before the end of its response; *reason* is for people."""

    stream: int
    code: int
    reason: str


class WindowOpened(NamedTuple):
    """The server takes more content of *stream*; 0 stands for all streams."""

    stream: int


class SettingsCame(NamedTuple):
    """The server's settings are known, or have changed."""


class GoingAway(NamedTuple):
    """The server takes no more requests. It has not processed those after *last*."""

    last: int
    code: int
    reason: str


Event = (
    Section | Content | ContentEnded | Reset | WindowOpened | SettingsCame | GoingAway
)


class ConnectionFault(Exception):
    """The server broke a rule of the connection. A GOAWAY waits to be sent; then close."""


class NoHttp2(ConnectionFault):
    """The first bytes are not HTTP/2 at all."""


class _KeepingDecoder(hpack.Decoder):
    """Decodes a field section, keeps it for us, and shows h2 only its status."""

    section: Sequence[Pair] = ()

    def decode(self, data: bytes, raw: bool = False) -> Iterable[hpack.HeaderTuple]:
        decoded = list(super().decode(data, raw=True))
        self.section = cast("list[Pair]", decoded)
        return decoded[:1] if decoded and decoded[0][0] == b":status" else []


class _ServerSettings(Settings):
    """The settings of a server.

    Settings that HTTP/2 does not know are ignored (RFC 9113, section 6.5.2). h2 would keep
    each of 65,536 that a peer can send.
    """

    def __setitem__(self, key: SettingCodes | int, value: int) -> None:
        if key in _KNOWN_SETTINGS:
            super().__setitem__(key, value)


class _Books(h2.connection.H2Connection):
    """h2's connection, and the ways into it that h2 does not offer."""

    MAX_CLOSED_STREAMS = MOST_REMEMBERED

    def take_length(self, stream_id: int, length: int) -> bool:
        """Note an ordinary DATA frame that does not end its stream.

        Returns False, and notes nothing, if the frame is not ordinary. Raises
        :class:`h2.exceptions.FlowControlError` if it exceeds a window.
        """
        stream = self.streams.get(stream_id)
        if stream is None or stream.state_machine.state not in _RECEIVING:
            return False
        self._inbound_flow_control_window_manager.window_consumed(length)
        stream._inbound_window_manager.window_consumed(length)
        return True

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
    def in_section(self) -> bool:
        """Whether a CONTINUATION has to come next."""
        return bool(self.incoming_buffer._headers_buffer)


class Engine:
    """The client's end of one HTTP/2 connection. *most_section* is in bytes."""

    def __init__(self, *, most_section: int, now: float) -> None:
        settings = {
            SettingCodes.HEADER_TABLE_SIZE: TABLE_SIZE,
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: most_section,
        }
        self._books = _Books(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self._books.local_settings = Settings(client=True, initial_values=settings)
        self._books.remote_settings = _ServerSettings(client=False)
        self._most_section = SECTION_FACTOR * most_section
        self._decoder = _KeepingDecoder(self._most_section)
        self._books.decoder = self._decoder
        self._allowance = Allowance(now)
        self._now = now
        self._buffer = bytearray()
        self._output = bytearray()
        self._section = 0
        """Bytes of the field section that is being read."""
        self._expected: dict[int, int | None] = {}
        """For each stream with its final head: bytes of content that are still to come, if
        its Content-Length said it."""
        self._heads: set[int] = set()
        """Streams whose response has no content, because of the request's method."""
        self._fault: ConnectionFault | None = None
        self.has_settings = False
        """Whether the server's first SETTINGS have come."""
        self._books.initiate_connection()
        self._credit_connection()

    # ------------------------------------------------------------ what comes

    def receive(self, data: bytes | bytearray, now: float) -> list[Event]:
        """Return what *data* tells.

        Raises :class:`ConnectionFault`; what came before the fault in the same bytes is
        lost with the connection.
        """
        self._now = now
        self._buffer += data
        events: list[Event] = []
        at = 0
        view = memoryview(bytes(self._buffer))
        while len(view) - at >= FRAME_HEAD:
            length = int.from_bytes(view[at : at + 3], "big")
            kind, flags = view[at + 3], view[at + 4]
            stream = int.from_bytes(view[at + 5 : at + 9], "big") & LAST_STREAM
            self._check_head(kind, flags, length)
            end = at + FRAME_HEAD + length
            if end > len(view):
                break
            self._charge(kind, flags, length)
            self._count_section(kind, flags, length)
            self._take(kind, flags, stream, view[at:end], events)
            at = end
        del self._buffer[:at]
        if self._books.inbound_flow_control_window < CONNECTION_WINDOW // 2:
            self._credit_connection()
        return events

    def _check_head(self, kind: int, flags: int, length: int) -> None:
        if not self.has_settings and (kind != _SETTINGS or flags & _ACK):
            # RFC 9113, section 3.4: the server's preface is a SETTINGS frame.
            self._end(ErrorCodes.PROTOCOL_ERROR, "")
            raise NoHttp2("the server does not answer in HTTP/2")
        if length > MOST_FRAME:
            raise self._end(ErrorCodes.FRAME_SIZE_ERROR, "a frame is too large")
        section = kind in (_HEADERS, _CONTINUATION, _PUSH_PROMISE)
        if section and self._section + length > self._most_section:
            raise self._end(ErrorCodes.ENHANCE_YOUR_CALM, "a head is too large")

    def _charge(self, kind: int, flags: int, length: int) -> None:
        cost = _COSTS.get(kind, 1)
        if kind == _DATA:
            self._allowance.earn(length)
            cost = 0 if length or flags & _END_STREAM else 1
        elif kind in (_PING, _SETTINGS) and flags & _ACK:
            cost = 0.5
        if cost and not self._allowance.spend(cost, self._now):
            raise self._end(ErrorCodes.ENHANCE_YOUR_CALM, "too many useless frames")

    def _count_section(self, kind: int, flags: int, length: int) -> None:
        if kind in (_HEADERS, _CONTINUATION, _PUSH_PROMISE):
            self._section += length + 1  # an empty frame counts, too
            if flags & _END_HEADERS:
                self._section = 0

    def _take(
        self,
        kind: int,
        flags: int,
        stream: int,
        frame: memoryview,
        events: list[Event],
    ) -> None:
        payload = frame[FRAME_HEAD:]
        if kind == _DATA and not flags & _PADDED and not self._books.in_section:
            if not flags & _END_STREAM and self._takes_length(stream, len(payload)):
                self._note_content(stream, bytes(payload), events)
                return
        elif kind == _WINDOW_UPDATE and len(payload) == 4:
            size = int.from_bytes(payload, "big") & LARGEST_WINDOW
            if not self._books.in_section and self._books.open_window(stream, size):
                events.append(WindowOpened(stream))
                return
        elif kind == _GOAWAY and not stream and len(payload) >= 8:
            last = int.from_bytes(payload[:4], "big") & LAST_STREAM
            code = int.from_bytes(payload[4:8], "big")
            events.append(GoingAway(last, code, _text(bytes(payload[8:108]))))
            return
        try:
            came = self._books.receive_data(frame)
        except h2.exceptions.ProtocolError as exc:
            self._collect()
            self._fault = ConnectionFault(f"the server breaks HTTP/2's rules: {exc}")
            raise self._fault from exc
        for event in came:
            self._translate(event, events)

    def _takes_length(self, stream: int, length: int) -> bool:
        try:
            return self._books.take_length(stream, length)
        except h2.exceptions.ProtocolError as exc:
            raise self._end(
                exc.error_code, f"the server breaks HTTP/2's rules: {exc}"
            ) from exc

    def _note_content(self, stream: int, data: bytes, events: list[Event]) -> None:
        if stream not in self._expected:
            self._refuse(stream, "content comes before the head", events)
            return
        expected = self._expected[stream]
        if expected is not None:
            if len(data) > expected:
                self._refuse(stream, "more content than Content-Length says", events)
                return
            self._expected[stream] = expected - len(data)
        if data:
            events.append(Content(stream, data))

    def _note_end(self, stream: int, events: list[Event]) -> None:
        if stream not in self._expected:
            self._refuse(stream, "the response has no head", events)
        elif self._expected.pop(stream):
            self._refuse(stream, "less content than Content-Length says", events)
        else:
            events.append(ContentEnded(stream))

    def _refuse(self, stream: int, reason: str, events: list[Event]) -> None:
        """Reset a stream whose response is malformed (RFC 9113, section 8.1.1)."""
        self.reset(stream, ErrorCodes.PROTOCOL_ERROR)
        words = f"the server's response is malformed: {reason}"
        events.append(Reset(stream, ErrorCodes.PROTOCOL_ERROR, words))

    def _translate(self, event: h2.events.Event, events: list[Event]) -> None:
        match event:
            case h2.events.InformationalResponseReceived(stream_id=stream):
                events.append(Section(stream, self._decoder.section))
            case h2.events.ResponseReceived(stream_id=stream):
                self._expect(stream, self._decoder.section)
                events.append(Section(stream, self._decoder.section))
            case h2.events.DataReceived(stream_id=stream, data=data):
                # Padded, or the last one. h2 has it whole.
                self._note_content(stream, data or b"", events)
                if event.stream_ended is None:
                    self.grant(stream, event.flow_controlled_length - len(data or b""))
            case h2.events.StreamEnded(stream_id=stream):
                self._note_end(stream, events)
            case h2.events.StreamReset(stream_id=stream):
                self._expected.pop(stream, None)
                code = int(event.error_code or 0)
                words = f"the server reset the stream ({name_of(code)})"
                events.append(Reset(stream, code, words))
            case h2.events.WindowUpdated():
                events.append(WindowOpened(event.stream_id or 0))
            case h2.events.RemoteSettingsChanged():
                self._books.encoder.header_table_size = min(
                    TABLE_SIZE, self._books.remote_settings.header_table_size
                )
                self.has_settings = True
                events.append(SettingsCame())

    def _expect(self, stream: int, section: Sequence[Pair]) -> None:
        lengths = {value for name, value in section if name == b"content-length"}
        length = lengths.pop() if len(lengths) == 1 else b""
        known = length.isdigit() and len(length) < 20
        self._expected[stream] = int(length) if known else None
        if stream in self._heads or dict(section[:1]).get(b":status") in _BODILESS:
            self._expected[stream] = 0

    # ------------------------------------------------------------ what is sent

    def take_output(self) -> bytearray:
        """Return the frames to be sent, which the caller sends in this order."""
        self._collect()
        output, self._output = self._output, bytearray()
        return output

    def _collect(self) -> None:
        self._output += self._books.data_to_send()

    @property
    def most_streams(self) -> int:
        """How many requests the server takes at once."""
        return self._books.remote_settings.max_concurrent_streams

    @property
    def most_frame(self) -> int:
        """The largest payload of a frame that the server takes."""
        return self._books.max_outbound_frame_size

    @property
    def has_ids(self) -> bool:
        """Whether another request can begin: each takes an id, and they are limited."""
        return self._fault is None and (
            (self._books.highest_outbound_stream_id or 0) + 2 < LAST_STREAM
        )

    def begin(self, pairs: Iterable[Pair], *, ends: bool) -> int:
        """Queue a request's head, in HPACK's order; return its stream."""
        stream = self._books.get_next_available_stream_id()
        section = [
            hpack.NeverIndexedHeaderTuple(*pair)
            if pair[0] in _SECRET
            else hpack.HeaderTuple(*pair)
            for pair in pairs
        ]
        self._books.send_headers(stream, section, end_stream=ends)
        if (b":method", b"HEAD") in section:
            self._heads.add(stream)
        return stream

    def may_send(self, stream: int) -> bool:
        """Whether the server still takes content of *stream*."""
        known = self._books.streams.get(stream)
        return (
            self._fault is None
            and known is not None
            and known.state_machine.state in _SENDING
        )

    def room(self, stream: int) -> int:
        """Return how many bytes of content the server takes on *stream* now."""
        return max(0, self._books.local_flow_control_window(stream))

    def spend(self, stream: int, size: int) -> None:
        """Note *size* bytes of content, at most :meth:`room`, that the caller sends."""
        self._books.spend(stream, size)
        self._allowance.earn(size)

    def give_back(self, size: int) -> None:
        """Note that *size* bytes that were spent on a stream, now reset, were not sent."""
        self._books.outbound_flow_control_window += size

    def end(self, stream: int) -> None:
        """Queue the end of a request's content."""
        self._books.end_stream(stream)

    def grant(self, stream: int, size: int) -> None:
        """Let the server send *size* bytes more on *stream*, if it is still sending."""
        known = self._books.streams.get(stream)
        receiving = known is not None and known.state_machine.state in _RECEIVING
        if size and receiving and self._fault is None:
            self._books.increment_flow_control_window(size, stream)

    def _credit_connection(self) -> None:
        missing = CONNECTION_WINDOW - self._books.inbound_flow_control_window
        if missing > 0 and self._fault is None:
            self._books.increment_flow_control_window(missing)

    def reset(self, stream: int, code: ErrorCodes) -> None:
        """Close *stream* now, unless it is closed."""
        known = self._books.streams.get(stream)
        if self._fault is None and known is not None and not known.closed:
            self._books.reset_stream(stream, code)

    def forget(self, stream: int) -> None:
        """Free what is held of *stream*, which has ended."""
        self._expected.pop(stream, None)
        self._heads.discard(stream)
        self._books.forget_closed()

    def ping(self) -> None:
        """Queue a PING, which a server answers at once."""
        self._books.ping(b"trioresu")

    def go_away(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Queue a GOAWAY, after which the connection is to be closed."""
        self._collect()
        self._output += GoAwayFrame(0, last_stream_id=0, error_code=code).serialize()

    def _end(self, code: int, reason: str) -> ConnectionFault:
        """Queue the GOAWAY of a fault; return the exception to be raised."""
        if self._fault is None:
            self._fault = ConnectionFault(reason)
            self.go_away(ErrorCodes(code))
        return self._fault


def name_of(code: int) -> str:
    """Return the name of an error code (RFC 9113, section 7)."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code}"


def _text(data: bytes) -> str:
    return data.decode("ascii", "replace")
