"""The port's contract for sharing, readers and collection, over every implementation."""

from __future__ import annotations

import pytest

from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    Stand,
    begin,
    collect_all,
    conflicts,
    do,
    file_record,
    freeze,
    put,
    read_content,
    read_prefix,
    store_content,
)
from trioresume.errors import ContentLost
from trioresume.store.port import (
    Collected,
    Content,
    EndOperation,
    OperationId,
    PublishFile,
    request_key,
)

DATA = bytes(range(65, 91)) * 2
TWO = OperationId("two")
LATER = 9e9


def test_equal_content_is_stored_once(stand: Stand) -> None:
    """Two uploads of the same bytes share their recipe and chunks (promise 7)."""
    one, two = store_content(stand.store, DATA), store_content(stand.store, DATA, TWO)
    assert one == two
    collect_all(stand.store)
    # The alphabet twice, in chunks of 8: no two chunks are equal.
    assert stand.stored_bytes() == len(DATA)
    do(stand.store, EndOperation(OP, LATER))
    assert collect_all(stand.store) == Collected()
    assert read_content(stand.store, two) == DATA
    do(stand.store, EndOperation(TWO, LATER))
    assert collect_all(stand.store).bytes == len(DATA)
    assert stand.stored_bytes() == 0


def test_equal_prefix_is_stored_once(stand: Stand) -> None:
    """Chunks are aligned to the upload's own start, so prefixes share."""
    one = store_content(stand.store, DATA)
    two = store_content(stand.store, DATA[:24] + b"other", TWO)
    assert one != two
    assert stand.stored_bytes() == len(DATA) + 5
    do(stand.store, EndOperation(OP, LATER))
    collect_all(stand.store)
    assert stand.stored_bytes() == 24 + 5
    assert read_content(stand.store, two) == DATA[:24] + b"other"


def test_repeated_chunk_counts_each_time(stand: Stand) -> None:
    """Content that lists one chunk many times neither leaks nor loses it."""
    zeros = bytes(10 * CHUNK)
    content = store_content(stand.store, zeros)
    assert stand.stored_bytes() == CHUNK
    assert read_content(stand.store, content) == zeros
    again = store_content(stand.store, zeros[: 3 * CHUNK], TWO)
    do(stand.store, EndOperation(OP, LATER))
    collect_all(stand.store, limit=2)
    assert read_content(stand.store, again) == zeros[: 3 * CHUNK]
    do(stand.store, EndOperation(TWO, LATER))
    collect_all(stand.store, limit=2)
    assert stand.stored_bytes() == 0


def test_unfinished_content_holds_its_chunks(stand: Stand) -> None:
    """What was sealed is held before there is a recipe."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA)
    store_content(stand.store, DATA[:16], TWO)
    do(stand.store, EndOperation(TWO, LATER))
    collect_all(stand.store)
    assert read_prefix(stand.store) == DATA
    do(stand.store, EndOperation(OP, LATER))
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_collection_goes_in_slices(stand: Stand, limit: int) -> None:
    """However small the slices, all is released, and a slice is no larger than asked."""
    big = bytes(range(256)) * 4
    store_content(stand.store, big)
    do(stand.store, EndOperation(OP, LATER))
    chunks = recipes = 0
    while (done := stand.store.collect(limit)) != Collected():
        assert done.chunks + done.recipes <= limit + 1
        chunks += done.chunks
        recipes += done.recipes
    assert (recipes, chunks) == (1, 256 // CHUNK)
    assert stand.stored_bytes() == 0


@pytest.mark.parametrize("steps", range(1, 12, 2))
def test_content_frozen_again_while_it_is_collected(stand: Stand, steps: int) -> None:
    """A recipe that comes back half dismantled is whole again, and leaks nothing."""
    store_content(stand.store, DATA)
    do(stand.store, EndOperation(OP, LATER))
    for _ in range(steps):
        stand.store.collect(1)
    content = store_content(stand.store, DATA, TWO)
    collect_all(stand.store, limit=1)
    assert read_content(stand.store, content) == DATA
    do(stand.store, EndOperation(TWO, LATER))
    collect_all(stand.store, limit=1)
    assert stand.stored_bytes() == 0


@pytest.mark.parametrize("steps", range(1, 12, 2))
def test_collection_beside_a_writer_of_the_same_bytes(stand: Stand, steps: int) -> None:
    """A chunk that a writer found to exist already is not taken from under it."""
    store_content(stand.store, DATA)
    do(stand.store, EndOperation(OP, LATER))
    writer = begin(stand.store, TWO)
    for at in range(0, len(DATA), CHUNK):
        put(stand.store, writer, DATA[at : at + CHUNK])
        for _ in range(steps):
            stand.store.collect(1)
    frozen = freeze(stand.store, request_key(TWO), writer)
    collect_all(stand.store)
    do(stand.store, frozen)
    content = frozen.content
    assert read_content(stand.store, content) == DATA


def test_reader_outlives_the_content(stand: Stand) -> None:
    """A download that is under way is not cut because the file was replaced."""
    content = store_content(stand.store, DATA)
    reader = stand.store.open_reader(content)
    second = stand.store.open_reader(content)
    do(stand.store, EndOperation(OP, LATER))
    collect_all(stand.store)
    assert reader.read(40, 100) == DATA[40:48]
    reader.close()
    reader.close()
    collect_all(stand.store)
    assert second.read(0, 100) == DATA[:8]
    second.close()
    assert collect_all(stand.store).recipes == 1
    with pytest.raises(ContentLost):
        stand.store.open_reader(content)


def test_pinned_content_does_not_hold_up_other_garbage(stand: Stand) -> None:
    """Collection passes over what is being read."""
    contents = [store_content(stand.store, bytes([n]) * 20, f"op{n}") for n in range(6)]
    readers = [stand.store.open_reader(content) for content in contents[::2]]
    for n in range(6):
        do(stand.store, EndOperation(OperationId(f"op{n}"), LATER))
    assert collect_all(stand.store).recipes == 3
    for reader in readers:
        reader.close()
    assert collect_all(stand.store).recipes == 3


def test_collected_content_cannot_be_published(stand: Stand) -> None:
    """A name is not given to bytes that are being taken apart."""
    content = store_content(stand.store, DATA)
    do(stand.store, EndOperation(OP, LATER))
    stand.store.collect(1)
    stand.store.collect(1)
    assert conflicts(stand.store, PublishFile(file_record(content=content)))


def test_inline_content_reads_like_any_other(stand: Stand) -> None:
    """Small content needs no chunk."""
    reader = stand.store.open_reader(Content(5, inline=b"01234"))
    assert reader.length == 5
    assert reader.read(1, 3) == b"123"
    assert reader.read(3, 100) == b"34"
    assert reader.read(5, 1) == b""
    reader.close()


def test_reads_end_at_a_chunk_or_at_the_end(stand: Stand) -> None:
    """A read is short only where the port says so."""
    content = store_content(stand.store, DATA)
    reader = stand.store.open_reader(content)
    for offset in range(len(DATA) + 2):
        for size in (0, 1, 5, 8, 9, 100):
            end = min(offset + size, (offset // CHUNK + 1) * CHUNK, len(DATA))
            assert reader.read(offset, size) == DATA[offset:end]
    reader.close()


def test_nothing_to_collect_is_said_so(stand: Stand) -> None:
    """All zero means that nothing is left to do."""
    store_content(stand.store, DATA)
    put(stand.store, begin(stand.store, TWO), DATA)
    collect_all(stand.store)
    assert stand.store.collect(10) == Collected()
    assert read_prefix(stand.store, request_key(TWO)) == DATA
    assert stand.store.offset(KEY) == len(DATA)
