"""The disk space that is kept for releasing things, and for other programs.

Deleting, cancelling and expiring change the catalog before they free anything, and changes
need space: the write-ahead log grows before anything shrinks. If uploads could take the last
byte, nothing could be deleted, expired or even started any more until somebody made space by
hand. So writes to tails fail a little before the disk is full, with the same error.

New records fail at the same limit: a million empty uploads with long heads take gigabytes.

On a large disk the limit is much higher. Other programs that write to the disk, such as
a log or a database, must not fail because of uploads.

Those programs do not stop before the disk is full. So there is also a *reserve*: a file of a
few MiB beside the catalog. It is removed when the catalog cannot grow, and made again when
there is space. In between nothing may be added: the freed space is for changes that release
something.
"""

from __future__ import annotations

import errno
import os
import shutil

from trioresume.store.file_system.disk_io import Disk

__all__ = ["HEADROOM", "RESERVE_SIZE", "FreeSpace"]

HEADROOM = 8 * 1024 * 1024
"""Bytes that stay free: 4 MiB of log up to SQLite's checkpoint, and as much for tables."""

RESERVE_SIZE = 4 * 1024 * 1024
"""Bytes. A release takes about ten pages of SQLite's log. While the reserve is spent, SQLite
starts the log from the beginning again after a hundred pages."""

_LARGEST_SHARE = 20
"""At most a twentieth of the disk is left to others, so that small disks can be used, too."""

_LOOK_EVERY = 1024 * 1024
_LOOK_LEAST = 64 * 1024 * 1024
"""How many bytes may be written between two looks at the disk: the first number, which is
well below the space that stays free, or a sixteenth of the free space, up to the second."""

_LEAST_FREE = 8 * 1024 * 1024
"""The reserve is made only if so many bytes are free."""

_SCARCE = 1024 * 1024
"""With fewer free bytes, opening a catalog may fail."""


class FreeSpace:
    """Watches the free space of the file system that holds the directory *path*.

    *min_free* bytes must stay free, or a twentieth of the disk if that is less. The reserve
    is the file ``reserve`` in the directory, of *reserve* bytes. With 0 there is no file.
    """

    __slots__ = (
        "_disk",
        "_held",
        "_left",
        "_min_free",
        "_path",
        "_reserve",
        "_size",
        "is_spent",
    )

    def __init__(
        self, path: str, disk: Disk, *, min_free: int = 0, reserve: int = 0
    ) -> None:
        self._path = path
        self._disk = disk
        self._min_free = min_free
        self._left = 0
        self._reserve = os.path.join(path, "reserve")
        self._size = reserve
        self._held = 0
        """The bytes that the reserve has now. They count as free space."""
        self.is_spent = False
        """Whether the reserve was removed, or could not be made."""

    def look_again(self) -> None:
        """Look at the disk at the next :meth:`take`, because it was full elsewhere."""
        self._left = 0

    def take(self, size: int) -> None:
        """Claim *size* bytes, for content or for a record.

        Raises :class:`OSError` (ENOSPC) if too few bytes are free. Other programs may write
        to the disk, too, so this is a measurement and not a reservation.
        """
        if size > self._left:
            disk = shutil.disk_usage(self._path)
            others = min(self._min_free, disk.total // _LARGEST_SHARE)
            free = disk.free + self._held - max(HEADROOM, others)
            if free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            until = max(_LOOK_EVERY, min(free // 16, _LOOK_LEAST))
            self._left = max(size, min(free, until))
        self._left -= size

    # The reserve.

    def open_reserve(self) -> None:
        """Find or make the reserve, or remove it at once if the disk is full."""
        if self._size == 0:
            return
        try:
            self._held = os.stat(self._reserve).st_size
        except FileNotFoundError:
            self._held = 0
        if self._held != self._size or self._free() < _SCARCE:
            self.spend()
            self.restore()

    def spend(self) -> bool:
        """Remove the reserve; return whether it existed."""
        held, self._held = self._held, 0
        self.is_spent = self._size > 0
        self._disk.unlink(self._reserve)
        return held > 0

    def restore(self) -> bool:
        """Make the reserve again if there is space for it; return whether it exists."""
        if self._free() >= _LEAST_FREE:
            try:
                self._disk.allocate(self._reserve, self._size)
            except OSError:
                return False  # somebody else took the space first
            self._held = self._size
            self.is_spent = False
        return not self.is_spent

    def _free(self) -> int:
        return shutil.disk_usage(self._path).free
