"""The store's port: the operations that the server needs, and who guarantees their results.

Rules
=====

1. **Synchronous.** Nothing here awaits. Where an implementation may block on a
   disk, ``blocking`` is true and the server makes the call in a worker thread.
   The server calls these methods on its event loop all the same:
   :meth:`Store.new_writer`, which touches nothing; :meth:`Store.usage`, which looks up
   a row; :meth:`Store.check`, which looks up a name; :meth:`Store.take_room`, which now
   and then asks how much of the disk is free; and :meth:`ContentWriter.append`, which
   writes to the page cache and must not sync.
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
"""The key of content under construction: see :func:`request_key`, :func:`response_key`."""


def request_key(operation: OperationId) -> ContentKey:
    """Return the key of an operation's request content."""
    return ContentKey(operation)


def response_key(operation: OperationId) -> ContentKey:
    """Return the key of an operation's response content that is too large to inline."""
    return ContentKey(f"{operation}.r")


def is_response_key(key: ContentKey) -> bool:
    """Return whether *key* names response content."""
    return key.endswith(".r")


def operation_of(key: ContentKey) -> OperationId:
    """Return the operation that content under *key* belongs to."""
    return OperationId(key.removesuffix(".r"))


# Keys become file names: only text that matches this may reach a path (G12).
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}(\.r)?")


def check_key(key: ContentKey) -> None:
    """Raise :class:`CallerError` for a key that must not become a file name."""
    if _KEY.fullmatch(key) is None:
        raise CallerError("an operation id is 1 to 128 of A-Z a-z 0-9 - _")


@dataclass(frozen=True, slots=True)
class Content:
    """Finished bytes: inline when small, else named by a recipe's digest. Immutable."""

    length: int
    inline: bytes | None = None
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A final response: recorded before its first byte is sent, and replayed later."""

    status: int
    fields: Fields
    body: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """One operation as the catalog has it. Times are service time: see protocol.clock."""

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
    """Every byte below this offset is durable and recorded as durable. It never falls."""
    reserved: int = 0
    """Bytes charged to the principal while the operation is receiving (G7)."""
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
    """Return the content that consists of exactly these chunks.

    Raises :class:`ValueError` if a chunk other than the last is short.
    """
    length = sum(seal.length for seal in seals)
    recipes = cut(chunk_size, length, [seal.digest for seal in seals])
    joined = join(chunk_size, length, [recipe.digest for recipe in recipes])
    return Content(length, None, recipes[0].digest if joined is None else joined.digest)


SERVICE_CLOCK = "service-clock"
"""The name of a :class:`SetMeta`. Its value is the last reading of the service's clock, a
blank, and the date of that reading."""


# Mutations.


@dataclass(frozen=True, slots=True)
class CreateOperation:
    record: OperationRecord


@dataclass(frozen=True, slots=True)
class SealChunk:
    """Publish chunk *index* of *key*, which is full or the last, and release its tail.

    Only a :class:`Seal` of this store makes this mutation. Applying it again for an
    index that is sealed already changes nothing. It is a conflict if the chunk's tail
    was discarded meanwhile.
    """

    key: ContentKey
    index: int
    digest: Digest
    length: int


@dataclass(frozen=True, slots=True)
class RecordOffset:
    """Record that every byte of *key* below *offset* is synced. Ignored for response keys."""

    key: ContentKey
    offset: int


@dataclass(frozen=True, slots=True)
class HoldBack:
    """Have a crash discard the bytes of request content *key* from *offset* on.

    This holds until :class:`LetCount`: the bytes appended in between either all count or,
    if the writer was lost or given up, none of them counts. Every byte below *offset* must
    be durable. The seals of the later bytes are applied together with :class:`LetCount`.
    """

    key: ContentKey
    offset: int


@dataclass(frozen=True, slots=True)
class LetCount:
    """End :class:`HoldBack`: every byte of *key* counts from now on.

    With ``durability="disk"`` the same submission records its offset.
    """

    key: ContentKey


@dataclass(frozen=True, slots=True)
class SetLength:
    operation: OperationId
    length: int


@dataclass(frozen=True, slots=True)
class SetReserved:
    """Charge *bytes* to the upload's principal until the upload stops receiving."""

    operation: OperationId
    bytes: int


@dataclass(frozen=True, slots=True)
class SetExpiry:
    operation: OperationId
    expires_at: float


@dataclass(frozen=True, slots=True)
class FreezeContent:
    """Keep the recipe of *key*'s content, which is whole, and drop its working state.

    For a request key, the operation's ``content`` becomes *content*. For a response
    key, the recipe is kept only if :class:`RecordResponse` in the same submission names
    it. *content* must equal :meth:`Store.sealed_content` of the chunks whose seals were
    applied, in this submission or before; otherwise it is a conflict.
    """

    key: ContentKey
    content: Content


@dataclass(frozen=True, slots=True)
class JoinContents:
    """Make the operation's content the contents *parts*, one after the other (D7).

    Nothing is copied and no chunk is counted: the cost is proportional to the number of
    parts. The operation's content under construction is dropped. It is a conflict if a
    part was released meanwhile, or if one of several parts is joined itself;
    :meth:`Store.parts_of` returns the parts of joined content. Parts may repeat.
    Raises :class:`CallerError` for inline parts and for an empty sequence.
    """

    operation: OperationId
    parts: tuple[Content, ...]

    def __post_init__(self) -> None:
        if not self.parts or any(part.digest is None for part in self.parts):
            raise CallerError("contents are joined from one or more frozen ones")

    @property
    def recipe(self) -> JoinedRecipe | None:
        """The recipe that names the parts; None when a single part has all the bytes."""
        named = [(part.digest, part.length) for part in self.parts if part.length]
        digests = tuple(digest for digest, _ in named if digest is not None)
        if len(digests) < 2:
            return None
        return JoinedRecipe(digests, tuple(length for _, length in named))

    @property
    def content(self) -> Content:
        """The operation's content after this mutation."""
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
    """End the operation as done, and keep its final response until *expires_at*.

    With ``keep_content`` false the request's content is released as well, even
    when it is still under construction. Other content under the response key is
    dropped.
    """

    operation: OperationId
    response: StoredResponse
    expires_at: float
    keep_content: bool = True


@dataclass(frozen=True, slots=True)
class EndOperation:
    """Release content, response and tails, and leave a tombstone until *expires_at*.

    Writers of the operation become stale. Of the request, the tombstone keeps only
    the method, target and principal (R35 applies to it too).
    """

    operation: OperationId
    expires_at: float


@dataclass(frozen=True, slots=True)
class ForgetOperation:
    """Remove every trace of the operation, tombstone included."""

    operation: OperationId


@dataclass(frozen=True, slots=True)
class PublishFile:
    """Put *file* under its owner and name, if the present file is the *expected* one.

    ``expected`` is ``None`` for "no file", a :class:`Content` for "a file with exactly
    this content", or the literal ``"anything"``. The submission fails with
    :class:`~trioresume.errors.StorageConflict` if something else is there, and also if
    the new file's content was released meanwhile.
    """

    file: FileRecord
    expected: Content | str | None = "anything"


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a file, if it is the *expected* one (see :class:`PublishFile`).

    With ``"anything"``, it is no conflict if there is no file.
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
    """Set a named value of the service itself, such as :data:`SERVICE_CLOCK`."""

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
    """Return whether *submission* adds something to the catalog that stays there."""
    return any(isinstance(mutation, _GROWING) for mutation in submission)


RECORD_SIZE = 4096
"""Bytes charged for an operation or a file besides content: its rows, a file's block."""
FREE_HEAD = 1024
"""Bytes of the head that :data:`RECORD_SIZE` includes."""


def record_size(record: OperationRecord) -> int:
    """Return about how many bytes a new *record* is charged, besides its content."""
    head = len(record.target) + sum(
        len(name) + len(value) + 4 for name, value in record.fields
    )
    return RECORD_SIZE + max(0, head - FREE_HEAD)


@dataclass(frozen=True, slots=True)
class Usage:
    """The storage that one principal uses, or all principals together (G7)."""

    bytes: int = 0
    """The sum of: 4096 for each file and for each operation that is no tombstone; the bytes
    beyond 1024 of their heads and of the responses kept with them; the bytes that uploads
    reserve; and the length of each distinct finished content that is kept."""
    open_uploads: int = 0
    """Operations that are receiving."""


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


@dataclass(frozen=True, slots=True)
class Collected:
    """The result of one step of collection: all zero when nothing is left to do."""

    recipes: int = 0
    chunks: int = 0
    bytes: int = 0
    steps: int = 0
    """Smaller steps: the references that were released and the leftover files looked at."""


class Store(Protocol):
    """The storage of operations, contents and files."""

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

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        """Perform the submissions in order, in one commit, which is durable on return.

        The result has, for each submission, None or the conflict that left it
        undone. Raises :class:`StorageError` if nothing at all was done.
        A mutation of an operation that no longer exists, or is a tombstone, is
        ignored, because its effects were released with the operation. Only
        :class:`CreateOperation` of an existing id is a conflict.

        On a full disk the store may still perform a batch whose submissions add nothing
        that stays (see :func:`grows`).
        """
        ...

    def check(self) -> None:
        """Raise :class:`StorageError` if the store's directory or catalog was removed.

        The server calls this on its event loop before each request, so it only looks up
        a name.
        """
        ...

    def operation(self, id: OperationId) -> OperationRecord | None: ...

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        """Return operations in one of *states*, ordered by id, for the work after a restart."""
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

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk] = ()
    ) -> Content:
        """Return the content of *key* as far as its seals were applied without a gap.

        *seals* continue from there; the result counts them as if they were applied too.
        The cost does not depend on the content's size, except for a look at 34 bytes for
        each :data:`~trioresume.store.recipe.PART_CHUNKS` chunks.
        """
        ...

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        """Return the contents that *content* was joined from, or *content* itself."""
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

    def close(self) -> None: ...
