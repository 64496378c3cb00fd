"""Where an operation's three resources live, and back from a path to them.

``{operation_path}{token}/content``, ``/message`` and ``/result``. The token is the
only variable part, and it has a strict form: nothing else ever leads to an
operation, and nothing of it becomes a path on disk without that check (G12).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

from trioresume.protocol.heads import Fields
from trioresume.store.port import OperationId

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.config import Config

__all__ = [
    "Resource",
    "locate",
    "locate_reference",
    "location",
    "operation_fields",
    "origin_of",
    "root_of",
]

_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")


class Resource(Enum):
    """The resources of an operation: the value is the last segment of the path."""

    CONTENT = "content"
    MESSAGE = "message"
    RESULT = "result"


def location(config: Config, id: OperationId, resource: Resource) -> str:
    """A path-absolute reference, or an absolute URI if configured so (R4)."""
    return f"{root_of(config)}{config.operation_path}{id}/{resource.value}"


def root_of(config: Config) -> str:
    """What stands before the path of every location that clients are told."""
    if config.public_url is None:
        return config.root_path
    return config.public_url.rstrip("/")


def origin_of(config: Config, head: RequestHead) -> str:
    """What makes a location absolute for the sender of *head*, if it is to be.

    Without ``public_url`` it is the authority that the request was sent to, given back
    to whoever sent it and to nobody else: nothing that is stored, or told to others,
    holds it (G13).
    """
    if config.public_url is not None or config.relative_locations:
        return ""
    return head.origin


def operation_fields(
    config: Config, id: OperationId, with_content: bool = True
) -> Fields:
    """The three fields of R1; without content there is no content to locate (R5)."""
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
    """The operation and resource that *path* names, None if it names none."""
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
    """The operation and resource that a URI reference names, None if it names none.

    It is absolute or path-absolute. Its authority proves nothing and is passed over
    (G13): the token is what is unguessable. What a proxy takes off its path goes too.
    """
    path = _ORIGIN.sub("", reference, count=1)
    root = _ORIGIN.sub("", root_of(config), count=1)
    path = path.removeprefix(root)
    return locate(config, path) if path.startswith(config.operation_path) else None


_ORIGIN = re.compile(r"\Ahttps?://[^/?#]*", re.IGNORECASE)
