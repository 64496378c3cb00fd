"""Writing past the page cache: the same bytes, whatever the memory and the place."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from tests.platforms import has_direct_writes
from tests.store.helpers import KEY, begin, do
from trioresume.errors import StorageError
from trioresume.store.disk_store import DiskStore
from trioresume.store.file_system.disk_io import PAGE_SIZE, Descriptor, Disk
from trioresume.store.port.recipes import digest_of

MIB = 1024 * 1024
DIRECT = getattr(os, "O_DIRECT", 0)


class NotingDisk(Disk):
    """Notes which writes bypass the cache; may refuse to let them."""

    def __init__(self) -> None:
        super().__init__(durable=False)
        self.direct = bool(DIRECT)
        self.refuse = False
        self.past_cache: list[int] = []
        self.cached: list[int] = []
        self.write = self._write

    def _write(self, fd: int, view: memoryview) -> int:
        bypasses = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & DIRECT)
        if bypasses and self.refuse:
            raise OSError(errno.EINVAL, "not here")
        (self.past_cache if bypasses else self.cached).append(len(view))
        return os.write(fd, view)


def pages(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


def supports_direct(path: Path) -> bool:
    try:
        os.close(os.open(path / "probe", os.O_RDWR | os.O_CREAT | DIRECT))
    except OSError:
        return False
    return True


@has_direct_writes
def test_a_large_write_of_whole_pages_bypasses_the_cache(tmp_path: Path) -> None:
    if not supports_direct(tmp_path):
        pytest.skip("this file system has no O_DIRECT")
    disk = NotingDisk()
    memory = pages(MIB)
    memory[:] = random.Random(1).randbytes(MIB)
    file = disk.create(str(tmp_path / "file"))
    assert disk.write_some(file, memory, 0) == MIB
    assert disk.past_cache == [MIB]
    # A little more goes the usual way, and the next large write gets back onto pages.
    assert disk.write_some(file, memory[:100], MIB) == 100
    rest = memory[100:]
    assert disk.write_some(file, rest, MIB + 100) == PAGE_SIZE - 100
    assert disk.write_some(file, rest[PAGE_SIZE - 100 :], MIB + PAGE_SIZE) == (
        MIB - PAGE_SIZE
    )
    assert disk.past_cache == [MIB, MIB - PAGE_SIZE]
    assert disk.cached == [100, PAGE_SIZE - 100]
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes(memory) * 2


@has_direct_writes
def test_memory_that_lies_otherwise_is_written_all_the_same(tmp_path: Path) -> None:
    disk = NotingDisk()
    memory = pages(MIB)
    memory[:] = random.Random(2).randbytes(MIB)
    file = disk.create(str(tmp_path / "file"))
    write_all(disk, file, memory[1:], 0)
    write_all(disk, file, memoryview(bytes(memory)), MIB - 1)
    file.close()
    assert disk.past_cache == []
    assert (tmp_path / "file").read_bytes() == bytes(memory[1:]) + bytes(memory)


@has_direct_writes
def test_a_file_system_that_refuses_is_asked_once(tmp_path: Path) -> None:
    disk = NotingDisk()
    disk.refuse = True
    memory = pages(MIB)
    memory[:] = random.Random(3).randbytes(MIB)
    file = disk.create(str(tmp_path / "file"))
    assert disk.write_some(file, memory, 0) == MIB
    assert not disk.direct
    assert disk.write_some(file, memory, MIB) == MIB
    file.close()
    assert disk.past_cache == []
    assert (tmp_path / "file").read_bytes() == bytes(memory) * 2


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("chunk_size", [4 * MIB, 256 * 1024, 100_000])
def test_any_splits_give_the_same_content(
    tmp_path: Path, chunk_size: int, direct: bool
) -> None:
    """Pieces of any size, that lie in memory as the content does, or anyhow."""
    disk = NotingDisk()
    disk.direct = direct and bool(DIRECT)
    store = DiskStore(tmp_path / "data", chunk_size=chunk_size, disk=disk)
    chance = random.Random(chunk_size)
    content = chance.randbytes(5 * MIB + 12_345)
    memory = pages(2 * MIB + PAGE_SIZE)
    writer = begin(store)
    seals = []
    while writer.offset < len(content):
        offset = writer.offset
        size = chance.choice([1, 4096, 70_000, 300_000, 1 << 20, 2 << 20])
        size = min(size - chance.choice([0, 0, 1, 777]), len(content) - offset)
        start = offset % PAGE_SIZE if chance.random() < 0.8 else 0
        view = memory[start : start + max(1, size)]
        view[:] = content[offset : offset + len(view)]
        seals += writer.append(view)
        view[:] = bytes(len(view))  # nobody may look at it any more
        if chance.random() < 0.2:
            writer.relax()
    seals += writer.finish()
    sealed = [seal.run() for seal in seals]
    do(store, *sealed)
    reader = store.open_prefix(KEY, len(content))
    stored = bytearray()
    while block := reader.read(len(stored), MIB):
        stored += block
    assert stored == content
    reader.close()
    writer.close()
    store.close()
    if direct and DIRECT and supports_direct(tmp_path) and chunk_size % PAGE_SIZE == 0:
        assert sum(disk.past_cache) > len(content) // 4
    if not direct:
        assert disk.past_cache == []


def write_all(disk: Disk, file: Descriptor, view: memoryview, position: int) -> None:
    while view:
        count = disk.write_some(file, view, position)
        view, position = view[count:], position + count


@has_direct_writes
def test_what_bypassed_the_cache_is_read_again(tmp_path: Path) -> None:
    """By a writer that was silent: the digest is that of all the content."""
    with closing(DiskStore(tmp_path, chunk_size=4 * MIB, disk=NotingDisk())) as store:
        writer = begin(store)
        memory = pages(MIB)
        for number in range(3):
            memory[:] = random.Random(number).randbytes(MIB)
            do(store, *(seal.run() for seal in writer.append(memory)))
            writer.relax()
        last = [seal.run() for seal in writer.finish()]
        do(store, *last)
        whole = b"".join(random.Random(number).randbytes(MIB) for number in range(3))
        assert [seal.digest for seal in last] == [digest_of(whole)]


def test_tail_that_changed_while_nothing_came_is_not_written_on(tmp_path: Path) -> None:
    with closing(DiskStore(tmp_path, chunk_size=4 * MIB, disk=NotingDisk())) as store:
        writer = begin(store)
        writer.append(b"something")
        writer.relax()
        (tail,) = (tmp_path / "tails").glob("*.0")
        os.truncate(tail, 4)
        for _ in range(2):
            with pytest.raises(StorageError, match="another length than expected"):
                writer.append(b" more")
        assert tail.read_bytes() == b"some"
