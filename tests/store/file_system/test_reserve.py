"""Space that is kept for releasing something when the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.store.helpers import OP, record
from trioresume.errors import StorageFull
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.file_system.disk_io import Disk
from trioresume.store.file_system.free_space import FreeSpace
from trioresume.store.port import (
    CreateOperation,
    EndOperation,
    ForgetOperation,
    Mutation,
    OperationId,
    RecordOffset,
    request_key,
    response_key,
)

KIB = 1024
MIB = 1024 * KIB
SIZE = 256 * KIB


class CrowdedDisk(Disk):
    """The catalog cannot grow while *reserve* is there and the disk is ``full``."""

    def __init__(self, reserve: Path) -> None:
        super().__init__(durable=True)
        self.reserve = reserve
        self.full = False

    def commit(self, connection: sqlite3.Connection) -> None:
        if self.full and self.reserve.exists():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        super().commit(connection)


def set_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    usage = SimpleNamespace(total=1024 * MIB, free=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def make_store(tmp_path: Path) -> tuple[DiskStore, CrowdedDisk]:
    disk = CrowdedDisk(tmp_path / "data" / "reserve")
    return open_store(tmp_path / "data", reserve=SIZE, disk=disk), disk


def test_reserve_is_given_up_for_a_release_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G8: what grows does not get it, neither at once nor while it is spent."""
    set_free(monkeypatch, 100 * MIB)
    store, disk = make_store(tmp_path)
    other = CreateOperation(record("other"))
    try:
        assert disk.reserve.stat().st_size == SIZE
        assert store.apply([[CreateOperation(record())]]) == [None]
        disk.full = True
        set_free(monkeypatch, 0)
        batches: list[list[list[Mutation]]] = [
            [[other]],
            [[ForgetOperation(OP)], [other]],
        ]
        for batch in batches:
            with pytest.raises(StorageFull):
                store.apply(batch)
            assert disk.reserve.exists()
        assert store.apply([[EndOperation(OP, 1.0)]]) == [None]
        assert not disk.reserve.exists()
        with pytest.raises(StorageFull):
            store.apply([[other]])
        assert store.apply([[RecordOffset(request_key(OP), 0)]]) == [None]
        assert store.apply([[ForgetOperation(OP)]]) == [None]
        assert not disk.reserve.exists()
        disk.full = False
        set_free(monkeypatch, 100 * MIB)
        assert store.apply([[other]]) == [None]
        assert disk.reserve.stat().st_size == SIZE
    finally:
        store.close()


def test_collection_takes_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes the catalog before it frees anything."""
    store, disk = make_store(tmp_path)
    try:
        disk.full = True
        store.collect(10)
        assert not disk.reserve.exists()
    finally:
        store.close()


class LimitedDisk(Disk):
    """Files may have *room* bytes together, which statvfs does not show."""

    def __init__(self) -> None:
        super().__init__(durable=True)
        self.room = 100 * MIB

    def allocate(self, path: str, size: int) -> None:
        if size > self.room:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        super().allocate(path, size)

    def commit(self, connection: sqlite3.Connection) -> None:
        if self.room == 0:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        super().commit(connection)

    def unlink(self, path: str) -> None:
        if os.path.exists(path) and os.path.basename(path) in ("cushion", "reserve"):
            self.room += os.path.getsize(path)
        super().unlink(path)


def test_cushion_is_for_offsets_and_the_reserve_for_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G8: at a quota which nothing shows, each is given up only for its own changes."""
    set_free(monkeypatch, 100 * MIB)
    disk = LimitedDisk()
    store = open_store(tmp_path / "data", reserve=4 * MIB, disk=disk)
    cushion, reserve = (tmp_path / "data" / name for name in ("cushion", "reserve"))
    offset = RecordOffset(request_key(OP), 0)
    try:
        assert cushion.stat().st_size == MIB
        assert store.apply([[CreateOperation(record())]]) == [None]
        disk.room = 0
        assert store.apply([[offset]]) == [None]
        assert not cushion.exists()
        with pytest.raises(StorageFull):
            store.apply([[CreateOperation(record("other"))]])
        disk.room = 0
        with pytest.raises(StorageFull):
            store.apply([[offset]])
        assert reserve.stat().st_size == 4 * MIB
        assert store.apply([[EndOperation(OP, 1.0)]]) == [None]
        assert not reserve.exists()
        # Content must not take the freed space.
        writer = store.open_writer(response_key(OperationId("another")))
        with pytest.raises(StorageFull):
            writer.append(b"content")
        assert not reserve.exists()
        disk.room = 100 * MIB
        writer.append(b"content")
        writer.close()
        assert reserve.stat().st_size == 4 * MIB
        assert cushion.stat().st_size == MIB
    finally:
        store.close()


def test_content_stops_before_a_limit_that_was_met_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G8: it takes only what was proven to be there, beyond what the catalog may need."""
    set_free(monkeypatch, 100 * MIB)
    disk = LimitedDisk()
    space = FreeSpace(str(tmp_path), disk, reserve=4 * MIB)
    space.open_reserve()
    space.look_again()
    disk.room = 4 * MIB
    space.take_content(MIB)
    disk.room = 4 * MIB - 1
    with pytest.raises(OSError, match="No space left"):
        space.take_content(1)
    assert sorted(os.listdir(tmp_path)) == ["cushion", "reserve"]


def test_reserve_is_not_there_again_if_somebody_took_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for it is told, whether the limit was known before or not."""
    set_free(monkeypatch, 100 * MIB)
    disk = LimitedDisk()
    space = FreeSpace(str(tmp_path), disk, reserve=4 * MIB)
    space.open_reserve()
    space.spend()
    disk.room = 0
    assert not space.restore()
    space.look_again()
    assert space.is_limit_hidden
    assert not space.restore()
    disk.room = 100 * MIB
    assert space.restore()


def test_reserve_counts_for_what_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads stop where they did: the file is a part of what is left to the catalog."""
    set_free(monkeypatch, 100 * MIB)
    store, _disk = make_store(tmp_path)
    try:
        store._space.look_again()
        set_free(monkeypatch, 8 * MIB - SIZE)
        with pytest.raises(StorageFull):
            store.take_room(1)
        set_free(monkeypatch, 8 * MIB - SIZE + 5000)
        store.take_room(5000)
    finally:
        store.close()


def test_reserve_is_given_up_before_a_catalog_is_opened_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G9: a start needs some space, too."""
    store, disk = make_store(tmp_path)
    store.close()
    assert disk.reserve.exists()
    set_free(monkeypatch, 0)
    disk.full = True
    store, _ = make_store(tmp_path)
    store.close()
    assert not disk.reserve.exists()


def test_space_is_taken_where_files_cannot_be_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with a hole would keep nothing."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path = tmp_path / "file"
    Disk(durable=True).allocate(str(path), SIZE + 1)
    assert path.stat().st_size == SIZE + 1
    assert path.stat().st_blocks * 512 >= SIZE


def test_file_that_cannot_be_allocated_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be found by the next start, and taken for what it is not."""
    path = tmp_path / "file"
    with pytest.raises(OSError, match=r"."):
        Disk(durable=True).allocate(str(path), 1 << 62)
    assert not path.exists()
