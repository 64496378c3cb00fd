"""Backups and restoring: what is copied, what happens meanwhile, and what a crash leaves."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.store.crashes.power import Platter, Remains, some
from tests.store.crashes.recording import (
    Note,
    Recording,
    SyncDirectory,
    SyncEverything,
    SyncFile,
)
from tests.store.helpers import (
    CHUNK,
    FaultyDisk,
    begin,
    collect_all,
    do,
    file_record,
    freeze,
    make_durable,
    put,
    read_content,
    set_part_chunks,
    store_content,
)
from trioresume.errors import (
    FormatVersionUnsupported,
    StorageError,
    StorageFull,
    StoreLocked,
)
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.file_system.disk_io import Descriptor
from trioresume.store.keeper.backup import Backup
from trioresume.store.keeper.backup_directory import BackupDirectory, Generation
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.keeper.restore import Restore
from trioresume.store.port import (
    Content,
    EndOperation,
    ForgetOperation,
    HoldBack,
    OperationId,
    PublishFile,
    RecordResponse,
    RemoveFile,
    SetState,
    StoredResponse,
    request_key,
)

DATA = b"chunk 0 chunk 1 chunk 2 end"
UPLOAD = OperationId("upload")
KEY = request_key(UPLOAD)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path) -> Iterator[DiskStore]:
    store = open_store(data_dir, chunk_size=CHUNK, disk=FaultyDisk())
    yield store
    store.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[BackupDirectory]:
    with closing(BackupDirectory.to_write(tmp_path / "backups", FaultyDisk())) as made:
        yield made


def publish(store: DiskStore, name: str, data: bytes) -> None:
    content = store_content(store, data, f"op-{name}")
    do(store, PublishFile(file_record(name, content)))
    do(store, ForgetOperation(OperationId(f"op-{name}")))


def back_up(
    data_dir: Path,
    directory: BackupDirectory,
    meanwhile: Callable[[], None] = lambda: None,
    *,
    links: bool = True,
) -> Generation:
    """A backup; *meanwhile* happens between the instant of the catalog and the rest."""
    backup = Backup(data_dir, directory, links=links)
    list(backup.fill())
    with closing(backup.take()) as steps:
        next(steps)  # the directory is there
        next(steps)  # the catalog is copied
        meanwhile()
        list(steps)
    assert not backup.copied.missing
    return backup.publish()


def restore(directory: BackupDirectory, data_dir: Path) -> DiskStore:
    """The restored store, which nothing is wrong with."""
    generation = directory.find(None)
    list(Restore(directory, generation, data_dir, disk=FaultyDisk()).run())
    with Inventory(data_dir) as inventory:
        assert list(inventory.verify()) == []
    return open_store(data_dir, chunk_size=CHUNK, disk=FaultyDisk())


def damages(path: str | Path) -> list[str]:
    with Inventory(path) as inventory:
        return [str(damage) for damage in inventory.verify()]


def pool(directory: BackupDirectory) -> set[str]:
    root = Path(directory.path, "chunks")
    return {path.name for path in root.rglob("*") if path.is_file()}


# What is copied.


@pytest.mark.parametrize("links", [True, False])
def test_files_and_uploads_come_back(
    store: DiskStore,
    data_dir: Path,
    directory: BackupDirectory,
    tmp_path: Path,
    links: bool,
) -> None:
    """A file, and an upload with sealed chunks and a tail, at the offset it had."""
    publish(store, "file", DATA)
    writer = begin(store, UPLOAD)
    put(store, writer, DATA[:20])
    make_durable(store, writer)
    writer.close()
    generation = back_up(data_dir, directory, links=links)
    assert damages(generation.path) == []
    with closing(restore(directory, tmp_path / "restored")) as restored:
        file = restored.file(None, "file")
        assert file is not None
        assert read_content(restored, file.content) == DATA
        assert restored.offset(KEY) == 20
        writer = restored.open_writer(KEY)
        put(restored, writer, DATA[20:])
        frozen = freeze(restored, KEY, writer)
        assert read_content(restored, frozen.content) == DATA


def test_second_backup_shares_the_chunks(
    store: DiskStore, data_dir: Path, directory: BackupDirectory
) -> None:
    """Only what is new is copied; what only removed generations need goes with them."""
    publish(store, "one", DATA)
    first = back_up(data_dir, directory)
    before = pool(directory)
    publish(store, "two", b"other  1other  2")
    do(store, RemoveFile(None, "one"))
    collect_all(store)
    second = back_up(data_dir, directory)
    assert before < pool(directory)
    assert len(pool(directory)) == len(before) + 2
    assert damages(first.path) == damages(second.path) == []
    assert directory.prune(1) == [first.name]
    assert len(pool(directory)) == 2
    assert damages(directory.path) == []
    assert [each.name for each in directory.generations()] == [second.name]


def test_numbers_order_the_backups_not_dates(
    store: DiskStore,
    data_dir: Path,
    directory: BackupDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that was ahead does not make the next backup the oldest."""
    with monkeypatch.context() as patch:
        patch.setattr("time.gmtime", lambda: (2099, 1, 1, 0, 0, 0, 0, 0, 0))
        first = back_up(data_dir, directory)
    second = back_up(data_dir, directory)
    assert first.name > "000001-2099"
    assert directory.find(None) == second
    assert directory.find("1") == first
    with pytest.raises(StorageError, match="no backup called 3"):
        directory.find("3")


@pytest.mark.parametrize("durability", ["disk", "process"])
def test_bytes_without_a_recorded_offset_need_a_proof(
    data_dir: Path, directory: BackupDirectory, tmp_path: Path, durability: str
) -> None:
    """With ``process`` no offset is recorded, and the accepted bytes are announced."""
    disk = FaultyDisk(durable=durability == "disk")
    with closing(open_store(data_dir, chunk_size=CHUNK, disk=disk)) as store:
        writer = begin(store, UPLOAD)
        put(store, writer, DATA[:20])
        back_up(data_dir, directory)
        writer.close()
    with closing(restore(directory, tmp_path / "restored")) as restored:
        assert restored.offset(KEY) == 20


def test_unsynced_chunk_is_synced_before_the_backup_has_its_name(
    data_dir: Path, directory: BackupDirectory
) -> None:
    """A backup that lost its power leaves chunks, and the next one believes them."""
    steps: list[tuple[str, int]] = []

    class Noting(FaultyDisk):
        def sync_data(self, file: Descriptor) -> None:
            steps.append(("synced", os.fstat(file.fileno()).st_ino))

        def link(self, source: str, target: str) -> None:
            super().link(source, target)
            if not target.endswith(".new"):
                steps.append(("named", os.stat(target).st_ino))

        def replace(self, source: str, target: str) -> None:
            super().replace(source, target)
            steps.append(("named", os.stat(target).st_ino))

    disk = FaultyDisk(durable=False)
    with closing(open_store(data_dir, chunk_size=CHUNK, disk=disk)) as store:
        publish(store, "one", DATA)
        backup = Backup(data_dir, directory, disk=Noting())
        list(backup.fill())
    chunks = list(Path(directory.path, "chunks").rglob("1e20*"))
    assert len(chunks) == 4
    for path in chunks:
        inode = path.stat().st_ino
        assert path.stat().st_nlink == 2  # a link
        assert steps.index(("synced", inode)) < steps.index(("named", inode))


def test_bytes_that_are_held_back_do_not_count(
    store: DiskStore, data_dir: Path, directory: BackupDirectory, tmp_path: Path
) -> None:
    """Half of a patch that counts as a whole or not at all is not in the backup."""
    writer = begin(store, UPLOAD)
    put(store, writer, DATA[:10])
    make_durable(store, writer)
    do(store, HoldBack(KEY, 10))
    writer.append(DATA[10:14])
    back_up(data_dir, directory)
    writer.close()
    with closing(restore(directory, tmp_path / "restored")) as restored:
        assert restored.offset(KEY) == 10


# What happens meanwhile.


def grow(store: DiskStore) -> None:
    writer = store.open_writer(KEY)
    put(store, writer, DATA[11:13])


def seal(store: DiskStore) -> None:
    writer = store.open_writer(KEY)
    put(store, writer, DATA[11:20])


def finish(store: DiskStore) -> None:
    writer = store.open_writer(KEY)
    put(store, writer, DATA[11:])
    frozen = freeze(store, KEY, writer)
    do(store, frozen, SetState(UPLOAD, OperationState.COMPLETE))


def end(store: DiskStore) -> None:
    do(store, EndOperation(UPLOAD, 9e9))


def forget(store: DiskStore) -> None:
    do(store, ForgetOperation(UPLOAD))


@pytest.mark.parametrize("part_chunks", [2, 1024])
@pytest.mark.parametrize("change", [grow, seal, finish, end, forget])
def test_upload_changes_after_the_instant(
    store: DiskStore,
    data_dir: Path,
    directory: BackupDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[DiskStore], None],
    part_chunks: int,
) -> None:
    """Its tail grows, becomes a chunk, or goes: the backup has the offset, or the end."""
    set_part_chunks(monkeypatch.setattr, part_chunks)
    writer = begin(store, UPLOAD)
    put(store, writer, DATA[:11])
    make_durable(store, writer)
    back_up(data_dir, directory, lambda: change(store))
    with closing(restore(directory, tmp_path / "restored")) as restored:
        record = restored.operation(UPLOAD)
        assert record is not None
        if change in (end, forget):
            assert record.state is OperationState.GONE
            return
        offset = restored.offset(KEY)
        assert offset >= 11
        assert read_prefix(restored, offset) == DATA[:offset]


def test_upload_that_is_finished_and_released_while_chunks_are_looked_at(
    store: DiskStore, data_dir: Path, directory: BackupDirectory, tmp_path: Path
) -> None:
    """With many chunks that takes long, and nothing tells any more where its bytes are."""
    publish(store, "file", b"other  1other  2")
    writer = begin(store, UPLOAD)
    put(store, writer, DATA[:11])
    make_durable(store, writer)
    backup = Backup(data_dir, directory)
    list(backup.fill())

    def release() -> None:
        backup.on_progress = None
        finish(store)
        body = Content(0, inline=b"")
        response = StoredResponse(status=201, fields=Fields(), body=body)
        do(store, RecordResponse(UPLOAD, response, 9e9, keep_content=False))

    backup.on_progress = release
    list(backup.take())
    backup.publish()
    with closing(restore(directory, tmp_path / "restored")) as restored:
        assert restored.offset(KEY) == 11
        assert read_prefix(restored, 11) == DATA[:11]


def read_prefix(store: DiskStore, length: int) -> bytes:
    with closing(store.open_prefix(KEY, length)) as reader:
        data = b""
        while len(data) < length:
            data += reader.read(len(data), length - len(data))
        return data


def test_chunk_that_is_collected_before_the_hold_is_no_loss(
    store: DiskStore, data_dir: Path, directory: BackupDirectory
) -> None:
    """What is deleted during the first part is not in the catalog of the second."""
    publish(store, "one", DATA)
    publish(store, "two", b"other  1other  2")
    backup = Backup(data_dir, directory)
    with closing(backup.fill()) as steps:
        next(steps)
        do(store, RemoveFile(None, "one"))
        do(store, RemoveFile(None, "two"))
        collect_all(store)
        list(steps)
    list(backup.take())
    assert not backup.copied.missing
    assert damages(backup.publish().path) == []


def test_missing_chunk_is_named_and_the_rest_is_kept(
    store: DiskStore, data_dir: Path, directory: BackupDirectory
) -> None:
    """Damage does not keep what is whole from being backed up."""
    publish(store, "one", DATA)
    publish(store, "two", b"other  1other  2")
    lost = next(path for path in (data_dir / "chunks").rglob("1e20*"))
    lost.unlink()
    backup = Backup(data_dir, directory)
    list(backup.fill())
    list(backup.take())
    generation = backup.publish()
    assert backup.copied.missing == [lost.name]
    assert any(lost.name in damage for damage in damages(generation.path))


class FailingReads(FaultyDisk):
    """A disk on which a file cannot be read."""

    broken = ""

    def copy(self, source: str, target: str, length: int | None = None) -> None:
        if source == self.broken:
            raise OSError(5, "Input/output error", source)
        super().copy(source, target, length)

    def clone(self, source: str, target: str) -> bool:
        return False

    def open(self, path: str, *, write: bool = False) -> Descriptor:
        if path == self.broken:
            raise OSError(5, "Input/output error", path)
        return super().open(path, write=write)


def test_disk_of_the_backup_that_fails_is_no_missing_chunk(
    store: DiskStore, data_dir: Path, tmp_path: Path
) -> None:
    """The same error on the other side: there a chunk is lost, here the command fails."""
    publish(store, "one", DATA)
    disk = FailingReads()
    with closing(BackupDirectory.to_write(tmp_path / "backups", disk)) as directory:
        backup = Backup(data_dir, directory, links=False, disk=disk)
        disk.sync_error = OSError(5, "Input/output error")
        with pytest.raises(StorageError, match="Input/output error"):
            list(backup.fill())
        disk.broken = str(next((data_dir / "chunks").rglob("1e20*")))
        list(backup.fill())
        list(backup.take())
        assert backup.copied.missing == [Path(disk.broken).name]


# Who may use a directory, and for what.


def test_no_service_starts_on_a_backup(
    store: DiskStore, data_dir: Path, directory: BackupDirectory
) -> None:
    """It would collect what other generations need."""
    publish(store, "one", DATA)
    generation = back_up(data_dir, directory)
    for path in (generation.path, directory.path):
        with pytest.raises((FormatVersionUnsupported, StoreLocked)):
            open_store(path)
    assert damages(generation.path) == []


def test_directory_with_other_files_is_refused(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(StorageError, match="has other files"):
        BackupDirectory.to_write(tmp_path / "home", FaultyDisk())
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["letter"]
    open_store(data_dir).close()
    with pytest.raises(FormatVersionUnsupported):
        BackupDirectory.to_write(data_dir, FaultyDisk())


def test_one_command_at_a_time_uses_a_directory(directory: BackupDirectory) -> None:
    for opened in (BackupDirectory.to_write, BackupDirectory.to_read):
        with pytest.raises(StoreLocked):
            opened(directory.path, FaultyDisk())


def test_restore_goes_nowhere_but_into_an_empty_directory(
    store: DiskStore, data_dir: Path, directory: BackupDirectory, tmp_path: Path
) -> None:
    """Neither over a running service, nor over a stopped one, nor over other files."""
    publish(store, "one", DATA)
    generation = back_up(data_dir, directory)
    with pytest.raises(StoreLocked, match="a service runs"):
        list(Restore(directory, generation, data_dir).run())
    open_store(tmp_path / "stopped").close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter").write_text("dear")
    for name in ("stopped", "other"):
        with pytest.raises(StorageError, match="not empty"):
            list(Restore(directory, generation, tmp_path / name).run())
    with pytest.raises(StorageError, match="no directory"):
        list(Restore(directory, generation, tmp_path / "other" / "letter").run())
    assert damages(data_dir) == []


@pytest.mark.parametrize("space", [0, 10, 30])
def test_full_disk_says_so_and_is_no_loss(
    store: DiskStore,
    data_dir: Path,
    directory: BackupDirectory,
    tmp_path: Path,
    space: int,
) -> None:
    """The backups before it stay, and the next one goes on."""
    publish(store, "one", DATA)
    first = back_up(data_dir, directory)
    publish(store, "two", b"other  1other  2other  3")
    assert isinstance(directory.disk, FaultyDisk)
    directory.disk.space = space
    with pytest.raises(StorageFull, match="No space left"):
        back_up(data_dir, directory, links=False)
    directory.disk.space = None
    assert damages(first.path) == []
    assert damages(back_up(data_dir, directory, links=False).path) == []
    disk = FaultyDisk()
    disk.space = space
    found = directory.find(None)
    with pytest.raises(StorageFull, match="No space left"):
        list(
            Restore(
                directory, found, tmp_path / "restored", links=False, disk=disk
            ).run()
        )
    if (tmp_path / "restored" / "restoring").exists():
        with pytest.raises(StorageError, match="restore again"):
            open_store(tmp_path / "restored")
    restore(directory, tmp_path / "restored").close()


# What a crash leaves.


def scene(root: Path) -> Path:
    """A data directory of a service that was killed, and a first backup of it."""
    data_dir = root / "data"
    store = open_store(data_dir, chunk_size=CHUNK, disk=FaultyDisk())
    publish(store, "one", DATA)
    writer = begin(store, UPLOAD)
    put(store, writer, DATA[:20])
    make_durable(store, writer)
    writer.close()
    with closing(BackupDirectory.to_write(root / "backups", FaultyDisk())) as directory:
        back_up(data_dir, directory)
    publish(store, "two", b"other  1other  2")
    do(store, RemoveFile(None, "one"))
    collect_all(store)
    store.close()
    return data_dir


def crashes(
    recording: Recording, platter: Platter, draw: random.Random, share: float
) -> Iterator[Remains]:
    """What the loss of power may leave, before a *share* of the syncs and at the end."""
    barriers = (SyncFile, SyncDirectory, SyncEverything)
    for call in [*recording.calls, None]:
        if call is None or (isinstance(call, barriers) and draw.random() < share):
            yield from some(platter, 3, draw)
        if call is not None and not isinstance(call, Note):
            platter.play(call)


@pytest.mark.parametrize("links", [True, False])
def test_power_loss_leaves_the_earlier_backups_and_the_new_one_whole_or_not(
    ram: Path, draw: random.Random, links: bool
) -> None:
    """At any step of a backup that also removes the first one; the next one works."""
    root = ram / "world"
    root.mkdir()
    data_dir = scene(root)
    recording = Recording(root)
    recording.clones = False
    platter = Platter(root, recording.adopt)
    with recording.watching():
        with closing(BackupDirectory.to_write(root / "backups", recording)) as made:
            back_up(data_dir, made, links=links)
            made.prune(1)
    for left in crashes(recording, platter, draw, 0.15):
        crashed = ram / "crashed"
        crashed.mkdir()
        left.put_into(crashed)
        with closing(
            BackupDirectory.to_write(crashed / "backups", FaultyDisk())
        ) as found:
            generations = found.generations()
            assert generations
            for generation in generations:
                assert damages(generation.path) == []
            assert damages(back_up(crashed / "data", found).path) == []
            found.prune(1)
            assert damages(found.path) == []
        shutil.rmtree(crashed)


def test_power_loss_leaves_half_a_restore_that_no_service_takes(
    ram: Path, draw: random.Random
) -> None:
    """It is refused until the restore was run again, or it is whole."""
    root = ram / "world"
    root.mkdir()
    scene(root)
    recording = Recording(root)
    platter = Platter(root, recording.adopt)
    with recording.watching():
        with closing(
            BackupDirectory.to_read(root / "backups", FaultyDisk())
        ) as backups:
            run = Restore(
                backups, backups.find(None), root / "restored", disk=recording
            )
            list(run.run())
    refused = 0
    for left in crashes(recording, platter, draw, 0.5):
        crashed = ram / "crashed"
        crashed.mkdir()
        left.put_into(crashed)
        restored = crashed / "restored"
        with closing(
            BackupDirectory.to_read(crashed / "backups", FaultyDisk())
        ) as backups:
            try:
                open_store(restored, chunk_size=CHUNK, disk=FaultyDisk()).close()
            except StorageError:
                refused += 1
                restore(backups, restored).close()
            else:
                with Inventory(restored) as inventory:
                    names = [file.name for file in inventory.files()]
                assert names in ([], ["one"])  # before the first step, or whole
        shutil.rmtree(crashed)
    assert refused
