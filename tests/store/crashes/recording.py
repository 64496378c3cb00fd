"""A disk that performs every change, and writes down what was done in which order.

What is written down is enough to work out what the disk may hold after a crash at any
moment; see :mod:`tests.store.crashes.power`. SQLite's own calls are part of it, by
:mod:`tests.store.crashes.sqlite_calls`. Any call can be made to fail.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.store.crashes.sqlite_calls import watched
from trioresume.store.file_system.disk_io import Descriptor, Disk

__all__ = [
    "Call",
    "Create",
    "Link",
    "MakeDirectory",
    "Note",
    "Recording",
    "RemoveDirectory",
    "Replace",
    "SyncDirectory",
    "SyncEverything",
    "SyncFile",
    "Truncate",
    "Unlink",
    "Write",
]


@dataclass(frozen=True, slots=True)
class Create:
    """A new, empty file called *path*; *file* is what later calls know it by."""

    path: str
    file: int


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    path: str


@dataclass(frozen=True, slots=True)
class RemoveDirectory:
    path: str


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    file: int
    length: int


@dataclass(frozen=True, slots=True)
class Link:
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Unlink:
    path: str


@dataclass(frozen=True, slots=True)
class Replace:
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class SyncFile:
    file: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    path: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class SyncEverything:
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Not a call: what the outside world may rely on from here on."""

    value: object
    relaxes: bool = False
    """Whether that is less than before."""


Call = (
    Create
    | MakeDirectory
    | RemoveDirectory
    | Write
    | Truncate
    | Link
    | Unlink
    | Replace
    | SyncFile
    | SyncDirectory
    | SyncEverything
    | Note
)
"""Paths are relative to the recording's root."""


class Recording(Disk):
    """Records what is done below *root*, which is empty or was recorded before.

    *fails* is asked before each change and each sync, and says whether that fails; the
    call is what it was asked about. What *omits* says of a sync is that it is not done,
    though whoever called it believes so.
    """

    syncs_at_once = 1  # calls come in one order

    def __init__(
        self,
        root: Path,
        fails: Callable[[Call], bool] = lambda call: False,
        omits: Callable[[Call], bool] = lambda call: False,
        *,
        durable: bool = True,
    ) -> None:
        super().__init__(durable=durable)
        self.attaches = False  # attributes are not recorded
        self.calls: list[Call] = []
        self._root = str(root)
        self._fails = fails
        self._omits = omits
        self._files: dict[int, int] = {}
        """Inodes, and what the files are called here."""
        self._count = 0
        self.space: int | None = None
        """How many more bytes the store can write; SQLite is not concerned."""
        self.write = self._write

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record what SQLite does as well. Databases are opened and closed within."""
        with watched(self):
            yield

    def adopt(self, path: str) -> int:
        """The file *path*, relative to the root, that is there already."""
        return self._named(os.stat(os.path.join(self._root, path)).st_ino)

    def path_of(self, file: int) -> str:
        """Under which name a *file* was made; empty for what was there before."""
        made = (call for call in reversed(self.calls) if isinstance(call, Create))
        return next((call.path for call in made if call.file == file), "")

    def note(self, value: object, *, relaxes: bool = False) -> None:
        self.calls.append(Note(value, relaxes))

    def _named(self, inode: int) -> int:
        if inode not in self._files:
            self._count += 1
            self._files[inode] = self._count
        return self._files[inode]

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._root)

    def _tell(self, call: Call) -> None:
        """Record *call*, unless it is to fail."""
        if self._fails(call):
            raise OSError(errno.EIO, "Input/output error", str(call)[:200])
        self.calls.append(call)

    def _tell_sync(
        self, call: SyncFile | SyncDirectory, failed: SyncFile | SyncDirectory
    ) -> None:
        # A sync that fails has an effect, too: see power.
        if self._fails(call):
            self.calls.append(failed)
            raise OSError(errno.EIO, "Input/output error", str(call)[:200])
        if not self._omits(call):
            self.calls.append(call)

    def _forget(self, path: str) -> None:
        """The name goes; with the last one the inode, whose number may be used again."""
        stat = os.stat(path)
        if stat.st_nlink == 1:
            self._files.pop(stat.st_ino, None)

    # The store's calls.

    def create(self, path: str) -> Descriptor:
        if os.path.exists(path):
            return super().create(path)  # which fails
        if self._fails(Create(self._relative(path), 0)):
            raise OSError(errno.EIO, "Input/output error", path)
        file = super().create(path)
        self._created(path, os.fstat(file.fileno()).st_ino)
        return file

    def _created(self, path: str, inode: int) -> None:
        self._files.pop(inode, None)
        self.calls.append(Create(self._relative(path), self._named(inode)))

    def make_directory(self, path: str) -> None:
        if not os.path.isdir(path):
            self._tell(MakeDirectory(self._relative(path)))
        super().make_directory(path)

    def remove_directory(self, path: str) -> None:
        self._tell(RemoveDirectory(self._relative(path)))
        super().remove_directory(path)

    def _write(self, fd: int, data: memoryview) -> int:
        if self.space is not None:
            data = data[: self.space]
            if not data:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.space -= len(data)
        file = self._files[os.fstat(fd).st_ino]
        at = os.lseek(fd, 0, os.SEEK_CUR)
        self._tell(Write(file, at, bytes(data)))
        written = os.write(fd, data)
        assert written == len(data)
        return written

    def overwrite(self, path: str, data: bytes) -> None:
        if not os.path.exists(path):
            self.create(path).close()
        self._tell(Write(self._files[os.stat(path).st_ino], 0, data))
        super().overwrite(path, data)

    def truncate(self, file: Descriptor, length: int) -> None:
        self._tell(Truncate(self._files[os.fstat(file.fileno()).st_ino], length))
        super().truncate(file, length)

    def unlink(self, path: str) -> None:
        if os.path.exists(path):
            self._tell(Unlink(self._relative(path)))
            self._forget(path)
            super().unlink(path)

    def link(self, source: str, target: str) -> None:
        if not os.path.exists(target):
            self._tell(Link(self._relative(source), self._relative(target)))
        super().link(source, target)

    def replace(self, source: str, target: str) -> None:
        self._tell(Replace(self._relative(source), self._relative(target)))
        if os.path.exists(target):
            self._forget(target)
        super().replace(source, target)

    def sync_data(self, file: Descriptor) -> None:
        if not self.durable:
            return
        stat = os.fstat(file.fileno())
        if stat.st_nlink == 0:
            return  # its last name is gone: nothing of it can be left
        name = self._files[stat.st_ino]
        self._tell_sync(SyncFile(name), SyncFile(name, failed=True))

    def sync_directory(self, path: str) -> None:
        if not self.durable:
            return
        name = self._relative(path)
        self._tell_sync(SyncDirectory(name), SyncDirectory(name, failed=True))

    def sync_everything(self, path: str) -> None:
        if self.durable:
            self._tell(SyncEverything())

    def sync_file_system(self, path: str) -> None:
        self.sync_everything(path)

    # SQLite's calls.

    def sqlite_opened(self, path: str) -> None:
        inode = os.stat(path).st_ino
        if inode not in self._files:
            self._created(path, inode)

    def sqlite_writes(self, path: str, at: int, data: bytes) -> None:
        self._tell(Write(self._files[os.stat(path).st_ino], at, data))

    def sqlite_truncates(self, path: str, length: int) -> None:
        self._tell(Truncate(self._files[os.stat(path).st_ino], length))

    def sqlite_syncs(self, path: str) -> None:
        # SQLite also syncs the directory of a log that is new. It would ignore a failure
        # of that, so it is not counted on.
        name = self._files[os.stat(path).st_ino]
        self._tell_sync(SyncFile(name), SyncFile(name, failed=True))

    def sqlite_deletes(self, path: str) -> None:
        self._tell(Unlink(self._relative(path)))
        self._forget(path)
