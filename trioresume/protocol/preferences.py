"""``Prefer`` and ``Preference-Applied`` (RFC 7240), for the preferences known here."""

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
    """What becomes of a request that is cut (R22, R23)."""

    SAVE_INCOMPLETE = "save-incomplete"
    IGNORE_INCOMPLETE = "ignore-incomplete"


class Transaction(Enum):
    """Whether a patch applies as a whole or byte by byte (B9)."""

    ATOMIC = "atomic"
    PERSIST = "persist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What a client would like; also what a server says it did (Preference-Applied).

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
    """The preferences among *fields*; never an error, since they are only wishes.

    Names are compared without case, and the first of duplicates wins (RFC 7240,
    section 2). What is malformed, unknown or has an unknown value counts as
    absent (R11), also where a duplicate with a known value follows.
    """
    return _parse(tuple(fields.get_all("prefer")))


# A request's are looked at several times, and clients say the same each time.
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
    """Name to value, "" where there is none: the two mean the same (section 2)."""
    values: dict[str, str] = {}
    # Line by line, so that a quoted string which never ends spoils one line only.
    for line in lines:
        for member in split_list(line):
            # Parameters follow the first semicolon; none of ours has any.
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
    """The value of ``Preference-Applied``; None when there is nothing to say."""
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
