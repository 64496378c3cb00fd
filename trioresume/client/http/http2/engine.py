"""The client's end of an HTTP/2 connection without its socket: bytes in, events out.

What it shares with the server's end, above all h2's books, is in
:mod:`trioresume.protocol.http2_engine`. Here is how a client reads the frames:

* **Content does not pass through h2**, in either direction. Of DATA frames only h2's windows
  learn the length, and the frames that open windows, of which an upload gets thousands, go to
  them directly.
* **A malformed response hurts one stream.** h2 would end the connection for it. So its
  decoder shows it no field but ``:status``. The fields go to
  :mod:`trioresume.protocol.http2_head`, and the length of the content is checked here.
* **A frame is refused at its head**, before its payload is buffered: if it is too large, if a
  field section grows too large, or if the server floods the connection with frames that
  mean nothing (see :mod:`trioresume.protocol.allowance`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import h2.events
import h2.exceptions
import hpack
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings

from trioresume.protocol.http2_engine import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD,
    GOAWAY,
    HEADERS,
    LARGEST_WINDOW,
    LAST_STREAM,
    MOST_FRAME,
    PADDED,
    PUSH_PROMISE,
    SETTINGS,
    TABLE_SIZE,
    WINDOW_UPDATE,
    BaseEngine,
    ConnectionFault,
    Pair,
)

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

STREAM_WINDOW = 1 << 20
"""Bytes of a response's content that may come before the caller has taken any."""
CONNECTION_WINDOW = 16 << 20
"""The same for all streams together. The windows of the streams are the real limit."""
SECTION_FACTOR = 2
"""A field section may be this many times larger than the server was told."""

# Units of the allowance for a frame of each type; 1 for others, and for empty DATA. Time and
# content of ours refill it. A field section costs nothing here: RoundTrip counts interim
# responses.
COSTS = {
    HEADERS: 0,
    CONTINUATION: 0,  # their bytes and their number are limited
    WINDOW_UPDATE: 0.5,
}

# RFC 9110, section 8.6: these have no content, whatever Content-Length says.
_BODILESS = frozenset({b"204", b"304"})

# HPACK must not put these into its tables (RFC 7541, section 7.1.3).
_SECRET = frozenset({b"authorization", b"cookie", b"proxy-authorization"})


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


class NoHttp2(ConnectionFault):
    """The first bytes are not HTTP/2 at all."""


class Engine(BaseEngine):
    """The client's end of one HTTP/2 connection. *most_section* is in bytes."""

    costs: ClassVar[Mapping[int, float]] = COSTS

    def __init__(self, *, most_section: int, now: float) -> None:
        settings = {
            SettingCodes.HEADER_TABLE_SIZE: TABLE_SIZE,
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: most_section,
        }
        super().__init__(
            Settings(client=True, initial_values=settings),
            client_side=True,
            most_section=SECTION_FACTOR * most_section,
            window=CONNECTION_WINDOW,
            now=now,
        )
        self._buffer = bytearray()
        self._expected: dict[int, int | None] = {}
        """For each stream with its final head: bytes of content that are still to come, if
        its Content-Length said it."""
        self._heads: set[int] = set()
        """Streams whose response has no content, because of the request's method."""
        self.has_settings = False
        """Whether the server's first SETTINGS have come."""

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
        if not self.has_settings and (kind != SETTINGS or flags & ACK):
            # RFC 9113, section 3.4: the server's preface is a SETTINGS frame.
            self._end(ErrorCodes.PROTOCOL_ERROR, "")
            raise NoHttp2(
                ErrorCodes.PROTOCOL_ERROR, "the server does not answer in HTTP/2"
            )
        if length > MOST_FRAME:
            raise self._end(ErrorCodes.FRAME_SIZE_ERROR, "a frame is too large")
        section = kind in (HEADERS, CONTINUATION, PUSH_PROMISE)
        if section and self._section + length > self._most_section:
            raise self._end(ErrorCodes.ENHANCE_YOUR_CALM, "a head is too large")

    def _count_section(self, kind: int, flags: int, length: int) -> None:
        if kind in (HEADERS, CONTINUATION, PUSH_PROMISE):
            self._section += length + 1  # an empty frame counts, too
            if flags & END_HEADERS:
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
        if kind == DATA and not flags & PADDED and not self._books.in_section:
            if not flags & END_STREAM and self._takes_length(stream, len(payload)):
                self._note_content(stream, bytes(payload), events)
                return
        elif kind == WINDOW_UPDATE and len(payload) == 4:
            size = int.from_bytes(payload, "big") & LARGEST_WINDOW
            if not self._books.in_section and self._books.open_window(stream, size):
                events.append(WindowOpened(stream))
                return
        elif kind == GOAWAY and not stream and len(payload) >= 8:
            last = int.from_bytes(payload[:4], "big") & LAST_STREAM
            code = int.from_bytes(payload[4:8], "big")
            events.append(GoingAway(last, code, _text(bytes(payload[8:108]))))
            return
        try:
            came = self._books.receive_data(frame)
        except h2.exceptions.ProtocolError as exc:
            self._collect()
            self._fault = ConnectionFault(
                exc.error_code, f"the server breaks HTTP/2's rules: {exc}"
            )
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
                self._adopt_table_size()
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

    def reset(self, stream: int, code: ErrorCodes) -> None:
        """Close *stream* now, unless it is closed."""
        self._reset(stream, code)

    def forget(self, stream: int) -> None:
        """Free what is held of *stream*, which has ended."""
        self._expected.pop(stream, None)
        self._heads.discard(stream)
        self._books.forget_closed()

    def ping(self) -> None:
        """Queue a PING, which a server answers at once."""
        self._books.ping(b"trioresu")


def name_of(code: int) -> str:
    """Return the name of an error code (RFC 9113, section 7)."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code}"


def _text(data: bytes) -> str:
    return data.decode("ascii", "replace")
