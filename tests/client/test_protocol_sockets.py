"""The client in each protocol, over real sockets that are cut, against the real server."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.client.test_sockets import MIB, PATIENT, file_of, serving
from trioresume.client import Client, Journal, Progress, ProtocolName
from trioresume.client.client import Client as ClientImplementation
from trioresume.protocol.dialects.client import ClientDialect
from trioresume.protocol.dialects.rufh.client import RufhClient
from trioresume.protocol.dialects.rufh.versions import VERSIONS
from trioresume.testing import (
    ChaosProxy,
    ConnectionPlan,
    Direction,
    Fault,
    FaultKind,
    random_faults,
    scripted_faults,
)

OTHERS: list[ProtocolName] = ["rufh", "tus"]


async def blocks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 50_000):
        await trio.lowlevel.checkpoint()
        yield data[start : start + 50_000]


@pytest.mark.parametrize("protocol", OTHERS)
async def test_content_goes_through_a_link_that_is_cut_at_random(
    tmp_path: Path, protocol: ProtocolName
) -> None:
    """FIN and RST, in head, body and response: every upload is processed once.

    Files and streams; the streams are larger than their buffer.
    """
    path, data = file_of(tmp_path, 2 * MIB)

    async def once(number: int, url: str) -> None:
        async with Client(
            protocol=protocol,
            retry=PATIENT,
            random=random.Random(number),
            buffer_size=MIB,
        ) as c:
            body = path if number % 2 else blocks(data)
            response = await c.request("POST", url, body=body)
        assert response.status == 201
        assert response.protocol == protocol
        assert response.headers.get("x-length") == str(len(data))
        assert response.body == data[::-1][:5000]

    async with serving() as service:
        faults = random_faults(11, mean_bytes=MIB // 4, limit=50)
        async with ChaosProxy(service.address, faults) as proxy:
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(once, number, proxy.url)
            assert proxy.totals.cuts > 10
    assert service.contents == [data] * 4


@pytest.mark.parametrize("number", VERSIONS)
async def test_every_version_of_rufh_goes_on_after_a_cut(
    tmp_path: Path, number: int
) -> None:
    """C6, C8, C11: by its own table, with a server that keeps to it."""
    path, data = file_of(tmp_path, 3 * MIB)
    cuts = scripted_faults([Fault(FaultKind.RST, Direction.UP, MIB)])
    async with serving() as service:
        async with ChaosProxy(service.address, cuts) as proxy:
            async with ClientImplementation(protocol="rufh", retry=PATIENT) as c:
                # As if it had been found out in this place.
                c._spoken = Versioned(RufhClient(VERSIONS[number]))  # type: ignore[assignment]
                response = await c.request("POST", proxy.url, body=path)
            assert proxy.totals.cuts == 1
    assert (response.status, response.attempts) == (201, 2)
    assert response.body == data[::-1][:5000]
    assert service.contents == [data]


class Versioned(dict[object, ClientDialect]):
    """Knows one dialect for every place."""

    def __init__(self, dialect: ClientDialect) -> None:
        self._dialect = dialect

    def get(self, key: object, default: object = None) -> ClientDialect:
        del key, default
        return self._dialect


@pytest.mark.parametrize("protocol", OTHERS)
async def test_stalled_connection_is_taken_over(
    tmp_path: Path, protocol: ProtocolName
) -> None:
    """R21: the old connection stays open and silent; nobody is told to wait for it."""
    path, data = file_of(tmp_path, MIB)
    stall = scripted_faults([Fault(FaultKind.STALL, Direction.UP, 300_000)])
    async with serving() as service, ChaosProxy(service.address, stall) as proxy:
        async with Client(protocol=protocol, retry=PATIENT, idle_timeout=0.3) as c:
            response = await c.request("POST", proxy.url, body=path)
        assert response.attempts == 2
        assert proxy.totals.stalls == 1
    assert service.contents == [data]


@pytest.mark.parametrize("protocol", OTHERS)
async def test_cancelled_upload_goes_on_in_the_next_run(
    tmp_path: Path, protocol: ProtocolName
) -> None:
    """In the same protocol, though the next run does not name it."""
    path, data = file_of(tmp_path, 4 * MIB)
    journal = Journal(tmp_path / "journal")
    async with serving() as service, ChaosProxy(service.address) as proxy:
        with trio.CancelScope() as scope:
            async with Client(
                protocol=protocol, journal=journal, limit_rate=8 * MIB
            ) as c:

                def stop(progress: Progress) -> None:
                    if progress.sent > 2 * MIB:
                        scope.cancel()

                await c.request("POST", proxy.url, body=path, on_progress=stop)
        assert scope.cancelled_caught
        assert service.contents == []
        async with Client(journal=journal) as c:
            response = await c.request("POST", proxy.url, body=path)
        assert (response.status, response.protocol) == (201, protocol)
        assert proxy.totals.bytes_up < 5.5 * MIB
    assert service.contents == [data]
    assert list((tmp_path / "journal").iterdir()) == []


@asynccontextmanager
async def without_interims(
    address: tuple[str, int],
) -> AsyncIterator[tuple[str, int]]:
    """The address of a relay that lets no interim response through."""

    async def up(client: trio.SocketStream, server: trio.SocketStream) -> None:
        async for data in client:
            await server.send_all(data)
        await server.send_eof()

    async def down(client: trio.SocketStream, server: trio.SocketStream) -> None:
        async for data in server:
            # The server sends each of them by itself, or in front of what follows.
            await client.send_all(
                re.sub(rb"HTTP/1.1 1.*?\r\n\r\n", b"", bytes(data), flags=re.DOTALL)
            )
        await client.send_eof()

    async def relay(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(*address)
        async with client, server:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(up, client, server)
                    await down(client, server)
                    nursery.cancel_scope.cancel()
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # one side is gone, and so is the other now

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, relay, 0)
        yield "127.0.0.1", listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("method", "protocol"), [("POST", "tus"), ("PUT", "rufh")])
async def test_offer_that_gets_lost_is_made_up_for(
    tmp_path: Path, method: str, protocol: str
) -> None:
    """R5: behind a proxy that passes on no interim responses, the server shows the rest.

    In tus, or for PUT in RUFH with an empty request first, nothing depends on them.
    """
    path, data = file_of(tmp_path, 3 * MIB)
    cuts = ConnectionPlan((Fault(FaultKind.RST, Direction.UP, MIB),))
    async with (
        serving() as service,
        without_interims(service.address) as address,
        ChaosProxy(address, lambda _: cuts) as proxy,
        Client(retry=PATIENT, expect_timeout=0.1) as c,
    ):
        response = await c.request(method, proxy.url, body=path)
        assert proxy.totals.cuts >= 2
    assert (response.status, response.protocol) == (201, protocol)
    assert service.contents == [data]
