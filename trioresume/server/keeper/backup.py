"""``backup`` and ``restore``: whether or not a service is running."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from trioresume.errors import CallerError, StorageError
from trioresume.server.keeper.hold import HoldLost, holding
from trioresume.store.file_system.disk_io import Disk
from trioresume.store.keeper.backup import Backup, Copied
from trioresume.store.keeper.backup_directory import BackupDirectory, Generation
from trioresume.store.keeper.restore import Restore

__all__ = ["BackupReport", "backup", "restore"]

ATTEMPTS = 3
"""How often the last part of a backup is tried, if the service ends during it."""
SLICE = 0.2
"""Seconds in a thread, after which cancellation takes effect."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """The result of :func:`backup` or :func:`restore`. Sizes are in bytes."""

    name: str
    """The backup's name in its directory: a number, a hyphen and a date."""
    path: str
    """The backup, or the restored data directory. :class:`Inventory` reads both."""
    chunks: int
    """How many chunks were linked or copied."""
    bytes: int
    """Their size."""
    present: int
    """How many chunks were there already, from earlier backups."""
    tails: int
    """How many ends of unfinished uploads were copied, and…"""
    tail_bytes: int
    """…their size."""
    missing: tuple[str, ...]
    """Chunks that are missing or cannot be read, in hexadecimal. Without them, some of the
    files or uploads are damaged: ``verify`` names them."""
    removed: tuple[str, ...] = ()
    """The names of older backups that were removed."""


async def backup(
    data_dir: str | os.PathLike[str],
    backup_dir: str | os.PathLike[str],
    *,
    keep: int | None = None,
    links: bool = True,
    on_progress: OnProgress | None = None,
) -> BackupReport:
    """Copy *data_dir* as it is at one instant into *backup_dir*, beside earlier backups.

    A service that runs goes on meanwhile. Only chunks that no earlier backup has are copied;
    with *links* they become hard links if both directories are in one file system. If *keep*
    is given, all but the newest *keep* backups are removed in the end. *on_progress* is
    called in a thread with the numbers of chunks that were looked at, and of all chunks.

    If this is cancelled or killed, the earlier backups stay as they are, and the next call
    uses what was copied. Raises :class:`~trioresume.StoreLocked` if another command uses
    *backup_dir*, or a process has *data_dir* and cannot be asked, and
    :class:`~trioresume.StorageError` otherwise.
    """
    if keep is not None and keep < 1:
        raise CallerError("at least one backup must be kept")
    if not (Path(data_dir) / "format").exists():
        raise StorageError(f"{os.fspath(data_dir)} is no data directory of trioresume")
    run = trio.to_thread.run_sync
    directory = await run(BackupDirectory.to_write, backup_dir, Disk(durable=True))
    with closing(directory):
        made = Backup(data_dir, directory, links=links)
        if on_progress is not None:
            made.on_progress = lambda: on_progress(made.looked, made.total)
        await _drive(made.fill())
        generation = await _take(made, data_dir)
        removed = [] if keep is None else await run(directory.prune, keep)
    return _report(generation, generation.path, made.copied, removed)


async def _take(made: Backup, data_dir: str | os.PathLike[str]) -> Generation:
    for attempt in range(1, ATTEMPTS + 1):
        async with holding(data_dir) as hold:
            await _drive(made.take())
            try:
                await hold.confirm()
            except HoldLost:
                if attempt == ATTEMPTS:
                    raise
                continue
        break
    return await trio.to_thread.run_sync(made.publish)


async def restore(
    backup_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    name: str | None = None,
    links: bool = True,
    on_progress: OnProgress | None = None,
) -> BackupReport:
    """Make *data_dir*, which is empty or does not exist, from a backup in *backup_dir*.

    *name* is the backup's name or number; without one it is the newest backup. With *links*
    chunks become hard links if both directories are in one file system and of one owner.
    If this is cancelled or killed, no service can be started on *data_dir*; call it again.

    Raises :class:`~trioresume.StoreLocked` if a service runs on *data_dir*, and
    :class:`~trioresume.StorageError` if it is not empty, if there is no such backup, or if
    the disk failed.
    """
    run = trio.to_thread.run_sync
    directory = await run(BackupDirectory.to_read, backup_dir, Disk(durable=False))
    with closing(directory):
        generation = directory.find(name)
        restored = Restore(directory, generation, data_dir, links=links)
        if on_progress is not None:
            restored.on_progress = lambda: on_progress(restored.looked, restored.total)
        await _drive(restored.run())
    return _report(generation, restored.path, restored.copied, [])


def _report(
    generation: Generation, path: str, copied: Copied, removed: list[str]
) -> BackupReport:
    return BackupReport(
        name=generation.name,
        path=path,
        chunks=copied.chunks,
        bytes=copied.bytes,
        present=copied.present,
        tails=copied.tails,
        tail_bytes=copied.tail_bytes,
        missing=tuple(copied.missing),
        removed=tuple(removed),
    )


async def _drive(steps: Generator[None]) -> None:
    """Take all *steps* in a thread, and check for cancellation between slices of them."""
    with closing(steps):
        while await trio.to_thread.run_sync(partial(_advance, steps)):
            pass


def _advance(steps: Generator[None]) -> bool:
    """Take steps for a while; return whether there are more."""
    end = time.monotonic() + SLICE
    return any(time.monotonic() > end for _ in steps)
