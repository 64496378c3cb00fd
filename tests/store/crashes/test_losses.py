"""What a loss leaves, and what the store believes of it afterwards.

A loss takes bytes that were not synced and may leave the lengths of files. It needs no
reboot: a file system can be shut down, or detached and mounted again.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    DiskStand,
    FaultyDisk,
    begin,
    do,
    downgrade,
    make_durable,
    put,
    read_content,
    read_prefix,
    store_content,
)
from trioresume.errors import ChunkCorrupt, ContentLost, StorageFull
from trioresume.store.disk import start as start_module
from trioresume.store.disk.tail_files import (
    PROOF,
    Proof,
    TailFiles,
    pack_proof,
    parse_proof,
)
from trioresume.store.disk.unfinished import Epoch
from trioresume.store.disk_store import DiskStore, Durability, open_store
from trioresume.store.file_system.data_dir import boot_id, mount_id
from trioresume.store.file_system.disk_io import Disk
from trioresume.store.port import Content, HoldBack, OperationId, request_key
from trioresume.store.port.recipes import digest_of

DATA = bytes(range(65, 91)) * 2


# Chunks that nothing synced.


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """What makes the store believe in a mount of its directory."""

    def set_mount(name: str | None) -> None:
        monkeypatch.setattr(start_module, "mount_id", lambda path: name)

    return set_mount


def _unsynced(tmp_path: Path) -> tuple[Content, Path]:
    """What a store with durability=process leaves: a file and a part of an upload."""
    store = open_store(tmp_path / "data", chunk_size=CHUNK, durability="process")
    content = store_content(store, DATA[:20], "whole")
    put(store, begin(store), DATA[:20])
    store.close()
    name = digest_of(DATA[8:16]).hex()
    return content, tmp_path / "data" / "chunks" / name[4:6] / name


@pytest.mark.parametrize("durability", ["disk", "process"])
@pytest.mark.parametrize("later", ["another mount", None])
def test_unsynced_chunk_that_was_lost_is_not_believed(
    tmp_path: Path,
    mount: Callable[[str | None], None],
    later: str | None,
    durability: Durability,
) -> None:
    """Zeros under its name are damage, and an upload that has them does not go on."""
    mount(None if later is None else "a mount")
    content, path = _unsynced(tmp_path)
    path.write_bytes(bytes(8))
    mount(later)
    for _ in range(2):  # the second start knows no more than the first
        opened = open_store(tmp_path / "data", chunk_size=CHUNK, durability=durability)
        with closing(opened) as store:
            with pytest.raises(ChunkCorrupt, match=path.name):
                read_content(store, content)
            with pytest.raises(ContentLost):
                store.offset(KEY)
            with pytest.raises(ContentLost):
                store.open_writer(KEY)
    with closing(open_store(tmp_path / "data", chunk_size=CHUNK)) as store:
        store_content(store, DATA[:20], "again")
        assert read_content(store, content) == DATA[:20]
        assert store.offset(KEY) == 20


def test_unsynced_chunks_that_survived_are_believed(
    tmp_path: Path, mount: Callable[[str | None], None]
) -> None:
    """Proven by their names after a new mount; without a look in the same one."""
    mount("a mount")
    content, _ = _unsynced(tmp_path)
    mount("another mount")
    with closing(open_store(tmp_path / "data", chunk_size=CHUNK)) as store:
        assert read_content(store, content) == DATA[:20]
        assert store.offset(KEY) == 20


def test_chunks_of_the_same_mount_are_not_read_to_be_believed(
    tmp_path: Path, mount: Callable[[str | None], None]
) -> None:
    """A killed process loses nothing; a start in disk mode syncs what it left."""
    mount("a mount")
    content, _ = _unsynced(tmp_path)
    with closing(
        open_store(tmp_path / "data", chunk_size=CHUNK, durability="process")
    ) as store:
        assert read_content(store, content) == DATA[:20]
        assert not in_doubt(store)
    open_store(tmp_path / "data", chunk_size=CHUNK).close()
    mount("another mount")
    with closing(open_store(tmp_path / "data", chunk_size=CHUNK)) as store:
        assert not in_doubt(store)


def in_doubt(store: DiskStore) -> bool:
    doubts = store._chunks.doubts
    assert doubts is not None
    return doubts.any_unsynced


def test_mount_is_told_from_others(tmp_path: Path) -> None:
    """Where the system can tell mounts apart the answer does not change by itself."""
    assert mount_id(str(tmp_path)) == mount_id(str(tmp_path))
    if mount_id("/proc") is not None:
        assert mount_id("/proc") != mount_id(str(tmp_path))


# Tails and their proofs.


def test_zeros_within_a_tail_are_not_believed(disk_stand: DiskStand) -> None:
    """A length survives and bytes in the middle do not: only the proof can tell."""
    put(disk_stand.store, begin(disk_stand.store), DATA[:23])
    tail = disk_stand.data_dir / "tails" / f"{KEY}.2"
    tail.write_bytes(DATA[16:18] + b"\0\0" + DATA[20:23])
    assert disk_stand.restart().offset(KEY) == 16


def test_length_without_a_proof_is_not_believed(disk_stand: DiskStand) -> None:
    """Nor is one with half a proof, or with one of fewer bytes; after a clean end neither."""
    put(disk_stand.store, begin(disk_stand.store), DATA[:20])
    tails = disk_stand.data_dir / "tails"
    with (tails / f"{KEY}.2").open("ab") as tail:
        tail.write(b"not proven")
    disk_stand.store.close()
    disk_stand.store = disk_stand.open()
    assert disk_stand.store.offset(KEY) == 20
    proof = tails / f"{KEY}.2{PROOF}"
    proof.write_bytes(proof.read_bytes()[:-1])
    disk_stand.store.close()
    disk_stand.store = disk_stand.open()
    assert disk_stand.store.offset(KEY) == 16
    put(disk_stand.store, disk_stand.store.open_writer(KEY), DATA[16:])
    assert read_prefix(disk_stand.store) == DATA


def test_proven_bytes_are_not_taken_for_durable(disk_stand: DiskStand) -> None:
    """They are in the page cache: to be announced they have to be synced and recorded."""
    put(disk_stand.store, begin(disk_stand.store), DATA[:23])
    store = disk_stand.restart()
    writer = store.open_writer(KEY)
    assert writer.offset == 23
    flush = writer.flush()
    assert flush is not None
    do(store, flush.run())
    assert disk_stand.restart(power_loss=True).offset(KEY) == 23


def test_what_was_held_back_does_not_count_for_being_proven(
    disk_stand: DiskStand,
) -> None:
    """A proof says that bytes are right, and not that they count (B8)."""
    writer = begin(disk_stand.store)
    put(disk_stand.store, writer, DATA[:19])
    make_durable(disk_stand.store, writer)
    do(disk_stand.store, HoldBack(KEY, 19))
    writer.append(DATA[19:22])
    store = disk_stand.restart()
    assert store.offset(KEY) == 19
    assert store.open_writer(KEY).offset == 19
    assert not (disk_stand.data_dir / "tails" / f"{KEY}.2{PROOF}").exists()


def test_cut_bytes_do_not_come_back_with_their_proof(
    disk_stand: DiskStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off is cut off durably before what follows is believed."""
    writer = begin(disk_stand.store)
    put(disk_stand.store, writer, DATA[:19])
    make_durable(disk_stand.store, writer)
    do(disk_stand.store, HoldBack(KEY, 19))
    writer.append(DATA[19:22])
    store = disk_stand.restart()
    calls: list[str] = []
    for name in ("truncate", "sync_data", "sync_directory", "commit"):
        wrapped = getattr(disk_stand.disk, name)

        def call(*args: object, name: str = name, wrapped: Any = wrapped) -> None:
            calls.append(name)
            wrapped(*args)

        monkeypatch.setattr(disk_stand.disk, name, call)
    store.open_writer(KEY)
    assert calls == ["truncate", "sync_data", "sync_directory", "commit"]


def test_append_without_room_for_a_proof(tmp_path: Path) -> None:
    """Where offsets are announced without a sync, what is not proven is not accepted."""
    for durable in (True, False):
        disk = FaultyDisk(durable=durable)
        data_dir = tmp_path / str(durable)
        with closing(open_store(data_dir, chunk_size=CHUNK, disk=disk)) as store:
            writer = begin(store)
            writer.append(DATA[:3])
            with pytest.MonkeyPatch.context() as patch:

                def refuse(path: str, data: bytes) -> None:
                    raise OSError(28, "No space left on device")

                patch.setattr(disk, "overwrite", refuse)
                if durable:
                    writer.append(DATA[3:5])
                else:
                    with pytest.raises(StorageFull):
                        writer.append(DATA[3:5])
            assert writer.offset == (5 if durable else 3)
            put(store, writer, DATA[writer.offset : 20])
            assert read_prefix(store) == DATA[:20]
        with closing(open_store(data_dir, chunk_size=CHUNK, disk=disk)) as store:
            assert store.offset(KEY) == 20


def test_offset_that_is_asked_for_again_and_again_is_proven_once(
    disk_stand: DiskStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's question must not cost a read of the tail each time."""
    put(disk_stand.store, begin(disk_stand.store), DATA[:20])
    store = disk_stand.restart()
    reads = 0
    read = disk_stand.disk.read

    def count(fd: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return read(fd, size)

    monkeypatch.setattr(disk_stand.disk, "read", count)
    for _ in range(5):
        assert store.offset(KEY) == 20
    assert 0 < reads < 6


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("attaches", [True, False])
def test_proof_is_kept_with_the_inode_or_beside_it(
    tmp_path: Path, lost: bool, attaches: bool
) -> None:
    """Where the file system has no attributes a file of its own does the same."""
    disk = Disk(durable=False)
    disk.attaches = attaches and disk.attaches
    with closing(open_store(tmp_path, chunk_size=CHUNK, disk=disk)) as store:
        put(store, begin(store), DATA[:21])
        tail = tmp_path / "tails" / f"{KEY}.2"
        assert tail.with_name(tail.name + PROOF).exists() != disk.attaches
    if lost:
        tail.write_bytes(DATA[16:18] + b"\0" + DATA[19:21])
    with closing(open_store(tmp_path, chunk_size=CHUNK, disk=disk)) as store:
        assert store.offset(KEY) == (16 if lost else 21)
        disk.attaches = False  # the rest of the proofs are files
        put(store, store.open_writer(KEY), DATA[store.offset(KEY) : 23])
    with closing(open_store(tmp_path, chunk_size=CHUNK, disk=disk)) as store:
        assert store.offset(KEY) == 23


def test_proof_that_cannot_be_copied_keeps_no_other_from_it(tmp_path: Path) -> None:
    """Without it, the inode still has the proof: that is no reason to fail."""
    refused: list[str] = []

    class Refusing(Disk):
        def overwrite(self, path: str, data: bytes) -> None:
            if path.endswith(PROOF) and not refused:
                refused.append(path)
                raise OSError(errno.ENOSPC, "no room", path)
            super().overwrite(path, data)

    disk = Refusing(durable=False)
    if not disk.attaches:
        pytest.skip("attributes of files are not possible here")
    names = [OP, OperationId("another")]
    keys = [request_key(name) for name in names]
    with closing(open_store(tmp_path, chunk_size=CHUNK, disk=disk)) as store:
        for name in names:
            put(store, begin(store, name), DATA[:21])
    proofs = [tmp_path / "tails" / f"{key}.2{PROOF}" for key in keys]
    assert refused
    assert sorted(map(str, proofs)) == sorted(
        [*refused, *(str(p) for p in proofs if p.exists())]
    )
    with closing(open_store(tmp_path, chunk_size=CHUNK, disk=disk)) as store:
        assert [store.offset(key) for key in keys] == [21, 21]


# Data directories of versions that wrote no proofs.


def _of_an_old_version(
    path: Path, durability: Durability, boot: str
) -> tuple[Content, Path]:
    """A file, and an upload of 20 bytes of which nothing was recorded but two chunks."""
    store = open_store(path, chunk_size=CHUNK, durability=durability)
    content = store_content(store, DATA[:16], "whole")
    writer = begin(store)
    put(store, writer, DATA[:20])
    make_durable(store, writer)
    store.close()
    downgrade(path, 5)
    with closing(sqlite3.connect(path / "catalog.sqlite3")) as connection, connection:
        connection.execute("REPLACE INTO store VALUES ('boot', ?)", (boot,))
        connection.execute("DELETE FROM store WHERE name IN ('mount', 'mount_epoch')")
    for tail in (path / "tails").iterdir():
        if tail.name.endswith(PROOF):
            tail.unlink()
        elif hasattr(os, "removexattr"):
            with suppress(OSError):
                os.removexattr(tail, "user.trioresume.proof")
    name = digest_of(DATA[:8]).hex()
    return content, path / "chunks" / name[4:6] / name


@pytest.mark.parametrize("now", ["disk", "process"])
@pytest.mark.parametrize(
    ("before", "boot", "offset"),
    [("disk", None, 20), ("process", None, 20), ("process", "another boot", 16)],
)
def test_upgrade_takes_back_no_offset(
    tmp_path: Path, before: Durability, boot: str | None, offset: int, now: Durability
) -> None:
    """Without proofs: what was recorded counts, and the lengths of this boot once more."""
    path = tmp_path / "data"
    _of_an_old_version(path, before, boot_id() or "" if boot is None else boot)
    for _ in range(2):
        with closing(open_store(path, chunk_size=CHUNK, durability=now)) as store:
            assert store.offset(KEY) == offset
    with (path / "tails" / f"{KEY}.2").open("ab") as tail:
        tail.write(b"?")  # the length alone is believed no more
    with closing(open_store(path, chunk_size=CHUNK, durability=now)) as store:
        assert store.offset(KEY) == offset


def test_unsynced_chunks_of_an_old_version_are_in_doubt(tmp_path: Path) -> None:
    """That version noted nowhere when a chunk was published."""
    content, chunk = _of_an_old_version(tmp_path / "data", "process", "another boot")
    chunk.write_bytes(bytes(8))
    with closing(open_store(tmp_path / "data", chunk_size=CHUNK)) as store:
        with pytest.raises(ChunkCorrupt, match=chunk.name):
            read_content(store, content)


@pytest.mark.parametrize("durability", ["disk", "process"])
def test_copy_without_attributes_keeps_every_offset(
    tmp_path: Path, durability: Durability
) -> None:
    """As ``cp -r`` and ``tar`` make it, of a data directory that was closed."""
    for number, end in enumerate((20, 23)):
        path = tmp_path / f"data{number}"
        store = open_store(path, chunk_size=CHUNK, durability=durability)
        writer = store.open_writer(KEY) if number else begin(store)
        put(store, writer, DATA[:20] if not number else DATA[20:end])
        make_durable(store, writer)
        store.close()
        shutil.copytree(
            path, tmp_path / f"data{number + 1}", copy_function=shutil.copyfile
        )
        copied = open_store(tmp_path / f"data{number + 1}", durability=durability)
        with closing(copied) as store:
            assert store.offset(KEY) == end
            assert read_prefix(store) == DATA[:end]


def test_half_of_a_proof_proves_nothing() -> None:
    """A power loss may leave any part of it; verification must not call that damage."""
    proof = Proof(3, bytes(range(1, 33)))
    record = pack_proof(proof)
    assert parse_proof(record) == proof
    for end in range(len(record)):
        assert parse_proof(record[:end]) is None
        assert parse_proof(record[:end] + bytes(len(record) - end)) is None
        assert parse_proof(bytes(end) + record[end:]) in (None, proof)
    assert parse_proof(bytes(len(record))) is None


@pytest.mark.parametrize("attaches", [True, False])
def test_proof_of_bytes_that_were_cut_off_is_gone(
    tmp_path: Path, attaches: bool
) -> None:
    """It would hide the next proof, which covers fewer bytes."""
    disk = Disk(durable=False)
    disk.attaches = attaches and disk.attaches
    tails = TailFiles(str(tmp_path), disk, Epoch())
    with closing(tails.create(KEY, 0)) as file:
        os.write(file.fileno(), DATA[:5])
    tails.prove(KEY, 0)
    assert tails.proven(KEY, 0) == 5
    tails.cut(KEY, 0, 3)
    assert tails.proof(KEY, 0) is None
    disk.attaches = False
    tails.prove(KEY, 0)
    assert tails.proven(KEY, 0) == 3
