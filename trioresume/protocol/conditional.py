"""Preconditions, in the order of RFC 9110, section 13.2.2.

R20 is in docs/supported-protocols.md.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

from trioresume.protocol.fields import (
    EntityTag,
    parse_entity_tag,
    parse_entity_tags,
    parse_http_date,
)

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields

__all__ = ["Outcome", "content_etag", "evaluate", "range_applies"]


class Outcome(Enum):
    """What the preconditions say about performing the method."""

    PROCEED = "proceed"
    NOT_MODIFIED = "not modified"
    """Answer 304. Only for GET and HEAD."""
    FAILED = "failed"
    """Answer 412."""


_PRECONDITIONS = frozenset(
    {"if-match", "if-none-match", "if-modified-since", "if-unmodified-since"}
)


def evaluate(
    method: str,
    fields: Fields,
    *,
    etag: str | None,
    last_modified: float | None = None,
    exists: bool = True,
) -> Outcome:
    """Evaluate the preconditions of a request against the current representation.

    *etag* is the value of the ``ETag`` field, with its quotes. *last_modified* is in
    Unix seconds. *exists* is false if there is no current representation.
    Raises :class:`~trioresume.errors.PeerError` (400) for a malformed list of tags.
    """
    for name, _ in fields:
        if name in _PRECONDITIONS:
            break
    else:
        return Outcome.PROCEED  # the usual case
    current = None if etag is None or not exists else parse_entity_tag(etag)
    # The field has whole seconds, so it is compared with whole seconds.
    modified = None if last_modified is None else math.floor(last_modified)
    if not exists:
        modified = None
    reads = method in ("GET", "HEAD")

    # Steps 1 and 2.
    if fields.get("if-match") is not None:
        if not _any_match(fields, "if-match", current, exists=exists):
            return Outcome.FAILED
    elif not _unmodified_since(fields, modified):
        return Outcome.FAILED

    # Steps 3 and 4.
    if fields.get("if-none-match") is not None:
        if _any_match(fields, "if-none-match", current, exists=exists):
            return Outcome.NOT_MODIFIED if reads else Outcome.FAILED
    elif reads and not _modified_since(fields, modified):
        return Outcome.NOT_MODIFIED

    return Outcome.PROCEED


def _any_match(
    fields: Fields, name: str, current: EntityTag | None, *, exists: bool
) -> bool:
    tags = parse_entity_tags(fields.get(name) or "")
    if tags == "*":
        return exists
    if current is None:
        return False
    # If-Match guards a write and so compares strongly (section 13.1.1);
    # If-None-Match guards a cache and so compares weakly (section 13.1.2).
    if name == "if-match":
        return any(current.matches_strongly(tag) for tag in tags)
    return any(current.matches_weakly(tag) for tag in tags)


def _unmodified_since(fields: Fields, modified: int | None) -> bool:
    """True as well when there is no such field, no valid date or nothing to compare."""
    limit = parse_http_date(fields.get("if-unmodified-since") or "")
    return limit is None or modified is None or modified <= limit


def _modified_since(fields: Fields, modified: int | None) -> bool:
    """True as well when there is no such field, no valid date or nothing to compare."""
    limit = parse_http_date(fields.get("if-modified-since") or "")
    return limit is None or modified is None or modified > limit


def range_applies(fields: Fields, *, etag: str | None) -> bool:
    """Return whether ``If-Range`` allows the server to honour ``Range``.

    True without the field. With a tag, only a strong match counts (section 13.1.5). A
    date never matches. It is a strong validator only if the content did not change
    twice within that second (section 8.8.2.2), and this server cannot know that. A
    client that has the ETag should send the ETag.
    """
    value = fields.get("if-range")
    if value is None:
        return True
    asked = parse_entity_tag(value)
    current = None if etag is None else parse_entity_tag(etag)
    return asked is not None and current is not None and asked.matches_strongly(current)


def content_etag(offset: int) -> str:
    """Return the strong validator of the received prefix. It changes with the offset (R20)."""
    return f'"{offset}"'
