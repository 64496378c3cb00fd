"""A backend that keeps every byte it was sent, and behaves as a test says.

It reads requests with a reader of its own, so that the tests do not trust the parser that
the code under test uses: a head ends at the empty line, the content has ``Content-Length``
bytes, and anything else is a failure.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

__all__ = ["Backend", "Seen", "backend", "ok", "raw"]


@dataclass
class Seen:
    """A request, as it came."""

    line: str
    lines: list[tuple[str, str]]
    body: bytes
    connection: int

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def get(self, name: str) -> str | None:
        """The value of the one field called *name*."""
        found = [value for each, value in self.lines if each == name]
        assert len(found) <= 1, (name, found)
        return found[0] if found else None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


Answer = Callable[[Seen, trio.abc.Stream], Awaitable[None]]


def raw(*parts: bytes, pause: Callable[[], Awaitable[None]] | None = None) -> Answer:
    """Answer with these bytes, and wait between them."""

    async def answer(seen: Seen, stream: trio.abc.Stream) -> None:
        for number, part in enumerate(parts):
            if number and pause is not None:
                await pause()
            await stream.send_all(part)

    return answer


def ok(
    body: bytes = b"done", status: str = "200 OK", fields: tuple[str, ...] = ()
) -> Answer:
    """Answer with a whole response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return raw("\r\n".join([*lines, "", ""]).encode() + body)


@dataclass
class Backend:
    """A running backend. Change ``answer`` and ``early`` at any time."""

    url: str = ""
    answer: Answer = field(default_factory=ok)
    early: Answer | None = None
    """Called when the head of a request is there, and before its content is read."""
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    received: bytearray = field(default_factory=bytearray)
    """Every byte of all connections, in the order of their arrival."""
    failures: list[str] = field(default_factory=list)
    came: trio.Event = field(default_factory=trio.Event)
    """Set, and replaced, when bytes have come."""
    got: trio.Event = field(default_factory=trio.Event)
    """Set when a whole request was read."""
    left: trio.Event = field(default_factory=trio.Event)
    """Set when a peer has closed its connection in the middle of something."""
    limit: int | None = None
    """Requests on a connection; after them it is closed."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        number = self.connections
        buffer = bytearray()
        count = 0

        async def more() -> bool:
            data = await stream.receive_some(65536)
            self.received.extend(data)
            buffer.extend(data)
            self.came.set()
            self.came = trio.Event()
            return bool(data)

        try:
            while self.limit is None or count < self.limit:
                while b"\r\n\r\n" not in buffer:
                    if not await more():
                        if buffer:
                            self.failures.append(f"a cut head: {bytes(buffer)!r}")
                        return
                head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
                line, *lines = head.decode("latin-1").split("\r\n")
                pairs = [tuple(each.split(": ", 1)) for each in lines]
                seen = Seen(line, [(n.lower(), v) for n, v in pairs], b"", number)
                if seen.get("transfer-encoding") is not None:
                    self.failures.append("content of unknown length")
                length = int(seen.get("content-length") or 0)
                buffer[:] = rest
                if self.early is not None:
                    await self.early(seen, stream)
                while len(buffer) < length:
                    if not await more():
                        self.left.set()
                        return
                seen.body = bytes(buffer[:length])
                del buffer[:length]
                self.seen.append(seen)
                self.got.set()
                await self.answer(seen, stream)
                count += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.left.set()
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def backend(
    answer: Answer | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    port: int = 0,
    **settings: object,
) -> AsyncIterator[Backend]:
    """A backend on the loopback interface."""
    server = Backend(**settings)  # type: ignore[arg-type]
    if answer is not None:
        server.answer = answer

    async def serve(stream: trio.SocketStream) -> None:
        if tls is None:
            await server.serve(stream)
            return
        secured = trio.SSLStream(stream, tls, server_side=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError:
            return
        await server.serve(secured)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        taken = listeners[0].socket.getsockname()[1]
        server.url = f"http{'s' if tls else ''}://127.0.0.1:{taken}"
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()
    assert server.failures == []
