"""Uploads leave the catalog its space (G8)."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from trioresume.errors import StorageFull
from trioresume.store.disk import open_store
from trioresume.store.port import ContentKey
from trioresume.store.room import HEADROOM, Room

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
    room = Room("anywhere")
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
        Room("anywhere", min_free).take(1)
    set_free(kept - HEADROOM + 1)
    Room("anywhere", min_free).take(1)


def test_the_disk_is_looked_at_once_in_a_mebibyte(
    set_free: Callable[[int], None],
) -> None:
    """A look is cheap, but not free; what others write meanwhile is seen in time."""
    set_free(16 * MIB)
    room = Room("anywhere")
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
    room = Room("anywhere")
    room.take(1)
    set_free(0)
    room.take(20 * MIB - 1)
    with pytest.raises(OSError):
        room.take(1)
