"""The events of an upload, and the JSON in which receivers get them.

The JSON is tusd's, because that is what people have receivers for. Members that tusd does not
have are ``ID`` and ``Time`` of the event, ``Event.Principal`` and ``Event.Reason``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trioresume.errors import PeerError
from trioresume.protocol.dialects.tus.fields import (
    format_metadata,
    joined_references,
    metadata_of,
    parse_metadata,
    representation_fields,
)
from trioresume.protocol.dialects.tus.server import is_partial

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields, RequestHead

__all__ = [
    "BLOCKING",
    "DEFAULT_EVENTS",
    "LIFETIME_KEY",
    "HookEvent",
    "HookKind",
    "UploadFacts",
    "document",
    "is_upload",
    "metadata_from",
    "with_metadata",
]


class HookKind(StrEnum):
    """The events, by their names in JSON."""

    PRE_CREATE = "pre-create"
    """Asked before an upload begins: it may be refused or changed."""
    POST_CREATE = "post-create"
    """An upload has begun."""
    POST_RECEIVE = "post-receive"
    """More of an upload is durable. Told now and then, and never again after a crash."""
    PRE_FINISH = "pre-finish"
    """Asked when all content is there: what the response is to be."""
    POST_FINISH = "post-finish"
    """An upload is complete, and its response is recorded."""
    PRE_TERMINATE = "pre-terminate"
    """Asked before a client's cancellation takes effect."""
    POST_TERMINATE = "post-terminate"
    """An upload has ended without success; ``Reason`` says why."""
    EXPIRED = "expired"
    """An unfinished upload has expired."""
    INTERRUPTED = "interrupted"
    """A connection was lost in the middle of content; the upload can be resumed."""


BLOCKING = frozenset({HookKind.PRE_CREATE, HookKind.PRE_FINISH, HookKind.PRE_TERMINATE})
"""The events whose answers decide something."""

DEFAULT_EVENTS = frozenset(
    {
        HookKind.PRE_CREATE,
        HookKind.POST_CREATE,
        HookKind.POST_RECEIVE,
        HookKind.POST_FINISH,
        HookKind.POST_TERMINATE,
    }
)
"""tusd's default."""

LIFETIME_KEY = "file-lifetime"
"""The key of the metadata under which the lifetime of the later file is recorded, in seconds.

Only ``pre-create`` can set it: what a client sends under this key is removed."""

_encode = json.JSONEncoder(separators=(",", ":")).encode
_NO_UPLOADS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "TRACE"})
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(frozen=True)
class HookEvent:
    """One event, as a transport sends it."""

    kind: HookKind
    id: str
    """The same each time that this event is sent."""
    body: bytes
    """The JSON document."""

    @cached_property
    def document(self) -> dict[str, Any]:
        """The parsed JSON document."""
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    @property
    def upload(self) -> dict[str, Any]:
        """The member ``Event.Upload``."""
        found: dict[str, Any] = self.document["Event"]["Upload"]
        return found

    @property
    def request_fields(self) -> dict[str, list[str]]:
        """The member ``Event.HTTPRequest.Header``: the lines of each field."""
        found: dict[str, list[str]] = self.document["Event"]["HTTPRequest"]["Header"]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFacts:
    """What an event says of an upload."""

    id: str
    length: int | None
    offset: int
    fields: Fields
    """The recorded fields of the request that began it."""
    principal: str | None
    storage: Mapping[str, object] | None = None
    reason: str | None = None


def is_upload(method: str) -> bool:
    """Whether a request with this method is an upload, of which hooks are told."""
    return method not in _NO_UPLOADS


def document(
    kind: HookKind,
    id: str,
    date: float,
    upload: UploadFacts,
    head: RequestHead,
    *,
    stored: bool,
    kept_fields: Collection[str] = (),
) -> bytes:
    """Return the JSON of an event.

    If it is *stored* before it is sent, the credentials of the request are left out, unless
    *kept_fields* (in lower case) has their fields.
    """
    lines: dict[str, list[str]] = {}
    for name, value in head.fields:
        if stored and name in _CREDENTIALS and name not in kept_fields:
            continue
        lines.setdefault(name.title(), []).append(value)
    metadata = metadata_from(upload.fields)
    metadata.pop(LIFETIME_KEY, None)
    parts = _parts_of(upload.fields)
    event: dict[str, object] = {
        "Upload": {
            "ID": upload.id,
            "Size": upload.length or 0,
            "SizeIsDeferred": upload.length is None,
            "Offset": upload.offset,
            "MetaData": metadata,
            "IsPartial": is_partial(upload.fields),
            "IsFinal": bool(parts),
            "PartialUploads": parts or None,
            "Storage": upload.storage,
        },
        "HTTPRequest": {
            "Method": head.method,
            "URI": head.target,
            "RemoteAddr": head.peer,
            "Header": lines,
        },
        "Principal": upload.principal,
    }
    if upload.reason is not None:
        event["Reason"] = upload.reason
    time = datetime.fromtimestamp(date, UTC).isoformat(timespec="milliseconds")
    whole = {"Type": kind, "ID": id, "Time": time, "Event": event}
    return _encode(whole).encode("ascii")


def _parts_of(fields: Fields) -> list[str]:
    if "tus-resumable" not in fields:
        return []
    try:
        references = joined_references(fields) or ()
    except PeerError:
        return []
    # A reference is the URI of a part's content: …/ID/content.
    return [reference.split("/")[-2] for reference in references if "/" in reference]


def metadata_from(fields: Fields) -> dict[str, str]:
    """Return what the request with *fields* says about the content, as tus's metadata."""
    said = fields.get("upload-metadata")
    try:
        known = metadata_of(fields) if said is None else parse_metadata(said)
    except PeerError:
        known = {}
    return {key: value.decode("utf-8", "replace") for key, value in known.items()}


def with_metadata(fields: Fields, metadata: Mapping[str, str]) -> Fields:
    """Return *fields* with other metadata: tus's field, and HTTP's that stand for it."""
    encoded = {key: value.encode() for key, value in metadata.items()}
    about = {"upload-metadata": format_metadata(encoded)} if encoded else {}
    kept = fields.without("upload-metadata", "content-type", "content-disposition")
    return kept.plus(about).plus(representation_fields(encoded))
