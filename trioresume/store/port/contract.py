"""The store's port: the operations that the server needs, and who guarantees their results.

Rules
=====

1. **Synchronous.** Nothing here awaits. Where an implementation may block on a
   disk, ``blocking`` is true and the server makes the call in a worker thread.
   The server calls these methods on its event loop all the same:
   :meth:`Store.new_writer`, which touches nothing; :meth:`Store.usage`, which looks up
   a row; :meth:`Store.check`, which looks up a name; :meth:`Store.take_room`, which now
   and then asks how much of the disk is free; and ``flush``, ``relax`` and ``close`` of a
   :class:`ContentWriter`, which write nothing.
2. **Decide, then do.** Changes are values (:data:`Mutation`). :meth:`Store.apply`
   performs a batch of them: each *submission* (a sequence of mutations) happens
   whole or not at all, submissions take effect in order, and when ``apply``
   returns, every submission without an error is durable.
3. **Durable** means: survives power loss with ``durability="disk"``, survives
   ``kill -9`` with ``durability="process"``.
4. **The offset derives from the data.** A writer's offset is the number of bytes on
   disk: the sealed chunks plus the tail's length. The recorded offset matters only
   after a power loss. Unsynced bytes in a tail cannot be trusted then, and the recorded
   offset bounds the writer's offset from above.
5. **One writer.** Opening a writer for a key makes every older writer of that
   key stale at once; a stale writer's ``append`` raises and writes nothing.

6. **Responses start anew.** Request content is resumed. Response content comes from
   one run of the target, so opening a writer for a response key discards the bytes
   that an earlier writer left there.

Threads: ``apply`` is called from one thread at a time. Reads, ``Seal.run`` and
``Flush.run`` may be called from any thread. A writer's other methods are called from
one thread at a time.

Numbers such as G7 and R34 are statements of docs/supported-protocols.md.

The life of content under construction
======================================

Content is built under a *key* (``ContentKey``). Bytes go to a *tail*; when the
tail holds ``chunk_size`` bytes it becomes a *chunk*, named by its digest::

    append → Seal ──run (thread: sync the tail)──► SealChunk ──apply──► chunk published
    flush  → Flush ─run (thread: sync the tail)──► RecordOffset ─apply─► offset durable
    finish → Seal for the last, shorter chunk, then FreezeContent with the whole content

``apply`` publishes a chunk: it links the chunk under its name and syncs the directory.
``apply`` is serialised with :meth:`Store.collect`, so collection cannot remove a chunk
that a writer just found to exist already. The tail is unlinked only after the catalog's
commit. So at each instant every accepted byte lies in a tail or in a published chunk
that the catalog names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trioresume.errors import StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.port.sharing import Sharing
from trioresume.store.port.values import (
    Collected,
    Content,
    ContentKey,
    EventRecord,
    FileRecord,
    Mutation,
    OperationId,
    OperationRecord,
    RecordOffset,
    SealChunk,
    Usage,
)

__all__ = [
    "Catalog",
    "ContentReader",
    "ContentWriter",
    "Contents",
    "FileExtent",
    "Flush",
    "Seal",
    "Store",
]


class Seal(Protocol):
    """A step that makes one chunk's bytes durable. Run it once, in a worker thread."""

    @property
    def index(self) -> int: ...

    def run(self) -> SealChunk:
        """Sync the tail. Raises :class:`StorageError`; the data is suspect after that."""
        ...


class Flush(Protocol):
    """A step that makes the tail's bytes durable up to ``offset``. Run it in a worker thread."""

    @property
    def offset(self) -> int: ...

    def run(self) -> RecordOffset:
        """Sync, and return the mutation that records it.

        The mutation holds only once earlier seals were applied as well: apply it together
        with them or after them. Raises :class:`StorageError`; after that the data above the
        recorded offset is suspect, and the writer is broken.
        """
        ...


class ContentWriter(Protocol):
    """Appends to content under construction. See the module's rules 1, 4 and 5."""

    @property
    def chunk_size(self) -> int:
        """The size of this content's chunks: the store's setting when the content was begun."""
        ...

    @property
    def offset(self) -> int:
        """Bytes accepted so far, durable or not."""
        ...

    def append(self, data: bytes | bytearray | memoryview) -> list[Seal]:
        """Write all of *data* at the offset; return the seals of the chunks that became full.

        *data* is consumed before this returns. After a :class:`StorageError` the
        offset says how much of *data* was accepted. A full disk is
        :class:`StorageFull`; the writer can be used again when there is space. The
        next call returns the chunks that became full before the error.
        Raises :class:`StaleWriter` if a newer writer exists or the operation ended.
        The caller must run and apply every seal it gets, in any order, even when
        the upload is cut (unless the operation has ended).
        """
        ...

    def flush(self) -> Flush | None:
        """Return a step that makes all accepted bytes durable; None if nothing is due.

        It covers the chunks that no call has returned yet. The writer may go on
        appending while the step runs. With ``durability="process"`` nothing is
        ever due: bytes that ``append`` accepted survive the process.
        """
        ...

    def finish(self) -> list[Seal]:
        """End the content here: return the seals that are left. No append may follow.

        The seals come in the order of their chunks, without a gap after those that
        were returned before. Apply them in one submission with :class:`FreezeContent`,
        or before it.
        """
        ...

    def relax(self) -> None:
        """Free the hash state while nothing is appended; the next append reads the tail again.

        The call is quick. It changes nothing else, even for a stale writer.
        """
        ...

    def close(self) -> None:
        """Release the writer's resources. The bytes stay. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class FileExtent:
    """Bytes in an open file: *length* of them, at least one, from *offset* on."""

    descriptor: int
    offset: int
    length: int


class ContentReader(Protocol):
    """Random access to bytes that do not change. Usable from any one thread at a time."""

    @property
    def length(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes at *offset*, or fewer at the end of a chunk or of the content.

        Raises :class:`ChunkCorrupt` when a chunk is missing or cannot be read, and
        :class:`ContentLost` when content under construction ended meanwhile.
        """
        ...

    def extent(self, offset: int, size: int) -> FileExtent | None:
        """Return where up to *size* bytes at *offset* lie, for callers that only send them on.

        Returns None when the bytes lie in no file, or in one that may still change: the
        caller must read them then. An extent ends where ``read`` would end. The descriptor
        belongs to the reader, and is valid until the next call of ``read``, ``extent`` or
        ``close``. The file does not change even after that, so the system may send it later.
        Raises the errors of ``read``, and raises them also when the file is too short.
        """
        ...

    def close(self) -> None: ...


class Catalog(Protocol):
    """The half of a store that knows: operations, files, events, and which chunks content has.

    It may be far away: another process or another machine may keep it for several processes,
    see :mod:`.sharing`. Its methods may block, except for :meth:`usage`, :meth:`total_usage`
    and :meth:`check`.
    """

    @property
    def sharing(self) -> Sharing | None:
        """How the store is shared with other processes; None if this process has it alone."""
        ...

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> Sequence[StorageError | None]:
        """Perform the submissions in order, in one commit, which is durable on return.

        The result has, for each submission, None or the conflict that left it undone. If other
        processes' submissions were in the same commit, it may have another error of a
        submission. Raises :class:`StorageError` if nothing at all was done.
        A mutation of an operation that no longer exists, or is a tombstone, is
        ignored, because its effects were released with the operation. Only
        :class:`CreateOperation` of an existing id is a conflict.

        On a full disk the store may still perform a batch whose submissions add nothing
        that stays (see :func:`grows`). It uses up space that it kept only if one of them
        releases something (see :func:`releases`).
        """
        ...

    def check(self) -> None:
        """Raise :class:`StorageError` if the store's directory or catalog was removed.

        The server calls this on its event loop before each request, so it only looks up
        a name.
        """
        ...

    def operation(self, id: OperationId) -> OperationRecord | None: ...

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None:
        """Return the operation if its principal is *principal*.

        One of somebody else takes as long as one that does not exist (R35).
        """
        ...

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        """Return operations in one of *states*, ordered by id, for the work after a restart."""
        ...

    def count_operations(self) -> Mapping[OperationState, int]:
        """Return how many operations are in each state; a state without any may be missing.

        It reads an index and no record, but all of it: call it now and then, in a thread.
        """
        ...

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        """Return the soonest expiries: ``(expires_at, token)`` in ascending order.

        A token is ``"o:" + operation id`` or ``"f:" + file row id``.
        """
        ...

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]:
        """Return the mutations that remove the file of an ``f:`` token, if it is due at *now*."""
        ...

    def file(self, owner: str | None, name: str) -> FileRecord | None: ...

    def meta(self, name: str) -> str | None: ...

    def due_events(
        self, now: float, limit: int, *, tasks: bool = False
    ) -> tuple[list[EventRecord], float | None]:
        """Return the first events of the outbox that may be sent at *now*, in order.

        With *tasks* these are the tasks of the service itself, and otherwise all but these.

        An event may be sent if no event of the same operation, itself included, up to it is
        postponed beyond *now*. Also returns the soonest time after *now* to which any event
        is postponed.
        """
        ...

    def events(
        self, *, dead: bool, after: int, limit: int, tasks: bool = False
    ) -> list[EventRecord]:
        """Return the events with numbers above *after*, in order: those that wait, or the dead."""
        ...

    def event_count(self) -> int:
        """Return how many events wait, tasks not counted."""
        ...

    def usage(self, principal: str | None) -> Usage:
        """Return the committed usage of *principal*. It is looked up, never summed up.

        The server also calls this on its event loop, so it must not wait for other calls.
        """
        ...

    def total_usage(self) -> Usage:
        """Return the usage of all principals together, as :meth:`usage` does for one.

        A byte counts for each principal that keeps it, although it is stored once.
        """
        ...

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk] = ()
    ) -> Content:
        """Return the content of *key* as far as its seals were applied without a gap.

        *seals* continue from there; the result counts them as if they were applied too.
        The cost does not depend on the content's size, except for a look at 34 bytes for
        each :data:`~trioresume.store.port.recipes.PART_CHUNKS` chunks.
        """
        ...

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        """Return the contents that *content* was joined from, or *content* itself."""
        ...

    def close(self) -> None: ...


class Contents(Protocol):
    """The half of a store that holds bytes: writers, readers, and what becomes of them.

    Each process that receives content writes it itself, wherever the catalog is.
    """

    @property
    def blocking(self) -> bool:
        """Whether calls may block; the server then makes them in a worker thread."""
        ...

    @property
    def durable_at_once(self) -> bool:
        """Whether bytes are as durable as they will ever be once ``append`` returned.

        If so, no flush is ever due, and no offset is recorded.
        """
        ...

    @property
    def chunk_size(self) -> int: ...

    def take_room(self, size: int) -> None:
        """Claim *size* bytes of the disk for a record that is about to be made.

        Raises :class:`StorageFull` if the record would take space that must stay free.
        This is a measurement, not a reservation, and never waits for other calls.
        """
        ...

    def new_writer(self, key: ContentKey) -> ContentWriter:
        """Return a writer for a request key that was just generated, so has no content yet.

        Like :meth:`open_writer`, but it does not look at the disk and so never blocks.
        """
        ...

    def open_writer(self, key: ContentKey) -> ContentWriter:
        """Return a writer at the end of *key*'s content; older writers become stale.

        A key that the catalog does not know has no content; its operation may be
        created later, but before the first seal is applied. Raises
        :class:`StorageConflict` when the operation has ended or its content is
        frozen, and :class:`CallerError` for a malformed key.

        The call recovers from a crash. A full tail whose seal was not applied stays
        a tail, and the first ``append`` or ``finish`` returns its seal again. After a
        power loss the tail is cut to the recorded offset.
        Raises :class:`ContentLost` if fewer bytes than the recorded offset are there.
        """
        ...

    def offset(self, key: ContentKey) -> int:
        """Return the offset at which a new writer of *key* would start; change nothing.

        For frozen content this is its length. Raises :class:`ContentLost`.
        """
        ...

    def open_reader(self, content: Content) -> ContentReader:
        """Return a reader of finished content. Collection spares the content while it is open.

        Raises :class:`ContentLost` when the content was released and collected.
        """
        ...

    def open_prefix(self, key: ContentKey, length: int) -> ContentReader:
        """Return a reader of the first *length* bytes of *key*'s content.

        The content is under construction, or has been frozen since.
        """
        ...

    def collect(self, limit: int) -> Collected:
        """Release at most *limit* rows that nothing refers to any more."""
        ...

    def sweep(self) -> None:
        """Have the next calls of :meth:`collect` look at every file once.

        They remove the files that the catalog does not know, which a crash can leave. A
        store does this by itself when it knows a reason; this call is for an administrator
        who wants to be sure.
        """
        ...


class Store(Catalog, Contents, Protocol):
    """The storage of operations, contents and files."""
