"""Content over ASGI is gathered while its blocks come quickly, and never for long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from trioresume import Config
from trioresume.errors import PeerError, ProblemCode
from trioresume.server.async_store.receive_memory import Piece, ReceiveMemory
from trioresume.server.http.asgi.body import QUICK, AsgiBody
from trioresume.server.http.exchange import ContentCut
from trioresume.server.http.front import Front

Clock = trio.testing.MockClock
MIB = 1 << 20
BLOCK = bytes(range(256)) * 256


class Blocks:
    """A channel: blocks of content, pauses in seconds, and the end of the connection."""

    def __init__(self, *steps: bytes | float | None) -> None:
        self._steps = list(steps)

    async def receive(self) -> tuple[bytes, bool]:
        step = self._steps.pop(0)
        if isinstance(step, float):
            await trio.sleep(step)
            step = self._steps.pop(0)
        await trio.lowlevel.checkpoint()
        if not isinstance(step, bytes):
            raise trio.BrokenResourceError
        return step, bool(self._steps)

    async def send(self, messages: object) -> None:
        raise AssertionError("nothing is sent")


class Notes:
    """A sink that notes what it is given at once, up to *most* bytes."""

    plain: int | None = None
    work = 0
    has_room = True

    def __init__(self, most: int = 100 * MIB) -> None:
        self.parts: list[bytes] = []
        self._most = most

    @property
    def taken(self) -> int:
        return sum(map(len, self.parts))

    offset = taken

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        if self.taken + len(data) > self._most:
            raise PeerError(ProblemCode.CONTENT_TOO_LARGE)
        self.parts.append(bytes(data))

    async def room(self) -> None:
        await trio.lowlevel.checkpoint()

    def relax(self) -> None:
        return


def body_of(*steps: bytes | float | None, memory: ReceiveMemory) -> AsgiBody:
    front = SimpleNamespace(memory=memory, config=Config(body_timeout=60))
    return AsgiBody(Blocks(*steps), cast("Front", front))


@pytest.fixture
def memory() -> ReceiveMemory:
    return ReceiveMemory(4 * MIB)


async def test_quick_blocks_are_handed_on_together(
    memory: ReceiveMemory, mock_clock: Clock
) -> None:
    """A whole piece at a time, and the rest at the end; then all pieces are free."""
    body, sink = body_of(*[BLOCK] * 40, memory=memory), Notes()
    await body.receive(sink)
    assert [len(part) for part in sink.parts] == [2 * MIB, MIB // 2]
    assert b"".join(sink.parts) == BLOCK * 40
    assert [memory.take_nowait() is None for _ in range(3)] == [False, False, True]


async def test_single_block_is_handed_on_as_it_is(memory: ReceiveMemory) -> None:
    body, sink = body_of(BLOCK, memory=memory), Notes()
    await body.receive(sink)
    assert sink.parts == [BLOCK]


async def test_slow_blocks_are_not_gathered(
    memory: ReceiveMemory, autojump_clock: Clock
) -> None:
    """They take no memory while nothing comes, and wait for nothing."""
    body = body_of(0.1, BLOCK, 0.1, BLOCK, 0.1, b"end", memory=memory)
    sink = Notes()
    await body.receive(sink)
    assert sink.parts == [BLOCK, BLOCK, b"end"]


async def test_gathered_blocks_are_handed_on_when_nothing_comes(
    memory: ReceiveMemory, autojump_clock: Clock
) -> None:
    """Else a newcomer could not see them, and a silent client would hold a piece."""
    body, sink = body_of(BLOCK, BLOCK, 50.0, b"end", memory=memory), Notes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.watch.run)
        nursery.start_soon(body.receive, sink)
        await trio.sleep(2)
        assert sink.parts == [BLOCK * 2]
        assert [memory.take_nowait() is None for _ in range(2)] == [False, False]
        await trio.sleep(50)
        assert sink.parts == [BLOCK * 2, b"end"]
        nursery.cancel_scope.cancel()


async def test_nothing_is_handed_on_while_blocks_come_quickly(
    memory: ReceiveMemory, mock_clock: Clock
) -> None:
    body, sink = body_of(BLOCK, BLOCK, 50.0, b"end", memory=memory), Notes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.receive, sink)
        await trio.testing.wait_all_tasks_blocked()
        body.look(trio.current_time() + QUICK / 2)
        assert sink.parts == []
        body.look(trio.current_time() + QUICK)
        assert sink.parts == [BLOCK * 2]
        nursery.cancel_scope.cancel()


async def test_sink_that_refuses_gathered_blocks_ends_the_wait(
    memory: ReceiveMemory, autojump_clock: Clock
) -> None:
    """The reason reaches the caller, although it was found beside its task."""
    body, sink = body_of(BLOCK, BLOCK, 500.0, b"end", memory=memory), Notes(len(BLOCK))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.watch.run)
        with trio.fail_after(5), pytest.raises(PeerError):
            await body.receive(sink)
        nursery.cancel_scope.cancel()
    assert [memory.take_nowait() is None for _ in range(2)] == [False, False]


async def test_gathered_blocks_survive_a_cut(
    memory: ReceiveMemory, mock_clock: Clock
) -> None:
    body, sink = body_of(BLOCK, BLOCK, None, memory=memory), Notes()
    with pytest.raises(ContentCut):
        await body.receive(sink)
    assert sink.parts == [BLOCK * 2]


async def test_gathered_blocks_survive_a_cancellation(
    memory: ReceiveMemory, autojump_clock: Clock
) -> None:
    """A newcomer ends this writer, and begins after them."""
    body, sink = body_of(BLOCK, BLOCK, 50.0, 50.0, b"end", memory=memory), Notes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.receive, sink)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sink.parts == [BLOCK * 2]


async def test_blocks_go_on_alone_while_no_piece_is_free(mock_clock: Clock) -> None:
    memory = ReceiveMemory(1)
    memory.take_nowait()
    body, sink = body_of(BLOCK, BLOCK, BLOCK, memory=memory), Notes()
    await body.receive(sink)
    assert sink.parts == [BLOCK] * 3
