"""The store's port: what the server needs of storage, and who guarantees what.

Rules
=====

1. **Synchronous.** Nothing here awaits. Where an implementation may block on a
   disk, ``blocking`` is true and the server makes the call in a worker thread.
   The exceptions are :meth:`Store.new_writer`, which touches nothing,
   :meth:`Store.usage`, which looks up a row, :meth:`Store.check`, :meth:`Store.take_room`,
   which now and then asks how much of the disk is free, and
   :meth:`ContentWriter.append`, which writes to the page cache and must not sync: the
   server calls them on its event loop.
2. **Decide, then do.** Changes are values (:data:`Mutation`). :meth:`Store.apply`
   performs a batch of them: each *submission* (a sequence of mutations) happens
   whole or not at all, submissions take effect in order, and when ``apply``
   returns, every submission without an error is durable.
3. **Durable** means: survives power loss with ``durability="disk"``, survives
   ``kill -9`` with ``durability="process"``.
4. **The offset derives from the data.** A writer's offset is what lies on disk:
   sealed chunks plus the tail's length. The recorded offset only bounds it from
   above after a power loss, when unsynced bytes in a tail cannot be trusted.
5. **One writer.** Opening a writer for a key makes every older writer of that
   key stale at once; a stale writer's ``append`` raises and writes nothing.

6. **Responses start anew.** Request content is resumed; response content is the
   work of one run of the target. Opening a writer for a response key discards
   what an earlier one left there.

Threads: ``apply`` is called from one thread at a time; reads, ``Seal.run`` and
``Flush.run`` from any; a writer's other methods from one thread at a time.

The life of content under construction
======================================

Content is built under a *key* (``ContentKey``). Bytes go to a *tail*; when the
tail holds ``chunk_size`` bytes it becomes a *chunk*, named by its digest::

    append → Seal ──run (thread: sync the tail)──► SealChunk ──apply──► chunk published
    flush  → Flush ─run (thread: sync the tail)──► RecordOffset ─apply─► offset durable
    finish → Seal for the last, shorter chunk, then FreezeContent with what that makes

A chunk is published (linked under its name, its directory synced) inside
``apply``, which is serialised with :meth:`Store.collect`: this is why collection
cannot take a chunk that a writer just found to exist already. The tail is
unlinked only after the catalog's commit, so at each instant every accepted byte
lies in a tail or in a published chunk that the catalog names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from trioresume.errors import CallerError, StorageConflict
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.recipe import Digest, JoinedRecipe, cut, join

__all__ = [
    "FREE_HEAD",
    "RECORD_SIZE",
    "SERVICE_CLOCK",
    "Collected",
    "Content",
    "ContentKey",
    "ContentReader",
    "ContentWriter",
    "CreateOperation",
    "EndOperation",
    "FileExtent",
    "FileRecord",
    "Flush",
    "ForgetOperation",
    "FreezeContent",
    "HoldBack",
    "JoinContents",
    "LetCount",
    "Mutation",
    "OperationId",
    "OperationRecord",
    "OperationState",
    "PublishFile",
    "RecordOffset",
    "RecordResponse",
    "RemoveFile",
    "Seal",
    "SealChunk",
    "SetExpiry",
    "SetFileExpiry",
    "SetLength",
    "SetMeta",
    "SetReserved",
    "SetState",
    "Store",
    "StoredResponse",
    "Usage",
    "check_key",
    "content_of",
    "grows",
    "is_response_key",
    "operation_of",
    "record_size",
    "request_key",
    "response_key",
]

OperationId = NewType("OperationId", str)
"""The unguessable name of an operation: URL-safe base64 without padding (R34, G12)."""

ContentKey = NewType("ContentKey", str)
"""What content is built under; see :func:`request_key` and :func:`response_key`."""


def request_key(operation: OperationId) -> ContentKey:
    """The key of an operation's request content."""
    return ContentKey(operation)


def response_key(operation: OperationId) -> ContentKey:
    """The key of an operation's response content, when it is too large to inline."""
    return ContentKey(f"{operation}.r")


def is_response_key(key: ContentKey) -> bool:
    """Whether *key* names response content."""
    return key.endswith(".r")


def operation_of(key: ContentKey) -> OperationId:
    """The operation that content under *key* belongs to."""
    return OperationId(key.removesuffix(".r"))


# Keys become file names: nothing but this may reach a path (G12, promise 8).
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}(\.r)?")


def check_key(key: ContentKey) -> None:
    """Raise :class:`CallerError` for a key that must not become a file name."""
    if _KEY.fullmatch(key) is None:
        raise CallerError("an operation id is 1 to 128 of A-Z a-z 0-9 - _")


@dataclass(frozen=True, slots=True)
class Content:
    """Finished bytes: inline when small, else a recipe's digest. Immutable."""

    length: int
    inline: bytes | None = None
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A final response: recorded before its first byte is sent, replayed after."""

    status: int
    fields: Fields
    body: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """One row of the catalog's operations. Times are service time: see protocol.clock."""

    id: OperationId
    method: str
    target: str
    fields: Fields
    created_at: float
    expires_at: float
    principal: str | None = None
    state: OperationState = OperationState.RECEIVING
    keep_incomplete: bool = True
    explicit_completion: bool = False
    """Whether the content is complete only when a client says so, whatever its length."""
    length: int | None = None
    durable_offset: int = 0
    """Every byte below it was made durable and recorded so; never falls."""
    reserved: int = 0
    """Bytes that count for its principal while it is receiving, whatever arrived (G7)."""
    content: Content | None = None
    response: StoredResponse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file of the file service: a name in its owner's namespace."""

    owner: str | None
    name: str
    content: Content
    fields: Fields
    """Representation metadata kept from the upload, such as ``content-type``."""
    modified_at: float
    """A date, in Unix seconds."""
    expires_at: float | None = None
    """Service time: see protocol.clock."""


def content_of(chunk_size: int, seals: Sequence[SealChunk]) -> Content:
    """What content is that has these chunks and no others.

    Raises :class:`ValueError` if one but the last is short.
    """
    length = sum(seal.length for seal in seals)
    recipes = cut(chunk_size, length, [seal.digest for seal in seals])
    joined = join(chunk_size, length, [recipe.digest for recipe in recipes])
    return Content(length, None, recipes[0].digest if joined is None else joined.digest)


SERVICE_CLOCK = "service-clock"
"""The name of the :class:`SetMeta` that says what the service's clock last showed, and after
a blank which date that was."""


# Mutations.


@dataclass(frozen=True, slots=True)
class CreateOperation:
    record: OperationRecord


@dataclass(frozen=True, slots=True)
class SealChunk:
    """Chunk *index* of *key* is full (or the last): publish it, release its tail.

    Only a :class:`Seal` of this store makes one. Applying it again for an index
    that is sealed already changes nothing; if the tail it speaks of was discarded
    meanwhile, it is a conflict.
    """

    key: ContentKey
    index: int
    digest: Digest
    length: int


@dataclass(frozen=True, slots=True)
class RecordOffset:
    """Every byte of *key* below *offset* has been synced. Dropped for response keys."""

    key: ContentKey
    offset: int


@dataclass(frozen=True, slots=True)
class HoldBack:
    """What request content *key* has from *offset* on does not count after a crash.

    So it is until :class:`LetCount`: what is appended in between is there as a whole or,
    if the writer was lost or given up, not at all. Every byte below *offset* must be
    durable; the seals of what follows are applied together with :class:`LetCount`.
    """

    key: ContentKey
    offset: int


@dataclass(frozen=True, slots=True)
class LetCount:
    """The end of :class:`HoldBack`: all of *key* counts from now on.

    With ``durability="disk"`` its offset is recorded in the same submission.
    """

    key: ContentKey


@dataclass(frozen=True, slots=True)
class SetLength:
    operation: OperationId
    length: int


@dataclass(frozen=True, slots=True)
class SetReserved:
    """The upload counts as *bytes* for its principal, until it is no longer receiving."""

    operation: OperationId
    bytes: int


@dataclass(frozen=True, slots=True)
class SetExpiry:
    operation: OperationId
    expires_at: float


@dataclass(frozen=True, slots=True)
class FreezeContent:
    """The content of *key* is whole: keep its recipe, drop its working state.

    For a request key the operation's ``content`` becomes *content*. For a
    response key it is only kept until :class:`RecordResponse` in the same submission
    names it. *content* must be what :meth:`Store.sealed_content` says of the chunks
    whose seals were applied, in this submission or before; otherwise it is a conflict.
    """

    key: ContentKey
    content: Content


@dataclass(frozen=True, slots=True)
class JoinContents:
    """The operation's content is that of *parts*, one after the other (D7).

    Nothing is copied and no chunk is counted: the cost is the number of parts. What
    was under construction is dropped. It is a conflict if a part was released
    meanwhile, or if one of several parts is joined itself: :meth:`Store.parts_of` tells
    of what. Parts may repeat. Raises :class:`CallerError` for inline parts and for none.
    """

    operation: OperationId
    parts: tuple[Content, ...]

    def __post_init__(self) -> None:
        if not self.parts or any(part.digest is None for part in self.parts):
            raise CallerError("contents are joined from one or more frozen ones")

    @property
    def recipe(self) -> JoinedRecipe | None:
        """What names the parts; None when a single one of them has all the bytes."""
        named = [(part.digest, part.length) for part in self.parts if part.length]
        digests = tuple(digest for digest, _ in named if digest is not None)
        if len(digests) < 2:
            return None
        return JoinedRecipe(digests, tuple(length for _, length in named))

    @property
    def content(self) -> Content:
        """What the operation's content becomes."""
        recipe = self.recipe
        if recipe is None:
            return next((part for part in self.parts if part.length), self.parts[0])
        return Content(recipe.length, None, recipe.digest)


@dataclass(frozen=True, slots=True)
class SetState:
    operation: OperationId
    state: OperationState


@dataclass(frozen=True, slots=True)
class RecordResponse:
    """The operation is done: keep its final response until *expires_at*.

    With ``keep_content`` false the request's content is released as well, also
    when it is still under construction. What else was built under the response
    key is dropped.
    """

    operation: OperationId
    response: StoredResponse
    expires_at: float
    keep_content: bool = True


@dataclass(frozen=True, slots=True)
class EndOperation:
    """Release content, response and tails; leave a tombstone until *expires_at*.

    Writers of the operation become stale. The tombstone keeps the method, target
    and principal (R35 holds for it too) and nothing else of the request.
    """

    operation: OperationId
    expires_at: float


@dataclass(frozen=True, slots=True)
class ForgetOperation:
    """Remove every trace of the operation, tombstone included."""

    operation: OperationId


@dataclass(frozen=True, slots=True)
class PublishFile:
    """Put *file* under its owner and name, if what is there now is *expected*.

    ``expected`` is ``None`` for "nothing", a :class:`Content` for "exactly this",
    and the literal ``"anything"``. Otherwise the submission fails with
    :class:`~trioresume.errors.StorageConflict`; so it does when the content it
    names was released meanwhile.
    """

    file: FileRecord
    expected: Content | str | None = "anything"


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a file, if what is there now is *expected* (see :class:`PublishFile`).

    Removing nothing is fine when ``"anything"`` is expected.
    """

    owner: str | None
    name: str
    expected: Content | str = "anything"


@dataclass(frozen=True, slots=True)
class SetFileExpiry:
    owner: str | None
    name: str
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class SetMeta:
    """A named value of the service itself, such as :data:`SERVICE_CLOCK`."""

    name: str
    value: str


Mutation = (
    CreateOperation
    | SealChunk
    | RecordOffset
    | HoldBack
    | LetCount
    | SetLength
    | SetReserved
    | SetExpiry
    | FreezeContent
    | JoinContents
    | SetState
    | RecordResponse
    | EndOperation
    | ForgetOperation
    | PublishFile
    | RemoveFile
    | SetFileExpiry
    | SetMeta
)


_GROWING = (CreateOperation, SealChunk, JoinContents, PublishFile, RecordResponse)


def grows(submission: Sequence[Mutation]) -> bool:
    """Whether *submission* adds something to the catalog for longer than its own time."""
    return any(isinstance(mutation, _GROWING) for mutation in submission)


RECORD_SIZE = 4096
"""Bytes that an operation or a file is charged besides content: its rows, a file's block."""
FREE_HEAD = 1024
"""Bytes of its head that are included in that."""


def record_size(record: OperationRecord) -> int:
    """About what *record* is charged when it is made, besides its content."""
    head = len(record.target) + sum(
        len(name) + len(value) + 4 for name, value in record.fields
    )
    return RECORD_SIZE + max(0, head - FREE_HEAD)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a principal takes, or all of them together (G7)."""

    bytes: int = 0
    """4096 for each operation but tombstones and for each file; what is longer than 1024
    bytes of their heads and of the responses that are kept with them; what uploads
    reserve; the length of each distinct finished content that is kept."""
    open_uploads: int = 0
    """Operations that are receiving."""


class Seal(Protocol):
    """Makes one chunk's bytes durable; to be run once, in a worker thread."""

    @property
    def index(self) -> int: ...

    def run(self) -> SealChunk:
        """Sync the tail. Raises :class:`StorageError`; then the data is suspect."""
        ...


class Flush(Protocol):
    """Makes the tail's bytes durable up to ``offset``; run in a worker thread."""

    @property
    def offset(self) -> int: ...

    def run(self) -> RecordOffset:
        """Sync. The result is true only once earlier seals were applied as well.

        Apply it together with them or after them. Raises :class:`StorageError`;
        then the data above the recorded offset is suspect, and the writer broken.
        """
        ...


class ContentWriter(Protocol):
    """Appends to content under construction. See the module's rules 1, 4 and 5."""

    @property
    def chunk_size(self) -> int:
        """What this content is cut into: the store's setting when it was begun."""
        ...

    @property
    def offset(self) -> int:
        """Bytes accepted so far, durable or not."""
        ...

    def append(self, data: bytes | bytearray | memoryview) -> list[Seal]:
        """Write all of *data* at the offset; return the chunks that became full.

        *data* is consumed before this returns. On :class:`StorageError` the
        offset says how much of it was accepted; a full disk is
        :class:`StorageFull`, and the writer may be used on when there is space.
        Chunks that became full before the error are returned by the next call.
        Raises :class:`StaleWriter` if a newer writer exists or the operation ended.
        A caller that gets seals must run and apply every one of them, in any
        order, also when the upload is cut (unless the operation has ended).
        """
        ...

    def flush(self) -> Flush | None:
        """A step that makes everything accepted so far durable; None if nothing is due.

        It covers the chunks that no call returned yet. The writer may go on
        appending while the step runs. With ``durability="process"`` nothing is
        ever due: what ``append`` accepted survives the process.
        """
        ...

    def finish(self) -> list[Seal]:
        """The content ends here: seal what the tail holds. No append may follow.

        The seals that were not returned before come in the order of their chunks,
        without a gap after those that were. Apply them in one submission with
        :class:`FreezeContent`, or before it.
        """
        ...

    def relax(self) -> None:
        """Nothing is appended for a while: let go of memory, at the price of a reread.

        It changes nothing else, also for a stale writer, and is quick.
        """
        ...

    def close(self) -> None:
        """Release what the writer holds; bytes stay. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class FileExtent:
    """Bytes that lie in an open file: *length* of them, from *offset* on. At least one."""

    descriptor: int
    offset: int
    length: int


class ContentReader(Protocol):
    """Random access to bytes that do not change. Usable from any one thread at a time."""

    @property
    def length(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """Up to *size* bytes at *offset*, fewer only at a chunk's end or the content's.

        Raises :class:`ChunkCorrupt` when a chunk is missing or cannot be read, and
        :class:`ContentLost` when content under construction ended meanwhile.
        """
        ...

    def extent(self, offset: int, size: int) -> FileExtent | None:
        """Where up to *size* bytes at *offset* lie, for who need not see them.

        None when they lie in no file, or in one that may still change: then they have
        to be read. An extent ends where ``read`` would. Its descriptor is the reader's,
        and good until the next call of ``read``, ``extent`` or ``close``; the file does
        not change even after that, so that the system may send it later. Raises as
        ``read`` does, also when the file is too short.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Collected:
    """What one step of collection did; all zero when nothing is left to do."""

    recipes: int = 0
    chunks: int = 0
    bytes: int = 0
    steps: int = 0
    """Smaller steps: references released, leftover files looked at."""


class Store(Protocol):
    """Where operations, contents and files live."""

    @property
    def blocking(self) -> bool:
        """Whether calls may block, so that the server must use a worker thread."""
        ...

    @property
    def durable_at_once(self) -> bool:
        """Whether bytes are as durable as they will be once ``append`` returned.

        Then no flush is ever due, and no offset recorded.
        """
        ...

    @property
    def chunk_size(self) -> int: ...

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        """Perform the submissions in order, in one commit; durable on return.

        The result has, for each submission, None or the conflict that left it
        undone. Raises :class:`StorageError` when nothing at all was done.
        A mutation of an operation that no longer exists, or is a tombstone, is
        dropped silently (its effects were released with the operation), except
        that :class:`CreateOperation` of an existing id is a conflict.

        Where a disk is full, submissions that do not grow (see :func:`grows`) may still
        be done if they come alone.
        """
        ...

    def check(self) -> None:
        """Raise :class:`StorageError` if what the store is kept in was removed.

        The server calls it on its event loop before each request: it looks up a name.
        """
        ...

    def operation(self, id: OperationId) -> OperationRecord | None: ...

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        """Operations in one of *states*, ordered by id, for the work after a restart."""
        ...

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        """The soonest expiries: ``(expires_at, token)`` in ascending order.

        A token is ``"o:" + operation id`` or ``"f:" + file row id``.
        """
        ...

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]:
        """What removes the file behind an ``f:`` token, if it is still due at *now*."""
        ...

    def file(self, owner: str | None, name: str) -> FileRecord | None: ...

    def meta(self, name: str) -> str | None: ...

    def usage(self, principal: str | None) -> Usage:
        """What *principal* takes, as committed: looked up, never summed up.

        The server calls it on its event loop as well: it may not wait for other calls.
        """
        ...

    def total_usage(self) -> Usage:
        """As :meth:`usage`, of all principals together.

        A byte counts for each principal who keeps it, though it is stored once.
        """
        ...

    def take_room(self, size: int) -> None:
        """Claim *size* bytes of the disk for a record that is about to be made.

        Raises :class:`StorageFull` if that much must stay free. It is a measure, not a
        reservation, and never waits for other calls.
        """
        ...

    def new_writer(self, key: ContentKey) -> ContentWriter:
        """A writer for a request key that was just made up: nothing can be there yet.

        As :meth:`open_writer`, but without a look, so that it never blocks.
        """
        ...

    def open_writer(self, key: ContentKey) -> ContentWriter:
        """A writer at the end of what *key* holds; older writers become stale.

        A key that the catalog does not know holds nothing; its operation may be
        created later, but before the first seal is applied. Raises
        :class:`StorageConflict` when the operation has ended or its content is
        frozen, and :class:`CallerError` for a malformed key.

        Recovers what a crash left: a full tail whose seal was not applied is kept
        as tail and handed out again as a seal by the first ``append`` or
        ``finish``; after a power loss the tail is cut to the recorded offset.
        Raises :class:`ContentLost` if less than the recorded offset is there.
        """
        ...

    def offset(self, key: ContentKey) -> int:
        """The offset a new writer of *key* would start at; opens and changes nothing.

        The content's length once it is frozen. Raises :class:`ContentLost`.
        """
        ...

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk] = ()
    ) -> Content:
        """What the content of *key* is, as far as its seals were applied without a gap.

        With *seals*, which go on from there, as it is when they are applied as well.
        The cost does not depend on how much there is, but for a look at 34 bytes for
        each :data:`~trioresume.store.recipe.PART_CHUNKS` chunks.
        """
        ...

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        """The contents that finished *content* is joined from; itself if it is not."""
        ...

    def open_reader(self, content: Content) -> ContentReader:
        """Reads finished content. While the reader is open, collection spares it.

        Raises :class:`ContentLost` when the content was released and collected.
        """
        ...

    def open_prefix(self, key: ContentKey, length: int) -> ContentReader:
        """Reads the first *length* bytes of content under construction, or frozen since."""
        ...

    def collect(self, limit: int) -> Collected:
        """Release at most *limit* rows of what nothing refers to any more."""
        ...

    def sweep(self) -> None:
        """Have the calls of :meth:`collect` that follow look at every file, once.

        For those that nothing speaks of, which a crash can leave. A store looks by
        itself when it knows of a reason to; this is for a keeper who wants to be sure.
        """
        ...

    def close(self) -> None: ...
