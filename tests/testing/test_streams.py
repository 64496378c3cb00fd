"""The in-memory transports behave as sockets do, and break on demand."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trioresume.server.http.transport import Transport
from trioresume.testing import MemoryTransport, memory_transport_pair


async def test_bytes_arrive_in_order_and_then_the_end() -> None:
    """What one end sends the other receives, up to the half-close."""
    a, b = memory_transport_pair()
    await a.send_all(b"hello ")
    assert a.send_nowait(b"world")
    await a.send_eof()
    assert await b.receive_all() == b"hello world"
    await b.send_all(b"still open this way")
    assert await a.receive_some() == b"still open this way"


async def test_full_pipe_blocks_the_sender_until_something_is_read() -> None:
    """Back-pressure: no more than the capacity is ever held."""
    a, b = memory_transport_pair(capacity=10)
    finished = trio.Event()

    async def send() -> None:
        await a.send_all(bytes(25))
        finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert b.unread == 10
        assert not finished.is_set()
        received = 0
        while received < 25:
            received += len(await b.receive_some())
            await trio.testing.wait_all_tasks_blocked()
            assert b.unread <= 10
    assert finished.is_set()


async def test_send_nowait_takes_all_or_nothing_and_goes_first() -> None:
    """What the pipe did not take at once goes out before the next send_all."""
    a, b = memory_transport_pair(capacity=4)
    assert a.send_nowait(b"123456")
    assert not a.send_nowait(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send_all, b"789")
        received = b""
        while len(received) < 9:
            received += await b.receive_some()
    assert received == b"123456789"


async def test_send_some_nowait_takes_what_there_is_room_for() -> None:
    """None means "not now": behind what still waits, or on a broken connection."""
    a, b = memory_transport_pair(capacity=4)
    assert a.send_some_nowait(b"123456") == 4
    assert a.send_some_nowait(b"56") == 0
    assert await b.receive_some() == b"1234"
    assert a.send_nowait(b"567890")
    assert a.send_some_nowait(b"x") is None
    a.reset()
    assert a.send_some_nowait(b"x") is None


async def test_receive_nowait_has_nothing_before_bytes_come() -> None:
    """None means "would block", 0 means the end."""
    a, b = memory_transport_pair()
    buffer = memoryview(bytearray(8))
    assert b.receive_nowait(buffer) is None
    await a.send_eof()
    assert b.receive_nowait(buffer) == 0


async def test_reset_breaks_both_ends_and_destroys_what_was_unread() -> None:
    """As a TCP reset does."""
    a, b = memory_transport_pair()
    await a.send_all(b"lost")
    b.reset()
    buffer = memoryview(bytearray(8))
    for end in (a, b):
        with pytest.raises(trio.BrokenResourceError):
            end.receive_nowait(buffer)
        with pytest.raises(trio.BrokenResourceError):
            await end.send_all(b"x")
        assert not end.send_nowait(b"x")


async def test_reset_wakes_a_blocked_sender_and_a_blocked_reader() -> None:
    """Nobody waits on a connection that is gone."""
    a, b = memory_transport_pair(capacity=1)

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await a.send_all(b"12")

    async def receive() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await a.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        b.reset()


async def test_close_with_unread_bytes_destroys_the_answer() -> None:
    """The trap of R10: an answer sent before the rest of the request was drained."""
    a, b = memory_transport_pair()
    await a.send_all(b"a request that is not read")
    await b.send_all(b"an answer")
    await b.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await a.receive_some()


async def test_close_after_everything_was_read_is_an_orderly_end() -> None:
    """The answer can still be read; sending more is an error."""
    a, b = memory_transport_pair()
    await b.send_all(b"an answer")
    await b.aclose()
    assert await a.receive_all() == b"an answer"
    with pytest.raises(trio.BrokenResourceError):
        await a.send_all(b"x")


async def test_never_readable_end_is_silent_until_told_otherwise(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The switch for a peer that is connected and does nothing."""
    a, b = memory_transport_pair()
    b.set_readable(False)
    await a.send_all(b"x")
    with trio.move_on_after(1000) as scope:
        await b.wait_readable()
    assert scope.cancelled_caught
    assert b.receive_nowait(memoryview(bytearray(1))) is None
    b.set_readable()
    assert await b.receive_some() == b"x"


async def test_short_writes_and_short_reads_lose_nothing() -> None:
    """Any split of the bytes is the same stream."""
    a, b = memory_transport_pair()
    a.max_send, b.max_receive = 3, 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send_all, b"abcdefghij")
        pieces = [await b.receive_some() for _ in range(5)]
    assert b"".join(pieces) == b"abcdefghij"
    assert {len(piece) for piece in pieces} == {2}


async def test_slow_reader_takes_time(autojump_clock: trio.testing.MockClock) -> None:
    """receive_delay passes on trio's clock."""
    a, b = memory_transport_pair()
    b.receive_delay = 2.0
    await a.send_all(b"x")
    before = trio.current_time()
    await b.receive_some()
    assert trio.current_time() - before >= 2.0


async def test_aclose_wakes_a_reader_of_the_same_end() -> None:
    """A task that waits on a closed transport is told so."""
    a, _b = memory_transport_pair()

    async def wait() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await a.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await a.aclose()
        await a.aclose()
    assert a.closed


def test_memory_transport_is_a_transport() -> None:
    """It satisfies the server's port (checked by mypy)."""

    def accept(transport: Transport) -> str:
        return transport.peer

    a, b = memory_transport_pair()
    assert isinstance(a, MemoryTransport)
    assert accept(a) != accept(b)
