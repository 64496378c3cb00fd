"""How many connections are let in, and what becomes of the others (G5)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.server.harness import Client, Recorder, SocketService, head, socket_service
from trioresume import Config, PeerError
from trioresume.errors import CallerError
from trioresume.server.http.front import Admission, address_of, affordable


class Guest:
    def __init__(self, address: str = "") -> None:
        self.address = address
        self.dismissed = False

    def dismiss(self) -> None:
        self.dismissed = True


def _admission(most: int = 3, per_address: int | None = None) -> Admission:
    config = Config(max_connections=most, max_connections_per_address=per_address)
    return Admission(config)


def test_longest_idle_connection_makes_room() -> None:
    """G5: at the limit a newcomer takes the place of whoever waited longest."""
    admission = _admission()
    first, second, third = guests = [Guest() for _ in range(3)]
    for guest in guests:
        admission.enter(guest)
    admission.note_idle(second)
    admission.note_idle(first)
    admission.enter(Guest())
    assert [guest.dismissed for guest in guests] == [False, True, False]
    admission.note_busy(first)
    with pytest.raises(PeerError) as caught:
        admission.enter(Guest())
    assert caught.value.problem.status == 503
    assert admission.connections == 3
    admission.leave(second)  # its task comes to its end, counted long ago
    assert admission.connections == 3
    admission.leave(third)
    admission.enter(Guest())


def test_address_at_its_limit_pushes_out_nobody_else() -> None:
    """G5: 429, or an idle connection of its own is closed."""
    admission = _admission(per_address=2)
    other = Guest("b")
    admission.enter(other)
    admission.note_idle(other)
    first, second = Guest("a"), Guest("a")
    admission.enter(first)
    admission.enter(second)
    with pytest.raises(PeerError) as caught:
        admission.enter(Guest("a"))
    assert caught.value.problem.status == 429
    admission.note_idle(first)
    third = Guest("a")
    admission.enter(third)
    assert (first.dismissed, other.dismissed) == (True, False)
    for guest in (second, third, other):
        admission.leave(guest)
    assert admission.connections == 0
    assert admission._addresses == {}
    assert admission._idle == {}


def test_unknown_addresses_are_not_counted_together() -> None:
    """A Unix socket has none: only the limit in all holds."""
    admission = _admission(per_address=1)
    for _ in range(3):
        admission.enter(Guest(""))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.1:80", "192.0.2.1"),
        ("::ffff:192.0.2.1:80", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6:80", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1:80", "2001:db8:1:2::"),
        ("fe80::1%eth0:80", "fe80::"),
        ("/run/socket", ""),
        ("", ""),
    ],
)
def test_ipv6_counts_by_network(peer: str, address: str) -> None:
    """One customer has all of a /64, and IPv4 may come as IPv6."""
    assert address_of(peer) == address


@asynccontextmanager
async def _from(address: str, service: SocketService) -> AsyncIterator[Client]:
    """A connection whose own end is *address*, one of the loopback's."""
    sock = trio.socket.socket()
    try:
        await sock.bind((address, 0))
        await sock.connect(service.address)
        yield Client(trio.SocketStream(sock))
    finally:
        sock.close()


POST = head("POST", "/", length=3)


async def test_limit_of_all_connections_on_sockets(tmp_path: Path) -> None:
    """G5: whoever is over it is told so, and the next one after somebody left is in."""
    async with (
        socket_service(Recorder(), tmp_path, max_connections=3) as service,
        AsyncExitStack() as stack,
    ):
        busy = [await stack.enter_async_context(service.connect()) for _ in range(3)]
        for client in busy:
            await client.send(POST)
        await trio.sleep(0.1)
        async with service.connect() as late:
            reply = await late.reply()
            assert (reply.status, reply.code) == (503, "service-unavailable")
            assert (reply["retry-after"], reply["connection"]) == ("5", "close")
            assert await late.rest() == b""
        await busy[0].send(b"abc")
        assert (await busy[0].reply()).status == 200
        # It is idle now, and so makes room.
        async with service.connect() as late:
            assert (await late.request("GET", "/")).status == 200
            assert await busy[0].rest() == b""
        for client in busy[1:]:
            await client.send(b"abc")
            assert (await client.reply()).status == 200


async def test_flood_of_one_address_leaves_the_others_alone(tmp_path: Path) -> None:
    """G5: hundreds of connections with half a head each, and somebody else is served."""
    settings = {"max_connections": 100, "max_connections_per_address": 20}
    async with (
        socket_service(Recorder(), tmp_path, **settings) as service,
        AsyncExitStack() as stack,
    ):
        refused = 0
        enough = trio.Event()

        async def attack() -> None:
            nonlocal refused
            client = await stack.enter_async_context(_from("127.0.0.2", service))
            try:
                await client.send(b"GET / HTTP/1.1\r\n")
                data = await client.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""  # one of those that are closed without a word
            assert data == b"" or data.startswith(b"HTTP/1.1 429 ")
            refused += 1
            if refused == 280:
                enough.set()

        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(attack)
            with trio.fail_after(10):
                await enough.wait()
            async with _from("127.0.0.3", service) as good:
                assert (await good.request("GET", "/")).status == 200
            assert refused == 280
            nursery.cancel_scope.cancel()


async def test_idle_connections_cannot_be_hoarded(tmp_path: Path) -> None:
    """G5: an attacker with nothing but open connections keeps nobody out."""
    async with (
        socket_service(Recorder(), tmp_path, max_connections=10) as service,
        AsyncExitStack() as stack,
    ):
        for _ in range(50):
            await stack.enter_async_context(service.connect())
        for _ in range(20):
            async with service.connect() as good:
                assert (await good.request("GET", "/")).status == 200


@pytest.mark.parametrize(("limit", "most"), [(64, None), (159, None), (160, 16)])
def test_too_few_open_files_are_said_at_the_start(
    limit: int, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service with room for one connection would answer the others with 503."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    if most is None:
        with pytest.raises(CallerError, match=f"is {limit}: at least 160 are needed"):
            affordable(10_000)
    else:
        assert affordable(10_000) == most
