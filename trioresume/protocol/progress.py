"""``Progress``: how far a long-running operation is (A. Wright's draft on progress, B10).

::

    Progress: 0/
    Progress: 1/3 "checking"
    Progress: 2/3 UTF-8''gr%C3%BC%C3%9Fen
"""

from __future__ import annotations

import re

from trioresume.protocol.fields import format_ext_value, quote_string

__all__ = ["format_progress"]

MOST_REMARK = 200
"""Characters of a remark that are sent; it is there to be read."""

_PRINTABLE = re.compile(r"[\x20-\x7e]*+")


def format_progress(done: int, total: int | None = None, remark: str = "") -> str:
    """The value of ``Progress``: *done* of *total* steps, None if that is not known.

    What is not printable ASCII makes the remark an ext-value (RFC 8187), which shows
    control characters as harmless as any other (G4).
    """
    fraction = f"{done}/{'' if total is None else total}"
    remark = remark[:MOST_REMARK]
    if not remark:
        return fraction
    plain = _PRINTABLE.fullmatch(remark) is not None
    return f"{fraction} {(quote_string if plain else format_ext_value)(remark)}"
