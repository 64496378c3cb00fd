"""Conversions between the catalog's rows and the port's values."""

from __future__ import annotations

from typing import Any

import msgpack

from trioresume.protocol.heads import Fields
from trioresume.store.port import (
    Content,
    FileRecord,
    OperationId,
    OperationRecord,
    OperationState,
    StoredResponse,
)
from trioresume.store.port.recipes import Digest

__all__ = [
    "FILE_COLUMNS",
    "OPERATION_COLUMNS",
    "content_columns",
    "content_from",
    "file_from",
    "namespace_of",
    "operation_from",
    "pack_fields",
    "response_columns",
]

Row = tuple[Any, ...]

OPERATION_COLUMNS = (
    "id, state, method, target, fields, principal, keep_incomplete, created_at, expires_at,"
    " length, content_length, content_inline, content_digest, response_head,"
    " response_length, response_inline, response_digest, explicit_completion, reserved"
)

FILE_COLUMNS = "owner, name, fields, modified_at, expires_at, content_length, content_inline, content_digest"


def pack_fields(fields: Fields) -> bytes:
    packed: bytes = msgpack.packb(list(fields))
    return packed


def content_columns(content: Content | None) -> Row:
    """Return ``length, inline, digest``; all are None when there is no content."""
    if content is None:
        return (None, None, None)
    return (content.length, content.inline, content.digest)


def content_from(
    length: int | None, inline: bytes | None, digest: bytes | None
) -> Content | None:
    if length is None:
        return None
    return Content(length, inline, None if digest is None else Digest(digest))


def response_columns(response: StoredResponse | None) -> Row:
    """Return ``head, length, inline, digest``; all are None when there is no response."""
    if response is None:
        return (None, None, None, None)
    head: bytes = msgpack.packb([response.status, list(response.fields)])
    return (head, *content_columns(response.body))


def operation_from(row: Row) -> OperationRecord:
    """Make a record from the :data:`OPERATION_COLUMNS` and the durable offset after them."""
    content = content_from(*row[10:13])
    response = None
    body = content_from(*row[14:17])
    if body is not None:
        status, lines = msgpack.unpackb(row[13])
        response = StoredResponse(status=status, fields=Fields(lines), body=body)
    return OperationRecord(
        id=OperationId(row[0]),
        state=OperationState(row[1]),
        method=row[2],
        target=row[3],
        fields=Fields(msgpack.unpackb(row[4])),
        principal=row[5],
        keep_incomplete=bool(row[6]),
        created_at=row[7],
        expires_at=row[8],
        length=row[9],
        content=content,
        response=response,
        explicit_completion=bool(row[17]),
        reserved=row[18],
        durable_offset=row[19] if content is None else content.length,
    )


def file_from(row: Row) -> FileRecord:
    """Make a record from the :data:`FILE_COLUMNS`."""
    owner, name, fields, modified_at, expires_at, length, inline, digest = row
    return FileRecord(
        owner=owner,
        name=name,
        fields=Fields(msgpack.unpackb(fields)),
        modified_at=modified_at,
        expires_at=expires_at,
        content=Content(length, inline, None if digest is None else Digest(digest)),
    )


def namespace_of(owner: str | None) -> str:
    """Return *owner* as a key. No owner gets a value too, because SQL's nulls are distinct."""
    return "" if owner is None else f"={owner}"
