"""The operating system's calls that change a data directory, in one place.

Everything that alters the disk goes through a :class:`Disk`, for two reasons.
Platforms differ in what makes data durable, and the crash tests replace a Disk by
one that stops the world before any of these steps.

Durability
==========

* ``fdatasync`` makes a file's bytes and its length durable, not its name. A new
  name is durable only when its directory was synced as well.
* macOS' ``fsync`` leaves the data in the drive's cache; ``FFULLFSYNC`` does not.
* Windows has no way to sync a directory; its file systems journal the names.
* Large writes from memory that lies as the file does, modulo :data:`PAGE_SIZE`, bypass
  the page cache (``O_DIRECT``): the disk reads them where they are, nothing has to be
  copied, found room for and written back later, and the files that others work with stay
  in memory. It does not make them durable. What cannot be written so goes the usual way.
* After a failed sync, trying again proves nothing: Linux reports a write error
  once and then calls the pages clean. The data is suspect from then on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from trioresume.errors import StorageError, StorageFull

if TYPE_CHECKING:
    import sqlite3

if sys.platform != "win32":
    import fcntl

__all__ = ["FULL", "PAGE_SIZE", "Descriptor", "Disk", "storage_error", "translated"]

PAGE_SIZE = 4096
"""What direct writes begin and end on; at least a disk's block."""

_LEAST_DIRECT = 64 * 1024
"""Bytes from which on a direct write pays for its two system calls more."""

_DIRECT = getattr(os, "O_DIRECT", 0)
_NO_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})

# EFBIG: a file size limit of the process or the file system; for whoever uploads
# it is the same as a full disk.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

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
_HAS_ATTRIBUTES = hasattr(os, "setxattr")
_ATTRIBUTE = "user.trioresume.proof"
_COPY_SIZE = 1024 * 1024


def storage_error(exc: OSError, what: str) -> StorageError:
    """The storage error that *exc* amounts to; *what* says what was attempted."""
    kind = StorageFull if exc.errno in FULL else StorageError
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

    __slots__ = ("_fd", "_past_cache")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._past_cache = False

    def fileno(self) -> int:
        return self._fd

    def duplicate(self) -> Descriptor:
        return Descriptor(os.dup(self._fd))

    def bypass_cache(self, on: bool) -> None:
        """Whether what is written from now on bypasses the page cache.

        Raises :class:`OSError` if the file system does not know that. It concerns the
        duplicates as well, which nobody writes to.
        """
        if on is not self._past_cache:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, _DIRECT if on else 0)
            self._past_cache = on

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


class Disk:
    """Performs the changes; *durable* says whether syncs are really done."""

    write: Callable[[int, memoryview], int] = staticmethod(os.write)
    """``os.write``: whatever is written goes through this call."""

    read: Callable[[int, int], bytes] = staticmethod(os.read)
    """``os.read``: here, with the changes, because a disk can fail at it, too."""

    def __init__(self, *, durable: bool) -> None:
        self.durable = durable
        self.direct = bool(_DIRECT)
        """Whether large writes may bypass the page cache; false once one could not."""
        self.attaches = _HAS_ATTRIBUTES
        """Whether bytes may be kept with a file; false once that failed."""
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

    def allocate(self, path: str, size: int) -> None:
        """A new file under *path*, of *size* bytes that are taken from the disk.

        Raises :class:`OSError` if they are not to be had; then there is no file.
        """
        file = self.create(path)
        try:
            _allocate(file.fileno(), size)
        except BaseException:
            self.unlink(path)
            raise
        finally:
            file.close()

    def forget_cached(self, file: Descriptor) -> None:
        """Have the next read of *file* come from the disk, where the system can do that.

        Only pages that are written back already are dropped; the call cannot fail in a
        way that matters.
        """
        if hasattr(os, "posix_fadvise"):
            try:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError:
                pass  # it is advice

    def make_directory(self, path: str) -> None:
        """Make the directory *path*, if it is not there, for this user only."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def remove_directory(self, path: str) -> None:
        """Remove the directory *path*, which must be empty."""
        os.rmdir(path)

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
            while data := self.read(original.fileno(), _COPY_SIZE):
                self.write_all(duplicate, memoryview(data))
            self.sync_data(duplicate)
        finally:
            original.close()
            duplicate.close()

    def write_some(self, file: Descriptor, view: memoryview, position: int) -> int:
        """Write from *view* at *position*, which is the file's; how much was written.

        That may be less than all, to get the rest onto whole pages.
        """
        fd = file.fileno()
        if self.direct and len(view) >= _LEAST_DIRECT and _lies_as(view, position):
            before = -position % PAGE_SIZE
            if not before:
                try:
                    file.bypass_cache(True)
                    return self.write(fd, view[: len(view) // PAGE_SIZE * PAGE_SIZE])
                except OSError as exc:
                    if exc.errno not in _NO_DIRECT:
                        raise
                    self.direct = False  # the file system cannot, or not like this
            else:
                view = view[:before]
        file.bypass_cache(False)
        return self.write(fd, view)

    def write_all(self, file: Descriptor, view: memoryview) -> None:
        while view:
            view = view[self.write(file.fileno(), view) :]

    def overwrite(self, path: str, data: bytes) -> None:
        """Have the small file *path* begin with *data*; it is made if it is not there."""
        flags = os.O_WRONLY | os.O_CREAT | _OPEN_FLAGS
        with closing(Descriptor(os.open(path, flags, 0o600))) as file:
            if os.write(file.fileno(), data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def attach(self, file: Descriptor, data: bytes) -> bool:
        """Keep the few bytes *data* with *file*, in its inode; false where that cannot be.

        It costs a tenth of what a file of its own costs.
        """
        if self.attaches:
            try:
                os.setxattr(file.fileno(), _ATTRIBUTE, data)
            except OSError:
                self.attaches = False  # not here, or there is no room
        return self.attaches

    def attached(self, file: Descriptor) -> bytes:
        """What was kept with *file* last; nothing if nothing was."""
        try:
            return os.getxattr(file.fileno(), _ATTRIBUTE) if _HAS_ATTRIBUTES else b""
        except OSError:
            return b""

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

    def sync_everything(self, path: str) -> None:
        """Make all that was ever written durable, where the system can do that.

        Raises :class:`OSError` if some of it was lost in the file system of *path*, where
        the system tells: ``sync`` itself says nothing.
        """
        if self.durable and hasattr(os, "sync"):
            os.sync()
            _check_file_system(path)

    def commit(self, connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")


def _allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as exc:
            if exc.errno not in _NO_DIRECT:
                raise
        else:
            return
    # Random, or a file system that compresses would keep almost nothing.
    written = 0
    while written < size:
        written += os.write(fd, os.urandom(min(_COPY_SIZE, size - written)))


def _lies_as(view: memoryview, position: int) -> bool:
    """Whether *view* begins where *position* does, modulo pages."""
    try:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    except TypeError:
        return False  # memory that must not be written has no address here
    return (address - position) % PAGE_SIZE == 0


def _check_file_system(path: str) -> None:
    """Raise what could not be written back since nobody was told of it (Linux 5.8)."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    try:
        if library.syncfs(fd):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


if sys.platform == "darwin":

    def _sync(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.FFULLFSYNC)

elif hasattr(os, "fdatasync"):
    _sync = os.fdatasync
else:
    _sync = os.fsync
