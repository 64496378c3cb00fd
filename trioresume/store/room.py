"""Space that uploads leave to the catalog and to others.

Deleting is a change of the catalog, and changes need space: the write-ahead log grows
before anything shrinks. If uploads could take the last byte, nothing could be deleted,
expired or even started any more until somebody made space by hand. So tails stop a
little earlier than the disk does, and with the same error.

New records stop there, too: a million empty uploads with long heads are gigabytes.

They stop much earlier where the disk is large: whatever else writes to it, a log or a
database, must not fail because somebody uploaded.
"""

from __future__ import annotations

import errno
import os
import shutil

__all__ = ["HEADROOM", "Room"]

HEADROOM = 8 * 1024 * 1024
"""Bytes that stay free: the log up to SQLite's checkpoint (4 MiB), as much for tables."""

_LARGEST_SHARE = 20
"""What is left to others is at most one part in so many: small disks are of use, too."""

_LOOK_EVERY = 1024 * 1024
_LOOK_LEAST = 64 * 1024 * 1024
"""Bytes written between two looks at the disk: well below what is kept free, or where
there is plenty a sixteenth of it, up to the second."""


class Room:
    """Watches the free space of the file system that holds *path*.

    *min_free* is how many bytes are to stay free, if that is not more than a twentieth.
    """

    __slots__ = ("_left", "_min_free", "_path", "held")

    def __init__(self, path: str, min_free: int = 0) -> None:
        self._path = path
        self._min_free = min_free
        self._left = 0
        self.held = 0
        """Bytes of the space that stays free which a file keeps (see reserve)."""

    def look_again(self) -> None:
        """The disk was full somewhere else: look at it when more is wanted next."""
        self._left = 0

    def take(self, size: int) -> None:
        """Claim *size* bytes, of content or of a record. Raises :class:`OSError` ENOSPC if they are not to be had.

        Others may write to the disk, too: this is a measure, not a reservation.
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
