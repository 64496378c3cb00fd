"""Structured fields (RFC 9651): the few types that the dialects' fields have.

http-sf parses the fields. A field that does not parse, or that does not have the type
of its definition, is ignored as a whole (RFC 9651, section 4.2). So nothing here
raises. Parameters are ignored too, because these fields define none, except for
``Content-Offset``.

The work is bounded. http-sf takes about 16 µs for a member of a Dictionary, so a value
of more than :data:`MOST_CHARACTERS` is ignored without parsing it. The real fields have
few members.

Statement numbers such as C1 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Literal, TypeGuard

import http_sf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trioresume.protocol.heads import Fields

__all__ = [
    "MOST_CHARACTERS",
    "boolean_item",
    "byte_sequences",
    "format_dictionary",
    "integer_item",
    "integer_members",
    "is_natural",
    "parameterised_integer",
]

MOST_CHARACTERS = 2048


def integer_item(fields: Fields, name: str) -> int | None:
    """Return a non-negative Integer; None, as if absent, for anything else (C1)."""
    value = _item(fields, name)
    return value if is_natural(value) else None


def parameterised_integer(text: str) -> tuple[int, Mapping[str, object]] | None:
    """Return a non-negative Integer and its parameters; None for anything else.

    Tokens and Strings among the parameters are both ``str``.
    """
    parsed = _parse(text, "item")
    if not isinstance(parsed, tuple) or not is_natural(parsed[0]):
        return None
    value, parameters = parsed
    return value, {
        key: str(each) if isinstance(each, http_sf.Token) else each
        for key, each in parameters.items()
    }


def boolean_item(fields: Fields, name: str) -> bool | None:
    """Return a Boolean; None, as if absent, for anything else (C1)."""
    value = _item(fields, name)
    return value if isinstance(value, bool) else None


def integer_members(fields: Fields, name: str) -> Mapping[str, int]:
    """Return the members of a Dictionary whose values are non-negative Integers."""
    return {k: v for k, v in _members(fields, name) if is_natural(v)}


def byte_sequences(fields: Fields, name: str) -> Mapping[str, bytes]:
    """Return the members of a Dictionary whose values are Byte Sequences (``:base64:``)."""
    return {k: v for k, v in _members(fields, name) if isinstance(v, bytes)}


def format_dictionary(members: Mapping[str, int | bytes]) -> str:
    """Write a Dictionary of Integers and Byte Sequences."""
    return ", ".join(f"{key}={_bare(value)}" for key, value in members.items())


def _bare(value: int | bytes) -> str:
    if isinstance(value, int):
        return str(value)
    return f":{base64.b64encode(value).decode('ascii')}:"


def is_natural(value: object) -> TypeGuard[int]:
    """Whether *value* is a non-negative Integer and not a Boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _item(fields: Fields, name: str) -> object:
    """Return the value of an Item; None for two field lines, which make a List."""
    lines = fields.get_all(name)
    if len(lines) != 1:
        return None
    parsed = _parse(lines[0], "item")
    return parsed[0] if isinstance(parsed, tuple) else None


def _members(fields: Fields, name: str) -> Iterator[tuple[str, object]]:
    parsed = _parse(fields.get(name) or "", "dictionary")
    if isinstance(parsed, dict):
        for key, member in parsed.items():
            yield key, member[0]


def _parse(text: str, kind: Literal["item", "dictionary"]) -> object:
    if not text or len(text) > MOST_CHARACTERS:
        return None
    try:
        return http_sf.parse(text.encode("ascii"), tltype=kind)
    except ValueError:  # not ASCII, or http_sf.StructuredFieldError
        return None
