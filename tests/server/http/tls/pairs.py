"""The two ends of a connection with TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.certificates import client_context, server_context
from trioresume.server.http.tls.transport import TLSTransport

__all__ = ["tls_pair", "wrapped"]


def wrapped(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    host: str = "localhost",
) -> TLSTransport:
    """A transport over *sock* that has not shaken hands yet."""
    sock.setblocking(False)
    secured = context.wrap_socket(
        sock,
        server_side=server_side,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
        server_hostname=None if server_side else host,
    )
    return TLSTransport(secured, "test")


@asynccontextmanager
async def tls_pair(
    server: ssl.SSLContext | None = None,
    client: ssl.SSLContext | None = None,
    *,
    host: str = "localhost",
) -> AsyncIterator[tuple[TLSTransport, TLSTransport]]:
    """A server's end and a client's, after the handshake."""
    one, other = socket.socketpair()
    ours = wrapped(one, server or server_context(), server_side=True)
    theirs = wrapped(other, client or client_context(), server_side=False, host=host)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.handshake)
            nursery.start_soon(theirs.handshake)
        yield ours, theirs
    finally:
        await ours.aclose()
        await theirs.aclose()
