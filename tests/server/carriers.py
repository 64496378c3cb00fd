"""The carriers over which the workflows of every dialect are tested.

A ``conftest.py`` with :func:`carrier` and :func:`over_each_carrier` runs each test of its folder
over each of them.
A test that is about the bytes of HTTP/1.1, or that reaches into the connection's memory, is
marked ``h1_only``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

from tests.certificates import client_context, server_context
from tests.server.harness import CARRIER, Carrier, Client, MemoryService
from trioresume.server.http.tls.contexts import ServerContexts
from trioresume.server.http.transport import SocketTransport

__all__ = ["CARRIERS", "TLSCarrier", "carrier", "over_each_carrier"]


class TLSCarrier(Carrier):
    """HTTP/1.1 over TLS, on a pair of sockets."""

    name = "h1+tls"
    scheme = "https"

    def contexts(self) -> ServerContexts:
        return ServerContexts(server_context(), ("http/1.1",))

    def connect(self, service: MemoryService) -> Client:
        ours, theirs = socket.socketpair()
        service.connections.start_soon(
            service.doorman.serve_secured,
            SocketTransport(trio.socket.from_stdlib_socket(ours)),
        )
        sock = trio.socket.from_stdlib_socket(theirs)
        service.sockets.append(sock)
        stream = trio.SSLStream(
            trio.SocketStream(sock),
            client_context(),
            server_hostname="localhost",
            https_compatible=True,
        )
        return Client(stream)


CARRIERS: tuple[Carrier, ...] = (Carrier(), TLSCarrier())


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
