"""``Prefer`` and ``Preference-Applied`` (RFC 7240), for the preferences known here.

Statement numbers such as R22 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from trioresume.errors import PeerError
from trioresume.protocol.fields import (
    QUOTED_STRING,
    TOKEN,
    parse_integer,
    split_list,
    unquote_string,
)

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields

__all__ = [
    "Preferences",
    "ResumeMode",
    "Transaction",
    "parse_preferences",
    "preference_applied",
]


class ResumeMode(Enum):
    """What happens to a request that is cut (R22, R23)."""

    SAVE_INCOMPLETE = "save-incomplete"
    IGNORE_INCOMPLETE = "ignore-incomplete"


class Transaction(Enum):
    """Whether a patch applies as a whole or byte by byte (B9)."""

    ATOMIC = "atomic"
    PERSIST = "persist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What a client wishes, or what a server says that it did (Preference-Applied).

    ``wait`` is in seconds.
    """

    resume: ResumeMode | None = None
    wait: int | None = None
    acknowledge: bool = False
    transaction: Transaction | None = None
    processing: bool = False
    respond_async: bool = False


_PREFERENCE = re.compile(
    rf"({TOKEN})(?:[ \t]*+=[ \t]*+({TOKEN}|{QUOTED_STRING}))?+", re.DOTALL
)


def parse_preferences(fields: Fields) -> Preferences:
    """Return the preferences in *fields*. They are only wishes, so nothing raises.

    Names are compared without case, and the first of duplicates wins (RFC 7240,
    section 2). A preference that is malformed, unknown or has an unknown value counts
    as absent (R11), also if a duplicate with a known value follows.
    """
    return _parse(tuple(fields.get_all("prefer")))


# The preferences of a request are read several times, and clients repeat the same ones.
@lru_cache(maxsize=256)
def _parse(lines: tuple[str, ...]) -> Preferences:
    asked = _first_values(lines)
    return Preferences(
        resume=_resume_mode(asked.get("resume")),
        wait=_seconds(asked.get("wait")),
        acknowledge=asked.get("acknowledge") == "",
        transaction=_transaction(asked.get("transaction")),
        processing=asked.get("processing") == "",
        respond_async=asked.get("respond-async") == "",
    )


def _first_values(lines: tuple[str, ...]) -> dict[str, str]:
    """Return the values by name. A missing value is "", which means the same (section 2)."""
    values: dict[str, str] = {}
    # Line by line, so that an unterminated quoted string spoils only its own line.
    for line in lines:
        for member in split_list(line):
            # Parameters follow the first semicolon. The known preferences have none.
            parts = split_list(member, ";")
            match = _PREFERENCE.fullmatch(parts[0]) if parts else None
            if match is not None:
                values.setdefault(match[1].lower(), unquote_string(match[2] or ""))
    return values


def _resume_mode(value: str | None) -> ResumeMode | None:
    if value == "":
        return ResumeMode.SAVE_INCOMPLETE  # R2
    try:
        return ResumeMode(value)
    except ValueError:
        return None


def _transaction(value: str | None) -> Transaction | None:
    try:
        return Transaction(value)
    except ValueError:
        return None


def _seconds(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_integer(value)
    except PeerError:
        return None


def preference_applied(applied: Preferences) -> str | None:
    """Return the value of ``Preference-Applied``; None if nothing was applied."""
    said: list[str] = []
    if applied.resume is not None:
        said.append(f"resume={applied.resume.value}")
    if applied.wait is not None:
        said.append(f"wait={applied.wait}")
    if applied.acknowledge:
        said.append("acknowledge")
    if applied.transaction is not None:
        said.append(f"transaction={applied.transaction.value}")
    if applied.processing:
        said.append("processing")
    if applied.respond_async:
        said.append("respond-async")
    return ", ".join(said) or None
