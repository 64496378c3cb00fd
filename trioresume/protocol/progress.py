"""``Progress``: how far a long operation is (A. Wright's draft on progress, B10).

::

    Progress: 0/
    Progress: 1/3 "checking"
    Progress: 2/3 UTF-8''gr%C3%BC%C3%9Fen

Statement numbers such as B10 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trioresume.protocol.fields import (
    QUOTED_STRING,
    decode_ext_value,
    format_ext_value,
    quote_string,
    unquote_string,
)

__all__ = ["MOST_REMARK", "ProcessingProgress", "format_progress", "parse_progress"]

MOST_REMARK = 200
"""The most characters of a remark that are sent, since people read it."""

# The drafts write further strings behind the remark. They are for programs, and ignored.
_PROGRESS = re.compile(
    rf"([0-9]{{1,15}})/([0-9]{{1,15}})?+(?:[ \t]++({QUOTED_STRING}|[^ \t\"]++)(?:[ \t].*+)?+)?+[ \t]*+",
    re.DOTALL,
)

_PRINTABLE = re.compile(r"[\x20-\x7e]*+")


def format_progress(done: int, total: int | None = None, remark: str = "") -> str:
    """Return the value of ``Progress``: *done* of *total* steps; None if not known.

    A remark that is not printable ASCII becomes an ext-value (RFC 8187), which makes
    control characters harmless (G4).
    """
    fraction = f"{done}/{'' if total is None else total}"
    remark = remark[:MOST_REMARK]
    if not remark:
        return fraction
    plain = _PRINTABLE.fullmatch(remark) is not None
    return f"{fraction} {(quote_string if plain else format_ext_value)(remark)}"


@dataclass(frozen=True, slots=True)
class ProcessingProgress:
    """How far the server is with processing a request whose content it has."""

    done: int
    """Steps that are done."""
    total: int | None
    """All steps; None if the server does not say how many there are."""
    remark: str = ""
    """What the server is doing, in its own words. It may contain any character."""


def parse_progress(value: str | None) -> ProcessingProgress | None:
    """Return what a ``Progress`` field tells; None if it is absent or malformed.

    The numbers have at most 15 digits (G6), and *done* is at most *total*. The remark is cut
    after :data:`MOST_REMARK` characters.
    """
    match = None if value is None else _PROGRESS.fullmatch(value)
    if match is None:
        return None
    done, total = int(match[1]), None if match[2] is None else int(match[2])
    if total is not None and done > total:
        return None
    told = match[3] or ""
    quoted = told.startswith('"')
    remark = unquote_string(told) if quoted else decode_ext_value(told) or ""
    return ProcessingProgress(done, total, remark[:MOST_REMARK])
