"""The values that cross the store's port: keys, records, contents, and *mutations*.

Mutations are the changes of the store. :meth:`Store.apply
<trioresume.store.port.contract.Store.apply>` applies them. Numbers such as D7 and G7 are statements of docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

from trioresume.errors import CallerError, UsageExceeded
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.port.recipes import Digest, JoinedRecipe, cut, join

__all__ = [
    "FREE_HEAD",
    "MOST_DEAD_EVENTS",
    "RECORD_SIZE",
    "SERVICE_CLOCK",
    "TASK",
    "BuryEvent",
    "Collected",
    "Content",
    "ContentKey",
    "CreateOperation",
    "DropEvents",
    "EndOperation",
    "EventRecord",
    "FileRecord",
    "ForgetOperation",
    "FreezeContent",
    "HoldBack",
    "JoinContents",
    "LetCount",
    "LimitUsage",
    "MoveOperation",
    "Mutation",
    "OperationId",
    "OperationRecord",
    "PostponeEvent",
    "PublishFile",
    "RecordEvent",
    "RecordOffset",
    "RecordResponse",
    "RecordTail",
    "RemoveFile",
    "ReviveEvents",
    "SealChunk",
    "SetExpiry",
    "SetFileExpiry",
    "SetLength",
    "SetMeta",
    "SetReserved",
    "SetState",
    "StoredResponse",
    "TailPart",
    "Usage",
    "check_key",
    "content_of",
    "grows",
    "is_response_key",
    "operation_of",
    "record_size",
    "releases",
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
    is_elsewhere: bool = False
    """Whether another process owns it: see :mod:`.sharing`. Nothing records this."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """Something that happened to an operation and is to be told: see :class:`RecordEvent`."""

    id: str
    """Names the event for its receiver, the same each time it is sent."""
    operation: OperationId
    kind: str
    recorded_at: float
    """Service time: see protocol.clock."""
    dated: float
    """The date of the event, in Unix seconds."""
    payload: bytes
    seq: int = 0
    """The event's number, in the order of commits. The store gives it, and uses it once."""
    due_at: float = 0.0
    """The service time of the next attempt."""
    attempts: int = 0
    error: str = ""
    """Why the last attempt failed."""

    @property
    def is_task(self) -> bool:
        """Whether it is a task of the service itself, which no receiver gets."""
        return self.kind.startswith(TASK)


TASK = "task."
"""How the kind of an event begins that is a task of the service itself."""
MOST_DEAD_EVENTS = 100_000
"""Dead events that are kept; the oldest go first."""

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
    """Operations that are receiving, or wait for their target."""


@dataclass(frozen=True, slots=True)
class Collected:
    """The result of one step of collection: all zero when nothing is left to do."""

    recipes: int = 0
    chunks: int = 0
    bytes: int = 0
    steps: int = 0
    """Smaller steps: the references that were released and the leftover files looked at."""


# Mutations.

SERVICE_CLOCK = "service-clock"
"""The name of a :class:`SetMeta`. Its value is the last reading of the service's clock, a
blank, and the date of that reading."""


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
class TailPart:
    """Bytes of content under construction that lie in an object of their own."""

    name: str
    """The object's name, which is used once."""
    offset: int
    """Where in the content the bytes begin."""
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class RecordTail(RecordOffset):
    """Record the offset, and that the bytes above the sealed chunks lie in *parts*.

    *parts* are without gaps and end at ``offset``. No part crosses the end of a chunk. They
    take the place of all parts that were recorded before. A part that is recorded no longer,
    or that lies below the sealed chunks, is to be deleted: the catalog keeps its name until
    that is done. For a response key nothing is recorded.
    """

    parts: tuple[TailPart, ...]


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
class LimitUsage:
    """Refuse the submission if the mutations before it take too much (G7).

    The accounts count, as they are after these mutations: *most_bytes* and *most_open* bound
    the account of *principal*, *most_total* the bytes of all principals. None is no limit.
    The error is :class:`~trioresume.errors.UsageExceeded`. Several processes that share a
    store need this: none of them knows what the others have just reserved.
    """

    principal: str | None
    most_bytes: int | None = None
    most_open: int | None = None
    most_total: int | None = None

    def check(self, own: Usage, total: int) -> None:
        """Raise :class:`UsageExceeded` unless *own* and *total* are within the limits."""
        for name, found, most in (
            ("open", own.open_uploads, self.most_open),
            ("bytes", own.bytes, self.most_bytes),
            ("total", total, self.most_total),
        ):
            if most is not None and found > most:
                raise UsageExceeded(name)


@dataclass(frozen=True, slots=True)
class MoveOperation:
    """Give the operation to *principal*, who is charged for it from now on, and to *target*.

    A tombstone stays as it is.
    """

    operation: OperationId
    principal: str | None
    target: str


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


@dataclass(frozen=True, slots=True)
class RecordEvent:
    """Put *event* into the outbox. It stays there until it is dropped or buried.

    Put it into the submission of the change that it tells of: both happen or neither does.
    """

    event: EventRecord


@dataclass(frozen=True, slots=True)
class DropEvents:
    """Remove events from the outbox, or with *dead* from the dead ones."""

    seqs: tuple[int, ...]
    dead: bool = False


@dataclass(frozen=True, slots=True)
class PostponeEvent:
    """Note that an attempt to deliver an event failed. The next one is at *due_at*.

    Until then the store hands out no later event of the same operation either.
    """

    seq: int
    due_at: float
    error: str


@dataclass(frozen=True, slots=True)
class BuryEvent:
    """Give an event up: it becomes a dead one, and no longer delays those after it."""

    seq: int
    error: str


@dataclass(frozen=True, slots=True)
class ReviveEvents:
    """Have dead events wait again, and events that wait be due now. *now* is service time."""

    seqs: tuple[int, ...]
    now: float


Mutation = (
    CreateOperation
    | SealChunk
    | RecordOffset
    | HoldBack
    | LetCount
    | SetLength
    | SetReserved
    | LimitUsage
    | MoveOperation
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
    | RecordEvent
    | DropEvents
    | PostponeEvent
    | BuryEvent
    | ReviveEvents
)


_GROWING = (CreateOperation, SealChunk, JoinContents, PublishFile, RecordResponse)
_RELEASING = (EndOperation, ForgetOperation, RemoveFile)


def grows(submission: Sequence[Mutation]) -> bool:
    """Return whether *submission* adds something to the catalog that stays there."""
    return any(isinstance(mutation, _GROWING) for mutation in submission)


def releases(submission: Sequence[Mutation]) -> bool:
    """Return whether *submission* releases something, or begins to.

    An operation that a client cancels while its target is called becomes ABANDONED first.
    """
    return any(
        isinstance(mutation, _RELEASING)
        or (
            isinstance(mutation, SetState)
            and mutation.state is OperationState.ABANDONED
        )
        for mutation in submission
    )


def content_of(chunk_size: int, seals: Sequence[SealChunk]) -> Content:
    """Return the content that consists of exactly these chunks.

    Raises :class:`ValueError` if a chunk other than the last is short.
    """
    length = sum(seal.length for seal in seals)
    recipes = cut(chunk_size, length, [seal.digest for seal in seals])
    joined = join(chunk_size, length, [recipe.digest for recipe in recipes])
    return Content(length, None, recipes[0].digest if joined is None else joined.digest)
