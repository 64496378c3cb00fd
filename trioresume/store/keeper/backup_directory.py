"""The directory of backups: generations that share their chunks.

::

    backups/
    ├── format                    one line: the version of all this
    ├── lock                      locked while a command changes the directory or reads it
    ├── chunks/00 … ff/           the chunks of all generations, as in a data directory
    ├── 000001-20261130T154328Z/
    │   ├── format                the same line: no service can be started on a generation
    │   ├── catalog.sqlite3       a copy of the catalog at one instant
    │   └── tails/                the ends of the uploads that were unfinished then
    └── unfinished/               a generation that is being made, or that a crash left

A generation gets its name by one rename, after everything that it needs was synced. So each
crash leaves the older generations, and the new one whole or not at all. Chunks that a crash
leaves are used by the next backup. Generations are ordered by their number, not by the date,
because clocks can be wrong.

A generation is removed by renaming it to ``removed`` first. Then chunks that no generation
names are removed. Only a command that holds the lock does this, so no backup is adding
chunks meanwhile.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from trioresume.errors import FormatVersionUnsupported, StorageError, StoreLocked
from trioresume.store.catalog.schema import sqlite_error
from trioresume.store.disk.chunks import SHARDS, ChunkFiles
from trioresume.store.file_system.data_dir import lock_directory, share_lock
from trioresume.store.file_system.disk_io import Descriptor, Disk, translated
from trioresume.store.port.recipes import Digest

__all__ = [
    "BACKUP_FORMAT",
    "CATALOG",
    "BackupDirectory",
    "Generation",
    "generation_at",
    "open_catalog",
    "write_whole",
]

BACKUP_FORMAT = b"trioresume backup, format 1\n"
CATALOG = "catalog.sqlite3"
_UNFINISHED = "unfinished"
_REMOVED = "removed"
_NAME = re.compile(r"(?P<number>[0-9]{6,9})-(?P<date>[0-9]{8}T[0-9]{6}Z)")
_HARMLESS = frozenset({"lock", "format.new", "lost+found"})
"""Names that may be in a directory which is to become one of backups."""
_DIGEST_HEAD = b"\x1e\x20"


@dataclass(frozen=True, slots=True)
class Generation:
    """One backup in a directory of backups."""

    name: str
    path: str

    @property
    def number(self) -> int:
        """The order in which the generations were made."""
        match = _NAME.fullmatch(self.name)
        return 0 if match is None else int(match["number"])


def generation_at(path: str) -> Generation | None:
    """Return the generation at *path*, which may also be a directory of backups: its newest.

    Returns None if *path* is no backup, or has no generation.
    """
    try:
        if Path(path, "format").read_bytes() != BACKUP_FORMAT:
            return None
    except OSError:
        return None
    if os.path.exists(os.path.join(path, CATALOG)):
        return Generation(os.path.basename(path), path)
    found = _generations(path)
    return found[-1] if found else None


def _generations(path: str) -> list[Generation]:
    names = [name for name in os.listdir(path) if _NAME.fullmatch(name)]
    found = [Generation(name, os.path.join(path, name)) for name in names]
    return sorted(found, key=lambda generation: generation.number)


class BackupDirectory:
    """A directory of backups that this process has locked. :meth:`close` ends that.

    Open it with :meth:`to_write` or :meth:`to_read`.
    """

    def __init__(self, path: str, disk: Disk, lock: Descriptor | None) -> None:
        self.path = path
        self.disk = disk
        self.chunks = ChunkFiles(self.join("chunks"), disk)
        self._lock = lock

    @classmethod
    def to_write(cls, path: str | os.PathLike[str], disk: Disk) -> BackupDirectory:
        """Open or make the directory for a command that changes it.

        Raises :class:`StorageError` if it has anything but backups in it, and
        :class:`StoreLocked` if another command uses it.
        """
        at = os.path.abspath(path)
        _check_format(at, may_be_new=True)
        try:
            with translated(f"opening {at}"):
                lock = lock_directory(at, disk)
        except StoreLocked as exc:
            raise StoreLocked(
                f"another command uses this directory of backups ({at})"
            ) from exc
        directory = cls(at, disk, lock)
        try:
            with translated(f"opening {at}"):
                if not os.path.exists(directory.join("format")):
                    write_whole(disk, directory.join("format"), BACKUP_FORMAT)
                directory.chunks.prepare()
        except BaseException:
            directory.close()
            raise
        return directory

    @classmethod
    def to_read(cls, path: str | os.PathLike[str], disk: Disk) -> BackupDirectory:
        """Open the directory for a command that only reads it; it need not be writable."""
        at = os.path.abspath(path)
        _check_format(at, may_be_new=False)
        try:
            lock = share_lock(at)
        except StoreLocked as exc:
            raise StoreLocked(
                f"a backup is being made in this directory ({at})"
            ) from exc
        return cls(at, disk, lock)

    def close(self) -> None:
        """Unlock the directory. Idempotent."""
        if self._lock is not None:
            self._lock.close()

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def generations(self) -> list[Generation]:
        """Return all complete generations, the oldest first."""
        return _generations(self.path)

    def find(self, name: str | None) -> Generation:
        """Return the generation called *name*, or the newest one.

        The number alone is a name, too. Raises :class:`StorageError` if there is none.
        """
        found = self.generations()
        if name is not None:
            found = [
                each
                for each in found
                if each.name == name or (name.isdecimal() and each.number == int(name))
            ]
        if not found:
            which = "no backup" if name is None else f"no backup called {name}"
            raise StorageError(f"there is {which} in {self.path}")
        return found[-1]

    # Making one.

    def begin(self) -> str:
        """Make the directory of a new generation, and return its path."""
        path = self.join(_UNFINISHED)
        self._remove_tree(path)
        self.disk.make_directory(path)
        self.disk.make_directory(os.path.join(path, "tails"))
        return path

    def publish(self) -> Generation:
        """Give the new generation its name, durably. All that it needs is synced before."""
        path = self.join(_UNFINISHED)
        write_whole(self.disk, os.path.join(path, "format"), BACKUP_FORMAT)
        # The names of all chunks, too: an earlier backup may have been killed before this.
        self.disk.sync_file_system(self.path)
        last = self.generations()
        number = last[-1].number + 1 if last else 1
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{number:06}-{date}"
        self.disk.replace(path, self.join(name))
        self.disk.sync_directory(self.path)
        return Generation(name, self.join(name))

    # Removing some.

    def prune(self, keep: int) -> list[str]:
        """Remove all generations but the newest *keep*, and the chunks that only they need.

        Returns the names of the removed ones. *keep* is at least 1.
        """
        with translated(f"removing backups from {self.path}"):
            return self._prune(self.generations()[: -max(1, keep)])

    def _prune(self, removed: list[Generation]) -> list[str]:
        for generation in removed:
            self._remove_tree(self.join(_REMOVED))
            self.disk.replace(generation.path, self.join(_REMOVED))
            self.disk.sync_directory(self.path)
        self._remove_tree(self.join(_REMOVED))
        self._remove_unnamed_chunks()
        return [generation.name for generation in removed]

    def _remove_unnamed_chunks(self) -> None:
        with _catalogs(self.generations()) as catalogs:
            for shard in SHARDS:
                named: set[Digest] | None = None
                for path, digest in self.chunks.names(shard):
                    if named is None:
                        named = _named_in(shard, catalogs)
                    if digest not in named and os.path.isfile(path):
                        self.disk.unlink(path)

    def _remove_tree(self, path: str) -> None:
        """Remove a directory that no reader looks at, whatever a crash left of it."""
        if not os.path.isdir(path):
            return
        for directory, folders, names in os.walk(path, topdown=False):
            for name in names:
                self.disk.unlink(os.path.join(directory, name))
            for name in folders:
                self.disk.remove_directory(os.path.join(directory, name))
        self.disk.remove_directory(path)


def open_catalog(generation: Generation) -> sqlite3.Connection:
    """Return a connection that reads the catalog of *generation*, also one of an old version.

    It has no write-ahead log, so that reading it writes nothing. Raises
    :class:`StorageError`.
    """
    uri = f"{Path(generation.path, CATALOG).as_uri()}?mode=ro"
    try:
        return sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as exc:
        raise sqlite_error(exc) from exc


@contextmanager
def _catalogs(generations: list[Generation]) -> Iterator[list[sqlite3.Connection]]:
    opened: list[sqlite3.Connection] = []
    try:
        opened.extend(map(open_catalog, generations))
        yield opened
    finally:
        for connection in opened:
            connection.close()


def _named_in(shard: str, catalogs: list[sqlite3.Connection]) -> set[Digest]:
    """Return the digests in *shard* that any of *catalogs* names."""
    first = _DIGEST_HEAD + bytes.fromhex(shard)
    after = _DIGEST_HEAD + bytes([first[2] + 1]) if first[2] < 255 else b"\x1e\x21"
    named: set[Digest] = set()
    for connection in catalogs:
        try:
            named.update(
                Digest(digest)
                for (digest,) in connection.execute(
                    "SELECT digest FROM chunks WHERE digest >= ? AND digest < ?",
                    (first, after),
                )
            )
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc
    return named


def _check_format(path: str, *, may_be_new: bool) -> None:
    try:
        found = Path(path, "format").read_bytes()
    except FileNotFoundError:
        others = set(os.listdir(path)) - _HARMLESS if os.path.isdir(path) else set()
        if may_be_new and not others:
            return
        what = "has other files in it" if others else "is no directory of backups"
        raise StorageError(f"{path} {what}") from None
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}") from exc
    if found != BACKUP_FORMAT:
        raise FormatVersionUnsupported(
            f"{path} has no backups of a format that this trioresume knows: its format is"
            f" {found[:80]!r}"
        )


def write_whole(disk: Disk, path: str, data: bytes) -> None:
    """Write the small file *path*, durably but for its name, so that a crash leaves no half."""
    temporary = f"{path}.new"
    disk.unlink(temporary)
    with closing(disk.create(temporary)) as file:
        disk.write_all(file, memoryview(data))
        disk.sync_data(file)
    disk.replace(temporary, path)
