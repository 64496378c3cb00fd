"""What is particular to the store on disk: its directory, its files, its epochs."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import time
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    DiskStand,
    FaultyDisk,
    begin,
    collect_all,
    conflicts,
    do,
    downgrade,
    make_durable,
    put,
    read_content,
    read_prefix,
    record,
    seal_all,
    store_content,
)
from trioresume.errors import (
    CallerError,
    ChunkCorrupt,
    ContentLost,
    FormatVersionUnsupported,
    StorageError,
    StoreLocked,
)
from trioresume.store.catalog.chunk_lists import AT_ONCE
from trioresume.store.disk_store import Durability, open_store
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.port import (
    Collected,
    Content,
    CreateOperation,
    EndOperation,
    FreezeContent,
    JoinContents,
    OperationId,
    SetMeta,
    request_key,
)
from trioresume.store.port.recipes import digest_of

DATA = bytes(range(65, 91)) * 2


# The directory.


def test_data_dir_is_for_its_owner_only(disk_stand: DiskStand) -> None:
    """Directories are 0700, files 0600: uploads are nobody else's business."""
    put(disk_stand.store, begin(disk_stand.store), DATA)
    for path in [disk_stand.data_dir, *disk_stand.data_dir.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_new_data_dir_is_durable_from_the_root_on(tmp_path: Path) -> None:
    """Every directory that was made is synced in the one above it."""
    synced: list[str] = []

    class NotingDisk(FaultyDisk):
        def sync_directory(self, path: str) -> None:
            synced.append(os.path.relpath(path, tmp_path))

    open_store(tmp_path / "a" / "b" / "data", disk=NotingDisk()).close()
    assert synced[:2] == [".", "a"]
    assert {"a/b", "a/b/data", "a/b/data/chunks"} <= set(synced)
    synced.clear()
    open_store(tmp_path / "a" / "b" / "data", disk=NotingDisk()).close()
    assert "a/b" not in synced


def test_chunks_and_tails_lie_where_the_format_says(disk_stand: DiskStand) -> None:
    """chunks/<first hash byte>/<multihash>, tails/<key>.<index>."""
    put(disk_stand.store, begin(disk_stand.store), DATA[:11])
    name = digest_of(DATA[:8]).hex()
    assert name.startswith("1e20")
    assert disk_stand.files("chunks") == [f"{name[4:6]}/{name}"]
    assert disk_stand.files("tails") == [f"{OP}.1"]
    chunk = disk_stand.data_dir / "chunks" / name[4:6] / name
    assert chunk.read_bytes() == DATA[:8]
    assert (disk_stand.data_dir / "tails" / f"{OP}.1").read_bytes() == DATA[8:11]


def test_second_server_is_locked_out(disk_stand: DiskStand) -> None:
    """One process serves a data directory."""
    with pytest.raises(StoreLocked):
        disk_stand.open()
    disk_stand.store.close()
    disk_stand.store = disk_stand.open()


def test_unknown_format_is_left_alone(disk_stand: DiskStand) -> None:
    """A directory of a later version is neither opened nor changed."""
    disk_stand.store.close()
    path = disk_stand.data_dir / "format"
    ours = path.read_bytes()
    path.write_bytes(b"trioresume data directory, format 2\n")
    with pytest.raises(FormatVersionUnsupported):
        disk_stand.open()
    path.write_bytes(ours)
    disk_stand.store = disk_stand.open()


def test_later_catalog_is_left_alone(disk_stand: DiskStand) -> None:
    """The catalog has a version of its own."""
    disk_stand.store.close()
    connection = sqlite3.connect(disk_stand.data_dir / "catalog.sqlite3")
    (ours,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(FormatVersionUnsupported):
        disk_stand.open()
    connection = sqlite3.connect(disk_stand.data_dir / "catalog.sqlite3")
    connection.execute(f"PRAGMA user_version = {ours}")
    connection.close()
    disk_stand.store = disk_stand.open()


def test_earlier_catalog_is_brought_up_to_date(disk_stand: DiskStand) -> None:
    """What it held is there as before, and joins like what is new."""
    part = store_content(disk_stand.store, b"from before")
    disk_stand.store.close()
    downgrade(disk_stand.data_dir, 1)
    disk_stand.store = disk_stand.open()
    two = OperationId("two")
    join = JoinContents(two, (part, part))
    do(disk_stand.store, CreateOperation(record(two)), join)
    assert read_content(disk_stand.store, join.content) == b"from before" * 2


def test_joining_touches_no_chunk(disk_stand: DiskStand) -> None:
    """D7: it costs the number of parts, whatever their size."""
    part = store_content(disk_stand.store, bytes(range(256)) * 30)
    catalog = sqlite3.connect(disk_stand.data_dir / "catalog.sqlite3")
    holds = "SELECT digest, refs FROM chunks ORDER BY digest"
    before = catalog.execute(holds).fetchall()
    two = OperationId("two")
    do(
        disk_stand.store,
        CreateOperation(record(two)),
        JoinContents(two, (part, part, part)),
    )
    assert catalog.execute(holds).fetchall() == before
    (refs,) = catalog.execute(
        "SELECT refs FROM recipes WHERE digest = ?", (part.digest,)
    ).fetchone()
    assert refs == 4  # three times in the join, once by its own operation
    catalog.close()


def test_uploads_from_before_there_were_dialects_complete_at_their_length(
    disk_stand: DiskStand,
) -> None:
    """E: the catalog did not say so; what it says now is kept."""
    do(disk_stand.store, CreateOperation(record(length=10)))
    disk_stand.store.close()
    downgrade(disk_stand.data_dir, 2)
    disk_stand.store = disk_stand.open()
    assert disk_stand.store.operation(OP) == replace(record(length=10), reserved=10)
    explicit = replace(record("explicit", length=10), explicit_completion=True)
    do(disk_stand.store, CreateOperation(explicit))
    disk_stand.store.close()
    disk_stand.store = disk_stand.open()
    assert disk_stand.store.operation(explicit.id) == explicit


def test_broken_catalog_is_a_storage_error(disk_stand: DiskStand) -> None:
    """A file that is no database is reported as the store's trouble."""
    disk_stand.store.close()
    path = disk_stand.data_dir / "catalog.sqlite3"
    ours = path.read_bytes()
    path.write_bytes(b"this is not a database, but it is long enough " * 100)
    with pytest.raises(StorageError):
        disk_stand.open()
    path.write_bytes(ours)
    disk_stand.store = disk_stand.open()


def test_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    """A file in the way is reported as the store's trouble."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        open_store(tmp_path / "file")


def test_chunk_size_is_positive(tmp_path: Path) -> None:
    """No bytes make no chunk."""
    with pytest.raises(CallerError):
        open_store(tmp_path / "data", chunk_size=0)


@pytest.mark.parametrize("place", ["tails", "chunks"])
def test_end_is_not_clean_once_a_directory_was_not_synced(
    tmp_path: Path, place: str
) -> None:
    """A removal before it may come undone, so the next start looks at every file."""

    class Failing(FaultyDisk):
        fails = True

        def sync_directory(self, path: str) -> None:
            if self.fails and place in path[len(str(tmp_path)) :]:
                self.fails = False
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            super().sync_directory(path)

    data_dir = tmp_path / "store"
    open_store(data_dir, chunk_size=CHUNK, disk=FaultyDisk()).close()
    disk = Failing()
    disk.fails = False
    store = open_store(data_dir, chunk_size=CHUNK, disk=disk)
    collect_all(store)
    disk.fails = True
    writer = begin(store)
    with pytest.raises(StorageError):
        put(store, writer, DATA)
        make_durable(store, writer)
    assert not disk.fails
    do(store, EndOperation(OP, 1.0))
    collect_all(store)
    store.close()
    with closing(sqlite3.connect(data_dir / "catalog.sqlite3")) as catalog:
        row = catalog.execute("SELECT value FROM store WHERE name = 'clean'").fetchone()
    assert row == ("no",)


def test_real_disk_with_the_real_defaults(tmp_path: Path) -> None:
    """With nothing faked: syncs, 4 MiB chunks, a restart."""
    store = open_store(tmp_path / "data")
    data = os.urandom(5 * 1024 * 1024)
    writer = begin(store)
    put(store, writer, data)
    make_durable(store, writer)
    store.close()
    store = open_store(tmp_path / "data")
    assert store.offset(KEY) == len(data)
    do(store, EndOperation(OP, 1.0))
    content = store_content(store, data, "again")
    assert read_content(store, content) == data
    store.close()


# Epochs and durability.


def test_process_durability_syncs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what it is for."""

    def refuse(fd: int) -> None:
        raise AssertionError("synced")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr("trioresume.store.file_system.disk_io._sync", refuse)
    store = open_store(tmp_path / "data", chunk_size=CHUNK, durability="process")
    content = store_content(store, DATA)
    assert read_content(store, content) == DATA
    store.close()


def test_change_to_disk_durability_syncs_what_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that a process-durable store wrote count as durable from then on."""
    open_store(tmp_path / "data", durability="process").close()
    synced: list[bool] = []
    monkeypatch.setattr(os, "sync", lambda: synced.append(True))
    open_store(tmp_path / "data", durability="process").close()
    assert synced == []
    open_store(tmp_path / "data").close()
    assert synced == [True]
    open_store(tmp_path / "data").close()
    assert synced == [True]


def test_what_was_lost_before_the_change_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store does not open as durable on what could not be made so; later it asks anew."""
    open_store(tmp_path / "data", durability="process").close()

    def fail(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with monkeypatch.context() as patch:
        patch.setattr("trioresume.store.file_system.disk_io._check_file_system", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            open_store(tmp_path / "data")
    open_store(tmp_path / "data", durability="process").close()
    open_store(tmp_path / "data").close()


# Chunk files that are not as they should be.


def chunk_path(stand: DiskStand, data: bytes) -> Path:
    name = digest_of(data).hex()
    return stand.data_dir / "chunks" / name[4:6] / name


def test_chunk_file_that_the_catalog_does_not_name_is_replaced(
    disk_stand: DiskStand,
) -> None:
    """An orphan may hold anything; it is not taken for the chunk it is called."""
    orphan = chunk_path(disk_stand, DATA[:8])
    orphan.parent.mkdir()
    orphan.write_bytes(bytes(8))
    content = store_content(disk_stand.store, DATA[:8])
    assert read_content(disk_stand.store, content) == DATA[:8]
    assert len(disk_stand.files("chunks")) == 1


DAMAGES: dict[str, bytes | None] = {
    "missing": None,
    "short": DATA[8:11],
    "long": DATA[8:17],
    "flipped": bytes([DATA[8] ^ 1]) + DATA[9:16],
    "zeros": bytes(8),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("durable", [True, False], ids=["disk", "process"])
@pytest.mark.parametrize("at_once", [True, False], ids=["small", "large"])
def test_damaged_chunk_is_healed_by_an_equal_one(
    tmp_path: Path, damage: str, durable: bool, at_once: bool
) -> None:
    """Good bytes in hand are kept, whatever became of the chunk that had them before."""
    disk = FaultyDisk(durable=durable)
    with closing(open_store(tmp_path / "data", chunk_size=CHUNK, disk=disk)) as store:
        content = store_content(store, DATA[:20])
        name = digest_of(DATA[8:16]).hex()
        path = tmp_path / "data" / "chunks" / name[4:6] / name
        path.unlink()
        damaged = DAMAGES[damage]
        if damaged is not None:
            path.write_bytes(damaged)
        with Inventory(tmp_path / "data") as inventory:
            assert [d.name for d in inventory.verify() if d.kind == "chunk"] == [name]
        if at_once:
            store_content(store, DATA[:20], "again")
        else:
            writer = begin(store, "again")
            seal_all(store, writer.append(DATA[:20]))
            seal_all(store, writer.finish())
        assert read_content(store, content) == DATA[:20]
        with Inventory(tmp_path / "data") as inventory:
            assert list(inventory.verify()) == []
        collect_all(store)
        assert len([p for p in path.parent.parent.rglob("*") if p.is_file()]) == 3


def test_chunk_that_is_read_while_it_is_healed_is_read_on(
    disk_stand: DiskStand,
) -> None:
    """Readers keep the file that they have open."""
    content = store_content(disk_stand.store, DATA[:20])
    with closing(disk_stand.store.open_reader(content)) as reader:
        assert reader.read(0, 3) == DATA[:3]
        store_content(disk_stand.store, DATA[:20], "again")
        assert reader.read(3, 5) == DATA[3:8]
        assert reader.read(8, 8) == DATA[8:16]


@pytest.mark.parametrize("fails_at", ["names", "commit"])
def test_failed_healing_leaves_the_chunk_that_was_there(
    disk_stand: DiskStand, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """The catalog names it: it is never without a file, and the next attempt is a new one."""
    content = store_content(disk_stand.store, DATA[:8])

    def fail(*_: object) -> None:
        if fails_at == "commit":
            raise sqlite3.OperationalError("disk I/O error")
        raise OSError(5, "Input/output error")

    writer = begin(disk_stand.store, "again")
    seals = [seal.run() for seal in writer.append(DATA[:8])]
    with monkeypatch.context() as patch:
        name = {"names": "sync_directory", "commit": "commit"}[fails_at]
        patch.setattr(disk_stand.disk, name, fail)
        with pytest.raises(StorageError):
            disk_stand.store.apply([seals])
    assert read_content(disk_stand.store, content) == DATA[:8]
    before = chunk_path(disk_stand, DATA[:8]).stat().st_ino
    do(disk_stand.store, *seals)
    assert chunk_path(disk_stand, DATA[:8]).stat().st_ino != before
    assert read_content(disk_stand.store, content) == DATA[:8]


def test_damaged_prefix_is_not_read_as_something_else(disk_stand: DiskStand) -> None:
    """A chunk of unfinished content that lost bytes is corrupt, one that is gone lost."""
    writer = begin(disk_stand.store)
    put(disk_stand.store, writer, DATA[:20])
    chunk_path(disk_stand, DATA[:8]).write_bytes(b"xyz")
    with pytest.raises(ChunkCorrupt):
        read_prefix(disk_stand.store)
    chunk_path(disk_stand, DATA[:8]).unlink()
    with pytest.raises(ContentLost):
        read_prefix(disk_stand.store)


def test_missing_short_chunk_loses_the_content(disk_stand: DiskStand) -> None:
    """What cannot be turned back into a tail cannot be continued."""
    writer = begin(disk_stand.store)
    put(disk_stand.store, writer, DATA[:3])
    do(disk_stand.store, *[seal.run() for seal in writer.finish()])
    writer.close()
    chunk_path(disk_stand, DATA[:3]).unlink()
    with pytest.raises(ContentLost):
        disk_stand.store.open_writer(KEY)


def test_changed_tail_is_not_published(disk_stand: DiskStand) -> None:
    """A full tail that shrank under the store's hands does not become a chunk."""
    writer = begin(disk_stand.store)
    seals = [seal.run() for seal in writer.append(DATA[:8])]
    os.truncate(disk_stand.data_dir / "tails" / f"{OP}.0", 5)
    with pytest.raises(StorageError):
        disk_stand.store.apply([seals])
    assert disk_stand.files("chunks") == []


class LinklessDisk(FaultyDisk):
    """A file system without hard links."""

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")


def test_store_works_without_hard_links(tmp_path: Path) -> None:
    """FAT and some network file systems have none; the chunk is copied then."""
    store = open_store(tmp_path / "data", chunk_size=CHUNK, disk=LinklessDisk())
    content = store_content(store, DATA)
    assert read_content(store, content) == DATA
    store_content(store, DATA, "again")
    do(store, EndOperation(OP, 1.0), EndOperation(OperationId("again"), 1.0))
    collect_all(store)
    left = [p for p in (tmp_path / "data" / "chunks").rglob("*") if p.is_file()]
    assert left == []
    store.close()


def test_chunk_is_a_copy_where_names_are_not_counted(tmp_path: Path) -> None:
    """Without link counts, nobody sees that a tail is a chunk as well."""

    class Uncounted(FaultyDisk):
        def link(self, source: str, target: str) -> None:
            shutil.copyfile(
                source, target
            )  # nobody sees that the file has a second name

    disk = Uncounted()
    store = open_store(tmp_path / "data", chunk_size=CHUNK, disk=disk)
    content = store_content(store, DATA)
    assert disk.counts_links is False
    assert read_content(store, content) == DATA
    with Inventory(tmp_path / "data") as inventory:
        assert list(inventory.verify()) == []
    store.close()


def test_copy_over_an_orphan_works_without_hard_links(tmp_path: Path) -> None:
    """Replacing an orphan needs no link either."""
    store = open_store(tmp_path / "data", chunk_size=CHUNK, disk=LinklessDisk())
    name = digest_of(DATA[:8]).hex()
    orphan = tmp_path / "data" / "chunks" / name[4:6] / name
    orphan.parent.mkdir()
    orphan.write_bytes(b"anything")
    content = store_content(store, DATA[:8])
    assert read_content(store, content) == DATA[:8]
    store.close()


# The sweep.


def test_sweep_takes_what_nothing_speaks_of(disk_stand: DiskStand) -> None:
    """After an unclean end, orphans go; what is in use stays."""
    put(disk_stand.store, begin(disk_stand.store), DATA[:20])
    tails, chunks = disk_stand.data_dir / "tails", disk_stand.data_dir / "chunks"
    (tails / "nobody.0").write_bytes(b"x")
    (tails / f"{OP}.0").write_bytes(DATA[:8])  # of a chunk that is sealed
    (tails / f"{OP}.r.0").write_bytes(b"a response that a later run replaces")
    (tails / f"{OP}.4").write_bytes(b"past a gap that a power loss left")
    (chunks / "1e").mkdir(exist_ok=True)
    (chunks / "1e" / digest_of(b"orphan").hex()).write_bytes(b"orphan")
    (chunks / "1e" / "half.new").write_bytes(b"half")
    store = disk_stand.restart()
    collected = collect_all(store, limit=2)
    assert collected.chunks == 1
    assert disk_stand.files("tails") == [f"{OP}.2"]
    assert len(disk_stand.files("chunks")) == 2
    assert read_prefix(store) == DATA[:20]


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_release_of_what_others_hold_goes_to_its_end(
    limit: int, disk_stand: DiskStand
) -> None:
    """A step that frees no byte is a step all the same: it does not mean the end."""
    store = disk_stand.store
    count = AT_ONCE + 5  # so many are not released with the end itself
    data = b"".join(b"%08d" % number for number in range(count))
    for name in (OP, "operation-2"):
        put(store, begin(store, name), data)
    do(store, EndOperation(OP, 9.0))
    while (done := store.collect(limit)) != Collected():
        assert 1 <= done.steps <= limit + 1
        assert done.chunks == 0
    left = store._catalog._reader.execute(
        "SELECT count(*), count(key), (SELECT count(*) FROM pieces),"
        " (SELECT sum(refs) FROM chunks) FROM contents"
    ).fetchone()
    assert left == (1, 1, count, count)


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_sweep_looks_at_as_many_files_as_it_is_told(
    limit: int, disk_stand: DiskStand
) -> None:
    """Commits wait for one step of it: each is as long as asked for, the last one aside."""
    for number in range(10):
        (disk_stand.data_dir / "tails" / f"nobody.{number}").write_bytes(b"x")
    store = disk_stand.restart()
    steps: list[int] = []
    while (done := store.collect(limit)).steps:
        steps.append(done.steps)
    assert sum(steps) >= 10
    assert all(step == limit for step in steps[:-1])
    assert max(steps) <= limit
    assert disk_stand.files("tails") == []


def test_tail_past_a_gap_goes_with_its_upload(disk_stand: DiskStand) -> None:
    """A sweep that meets it while the upload has a writer leaves it to the upload's end."""
    do(disk_stand.store, CreateOperation(record()))
    tails = disk_stand.data_dir / "tails"
    (tails / f"{OP}.4").write_bytes(b"past a gap that a power loss left")
    store = disk_stand.restart()
    writer = store.open_writer(KEY)
    writer.append(DATA[:3])
    collect_all(store)
    assert disk_stand.files("tails") == [f"{OP}.0", f"{OP}.4"]
    store.close()  # which is not a clean end, then
    disk_stand.store = store = disk_stand.open()
    collect_all(store)
    assert disk_stand.files("tails") == [f"{OP}.0"]
    (disk_stand.data_dir / "tails" / f"{OP}.4").write_bytes(b"again")
    store.sweep()
    store.open_writer(KEY)
    collect_all(store)
    assert disk_stand.files("tails") == [f"{OP}.0", f"{OP}.4"]
    do(store, EndOperation(OP, 1.0))
    assert disk_stand.files("tails") == []


def test_sweep_spares_a_writer_whose_operation_is_not_created_yet(
    disk_stand: DiskStand,
) -> None:
    """Creation may be on its way while the sweep goes by."""
    store = disk_stand.restart()
    writer = store.open_writer(KEY)
    seals = writer.append(DATA[:20])
    collect_all(store)
    do(store, CreateOperation(record()), *[seal.run() for seal in seals])
    assert read_prefix(store) == DATA[:20]


def test_clean_end_needs_no_sweep(disk_stand: DiskStand) -> None:
    """Only an unclean end, or a failure, can leave orphans."""
    tails = disk_stand.data_dir / "tails"
    disk_stand.store.close()
    disk_stand.store = disk_stand.open()
    collect_all(disk_stand.store)
    disk_stand.store.close()
    (tails / "nobody.0").write_bytes(b"x")
    disk_stand.store = disk_stand.open()
    collect_all(disk_stand.store)
    assert disk_stand.files("tails") == ["nobody.0"]
    collect_all(disk_stand.restart())
    assert disk_stand.files("tails") == []


def test_unsynced_work_needs_a_sweep(tmp_path: Path) -> None:
    """durability=process ends cleanly without a sync: removals may have come undone."""

    def start(durability: Durability) -> list[str]:
        store = open_store(tmp_path / "data", durability=durability)
        collect_all(store)
        store.close()
        return os.listdir(tmp_path / "data" / "tails")

    cases: list[tuple[Durability, list[str]]] = [
        ("disk", ["nobody.0"]),
        ("process", []),
    ]
    for first, left in cases:
        start("disk")
        start(first)
        (tmp_path / "data" / "tails" / "nobody.0").write_bytes(b"x")
        assert start("disk") == left


def test_conflict_after_publishing_leaves_no_chunk(disk_stand: DiskStand) -> None:
    """A chunk published for a submission that was undone is swept."""
    writer = begin(disk_stand.store)
    writer.append(DATA[:5])
    seals = [seal.run() for seal in writer.finish()]
    wrong = FreezeContent(KEY, Content(5, digest=digest_of(b"wrong")))
    assert conflicts(disk_stand.store, *seals, wrong)
    assert len(disk_stand.files("chunks")) == 1
    collect_all(disk_stand.store)
    assert disk_stand.files("chunks") == []
    do(disk_stand.store, *seals)
    assert read_prefix(disk_stand.store) == DATA[:5]


def test_chunk_of_an_undone_submission_is_not_shared(disk_stand: DiskStand) -> None:
    """An undone publication left a link to a tail that goes on; an equal chunk replaces it."""
    writer = begin(disk_stand.store)
    writer.append(DATA[:5])
    seals = [seal.run() for seal in writer.finish()]
    wrong = FreezeContent(KEY, Content(5, digest=digest_of(b"wrong")))
    assert conflicts(disk_stand.store, *seals, wrong)
    content = store_content(disk_stand.store, DATA[:5], "other")
    put(disk_stand.store, disk_stand.store.open_writer(KEY), b"more")
    assert read_content(disk_stand.store, content) == DATA[:5]
    assert read_prefix(disk_stand.store) == DATA[:5] + b"more"


# Failures of the catalog.


def test_full_catalog_undoes_the_batch(
    disk_stand: DiskStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a commit fails nothing of the batch was done, and it can be done later (G8)."""

    def fail(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    writer = begin(disk_stand.store)
    seals = [seal.run() for seal in writer.append(DATA[:20])]
    with monkeypatch.context() as patch:
        patch.setattr(disk_stand.disk, "commit", fail)
        with pytest.raises(StorageError):
            disk_stand.store.apply([seals, [SetMeta("a", "b")]])
    assert disk_stand.store.meta("a") is None
    assert disk_stand.store.sealed_content(KEY).length == 0
    do(disk_stand.store, *seals, SetMeta("a", "b"))
    assert read_prefix(disk_stand.store) == DATA[:20]
    assert len(disk_stand.files("tails")) == 1


def test_store_closes_on_a_full_disk(
    disk_stand: DiskStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a server is not spoilt by what cannot be noted; a sweep makes up for it."""

    def fail(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    collect_all(disk_stand.store)
    with monkeypatch.context() as patch:
        patch.setattr(disk_stand.disk, "commit", fail)
        disk_stand.store.close()
    (disk_stand.data_dir / "tails" / "nobody.0").write_bytes(b"x")
    disk_stand.store = disk_stand.open()
    collect_all(disk_stand.store)
    assert disk_stand.files("tails") == []


def test_distrust_survives_a_catalog_that_fails_as_well(
    disk_stand: DiskStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails a sync fails the note of it; this process remembers."""

    def fail(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    writer = begin(disk_stand.store)
    (seal,) = writer.append(DATA[:8])
    disk_stand.fail_next_sync()
    with monkeypatch.context() as patch:
        patch.setattr(disk_stand.disk, "commit", fail)
        with pytest.raises(StorageError):
            seal.run()
    writer.close()
    assert disk_stand.store.offset(KEY) == 0
    assert disk_stand.store.open_writer(KEY).offset == 0


def test_reads_of_a_closed_store_are_storage_errors(tmp_path: Path) -> None:
    """SQLite's errors do not leak through the port."""
    store = open_store(tmp_path / "data")
    store.close()
    with pytest.raises(StorageError):
        store.operation(OP)


# Size does not matter.


def test_start_does_not_look_at_operations(tmp_path: Path) -> None:
    """Opening costs the same with any number of unfinished uploads."""
    store = open_store(tmp_path / "data", disk=FaultyDisk())
    creations = [CreateOperation(record(f"op{n}", expires_at=n)) for n in range(20_000)]
    do(store, *creations)
    writer = store.open_writer(request_key(OperationId("op7")))
    writer.append(b"data")
    store.close()
    began = time.monotonic()
    store = open_store(tmp_path / "data", disk=FaultyDisk())
    assert store.expiring(3) == [(0.0, "o:op0"), (1.0, "o:op1"), (2.0, "o:op2")]
    assert store.offset(request_key(OperationId("op7"))) == 4
    took = time.monotonic() - began
    store.close()
    assert took < 1.0


@pytest.mark.parametrize(
    "query",
    [
        "SELECT expires_at, 'o:' || id FROM operations ORDER BY expires_at LIMIT 5",
        "SELECT expires_at FROM files WHERE expires_at IS NOT NULL ORDER BY expires_at",
        "SELECT id FROM operations WHERE state = 'done' AND id > 'a' ORDER BY id LIMIT 5",
        "SELECT digest, length FROM chunks WHERE refs = 0 LIMIT 5",
        "SELECT digest FROM recipes WHERE refs = 0 ORDER BY digest LIMIT 5",
        "SELECT cid, moved_below FROM contents WHERE key IS NULL LIMIT 1",
    ],
)
def test_query_needs_no_scan_and_no_sort(disk_stand: DiskStand, query: str) -> None:
    """What is asked again and again is answered from an index."""
    connection = sqlite3.connect(disk_stand.data_dir / "catalog.sqlite3")
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    connection.close()
    assert len(plan) == 1
    assert "INDEX" in plan[0]
    assert "TEMP B-TREE" not in plan[0]


def test_stalled_uploads_cost_little(disk_stand: DiskStand) -> None:
    """10,000 stalled writers are a descriptor and a few KiB each (promise 5)."""
    writers = []
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(100):
        writer = disk_stand.store.open_writer(request_key(OperationId(f"op{number}")))
        writer.append(DATA[:3])
        writers.append(writer)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / len(writers) < 4096
