"""The port's contract for sending without reading: where bytes lie, if anywhere.

A store in memory has no files and says so each time; what is said of extents must hold
for both, so the tests take the bytes from wherever the reader says they are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.store.contract.test_joining import join, store_parts
from tests.store.helpers import (
    CHUNK,
    KEY,
    DiskStand,
    Stand,
    begin,
    collect_all,
    do,
    freeze,
    put,
    store_content,
)
from tests.store.test_disk_store import chunk_path
from trioresume.errors import ChunkCorrupt, ContentLost
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    Content,
    ContentReader,
    EndOperation,
    OperationId,
    SetState,
    Store,
)

DATA = bytes(range(65, 91)) * 2  # 52 bytes: six chunks and four bytes
LATER = 9e9


def taken(reader: ContentReader, offset: int, size: int) -> bytes:
    """What *reader* has there: from the file it names, or read."""
    extent = reader.extent(offset, size)
    if extent is None:
        return reader.read(offset, size)
    assert extent.length > 0
    return os.pread(extent.descriptor, extent.length, extent.offset)


def in_files(reader: ContentReader) -> list[bool]:
    """Whether each byte that *reader* has lies in a file."""
    return [reader.extent(at, 1) is not None for at in range(reader.length)]


def _frozen(store: Store) -> ContentReader:
    return store.open_reader(store_content(store, DATA))


def _joined(store: Store) -> ContentReader:
    parts = [DATA[:9], DATA[9:9], DATA[9:30], DATA[30:]]
    return store.open_reader(join(store, *store_parts(store, parts)))


def _building(store: Store) -> ContentReader:
    put(store, begin(store), DATA)
    return store.open_prefix(KEY, len(DATA))


def _prefix_of_frozen(store: Store) -> ContentReader:
    store_content(store, DATA + b"more")
    return store.open_prefix(KEY, len(DATA))


def _inline(store: Store) -> ContentReader:
    return store.open_reader(Content(len(DATA), inline=DATA))


KINDS: list[Callable[[Store], ContentReader]] = [
    _frozen,
    _joined,
    _building,
    _prefix_of_frozen,
    _inline,
]


@pytest.mark.parametrize("kind", KINDS)
def test_extents_are_where_the_bytes_are(
    kind: Callable[[Store], ContentReader], stand: Stand
) -> None:
    """Any offset, any size, in any order, reads between: the same bytes, ended alike."""
    reader = kind(stand.store)
    dice = random.Random(7)
    for _ in range(300):
        offset, size = dice.randrange(len(DATA)), dice.randrange(1, 3 * CHUNK)
        found = taken(reader, offset, size)
        assert found == DATA[offset : offset + len(found)]
        assert found == reader.read(offset, size)
    reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_extent_where_there_are_no_bytes(
    kind: Callable[[Store], ContentReader], stand: Stand
) -> None:
    """Beyond the end, and of no size."""
    reader = kind(stand.store)
    assert reader.extent(len(DATA), 1) is None
    assert reader.extent(len(DATA) + CHUNK, 1) is None
    assert reader.extent(3, 0) is None
    reader.close()


def test_extents_of_released_content_stay_good_while_it_is_read(stand: Stand) -> None:
    """Collection spares it, so the file that is being sent is still there."""
    content = store_content(stand.store, DATA)
    reader = stand.store.open_reader(content)
    do(stand.store, EndOperation(OperationId("operation-1"), LATER))
    collect_all(stand.store)
    assert b"".join(taken(reader, at, CHUNK) for at in range(0, 52, CHUNK)) == DATA
    reader.close()
    collect_all(stand.store)
    with pytest.raises(ContentLost):
        stand.store.open_reader(content)


def test_content_that_ends_while_it_is_received_is_lost_to_its_reader(
    stand: Stand,
) -> None:
    """As for reads: nothing else is found in its place."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA)
    reader = stand.store.open_prefix(KEY, len(DATA))
    do(stand.store, EndOperation(OperationId("operation-1"), LATER))
    collect_all(stand.store)
    with pytest.raises(ContentLost):
        taken(reader, 2 * CHUNK, 1)
    reader.close()
    writer.close()


@pytest.mark.parametrize("kind", [_frozen, _joined, _prefix_of_frozen])
def test_what_is_frozen_lies_in_files(
    kind: Callable[[Store], ContentReader], disk_stand: DiskStand
) -> None:
    """All of it, so that none has to be read."""
    reader = kind(disk_stand.store)
    assert in_files(reader) == [True] * 52
    reader.close()


def test_a_tail_is_read_because_it_still_changes(disk_stand: DiskStand) -> None:
    """Sealed chunks of unfinished content are files; once frozen, all of it is."""
    writer = begin(disk_stand.store)
    put(disk_stand.store, writer, DATA)
    reader = disk_stand.store.open_prefix(KEY, len(DATA))
    assert in_files(reader) == [True] * 48 + [False] * 4
    reader.close()
    frozen = freeze(disk_stand.store, KEY, writer)
    do(
        disk_stand.store,
        frozen,
        SetState(OperationId("operation-1"), OperationState.COMPLETE),
    )
    reader = disk_stand.store.open_prefix(KEY, len(DATA))
    assert in_files(reader) == [True] * 52
    reader.close()


@pytest.mark.parametrize("damage", ["short", "missing"])
def test_extent_of_a_damaged_chunk_is_refused(
    disk_stand: DiskStand, damage: str
) -> None:
    """By the chunk's name, and before a byte of it is sent; the others are not hurt."""
    content = store_content(disk_stand.store, DATA[:20])
    path = chunk_path(disk_stand, DATA[8:16])
    if damage == "short":
        os.truncate(path, 3)
    else:
        path.unlink()
    reader = disk_stand.store.open_reader(content)
    assert taken(reader, 0, 99) == DATA[:8]
    with pytest.raises(ChunkCorrupt, match=path.name):
        reader.extent(8, 8)
    assert taken(reader, 16, 99) == DATA[16:20]
    reader.close()


def test_one_file_is_open_at_a_time_and_none_after_the_end(
    disk_stand: DiskStand,
) -> None:
    """Whoever downloads holds one descriptor, however many chunks there are."""
    reader = disk_stand.store.open_reader(store_content(disk_stand.store, DATA))
    before = len(os.listdir("/proc/self/fd"))
    for at in range(0, len(DATA), CHUNK):
        assert reader.extent(at, CHUNK) is not None
        assert len(os.listdir("/proc/self/fd")) == before + 1
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
