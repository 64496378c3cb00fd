"""Servers that speak TLS, for the tests of the client."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
import trustme

from tests.certificates import authority
from trioresume.client.http.tls_stream import TlsStream

__all__ = ["CA", "Script", "ServerTls", "context_for", "pem_of", "relaying", "speaking"]

CA = authority()
"""The authority of the tests. No system trusts it."""


class ServerTls(TlsStream):
    """The server's end of a TLS connection. It sends alerts, which trio's does not."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        plain = socket.socket(fileno=stream.socket.detach())
        plain.setblocking(False)
        self.socket = context.wrap_socket(
            plain,
            server_side=True,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )

    def cut(self) -> None:
        """End the connection without the close of TLS."""
        trio.lowlevel.notify_closing(self.socket)
        self.socket.close()


Script = Callable[[ServerTls], Awaitable[object]]


def context_for(*names: str, issuer: trustme.CA = CA) -> ssl.SSLContext:
    """A server's context, with a certificate for *names*."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issuer.issue_cert(*(names or ("127.0.0.1",))).configure_cert(context)
    return context


def pem_of(directory: Path, authority: trustme.CA = CA) -> Path:
    """A file with the certificate of *authority*."""
    path = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@asynccontextmanager
async def speaking(
    script: Script, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, int]]:
    """A TLS server that runs *script* for each connection, and its address."""

    async def handle(stream: trio.SocketStream) -> None:
        secured = ServerTls(stream, context or context_for())
        async with secured:
            try:
                await secured.do_handshake()
                await script(secured)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client went away

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
        )
        yield listeners[0].socket.getsockname()[:2]
        nursery.cancel_scope.cancel()


async def _relay(secured: ServerTls, upstream: tuple[str, int]) -> None:
    """Carry bytes between *secured* and *upstream*, until one of them ends."""
    async with await trio.open_tcp_stream(*upstream) as plain:
        async with trio.open_nursery() as nursery:

            async def carry(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
                try:
                    async for data in source:
                        await sink.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    secured.cut()
                nursery.cancel_scope.cancel()

            nursery.start_soon(carry, secured, plain)
            await carry(plain, secured)


@asynccontextmanager
async def relaying(
    upstream: tuple[str, int], context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, int]]:
    """The plain server at *upstream* behind TLS, and the address of that."""
    async with speaking(lambda secured: _relay(secured, upstream), context) as address:
        yield address
