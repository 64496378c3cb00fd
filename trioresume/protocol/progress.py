"""``Progress``: how far a long operation is (A. Wright's draft on progress, B10).

::

    Progress: 0/
    Progress: 1/3 "checking"
    Progress: 2/3 UTF-8''gr%C3%BC%C3%9Fen

Statement numbers such as B10 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re

from trioresume.protocol.fields import format_ext_value, quote_string

__all__ = ["format_progress"]

MOST_REMARK = 200
"""The most characters of a remark that are sent, since people read it."""

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
