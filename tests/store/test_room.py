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

    free: int


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes every file system have so many bytes beyond the headroom."""

    def set_free(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(HEADROOM + size))

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


def test_the_disk_is_looked_at_once_in_a_mebibyte(
    set_free: Callable[[int], None],
) -> None:
    """A look is cheap, but not free; what others write meanwhile is seen in time."""
    set_free(100 * MIB)
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
