"""Making a backup: a copy of a data directory at one instant, beside a running service.

There are three parts.

1. :meth:`Backup.fill` links or copies the chunks that the catalog names now. This takes most
   of the time. The service goes on, so some of these chunks may be removed meanwhile.
2. :meth:`Backup.take` needs the service to *hold* collection: to remove no chunk. It copies
   the catalog as it is at one instant (SQLite's online backup), then the tails, because they
   change most, then the few chunks that this
   catalog names and the first part did not find.
3. If the hold lasted until the end, :meth:`Backup.publish` gives the generation its name.

Chunks are immutable, so a chunk may be one file with two names (a hard link). Tails are not.
Since the instant of the catalog a tail may have grown, have become a chunk, or have been
dropped with its upload. So of a tail these bytes are copied:

* the bytes below the offset that the copied catalog records as durable. If the tail is gone,
  the chunk that it became has them. If the upload was ended meanwhile, it is ended in the
  copy as well: its client was told so;
* and the bytes after them that the tail's proof proves. With ``durability="process"`` no
  offset is recorded, and only proofs tell which bytes count.

Each copied tail gets a proof of its own, so that ``verify`` notices when it loses a bit.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from trioresume.errors import StorageConflict, StorageError
from trioresume.store.catalog.batch import FileChanges, Ledger
from trioresume.store.catalog.catalog import CatalogReader
from trioresume.store.catalog.chunk_lists import NO_EPOCH, ContentRow
from trioresume.store.catalog.schema import (
    connect,
    connect_reading,
    sqlite_error,
    write_error,
)
from trioresume.store.catalog.unreferenced import Pins, collect_rows
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.tail_files import Proof, TailFiles
from trioresume.store.disk.unfinished import Epoch
from trioresume.store.file_system.disk_io import (
    NO_LINKS,
    Descriptor,
    Disk,
    translated,
)
from trioresume.store.keeper.backup_directory import (
    CATALOG,
    BackupDirectory,
    Generation,
)
from trioresume.store.port import (
    SERVICE_CLOCK,
    Collected,
    ContentKey,
    EndOperation,
    SealChunk,
    is_response_key,
    operation_of,
)
from trioresume.store.port.recipes import Digest, JoinedRecipe

__all__ = ["Backup", "ChunkCopier", "Copied"]

_UNREADABLE = frozenset({errno.ENOENT, errno.EIO})
_READ_SIZE = 1024 * 1024
_PAGE = 500
_BLOCK = 1024 * 1024
_PASSES = 4
"""The most passes over the catalog before collection is held."""
_FEW = 64
"""A pass that found at most so many new chunks is the last one."""
_COLLECT = 10_000
_TOMBSTONE = 24 * 3600.0
"""Seconds for which an upload that ended meanwhile answers that it is gone."""


@dataclass(slots=True)
class Copied:
    """What was put into a directory so far."""

    chunks: int = 0
    """Chunks that are new there."""
    bytes: int = 0
    """Their bytes; a link counts like a copy."""
    present: int = 0
    """Chunks that were there already."""
    tails: int = 0
    tail_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    """Chunks that the catalog names and that could not be read, in hexadecimal."""


class ChunkCopier:
    """Puts chunks from one directory into another: links where possible, else copies."""

    def __init__(
        self, source: ChunkFiles, target: ChunkFiles, disk: Disk, *, links: bool
    ) -> None:
        self._source = source
        self._target = target
        self._disk = disk
        self._links = links
        self._shards: set[str] = set()

    def put(self, digest: Digest, length: int, *, synced: bool = True) -> bool:
        """Put one chunk in its place; return False if it was there already.

        Its bytes are durable before it has its name, because a later run believes a chunk
        that is there. *synced* says that those of the source are durable already. The name is
        durable only once the directory is synced.

        Raises :class:`FileNotFoundError` if the source does not have it.
        """
        path = self._target.path(digest)
        try:
            if os.lstat(path).st_size == length:
                return False
        except FileNotFoundError:
            self._make_shard(os.path.dirname(path))
            if self._link(digest, path, synced=synced):
                return True
        temporary = f"{path}.new"
        self._disk.unlink(temporary)
        source = self._source.path(digest)
        if not self._disk.clone(source, temporary):
            self._disk.copy(source, temporary)
        self._disk.replace(temporary, path)
        return True

    def _link(self, digest: Digest, path: str, *, synced: bool) -> bool:
        """Make *path*, a free name, a name of the source's file; return False if impossible."""
        if not self._links:
            return False
        name = path if synced else f"{path}.new"
        try:
            if not synced:
                self._disk.unlink(name)
            self._disk.link(self._source.path(digest), name)
            if not synced:
                with closing(self._disk.open(name)) as file:
                    self._disk.sync_data(file)
                self._disk.replace(name, path)
        except OSError as exc:
            if exc.errno not in NO_LINKS:
                raise
            # With EMLINK this file has too many names, but others have not.
            self._links = exc.errno == errno.EMLINK
            return False
        return True

    def is_lost(self, digest: Digest, exc: BaseException | None) -> bool:
        """Return whether :meth:`put` failed with *exc* because the source cannot be read.

        The error itself does not tell whether the reading or the writing failed.
        """
        if not isinstance(exc, OSError) or exc.errno not in _UNREADABLE:
            return False
        try:
            with closing(self._disk.open(self._source.path(digest))) as file:
                while self._disk.read(file.fileno(), _READ_SIZE):
                    pass
        except OSError:
            return True
        return False

    def _make_shard(self, shard: str) -> None:
        if shard not in self._shards:
            self._disk.make_directory(shard)
            self._shards.add(shard)


class Backup:
    """One run. The iterators yield between short steps, so that the caller can stop there."""

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        directory: BackupDirectory,
        *,
        links: bool = True,
        disk: Disk | None = None,
    ) -> None:
        self._data_dir = os.path.abspath(data_dir)
        self._directory = directory
        self._disk = disk or directory.disk
        self._live_chunks = ChunkFiles(self._join("chunks"), Disk(durable=False))
        self._live_tails = TailFiles(self._join("tails"), Disk(durable=False), Epoch())
        self._copier = ChunkCopier(
            self._live_chunks, directory.chunks, self._disk, links=links
        )
        self.copied = Copied()
        self.looked = 0
        """The number of chunks that the present pass has looked at, of :attr:`total`."""
        self.total = 0
        self.on_progress: Callable[[], None] | None = None

    def _join(self, name: str) -> str:
        return os.path.join(self._data_dir, name)

    # Before the hold.

    def fill(self) -> Generator[None]:
        """Put the chunks of the present catalog into the directory of backups."""
        with self._reading() as connection:
            for _ in range(_PASSES):
                before = self.copied.chunks
                yield from self._put_chunks(connection, is_held=False)
                if self.copied.chunks - before <= _FEW:
                    return

    def _reading(self) -> closing[sqlite3.Connection]:
        return closing(connect_reading(self._join(CATALOG)))

    def _put_chunks(
        self, connection: sqlite3.Connection, *, is_held: bool
    ) -> Iterator[None]:
        self.looked = 0
        [(self.total,)] = _rows(connection, "SELECT count(*) FROM chunks")
        after = b""
        while page := _rows(
            connection,
            "SELECT digest, length, unsynced = 0 FROM chunks WHERE digest > ?"
            " ORDER BY digest LIMIT ?",
            after,
            _PAGE,
        ):
            for digest, length, synced in page:
                self._put_chunk(
                    Digest(digest), length, synced=bool(synced), is_held=is_held
                )
                self.looked += 1
                if self.on_progress is not None:
                    self.on_progress()
                yield
            after = page[-1][0]
        self.copied.present = max(0, self.total - self.copied.chunks)

    def _put_chunk(
        self, digest: Digest, length: int, *, synced: bool, is_held: bool
    ) -> None:
        try:
            with translated(f"copying a chunk to {self._directory.path}"):
                is_new = self._copier.put(digest, length, synced=synced)
        except StorageError as exc:
            # Without a hold it may be collected. With a hold it is missing or unreadable.
            if not self._copier.is_lost(digest, exc.__cause__):
                raise
            if is_held:
                self.copied.missing.append(digest.hex())
            return
        if is_new:
            self.copied.chunks += 1
            self.copied.bytes += length

    # During the hold.

    def take(self) -> Generator[None]:
        """Copy the catalog, and all that it names and is not there yet."""
        with translated(f"making a backup in {self._directory.path}"):
            path = self._directory.begin()
        self.copied.missing.clear()
        self.copied.tails = self.copied.tail_bytes = 0
        catalog = os.path.join(path, CATALOG)
        with self._reading() as live:
            yield
            copy = self._copy_catalog(live, catalog)
            try:
                # The first start after a restore then looks for files that nobody needs.
                copy.execute("REPLACE INTO store VALUES ('clean', 'no')")
                yield from _release_unheld(copy)
                # Before the chunks, of which there may be many: these do not go away.
                yield from _Tails(
                    CatalogReader(live),
                    copy,
                    self._live_chunks,
                    self._live_tails,
                    TailFiles(os.path.join(path, "tails"), self._disk, Epoch()),
                    self.copied,
                ).copy()
                yield from self._put_chunks(copy, is_held=True)
                copy.execute("PRAGMA journal_mode = DELETE").fetchall()
            except sqlite3.Error as exc:
                raise write_error(exc, catalog) from exc
            finally:
                copy.close()
        with translated(f"making a backup in {self._directory.path}"):
            with closing(self._disk.open(catalog, write=True)) as file:
                self._disk.sync_data(file)

    def _copy_catalog(self, live: sqlite3.Connection, path: str) -> sqlite3.Connection:
        try:
            self._disk.create(path).close()  # for this user only
            target = sqlite3.connect(path, isolation_level=None)
            try:
                live.backup(target)
            finally:
                target.close()
            live.execute("SELECT 1 FROM store LIMIT 1")  # was it really unchanging?
            return connect(path, "OFF")  # it is synced as a whole
        except sqlite3.Error as exc:
            raise write_error(exc, path) from exc

    # After it.

    def publish(self) -> Generation:
        """Make the generation durable, and give it its name."""
        with translated(f"making a backup in {self._directory.path}"):
            return self._directory.publish()


def _rows(
    connection: sqlite3.Connection, sql: str, *values: object
) -> list[tuple[Any, ...]]:
    try:
        return connection.execute(sql, values).fetchall()
    except sqlite3.Error as exc:
        raise sqlite_error(exc) from exc


def _release_unheld(copy: sqlite3.Connection) -> Iterator[None]:
    """Remove from the copied catalog what collection would remove: it needs no chunks."""
    while True:
        copy.execute("BEGIN IMMEDIATE")
        done = collect_rows(copy, Pins(), _COLLECT).result()
        copy.execute("COMMIT")
        yield
        if done == Collected():
            return


class _Tails:
    """Copies the tails of the unfinished uploads in the catalog *copy*."""

    def __init__(
        self,
        live: CatalogReader,
        copy: sqlite3.Connection,
        chunks: ChunkFiles,
        tails: TailFiles,
        target: TailFiles,
        copied: Copied,
    ) -> None:
        self._live = live
        self._connection = copy
        self._catalog = CatalogReader(copy)
        self._chunks = chunks
        self._tails = tails
        self._target = target
        self._copied = copied
        self._provable = Epoch.kept_in(self._catalog).provable

    def copy(self) -> Iterator[None]:
        after = 0
        while page := self._connection.execute(
            "SELECT cid, key FROM contents WHERE cid > ? AND key IS NOT NULL"
            " ORDER BY cid LIMIT ?",
            (after, _PAGE),
        ).fetchall():
            for _, key in page:
                if not is_response_key(key):
                    self._copy_tails(ContentKey(key))
                yield
            after = page[-1][0]

    def _copy_tails(self, key: ContentKey) -> None:
        known = self._catalog.known(key)
        if known is None:
            return
        row, pieces = known
        index, is_full = row.prefix, not row.short_end
        while is_full:
            if index in pieces:
                length = pieces[index]
            else:
                due = max(0, min(row.chunk_size, row.durable - index * row.chunk_size))
                length = self._copy_tail(key, row, index, due)
                if length < due:
                    if not self._is_alive(key):
                        self._end(key)
                    return
            is_full = length == row.chunk_size
            index += 1

    def _copy_tail(self, key: ContentKey, row: ContentRow, index: int, due: int) -> int:
        """Copy at least *due* bytes of a tail if they are there; return how many it copied."""
        counts = row.epoch != NO_EPOCH and row.epoch >= self._provable
        for _ in range(3):  # it moves at most twice: from tail to chunk to recipe
            proof: Proof | None = None
            try:
                if counts:
                    proof = self._tails.proof(key, index)
                source = self._tails.disk.open(self._tails.path(key, index))
            except FileNotFoundError:
                found = self._chunk(key, index)
                if found is None:
                    continue
                source = found
                if counts:
                    due = os.fstat(found.fileno()).st_size  # a chunk's bytes are right
            with closing(source):
                return self._write(key, index, source, due, proof)
        return 0

    def _write(
        self,
        key: ContentKey,
        index: int,
        source: Descriptor,
        due: int,
        proof: Proof | None,
    ) -> int:
        wanted = max(due, 0 if proof is None else proof.length)
        if not wanted:
            return 0
        disk = self._target.disk
        path = self._target.path(key, index)
        disk.unlink(path)
        hasher, sure, length = blake3(), blake3(), 0
        with closing(disk.create(path)) as file:
            while length < wanted:
                stop = due if length < due else wanted
                block = self._tails.disk.read(
                    source.fileno(), min(_BLOCK, stop - length)
                )
                if not block:
                    break
                disk.write_all(file, memoryview(block))
                hasher.update(block)
                if length < due:
                    sure.update(block)
                length += len(block)
            if length > due and (proof is None or hasher.digest() != proof.hash):
                disk.truncate(file, due)
                hasher, length = sure, due
            if not length:
                disk.unlink(path)
                return 0
            self._target.write_proof(key, index, file, Proof(length, hasher.digest()))
            disk.sync_data(file)
        self._copied.tails += 1
        self._copied.tail_bytes += length
        return length

    def _chunk(self, key: ContentKey, index: int) -> Descriptor | None:
        """Open the chunk that the tail has become since, or return None."""
        digest = self._live.piece(key, index) or self._frozen(key, index)
        if digest is None:
            return None
        try:
            return self._chunks.disk.open(self._chunks.path(digest))
        except FileNotFoundError:
            return None

    def _frozen(self, key: ContentKey, index: int) -> Digest | None:
        """Return chunk *index* of an upload that was finished since."""
        record = self._live.operation(operation_of(key))
        if record is None or record.content is None or record.content.digest is None:
            return None
        recipe = self._live.recipe(record.content.digest)
        if isinstance(recipe, JoinedRecipe):
            first = self._live.recipe(recipe.parts[0])
            if first is None or isinstance(first, JoinedRecipe):
                return None
            part, index = divmod(index, first.chunk_count)
            if part >= len(recipe.parts):
                return None
            recipe = self._live.recipe(recipe.parts[part])
        if recipe is None or isinstance(recipe, JoinedRecipe):
            return None
        return recipe.chunk(index) if index < recipe.chunk_count else None

    def _is_alive(self, key: ContentKey) -> bool:
        """Whether the upload is unfinished still, so that its lost bytes are no news."""
        return self._live.content(key) is not None

    def _end(self, key: ContentKey) -> None:
        """End the upload in the copy, as it was ended in the service."""
        reading = self._catalog.meta(SERVICE_CLOCK)
        now = 0.0 if reading is None else float(reading.split()[0])
        end = EndOperation(operation_of(key), now + _TOMBSTONE)
        self._connection.execute("BEGIN IMMEDIATE")
        changes = FileChanges()
        ledger = Ledger(
            self._connection, _NoPublisher(), chunk_size=1, epoch=0, durable=True
        )
        ledger.submit([end], changes)
        self._connection.execute("COMMIT")
        for dropped in changes.dropped:
            self._target.remove_from(dropped.key, dropped.first, dropped.last_sealed)


class _NoPublisher:
    """For a ledger that publishes no chunk."""

    def is_ready(self, seal: SealChunk) -> bool:
        raise StorageConflict("a backup publishes nothing")

    def publish(self, seal: SealChunk, *, known: bool) -> bool:
        raise StorageConflict("a backup publishes nothing")
