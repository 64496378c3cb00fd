"""Readers of content in objects: they ask for large ranges, and their memory is bounded."""

from __future__ import annotations

import random

import pytest

from tests.store.cluster_stand import ClusterStand
from tests.store.helpers import CHUNK, OP, do, store_content
from trioresume.errors import ChunkCorrupt
from trioresume.store.objects.readers import Ahead, RangeReader
from trioresume.store.port import EndOperation

MIB = 1024 * 1024
SIZE = 8 * MIB
DATA = random.Random(7).randbytes(20 * MIB)


class Source:
    """Content of chunks, which notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def fetch(self, index: int, at: int, size: int) -> bytes:
        self.asked.append((index, at, size))
        start = index * SIZE + at
        return DATA[start : min(start + size, (index + 1) * SIZE)]

    def reader(self, ahead: Ahead) -> RangeReader:
        return RangeReader(len(DATA), SIZE, ahead, self.fetch)


def test_reading_on_asks_for_more_and_more_at_once() -> None:
    """A download of 20 MiB in pieces of 64 KiB takes a dozen requests."""
    source = Source()
    ahead = Ahead(64 * MIB)
    reader = source.reader(ahead)
    read = bytearray()
    while len(read) < len(DATA):
        read += reader.read(len(read), 64 * 1024)
    assert read == DATA
    assert len(source.asked) <= 14
    assert max(size for _, _, size in source.asked) <= 5 * MIB
    reader.close()
    assert ahead.take(100 * MIB) == 64 * MIB


def test_jumping_about_reads_little_more_than_asked() -> None:
    """A player that seeks does not load a chunk each time."""
    source = Source()
    reader = source.reader(Ahead(64 * MIB))
    draw = random.Random(1)
    for _ in range(50):
        at = draw.randrange(len(DATA))
        assert (
            reader.read(at, 1000) == DATA[at : min(at + 1000, (at // SIZE + 1) * SIZE)]
        )
    assert max(size for _, _, size in source.asked) <= 512 * 1024


def test_many_readers_share_the_memory() -> None:
    """Without any they ask for what they need and no more (promise 5)."""
    ahead = Ahead(MIB)
    readers = [Source().reader(ahead) for _ in range(40)]
    for reader in readers:
        assert reader.read(0, 1000) == DATA[:1000]
    assert ahead.take(MIB) == 0
    last = Source()
    reader = last.reader(ahead)
    assert reader.read(5, 1000) == DATA[5:1005]
    assert last.asked == [(0, 5, 1000)]
    for each in (*readers, reader, *readers):
        each.close()
    assert ahead.take(2 * MIB) == MIB


def test_chunk_that_lost_bytes_or_its_object_is_corrupt() -> None:
    """The error names it; nothing else is read instead."""
    stand = ClusterStand()
    content = store_content(stand.store, DATA[: 3 * CHUNK])
    reader = stand.store.open_reader(content)
    (name, *_) = stand.bucket.objects
    whole = stand.bucket.objects[name]
    stand.bucket.objects[name] = whole[:-1]
    with pytest.raises(ChunkCorrupt, match="too short"):
        for at in range(0, 3 * CHUNK, CHUNK):
            reader.read(at, CHUNK)
    reader.close()
    reader = stand.store.open_reader(content)
    del stand.bucket.objects[name]
    with pytest.raises(ChunkCorrupt, match="missing"):
        for at in range(0, 3 * CHUNK, CHUNK):
            reader.read(at, CHUNK)
    reader.close()
    do(stand.store, EndOperation(OP, 1.0))
