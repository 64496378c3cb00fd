"""The paths of an operation's three resources, and the way back from a path to them.

They are ``{operation_path}{token}/content``, ``/message`` and ``/result``. Only the token
varies, and its form is strict. No other path leads to an operation, and no token becomes a
path on disk without that check (G12).

The numbered statements (G12, G13, R1 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

from trioresume.protocol.heads import Fields
from trioresume.server.api.config import root_of
from trioresume.store.port import OperationId
from trioresume.text import OPEN, OPEN_TWINS, concealed

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config

__all__ = [
    "OPEN",
    "Resource",
    "concealed",
    "locate",
    "locate_reference",
    "location",
    "opened_id",
    "operation_fields",
    "origin_of",
    "root_of",
]

_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")


def opened_id(id: OperationId) -> OperationId:
    """Return the new *id* as that of an open operation, with the same 128 random bits.

    The id of an open operation says so by its last letter. So a request for it is known without
    a look into the catalog, and whoever guesses at ids learns nothing of operations of others.
    """
    return OperationId(id[:-1] + OPEN_TWINS[id[-1]])


class Resource(Enum):
    """The resources of an operation. The value is the last segment of the path."""

    CONTENT = "content"
    MESSAGE = "message"
    RESULT = "result"


def location(config: Config, id: OperationId, resource: Resource) -> str:
    """Return a resource's path-absolute location; an absolute URI with ``public_url`` (R4)."""
    return f"{root_of(config)}{config.operation_path}{id}/{resource.value}"


def origin_of(config: Config, head: RequestHead) -> str:
    """Return the origin that makes a location absolute for the sender of *head*, or "".

    Without ``public_url`` it is the authority that the request was sent to. Only the sender
    gets it back: it is not stored, and not told to any other client (G13).
    """
    if config.public_url is not None or config.relative_locations:
        return ""
    return head.origin


def operation_fields(
    config: Config, id: OperationId, with_content: bool = True
) -> Fields:
    """Return the three fields of R1, or two if the request has no content (R5)."""
    places = {
        "request-content-location": Resource.CONTENT,
        "response-message-location": Resource.MESSAGE,
        "content-location": Resource.RESULT,
    }
    return Fields(
        (name, location(config, id, resource))
        for name, resource in places.items()
        if with_content or resource is not Resource.CONTENT
    )


def locate(config: Config, path: str) -> tuple[OperationId, Resource] | None:
    """Return the operation and the resource that *path* names; None if it names none."""
    token, _, last = path.removeprefix(config.operation_path).partition("/")
    if not _TOKEN.fullmatch(token):
        return None
    try:
        return OperationId(token), Resource(last)
    except ValueError:
        return None


def locate_reference(
    config: Config, reference: str
) -> tuple[OperationId, Resource] | None:
    """Return the operation and the resource that a URI reference names; None if it is none.

    The reference is absolute or path-absolute. Its authority proves nothing and is ignored
    (G13): only the token is unguessable. The prefix that a proxy removes is removed here, too.
    """
    path = _ORIGIN.sub("", reference, count=1)
    root = _ORIGIN.sub("", root_of(config), count=1)
    path = path.removeprefix(root)
    return locate(config, path) if path.startswith(config.operation_path) else None


_ORIGIN = re.compile(r"\Ahttps?://[^/?#]*", re.IGNORECASE)
