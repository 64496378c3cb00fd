"""What carries the requests of :mod:`tests.e2e.wire`: HTTP/1.1 or HTTP/2, with or without TLS."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from ssl import SSLContext

import trio

from tests.certificates import client_context, write_server_files
from tests.server.http2_client import Http2Stream

__all__ = ["CARRIERS", "HTTP1", "HTTP1_TLS", "HTTP2", "HTTP2_CLEAR", "Carrier"]

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream] | Http2Stream


@dataclass(frozen=True)
class Carrier:
    """How a client speaks to the service."""

    name: str
    is_secure: bool
    is_http2: bool

    def __str__(self) -> str:
        return self.name

    def options(self, folder: Path) -> list[str]:
        """The options with which the service speaks it. *folder* gets its certificate."""
        if self.is_secure:
            certificate, key = write_server_files(folder)
            return ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
        return ["--h2c"] if self.is_http2 else []

    async def over(self, plain: trio.SocketStream) -> Stream:
        """HTTP/1.1 for the caller, and this carrier on *plain*.

        Raises :class:`trio.BrokenResourceError` if the handshake fails.
        """
        secured: trio.SocketStream | trio.SSLStream[trio.SocketStream] = plain
        if self.is_secure:
            secured = trio.SSLStream(
                plain,
                _context("h2" if self.is_http2 else "http/1.1"),
                server_hostname="localhost",
                https_compatible=True,
            )
            await secured.do_handshake()
        if not self.is_http2:
            return secured
        return Http2Stream(secured, "https" if self.is_secure else "http")


@cache
def _context(protocol: str) -> SSLContext:
    context = client_context()
    context.set_alpn_protocols([protocol])
    return context


HTTP1 = Carrier("h1", False, False)
HTTP1_TLS = Carrier("h1+tls", True, False)
HTTP2_CLEAR = Carrier("h2c", False, True)
HTTP2 = Carrier("h2", True, True)
CARRIERS = (HTTP1, HTTP1_TLS, HTTP2_CLEAR, HTTP2)
