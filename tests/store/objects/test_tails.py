"""How many objects a tail has, what a flush puts, and what becomes of a chunk."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given, strategies as st

from tests.store.cluster_stand import ClusterStand
from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    begin,
    collect_all,
    do,
    make_durable,
    put,
    read_prefix,
)
from trioresume.errors import StaleWriter, StorageError, StorageUnavailable
from trioresume.store.cluster_store import ClusterStore
from trioresume.store.objects.scratch import Scratch
from trioresume.store.objects.tails import SMALL, merged_from
from trioresume.store.port import EndOperation
from trioresume.testing.memory_catalog import MemoryBucket, MemoryCatalog

LARGE = 64 * 1024 * 1024
DATA = bytes(range(256)) * 4


@pytest.fixture
def stand() -> ClusterStand:
    return ClusterStand()


@given(st.lists(st.integers(1, 1 << 22), min_size=1, max_size=200))
def test_a_chunk_has_few_objects_and_its_bytes_are_put_a_few_times(
    flushes: list[int],
) -> None:
    """However often it is flushed, and however little is new."""
    lengths: list[int] = []
    total = put_again = 0
    for new in flushes:
        kept = merged_from(lengths, new)
        merged = sum(lengths[kept:])
        lengths = [*lengths[:kept], merged + new]
        total += new
        if merged >= 2 * SMALL:
            put_again += merged
        if total > LARGE:
            break
    # Each object is at least twice as long as the next one.
    assert all(a >= 2 * b for a, b in itertools.pairwise(lengths))
    assert len(lengths) <= 12
    assert put_again <= 14 * total


@pytest.mark.parametrize("size", [1, 7, 64])
def test_frequent_flushes_put_little_more_than_the_content(size: int) -> None:
    """A put costs as much as its request: what is small is put again with the next."""
    catalog, bucket = MemoryCatalog(chunk_size=LARGE), MemoryBucket()
    store = ClusterStore(
        catalog.join(), bucket, Scratch(None, memory=LARGE), chunk_size=LARGE
    )
    writer = begin(store)
    whole = 6 * SMALL * size
    for _ in range(24):
        writer.append(bytes(whole // 24))
        make_durable(store, writer)
        state = catalog.content(KEY)
        assert state is not None
        assert len(state.parts) <= 7
    assert bucket.puts == 24
    assert bucket.bytes_put <= 5 * whole
    assert store.offset(KEY) == whole
    store.close()


def test_flush_puts_nothing_that_an_object_has(stand: ClusterStand) -> None:
    """A second flush of the same bytes is not even a request."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    make_durable(stand.store, writer)
    puts = stand.bucket.puts
    assert writer.flush() is None
    late = stand.store.open_writer(KEY)
    assert late.flush() is None
    assert stand.bucket.puts == puts


def test_flush_after_its_chunk_was_named_puts_nothing(stand: ClusterStand) -> None:
    """The bytes are in the chunk."""
    writer = begin(stand.store)
    seals = writer.append(DATA[:CHUNK])
    flush = writer.flush()
    assert flush is not None
    do(stand.store, *[seal.run() for seal in seals])
    puts = stand.bucket.puts
    do(stand.store, flush.run())
    assert stand.bucket.puts == puts
    assert stand.restart().offset(KEY) == CHUNK


def test_earlier_flush_that_runs_late_records_no_more_than_its_offset(
    stand: ClusterStand,
) -> None:
    """Later bytes may belong to chunks that are not named yet."""
    writer = begin(stand.store)
    writer.append(DATA[:3])
    early = writer.flush()
    writer.append(DATA[3:6])
    late = writer.flush()
    assert early is not None
    assert late is not None
    recorded_late = late.run()
    recorded = early.run()
    assert (recorded.offset, recorded_late.offset) == (3, 6)
    do(stand.store, recorded)
    assert stand.restart().offset(KEY) == 3
    assert read_prefix(stand.store) == DATA[:3]


def test_records_in_the_wrong_order_leave_the_later_one(stand: ClusterStand) -> None:
    """The offset never falls, and nothing is left over."""
    writer = begin(stand.store)
    writer.append(DATA[:3])
    early = writer.flush()
    assert early is not None
    recorded = early.run()
    writer.append(DATA[3:6])
    make_durable(stand.store, writer)
    do(stand.store, recorded)
    assert stand.restart().offset(KEY) == 6
    assert read_prefix(stand.store) == DATA[:6]
    do(stand.store, EndOperation(OP, 1.0))
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_named_chunk_leaves_no_part_of_the_tail(stand: ClusterStand) -> None:
    """The parts were for the time before there was a chunk."""
    writer = begin(stand.store)
    for at in range(CHUNK - 1):
        writer.append(DATA[at : at + 1])
        make_durable(stand.store, writer)
    put(stand.store, writer, DATA[CHUNK - 1 : CHUNK])
    collect_all(stand.store)
    assert [name.split("/")[0] for name in stand.bucket.objects] == ["chunks"]


def test_put_that_fails_breaks_the_writer_and_holds_nothing(
    stand: ClusterStand,
) -> None:
    """The client sends the bytes again, after what was announced."""
    writer = begin(stand.store)
    (seal,) = writer.append(DATA[:CHUNK])
    stand.fail_next_sync()
    with pytest.raises(StorageUnavailable):
        seal.run()
    with pytest.raises(StorageError):
        writer.append(b"more")
    writer = stand.store.open_writer(KEY)
    assert writer.offset == 0
    collect_all(stand.store)
    put(stand.store, writer, DATA[:CHUNK])
    assert read_prefix(stand.store) == DATA[:CHUNK]


def test_end_during_a_put_waits_for_nothing_and_leaves_nothing() -> None:
    """DELETE is answered at once; the chunk that arrives later is collected."""
    stand = ClusterStand()
    slow = _SlowBucket()
    stand.bucket = slow
    stand.store = stand._open(CHUNK)
    writer = begin(stand.store)
    (seal,) = writer.append(DATA[:CHUNK])
    thread = threading.Thread(target=seal.run)
    thread.start()
    assert slow.began.wait(10)
    do(stand.store, EndOperation(OP, 1.0))
    slow.may_end.set()
    thread.join(10)
    collect_all(stand.store)
    assert slow.objects == {}
    assert stand.scratch.used == 0
    with pytest.raises(StaleWriter):
        writer.append(b"x")


class _SlowBucket(MemoryBucket):
    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_end = threading.Event(), threading.Event()

    def put_absent(self, name: str, data: memoryview | bytes) -> bool:
        self.began.set()
        assert self.may_end.wait(10)
        return super().put_absent(name, data)
