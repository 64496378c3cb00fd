"""All calls of the operating system that change a data directory.

Every change of the disk goes through a :class:`Disk`, for two reasons. Platforms
differ in what makes data durable. And the crash tests replace the Disk by one that
stops before any of these steps.

Durability
==========

* ``fdatasync`` makes a file's bytes and its length durable, but not its name. A new
  name is durable only after its directory was synced as well.
* On macOS ``fsync`` leaves the data in the drive's cache; ``F_FULLFSYNC`` does not.
* Windows has no way to sync a directory; its file systems journal the names.
* Large writes bypass the page cache (``O_DIRECT``) if the address of the memory and the
  position in the file are equal modulo :data:`PAGE_SIZE`. The disk then reads the bytes
  from that memory: the kernel does not copy them, find room for them and write them back
  later, and the files that others work with stay in the page cache. This does not make the
  bytes durable. Other writes go through the page cache.
* After a failed sync, a second sync proves nothing: Linux reports a write error
  once and then calls the pages clean. The data is suspect from then on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from trioresume.errors import StorageError, StorageFull

if TYPE_CHECKING:
    import sqlite3

if sys.platform != "win32":
    import fcntl

__all__ = [
    "FULL",
    "NO_LINKS",
    "PAGE_SIZE",
    "Descriptor",
    "Disk",
    "storage_error",
    "translated",
]

PAGE_SIZE = 4096
"""Direct writes begin and end on a multiple of this: at least a disk's block."""

_LEAST_DIRECT = 64 * 1024
"""From this many bytes on, a direct write is worth its two additional system calls."""

_DIRECT = getattr(os, "O_DIRECT", 0)
_NO_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})

# EFBIG is a file size limit of the process or the file system. For a client that uploads
# it means the same as a full disk.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
"""Keeps the open and the reads of a pipe from waiting. Regular files ignore this flag."""

# link() fails with these where hard links do not exist (FAT, some network and FUSE file
# systems), would cross a boundary, or are used up for this file.
NO_LINKS = frozenset(
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
_FICLONE = 0x40049409
"""The ioctl of linux/fs.h that makes a file share another one's blocks."""


def storage_error(exc: OSError, what: str) -> StorageError:
    """Return the storage error for *exc*; *what* says what was attempted."""
    kind = StorageFull if exc.errno in FULL else StorageError
    return kind(f"{what}: {exc.strerror or exc}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn an :class:`OSError` into a :class:`StorageError`."""
    try:
        yield
    except OSError as exc:
        raise storage_error(exc, what) from exc


def owner_to_follow(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return the user and the group that own *path*, if files have to be given to them.

    That is so if this process is the superuser, and they are somebody else: the service may
    run as that user, and must be able to read what an administrator's command makes, or a
    service that was once started by hand. None if the files are right as they are made.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    status = os.stat(path)
    if (status.st_uid, status.st_gid) == (0, os.getegid()):
        return None
    return status.st_uid, status.st_gid


class Descriptor:
    """A file descriptor that is closed once, at the latest when it is garbage-collected."""

    __slots__ = ("_fd", "_past_cache")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._past_cache = False

    def fileno(self) -> int:
        return self._fd

    def duplicate(self) -> Descriptor:
        return Descriptor(os.dup(self._fd))

    def bypass_cache(self, on: bool) -> None:
        """Set whether later writes bypass the page cache.

        Raises :class:`OSError` if the file system does not support that. The setting also
        affects the duplicates, but nobody writes to those.
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
    """Performs the changes. *durable* says whether it really performs the syncs."""

    write: Callable[[int, memoryview], int] = staticmethod(os.write)
    """``os.write``: every write goes through this call."""

    read: Callable[[int, int], bytes] = staticmethod(os.read)
    """``os.read``: it is here, with the changes, because a disk can fail at it, too."""

    syncs_at_once = 8
    """Directories that are synced at a time; with 1, no threads are used."""

    def __init__(self, *, durable: bool) -> None:
        self.durable = durable
        self._syncers: ThreadPoolExecutor | None = None
        self.direct = bool(_DIRECT)
        """Whether large writes may bypass the page cache; false once a write could not."""
        self.attaches = _HAS_ATTRIBUTES
        """Whether bytes may be kept as an attribute of a file; false once that failed."""
        self.clones = sys.platform == "linux"
        """Whether files may share blocks; false once that failed."""
        self.counts_links: bool | None = None
        """Whether a file tells how many names it has; None until one got a second name.
        Some network and FUSE file systems have hard links and do not count them."""
        self.owner: tuple[int, int] | None = None
        """The user and the group that get each new file; None: as the system makes it."""
        self.synchronous = "FULL" if durable else "NORMAL"
        """SQLite's setting. With NORMAL a commit is written but not synced: it survives the
        end of the process, but not a power loss."""

    def create(self, path: str) -> Descriptor:
        """Create and open a file, readable and writable, under *path*, which must be free."""
        file = Descriptor(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS, 0o600)
        )
        self.own(file)
        return file

    def follow_owner(self, path: str) -> None:
        """Give what is made from now on to the owner of *path*: :func:`owner_to_follow`."""
        self.owner = owner_to_follow(path)

    def own(self, file: Descriptor) -> None:
        """Give *file* to the owner that is followed, if one is."""
        if self.owner is not None:
            os.chown(file.fileno(), *self.owner)

    def give_to_owner_of(self, path: str, file: Descriptor) -> None:
        """Give *file* the owner of *path*, if this process is the superuser.

        The service may run as another user, and must be able to read the files that an
        administrator's command makes as root.
        """
        owner = owner_to_follow(path)
        if owner is not None:
            os.chown(file.fileno(), *owner)

    def open(self, path: str, *, write: bool = False) -> Descriptor:
        """Open the existing file under *path*.

        If it is a pipe, neither the open nor a read waits for a writer.
        """
        flags = (os.O_RDWR if write else os.O_RDONLY) | _OPEN_FLAGS | _NO_WAITING
        return Descriptor(os.open(path, flags))

    def open_directory(self, path: str) -> Descriptor:
        """Open the directory *path*, to change its inode."""
        return Descriptor(os.open(path, os.O_RDONLY | _OPEN_FLAGS))

    def allocate(self, path: str, size: int) -> None:
        """Create a file under *path* whose *size* bytes are really allocated on the disk.

        Raises :class:`OSError` if the disk has too little space; then there is no file.
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
        """Have the next read of *file* come from the disk, where the system supports it.

        This drops only pages that are written back already. A failure is ignored.
        """
        if hasattr(os, "posix_fadvise"):
            try:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError:
                pass  # the call is only advice to the system

    def make_directory(self, path: str) -> None:
        """Make the directory *path*, if it does not exist, for this user only."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        else:
            if self.owner is not None:
                os.chown(path, *self.owner)

    def remove_directory(self, path: str) -> None:
        """Remove the directory *path*, which must be empty."""
        os.rmdir(path)

    def truncate(self, file: Descriptor, length: int) -> None:
        os.ftruncate(file.fileno(), length)

    def unlink(self, path: str) -> None:
        """Remove the name *path*, if it exists."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # the name is gone, as the caller wants

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def link_or_copy(self, source: str, target: str) -> None:
        """Give the file *source* the additional name *target*, which must be free.

        Where hard links are impossible, or not counted, *target* becomes a copy: whoever
        wants to change the file has to see that it has two names.
        """
        if self.counts_links is not False:
            try:
                self.link(source, target)
            except OSError as exc:
                if exc.errno not in NO_LINKS:
                    raise
            else:
                if self.counts_links is None:
                    self.counts_links = os.stat(source).st_nlink > 1
                if self.counts_links:
                    return
                self.unlink(target)
        self.copy(source, target)

    def copy(self, source: str, target: str, length: int | None = None) -> None:
        """Copy *source* to the free name *target* and sync the copy's bytes.

        With *length*, copy only so many of its first bytes.
        """
        original = self.open(source)
        duplicate = self.create(target)
        left = os.fstat(original.fileno()).st_size if length is None else length
        try:
            while data := self.read(original.fileno(), min(left, _COPY_SIZE)):
                self.write_all(duplicate, memoryview(data))
                left -= len(data)
            self.sync_data(duplicate)
        finally:
            original.close()
            duplicate.close()

    def clone(self, source: str, target: str) -> bool:
        """Make *target*, a free name, share the blocks of *source*; return False if impossible.

        Btrfs and XFS can do this. The files are separate: what changes one leaves the other.
        """
        if not self.clones:
            return False
        original = self.open(source)
        duplicate = self.create(target)
        try:
            fcntl.ioctl(duplicate.fileno(), _FICLONE, original.fileno())
            self.sync_data(duplicate)
        except OSError as exc:
            self.unlink(target)
            if exc.errno in FULL:
                raise
            self.clones = False
        finally:
            original.close()
            duplicate.close()
        return self.clones

    def write_some(self, file: Descriptor, view: memoryview, position: int) -> int:
        """Write from *view* at *position*, which must be the file's; return the bytes written.

        It may write less than all of *view*, so that the rest begins on a whole page.
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
                    self.direct = False  # the file system cannot do such direct writes
            else:
                view = view[:before]
        file.bypass_cache(False)
        return self.write(fd, view)

    def write_all(self, file: Descriptor, view: memoryview) -> None:
        while view:
            view = view[self.write(file.fileno(), view) :]

    def overwrite(self, path: str, data: bytes) -> None:
        """Write *data* at the start of the small file *path*, which is made if needed."""
        flags = os.O_WRONLY | os.O_CREAT | _OPEN_FLAGS
        with closing(Descriptor(os.open(path, flags, 0o600))) as file:
            self.own(file)
            if os.write(file.fileno(), data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def attach(self, file: Descriptor, data: bytes) -> bool:
        """Keep the few bytes *data* in *file*'s inode; return False where that is impossible.

        It costs a tenth of a separate file.
        """
        if self.attaches:
            try:
                os.setxattr(file.fileno(), _ATTRIBUTE, data)
            except OSError:
                self.attaches = False  # not supported here, or there is no room
        return self.attaches

    def attached(self, file: Descriptor) -> bytes:
        """Return the bytes that :meth:`attach` kept last, or no bytes."""
        try:
            return os.getxattr(file.fileno(), _ATTRIBUTE) if _HAS_ATTRIBUTES else b""
        except OSError:
            return b""

    def detach(self, file: Descriptor) -> None:
        """Remove what :meth:`attach` kept, if there is anything."""
        if _HAS_ATTRIBUTES:
            with contextlib.suppress(OSError):
                os.removexattr(file.fileno(), _ATTRIBUTE)

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

    def sync_directories(self, paths: Collection[str]) -> None:
        """Make the names in all the directories *paths* durable, several at a time.

        Each sync waits for the disk, and the disk does several in the time of one. All are
        tried. Raises the first :class:`OSError` then.
        """
        if not self.durable:
            return
        most = self.syncs_at_once
        parts = [part for start in range(most) if (part := list(paths)[start::most])]
        begun = [self._begin_sync(part) for part in parts[1:]]
        here = [
            part
            for part, syncing in zip(parts, [None, *begun], strict=False)
            if syncing is None
        ]
        errors = [self._sync_each(part) for part in here]
        errors += [syncing.result() for syncing in begun if syncing is not None]
        for error in errors:
            if error is not None:
                raise error

    def _begin_sync(self, paths: Iterable[str]) -> Future[OSError | None] | None:
        """Sync *paths* in a thread; return None if the system gives no more threads."""
        if self._syncers is None:
            self._syncers = ThreadPoolExecutor(
                self.syncs_at_once - 1, "trioresume-sync"
            )
        try:
            return self._syncers.submit(self._sync_each, paths)
        except RuntimeError:
            # It keeps the job, so wait until it is done: it must not sync at a later time.
            self._syncers.shutdown()
            self._syncers = None
            return None

    def _sync_each(self, paths: Iterable[str]) -> OSError | None:
        """Sync the directories *paths*, all of them; return the first error."""
        first: OSError | None = None
        for path in paths:
            try:
                self.sync_directory(path)
            except OSError as exc:
                first = first or exc
        return first

    def sync_everything(self, path: str) -> None:
        """Make all bytes that were ever written durable, where the system can do that.

        ``sync`` itself reports no errors. Raises :class:`OSError` if the file system of
        *path* lost some of the bytes, on systems that can tell.
        """
        if self.durable and hasattr(os, "sync"):
            os.sync()
            _check_file_system(path)

    def sync_file_system(self, path: str) -> None:
        """Make everything durable that was written to the file system of *path*.

        For many files and names this takes one commit of the file system's journal, and not
        one for each directory, for which other programs would have to wait. Raises
        :class:`OSError`.
        """
        if not self.durable:
            return
        if sys.platform == "linux":
            _check_file_system(path)
        elif hasattr(os, "sync"):
            os.sync()

    def settle_removals(self, path: str) -> None:
        """Have the space of removed files counted as free, in the file system of *path*.

        With quotas, btrfs does this only when it writes everything back. A failure is ignored.
        """
        with contextlib.suppress(OSError):
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
    # Random bytes, because a file system that compresses would allocate almost nothing.
    written = 0
    while written < size:
        written += os.write(fd, os.urandom(min(_COPY_SIZE, size - written)))


def _lies_as(view: memoryview, position: int) -> bool:
    """Return whether *view*'s address equals *position* modulo :data:`PAGE_SIZE`."""
    try:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    except TypeError:
        return False  # ctypes gives no address for read-only memory
    return (address - position) % PAGE_SIZE == 0


def _check_file_system(path: str) -> None:
    """Raise :class:`OSError` for a write-back error that was not reported yet (Linux 5.8)."""
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
