"""Stored content on its way out: deadlines, cancellation and lost files, in virtual time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from trioresume.errors import ChunkCorrupt
from trioresume.server.async_store.storage import Storage
from trioresume.server.http.stored_body import StoredBody, StoredPart
from trioresume.store.port import FileExtent
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock

TIMEOUT = 60.0
CHUNK = 1000
DATA = bytes(range(256)) * 20


class FileReader:
    """Content that lies in one file, in chunks; what is in *held* has to be read."""

    def __init__(self, path: Path, *held: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed in close()
        self._held = held
        self.length = len(DATA)
        self.closed = False

    def _within(self, offset: int, size: int) -> int:
        return min(size, CHUNK - offset % CHUNK, self.length - offset)

    def read(self, offset: int, size: int) -> bytes:
        size = self._within(offset, size)
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise ChunkCorrupt(f"chunk {offset // CHUNK} is too short")
        return data

    def extent(self, offset: int, size: int) -> FileExtent | None:
        if offset // CHUNK in self._held:
            return None
        return FileExtent(self._file.fileno(), offset, self._within(offset, size))

    def close(self) -> None:
        self.closed = True
        self._file.close()


class Socket:
    """A socket of *room* bytes, and a peer that reads when told to."""

    def __init__(self, room: float = float("inf")) -> None:
        self.received = bytearray()
        self.room = room
        self._changed = trio.Event()

    def make_room(self, size: int) -> None:
        self.room += size
        self._changed.set()
        self._changed = trio.Event()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.room <= 0:
            await self._changed.wait()

    def send_file_nowait(self, descriptor: int, offset: int, size: int) -> int | None:
        if self.room <= 0:
            return None
        data = os.pread(descriptor, int(min(size, self.room)), offset)
        self._take(data)
        return len(data)

    async def send(self, data: bytes) -> None:
        await self.wait_writable()
        self._take(data)

    def _take(self, data: bytes) -> None:
        self.room -= len(data)
        self.received += data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def storage() -> Storage:
    return Storage(MemoryStore(), threads=1)


def content_of(reader: FileReader, storage: Storage) -> StoredBody:
    """All of it, of which ten bytes are sent with the head."""
    return StoredBody(storage, StoredPart(reader, 0, len(DATA)), with_head=10)


async def deliver(body: StoredBody, socket: Socket) -> None:
    begun, rest = await body.begin()
    await socket.send(begun)
    assert len(begun) + rest.length == body.length
    await rest.send(socket, socket.send, TIMEOUT)


@pytest.mark.parametrize("held", [(), (0,), (1, 3), (5,), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("with_head", [1, CHUNK, 64 * 1024])
@pytest.mark.parametrize("most", [97, CHUNK, 10 * CHUNK])
async def test_pieces_arrive_in_order_whatever_lies_where(
    held: tuple[int, ...], with_head: int, most: int, path: Path, storage: Storage
) -> None:
    """In files, in memory, both; first bytes, turns and chunks ending anywhere."""
    reader = FileReader(path, *held)
    parts = [(0, len(DATA)), (999, 1001), (1500, 1500), (17, 4321)]
    pieces = [
        piece for at in parts for piece in (b"<%d>" % at[0], StoredPart(reader, *at))
    ]
    body = StoredBody(storage, *pieces, b"end", with_head=with_head, most=most)
    expected = b"".join(b"<%d>" % start + DATA[start:stop] for start, stop in parts)
    socket = Socket()
    await deliver(body, socket)
    assert bytes(socket.received) == expected + b"end"
    assert body.length == len(socket.received)
    reader.close()


async def test_peer_that_reads_nothing_is_given_up(
    path: Path, storage: Storage, autojump_clock: Clock
) -> None:
    """After the timeout, and not before: what was sent last counts."""
    reader = FileReader(path)
    socket = Socket(room=1234)
    begin = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        await deliver(content_of(reader, storage), socket)
    assert trio.current_time() - begin == pytest.approx(TIMEOUT)
    assert bytes(socket.received) == DATA[:1234]
    reader.close()


async def test_progress_renews_the_deadline(
    path: Path, storage: Storage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """A peer that takes a byte a minute, nearly, is served to the end."""
    reader = FileReader(path)
    socket = Socket(room=len(DATA) - 30)

    async def read_slowly() -> None:
        for _ in range(30):
            await trio.sleep(TIMEOUT - 1)
            socket.make_room(1)

    nursery.start_soon(read_slowly)
    await deliver(content_of(reader, storage), socket)
    assert bytes(socket.received) == DATA
    reader.close()


async def test_connections_take_turns(
    path: Path, storage: Storage, nursery: trio.Nursery
) -> None:
    """However fast they are: after each turn the others have had theirs."""
    reader = FileReader(path)
    spread: list[int] = []

    class Watched(Socket):
        def send_file_nowait(
            self, descriptor: int, offset: int, size: int
        ) -> int | None:
            sent = super().send_file_nowait(descriptor, offset, size)
            counts = [len(socket.received) for socket in sockets]
            spread.append(max(counts) - min(counts))
            return sent

    sockets = [Watched() for _ in range(5)]
    async with trio.open_nursery() as downloads:
        for socket in sockets:
            whole = StoredPart(reader, 0, len(DATA))
            body = StoredBody(storage, whole, with_head=1, most=100)
            downloads.start_soon(deliver, body, socket)
    assert all(bytes(socket.received) == DATA for socket in sockets)
    assert max(spread) <= 300
    reader.close()


@pytest.mark.parametrize("at", [0, 999, 2500])
async def test_file_that_lost_its_end_is_not_filled_up(
    at: int, path: Path, storage: Storage
) -> None:
    """It is reported by the name the store has for it; what was sent is right."""
    reader = FileReader(path)
    os.truncate(path, at)
    socket = Socket()
    with pytest.raises(ChunkCorrupt, match=f"chunk {at // CHUNK} is too short"):
        await deliver(content_of(reader, storage), socket)
    assert bytes(socket.received) == DATA[:at]
    reader.close()


async def test_file_that_cannot_be_sent_is_lost(path: Path, storage: Storage) -> None:
    """EIO is the store's fault, not the peer's: it is to be logged as that."""

    class Failing(Socket):
        def send_file_nowait(
            self, descriptor: int, offset: int, size: int
        ) -> int | None:
            raise OSError(5, "Input/output error")

    reader = FileReader(path)
    socket = Failing()
    with pytest.raises(ChunkCorrupt) as info:
        await deliver(content_of(reader, storage), socket)
    assert isinstance(info.value.__cause__, OSError)
    assert bytes(socket.received) == DATA[:10]
    reader.close()


async def test_cancelled_download_waits_for_the_thread_that_sends_for_it(
    path: Path,
) -> None:
    """Its files may be closed, and their numbers used again, only after that."""
    may_send, is_sending = threading.Event(), threading.Event()

    class Stuck(Socket):
        def send_file_nowait(
            self, descriptor: int, offset: int, size: int
        ) -> int | None:
            is_sending.set()
            assert may_send.wait(30)
            return super().send_file_nowait(descriptor, offset, size)

    class Blocking(MemoryStore):
        blocking = True

    reader = FileReader(path)
    storage = Storage(Blocking(), threads=1)
    scope = trio.CancelScope()
    socket = Stuck()

    async def download() -> None:
        try:
            with scope:
                await deliver(content_of(reader, storage), socket)
        finally:
            reader.close()

    with storage.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(download)
            await trio.to_thread.run_sync(is_sending.wait)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            closed_meanwhile = reader.closed
            may_send.set()
    assert not closed_meanwhile
    assert reader.closed
    assert bytes(socket.received) == DATA
