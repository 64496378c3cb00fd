"""HTTP/2 for the tests: a stream that speaks it for a client of HTTP/1.1, and a free peer.

:class:`Http2Stream` lets the tests of the workflows run over HTTP/2 as they are. It takes the
bytes of HTTP/1.1 requests and returns the bytes of their responses; the wire carries HTTP/2.

:class:`Peer` is for tests of HTTP/2 itself: it sends what it is told, sense or nonsense.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h11
import trio
from hyperframe.frame import Frame

__all__ = ["Answer", "Http2Stream", "Peer"]

Pairs = list[tuple[bytes, bytes]]

# What HTTP/2 has no place for: the adapter leaves these out, as a gateway does.
_DROPPED = frozenset({b"host", b"connection", b"transfer-encoding", b"keep-alive"})


class Wire(Protocol):
    """The byte stream below."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, max_bytes: int = ...) -> bytes | bytearray: ...

    async def aclose(self) -> None: ...


def _connection() -> h2.connection.H2Connection:
    config = h2.config.H2Configuration(client_side=True, header_encoding=None)
    return h2.connection.H2Connection(config)


class Http2Stream:
    """HTTP/1.1 on this side, HTTP/2 on *wire*; one request at a time.

    One task may send while another one receives.
    """

    def __init__(self, wire: Wire, scheme: str = "http") -> None:
        self.wire = wire
        self._scheme = scheme
        self._h2 = _connection()
        self._h2.initiate_connection()
        self._parser = h11.Connection(h11.SERVER)
        self._stream = 0
        self._method = b""
        self._answered = True
        self._chunked = False
        self._came = bytearray()
        self._ended = False
        self._sending = trio.Lock()
        self._reading: trio.Event | None = None
        """Set when the task that reads from the wire has read."""

    async def send_all(self, data: bytes) -> None:
        self._parser.receive_data(data)
        while True:
            event = self._parser.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                break
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                await self._send_content(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._end(event)
                unread, _ = self._parser.trailing_data
                self._parser = h11.Connection(h11.SERVER)
                if not unread:
                    break
                self._parser.receive_data(unread)
            else:
                break  # the client closes
        await self._flush()

    def _begin(self, request: h11.Request) -> None:
        self._stream = self._h2.get_next_available_stream_id()
        self._method = request.method
        self._answered = False
        hosts = [value for name, value in request.headers if name == b"host"]
        pairs = [
            (b":method", request.method),
            (b":scheme", self._scheme.encode()),
            (b":authority", hosts[0]),
            (b":path", request.target),
        ]
        pairs += [(n, v) for n, v in request.headers if n not in _DROPPED]
        self._h2.send_headers(self._stream, pairs)

    async def _send_content(self, data: bytes) -> None:
        while data:
            if not self._is_open:
                return  # answered early: nobody wants the rest
            room = self._h2.local_flow_control_window(self._stream)
            if not room:
                if not await self._read():
                    return
                continue
            part = data[: min(room, self._h2.max_outbound_frame_size)]
            self._h2.send_data(self._stream, part)
            data = data[len(part) :]
            await self._flush()

    @property
    def _is_open(self) -> bool:
        stream = self._h2.streams.get(self._stream)
        return stream is not None and stream.open

    def _end(self, event: h11.EndOfMessage) -> None:
        if not self._is_open:
            return
        if event.headers:
            self._h2.send_headers(self._stream, list(event.headers), end_stream=True)
        else:
            self._h2.end_stream(self._stream)

    async def _flush(self) -> None:
        async with self._sending:
            data = self._h2.data_to_send()
            if data:
                await self.wire.send_all(data)

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        while not self._came and not self._ended:
            await self._read()
        data = bytes(self._came[:max_bytes])
        del self._came[:max_bytes]
        return data

    async def _read(self) -> bool:
        """Read from the wire once. Returns False at its end."""
        if self._reading is not None:
            await self._reading.wait()
            return not self._ended
        self._reading = trio.Event()
        try:
            data = bytes(await self.wire.receive_some(65536))
        finally:
            self._reading.set()
            self._reading = None
        if not data:
            self._ended = True
            return False
        for event in self._h2.receive_data(data):
            self._translate(event)
        await self._flush()
        return True

    def _translate(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.InformationalResponseReceived):
            self._came += _head_bytes(event.headers or [], chunked=False)
        elif isinstance(event, h2.events.ResponseReceived):
            pairs: Pairs = list(event.headers or [])
            status = dict(pairs)[b":status"]
            bodiless = self._method == b"HEAD" or status in (b"204", b"304")
            self._chunked = not bodiless and b"content-length" not in dict(pairs)
            self._came += _head_bytes(pairs, chunked=self._chunked)
        elif isinstance(event, h2.events.DataReceived):
            data = event.data or b""
            if self._chunked and data:
                self._came += b"%x\r\n%b\r\n" % (len(data), data)
            elif not self._chunked:
                self._came += data
            self._h2.acknowledge_received_data(
                event.flow_controlled_length or 0, event.stream_id or 0
            )
        elif isinstance(event, h2.events.StreamEnded):
            if self._chunked:
                self._came += b"0\r\n\r\n"
            self._answered = True
        elif isinstance(event, h2.events.StreamReset) and not self._answered:
            self._ended = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            # h2 would take no more of a response that is on its way.
            self._h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN

    async def aclose(self) -> None:
        await self.wire.aclose()


def _head_bytes(pairs: Iterable[tuple[bytes, bytes]], *, chunked: bool) -> bytes:
    lines = [b"HTTP/1.1 "]
    for name, value in pairs:
        if name == b":status":
            try:
                reason = HTTPStatus(int(value)).phrase.encode()
            except ValueError:
                reason = b""
            lines[0] += value + b" " + reason
        else:
            lines.append(name + b": " + value)
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    return b"\r\n".join([*lines, b"", b""])


@dataclass
class Answer:
    """The responses that one stream received."""

    interims: list[dict[str, str]] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None
    """The code of a RST_STREAM."""

    @property
    def status(self) -> int:
        return int(self.fields[":status"])


class Peer:
    """A client of HTTP/2 that does what a test says."""

    def __init__(self, wire: Wire, *, credits_at_once: bool = True) -> None:
        self.wire = wire
        self.h2 = _connection()
        self.answers: dict[int, Answer] = {}
        self.goaways: list[tuple[int, int]] = []
        """The last stream and the code of each GOAWAY."""
        self.pings = 0
        """PINGs that were answered."""
        self.settings_acked = 0
        self.closed = False
        """Whether the server has ended the connection."""
        self._credits = credits_at_once
        self._unread = bytearray()

    async def start(self, settings: dict[int, int] | None = None) -> None:
        """Send the preface and the settings."""
        for code, value in (settings or {}).items():
            self.h2.local_settings[code] = value
            self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            await self.wire.send_all(data)

    async def send_frames(self, *frames: Frame) -> None:
        """Send frames behind the back of h2."""
        await self.wire.send_all(b"".join(frame.serialize() for frame in frames))

    async def begin(
        self,
        method: str = "POST",
        path: str = "/",
        fields: dict[str, str] | None = None,
        *,
        length: int | None = None,
        ends: bool = False,
    ) -> int:
        """Send a request's head; return its stream."""
        stream = self.h2.get_next_available_stream_id()
        pairs = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "test"),
            (":path", path),
            *((fields or {}).items()),
        ]
        if length is not None:
            pairs.append(("content-length", str(length)))
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, pairs, end_stream=ends)
        await self.flush()
        return stream

    async def content(self, stream: int, data: bytes, *, ends: bool = False) -> None:
        """Send content, as the windows allow; stop if the stream is closed."""
        while data:
            known = self.h2.streams.get(stream)
            if known is None or not known.open:
                return
            room = self.h2.local_flow_control_window(stream)
            part = data[: min(room, self.h2.max_outbound_frame_size)]
            if part:
                data = data[len(part) :]
                self.h2.send_data(stream, part, end_stream=ends and not data)
                await self.flush()
            elif not await self.read():
                return
        if ends and self.h2.streams[stream].open and not data:
            known = self.h2.streams[stream]
            if known.state_machine.state.name in ("OPEN", "HALF_CLOSED_REMOTE"):
                self.h2.end_stream(stream)
                await self.flush()

    async def read(self) -> bool:
        """Read once. Returns False at the end of the connection."""
        try:
            data = bytes(await self.wire.receive_some(65536))
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.closed = True
            return False
        self._unread += data
        while (frame := self._next_frame()) is not None:
            for event in self.h2.receive_data(frame):
                self._note(event)
        await self.flush()
        return True

    def _next_frame(self) -> bytes | None:
        """Take one frame, since h2 would take none after a GOAWAY in the same bytes."""
        size = 9 + int.from_bytes(self._unread[:3], "big")
        if len(self._unread) < size:
            return None
        frame = bytes(self._unread[:size])
        del self._unread[:size]
        return frame

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.InformationalResponseReceived(stream_id=stream):
                self.answers[stream].interims.append(_texts(event.headers))
            case h2.events.ResponseReceived(stream_id=stream):
                self.answers[stream].fields = _texts(event.headers)
            case h2.events.DataReceived(stream_id=stream):
                self.answers[stream].body += event.data or b""
                if self._credits:
                    size = event.flow_controlled_length or 0
                    self.h2.acknowledge_received_data(size, stream)
            case h2.events.StreamEnded(stream_id=stream):
                self.answers[stream].ended = True
            case h2.events.StreamReset(stream_id=stream):
                self.answers[stream].reset = int(event.error_code or 0)
            case h2.events.PingAckReceived():
                self.pings += 1
            case h2.events.SettingsAcknowledged():
                self.settings_acked += 1
            case h2.events.ConnectionTerminated():
                self.goaways.append(
                    (event.last_stream_id or 0, int(event.error_code or 0))
                )
                # h2 would take no more of the responses that are on their way.
                self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN

    async def answer(self, stream: int) -> Answer:
        """Read until *stream* has its whole response, is reset, or the connection ends."""
        answer = self.answers[stream]
        while not answer.ended and answer.reset is None and await self.read():
            pass
        return answer

    async def interim(self, stream: int, count: int = 1) -> dict[str, str]:
        """Read until *stream* has *count* interim responses; return the last."""
        answer = self.answers[stream]
        while len(answer.interims) < count and await self.read():
            pass
        return answer.interims[count - 1]

    async def until_closed(self) -> None:
        """Read until the server has ended the connection."""
        while await self.read():
            pass

    async def ping(self) -> None:
        """Wait until the server has answered a PING: it has seen everything before it."""
        self.h2.ping(b"are you?")
        await self.flush()
        wanted = self.pings + 1
        while self.pings < wanted and await self.read():
            pass


def _texts(pairs: object) -> dict[str, str]:
    assert isinstance(pairs, list)
    return {n.decode("latin-1"): v.decode("latin-1") for n, v in pairs}
