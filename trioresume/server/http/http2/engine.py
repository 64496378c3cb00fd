"""One HTTP/2 connection without its socket: bytes in, events out, frames to be sent.

h2 keeps the books: the states of the streams, HPACK, the settings, the windows. This module
stands between h2 and the bytes for five reasons.

**Content does not pass through h2.** h2 takes some 25 µs and three copies for a DATA frame of
16 KiB, more than all the rest of an upload. So this module reads the heads of the frames
itself. The payload of a DATA frame becomes :class:`Content` events, which are views of the
caller's buffer. Of an ordinary DATA frame h2's window managers learn the length, and nothing
else is done. Unusual DATA frames (padded, the last of a stream, for a stream that is closed)
take h2's whole way, and so do all other frames. Reading many ordinary frames at once calls
nothing for a single frame but what cuts out its payload. (docs/benchmarks.md has the figures.)

**A malformed request hurts one stream.** h2 ends the connection for it. So h2 does not see the
fields: its decoder returns none, and keeps them for :mod:`trioresume.protocol.http2_head`. The
length of the content is checked here, too.

**GOAWAY does not end the streams.** h2 sends nothing after it has sent or received one, but a
stream that has begun may end (RFC 9113, section 6.8). So h2 sees no GOAWAY.

**A frame is refused at its head**, before its payload is buffered: if it is too large, if a
field section grows too large over several frames, or if the peer's allowance is spent (see
:mod:`trioresume.protocol.allowance`).

**The peer decides nothing about our memory.** The table of our HPACK encoder stays at 4 KiB
even if the peer allows more. h2 remembers only a few closed streams, and of the peer's settings
only those that HTTP/2 knows. The number of open streams is limited by the connection, which
refuses single streams; h2 would end the connection.

**An idle connection is small.** h2 keeps a ``deque`` of 760 bytes for each setting, and hpack
one for each table of fields. Our own settings never change, so all connections share them. The
rest is kept in lists (:class:`_ShortQueue`).

h2's methods and attributes that begin with an underscore are used in two classes,
:class:`_PeerSettings` and :class:`_Books`. tests/server/http/http2/test_engine.py compares them
with h2's own way.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from h2.stream import StreamState
from h2.windows import WindowManager
from hyperframe.frame import DataFrame, GoAwayFrame, PingFrame

from trioresume.protocol.allowance import Allowance

if TYPE_CHECKING:
    from collections import deque

__all__ = [
    "PREFACE",
    "AckedPing",
    "ConnectionFault",
    "Content",
    "ContentEnded",
    "Engine",
    "ErrorCodes",
    "Event",
    "GoingAway",
    "Request",
    "Reset",
    "Trailers",
    "WindowOpened",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes that a client sends (RFC 9113, section 3.4)."""

FRAME_HEAD = 9
_read_head = struct.Struct(">IBI").unpack_from
"""Reads a frame's head: length and type in one number, flags, stream."""
MOST_FRAME = 16 * 1024
"""The largest payload of a frame: the default, which every client keeps to."""
INITIAL_WINDOW = 65_535
"""Bytes of content that a client may send before it gets credit: the default.

A smaller one could be exceeded by a client that has not read our settings yet."""
TABLE_SIZE = 4096
"""Bytes of the table of each HPACK direction: the default."""
SECTION_FACTOR = 4
"""A field section this many times larger than the limit ends the connection.

Up to that size HPACK decodes it, so that the request gets a 431."""
MOST_DIGITS = 20
"""A longer Content-Length is refused elsewhere."""
ENDLESS = 2**62
"""Bytes that may come if no Content-Length is stated: more than can come."""
LAST_STREAM = 2**31 - 1
"""The stream that the first GOAWAY names: no request is refused yet."""
MOST_REMEMBERED = 256
"""Closed streams that h2 remembers, for frames that were on their way."""

_KNOWN_SETTINGS = frozenset(SettingCodes)
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS = 0, 1, 2, 3, 4
_PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 6, 7, 8, 9
_END_STREAM = _ACK = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8

# Units of the allowance for a frame of each type. Frames of other types, and empty DATA
# frames, cost 1: HTTP/2 lets anybody send frames that nobody knows.
_COSTS = {
    _HEADERS: 0,  # requests are limited elsewhere
    _CONTINUATION: 0,  # their bytes and their number are limited
    _RST_STREAM: 4,  # a request was begun for nothing
    _WINDOW_UPDATE: 0.5,
}
STREAM_FAULT_COST = 4
"""Units for a fault of the peer that makes us reset a stream, or for a refused stream."""

# The states of a stream in which more content may come.
_RECEIVING = frozenset({StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL})


class Request(NamedTuple):
    """A request has begun. *ends* says that it has no content."""

    stream: int
    pairs: Sequence[tuple[bytes, bytes]]
    ends: bool


class Content(NamedTuple):
    """Content came, in order. Its *parts* are parts of what ``receive`` was given, or copies."""

    stream: int
    parts: list[memoryview]


class Trailers(NamedTuple):
    """Trailers came; :class:`ContentEnded` follows."""

    stream: int
    pairs: Sequence[tuple[bytes, bytes]]


class ContentEnded(NamedTuple):
    """The content of a request has ended."""

    stream: int


class Reset(NamedTuple):
    """The stream is closed before its end: by the peer, or because of the peer's fault."""

    stream: int


class WindowOpened(NamedTuple):
    """The peer takes more content of a response; 0 stands for all streams."""

    stream: int


class AckedPing(NamedTuple):
    """The peer has read everything that was sent before our PING."""


class GoingAway(NamedTuple):
    """The peer will begin no more requests."""


Event = (
    Request
    | Content
    | Trailers
    | ContentEnded
    | Reset
    | WindowOpened
    | AckedPing
    | GoingAway
)


class ConnectionFault(Exception):
    """The peer broke a rule of the connection. A GOAWAY waits to be sent; then close."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Inbound:
    """A stream whose content has not ended, and *left*: the bytes that may still come."""

    __slots__ = ("_window", "left", "promised")

    def __init__(self, window: WindowManager, promised: int | None) -> None:
        self._window = window
        self.promised = promised is not None
        """Whether the request's Content-Length says how many bytes come."""
        self.left = ENDLESS if promised is None else promised

    @property
    def credit(self) -> int:
        return self._window.current_window_size

    def note(self, credit: int, left: int) -> None:
        """Set how many bytes may come now, and how many at all."""
        self._window.current_window_size = credit
        self.left = left


class _KeepingDecoder(hpack.Decoder):
    """Decodes a field section, keeps it for us, and shows h2 an empty one."""

    section: Sequence[tuple[bytes, bytes]] = ()

    def decode(self, data: bytes, raw: bool = False) -> Iterable[hpack.HeaderTuple]:
        decoded = super().decode(data, raw=True)
        self.section = cast("list[tuple[bytes, bytes]]", list(decoded))
        return []


class _ShortQueue(list[Any]):
    """Stands for a ``deque`` of h2 or hpack. A list takes a tenth of the memory."""

    __slots__ = ()

    def appendleft(self, item: object) -> None:
        self.insert(0, item)

    def popleft(self) -> object:
        return self.pop(0)


class _PeerSettings(Settings):
    """The settings of a client, small.

    Settings that HTTP/2 does not know are ignored (RFC 9113, section 6.5.2). h2 would keep
    each of 65,536 that a peer can send.
    """

    def __init__(self) -> None:
        super().__init__(client=True)
        for code, values in self._settings.items():
            self._settings[code] = cast("deque[int]", _ShortQueue(values))

    def __setitem__(self, key: SettingCodes | int, value: int) -> None:
        if key not in _KNOWN_SETTINGS:
            return
        if key not in self._settings:
            # None says, as in h2, that there was no value before.
            self._settings[key] = cast("deque[int]", _ShortQueue([None]))
        super().__setitem__(key, value)


@functools.lru_cache(maxsize=16)
def _own_settings(most_streams: int, most_section: int) -> Settings:
    """Return the settings that the server has, the same object for all connections.

    h2 changes them only when its user does, and this module does not.
    """
    values = {
        SettingCodes.HEADER_TABLE_SIZE: TABLE_SIZE,
        SettingCodes.MAX_CONCURRENT_STREAMS: most_streams,
        SettingCodes.MAX_HEADER_LIST_SIZE: most_section,
    }
    return Settings(client=False, initial_values=values)


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


class Engine:
    """The server's end of one HTTP/2 connection.

    *most_streams* and *most_section* are what the peer is told; *window* is the number of
    bytes of content that may be on their way on the whole connection.
    """

    def __init__(
        self,
        *,
        most_streams: int,
        most_section: int,
        window: int,
        now: float,
    ) -> None:
        self._books = _Books(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self._books.local_settings = _own_settings(most_streams, most_section)
        self._books.remote_settings = _PeerSettings()
        self._decoder = _KeepingDecoder(SECTION_FACTOR * most_section)
        self._books.decoder = self._decoder
        for coder in self._decoder, self._books.encoder:
            coder.header_table.dynamic_entries = cast(
                "deque[tuple[bytes, bytes]]", _ShortQueue()
            )
        self._most_section = SECTION_FACTOR * most_section
        self._allowance = Allowance(now)
        self._now = now
        self._output = bytearray()
        # The frame that is being read.
        self._head = bytearray()
        self._unread = len(PREFACE)
        """Bytes of the payload that did not come yet. The preface goes the same way."""
        self._content_of = 0
        """The stream of the payload; 0: the payload is for h2; -1: nobody wants it."""
        self._ends = False
        self._section = 0
        """Bytes of the field section that is being read."""
        self._leaving: bytearray | None = None
        """The payload of a GOAWAY that is being read."""
        self._inbound: dict[int, _Inbound] = {}
        """The streams on which content may come."""
        self._window = window
        self._fault: ConnectionFault | None = None
        self._books.initiate_connection()
        # h2 would end the connection at the limit; its user refuses single streams.
        self._books.local_settings = _own_settings(LAST_STREAM, most_section)
        self._credit_connection()

    # ------------------------------------------------------------ what comes

    @property
    def is_within_head(self) -> bool:
        """Whether a field section, or a frame other than DATA, has begun and not ended."""
        unread = self._unread and not self._content_of
        return bool(self._head or self._section or unread)

    @property
    def is_faulty(self) -> bool:
        """Whether the peer broke a rule of the connection, and was told so."""
        return self._fault is not None

    def receive(self, data: memoryview, now: float) -> list[Event]:
        """Return what *data* tells. The views in it are valid as long as *data* is.

        Raises :class:`ConnectionFault`; what came before the fault has been returned by
        then, or is lost with the connection.
        """
        self._now = now
        events: list[Event] = []
        at, end = 0, len(data)
        while at < end:
            if self._unread:
                part = data[at : at + self._unread]
                at += len(part)
                self._unread -= len(part)
                self._take_payload(part, events)
                continue
            if not self._head:
                at = self._take_ordinary(data, at, events)
                if at == end:
                    break
            wanted = FRAME_HEAD - len(self._head)
            part = data[at : at + wanted]
            at += len(part)
            if self._head or len(part) < wanted:
                self._head += part
                if len(self._head) < FRAME_HEAD:
                    break
                part = memoryview(bytes(self._head))
                self._head.clear()
            self._begin_frame(part, events)
        if self._books.inbound_flow_control_window < self._window // 2:
            self._credit_connection()
        return events

    def _take_ordinary(self, data: memoryview, at: int, events: list[Event]) -> int:
        """Take the ordinary DATA frames from *at* on; return the place of what follows.

        A frame that is not ordinary, or breaks a rule, is left to the long way.
        """
        if self._books.in_section:
            return at
        end = len(data)
        window = self._books.window
        room = window.current_window_size
        known: dict[int, list[memoryview]] = {}
        inbound: _Inbound | None = None
        of = credit = left = 0  # of the stream of the last frame
        parts: list[memoryview] = []
        while end - at >= FRAME_HEAD:
            start, flags, stream = _read_head(data, at)
            # The type of DATA is 0. Its flags are END_STREAM and PADDED.
            length = start >> 8
            if start & 0xFF or flags or not 0 < length <= MOST_FRAME or length > room:
                break
            if stream != of:
                if inbound is not None:
                    inbound.note(credit, left)
                inbound = self._inbound.get(stream)
                if inbound is None:
                    break
                of, credit, left = stream, inbound.credit, inbound.left
                if stream not in known:
                    known[stream] = []
                    events.append(Content(stream, known[stream]))
                parts = known[stream]
            if length > credit or length > left:
                break
            credit -= length
            left -= length
            room -= length
            at += FRAME_HEAD
            parts.append(data[at : at + length])
            at += length
            if at > end:
                self._content_of, self._ends = stream, False
                self._unread, at = at - end, end
        if inbound is not None:
            inbound.note(credit, left)
        self._allowance.earn(window.current_window_size - room)
        window.current_window_size = room
        return at

    def _begin_frame(self, head: memoryview, events: list[Event]) -> None:
        length = head[0] << 16 | head[1] << 8 | head[2]
        kind, flags = head[3], head[4]
        stream = int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
        if length > MOST_FRAME:
            raise self._end(ErrorCodes.FRAME_SIZE_ERROR, "a frame is too large")
        self._charge(kind, flags, length)
        self._count_section(kind, flags, length)
        self._unread = length
        ordinary = kind == _DATA and stream and not flags & _PADDED
        if ordinary and not self._books.in_section:
            self._ends = bool(flags & _END_STREAM)
            self._content_of = self._begin_content(stream, length, events)
            if not length:
                self._end_content(events)
            return
        self._content_of = 0
        if kind == _GOAWAY and not stream and length >= 8:
            if self._books.in_section:
                raise self._end(ErrorCodes.PROTOCOL_ERROR, "a field section is cut")
            self._leaving = bytearray()
            return
        self._feed(head, events)

    def _take_payload(self, part: memoryview, events: list[Event]) -> None:
        if self._content_of:
            if self._content_of > 0:
                events.append(Content(self._content_of, [part]))
            if not self._unread:
                self._end_content(events)
        elif self._leaving is not None:
            if not self._unread:
                self._leaving = None
                events.append(GoingAway())
        else:
            self._feed(part, events)

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
        if kind not in (_HEADERS, _CONTINUATION):
            return
        self._section += length + 1  # an empty frame counts, too
        if self._section > self._most_section:
            raise self._end(
                ErrorCodes.ENHANCE_YOUR_CALM, "a field section is too large"
            )
        if flags & _END_HEADERS:
            self._section = 0

    def _begin_content(self, stream: int, length: int, events: list[Event]) -> int:
        """Have the books take a DATA frame. Returns its stream, or -1 to drop its payload."""
        inbound = self._inbound.get(stream)
        if inbound is not None and not self._keeps_promise(inbound, length, self._ends):
            # RFC 9113, section 8.1.1: malformed.
            self._take_frame(stream, length, events)
            self.reset(stream, ErrorCodes.PROTOCOL_ERROR, at_fault=True)
            events.append(Reset(stream))
            return -1
        try:
            if not self._ends and self._books.take_length(stream, length):
                return stream
        except h2.exceptions.ProtocolError as exc:
            raise self._end(exc.error_code, str(exc)) from exc
        self._take_frame(stream, length, events)
        return stream if inbound is not None else -1

    def _keeps_promise(self, inbound: _Inbound, length: int, ends: bool) -> bool:
        """Note *length* more bytes. Returns False if Content-Length says something else."""
        inbound.left -= length
        if ends and inbound.promised:
            return inbound.left == 0
        return inbound.left >= 0

    def _is_receiving(self, stream: int) -> bool:
        known = self._books.streams.get(stream)
        return known is not None and known.state_machine.state in _RECEIVING

    def _take_frame(self, stream: int, length: int, events: list[Event]) -> None:
        frame = DataFrame(stream, flags=["END_STREAM"] if self._ends else [])
        frame.data = bytes(length)
        try:
            self._books.take_frame(frame)
        except h2.exceptions.ProtocolError as exc:
            raise self._end(exc.error_code, str(exc)) from exc

    def _end_content(self, events: list[Event]) -> None:
        """Note the end of a DATA frame's payload."""
        stream, self._content_of = self._content_of, 0
        if self._ends and stream > 0:
            self._inbound.pop(stream, None)
            events.append(ContentEnded(stream))

    def _feed(self, data: memoryview, events: list[Event]) -> None:
        try:
            came = self._books.receive_data(data)
        except h2.exceptions.ProtocolError as exc:
            self._fault = ConnectionFault(exc.error_code, str(exc))
            raise self._fault from exc
        for event in came:
            self._translate(event, events)

    def _translate(self, event: h2.events.Event, events: list[Event]) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream):
                section, self._decoder.section = self._decoder.section, ()
                ends = event.stream_ended is not None
                if not ends:
                    self._expect_content(stream, section)
                events.append(Request(stream, section, ends))
            case h2.events.TrailersReceived(stream_id=stream):
                section, self._decoder.section = self._decoder.section, ()
                inbound = self._inbound.pop(stream, None)
                if inbound and inbound.promised and inbound.left:
                    self.reset(stream, ErrorCodes.PROTOCOL_ERROR, at_fault=True)
                    events.append(Reset(stream))
                    return
                events.append(Trailers(stream, section))
                events.append(ContentEnded(stream))
            case h2.events.DataReceived(stream_id=stream, data=data):
                # A padded frame. h2 has it whole.
                inbound = self._inbound.get(stream)
                ends = event.stream_ended is not None
                if inbound and not self._keeps_promise(inbound, len(data), ends):
                    self.reset(stream, ErrorCodes.PROTOCOL_ERROR, at_fault=True)
                    events.append(Reset(stream))
                    return
                events.append(Content(stream, [memoryview(data)]))
                if ends:
                    self._inbound.pop(stream, None)
                    events.append(ContentEnded(stream))
                elif event.flow_controlled_length > len(data):
                    self.grant(stream, event.flow_controlled_length - len(data))
            case h2.events.StreamReset(stream_id=stream):
                self._inbound.pop(stream, None)
                events.append(Reset(stream))
            case h2.events.WindowUpdated():
                events.append(WindowOpened(event.stream_id or 0))
            case h2.events.RemoteSettingsChanged():
                self._books.encoder.header_table_size = min(
                    TABLE_SIZE, self._books.remote_settings.header_table_size
                )
                events.append(WindowOpened(0))  # the initial window may have changed
            case h2.events.PingAckReceived():
                events.append(AckedPing())

    def _expect_content(
        self, stream: int, section: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Note the length of the content, for it may come in the same read as its head.

        Whoever takes the request judges the field itself.
        """
        promised: int | None = None
        for name, value in section:
            if name == b"content-length" and value.isdigit():
                promised = int(value[:MOST_DIGITS])
        self._inbound[stream] = _Inbound(self._books.window_of(stream), promised)

    # ------------------------------------------------------------ what is sent

    def take_output(self) -> bytearray:
        """Return the bytes to be sent, which the caller sends in this order."""
        self._collect()
        output, self._output = self._output, bytearray()
        return output

    @property
    def has_output(self) -> bool:
        return bool(self._output or self._books.has_output)

    def _collect(self) -> None:
        self._output += self._books.data_to_send()

    def is_open(self, stream: int) -> bool:
        """Whether a response can still be sent."""
        known = self._books.streams.get(stream)
        return (
            self._fault is None
            and known is not None
            and known.state_machine.state
            in (StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE)
        )

    def send_head(
        self, stream: int, pairs: Iterable[tuple[bytes, bytes]], *, ends: bool = False
    ) -> None:
        """Queue a response's head, interim or final, in HPACK's order."""
        self._books.send_headers(stream, pairs, end_stream=ends)

    def room(self, stream: int) -> int:
        """Return how many bytes of content the peer takes on *stream* now."""
        if not self.is_open(stream):
            return 0
        return max(0, self._books.local_flow_control_window(stream))

    def send_content(
        self, stream: int, data: bytes | memoryview, *, ends: bool = False
    ) -> None:
        """Queue content, at most :meth:`room` bytes."""
        most = self._books.max_outbound_frame_size
        view = memoryview(data)
        while len(view) > most:
            self._books.send_data(stream, view[:most])
            view = view[most:]
        self._books.send_data(stream, view, end_stream=ends)
        self._allowance.earn(len(data))

    def credit(self, stream: int) -> int:
        """Return how many bytes the peer may send on *stream* now."""
        known = self._books.streams.get(stream)
        return 0 if known is None else known.inbound_flow_control_window

    def grant(self, stream: int, size: int) -> None:
        """Let the peer send *size* bytes more on *stream*, if it is still receiving."""
        if self._fault is None and self._is_receiving(stream):
            self._books.increment_flow_control_window(size, stream)

    def _credit_connection(self) -> None:
        missing = self._window - self._books.inbound_flow_control_window
        if missing > 0 and self._fault is None:
            self._books.increment_flow_control_window(missing)

    def reset(self, stream: int, code: ErrorCodes, *, at_fault: bool = False) -> None:
        """Close *stream* now, unless it is closed. *at_fault* charges the peer for it."""
        self._inbound.pop(stream, None)
        known = self._books.streams.get(stream)
        if self._fault is None and known is not None and not known.closed:
            self._books.reset_stream(stream, code)
        if at_fault and not self._allowance.spend(STREAM_FAULT_COST, self._now):
            raise self._end(ErrorCodes.ENHANCE_YOUR_CALM, "too many faulty requests")

    def forget(self, stream: int) -> None:
        """Free what is held of *stream*, which has ended."""
        self._inbound.pop(stream, None)
        self._books.forget_closed()

    @property
    def last_stream(self) -> int:
        """The newest request that has come."""
        return self._books.highest_inbound_stream_id

    def go_away(self, last: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Queue a GOAWAY. Streams up to *last* go on; h2 does not learn of it."""
        self._collect()
        frame = GoAwayFrame(0, last_stream_id=last, error_code=code)
        self._output += frame.serialize()

    def ping(self) -> None:
        """Queue a PING; :class:`AckedPing` follows when the peer has answered it.

        h2 does not learn of it: it sends none on a connection that has met a fault.
        """
        self._collect()
        self._output += PingFrame(0, b"goingawy").serialize()

    def _end(self, code: int, reason: str) -> ConnectionFault:
        """Queue the GOAWAY of a fault; return the exception to be raised."""
        if self._fault is None:
            self._fault = ConnectionFault(code, reason)
            self.go_away(self.last_stream, ErrorCodes(code))
        return self._fault
