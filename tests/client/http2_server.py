"""A scripted server of HTTP/2, in memory: it does what a test says, sense or nonsense.

:class:`Http2Peer` is the server's end of a connection. :func:`serving_http2` is a connector
whose connection number *i* follows ``scripts[i]``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trio
import trio.testing
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import Frame

from trioresume.client import Origin, Route

__all__ = ["Http2Peer", "Http2Request", "Http2Server", "Script", "serving_http2"]


@dataclass
class Http2Request:
    """A request that came."""

    stream: int
    fields: dict[str, str]
    content: bytearray = field(default_factory=bytearray)
    frames: list[int] = field(default_factory=list)
    """The lengths of its DATA frames."""
    ended: bool = False
    reset: int | None = None

    @property
    def line(self) -> str:
        return f"{self.fields[':method']} {self.fields[':path']}"


class Http2Peer:
    """The server's end of a connection. It gives credit for all content, unless told not to."""

    def __init__(self, wire: trio.abc.Stream) -> None:
        self.wire = wire
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.requests: dict[int, Http2Request] = {}
        self.new: list[Http2Request] = []
        self.most_at_once = 0
        self.goaways: list[int] = []
        """The codes of the client's GOAWAYs."""
        self.pings = 0
        self.acked_pings = 0
        self.credits = True
        self.answers_pings = True

    async def start(self, settings: Mapping[int, int] | None = None) -> None:
        for code, value in (settings or {}).items():
            self.h2.local_settings[code] = value
            self.h2.local_settings.acknowledge()
            if code == SettingCodes.MAX_FRAME_SIZE:
                self.h2.max_inbound_frame_size = value
        self.h2.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            await self.wire.send_all(data)

    async def send_frames(self, *frames: Frame | bytes) -> None:
        """Send frames behind the back of h2."""
        await self.wire.send_all(
            b"".join(f if isinstance(f, bytes) else f.serialize() for f in frames)
        )

    async def read(self) -> bool:
        """Read once. Returns False at the end of the connection."""
        try:
            data = bytes(await self.wire.receive_some(1 << 20))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        if not data:
            return False
        for event in self.h2.receive_data(data):
            self._note(event)
        open_now = [r for r in self.requests.values() if not r.ended]
        self.most_at_once = max(self.most_at_once, len(open_now))
        if self.answers_pings or not self.pings:
            await self.flush()
        return True

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream):
                lines = {str(name): str(value) for name, value in event.headers}
                request = Http2Request(stream, lines)
                self.requests[stream] = request
                self.new.append(request)
            case h2.events.DataReceived(stream_id=stream):
                request = self.requests[stream]
                request.content += event.data
                request.frames.append(len(event.data))
                if self.credits and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(
                        event.flow_controlled_length, stream
                    )
            case h2.events.StreamEnded(stream_id=stream):
                self.requests[stream].ended = True
            case h2.events.StreamReset(stream_id=stream):
                self.requests[stream].reset = int(event.error_code)
            case h2.events.PingReceived():
                self.pings += 1
            case h2.events.PingAckReceived():
                self.acked_pings += 1
            case h2.events.ConnectionTerminated():
                self.goaways.append(int(event.error_code or 0))

    async def request(self) -> Http2Request:
        """The next request that comes."""
        while not self.new:
            assert await self.read(), "the client has closed the connection"
        return self.new.pop(0)

    async def whole(self, request: Http2Request) -> bytes:
        """Read until the request has ended; return its content."""
        while not request.ended and request.reset is None:
            assert await self.read(), "the client has closed the connection"
        return bytes(request.content)

    async def until_closed(self) -> None:
        while await self.read():
            pass

    async def interim(
        self, stream: int, status: int, fields: Mapping[str, str]
    ) -> None:
        self.h2.send_headers(stream, [(":status", str(status)), *fields.items()])
        await self.flush()

    async def respond(
        self,
        stream: int,
        status: int = 201,
        body: bytes = b"",
        fields: Mapping[str, str] | None = None,
    ) -> None:
        lines = dict(fields or {})
        if status == 201:
            lines.setdefault("location", "/thing")
        pairs = [(":status", str(status)), *lines.items()]
        self.h2.send_headers(stream, pairs, end_stream=not body)
        if body:
            self.h2.send_data(stream, body, end_stream=True)
        await self.flush()

    async def reset(self, stream: int, code: ErrorCodes) -> None:
        self.h2.reset_stream(stream, code)
        await self.flush()


Script = Callable[[Http2Peer], Awaitable[object]]


class Http2Server:
    """A connector. Connection number *i* is served by ``scripts[i]``; the last one repeats."""

    def __init__(self, nursery: trio.Nursery, scripts: tuple[Script, ...]) -> None:
        self._nursery = nursery
        self._scripts = scripts
        self.peers: list[Http2Peer] = []

    async def connect(self, origin: Origin) -> Route:
        await trio.lowlevel.checkpoint()
        client, server = trio.testing.memory_stream_pair()
        peer = Http2Peer(server)
        script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
        self.peers.append(peer)
        self._nursery.start_soon(self._run, script, peer)
        return Route(client, http2=True)

    async def _run(self, script: Script, peer: Http2Peer) -> None:
        try:
            await script(peer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has closed
        finally:
            await trio.aclose_forcefully(peer.wire)


@asynccontextmanager
async def serving_http2(*scripts: Script) -> AsyncIterator[Http2Server]:
    async with trio.open_nursery() as nursery:
        yield Http2Server(nursery, scripts)
        nursery.cancel_scope.cancel()
