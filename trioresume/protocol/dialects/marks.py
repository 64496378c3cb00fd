"""The fields that only a server of one of the protocols sends.

They show that an answer comes from such a server, and not from a network in between. If
the answer is a page, or repeats the request's fields, then a field that the request had
with the same value does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioresume.protocol.fields import parse_media_type
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from trioresume.protocol.dialects.client import Answer

__all__ = ["has_mark", "is_marked", "is_page"]

_MARKS = frozenset(
    {
        "acknowledge",
        "request-content-location",
        "response-message-location",
        "tus-resumable",
        "upload-complete",
        "upload-draft-interop-version",
        "upload-incomplete",
        "upload-limit",
        "upload-offset",
    }
)
"""Fields of the seed, of RUFH and of tus that no other software has a reason to send."""

_OF_REQUESTS = frozenset(
    {
        "accept",
        "authorization",
        "content-disposition",
        "expect",
        "host",
        "incremental",
        "prefer",
        "user-agent",
        "want-repr-digest",
    }
)
"""Request fields. An answer has them only if a network or a proxy sends them back."""

_PAGES = frozenset({"text/html", "application/xhtml+xml"})


def has_mark(fields: Fields) -> bool:
    """Whether *fields* come from a server that speaks one of the protocols."""
    if any(name in _MARKS for name, _ in fields):
        return True
    return "resume" in (fields.get("preference-applied") or "").lower()


def is_marked(answer: Answer) -> bool:
    """Whether *answer* has a mark that is not a copy of the request's own field."""
    if not (answer.copied & _OF_REQUESTS or is_page(answer)):
        # A server may send the same value as the request: the version, or "complete".
        return has_mark(answer.fields)
    copied = answer.copied
    return has_mark(Fields(line for line in answer.fields if line[0] not in copied))


def is_page(answer: Answer) -> bool:
    """Whether the content of *answer* is an HTML page."""
    media_type = parse_media_type(answer.fields.get("content-type") or "")
    return media_type is not None and media_type.essence in _PAGES
