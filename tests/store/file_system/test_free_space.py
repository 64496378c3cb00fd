"""Uploads leave the catalog its space (G8)."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from trioresume.errors import StorageFull
from trioresume.store.catalog.schema import write_error
from trioresume.store.disk_store import open_store
from trioresume.store.file_system.disk_io import Disk
from trioresume.store.file_system.free_space import HEADROOM, FreeSpace
from trioresume.store.port import ContentKey

MIB = 1024 * 1024


class Usage(NamedTuple):
    """The part of :func:`shutil.disk_usage`'s answer that counts."""

    total: int
    free: int


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes every file system have 1 GiB, and so many bytes free beyond the headroom."""

    def set_free(size: int) -> None:
        disk = Usage(1024 * MIB, HEADROOM + size)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)

    return set_free


def test_the_last_bytes_are_not_given_away(set_free: Callable[[int], None]) -> None:
    """What is beyond the headroom may be taken to the last byte, and not one more."""
    set_free(100)
    room = FreeSpace("anywhere", Disk(durable=True))
    room.take(60)
    room.take(40)
    set_free(0)
    with pytest.raises(OSError) as caught:
        room.take(1)
    assert caught.value.errno == errno.ENOSPC
    set_free(1)
    room.take(1)


@pytest.mark.parametrize(
    ("min_free", "kept"),
    [
        (0, HEADROOM),
        (9 * MIB, 9 * MIB),
        (50 * MIB, 50 * MIB),
        (1 << 40, 1024 * MIB // 20),  # a disk of 1 GiB is of use, too
    ],
)
def test_others_are_left_their_share(
    set_free: Callable[[int], None], min_free: int, kept: int
) -> None:
    """As many bytes as the setting says, a twentieth of the disk at most, and the headroom."""
    set_free(kept - HEADROOM)
    with pytest.raises(OSError):
        FreeSpace("anywhere", Disk(durable=True), min_free=min_free).take(1)
    set_free(kept - HEADROOM + 1)
    FreeSpace("anywhere", Disk(durable=True), min_free=min_free).take(1)


def test_the_disk_is_looked_at_once_in_a_mebibyte(
    set_free: Callable[[int], None],
) -> None:
    """A look is cheap, but not free; what others write meanwhile is seen in time."""
    set_free(16 * MIB)
    room = FreeSpace("anywhere", Disk(durable=True))
    room.take(1)
    set_free(0)
    room.take(MIB - 1)
    with pytest.raises(OSError):
        room.take(1)


def test_a_refused_append_accepts_nothing(
    set_free: Callable[[int], None], tmp_path: Path
) -> None:
    """The offset is what it was, and the writer goes on when there is space."""
    store = open_store(tmp_path / "data")
    writer = store.open_writer(ContentKey("key"))
    set_free(100)
    writer.append(b"before")
    set_free(0)
    with pytest.raises(StorageFull):
        writer.append(bytes(2 * MIB))
    assert writer.offset == 6
    set_free(2 * MIB)
    writer.append(bytes(2 * MIB))
    assert writer.offset == 6 + 2 * MIB
    writer.close()
    store.close()


def test_the_disk_is_looked_at_less_often_while_there_is_plenty(
    set_free: Callable[[int], None],
) -> None:
    set_free(320 * MIB)
    room = FreeSpace("anywhere", Disk(durable=True))
    room.take(1)
    set_free(0)
    room.take(20 * MIB - 1)
    with pytest.raises(OSError):
        room.take(1)


LIMITED = """
import resource, signal, sys
from trioresume.errors import StorageFull
from trioresume.store.disk_store import open_store
from trioresume.store.port import SetMeta

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
try:
    for number in range(100):
        store.apply([[SetMeta(str(number), "x" * 10_000)]])
except StorageFull as exc:
    print(exc)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert store.apply([[SetMeta("after", "there is room again")]]) == [None]
store.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_limit_in_the_catalog_is_a_full_disk(tmp_path: Path) -> None:
    """SQLite calls EFBIG and EDQUOT an I/O error; for a client they are a 507 (G8)."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the disk is full" in done.stdout
    assert not (tmp_path / "data" / "catalog.sqlite3.probe").exists()


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC, errno.EFBIG, errno.EIO])
def test_failed_write_of_the_catalog_is_told_by_a_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Only what is full is called so; a broken disk is not."""
    path = tmp_path / "catalog.sqlite3"
    path.write_bytes(b"page")
    failed = sqlite3.OperationalError("disk I/O error")
    failed.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE

    def fail(fd: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", fail)
    error = write_error(failed, str(path))
    assert isinstance(error, StorageFull) == (code != errno.EIO)
