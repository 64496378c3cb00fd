"""The disk space that is kept for releasing things, and for other programs.

Deleting, cancelling and expiring change the catalog before they free anything, and changes
need space: the write-ahead log grows before anything shrinks. If uploads could take the last
byte, nothing could be deleted, expired or even started any more until somebody made space by
hand. So writes to tails fail a little before the disk is full, with the same error.

New records fail at the same limit: a million empty uploads with long heads take gigabytes.

On a large disk the limit is much higher. Other programs that write to the disk, such as
a log or a database, must not fail because of uploads.

Those programs do not stop before the disk is full. So there is also a *reserve*: a file of a
few MiB beside the catalog. It is removed when the catalog cannot grow and the change would
release something, and made again when there is space. An offset that must be recorded releases
nothing. For such changes there is a second file, the *cushion*, which is removed before the
reserve. While one of the two is missing, nothing may be added, content included.

Hidden limits
=============

Often statvfs does not show a quota (EDQUOT): it tells of the whole disk, however little this
directory may still take. Nothing shows such a *hidden limit* before a write fails, so the first
content that meets it takes all of the space except for these two files. From then on, and from the
start if the limit is met at the start, space counts only if it was *proven*: a file of that
size could be allocated. This costs a few system calls for each look, so it is not done
otherwise.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading

from trioresume.store.file_system.disk_io import Disk

__all__ = ["HEADROOM", "LARGEST_SHARE", "PROBE", "RESERVE_SIZE", "FreeSpace"]

HEADROOM = 8 * 1024 * 1024
"""Bytes that stay free: 4 MiB of log up to SQLite's checkpoint, and as much for tables."""

RESERVE_SIZE = 4 * 1024 * 1024
"""Bytes. A release takes about ten pages of SQLite's log. While the reserve is spent, SQLite
starts the log from the beginning again after a hundred pages."""

LARGEST_SHARE = 20
"""At most a twentieth of the disk is left to others, so that small disks can be used, too."""

PROBE = "reserve.probe"
"""A file that exists while it is tried how much space there is. A worker adds its number."""

_CUSHION_SIZE = 1024 * 1024
"""Bytes; but never more than the reserve."""

_COMMIT_SIZE = 256 * 1024
"""Bytes that a commit may take, at a hidden limit."""

_LOOK_EVERY = 1024 * 1024
_LOOK_LEAST = 64 * 1024 * 1024
"""How many bytes may be written between two looks at the disk: the first number, which is
well below the space that stays free, or a sixteenth of the free space, up to the second."""

_LEAST_FREE = 8 * 1024 * 1024
"""The reserve is made only if so many bytes are free."""

_USED_UP = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors of a full disk or quota. Any other error says nothing of the space: EFBIG is
a limit of a file's size, so smaller files can still be written."""

_SCARCE = 1024 * 1024
"""With fewer free bytes, opening a catalog may fail."""


def kept_free(min_free: int, total: int) -> int:
    """Return how much of a disk of *total* bytes stays free, if *min_free* bytes shall."""
    return min(min_free, total // LARGEST_SHARE)


class FreeSpace:
    """Watches the free space of the file system that holds the directory *path*.

    *min_free* bytes must stay free, or a twentieth of the disk if that is less. The reserve
    is the file ``reserve`` in the directory, of *reserve* bytes; the cushion is the file
    ``cushion``. With 0 there are no such files.
    """

    __slots__ = (
        "_cushion",
        "_cushion_held",
        "_cushion_size",
        "_disk",
        "_held",
        "_left",
        "_lock",
        "_min_free",
        "_path",
        "_probe",
        "_proven",
        "_reserve",
        "_size",
        "_step",
        "is_limit_hidden",
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
        self._probe = os.path.join(path, PROBE)
        self._size = reserve
        self._cushion = os.path.join(path, "cushion")
        self._cushion_size = min(_CUSHION_SIZE, reserve)
        self._cushion_held = 0
        self._held = 0
        """The bytes that the reserve has now. They count as free space."""
        self.is_spent = False
        """Whether the reserve or the cushion was removed, or could not be made."""
        self._lock = threading.Lock()
        """Guards the files. Content is written in several threads."""
        self.is_limit_hidden = False
        """Whether a limit was met that the file system does not show, such as a quota."""
        self._proven = 0
        """How many bytes content may take at a hidden limit before the next proof."""
        self._step = _LOOK_EVERY
        """How many bytes the next proof is to be for."""

    @property
    def held(self) -> int:
        """The bytes that the reserve has now. They count as free space."""
        return self._held

    def look_again(self) -> None:
        """Look at the disk at the next :meth:`take`, because it was full elsewhere.

        If statvfs shows enough free space all the same, there is a hidden limit.
        """
        self._left = self._proven = 0
        try:
            if self._free() >= HEADROOM:
                self.is_limit_hidden = True
        except OSError:
            pass  # the directory is gone, which the caller's error tells

    def take_content(self, size: int) -> None:
        """Claim *size* bytes for content. This may wait for the disk.

        Raises :class:`OSError` (ENOSPC) if too few bytes are free, or if the reserve is spent
        and cannot be made again.
        """
        if self.is_spent and not self.restore():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.take(size)
        if self.is_limit_hidden:
            self._take_proven(size)

    def _take_proven(self, size: int) -> None:
        with self._lock:
            if size > self._proven:
                kept = HEADROOM - self._held - self._cushion_held
                least = max(size, _LOOK_EVERY)
                step = max(size, self._step)
                if self._has_room(kept + step):
                    self._step = min(2 * step, _LOOK_LEAST)
                elif step > least and self._has_room(kept + least):
                    self._step = step = least
                else:
                    self._step = _LOOK_EVERY
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._proven = step
            self._proven -= size

    def take(self, size: int) -> None:
        """Claim *size* bytes of what statvfs shows. This never waits.

        Raises :class:`OSError` (ENOSPC) if too few bytes are free. Other programs may write
        to the disk, too, so this is a measurement and not a reservation.
        """
        if size > self._left:
            disk = shutil.disk_usage(self._path)
            others = kept_free(self._min_free, disk.total)
            free = disk.free + self._held - max(HEADROOM, others)
            if free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            until = max(_LOOK_EVERY, min(free // 16, _LOOK_LEAST))
            self._left = max(size, min(free, until))
        self._left -= size

    # The reserve.

    def open_reserve(self) -> None:
        """Find or make the reserve, or remove it at once if the disk is full."""
        for name in os.listdir(self._path):
            if name.startswith(PROBE):  # left by a crash
                self._disk.unlink(os.path.join(self._path, name))
        if self._size == 0:
            return
        self._held = _size_of(self._reserve)
        self._cushion_held = _size_of(self._cushion)
        free = self._free()
        is_full = free < _SCARCE
        if free >= _LEAST_FREE and not self._has_room(_LEAST_FREE):
            self.is_limit_hidden = True
            is_full = not self._has_room(_SCARCE)
        if self._held != self._size or is_full:
            self.spend()
            self.restore()
        elif self._cushion_held != self._cushion_size:
            self.give_up_cushion()
            self.restore()

    def check_commit(self) -> None:
        """Raise :class:`OSError` (ENOSPC) if a hidden limit leaves no space for a commit.

        SQLite would notice that itself, mostly. But it writes to its third file (-shm)
        through memory, and on btrfs the process is killed (SIGBUS) if that needs space.
        """
        if self.is_limit_hidden:
            with self._lock:
                if not self._has_room(_COMMIT_SIZE):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def give_up_cushion(self) -> bool:
        """Remove the cushion; return whether it existed."""
        with self._lock:
            held, self._cushion_held = self._cushion_held, 0
            self.is_spent = self._size > 0
            self._remove(self._cushion)
            return held > 0

    def spend(self) -> bool:
        """Remove the reserve; return whether it existed."""
        with self._lock:
            held, self._held = self._held, 0
            self.is_spent = self._size > 0
            self._remove(self._reserve)
            return held > 0

    def restore(self) -> bool:
        """Make the files again if there is space for them; return whether they exist."""
        with self._lock:
            if self.is_spent and self._free() >= _LEAST_FREE:
                if self.is_limit_hidden and not self._has_room(_LEAST_FREE):
                    return False
                try:
                    if not self._held:
                        self._disk.allocate(self._reserve, self._size)
                        self._held = self._size
                    if not self._cushion_held:
                        self._disk.allocate(self._cushion, self._cushion_size)
                        self._cushion_held = self._cushion_size
                except OSError:
                    return False  # somebody else took the space first
                self.is_spent = False
            return not self.is_spent

    def _remove(self, path: str) -> None:
        self._disk.unlink(path)
        if self.is_limit_hidden:
            self._disk.settle_removals(self._path)

    def _has_room(self, size: int) -> bool:
        """Return whether a file of *size* bytes can be allocated; it is removed again."""
        try:
            self._disk.allocate(self._probe, size)
        except OSError as exc:
            return exc.errno not in _USED_UP
        self._disk.unlink(self._probe)
        return True

    def _free(self) -> int:
        return shutil.disk_usage(self._path).free


def _size_of(path: str) -> int:
    """Return the file's size; 0 if there is no file."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
