"""The operating system's calls that change a data directory, in one place.

Everything that alters the disk goes through a :class:`Disk`, for two reasons.
Platforms differ in what makes data durable, and the crash tests replace a Disk by
one that stops the world before any of these steps.

Durability
==========

* ``fdatasync`` makes a file's bytes and its length durable, not its name. A new
  name is durable only when its directory was synced as well.
* macOS' ``fsync`` leaves the data in the drive's cache; ``F_FULLFSYNC`` does not.
* Windows has no way to sync a directory; its file systems journal the names.
* After a failed sync, trying again proves nothing: Linux reports a write error
  once and then calls the pages clean. The data is suspect from then on.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trioresume.errors import StorageError, StorageFull

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Descriptor", "Disk", "storage_error", "translated"]

# EFBIG: a file size limit of the process or the file system; for whoever uploads
# it is the same as a full disk.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

# What link() answers where hard links do not exist (FAT, some network and FUSE file
# systems), cross a boundary, or are used up for this file.
_NO_LINKS = frozenset(
    {
        errno.EPERM,
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.ENOSYS,
        errno.EXDEV,
        errno.EMLINK,
    }
)
_COPY_SIZE = 1024 * 1024


def storage_error(exc: OSError, what: str) -> StorageError:
    """The storage error that *exc* amounts to; *what* says what was attempted."""
    kind = StorageFull if exc.errno in _FULL else StorageError
    return kind(f"{what}: {exc.strerror or exc}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn an :class:`OSError` into a :class:`StorageError`."""
    try:
        yield
    except OSError as exc:
        raise storage_error(exc, what) from exc


class Descriptor:
    """A file descriptor that is closed once, at the latest when it is forgotten."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def duplicate(self) -> Descriptor:
        return Descriptor(os.dup(self._fd))

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


class Disk:
    """Performs the changes; *durable* says whether syncs are really done."""

    write: Callable[[int, memoryview], int] = staticmethod(os.write)
    """``os.write``: the one call of the hot path, without a frame of its own."""

    def __init__(self, *, durable: bool) -> None:
        self.durable = durable
        self.synchronous = "FULL" if durable else "NORMAL"
        """SQLite's setting. With NORMAL a commit is not synced, but is written: it
        survives the process, not the power."""

    def create(self, path: str) -> Descriptor:
        """A new file under *path*, which must be free, readable and writable."""
        return Descriptor(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS, 0o600)
        )

    def open(self, path: str, *, write: bool = False) -> Descriptor:
        """The existing file under *path*."""
        return Descriptor(
            os.open(path, (os.O_RDWR if write else os.O_RDONLY) | _OPEN_FLAGS)
        )

    def truncate(self, file: Descriptor, length: int) -> None:
        os.ftruncate(file.fileno(), length)

    def unlink(self, path: str) -> None:
        """Remove the name *path*, if it is there."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # what is wanted is that it is gone

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def link_or_copy(self, source: str, target: str) -> None:
        """Give *source* the further name *target*, which must be free."""
        try:
            self.link(source, target)
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            self.copy(source, target)

    def copy(self, source: str, target: str) -> None:
        """Copy *source* to the free name *target* and sync the copy's bytes."""
        original = self.open(source)
        duplicate = self.create(target)
        try:
            while data := os.read(original.fileno(), _COPY_SIZE):
                self.write_all(duplicate, memoryview(data))
            self.sync_data(duplicate)
        finally:
            original.close()
            duplicate.close()

    def write_all(self, file: Descriptor, view: memoryview) -> None:
        while view:
            view = view[self.write(file.fileno(), view) :]

    def sync_data(self, file: Descriptor) -> None:
        """Make the file's bytes and length durable."""
        if self.durable:
            _sync(file.fileno())

    def sync_directory(self, path: str) -> None:
        """Make the names in the directory *path* durable."""
        if self.durable and os.name != "nt":
            fd = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def sync_everything(self) -> None:
        """Make all that was ever written durable, where the system can do that."""
        if self.durable and hasattr(os, "sync"):
            os.sync()

    def commit(self, connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")


if sys.platform == "darwin":
    import fcntl

    def _sync(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

elif hasattr(os, "fdatasync"):
    _sync = os.fdatasync
else:
    _sync = os.fsync
