"""The data directory: its lock, its format version, and the mount that holds it."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from contextlib import closing
from pathlib import Path

from trioresume.errors import FormatVersionUnsupported, StorageError, StoreLocked
from trioresume.store.file_system.disk_io import Descriptor, Disk

__all__ = [
    "FORMAT",
    "RESTORING",
    "DataDir",
    "boot_id",
    "is_served",
    "lock_directory",
    "mount_id",
    "share_lock",
]

FORMAT = b"trioresume data directory, format 1\n"

RESTORING = "restoring"
"""A file that is in the directory until a restore has put everything there."""

_PATIENCE = 0.2
"""Seconds to try for the lock, because :func:`is_served` holds it for an instant."""
_PAUSE = 0.01
_IN_USE = "another process serves this data directory, or collects in it ({})"


class DataDir:
    """A data directory that only this process serves."""

    def __init__(self, path: str | os.PathLike[str], disk: Disk) -> None:
        self.path = os.path.abspath(path)
        self._lock = lock_directory(self.path, disk)
        try:
            self._check_format(disk)
        except BaseException:
            self._lock.close()
            raise

    @property
    def lock(self) -> int:
        """The descriptor of the lock. A process that inherits it keeps the lock, too."""
        return self._lock.fileno()

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _check_format(self, disk: Disk) -> None:
        if os.path.exists(self.join(RESTORING)):
            raise StorageError(
                f"{self.path} was not restored to the end: run trioresume restore again"
            )
        path = Path(self.join("format"))
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            pass
        else:
            if found == FORMAT:
                return
            # With durability="process" the file is not synced. A power loss may keep its
            # length and lose its bytes: then it has only zeros, and is written again.
            if found.strip(b"\0"):
                raise FormatVersionUnsupported(
                    f"{path} names a format that this trioresume does not know: {found[:80]!r}"
                )
        # Written under another name and renamed: a crash must not leave half a version.
        temporary = self.join("format.new")
        disk.unlink(temporary)
        file = disk.create(temporary)
        try:
            disk.write_all(file, memoryview(FORMAT))
            disk.sync_data(file)
        finally:
            file.close()
        disk.replace(temporary, str(path))
        disk.sync_directory(self.path)

    def close(self) -> None:
        self._lock.close()


def lock_directory(path: str, disk: Disk) -> Descriptor:
    """Make the data directory *path* if it does not exist, and lock it.

    Raises :class:`StoreLocked`.
    """
    _make_durably(path, disk)
    disk.follow_owner(path)
    file = _lock(os.path.join(path, "lock"))
    disk.own(file)
    return file


def _make_durably(path: str, disk: Disk) -> None:
    """Make the directory *path* and its missing parents, durably."""
    if not os.path.isdir(path):
        parent = os.path.dirname(path)
        if parent != path:
            _make_durably(parent, disk)
        disk.make_directory(path)
        disk.sync_directory(parent)


def _lock(path: str) -> Descriptor:
    """Lock *path* until the descriptor is closed or the process ends in any way.

    Raises :class:`StoreLocked`.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    file = Descriptor(os.open(path, flags, 0o600))
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            _lock_file(file.fileno())
        except OSError as exc:
            if time.monotonic() > deadline:
                file.close()
                raise StoreLocked(_IN_USE.format(path)) from exc
            time.sleep(_PAUSE)
        else:
            return file


if sys.platform == "win32":
    import msvcrt

    def _lock_file(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def is_served(path: str) -> bool:
        """Return True: Windows cannot tell whether a process serves the data directory."""
        return True

    def share_lock(path: str) -> Descriptor | None:
        """Raise :class:`StoreLocked`: Windows has no shared lock that needs no write access."""
        raise StoreLocked(_IN_USE.format(path))

else:
    import fcntl

    def _lock_file(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def share_lock(path: str) -> Descriptor | None:
        """Keep every process from serving the data directory *path* until it is closed.

        Writes nothing. Returns None if there is no lock, or if it may not be opened: then
        nobody serves this directory, or this user cannot know. Raises :class:`StoreLocked`.
        """
        try:
            file = Descriptor(os.open(os.path.join(path, "lock"), os.O_RDONLY))
        except OSError:
            return None
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as exc:
                if time.monotonic() > deadline:
                    file.close()
                    raise StoreLocked(_IN_USE.format(path)) from exc
                time.sleep(_PAUSE)
            else:
                return file

    def is_served(path: str) -> bool:
        """Return whether a process serves the data directory *path*, or collects in it.

        Returns True as well if the lock cannot be tried. The shared lock is held for an
        instant: it writes nothing, and other readers can ask at the same time.
        """
        try:
            file = Descriptor(os.open(os.path.join(path, "lock"), os.O_RDONLY))
        except OSError:
            return True
        with closing(file):
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False


# Telling one mount of a file system, and one boot of the machine, from another.

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_AT_FDCWD = -100
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_SIZE = 256
_MASK_AT, _MOUNT_AT = 0, 0x90
"""Where ``stx_mask`` and ``stx_mnt_id`` are in ``struct statx`` (linux/stat.h)."""


def mount_id(path: str) -> str | None:
    """Return an id of the mount that holds *path*; no other or earlier mount has the same.

    Returns None where the system cannot tell: it takes Linux 6.8. The number of a mount in
    ``/proc/self/mountinfo`` does not serve, because the kernel reuses it.
    """
    if sys.platform != "linux":
        return None
    statx = getattr(ctypes.CDLL(None), "statx", None)
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if statx is None or statx(
        _AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID_UNIQUE, found
    ):
        return None
    (mask,) = struct.unpack_from("=I", found, _MASK_AT)
    if not mask & _STATX_MNT_ID_UNIQUE:
        return None
    (number,) = struct.unpack_from("=Q", found, _MOUNT_AT)
    boot = boot_id()
    return None if boot is None else f"{boot} {number}"


def boot_id() -> str | None:
    """Identify this boot of the machine; None where that is unknown."""
    try:
        return Path(_BOOT_ID).read_text(encoding="ascii").strip()
    except OSError:
        return None
