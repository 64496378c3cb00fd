"""Deleting objects: in two phases, and by the sweep, which spares what may be named yet."""

from __future__ import annotations

import time

import pytest

from tests.store.cluster_stand import ClusterStand
from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    begin,
    collect_all,
    do,
    make_durable,
    read_content,
    store_content,
)
from trioresume.errors import StorageUnavailable
from trioresume.store.objects.bucket import ListedObject, chunk_name, new_tail_name
from trioresume.store.objects.collection import Sweep, collect_objects
from trioresume.store.port import (
    ChunkObject,
    Collected,
    ContentKey,
    EndOperation,
    OperationId,
)
from trioresume.store.port.recipes import digest_of
from trioresume.testing.memory_catalog import MemoryBucket

DATA = bytes(range(64))


def sweep_all(stand: ClusterStand) -> None:
    stand.store.sweep()
    collect_all(stand.store, limit=3)


def test_deletion_that_failed_is_done_by_another_node() -> None:
    """The chunks stay condemned until then."""
    stand = ClusterStand()
    store_content(stand.store, DATA)
    do(stand.store, EndOperation(OP, 1.0))
    failing = _FailingBucket(stand.bucket)
    stand.node.release_rows(10)
    with pytest.raises(StorageUnavailable):
        collect_objects(stand.node, failing, 100)
    assert len(stand.bucket.objects) == 8
    stand.restart()
    assert collect_all(stand.store).chunks == 8
    assert stand.bucket.objects == {}


class _FailingBucket(MemoryBucket):
    def __init__(self, bucket: MemoryBucket) -> None:
        super().__init__()
        self.objects = bucket.objects

    def delete(self, names: object) -> None:
        raise StorageUnavailable("no answer")


def test_sweep_takes_what_nobody_can_name_and_nothing_else() -> None:
    """Chunks of a node that died before its commit, and parts that were never recorded."""
    stand = ClusterStand()
    content = store_content(stand.store, DATA)
    dying = begin(stand.store, "dying")
    (seal,) = dying.append(b"x" * CHUNK)
    seal.run()
    dying.append(b"part")
    flush = dying.flush()
    assert flush is not None
    flush.run()
    put = len(stand.bucket.objects)
    sweep_all(stand)
    assert len(stand.bucket.objects) == put  # this node may name all of them yet
    stand.restart()
    collect_all(stand.store)
    stand.catalog.generations[OperationId("dying")] = 2
    stand.bucket.objects["chunks/mine"] = stand.bucket.objects["tails/mine"] = b"other"
    lost = ChunkObject(digest_of(b"lost"), 99)
    stand.bucket.objects[chunk_name(lost)] = b"lost"
    sweep_all(stand)
    kept = {name for name in stand.bucket.objects if "mine" not in name}
    assert len(kept) == 8
    assert len(stand.bucket.objects) == 10
    assert read_content(stand.store, content) == DATA


def test_sweep_spares_announced_parts_and_young_ones_without_an_operation() -> None:
    """An operation may be created a moment after its first bytes came."""
    stand = ClusterStand()
    writer = begin(stand.store)
    writer.append(b"abc")
    make_durable(stand.store, writer)
    young = new_tail_name(ContentKey("new"), 1)
    old = new_tail_name(ContentKey("old"), 1)
    now = time.time()
    bucket = _DatedBucket(stand.bucket, {young: now - 3000, old: now - 4000})
    sweep = Sweep(stand.node, bucket)
    while sweep.advance(1) != Collected():
        pass
    assert old not in bucket.objects
    assert young in bucket.objects
    assert stand.restart().offset(KEY) == 3


class _DatedBucket(MemoryBucket):
    def __init__(self, bucket: MemoryBucket, dates: dict[str, float]) -> None:
        super().__init__()
        self.objects = bucket.objects
        self.objects.update(dict.fromkeys(dates, b"part"))
        self._dates = dates

    def list(self, prefix: str, after: str, limit: int) -> list[ListedObject]:
        return [
            ListedObject(each.name, each.size, self._dates.get(each.name, 0.0))
            for each in super().list(prefix, after, limit)
        ]
