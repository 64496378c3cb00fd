"""Unfinished chunks in memory and in files: bounded, and freed."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from trioresume.errors import StaleWriter, StorageError, StorageFull
from trioresume.store.objects.scratch import Scratch, TailBuffer

SIZE = 16 * mmap.PAGESIZE
DATA = os.urandom(SIZE)


def fill(scratch: Scratch, data: bytes = DATA) -> TailBuffer:
    buffer = scratch.buffer(SIZE)
    assert buffer.append(memoryview(data)) == len(data)
    return buffer


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_memory_is_bounded_and_the_rest_is_in_files(tmp_path: Path) -> None:
    """Promise 5: the chunk that nobody has written to for the longest time moves."""
    scratch = Scratch(tmp_path, memory=2 * SIZE)
    before = descriptors()
    buffers = [fill(scratch) for _ in range(5)]
    assert scratch.memory_used == 2 * SIZE
    assert scratch.used == 5 * SIZE
    assert descriptors() == before + 3
    for buffer in buffers:
        assert bytes(buffer.view(0, SIZE)) == DATA
        assert buffer.read(5, 100) == DATA[5:100]
        buffer.release()
    assert (scratch.memory_used, scratch.used) == (0, 0)
    assert descriptors() == before
    assert list(tmp_path.iterdir()) == []


def test_small_chunks_take_little_memory(tmp_path: Path) -> None:
    """A thousand beginnings are not a thousand chunks, also in memory that was used before."""
    scratch = Scratch(tmp_path, memory=100 * SIZE)
    for _ in range(4):
        fill(scratch).release()
    small = [fill(scratch, b"x") for _ in range(50)]
    assert scratch.memory_used == 50 * mmap.PAGESIZE
    for buffer in small:
        buffer.release()


def test_growing_chunk_moves_to_a_file_with_its_bytes(tmp_path: Path) -> None:
    """When there is no more memory at all."""
    scratch = Scratch(tmp_path, memory=2 * mmap.PAGESIZE)
    buffer = scratch.buffer(SIZE)
    for at in range(0, SIZE, 1000):
        part = memoryview(DATA)[at : at + 1000]
        assert buffer.append(part) == len(part)
    assert scratch.memory_used == 0
    assert bytes(buffer.view(0, SIZE)) == DATA
    assert bytes(buffer.view(SIZE - 3, SIZE)) == DATA[-3:]
    buffer.release()


def test_view_stays_true_while_its_chunk_moves(tmp_path: Path) -> None:
    """Whoever holds a reference reads on: a put may be under way."""
    scratch = Scratch(tmp_path, memory=2 * mmap.PAGESIZE)
    buffer = scratch.buffer(SIZE)
    buffer.append(memoryview(DATA)[:100])
    view = buffer.share().view(0, 100)
    assert not buffer.try_spill()
    buffer.append(memoryview(DATA)[100 : 3 * mmap.PAGESIZE])
    others = [fill(scratch, b"other") for _ in range(3)]
    assert bytes(view) == DATA[:100]
    assert buffer.read(0, 200) == DATA[:200]
    for each in (buffer, buffer, *others):
        each.release()


def test_bound_of_all_bytes_is_kept_and_said(tmp_path: Path) -> None:
    """What fits is taken; then the store is full, until there is room again."""
    scratch = Scratch(tmp_path, memory=SIZE, most_bytes=100)
    buffer = scratch.buffer(SIZE)
    assert buffer.append(memoryview(DATA)) == 100
    with pytest.raises(StorageFull):
        buffer.append(memoryview(b"x"))
    scratch.most_bytes = None
    assert buffer.append(memoryview(b"x")) == 1
    buffer.release()
    assert scratch.used == 0


@pytest.mark.parametrize(
    ("error", "expected"), [(errno.ENOSPC, StorageFull), (errno.EIO, StorageError)]
)
def test_failing_scratch_directory_is_told(
    error: int,
    expected: type[StorageError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full one as such; nothing is counted for what was not written."""
    scratch = Scratch(tmp_path, memory=0)

    def fail(fd: int, data: object, offset: int) -> int:
        raise OSError(error, os.strerror(error))

    buffer = scratch.buffer(SIZE)
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(expected):
        buffer.append(memoryview(DATA))
    assert scratch.used == buffer.length == 0
    buffer.release()


def test_missing_scratch_directory_is_told(tmp_path: Path) -> None:
    """It is not made by itself: the administrator named it for a reason."""
    scratch = Scratch(tmp_path / "none", memory=0)
    with pytest.raises(StorageError, match="scratch"):
        scratch.buffer(SIZE).append(memoryview(DATA))


def test_freed_buffer_is_not_taken_for_one_with_bytes(tmp_path: Path) -> None:
    """Nobody may put its emptiness under the chunk's name."""
    buffer = fill(Scratch(tmp_path, memory=SIZE))
    buffer.release()
    with pytest.raises(StaleWriter):
        buffer.share()
    assert buffer.read(0, 5) == b""
