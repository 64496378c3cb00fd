"""Several uploads of one node that seal equal chunks at the same time."""

from __future__ import annotations

import threading

import pytest

from tests.store.cluster_stand import ClusterStand
from tests.store.helpers import CHUNK, begin, collect_all, conflicts, do, seal_all
from trioresume.errors import StorageError
from trioresume.store.objects.holds import Holds
from trioresume.store.port.recipes import digest_of
from trioresume.testing.memory_catalog import MemoryCatalog

DIGEST = digest_of(b"abc")


def held(catalog: MemoryCatalog) -> int:
    return len(catalog._holds)


def test_chunk_is_held_until_the_last_one_that_needs_it() -> None:
    """The first of two that gives up does not take the hold from the other one."""
    catalog = MemoryCatalog()
    holds = Holds(catalog.join())
    assert holds.take(DIGEST) == holds.take(DIGEST)
    holds.give_up(DIGEST)
    holds.settle()
    assert held(catalog) == 1
    holds.give_up(DIGEST)
    assert (
        held(catalog) == 1
    )  # told with the next commit, because this may be the event loop
    holds.settle()
    assert held(catalog) == 0


def test_chunk_that_one_upload_named_stays_held_for_the_others() -> None:
    """The commit drops the node's hold; the first upload may be deleted at once."""
    stand = ClusterStand()
    one, two = begin(stand.store), begin(stand.store, "two")
    (first,), (second,) = one.append(b"x" * CHUNK), two.append(b"x" * CHUNK)
    late = second.run()
    seal_all(stand.store, [first])
    assert held(stand.catalog) == 1
    do(stand.store, late)
    assert held(stand.catalog) == 0
    assert len(stand.bucket.objects) == 1


def test_seal_of_a_node_that_was_taken_for_dead_conflicts() -> None:
    """Its chunk may have been collected; it must put it again."""
    stand = ClusterStand()
    writer = begin(stand.store)
    (seal,) = writer.append(b"x" * CHUNK)
    sealed = seal.run()
    stand.catalog.end_holds(stand.node)
    collect_all(stand.store)
    assert stand.bucket.objects == {}
    assert conflicts(stand.store, sealed)


def test_chunk_that_came_back_under_another_number_is_not_taken_for_the_old_one() -> (
    None
):
    """While an older seal of this node still means the object that is gone."""
    catalog = MemoryCatalog()
    node = catalog.join()
    holds = Holds(node)
    holds.take(DIGEST)
    catalog.end_holds(node)
    node.condemn(10)
    with pytest.raises(StorageError, match="taken for dead"):
        holds.take(DIGEST)


def test_threads_take_and_give_up_without_losing_count() -> None:
    """Calls for one chunk come one after the other."""
    catalog = MemoryCatalog()
    holds = Holds(catalog.join())

    def work() -> None:
        for _ in range(200):
            holds.take(DIGEST)
            holds.give_up(DIGEST)
            holds.settle()

    holds.take(DIGEST)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held(catalog) == 1
    holds.give_up(DIGEST)
    holds.settle()
    assert held(catalog) == 0
