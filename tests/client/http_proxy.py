"""A proxy for the tests of the client: it opens tunnels, and passes requests on."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import trio

__all__ = ["HttpProxy"]


class HttpProxy:
    """What the proxy saw. With *login*, ``name:password``, it wants that of everybody.

    *refusals* are the statuses with which it answers the first requests.
    """

    def __init__(
        self, login: str | None = None, refusals: tuple[int, ...] = ()
    ) -> None:
        self.requests: list[str] = []
        """The first line of each connection's first request."""
        self.url = ""
        self._login = login
        self._refusals = list(refusals)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[HttpProxy]:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(trio.serve_tcp, self._handle, 0, host="127.0.0.1")
            )
            host, port = listeners[0].socket.getsockname()[:2]
            self.url = f"http://{host}:{port}"
            yield self
            nursery.cancel_scope.cancel()

    async def _handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await self._serve(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _serve(self, stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some() or b"\r\n\r\n"
        line, _, rest = received.partition(b"\r\n")
        method, target, _ = line.decode("ascii").split(" ")
        self.requests.append(f"{method} {target}")
        status = self._refusals.pop(0) if self._refusals else self._verdict(received)
        if status is not None:
            await stream.send_all(
                b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
            )
            return
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)) as upstream:
                await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
                await _carry_both(stream, upstream)
            return
        parts = urlsplit(target)
        assert parts.hostname is not None
        async with await trio.open_tcp_stream(
            parts.hostname, parts.port or 80
        ) as upstream:
            origin_form = f"{method} {parts.path or '/'} HTTP/1.1\r\n".encode()
            await upstream.send_all(origin_form + rest)
            await _carry_both(stream, upstream)

    def _verdict(self, head: bytes) -> int | None:
        if self._login is None:
            return None
        wanted = b"Basic " + base64.b64encode(self._login.encode())
        return None if b"Proxy-Authorization: " + wanted in head else 407


async def _carry_both(one: trio.SocketStream, other: trio.SocketStream) -> None:
    async with trio.open_nursery() as nursery:

        async def carry(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            try:
                async for data in source:
                    await sink.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(carry, one, other)
        await carry(other, one)
