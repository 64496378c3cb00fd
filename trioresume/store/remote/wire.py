"""The protocol between the keeper of a store and the processes that share it. Sans-IO.

::

    worker                                 keeper
      │  Greeting: version, fingerprint  →   │
      │  ← Greeting, or Refused              │
      │  Opened, Apply, Ask, Follow, …   →   │   many messages in a frame
      │  ← Applied, Answer, Changed, …       │

A frame is a length of four bytes and as many bytes of msgpack: an array of messages. A
greeting is a map and alone in its frame, so that any version can read it. The values of the
port cross as :mod:`.codec` packs them. Two programs whose values differ have different
*fingerprints*, and refuse each other in the greeting.

Messages of one side are handled in their order. A worker that has sent :class:`Began` and then
asks to open a writer can rely on that order, and the argument in ``worker_store.py`` does.

The questions are the methods of :class:`Questions`. Their arguments and answers are unpacked
by the types in its signatures.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, NewType, Protocol, get_args, get_type_hints

from trioresume import errors
from trioresume.errors import CallerError, StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog.chunk_lists import ContentRow
from trioresume.store.disk.opening import Opening
from trioresume.store.port import (
    Collected,
    Content,
    ContentKey,
    EventRecord,
    FileRecord,
    Mutation,
    Notice,
    OperationId,
    OperationRecord,
    SealChunk,
    Usage,
)
from trioresume.store.port.recipes import AnyRecipe, Digest
from trioresume.store.remote.codec import Codec, Kind, Malformed

__all__ = [
    "MOST_FRAME",
    "VERSION",
    "Answer",
    "Applied",
    "Apply",
    "Ask",
    "Began",
    "EpochEnded",
    "Error",
    "Failed",
    "Follow",
    "FrameReader",
    "FullDisk",
    "Goodbye",
    "Greeting",
    "Listen",
    "Malformed",
    "Message",
    "Opened",
    "Question",
    "Questions",
    "Refuse",
    "Release",
    "Sealed",
    "Space",
    "Tell",
    "Unfollow",
    "Unpin",
    "Want",
    "error_from",
    "error_of",
    "frames",
    "greeting_frame",
    "pack",
    "question",
]

VERSION = 1
"""Grows when the meaning of a message changes; a change of its fields is seen without it."""

MOST_FRAME = 64 * 1024 * 1024
"""Bytes of the longest frame: well above the answers of the largest questions."""

_FULL_FRAME = 1024 * 1024
"""Bytes after which a frame takes no further message."""

_HEAD = 4
"""Bytes of a frame's length."""


# Messages of both sides.


@dataclass(frozen=True, slots=True)
class Error:
    """An error of the store: the name of its class, and its arguments."""

    name: str
    arguments: tuple[str, ...]


# Messages of a worker.


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply submissions; answered by :class:`Applied` with the same number."""

    number: int
    submissions: tuple[tuple[Mutation, ...], ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a question of :class:`Questions`; answered by :class:`Answer` or :class:`Failed`."""

    number: int
    question: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A writer of a key that was just made: this process owns the operation to be."""

    number: int
    key: ContentKey


@dataclass(frozen=True, slots=True)
class Began:
    """A tail has its last byte and is being sealed. *sealing* names this from now on."""

    sealing: int
    key: ContentKey
    index: int
    length: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """The tail of *sealing* was synced, and its bytes have this digest."""

    sealing: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class FullDisk:
    """A write failed because the disk was full."""


@dataclass(frozen=True, slots=True)
class Unpin:
    """A reader of the recipe was closed."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Listen:
    """This process takes notices from now on."""


@dataclass(frozen=True, slots=True)
class Release:
    operation: OperationId


@dataclass(frozen=True, slots=True)
class Refuse:
    operation: OperationId


@dataclass(frozen=True, slots=True)
class Want:
    operation: OperationId
    ends: bool


@dataclass(frozen=True, slots=True)
class Follow:
    operation: OperationId


@dataclass(frozen=True, slots=True)
class Unfollow:
    operation: OperationId


@dataclass(frozen=True, slots=True)
class Tell:
    operation: OperationId
    message: bytes


@dataclass(frozen=True, slots=True)
class Goodbye:
    """This process has closed its writers and readers, and owns nothing any more."""


# Messages of the keeper.


@dataclass(frozen=True, slots=True)
class Applied:
    """The results of :class:`Apply`, in the order of its submissions."""

    number: int
    results: tuple[Error | None, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    number: int
    error: Error


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """The names of tails could not be synced: every writer is broken. See ``unfinished.py``."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Space:
    """Whether the reserve of the disk is spent, and whether the disk has a hidden limit."""

    is_spent: bool
    is_limit_hidden: bool


Message = (
    Apply
    | Ask
    | Opened
    | Began
    | Sealed
    | FullDisk
    | Unpin
    | Listen
    | Release
    | Refuse
    | Want
    | Follow
    | Unfollow
    | Tell
    | Goodbye
    | Applied
    | Answer
    | Failed
    | EpochEnded
    | Space
    | Notice
)


# Questions.


class Questions(Protocol):
    """What a worker asks the keeper. The first ones are those of the port's Catalog."""

    def operation(self, id: OperationId) -> OperationRecord | None: ...

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None: ...

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]: ...

    def count_operations(self) -> Mapping[OperationState, int]: ...

    def expiring(self, limit: int) -> list[tuple[float, str]]: ...

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]: ...

    def file(self, owner: str | None, name: str) -> FileRecord | None: ...

    def meta(self, name: str) -> str | None: ...

    def due_events(
        self, now: float, limit: int, tasks: bool
    ) -> tuple[list[EventRecord], float | None]: ...

    def events(
        self, dead: bool, after: int, limit: int, tasks: bool
    ) -> list[EventRecord]: ...

    def event_count(self) -> int: ...

    def usage(self, principal: str | None) -> Usage: ...

    def total_usage(self) -> Usage: ...

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk]
    ) -> Content: ...

    def parts_of(self, content: Content) -> tuple[Content, ...]: ...

    def collect(self, limit: int) -> Collected: ...

    def sweep(self) -> None: ...

    # Questions about content under construction and about chunks.

    def offset(self, key: ContentKey) -> int:
        """Return where a writer would start, for a key that has no writer here."""
        ...

    def opening(self, key: ContentKey) -> Opening:
        """Repair the content of *key*, and return how to open its tail."""
        ...

    def content(self, key: ContentKey) -> ContentRow | None: ...

    def piece(self, key: ContentKey, index: int) -> Digest | None: ...

    def recipe(self, digest: Digest) -> AnyRecipe | None: ...

    def pinned_recipe(self, digest: Digest) -> AnyRecipe:
        """Pin the recipe until :class:`Unpin`, and return it. Raises ContentLost."""
        ...

    def has_unsynced_before(self, epoch: int) -> bool: ...

    def is_unsynced_before(self, digest: Digest, epoch: int) -> bool: ...

    def sync_names(self) -> int:
        """Make the names of all tails durable; return the epoch after that."""
        ...

    def distrust(self, key: ContentKey) -> None:
        """Count only the recorded bytes of *key*, because a sync of it failed."""
        ...

    def restore_space(self) -> bool:
        """Return whether the reserve exists, after it was made again if there is space."""
        ...

    # Ownership.

    def claim(self, id: OperationId, ends: bool) -> bool: ...


@dataclass(frozen=True, slots=True)
class Question:
    """How the arguments and the answer of a question are unpacked."""

    arguments: tuple[Kind, ...]
    answer: Kind

    def unpack(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the arguments as values. Raises :class:`Malformed`."""
        if len(arguments) != len(self.arguments):
            raise Malformed("a question has another number of arguments")
        return [
            kind(argument)
            for kind, argument in zip(self.arguments, arguments, strict=True)
        ]


# The table of values.


def _members(hint: Any) -> Iterator[type]:
    """Yield the classes that the type *hint* names, inside of whatever it is built of."""
    while isinstance(hint, NewType):
        hint = hint.__supertype__
    if isinstance(hint, types.UnionType) or get_args(hint):
        for member in get_args(hint):
            yield from _members(member)
    elif isinstance(hint, type):
        yield hint


def _table(*roots: Any) -> list[type]:
    """Return the dataclasses of *roots* and of all their fields, in the order of their names."""
    found: set[type] = set()
    left: list[type] = [cls for root in roots for cls in _members(root)]
    while left:
        cls = left.pop()
        if cls not in found and is_dataclass(cls):
            found.add(cls)
            for hint in get_type_hints(cls).values():
                left += _members(hint)
    return sorted(found, key=lambda cls: cls.__name__)


def _signatures() -> dict[str, tuple[list[Any], Any]]:
    signatures = {}
    for name, function in inspect.getmembers(Questions, inspect.isfunction):
        if not name.startswith("_"):
            hints = get_type_hints(function)
            answer = hints.pop("return")
            signatures[name] = (list(hints.values()), answer)
    return signatures


_SIGNATURES = _signatures()

_HINTS = [
    hint for arguments, answer in _SIGNATURES.values() for hint in (*arguments, answer)
]
_CODEC = Codec(_table(Message, *_HINTS))
_MESSAGE = _CODEC.kind(Message)
_QUESTIONS = {
    name: Question(tuple(map(_CODEC.kind, arguments)), _CODEC.kind(answer))
    for name, (arguments, answer) in _SIGNATURES.items()
}


def question(name: str) -> Question:
    """Return how question *name* is packed. Raises :class:`Malformed` if there is none."""
    try:
        return _QUESTIONS[name]
    except KeyError:
        raise Malformed(f"{name!r} is no question") from None


def pack(message: Message) -> bytes:
    """Return *message* packed, for :func:`frames`.

    Raises :class:`CallerError` for a value that does not fit into msgpack or into a frame.
    """
    packed = _CODEC.pack(message)
    if len(packed) >= MOST_FRAME - 16:
        raise CallerError(
            f"a message of {len(packed)} bytes is too long for the keeper's socket"
        )
    return packed


# Errors.

_ERRORS: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, StorageError | CallerError)
} | {"ValueError": ValueError}


def error_of(exc: Exception) -> Error:
    """Return *exc* for the wire. A class that the table does not have becomes its base."""
    for cls in type(exc).__mro__:
        if _ERRORS.get(cls.__name__) is cls:
            return Error(cls.__name__, tuple(map(str, exc.args)))
    return Error(StorageError.__name__, (f"the keeper of the store failed: {exc!r}",))


def error_from(error: Error) -> Exception:
    """Return the exception that *error* is of. Raises :class:`Malformed`."""
    cls = _ERRORS.get(error.name)
    if cls is None:
        raise Malformed(f"{error.name!r} is no error of a store")
    return cls(*error.arguments)


# Frames.


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """The first frame of each side: what it must know of the other one."""

    pid: int = 0
    refusal: str = ""
    """Why the keeper refuses the worker."""
    number: int = 0
    """The worker's number among the processes that share the store; the keeper is 0."""
    chunk_size: int = 0
    durable: bool = True
    epoch: int = 0
    mount_epoch: int = 0
    min_free: int = 0
    reserve: int = 0
    is_spent: bool = False
    is_limit_hidden: bool = False


_GREETING: dict[str, type] = get_type_hints(Greeting)


def greeting_frame(greeting: Greeting) -> bytes:
    """Return the frame of *greeting*."""
    found: dict[str, object] = {
        "trioresume": VERSION,
        "values": _CODEC.fingerprint,
    }
    found |= {name: getattr(greeting, name) for name in _GREETING}
    return _framed(_CODEC.pack(found))


def frames(packed: Sequence[bytes]) -> Iterator[bytes]:
    """Yield frames that have the *packed* messages in their order."""
    held: list[bytes] = []
    size = 0
    for message in packed:
        held.append(message)
        size += len(message)
        if size >= _FULL_FRAME:
            yield _frame(held)
            held, size = [], 0
    if held:
        yield _frame(held)


def _frame(packed: Sequence[bytes]) -> bytes:
    """Return one frame of *packed*: an array of msgpack, with its length in four bytes."""
    return _framed(b"\xdd" + len(packed).to_bytes(4) + b"".join(packed))


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(_HEAD) + payload


class FrameReader:
    """Makes messages of bytes, which may come in any pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._greeted = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message | Greeting]:
        """Return the messages that *data* completes. The first one is a greeting.

        Raises :class:`Malformed`; nothing that comes later can be trusted then.
        """
        buffer = self._buffer
        buffer += data
        messages: list[Message | Greeting] = []
        start = 0
        while len(buffer) - start >= _HEAD:
            size = int.from_bytes(buffer[start : start + _HEAD])
            if size > MOST_FRAME:
                raise Malformed(
                    f"a frame of {size} bytes, where {MOST_FRAME} are the most"
                )
            end = start + _HEAD + size
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                payload = bytes(view[start + _HEAD : end])
            if self._greeted:
                messages += self._messages(payload)
            else:
                messages.append(_greeting(_CODEC.load(payload)))
                self._greeted = True
            start = end
        if start:
            del buffer[:start]
        return messages

    @property
    def is_between_frames(self) -> bool:
        """Whether no part of a frame is waiting for its rest."""
        return not self._buffer

    def _messages(self, payload: bytes) -> list[Message]:
        found = _CODEC.load(payload)
        if type(found) is not list:
            raise Malformed("a frame without messages")
        return [_MESSAGE(message) for message in found]


def _greeting(found: Any) -> Greeting:
    if type(found) is not dict or "trioresume" not in found:
        raise Malformed("the other side is no trioresume")
    if found["trioresume"] != VERSION or found.get("values") != _CODEC.fingerprint:
        raise Malformed(
            "the other process runs another version of trioresume, which the keeper of"
            " this store does not understand: end the service and start it again"
        )
    given = {name: found.get(name) for name in _GREETING}
    if not all(type(given[name]) is hint for name, hint in _GREETING.items()):
        raise Malformed("a greeting with a value of another type")
    return Greeting(**given)  # type: ignore[arg-type] # checked in the line before
