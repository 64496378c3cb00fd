"""The store on a local disk: chunk files, tails and the catalog put together.

The files on disk::

    format            the version of all this
    lock              held while a process serves the directory
    reserve           space for releasing something on a full disk (see free_space.py)
    catalog.sqlite3   operations, chunk lists, holds, recorded responses, files
    chunks/xx/…       finished chunks (see chunks.py)
    tails/…           bytes that are no chunk yet (see tail_files.py)

The order in which a chunk becomes known
========================================

1. its tail is synced (:meth:`Seal.run <trioresume.store.port.Seal.run>`);
2. the tail is linked under the chunk's name, and that directory is synced;
3. the catalog commits the piece;
4. the tail is unlinked.

A crash between any two steps leaves the bytes where the next open looks for them: in
the tail before the commit, in the chunk after it. Steps 2 to 4 and collection exclude
each other (``_changing``), so collection cannot remove a chunk that step 2 found.

Which of a tail's bytes count after a restart
=============================================

The kernel keeps written bytes when a process dies. It loses some of them when the machine
fails. It also loses some without a reboot, when a file system is shut down after an error,
or is detached and mounted again. Nobody can tell for certain what happened between two
processes. So each start begins a new *epoch*, even after a clean end. For content written
in this epoch, all bytes in the tail count. For older content, two kinds of bytes count:
bytes that were recorded as synced, and bytes that are proven. The store keeps a hash of a
tail's bytes with the tail (see tail_files.py); bytes that still have this hash are proven. The
rest is cut off when the content is opened. The store looks at a tail only when somebody
asks for it, so a start costs the same with any number of unfinished uploads.

Chunks that were published with ``durability="process"``, where nothing is synced, can lose
bytes in the same way: see doubts.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from blake3 import blake3

from trioresume.errors import (
    CallerError,
    StorageConflict,
    StorageError,
    StorageFull,
)
from trioresume.store.catalog.batch import FileChanges
from trioresume.store.catalog.catalog import Catalog, namespace_of
from trioresume.store.catalog.unreferenced import Pins, collect_rows
from trioresume.store.catalog.whole_uploads import BatchLedger
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.contents import DiskContents
from trioresume.store.disk.opening import Opening
from trioresume.store.disk.readers import pinned_recipe
from trioresume.store.disk.recovery import Recovery
from trioresume.store.disk.start import begin_epoch, refuse_lost_catalog
from trioresume.store.disk.tail_files import Hasher, TailFiles
from trioresume.store.disk.tails import Writers
from trioresume.store.disk.unfinished import Epoch
from trioresume.store.file_system.data_dir import DataDir
from trioresume.store.file_system.disk_io import Disk, translated
from trioresume.store.file_system.free_space import FreeSpace
from trioresume.store.keeper.sweep import Sweep
from trioresume.store.port import (
    Collected,
    Content,
    ContentKey,
    EventRecord,
    FileRecord,
    Mutation,
    OperationId,
    OperationRecord,
    OperationState,
    RemoveFile,
    SealChunk,
    Sharing,
    Usage,
    content_of,
    grows,
    operation_of,
    releases,
)
from trioresume.store.port.recipes import AnyRecipe, Digest, JoinedRecipe, cut, join

__all__ = ["DEFAULT_CHUNK_SIZE", "DiskStore", "Durability", "open_store"]

DEFAULT_CHUNK_SIZE = 4 * 1024 * 1024

Durability = Literal["disk", "process"]

_SWEEP_SLICE = 256
"""Files that a sweep looks at under the lock at a time: a few milliseconds."""


def open_store(
    data_dir: str | os.PathLike[str],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    durability: Durability = "disk",
    min_free_space: int = 0,
    reserve: int = 0,
    disk: Disk | None = None,
    new_hasher: Callable[[], Hasher] = blake3,
) -> DiskStore:
    """Open the store in *data_dir*, which is made if it does not exist.

    *chunk_size* is in bytes and applies to content that is begun from now on. Content is
    refused once only *min_free_space* bytes of the disk are free, or a twentieth of the
    disk if that is less. A file of *reserve* bytes is kept, and given up when something
    must be released on a full disk. *disk* performs the changes instead of the operating
    system, and *new_hasher* makes what hashes a chunk's bytes: for tests, and to measure.

    Raises :class:`StoreLocked`, :class:`FormatVersionUnsupported` and other
    :class:`StorageError`.
    """
    if chunk_size < 1:
        raise CallerError("the chunk size is at least one byte")
    with translated(f"opening the store in {os.fspath(data_dir)}"):
        return DiskStore(
            data_dir,
            chunk_size=chunk_size,
            disk=disk or Disk(durable=durability == "disk"),
            min_free_space=min_free_space,
            reserve=reserve,
            new_hasher=new_hasher,
        )


class DiskStore(DiskContents):
    """See :class:`trioresume.store.port.Store`, and :func:`open_store`."""

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        chunk_size: int,
        disk: Disk,
        min_free_space: int = 0,
        reserve: int = 0,
        new_hasher: Callable[[], Hasher] = blake3,
        writers: Writers | None = None,
    ) -> None:
        self._disk = disk
        self.chunk_size = chunk_size
        self.blocking = True
        self.durable_at_once = not disk.durable
        self._changing = threading.Lock()
        self._writers = writers or Writers()
        self._pins = Pins()
        self._epoch = Epoch()
        self._has_hastened = False
        """Whether the catalog makes checkpoints as it should while the reserve is spent."""
        self._passed_over: dict[ContentKey, set[int]] = {}
        """Tails past a gap that a sweep met while their content had a writer."""
        self._dir = DataDir(data_dir, disk)
        self._space = FreeSpace(
            self._dir.path, disk, min_free=min_free_space, reserve=reserve
        )
        try:
            self._chunks = ChunkFiles(self._dir.join("chunks"), disk)
            self._tails = TailFiles(
                self._dir.join("tails"),
                disk,
                self._epoch,
                take_space=self._space.take_content,
                look_again=self._space.look_again,
                distrust=self._distrust,
                distrust_all=self._distrust_all,
                new_hasher=new_hasher,
            )
            self._chunks.prepare()
            self._tails.prepare()
            self._space.open_reserve()
            self._catalog = Catalog(self._dir.join("catalog.sqlite3"), disk)
            self._contents_catalog = self._catalog
            self._adapt_checkpoints()
            disk.sync_directory(self._dir.path)
        except BaseException:
            self._dir.close()
            raise
        try:
            refuse_lost_catalog(self._catalog, self._chunks)
            self._sweep: Sweep | None = None
            if begin_epoch(
                self._epoch,
                self._catalog,
                self._chunks,
                self._tails,
                disk,
                self._dir.path,
            ):
                self._sweep_is_due()
        except BaseException:
            self._catalog.close()
            self._dir.close()
            raise
        self._recovery = Recovery(
            self._catalog,
            self._chunks,
            self._tails,
            disk,
            self._changing,
            chunk_size=chunk_size,
            epoch=self._epoch,
        )

    @property
    def lock(self) -> int:
        """The descriptor of the data directory's lock."""
        return self._dir.lock

    @property
    def sharing(self) -> Sharing | None:
        return None

    def _sweep_is_due(self) -> None:
        self._sweep = Sweep(
            self._catalog,
            self._chunks,
            self._tails,
            self._writers,
            self._holds_tail,
            self._passed_over,
        )

    def _holds_tail(self, key: ContentKey, index: int) -> bool:
        return self._recovery.holds_tail(key, index)

    def close(self) -> None:
        self._writers.close()
        with self._changing:
            try:
                self._note_end()
            except StorageError:
                pass  # a full disk must not prevent the end; the next start sweeps
            finally:
                self._sweep = None
                self._catalog.close()
                if not self._disk.durable:
                    # Only the proofs tell of these bytes, because no offset was recorded.
                    self._tails.copy_proofs()
                self._dir.close()

    def _note_end(self) -> None:
        clean = not (
            self._sweep
            or self._has_strays()
            or self._tails.doubted
            or self._chunks.doubted
        )
        try:
            if clean:
                # After a clean end nobody sweeps, so a removal that a power loss undoes
                # would never be found.
                self._chunks.sync_removals()
                self._tails.sync_names()
        except OSError:
            clean = False
        with self._catalog.transaction() as connection:
            self._epoch.note(connection)
            if clean:
                connection.execute("REPLACE INTO store VALUES ('clean', 'yes')")

    def _has_strays(self) -> bool:
        return any(
            self._tails.length(key, index) is not None
            for key, indexes in self._passed_over.items()
            for index in indexes
        )

    # Changing.

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        grown = any(grows(submission) for submission in batch)
        if self._space.is_spent and not self._space.restore() and grown:
            raise StorageFull(
                "the disk is full: the space that is left is kept for deleting something"
            )
        if self._has_hastened is not self._space.is_spent:
            self._adapt_checkpoints()
        while True:
            try:
                if self._space.is_limit_hidden:
                    with translated("a commit"):
                        self._space.check_commit()
                return self._apply(batch)
            except StorageFull:
                self._space.look_again()
                if grown or not self._make_room(batch):
                    raise

    def _make_room(self, batch: Sequence[Sequence[Mutation]]) -> bool:
        """Give up some space for *batch*, which adds nothing; return whether there was any."""
        if self._space.give_up_cushion():
            return True
        return any(map(releases, batch)) and self._spend_reserve()

    def _spend_reserve(self) -> bool:
        spent = self._space.spend()
        self._adapt_checkpoints()
        return spent

    def _adapt_checkpoints(self) -> None:
        with self._changing:
            if self._has_hastened is not self._space.is_spent:
                self._has_hastened = self._space.is_spent
                self._catalog.hasten_checkpoints(self._has_hastened)

    def _apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        file_changes = FileChanges()
        with self._changing:
            try:
                with self._catalog.transaction() as connection:
                    self._epoch.note(connection)
                    ledger = BatchLedger(
                        connection,
                        self,
                        chunk_size=self.chunk_size,
                        epoch=self._epoch.number,
                        durable=self._disk.durable,
                    )
                    results = ledger.submit_all(batch, file_changes)
                    self._chunks.sync()
            except BaseException:
                self._sweep_is_due()  # the catalog may not name the published chunks
                raise
            if any(results):
                self._sweep_is_due()
            with self._leftovers():
                for seal in file_changes.sealed:
                    self._tails.end_sealing(seal.key, seal.index)
                    self._tails.remove(seal.key, seal.index)
        # Done outside the lock: ending a writer waits for a writer that is being opened,
        # and opening may wait for the lock. Dropped content never comes back, so no writer
        # can take it in between.
        for key in file_changes.frozen:
            self._epoch.forget(key)
        with self._leftovers():
            for dropped in file_changes.dropped:
                self._epoch.forget(dropped.key)
                self._writers.end(dropped.key)
                self._tails.end_sealings(dropped.key)
                self._tails.remove_from(dropped.key, dropped.first, dropped.last_sealed)
                for index in self._passed_over.pop(dropped.key, ()):
                    self._tails.remove(dropped.key, index)
        return results

    @contextmanager
    def _leftovers(self) -> Iterator[None]:
        """Leave a file that cannot be unlinked to a later sweep: the commit stands."""
        try:
            yield
        except OSError:
            self._sweep_is_due()

    def publish(self, seal: SealChunk, *, known: bool) -> bool:
        if not self._tails.is_sealed(seal):
            raise StorageConflict(
                f"chunk {seal.index} was discarded before it was sealed"
            )
        tail = self._tails.path(seal.key, seal.index)
        return self._chunks.publish(tail, seal.digest, seal.length, known=known)

    def _distrust(self, key: ContentKey) -> None:
        tail = self._writers.tail(key)
        if tail is not None:
            tail.broken = True
        self._recovery.distrust(key)

    def _distrust_all(self) -> None:
        self._epoch.suspect_open(self._writers.break_all())

    def collect(self, limit: int) -> Collected:
        try:
            with translated("collecting"):
                self._space.check_commit()
            return self._collect(limit)
        except StorageFull:
            self._space.look_again()
            self._space.give_up_cushion()
            if not self._spend_reserve():
                raise
            return self._collect(limit)

    def _collect(self, limit: int) -> Collected:
        with self._changing:
            try:
                with self._catalog.transaction() as connection:
                    step = collect_rows(connection, self._pins, limit)
            finally:
                self._pins.acquit()
            with self._leftovers():
                for digest in step.chunks:
                    self._chunks.remove(digest)
            collected = step.result()
            sweep = self._sweep
            if collected == Collected() and sweep is not None:
                with translated("sweeping"):
                    collected = sweep.advance(min(limit, _SWEEP_SLICE))
                if collected == Collected() and self._sweep is sweep:
                    self._sweep = None
        return collected

    def sweep(self) -> None:
        with self._changing:
            self._sweep_is_due()

    def check(self) -> None:
        self._catalog.check()

    # Reading.

    def operation(self, id: OperationId) -> OperationRecord | None:
        return self._catalog.operation(id)

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None:
        return self._catalog.operation_owned_by(id, principal)

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        return self._catalog.operations_in(states, limit, after)

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        return self._catalog.expiring(limit)

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]:
        file = self._catalog.file_by_id(int(token.removeprefix("f:")))
        if file is None or file.expires_at is None or file.expires_at > now:
            return []
        return [RemoveFile(file.owner, file.name, file.content)]

    def file(self, owner: str | None, name: str) -> FileRecord | None:
        return self._catalog.file(owner, name)

    def count_operations(self) -> Mapping[OperationState, int]:
        return self._catalog.count_operations()

    def meta(self, name: str) -> str | None:
        return self._catalog.meta(name)

    def due_events(
        self, now: float, limit: int, *, tasks: bool = False
    ) -> tuple[list[EventRecord], float | None]:
        return self._catalog.due_events(now, limit, tasks=tasks)

    def events(
        self, *, dead: bool, after: int, limit: int, tasks: bool = False
    ) -> list[EventRecord]:
        return self._catalog.events(dead=dead, after=after, limit=limit, tasks=tasks)

    def event_count(self) -> int:
        return self._catalog.event_count()

    def usage(self, principal: str | None) -> Usage:
        return self._catalog.usage(namespace_of(principal))

    def total_usage(self) -> Usage:
        return self._catalog.usage("*")

    def take_room(self, size: int) -> None:
        with translated("making a record"):
            self._space.take(size)

    # Content. The methods of the port are in DiskContents.

    def _find_opening(self, key: ContentKey) -> Opening:
        return self._recovery.find(key)

    def _offset_without_writer(self, key: ContentKey) -> int:
        offset = self._recovery.offset(key)
        if offset is not None:
            return offset
        record = self._catalog.operation(operation_of(key))
        frozen = None if record is None else record.content
        return 0 if frozen is None else frozen.length

    def _pin(self, digest: Digest) -> AnyRecipe:
        return pinned_recipe(self._catalog, self._pins, digest)

    def _unpin(self, digest: Digest) -> None:
        self._pins.unpin(digest)

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk] = ()
    ) -> Content:
        listed = self._catalog.listed(key)
        if listed is None:
            return content_of(self.chunk_size, seals)
        row, parts, chunks = listed
        following = [seal for seal in seals if seal.index >= row.prefix]
        length = row.prefix_bytes + sum(seal.length for seal in following)
        rest = length - row.folded * row.chunk_size
        chunks += [seal.digest for seal in following]
        if chunks or not parts:
            parts += [recipe.digest for recipe in cut(row.chunk_size, rest, chunks)]
        joined = join(row.chunk_size, length, parts)
        return Content(length, None, parts[0] if joined is None else joined.digest)

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        recipe = (
            None if content.digest is None else self._catalog.recipe(content.digest)
        )
        if not isinstance(recipe, JoinedRecipe):
            return (content,)
        parts = zip(recipe.parts, recipe.lengths, strict=True)
        return tuple(Content(length, None, digest) for digest, length in parts)
