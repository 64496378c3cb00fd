"""Handshakes on real sockets: whoever speaks no TLS, too little of it, or none in time."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trioresume
from tests.certificates import authority, client_context, server_context
from tests.server.harness import Client, Recorder
from trioresume import Certificate, Principal, Rejection, TLSSettings
from trioresume.server.http.front import Admission
from trioresume.server.http.tls.handshake import Arrival, Handshakes
from trioresume.server.http.transport import SocketTransport

Address = tuple[str, int]


@asynccontextmanager
async def tls_service(folder: Path, **settings: Any) -> AsyncIterator[Address]:
    """A service on a TLS port; where it is."""
    given = {"ssl": server_context(), "durability": "process", **settings}
    config = trioresume.Config(bind=["127.0.0.1:0"], data_dir=folder / "data", **given)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioresume.serve, Recorder(), config)
        host, _, port = server.urls[0].removeprefix("https://").rpartition(":")
        yield host, int(port)
        nursery.cancel_scope.cancel()


async def secured(
    address: Address, context: ssl.SSLContext
) -> trio.SSLStream[trio.SocketStream]:
    stream = await trio.open_tcp_stream(*address)
    return trio.SSLStream(
        stream, context, server_hostname="localhost", https_compatible=True
    )


async def answers(address: Address) -> None:
    """The service still serves those who speak TLS."""
    stream = await secured(address, client_context())
    reply = await Client(stream).request("GET", "/operations/none")
    assert reply.status == 404
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("method", ["GET", "PATCH", "OPTIONS"])
async def test_plain_request_is_told_to_use_https(method: str, tmp_path: Path) -> None:
    """A 400 in plain text with a code of its own, and then the end."""
    async with tls_service(tmp_path) as address:
        client = Client(await trio.open_tcp_stream(*address))
        reply = await client.request(method, "/")
        assert (reply.status, reply.code) == (400, "tls-needed")
        assert await client.rest() == b""
        await client.aclose()
        await answers(address)


async def test_garbage_is_closed_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the debug log tells of it."""
    with caplog.at_level(logging.DEBUG, "trioresume"):
        async with tls_service(tmp_path) as address:
            for garbage in (b"\x00" * 100, b"\x16\x03\x01" + b"\xff" * 300):
                stream = await trio.open_tcp_stream(*address)
                await stream.send_all(garbage)
                with trio.fail_after(10):
                    try:
                        while await stream.receive_some():
                            pass
                    except trio.BrokenResourceError:
                        pass  # the server closed with unread bytes
                await stream.aclose()
            await answers(address)
    assert "no handshake" in caplog.text
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01" + b"\xff" * 40])
@pytest.mark.parametrize("wait", [False, True])
async def test_client_that_resets_before_its_handshake_hurts_nobody(
    sent: bytes, wait: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Python refuses a socket that was reset with bytes left behind, with an error of its own."""
    with caplog.at_level(logging.DEBUG, "trioresume"):
        async with tls_service(tmp_path) as address:
            for _ in range(20):
                sock = socket.create_connection(address)
                sock.sendall(sent)
                if wait:
                    await trio.testing.wait_all_tasks_blocked()
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.close()
                await trio.lowlevel.checkpoint()
            await answers(address)
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


@pytest.mark.parametrize(
    "error", [ssl.SSLError(107, "Closed before"), OSError(107, "x"), ValueError("x")]
)
async def test_handshake_that_python_refuses_hurts_nobody(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever wrapping the socket or reading the certificate raises is this client's end."""
    context = RefusingOnce(ssl.PROTOCOL_TLS_SERVER)
    context.error = error
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    with caplog.at_level(logging.DEBUG, "trioresume"):
        async with tls_service(tmp_path, ssl=context) as address:
            stream = await secured(address, client_context())
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()
            await trio.aclose_forcefully(stream)
            await answers(address)
    assert "no handshake" in caplog.text
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


class RefusingOnce(ssl.SSLContext):
    """Its first socket is refused."""

    error: Exception | None = None

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().wrap_socket(*args, **kwargs)


async def test_bug_in_a_connection_ends_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback, and the connection is closed."""
    context = RefusingOnce(ssl.PROTOCOL_TLS_SERVER)
    context.error = LookupError("a bug")
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    async with tls_service(tmp_path, ssl=context) as address:
        stream = await secured(address, client_context())
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
        await answers(address)
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "failed" in record.getMessage()


async def test_no_common_version_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator can see why such clients cannot come."""
    server, client = server_context(), client_context()
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with caplog.at_level(logging.INFO, "trioresume"):
        async with tls_service(tmp_path, ssl=server) as address:
            stream = await secured(address, client)
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()
            await trio.aclose_forcefully(stream)
            await answers(address)
    assert "no version or cipher of TLS in common" in caplog.text


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_handshake_that_does_not_go_on_is_cut(
    sent: bytes, tmp_path: Path
) -> None:
    """After the time that a head may take."""
    async with tls_service(tmp_path, header_timeout=0.2) as address:
        stream = await trio.open_tcp_stream(*address)
        if sent:
            await stream.send_all(sent)
        with trio.fail_after(10):
            try:
                assert await stream.receive_some() == b""
            except trio.BrokenResourceError:
                pass
        await stream.aclose()
        await answers(address)


async def test_handshake_that_hangs_makes_room_for_the_next() -> None:
    """Clients that stop in the middle cannot keep others out."""
    handshakes = Handshakes(
        Admission(trioresume.Config()), timeout=60, most=1, patience=0.05
    )
    broken = trio.Event()

    async def hang(sock: trio.socket.SocketType) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await handshakes.secure(
                SocketTransport(sock), server_context(), Arrival("")
            )
        broken.set()

    async def succeed(sock: trio.socket.SocketType) -> None:
        transport = await handshakes.secure(
            SocketTransport(sock), server_context(), Arrival("")
        )
        await transport.aclose()

    silent, theirs = trio.socket.socketpair()
    ours, good = trio.socket.socketpair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await silent.send(b"\x16\x03\x01")
            nursery.start_soon(hang, theirs)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(succeed, ours)
            stream = trio.SSLStream(
                trio.SocketStream(good), client_context(), server_hostname="localhost"
            )
            await stream.do_handshake()
            await broken.wait()
    await trio.aclose_forcefully(stream)
    silent.close()


async def test_many_handshakes_of_one_address_let_another_go_first() -> None:
    """A free place goes to the address with the fewest handshakes, not to the first in line."""
    handshakes = Handshakes(
        Admission(trioresume.Config()), timeout=60, most=2, patience=60
    )
    ended: list[str] = []

    async def serve(name: str, sock: trio.socket.SocketType) -> None:
        try:
            transport = await handshakes.secure(
                SocketTransport(sock), server_context(), Arrival(name[0])
            )
        except trio.BrokenResourceError:
            ended.append(name)
        else:
            await transport.aclose()

    clients: dict[str, trio.socket.SocketType] = {}
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for name in ("a1", "a2", "a3", "a4", "b1", "b2"):
                clients[name], theirs = trio.socket.socketpair()
                await clients[name].send(b"\x16\x03\x01"[: 3 if name < "b" else 0])
                nursery.start_soon(serve, name, theirs)
                if name < "b":
                    await trio.testing.wait_all_tasks_blocked(0.01)
            goods = [
                trio.SSLStream(
                    trio.SocketStream(clients[name]),
                    client_context(),
                    server_hostname="localhost",
                )
                for name in ("b1", "b2")
            ]
            async with trio.open_nursery() as both:
                for good in goods:
                    both.start_soon(good.do_handshake)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not ended
                clients["a1"].close()
            # Both of the second address are done, one after the other; the rest still waits.
            assert ended == ["a1"]
            for name in ("a3", "a4", "a2"):
                # Those in line go on as the places get free, and leave it when they end.
                clients[name].close()
    assert sorted(ended) == ["a1", "a2", "a3", "a4"]
    assert not handshakes._running
    assert not handshakes._line
    assert not handshakes._numbers
    for good in goods:
        await trio.aclose_forcefully(good)


async def test_place_in_line_is_given_up_when_the_client_s_time_is_over() -> None:
    """A cancelled wait leaves nothing behind, and the others get their places."""
    handshakes = Handshakes(
        Admission(trioresume.Config()), timeout=60, most=1, patience=60
    )
    taken = trio.CancelScope()
    order: list[str] = []

    async def hold(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with handshakes._place(name[0]):
                order.append(name)
                await trio.sleep_forever()

    scopes = {name: trio.CancelScope() for name in ("a2", "a3", "b1", "c1")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, "a1", taken)
        for name, scope in scopes.items():
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(hold, name, scope)
        await trio.testing.wait_all_tasks_blocked()
        # The place and its next owner end in the same moment: the place goes on.
        taken.cancel()
        scopes["a2"].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert order in (["a1", "a3"], ["a1", "b1"])
        for _ in range(2):
            held = order[-1]
            scopes[held].cancel()
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sorted(order) == ["a1", "a3", "b1", "c1"]
    assert not handshakes._running
    assert not handshakes._line
    assert not handshakes._numbers


@pytest.mark.parametrize("name", ["san", "fingerprint"])
async def test_certificate_of_the_client_is_the_principal(
    name: Any, tmp_path: Path
) -> None:
    """By its name or its fingerprint; without a certificate the request is refused."""
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(ca)
    server = tmp_path / "server.pem"
    authority().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        server
    )
    found: list[Principal | Rejection] = []
    by_certificate = trioresume.client_certificates(name)

    async def authenticate(head: trioresume.RequestHead) -> Principal | Rejection:
        found.append(await by_certificate(head))
        return found[-1]

    settings = TLSSettings(
        certificates=[Certificate(server)], ca_certs=ca, client_auth="optional"
    )
    async with tls_service(
        tmp_path, ssl=settings, authenticate=authenticate
    ) as address:
        for context, status in (
            (client_context(authority().issue_cert("alice@example.org")), 200),
            (client_context(), 403),
        ):
            stream = await secured(address, context)
            reply = await Client(stream).request("POST", "/", body=b"x")
            assert reply.status == status
            await trio.aclose_forcefully(stream)
    first = found[0]
    assert isinstance(first, Principal)
    begins = "email:alice@example.org" if name == "san" else "sha256:"
    assert first.name.startswith(begins)
    assert isinstance(found[-1], Rejection)
