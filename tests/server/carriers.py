"""The carriers over which the workflows of every dialect are tested.

A ``conftest.py`` with :func:`carrier` and :func:`over_each_carrier` runs each test of its folder
over each of them.
A test that is about the bytes of HTTP/1.1, or that reaches into the connection's memory, is
marked ``h1_only``.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import pytest
import trio

from tests.certificates import client_context, server_context
from tests.server.harness import CARRIER, Carrier, Client, MemoryService
from tests.server.http2_client import Http2Stream
from trioresume import Config
from trioresume.server.http.tls.contexts import ServerContexts
from trioresume.server.http.transport import SocketTransport

__all__ = [
    "CARRIERS",
    "H2CCarrier",
    "H2Carrier",
    "TLSCarrier",
    "carrier",
    "over_each_carrier",
]


class TLSCarrier(Carrier):
    """HTTP/1.1 over TLS, on a pair of sockets."""

    name = "h1+tls"
    scheme = "https"

    protocol = "http/1.1"

    @cached_property
    def _context(self) -> ssl.SSLContext:
        # Once for all tests: to load certificates takes longer than most of the tests.
        context = server_context()
        context.set_alpn_protocols([self.protocol])
        return context

    @cached_property
    def _client_context(self) -> ssl.SSLContext:
        context = client_context()
        context.set_alpn_protocols([self.protocol])
        return context

    def contexts(self) -> ServerContexts:
        return ServerContexts(self._context, (self.protocol,))

    def connect(self, service: MemoryService) -> Client:
        return Client(self.secured(service))

    def secured(self, service: MemoryService) -> trio.SSLStream[trio.SocketStream]:
        """A new connection to *service*; its handshake comes with the first bytes."""
        ours, theirs = socket.socketpair()
        service.connections.start_soon(
            service.doorman.serve_secured,
            SocketTransport(trio.socket.from_stdlib_socket(ours)),
        )
        sock = trio.socket.from_stdlib_socket(theirs)
        service.sockets.append(sock)
        return trio.SSLStream(
            trio.SocketStream(sock),
            self._client_context,
            server_hostname="localhost",
            https_compatible=True,
        )


class H2CCarrier(Carrier):
    """HTTP/2 without TLS, by prior knowledge."""

    name = "h2c"

    def config(self, config: Config) -> Config:
        return replace(config, h2c=True)

    def connect(self, service: MemoryService) -> Client:
        return Client(Http2Stream(service.transports()[1]))


class H2Carrier(TLSCarrier):
    """HTTP/2 over TLS, chosen by ALPN."""

    name = "h2"
    protocol = "h2"

    def connect(self, service: MemoryService) -> Client:
        return Client(Http2Stream(self.secured(service), self.scheme))


CARRIERS: tuple[Carrier, ...] = (Carrier(), TLSCarrier(), H2CCarrier(), H2Carrier())


def over_each_carrier(metafunc: pytest.Metafunc) -> None:
    """Run a test over each carrier; to be called as ``pytest_generate_tests``."""
    if metafunc.definition.get_closest_marker("h1_only") is None:
        names = [carrier.name for carrier in CARRIERS]
        metafunc.parametrize("carrier", CARRIERS, ids=names, indirect=True)


@pytest.fixture(autouse=True)
def carrier(request: pytest.FixtureRequest) -> Iterator[Carrier]:
    """The carrier of the memory services of this test."""
    chosen: Carrier = getattr(request, "param", CARRIERS[0])
    token = CARRIER.set(chosen)
    yield chosen
    CARRIER.reset(token)
