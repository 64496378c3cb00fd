"""A connection of HTTP/2 to a service in memory: requests, answers, cuts, takeovers, bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.server.harness import MemoryService, Recorder, memory_service
from tests.server.http2_client import Peer
from trioresume import Config

PREFER = {"prefer": "resume"}


@asynccontextmanager
async def peer_of(service: MemoryService) -> AsyncIterator[Peer]:
    """A peer with a new connection, started."""
    peer = Peer(service.transports()[1])
    await peer.start()
    try:
        yield peer
    finally:
        await peer.wire.aclose()


async def test_upload_is_answered(autojump_clock: trio.testing.MockClock) -> None:
    """A request with content gets the target's response."""
    handler = Recorder()
    async with (
        memory_service(handler, Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        stream = await peer.begin(length=200_000)
        await peer.content(stream, b"x" * 200_000, ends=True)
        answer = await peer.answer(stream)
    assert answer.status == 200
    assert bytes(answer.body) == b"got 200000 bytes"
    assert handler.bodies == [b"x" * 200_000]
