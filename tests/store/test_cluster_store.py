"""Two nodes of a cluster: what one has begun, the other one continues."""

from __future__ import annotations

import pytest

from tests.store.cluster_stand import ClusterStand
from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    begin,
    collect_all,
    conflicts,
    do,
    file_record,
    freeze,
    make_durable,
    put,
    read_content,
    read_prefix,
    store_content,
)
from trioresume.errors import CallerError, ContentLost, StaleWriter
from trioresume.store.cluster_store import (
    LARGEST_CHUNK_SIZE,
    LEAST_CHUNK_SIZE,
    ClusterStore,
    check_chunk_size,
)
from trioresume.store.objects.scratch import Scratch
from trioresume.store.port import (
    Content,
    ContentKey,
    ContentState,
    EndOperation,
    PublishFile,
)

DATA = bytes(range(65, 91)) * 2


@pytest.fixture
def stand() -> ClusterStand:
    return ClusterStand()


def other_node(stand: ClusterStand) -> ClusterStore:
    return ClusterStore(
        stand.catalog.join(),
        stand.bucket,
        Scratch(None, memory=1 << 20),
        chunk_size=CHUNK,
    )


def claim(stand: ClusterStand) -> None:
    """As a catalog does it when the other node claims the operation."""
    stand.catalog.generations[OP] = max(1, stand.catalog.generations[OP]) + 1


def test_upload_goes_from_node_to_node_and_back(stand: ClusterStand) -> None:
    """Each continues after what was announced, and nobody uses what it had before."""
    one, two = stand.store, other_node(stand)
    writer = begin(one)
    put(one, writer, DATA[:13])
    make_durable(one, writer)
    writer.append(b"never announced")
    writer.close()
    claim(stand)
    assert two.offset(KEY) == 13
    writer = two.open_writer(KEY)
    assert writer.offset == 13
    put(two, writer, DATA[13:30])
    make_durable(two, writer)
    writer.close()
    claim(stand)
    assert one.offset(KEY) == 30
    writer = one.open_writer(KEY)
    assert writer.offset == 30
    assert read_prefix(one) == DATA[:30]
    put(one, writer, DATA[30:])
    frozen = freeze(one, KEY, writer)
    do(one, frozen)
    assert read_content(two, frozen.content) == DATA


def test_node_reads_what_another_one_has_announced(stand: ClusterStand) -> None:
    """Chunks and parts, but not what it has for itself."""
    two = other_node(stand)
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:20])
    make_durable(stand.store, writer)
    writer.append(b"not yet")
    assert two.offset(KEY) == 20
    assert read_prefix(two) == DATA[:20]
    with pytest.raises(Exception, match="missing"):
        two.open_prefix(KEY, 27).read(20, 7)


def test_equal_chunks_of_two_nodes_are_put_once(stand: ClusterStand) -> None:
    """If-None-Match: the second one finds the object."""
    two = other_node(stand)
    store_content(stand.store, DATA)
    content = store_content(two, DATA, "two")
    assert sum(map(len, stand.bucket.objects.values())) == len(DATA)
    do(stand.store, EndOperation(OP, 1.0))
    collect_all(stand.store)
    assert read_content(two, content) == DATA


def test_node_that_lost_an_operation_forgets_what_it_had(stand: ClusterStand) -> None:
    """Its memory and scratch files are for its own uploads."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    writer.close()
    assert stand.scratch.used == 5
    two = other_node(stand)
    claim(stand)
    do(two, EndOperation(OP, 1.0))
    stand.store.collect(10)
    assert stand.scratch.used == 0


@pytest.mark.parametrize("closes", [True, False])
def test_tail_whose_record_was_not_committed_is_recorded_by_the_next_flush(
    stand: ClusterStand, closes: bool
) -> None:
    """Its objects are put, but nothing names them: announcing the bytes would lose them."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    flush = writer.flush()
    assert flush is not None
    flush.run()  # and the catalog is away when its record is to be committed
    if closes:
        writer.close()
    writer = stand.store.open_writer(KEY)
    assert writer.offset == 5
    make_durable(stand.store, writer)
    assert writer.flush() is None
    assert stand.restart().open_writer(KEY).offset == 5


def test_tail_that_is_being_discarded_lacks_nothing(
    stand: ClusterStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes go while another thread compares it with the catalog's (they are not lost)."""
    store = stand.store
    writer = begin(store)
    writer.append(DATA[:5])
    make_durable(store, writer)
    writer.close()
    content = stand.node.content

    def discard_meanwhile(key: ContentKey) -> ContentState | None:
        state = content(key)
        tail = store._writers.tail(key)
        if tail is not None:
            tail.discard()
        return state

    monkeypatch.setattr(stand.node, "content", discard_meanwhile)
    assert store.offset(KEY) == 5
    store.collect(10)
    assert store._writers.tail(KEY) is None
    assert store.open_writer(KEY).offset == 5


def test_announced_bytes_that_are_gone_are_noticed(stand: ClusterStand) -> None:
    """Somebody deleted an object by hand: the upload cannot go on (C7)."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    make_durable(stand.store, writer)
    stand.bucket.objects.clear()
    store = stand.restart()
    with pytest.raises(ContentLost):
        store.open_writer(KEY)


def test_closed_store_has_no_writers(stand: ClusterStand) -> None:
    """And no bytes of its own."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    stand.store.close()
    with pytest.raises(StaleWriter):
        writer.append(b"x")
    assert stand.scratch.used == 0


def test_content_of_a_released_file_is_not_published(stand: ClusterStand) -> None:
    """The catalog decides, whichever node asks."""
    two = other_node(stand)
    content = store_content(stand.store, DATA)
    do(stand.store, EndOperation(OP, 1.0))
    collect_all(stand.store)
    assert conflicts(two, PublishFile(file_record(content=content)))
    assert read_content(two, Content(3, inline=b"abc")) == b"abc"


@pytest.mark.parametrize("size", [LEAST_CHUNK_SIZE, LARGEST_CHUNK_SIZE])
def test_chunk_sizes_that_an_object_store_can_compose(size: int) -> None:
    """From 8 MiB to 1 GiB."""
    check_chunk_size(size)


@pytest.mark.parametrize(
    "size", [0, 4 * 1024 * 1024, LEAST_CHUNK_SIZE - 1, LARGEST_CHUNK_SIZE + 1]
)
def test_other_chunk_sizes_are_refused(size: int) -> None:
    """The message says what is possible."""
    with pytest.raises(CallerError, match="8388608"):
        check_chunk_size(size)
