"""What the store does when something happens, or fails, between two steps of it.

:class:`WatchedDisk` calls a function of the test right before a chosen call of the disk.
That function fails it, or does meanwhile what another thread could do.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.store.helpers import (
    KEY,
    OP,
    FaultyDisk,
    begin,
    copy_directory,
    do,
    freeze,
    make_durable,
    put,
    read_content,
    record,
    seal_all,
    store_content,
)
from trioresume.errors import StaleWriter, StorageError
from trioresume.store.disk.tail_files import FRESH, PROOF
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.file_system.disk_io import Descriptor, Disk
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.port import (
    Content,
    ContentKey,
    CreateOperation,
    EndOperation,
    FreezeContent,
    HoldBack,
    LetCount,
    Mutation,
    OperationId,
    SealChunk,
    request_key,
)

CHUNK = 8
OTHER = request_key(OperationId("operation-2"))


class WatchedDisk(FaultyDisk):
    """A disk whose calls can be failed, or be the moment for something else."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []
        """The name of each call, and the last parts of the path."""
        self._plans: list[tuple[str, str, Callable[[], None]]] = []

    def before(self, call: str, path: str, act: Callable[[], None]) -> None:
        """Call *act* before the next *call* of a path that contains *path*."""
        self._plans.append((call, path, act))

    def fail(self, call: str, path: str) -> None:
        """Have the next *call* of a path that contains *path* fail."""

        def act() -> None:
            if call == "commit":
                raise sqlite3.OperationalError("disk I/O error")
            raise OSError(5, "Input/output error")

        self.before(call, path, act)

    def _tell(self, call: str, path: str) -> None:
        for number, (planned, part, act) in enumerate(self._plans):
            if planned == call and part in path:
                del self._plans[number]
                act()
                break
        self.calls.append((call, "/".join(Path(path).parts[-2:])))

    def create(self, path: str) -> Descriptor:
        self._tell("create", path)
        return super().create(path)

    def open(self, path: str, *, write: bool = False) -> Descriptor:
        self._tell("open", path)
        return super().open(path, write=write)

    def unlink(self, path: str) -> None:
        self._tell("unlink", path)
        super().unlink(path)

    def link(self, source: str, target: str) -> None:
        self._tell("link", target)
        super().link(source, target)

    def sync_data(self, file: Descriptor) -> None:
        self._tell("sync", "")
        super().sync_data(file)

    def sync_directory(self, path: str) -> None:
        self._tell("sync_directory", path)
        super().sync_directory(path)

    def replace(self, source: str, target: str) -> None:
        self._tell("replace", target)
        super().replace(source, target)

    def commit(self, connection: sqlite3.Connection) -> None:
        self._tell("commit", "")
        super().commit(connection)


@pytest.fixture
def disk() -> WatchedDisk:
    return WatchedDisk()


@pytest.fixture
def store(tmp_path: Path, disk: WatchedDisk) -> Iterator[DiskStore]:
    store = open_store(tmp_path / "data", chunk_size=CHUNK, disk=disk)
    yield store
    store.close()


# The names of tails.


def test_flush_that_was_taken_before_names_were_lost_does_not_run(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """A later sync of the directory proves nothing about a name from before it failed."""
    one = begin(store)
    one.append(b"abc")
    other = begin(store, "operation-2")
    other.append(b"def")
    idle = begin(store, "operation-3")
    idle.append(b"ghi")
    taken = other.flush()
    first = one.flush()
    assert taken is not None
    assert first is not None
    disk.fail("sync_directory", "tails")
    with pytest.raises(StorageError):
        first.run()
    with pytest.raises(StorageError):
        idle.flush()  # the sync that it would make is the second one, which succeeds
    with pytest.raises(StorageError):
        taken.run()
    for writer in (one, other, idle):
        with pytest.raises(StorageError):
            writer.append(b"more")
    for key in (KEY, OTHER):
        # What was not recorded is given up, and what follows counts again.
        writer = store.open_writer(key)
        assert writer.offset == 0
        writer.append(b"again")
        make_durable(store, writer)
        assert store.offset(key) == 5


def test_names_that_were_lost_during_a_flush_are_not_believed(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """Another's sync of the directory fails after this one's files were synced."""
    one = begin(store)
    one.append(b"abc")
    other = begin(store, "operation-2")
    other.append(b"def")
    first, second = one.flush(), other.flush()
    assert first is not None
    assert second is not None

    def lose_names() -> None:
        disk.fail("sync_directory", "tails")
        with pytest.raises(StorageError):
            second.run()

    disk.before("sync", "", lose_names)
    with pytest.raises(StorageError):
        first.run()
    assert store.offset(KEY) == 0


def test_tail_that_is_opened_while_names_are_lost_starts_over(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """What was found of it does not count any more when it is open."""
    writer = begin(store)
    put(store, writer, b"12345678")
    writer.append(b"abc")
    writer.close()
    other = begin(store, "operation-2")
    other.append(b"def")
    flush = other.flush()
    assert flush is not None

    def lose_names() -> None:
        disk.fail("sync_directory", "tails")
        with pytest.raises(StorageError):
            flush.run()

    disk.before("open", f"tails/{KEY}.1", lose_names)
    writer = store.open_writer(KEY)
    assert writer.offset == CHUNK
    writer.append(b"xyz")
    make_durable(store, writer)
    assert store.offset(KEY) == CHUNK + 3


def test_tail_that_is_removed_while_it_is_opened_is_looked_for_again(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """A chunk that is named meanwhile takes its tail along: the next look finds that."""
    writer = begin(store)
    (seal,) = writer.append(b"12345678")
    sealed = seal.run()
    writer.close()
    disk.before("open", f"tails/{KEY}.0", lambda: do(store, sealed))
    writer = store.open_writer(KEY)
    assert writer.offset == CHUNK
    assert writer.append(b"") == []


# The names of chunks.


def seal_of(store: DiskStore, data: bytes, id: str = OP) -> SealChunk:
    (seal,) = begin(store, id).append(data)
    return seal.run()


def test_sync_of_the_chunks_directory_that_failed_is_repeated(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """A new folder of chunks has its name in it: without that its chunks are gone."""
    seal = seal_of(store, b"12345678")
    disk.fail("sync_directory", "data/chunks")
    with pytest.raises(StorageError):
        store.apply([[seal]])
    disk.calls.clear()
    do(store, seal)
    synced = [path for call, path in disk.calls if call == "sync_directory"]
    shard = seal.digest[2:3].hex()
    assert "data/chunks" in synced
    assert f"chunks/{shard}" in synced


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), RuntimeError()])
def test_lost_folder_of_a_known_chunk_is_made_anew_after_a_failed_sync(
    fault: Exception, store: DiskStore, disk: WatchedDisk
) -> None:
    """The name of the folder is as doubtful as those in it, also of chunks that are known."""
    do(store, seal_of(store, b"12345678"))
    seal = seal_of(store, b"12345678", "operation-2")
    shard = Path(store._dir.path, "chunks", seal.digest[2:3].hex())
    shutil.rmtree(shard)

    def fail() -> None:
        raise fault

    disk.before("sync_directory", "data/chunks", fail)
    with pytest.raises((StorageError, RuntimeError)):
        store.apply([[seal]])
    assert not shard.exists()
    disk.calls.clear()
    do(store, seal)
    assert ("sync_directory", "data/chunks") in disk.calls
    assert [path.name for path in shard.iterdir()] == [seal.digest.hex()]


def test_name_that_cannot_be_taken_back_keeps_no_other(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """After a failed sync as many names go as can."""
    seals = [seal_of(store, bytes([n]) * 8, f"operation-{n}") for n in range(4)]
    disk.fail("sync_directory", "data/chunks")
    disk.fail("unlink", "chunks/")
    with pytest.raises(StorageError):
        store.apply([[seal] for seal in seals])
    left = list(Path(store._dir.path, "chunks").rglob("1e20*"))
    assert len(left) == 1


@pytest.mark.parametrize("times", [1, 3])
def test_chunk_is_linked_anew_after_each_failed_sync(
    times: int, store: DiskStore, disk: WatchedDisk
) -> None:
    """A sync that succeeds would say nothing of a name that the last one had lost."""
    seal = seal_of(store, b"12345678")
    shard = f"chunks/{seal.digest[2:3].hex()}"
    for _ in range(times):
        disk.fail("sync_directory", shard)
        with pytest.raises(StorageError):
            store.apply([[seal]])
        assert not list((Path(store._dir.path) / shard).glob("*"))
    disk.calls.clear()
    do(store, seal)
    names = [call for call in disk.calls if call[0] in ("link", "sync_directory")]
    assert names[0] == ("link", f"{shard[-2:]}/{seal.digest.hex()}")
    assert ("sync_directory", shard) in names[1:]


def test_chunks_are_synced_before_the_catalog_names_them(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """And a tail goes only when it does: in each instant every byte has a name."""
    seal = seal_of(store, b"12345678")
    content = Path(store._dir.path)
    seen: list[tuple[str, bool, int]] = []

    def look(call: str) -> Callable[[], None]:
        def act() -> None:
            row = store._catalog.content(KEY)
            named = row is not None and row.prefix == 1
            tails = [*(content / "tails").glob("*.0")]
            seen.append((call, named, len(tails)))

        return act

    disk.before("sync_directory", f"chunks/{seal.digest[2:3].hex()}", look("sync"))
    disk.before("unlink", f"tails/{KEY}.0", look("unlink"))
    do(store, seal)
    assert seen == [("sync", False, 1), ("unlink", True, 1)]


def test_offset_of_finished_content_waits_for_the_names_of_its_tails(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """The catalog names the last chunks only with the commit that freezes the content."""
    writer = begin(store, OP)
    writer.append(b"12345678123")
    for seal in writer.finish():
        seal.run()
    disk.calls.clear()
    flush = writer.flush()
    assert flush is not None
    assert flush.run().offset == 11
    assert ("sync_directory", "data/tails") in disk.calls


def test_batch_that_fails_keeps_the_tails_of_all(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """Nothing at all was done: each submission can be applied again by itself."""
    one = seal_of(store, b"12345678")
    other = seal_of(store, b"abcdefgh", "operation-2")
    disk.fail("sync_directory", "chunks")
    with pytest.raises(StorageError):
        store.apply([[one], [other]])
    for seal in (other, one):
        do(store, seal)
    for key, data in ((KEY, b"12345678"), (OTHER, b"abcdefgh")):
        content = store.sealed_content(key)
        do(store, FreezeContent(key, content))
        assert read_content(store, content) == data


# Tails that share their file with a chunk that others need.

EQUAL = b"12345678"


class Shared:
    """Content of another upload, and an upload of the same bytes whose commit fails.

    The chunk of both is the upload's tail then, although the commit did not count.
    """

    def __init__(self, path: Path, disk: WatchedDisk, data: bytes) -> None:
        self._path = path
        self._starts = 0
        self._data = data
        self.disk = disk
        self.data_dir = path / "data"
        self.store = self._open()
        self._content = store_content(self.store, data, "operation-2")

    def _open(self) -> DiskStore:
        return open_store(self.data_dir, chunk_size=CHUNK, disk=self.disk)

    def fail_commit(self, *mutations: Mutation) -> None:
        self.disk.fail("commit", "")
        with pytest.raises(StorageError):
            self.store.apply([mutations])

    def kill(self) -> None:
        """Go on with a copy of the files, as a process does that is started anew."""
        self.leave()
        self.start()

    def leave(self) -> None:
        """Copy the files as they are now, for the next process."""
        self._starts += 1
        killed, self.data_dir = self.data_dir, self._path / f"data{self._starts}"
        copy_directory(killed, self.data_dir)

    def start(self) -> None:
        self.store.close()
        self.store = self._open()

    def go_on(self, offset: int, data: bytes) -> None:
        """The upload has *offset* bytes, and ends as *data*; the other is as it was."""
        assert self.store.offset(KEY) == offset
        writer = self.store.open_writer(KEY)
        assert writer.offset == offset
        self._check_other()
        put(self.store, writer, data[offset:])
        frozen = freeze(self.store, KEY, writer)
        do(self.store, frozen)
        assert read_content(self.store, frozen.content) == data
        self._check_other()
        while self.store.collect(100).steps:
            pass
        assert not list((self.data_dir / "tails").iterdir())

    def _check_other(self) -> None:
        assert read_content(self.store, self._content) == self._data
        with Inventory(self.data_dir) as inventory:
            assert list(inventory.verify()) == []


@pytest.fixture
def shared(tmp_path: Path, disk: WatchedDisk) -> Iterator[Callable[[bytes], Shared]]:
    made: list[Shared] = []

    def make(data: bytes) -> Shared:
        made.append(Shared(tmp_path, disk, data))
        return made[0]

    yield make
    made[0].store.close()


each_process = pytest.mark.parametrize("killed", [False, True], ids=["same", "killed"])


@each_process
def test_patch_that_is_cut_off_leaves_the_chunks_of_others(
    killed: bool, shared: Callable[[bytes], Shared]
) -> None:
    """What applies as a whole is cut off if its commit failed, and only there (B8)."""
    world = shared(EQUAL)
    store = world.store
    writer = begin(store)
    writer.append(EQUAL[:3])
    make_durable(store, writer)
    do(store, HoldBack(KEY, 3))
    world.fail_commit(*[seal.run() for seal in writer.append(EQUAL[3:])], LetCount(KEY))
    writer.close()
    if killed:
        world.kill()
    world.go_on(3, b"123 is not the same")


@each_process
def test_bytes_that_are_given_up_stay_in_the_chunks_of_others(
    killed: bool, shared: Callable[[bytes], Shared]
) -> None:
    """After a sync that failed only recorded bytes count, and the rest is cut off."""
    world = shared(EQUAL)
    store, disk = world.store, world.disk
    writer = begin(store)
    writer.append(EQUAL[:3])
    make_durable(store, writer)
    world.fail_commit(*[seal.run() for seal in writer.append(EQUAL[3:] + b"more")])
    flush = writer.flush()
    assert flush is not None
    disk.fail("sync", "")
    with pytest.raises(StorageError):
        flush.run()
    if killed:
        world.kill()
    world.go_on(3, b"123 is not the same")


@each_process
def test_bytes_that_are_not_proven_stay_in_the_chunks_of_others(
    killed: bool, shared: Callable[[bytes], Shared]
) -> None:
    """A power loss takes a commit and a proof: the tail is cut, the chunk is another's."""
    world = shared(EQUAL)
    store = world.store
    writer = begin(store)
    writer.append(EQUAL[:3])
    make_durable(store, writer)
    world.fail_commit(*[seal.run() for seal in writer.append(EQUAL[3:])])
    (world.data_dir / "tails" / f"{KEY}.0{PROOF}").unlink()
    world.kill()
    if killed:
        world.kill()  # before the upload went on
    world.go_on(3, b"123 is not the same")


@each_process
def test_short_chunk_that_goes_on_leaves_the_chunk_of_others(
    killed: bool, shared: Callable[[bytes], Shared]
) -> None:
    """Content that was finished and goes on is added to: not so what ends there."""
    world = shared(b"123")
    store = world.store
    writer = begin(store)
    writer.append(b"123")
    world.fail_commit(*[seal.run() for seal in writer.finish()])
    writer.close()
    if killed:
        world.kill()
    world.go_on(3, b"123 goes on for more than a chunk")


@pytest.mark.parametrize("attaches", [True, False], ids=["attribute", "file"])
def test_copy_of_a_shared_tail_is_proven_as_the_tail_was(
    attaches: bool, shared: Callable[[bytes], Shared]
) -> None:
    """A proof may be kept in the file that the tail gives up: accepted bytes stay so."""
    world = shared(b"123")
    store, disk = world.store, world.disk
    disk.attaches = attaches and Disk(durable=True).attaches
    writer = begin(store)
    writer.append(b"123")
    world.fail_commit(*[seal.run() for seal in writer.finish()])
    writer.close()
    store.open_writer(KEY).close()
    world.kill()
    world.go_on(3, b"123 goes on")


@pytest.mark.parametrize("call", ["create", "sync", "replace"])
def test_copy_of_a_shared_tail_that_fails_changes_nothing(
    call: str, shared: Callable[[bytes], Shared]
) -> None:
    """The next attempt begins anew; a file that is left goes with the next sweep."""
    world = shared(b"123")
    store, disk = world.store, world.disk
    writer = begin(store)
    writer.append(b"123")
    world.fail_commit(*[seal.run() for seal in writer.finish()])
    writer.close()
    disk.fail(call, "")
    with pytest.raises(StorageError):
        store.open_writer(KEY)
    world.go_on(3, b"123 goes on")


def test_copy_of_a_shared_tail_that_was_killed_is_swept(
    shared: Callable[[bytes], Shared],
) -> None:
    """Its file has a name of its own, which no start takes for a tail."""
    world = shared(b"123")
    store, disk = world.store, world.disk
    writer = begin(store)
    writer.append(b"123")
    world.fail_commit(*[seal.run() for seal in writer.finish()])
    writer.close()
    disk.before("replace", f"tails/{KEY}", world.leave)
    store.open_writer(KEY).close()
    world.start()
    left = sorted(path.name for path in (world.data_dir / "tails").iterdir())
    assert left == [f"{KEY}.0", f"{KEY}.0{FRESH}", f"{KEY}.0{PROOF}"]
    assert world.store.offset(KEY) == 3
    world.go_on(3, b"123 goes on")


# Writers.


def test_operation_that_ends_while_its_writer_is_opened_takes_no_byte(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """The writer is stale, or was refused: either way nothing is left of it."""
    writer = begin(store)
    put(store, writer, b"12345678abc")
    writer.close()
    # Ending waits for a writer that is being opened: it needs a thread of its own.
    ending = threading.Thread(target=do, args=(store, EndOperation(OP, 9.0)))

    def end() -> None:
        ending.start()
        while (known := store.operation(OP)) is None or known.state != "gone":
            pass

    disk.before("open", f"tails/{KEY}.1", end)
    try:
        writer = store.open_writer(KEY)
    except StorageError:
        ending.join(10)
    else:
        ending.join(10)
        with pytest.raises(StaleWriter):
            writer.append(b"more")
    assert not list((Path(store._dir.path) / "tails").iterdir())


def test_chunk_that_was_found_to_exist_is_not_collected_before_it_is_named(
    store: DiskStore, disk: WatchedDisk
) -> None:
    """Its last reference goes in the same batch as the new one comes, in any order."""
    first = seal_of(store, b"12345678")
    do(store, first)
    second = seal_of(store, b"12345678", "operation-2")
    assert store.apply([[EndOperation(OP, 9.0)], [second]]) == [None, None]
    while store.collect(100).chunks:
        pass
    content = store.sealed_content(OTHER)
    do(store, FreezeContent(OTHER, content))
    assert read_content(store, content) == b"12345678"


def test_everything_sealed_is_there_after_each_failed_step(tmp_path: Path) -> None:
    """Whatever call fails while chunks are named, trying again gives all the bytes."""
    number = 0
    while True:
        disk = WatchedDisk()
        store = open_store(tmp_path / str(number), chunk_size=CHUNK, disk=disk)
        do(store, CreateOperation(record(OP)))
        writer = store.open_writer(KEY)
        seals = [seal.run() for seal in writer.append(b"12345678abcdefgh")]
        count = [number]

        def fail_in_turn(count: list[int] = count) -> None:
            count[0] -= 1
            if count[0] < 0:
                raise OSError(5, "Input/output error")

        for call in ("link", "unlink", "sync_directory", "create"):
            for _ in range(20):
                disk.before(call, "", fail_in_turn)
        try:
            store.apply([seals])
            failed = False
        except StorageError:
            failed = True
        disk._plans.clear()
        if failed:
            do(store, *seals)
        seal_all(store, writer.finish())
        content: Content = store.sealed_content(ContentKey(KEY))
        do(store, FreezeContent(KEY, content))
        assert read_content(store, content) == b"12345678abcdefgh"
        store.close()
        if count[0] >= 0:
            break
        number += 1
    assert number >= 5
