"""The data directory: its lock, its format version, and which boot wrote it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trioresume.errors import FormatVersionUnsupported, StoreLocked
from trioresume.store.disk_io import Descriptor, Disk

__all__ = ["FORMAT", "DataDir", "boot_id"]

FORMAT = b"trioresume data directory, format 1\n"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str | None:
    """What tells this boot of the machine from all others; None where that is unknown."""
    try:
        return Path(_BOOT_ID).read_text(encoding="ascii").strip()
    except OSError:
        return None


class DataDir:
    """A data directory that this process alone serves."""

    def __init__(self, path: str | os.PathLike[str], disk: Disk) -> None:
        self.path = os.path.abspath(path)
        _make_durably(self.path, disk)
        self._lock = _lock(self.join("lock"))
        try:
            self._check_format(disk)
        except BaseException:
            self._lock.close()
            raise

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _check_format(self, disk: Disk) -> None:
        path = Path(self.join("format"))
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            pass
        else:
            if found != FORMAT:
                raise FormatVersionUnsupported(f"{path} says {found[:80]!r}")
            return
        # Written aside and renamed: a crash must not leave half a version behind.
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


def _make_durably(path: str, disk: Disk) -> None:
    """Make the directory *path* and those above it, if they are not there."""
    if not os.path.isdir(path):
        parent = os.path.dirname(path)
        if parent != path:
            _make_durably(parent, disk)
        disk.make_directory(path)
        disk.sync_directory(parent)


def _lock(path: str) -> Descriptor:
    """Lock *path* until the descriptor is closed or the process ends, however it ends."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    file = Descriptor(os.open(path, flags, 0o600))
    try:
        _lock_file(file.fileno())
    except OSError as exc:
        file.close()
        raise StoreLocked(
            f"another process serves this data directory, or collects in it ({path})"
        ) from exc
    return file


if sys.platform == "win32":
    import msvcrt

    def _lock_file(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock_file(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
