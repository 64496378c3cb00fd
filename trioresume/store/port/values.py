"""The values that cross the store's port: keys, records, contents and their sizes.

Numbers such as G7 and R34 are statements of docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from trioresume.errors import CallerError
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.port.recipes import Digest

__all__ = [
    "FREE_HEAD",
    "RECORD_SIZE",
    "Collected",
    "Content",
    "ContentKey",
    "FileRecord",
    "OperationId",
    "OperationRecord",
    "StoredResponse",
    "Usage",
    "check_key",
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


@dataclass(frozen=True, slots=True)
class Collected:
    """The result of one step of collection: all zero when nothing is left to do."""

    recipes: int = 0
    chunks: int = 0
    bytes: int = 0
    steps: int = 0
    """Smaller steps: the references that were released and the leftover files looked at."""
