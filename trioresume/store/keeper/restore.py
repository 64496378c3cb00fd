"""Restoring a backup: a generation becomes a data directory.

The file ``restoring`` is put into the directory first and removed last. While it is there, no
service can be started on the directory, and a further restore goes on where the last one
stopped. The directory's lock is held meanwhile, so that no service runs on it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from trioresume.errors import StorageError, StoreLocked
from trioresume.store.catalog.schema import sqlite_error
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.disk.unfinished import Epoch
from trioresume.store.file_system.data_dir import (
    FORMAT,
    RESTORING,
    is_served,
    lock_directory,
)
from trioresume.store.file_system.disk_io import Disk, translated
from trioresume.store.keeper.backup import ChunkCopier, Copied
from trioresume.store.keeper.backup_directory import (
    CATALOG,
    BackupDirectory,
    Generation,
    open_catalog,
    write_whole,
)
from trioresume.store.port import ContentKey
from trioresume.store.port.recipes import Digest

__all__ = ["Restore"]

_HARMLESS = frozenset({"lock", "lost+found", RESTORING, f"{RESTORING}.new"})
"""Names that may be in a directory that counts as empty."""


class Restore:
    """One run: iterate over :meth:`run`, which yields between short steps."""

    def __init__(
        self,
        directory: BackupDirectory,
        generation: Generation,
        data_dir: str | os.PathLike[str],
        *,
        links: bool = True,
        disk: Disk | None = None,
    ) -> None:
        self._directory = directory
        self._generation = generation
        self.path = os.path.abspath(data_dir)
        self._disk = disk or Disk(durable=True)
        self._links = links
        self.copied = Copied()
        self.looked = 0
        """The number of chunks that were looked at, of :attr:`total`."""
        self.total = 0
        self.on_progress: Callable[[], None] | None = None

    def _join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def run(self) -> Generator[None]:
        """Fill the data directory.

        Raises :class:`StoreLocked` if a service runs on it, and :class:`StorageError` if it
        is not empty, or if the disk fails.
        """
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise StorageError(f"{self.path} is no directory")
        self._refuse_content()  # before anything is made, not even a lock
        with translated(f"restoring into {self.path}"):
            lock = lock_directory(self.path, self._disk)
        with closing(lock):
            self._refuse_content()
            for step in self._steps():
                with translated(f"restoring into {self.path}"):
                    step()
                yield

    def _refuse_content(self) -> None:
        if not os.path.isdir(self.path):
            return
        with translated(f"restoring into {self.path}"):
            names = set(os.listdir(self.path))
        if RESTORING not in names and names - _HARMLESS:
            if CATALOG in names and is_served(self.path):
                raise StoreLocked(
                    f"a service runs on {self.path}: restore to another place"
                )
            raise StorageError(
                f"{self.path} is not empty: restore to another directory"
            )

    def _steps(self) -> Iterator[Callable[[], None]]:
        """Yield the steps in their order."""
        yield self._mark
        chunks = ChunkFiles(self._join("chunks"), self._disk)
        tails = TailFiles(self._join("tails"), self._disk, Epoch())
        yield chunks.prepare
        yield tails.prepare
        yield from self._chunk_steps(chunks)
        yield from self._tail_steps(tails)
        yield self._put_catalog
        yield partial(self._disk.sync_file_system, self.path)
        yield self._give_to_owner
        yield partial(write_whole, self._disk, self._join("format"), FORMAT)
        yield self._finish

    def _mark(self) -> None:
        write_whole(
            self._disk, self._join(RESTORING), self._generation.name.encode() + b"\n"
        )
        self._disk.sync_directory(self.path)

    def _chunk_steps(self, chunks: ChunkFiles) -> Iterator[Callable[[], None]]:
        copier = ChunkCopier(
            self._directory.chunks, chunks, self._disk, links=self._may_link()
        )
        with closing(open_catalog(self._generation)) as catalog:
            try:
                (self.total,) = catalog.execute(
                    "SELECT count(*) FROM chunks"
                ).fetchone()
                rows = catalog.execute(
                    "SELECT digest, length FROM chunks ORDER BY digest"
                )
                for digest, length in rows:
                    yield partial(self._put, copier, digest, length)
            except sqlite3.Error as exc:
                raise sqlite_error(exc) from exc

    def _may_link(self) -> bool:
        """Whether chunks may be one file with those of the backup: not with two owners."""
        if not self._links:
            return False
        owners = {os.stat(path).st_uid for path in (self.path, self._directory.path)}
        return len(owners) == 1

    def _put(self, copier: ChunkCopier, digest: bytes, length: int) -> None:
        self.looked += 1
        if self.on_progress is not None:
            self.on_progress()
        try:
            is_new = copier.put(Digest(digest), length)
        except OSError as exc:
            if not copier.is_lost(Digest(digest), exc):
                raise
            self.copied.missing.append(digest.hex())
            return
        if is_new:
            self.copied.chunks += 1
            self.copied.bytes += length
        else:
            self.copied.present += 1

    def _tail_steps(self, tails: TailFiles) -> Iterator[Callable[[], None]]:
        for path, _, _ in list(tails.names()):
            yield partial(self._disk.unlink, path)
        kept = TailFiles(
            os.path.join(self._generation.path, "tails"), self._disk, Epoch()
        )
        for _, key, index in kept.tails():
            yield partial(self._put_tail, kept, tails, key, index)

    def _put_tail(
        self, kept: TailFiles, tails: TailFiles, key: ContentKey, index: int
    ) -> None:
        target = tails.path(key, index)
        self._disk.copy(kept.path(key, index), target)
        proof = kept.proof(key, index)
        with closing(self._disk.open(target, write=True)) as file:
            self.copied.tail_bytes += os.fstat(file.fileno()).st_size
            if proof is not None:
                tails.write_proof(key, index, file, proof)
        self.copied.tails += 1

    def _put_catalog(self) -> None:
        temporary = self._join(f"{CATALOG}.new")
        self._disk.unlink(temporary)
        self._disk.copy(os.path.join(self._generation.path, CATALOG), temporary)
        for suffix in ("-wal", "-shm", "-journal"):
            self._disk.unlink(self._join(CATALOG + suffix))
        self._disk.replace(temporary, self._join(CATALOG))

    def _give_to_owner(self) -> None:
        """Give everything to the owner of the directory: the service may be another user."""
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            return
        owner = os.stat(self.path)
        if owner.st_uid == 0:
            return
        for path in [Path(self.path), *Path(self.path).rglob("*")]:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _finish(self) -> None:
        self._disk.sync_directory(self.path)
        self._disk.unlink(self._join(RESTORING))
        self._disk.sync_directory(self.path)
