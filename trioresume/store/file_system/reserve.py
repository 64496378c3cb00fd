"""The reserve: a file that keeps disk space for releasing things when the disk is full.

Deleting, cancelling and expiring change the catalog before they free anything, and a
change needs space. Uploads stop before the disk is full (see free_space.py), but a log or a
database on the same disk does not. So a file of a few MiB lies beside the catalog. It is
removed when the catalog cannot grow, and made again when there is space. In between
nothing may be added: the freed space is for changes that release something.
"""

from __future__ import annotations

import os
import shutil

from trioresume.store.file_system.disk_io import Disk

__all__ = ["RESERVE_SIZE", "Reserve"]

RESERVE_SIZE = 4 * 1024 * 1024
"""Bytes. A release takes about ten pages of SQLite's log. While the reserve is spent, SQLite
starts the log from the beginning again after a hundred pages."""

_LEAST_FREE = 8 * 1024 * 1024
"""The file is made only if so many bytes are free."""

_SCARCE = 1024 * 1024
"""With fewer free bytes, opening a catalog may fail."""


class Reserve:
    """The file at *path*, of *size* bytes. With *size* 0 there is no file."""

    def __init__(self, path: str, disk: Disk, size: int) -> None:
        self._path = path
        self._disk = disk
        self._size = size
        self.held = 0
        """The bytes that the file has now."""

    def open(self) -> None:
        """Find or make the file, or remove it at once if the disk is full."""
        if self._size == 0:
            return
        try:
            self.held = os.stat(self._path).st_size
        except FileNotFoundError:
            self.held = 0
        if self.held != self._size or self._free() < _SCARCE:
            self.spend()
            self.restore()

    @property
    def is_spent(self) -> bool:
        return self.held < self._size

    def spend(self) -> bool:
        """Remove the file; return whether it existed."""
        held, self.held = self.held, 0
        self._disk.unlink(self._path)
        return held > 0

    def restore(self) -> bool:
        """Make the file again if there is space for it; return whether it exists."""
        if self._free() >= _LEAST_FREE:
            try:
                self._disk.allocate(self._path, self._size)
            except OSError:
                return False  # somebody else took the space first
            self.held = self._size
        return not self.is_spent

    def _free(self) -> int:
        return shutil.disk_usage(os.path.dirname(self._path)).free
