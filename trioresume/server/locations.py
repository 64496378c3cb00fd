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
    from trioresume.server.config import Config

__all__ = ["Resource", "locate", "operation_fields"]

_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")


class Resource(Enum):
    """The resources of an operation: the value is the last segment of the path."""

    CONTENT = "content"
    MESSAGE = "message"
    RESULT = "result"


def location(config: Config, id: OperationId, resource: Resource) -> str:
    """A path-absolute reference, or an absolute URI if configured so (R4)."""
    return f"{config.public_url or ''}{config.operation_path}{id}/{resource.value}"


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
