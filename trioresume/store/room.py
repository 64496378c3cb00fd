"""Space that uploads leave to the catalog, so that a full disk can be emptied again.

Deleting is a change of the catalog, and changes need space: the write-ahead log grows
before anything shrinks. If uploads could take the last byte, nothing could be deleted,
expired or even started any more until somebody made space by hand. So tails stop a
little earlier than the disk does, and with the same error.
"""

from __future__ import annotations

import errno
import os
import shutil

__all__ = ["HEADROOM", "Room"]

HEADROOM = 8 * 1024 * 1024
"""Bytes that stay free: the log up to SQLite's checkpoint (4 MiB), as much for tables."""

_LOOK_EVERY = 1024 * 1024
"""Bytes written between two looks at the disk: well below what is kept free."""


class Room:
    """Watches the free space of the file system that holds *path*."""

    __slots__ = ("_left", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._left = 0

    def take(self, size: int) -> None:
        """Claim *size* bytes. Raises :class:`OSError` ENOSPC if they are not to be had.

        Others may write to the disk, too: this is a measure, not a reservation.
        """
        if size > self._left:
            free = shutil.disk_usage(self._path).free - HEADROOM
            if free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._left = max(size, min(free, _LOOK_EVERY))
        self._left -= size
