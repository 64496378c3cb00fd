"""How much a connection has to have before its task is woken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trioresume.protocol.heads import Fields, RequestHead
from trioresume.server.api.config import Config
from trioresume.server.async_store.receive_memory import Piece, ReceiveMemory
from trioresume.server.http.http1.body import Http1Body
from trioresume.server.http.transport import Transport
from trioresume.testing import MemoryTransport, memory_transport_pair

MIB = 1024 * 1024
KIB = 1024


class Marked:
    """A transport that notes the low-water marks it is given."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self.marks: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def set_low_water(self, size: int) -> None:
        self.marks.append(size)


class Counting:
    """A sink that counts."""

    has_room = True
    plain: int | None = None
    work = 0

    def __init__(self) -> None:
        self.offset = 0
        self.relaxed: list[int] = []

    @property
    def taken(self) -> int:
        return self.offset

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        self.offset += len(data)

    async def room(self) -> None:
        raise AssertionError("there is room")

    def relax(self) -> None:
        self.relaxed.append(self.offset)


def _receiver(size: int | None) -> tuple[Marked, Http1Body, MemoryTransport]:
    """What receives content of *size* bytes, and where to send it."""
    ours, theirs = memory_transport_pair(capacity=4 * MIB)
    marked = Marked(ours)
    head = RequestHead(
        method="POST", target="/", fields=Fields(), http_version="1.1", length=size
    )
    transport: Transport = marked  # type: ignore[assignment]  # the rest is delegated
    memory = ReceiveMemory(32 * MIB)
    return marked, Http1Body(head, transport, bytearray(), memory, Config()), theirs


async def _receive(
    body: Http1Body,
    theirs: MemoryTransport,
    send: Callable[[MemoryTransport], Awaitable[None]],
) -> int:
    """How much came of what *send* sends."""
    return (await _receive_into(Counting(), body, theirs, send)).offset


async def _receive_into(
    sink: Counting,
    body: Http1Body,
    theirs: MemoryTransport,
    send: Callable[[MemoryTransport], Awaitable[None]],
) -> Counting:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body._memory.watch.run)
        nursery.start_soon(send, theirs)
        await body.receive(sink)
        nursery.cancel_scope.cancel()
    return sink


@pytest.mark.parametrize(
    ("rate", "mark"),
    [
        (64 * MIB, 2 * MIB),
        (4 * MIB, MIB),
        (MIB, 256 * KIB),
        (128 * KIB, 32 * KIB),
        (16 * KIB, None),
    ],
)
async def test_mark_is_what_comes_in_a_quarter_of_a_second(
    rate: int, mark: int | None, autojump_clock: trio.testing.MockClock
) -> None:
    """As far as a piece reaches; a slow connection has none."""

    async def send(theirs: MemoryTransport) -> None:
        for _ in range(64):
            await trio.sleep(1 / 32)
            await theirs.send_all(bytes(rate // 32))

    marked, body, theirs = _receiver(rate * 2)
    assert await _receive(body, theirs, send) == rate * 2
    if mark is None:
        assert marked.marks == []
    else:
        assert mark / 2 <= max(marked.marks) <= mark * 1.01
        assert marked.marks[-1] == 1  # the connection's next request is small


async def test_mark_that_is_not_filled_is_taken_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The peer may be waiting for word of what it has sent before it sends the rest."""
    seen: list[int] = []

    async def send(theirs: MemoryTransport) -> None:
        for _ in range(8):
            await trio.sleep(1 / 32)
            await theirs.send_all(bytes(MIB))
        seen.append(marked.marks[-1])
        await trio.sleep(1)
        seen.append(marked.marks[-1])
        await theirs.send_all(bytes(MIB))

    marked, body, theirs = _receiver(9 * MIB)
    assert await _receive(body, theirs, send) == 9 * MIB
    assert seen == [2 * MIB, 1]


async def test_who_is_silent_holds_less_but_not_who_stutters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Going on costs a read of what came before: only the first pause is worth it."""

    async def send(theirs: MemoryTransport) -> None:
        for _ in range(20):
            await theirs.send_all(bytes(KIB))
            await trio.sleep(0.5)
        for _ in range(10):
            await theirs.send_all(bytes(KIB))
            await trio.sleep(2)

    _, body, theirs = _receiver(30 * KIB)
    sink = await _receive_into(Counting(), body, theirs, send)
    assert sink.offset == 30 * KIB
    assert sink.relaxed == [21 * KIB]


class _Fickle(Marked):
    """A transport that has nothing each other time that it said it had something."""

    calls = 0

    def receive_nowait(self, view: memoryview) -> int | None:
        self.calls += 1
        return None if self.calls % 2 else self._transport.receive_nowait(view)


@pytest.mark.parametrize("chunked", [False, True])
async def test_wake_up_without_a_byte_is_not_the_end(
    chunked: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """The system may wake a task for nothing; the rest of the content is waited for."""

    async def send(theirs: MemoryTransport) -> None:
        for _ in range(4):
            await theirs.send_all(b"400\r\n" * chunked + bytes(KIB) + b"\r\n" * chunked)
            await trio.sleep(1)
        await theirs.send_all(b"0\r\n\r\n" * chunked)

    marked, body, theirs = _receiver(None if chunked else 4 * KIB)
    fickle = _Fickle(marked._transport)
    body._transport = fickle  # type: ignore[assignment]  # the rest is delegated
    assert await _receive(body, theirs, send) == 4 * KIB
    assert body.remaining == 0
    assert fickle.calls >= 8


class _Knowing(Marked):
    """A transport that knows how many bytes it has."""

    @property
    def readable(self) -> int:
        return self._transport.unread


class _Parts(Counting):
    """A sink that keeps each part that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        super().append(data, piece)
        self.parts.append(bytes(data))


@pytest.mark.parametrize(
    ("came", "parts"),
    [
        (b"", [b"early", b"rest"]),
        (b"re", [b"early", b"rest"]),
        (b"rest", [b"earlyrest"]),
        (b"restnext", [b"earlyrest"]),
    ],
)
async def test_small_content_that_is_there_is_one_part(
    came: bytes, parts: list[bytes]
) -> None:
    """If the rest is not there, the bytes that came with the head do not wait for it."""
    ours, theirs = memory_transport_pair(capacity=MIB)
    head = RequestHead(
        method="POST", target="/", fields=Fields(), http_version="1.1", length=9
    )
    transport: Transport = _Knowing(ours)  # type: ignore[assignment]
    memory = ReceiveMemory(32 * MIB)
    body = Http1Body(head, transport, bytearray(b"early"), memory, Config())

    async def send(theirs: MemoryTransport) -> None:
        await trio.testing.wait_all_tasks_blocked()
        await theirs.send_all(b"rest"[len(came) :])

    await theirs.send_all(came)
    sink = _Parts()
    await _receive_into(sink, body, theirs, send)
    assert b"".join(sink.parts) == b"earlyrest"
    assert sink.parts[0] == parts[0]
    assert len(sink.parts) == len(parts) + (came == b"re")
    assert memory.used == 0
