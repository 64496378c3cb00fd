"""The disk space that uploads must leave to the catalog and to other programs.

Deleting is a change of the catalog, and changes need space: the write-ahead log grows
before anything shrinks. If uploads could take the last byte, nothing could be deleted,
expired or even started any more until somebody made space by hand. So writes to tails
fail a little before the disk is full, with the same error.

New records fail at the same limit: a million empty uploads with long heads take gigabytes.

On a large disk the limit is much higher. Other programs that write to the disk, such as
a log or a database, must not fail because of uploads.
"""

from __future__ import annotations

import errno
import os
import shutil

__all__ = ["HEADROOM", "Room"]

HEADROOM = 8 * 1024 * 1024
"""Bytes that stay free: 4 MiB of log up to SQLite's checkpoint, and as much for tables."""

_LARGEST_SHARE = 20
"""At most a twentieth of the disk is left to others, so that small disks can be used, too."""

_LOOK_EVERY = 1024 * 1024
_LOOK_LEAST = 64 * 1024 * 1024
"""How many bytes may be written between two looks at the disk: the first number, which is
well below the space that stays free, or a sixteenth of the free space, up to the second."""


class Room:
    """Watches the free space of the file system that holds *path*.

    *min_free* bytes must stay free, or a twentieth of the disk if that is less.
    """

    __slots__ = ("_left", "_min_free", "_path", "held")

    def __init__(self, path: str, min_free: int = 0) -> None:
        self._path = path
        self._min_free = min_free
        self._left = 0
        self.held = 0
        """Bytes of the reserve file (see reserve.py). They count as free space."""

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
            free = disk.free + self.held - max(HEADROOM, others)
            if free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            until = max(_LOOK_EVERY, min(free // 16, _LOOK_LEAST))
            self._left = max(size, min(free, until))
        self._left -= size
