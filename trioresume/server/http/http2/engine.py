"""One HTTP/2 connection without its socket: bytes in, events out, frames to be sent.

What it shares with the client's end, above all h2's books, is in
:mod:`trioresume.protocol.http2_engine`. Here is how a server reads the frames.

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

**A frame is refused at its head**, before its payload is buffered: if it is too large, if a
field section grows too large over several frames, or if the peer's allowance is spent (see
:mod:`trioresume.protocol.allowance`).

The number of open streams is limited by the connection, which refuses single streams; h2 would
end the connection. Our own settings never change, so all connections share them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame, PingFrame

from trioresume.protocol.http2_engine import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD,
    GOAWAY,
    HEADERS,
    LAST_STREAM,
    MOST_FRAME,
    PADDED,
    RST_STREAM,
    TABLE_SIZE,
    WINDOW_UPDATE,
    BaseEngine,
    ConnectionFault,
    Pair,
)

if TYPE_CHECKING:
    from h2.windows import WindowManager

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

_read_head = struct.Struct(">IBI").unpack_from
"""Reads a frame's head: length and type in one number, flags, stream."""
INITIAL_WINDOW = 65_535
"""Bytes of content that a client may send before it gets credit: the default.

A smaller one could be exceeded by a client that has not read our settings yet."""
SECTION_FACTOR = 4
"""A field section this many times larger than the limit ends the connection.

Up to that size HPACK decodes it, so that the request gets a 431."""
MOST_DIGITS = 20
"""A longer Content-Length is refused elsewhere."""
ENDLESS = 2**62
"""Bytes that may come if no Content-Length is stated: more than can come."""

# Units of the allowance for a frame of each type. Frames of other types, and empty DATA
# frames, cost 1: HTTP/2 lets anybody send frames that nobody knows.
COSTS = {
    HEADERS: 0,  # requests are limited elsewhere
    CONTINUATION: 0,  # their bytes and their number are limited
    RST_STREAM: 4,  # a request was begun for nothing
    WINDOW_UPDATE: 0.5,
}
STREAM_FAULT_COST = 4
"""Units for a fault of the peer that makes us reset a stream, or for a refused stream."""


class Request(NamedTuple):
    """A request has begun. *ends* says that it has no content."""

    stream: int
    pairs: Sequence[Pair]
    ends: bool


class Content(NamedTuple):
    """Content came, in order. Its *parts* are parts of what ``receive`` was given, or copies."""

    stream: int
    parts: list[memoryview]


class Trailers(NamedTuple):
    """Trailers came; :class:`ContentEnded` follows."""

    stream: int
    pairs: Sequence[Pair]


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


class Engine(BaseEngine):
    """The server's end of one HTTP/2 connection.

    *most_streams* and *most_section* are what the peer is told; *window* is the number of
    bytes of content that may be on their way on the whole connection.
    """

    costs: ClassVar[Mapping[int, float]] = COSTS

    def __init__(
        self,
        *,
        most_streams: int,
        most_section: int,
        window: int,
        now: float,
    ) -> None:
        super().__init__(
            _own_settings(most_streams, most_section),
            client_side=False,
            most_section=SECTION_FACTOR * most_section,
            window=window,
            now=now,
        )
        # h2 would end the connection at the limit; its user refuses single streams.
        self._books.local_settings = _own_settings(LAST_STREAM, most_section)
        # The frame that is being read.
        self._head = bytearray()
        self._unread = len(PREFACE)
        """Bytes of the payload that did not come yet. The preface goes the same way."""
        self._content_of = 0
        """The stream of the payload; 0: the payload is for h2; -1: nobody wants it."""
        self._ends = False
        self._leaving: bytearray | None = None
        """The payload of a GOAWAY that is being read."""
        self._inbound: dict[int, _Inbound] = {}
        """The streams on which content may come."""

    # ------------------------------------------------------------ what comes

    @property
    def is_within_head(self) -> bool:
        """Whether a field section, or a frame other than DATA, has begun and not ended."""
        unread = self._unread and not self._content_of
        return bool(self._head or self._section or unread)

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
        ordinary = kind == DATA and stream and not flags & PADDED
        if ordinary and not self._books.in_section:
            self._ends = bool(flags & END_STREAM)
            self._content_of = self._begin_content(stream, length, events)
            if not length:
                self._end_content(events)
            return
        self._content_of = 0
        if kind == GOAWAY and not stream and length >= 8:
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

    def _count_section(self, kind: int, flags: int, length: int) -> None:
        if kind not in (HEADERS, CONTINUATION):
            return
        self._section += length + 1  # an empty frame counts, too
        if self._section > self._most_section:
            raise self._end(
                ErrorCodes.ENHANCE_YOUR_CALM, "a field section is too large"
            )
        if flags & END_HEADERS:
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
                self._adopt_table_size()
                events.append(WindowOpened(0))  # the initial window may have changed
            case h2.events.PingAckReceived():
                events.append(AckedPing())

    def _expect_content(self, stream: int, section: Sequence[Pair]) -> None:
        """Note the length of the content, for it may come in the same read as its head.

        Whoever takes the request judges the field itself.
        """
        promised: int | None = None
        for name, value in section:
            if name == b"content-length" and value.isdigit():
                promised = int(value[:MOST_DIGITS])
        self._inbound[stream] = _Inbound(self._books.window_of(stream), promised)

    # ------------------------------------------------------------ what is sent

    @property
    def has_output(self) -> bool:
        return bool(self._output or self._books.has_output)

    def send_head(
        self, stream: int, pairs: Iterable[Pair], *, ends: bool = False
    ) -> None:
        """Queue a response's head, interim or final, in HPACK's order."""
        self._books.send_headers(stream, pairs, end_stream=ends)

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

    def reset(self, stream: int, code: ErrorCodes, *, at_fault: bool = False) -> None:
        """Close *stream* now, unless it is closed. *at_fault* charges the peer for it."""
        self._inbound.pop(stream, None)
        self._reset(stream, code)
        if at_fault and not self._allowance.spend(STREAM_FAULT_COST, self._now):
            raise self._end(ErrorCodes.ENHANCE_YOUR_CALM, "too many faulty requests")

    def forget(self, stream: int) -> None:
        """Free what is held of *stream*, which has ended."""
        self._inbound.pop(stream, None)
        self._books.forget_closed()

    def ping(self) -> None:
        """Queue a PING; :class:`AckedPing` follows when the peer has answered it.

        h2 does not learn of it: it sends none on a connection that has met a fault.
        """
        self._collect()
        self._output += PingFrame(0, b"goingawy").serialize()
