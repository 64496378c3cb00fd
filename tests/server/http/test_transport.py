"""What the receive path needs of a connection, of a socket and of its stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
import trio.testing

from tests.server.http.tls.pairs import tls_pair
from trioresume.server.http.transport import SocketTransport, Transport
from trioresume.testing import memory_transport_pair

Pair = Callable[[], AbstractAsyncContextManager[tuple[Transport, Transport]]]


@asynccontextmanager
async def _sockets() -> AsyncIterator[tuple[Transport, Transport]]:
    ours, theirs = (SocketTransport(end) for end in trio.socket.socketpair())
    yield ours, theirs
    await ours.aclose()
    await theirs.aclose()


@asynccontextmanager
async def _memory() -> AsyncIterator[tuple[Transport, Transport]]:
    yield memory_transport_pair()


@pytest.mark.parametrize("pair", [_sockets, _memory, tls_pair])
async def test_who_waits_is_interrupted_and_the_connection_lives_on(pair: Pair) -> None:
    """An error for the wait that runs; none for later ones, and nothing else is hurt."""
    async with pair() as (ours, theirs):
        ours.interrupt()  # nobody waits
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_is_broken, ours)
            await trio.testing.wait_all_tasks_blocked()
            ours.interrupt()
        await ours.send_all(b"too late")
        await theirs.wait_readable()
        buffer = bytearray(16)
        assert theirs.receive_nowait(memoryview(buffer)) == len(b"too late")
        await theirs.send_all(b"sorry")
        with trio.fail_after(5):
            await ours.wait_readable()
        assert ours.receive_nowait(memoryview(buffer)) == len(b"sorry")


async def _is_broken(transport: Transport) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await transport.wait_readable()


@pytest.mark.parametrize("pair", [_sockets, _memory])
async def test_one_side_may_end_and_the_other_go_on(pair: Pair) -> None:
    """So a peer reads its answer to the end before it is cut off from sending."""
    async with pair() as (ours, theirs):
        await ours.send_all(b"last words")
        await ours.send_eof()
        buffer = bytearray(16)
        with trio.fail_after(5):
            await theirs.wait_readable()
            assert theirs.receive_nowait(memoryview(buffer)) == len(b"last words")
            await theirs.wait_readable()
            assert theirs.receive_nowait(memoryview(buffer)) == 0
            await theirs.send_all(b"heard")
            await ours.wait_readable()
        assert ours.receive_nowait(memoryview(buffer)) == len(b"heard")
