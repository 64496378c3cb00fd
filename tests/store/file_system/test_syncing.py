"""Directories are synced together: all of them, and several at a time."""

from __future__ import annotations

import threading

import pytest

from trioresume.store.file_system.disk_io import Disk

NAMES = [f"d{number}" for number in range(20)]


class Noting(Disk):
    """Notes what is synced; fails at the names in *broken*."""

    def __init__(self, *broken: str, durable: bool = True) -> None:
        super().__init__(durable=durable)
        self.broken = broken
        self.synced: list[str] = []

    def sync_directory(self, path: str) -> None:
        self.synced.append(path)
        if path in self.broken:
            raise OSError(5, "Input/output error", path)


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 20])
def test_each_directory_is_synced_once(count: int) -> None:
    disk = Noting()
    disk.sync_directories(set(NAMES[:count]))
    assert sorted(disk.synced) == sorted(NAMES[:count])


@pytest.mark.parametrize("at_once", [1, 8])
def test_error_is_raised_when_all_were_tried(at_once: int) -> None:
    """No thread may still be at work when the names are taken back."""
    disk = Noting("d3", "d11")
    disk.syncs_at_once = at_once
    with pytest.raises(OSError, match="Input/output error"):
        disk.sync_directories(NAMES)
    assert sorted(disk.synced) == sorted(NAMES)


def test_several_are_synced_at_a_time() -> None:
    """Each waits for the others: one after the other they would wait in vain."""
    together = threading.Barrier(8)

    class Waiting(Disk):
        def sync_directory(self, path: str) -> None:
            together.wait(10)

    Waiting(durable=True).sync_directories(NAMES[:8])


def test_nothing_is_synced_that_need_not_be_durable() -> None:
    disk = Noting(durable=False)
    disk.sync_directories(NAMES)
    assert disk.synced == []


def test_all_are_synced_where_no_more_threads_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit of processes is reached: that ends no commit, and it skips no directory."""
    disk, start = Noting(), threading.Thread.start
    begun: list[threading.Thread] = []

    def start_two(thread: threading.Thread) -> None:
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    disk.sync_directories(NAMES)
    assert set(disk.synced) == set(NAMES)
