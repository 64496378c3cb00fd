"""Structured fields (RFC 9651): the few shapes that the dialects' fields have.

A field of another type than its definition says is ignored as a whole, as if it were
not there (section 4.2); so everything here answers None instead of raising. Parameters
are passed over, since none of these fields defines any.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from trioresume.errors import PeerError
from trioresume.protocol.fields import parse_integer, split_list

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trioresume.protocol.heads import Fields

__all__ = [
    "boolean_item",
    "byte_sequences",
    "format_dictionary",
    "integer_item",
    "integer_members",
]

_ITEM = re.compile(r"\x20*([^;\x20]++)\x20*(?:;.*)?", re.DOTALL)
_MEMBER = re.compile(r"([a-z*][a-z0-9_.*\-]*+)=([^;\x20]++)\x20*(?:;.*)?", re.DOTALL)


def integer_item(fields: Fields, name: str) -> int | None:
    """A non-negative Integer; None, as if absent, for anything else (C1)."""
    return _integer(_item(fields, name))


def boolean_item(fields: Fields, name: str) -> bool | None:
    """A Boolean; None, as if absent, for anything else (C1)."""
    item = _item(fields, name)
    return {"?0": False, "?1": True}.get(item or "")


def integer_members(fields: Fields, name: str) -> Mapping[str, int]:
    """The members of a Dictionary whose values are non-negative Integers."""
    members = ((key, _integer(value)) for key, value in _members(fields, name))
    return {key: value for key, value in members if value is not None}


def byte_sequences(fields: Fields, name: str) -> Mapping[str, bytes]:
    """The members of a Dictionary whose values are Byte Sequences (``:base64:``)."""
    found: dict[str, bytes] = {}
    for key, value in _members(fields, name):
        if len(value) < 2 or not (value[0] == value[-1] == ":"):
            continue
        try:
            found[key] = base64.b64decode(value[1:-1], validate=True)
        except (binascii.Error, ValueError):
            continue
    return found


def format_dictionary(members: Mapping[str, int | bytes]) -> str:
    """A Dictionary of Integers and Byte Sequences."""
    return ", ".join(f"{key}={_bare(value)}" for key, value in members.items())


def _bare(value: int | bytes) -> str:
    if isinstance(value, int):
        return str(value)
    return f":{base64.b64encode(value).decode('ascii')}:"


def _item(fields: Fields, name: str) -> str | None:
    values = fields.get_all(name)
    match = _ITEM.fullmatch(values[0]) if len(values) == 1 else None
    return None if match is None else match[1]


def _integer(text: str | None) -> int | None:
    try:
        return None if text is None else parse_integer(text)
    except PeerError:
        return None


def _members(fields: Fields, name: str) -> list[tuple[str, str]]:
    # The last of members with one key wins (section 3.2).
    matches = map(_MEMBER.fullmatch, split_list(fields.get(name) or ""))
    return [(match[1], match[2]) for match in matches if match is not None]
