"""Turns records into plain values for JSON and msgpack, and back.

Frozen dataclasses become mappings, enumerations become their values, and tuples become
lists. The types of the fields say how to turn them back. A field with
``metadata={"secret": True}`` has pairs whose second member must not be written. It is
replaced.

The name of a plain value has its unit, because its reader may not know this code: a
field ``begun: Seconds`` is written as ``begun_seconds``. See :class:`Unit`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar

__all__ = [
    "HIDDEN",
    "BadRecord",
    "Bytes",
    "BytesPerSecond",
    "CpuSeconds",
    "EpochSeconds",
    "Member",
    "Offset",
    "Seconds",
    "Unit",
    "WholeBytesPerSecond",
    "from_plain",
    "members",
    "to_plain",
]

HIDDEN = "(not shown)"
"""The text in place of a secret's value."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a number, or of each number in a tuple: the end of its written name."""

    suffix: str


Bytes = Annotated[int, Unit("bytes")]
BytesPerSecond = Annotated[float, Unit("bytes_per_second")]
WholeBytesPerSecond = Annotated[int, Unit("bytes_per_second")]
CpuSeconds = Annotated[float, Unit("cpu_seconds")]
EpochSeconds = Annotated[float, Unit("epoch_seconds")]
"""Seconds since 1970-01-01 UTC."""
Offset = Annotated[int, Unit("byte_offset")]
Seconds = Annotated[float, Unit("seconds")]


@dataclass(frozen=True, slots=True)
class Member:
    """A field of a record: its written *name*, and its type without the unit."""

    field: dataclasses.Field[Any]
    name: str
    type: Any


class BadRecord(ValueError):
    """A plain value does not have the shape of its record."""


def to_plain(record: object, *, secrets: bool = False) -> Any:
    """Turn *record* into dicts, lists, strings, numbers, booleans and None.

    Properties are not included, because they can be computed again. *secrets* keeps the
    secret values, for processes of the same run.
    """
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        plain: dict[str, Any] = {}
        for member in members(type(record)):
            value = getattr(record, member.field.name)
            if member.field.metadata.get("secret") and not secrets:
                value = tuple((name, HIDDEN) for name, _ in value)
            plain[member.name] = to_plain(value, secrets=secrets)
        return plain
    if isinstance(record, Enum):
        return record.value
    if isinstance(record, tuple | list):
        return [to_plain(item, secrets=secrets) for item in record]
    if isinstance(record, Mapping):
        return {key: to_plain(item, secrets=secrets) for key, item in record.items()}
    return record


def from_plain(kind: type[T], plain: object) -> T:
    """Return the record of type *kind* from which :func:`to_plain` made *plain*.

    A missing member takes the field's default, so that records of an older version can
    be read. An unknown member is ignored. Raises :class:`BadRecord`.
    """
    made = _made(kind, plain)
    assert isinstance(made, kind)
    return made


_known_members: dict[type, tuple[Member, ...]] = {}


def members(kind: type) -> tuple[Member, ...]:
    """Return the members of the record type *kind*, in order."""
    if kind not in _known_members:  # evaluated once: a run has many records
        bare = typing.get_type_hints(kind)
        annotated = typing.get_type_hints(kind, include_extras=True)
        _known_members[kind] = tuple(
            Member(field, _name(field.name, annotated[field.name]), bare[field.name])
            for field in dataclasses.fields(kind)
        )
    return _known_members[kind]


def _name(name: str, hint: Any) -> str:
    """Return *name* with its unit, unless it ends with the unit (``seconds``, ``mean_bytes``)."""
    for unit in _units(hint):
        if name != unit.suffix and not name.endswith(f"_{unit.suffix}"):
            return f"{name}_{unit.suffix}"
    return name


def _units(hint: Any) -> Iterator[Unit]:
    if typing.get_origin(hint) is Annotated:
        yield from (extra for extra in hint.__metadata__ if isinstance(extra, Unit))
    for inner in typing.get_args(hint):
        yield from _units(inner)


def _made(kind: Any, plain: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _optional(kind, plain)
    if origin is tuple:
        return _tuple(typing.get_args(kind), plain)
    if dataclasses.is_dataclass(kind):
        return _record(kind, plain)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(plain)
        except ValueError as exc:
            raise BadRecord(f"{plain!r} is no {kind.__name__}") from exc
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)  # JSON writers may drop a trailing .0
    # For isinstance a bool is an int, but it is never meant as one.
    if not isinstance(plain, kind) or (kind is int and isinstance(plain, bool)):
        raise BadRecord(f"{plain!r} is no {kind.__name__}")
    return plain


def _optional(kind: Any, plain: Any) -> Any:
    if plain is None:
        return None
    (inner,) = (arg for arg in typing.get_args(kind) if arg is not types.NoneType)
    return _made(inner, plain)


def _tuple(members: tuple[Any, ...], plain: Any) -> Any:
    if not isinstance(plain, list | tuple):
        raise BadRecord(f"{plain!r} is no list")
    if len(members) == 2 and members[1] is Ellipsis:
        return tuple(_made(members[0], item) for item in plain)
    if len(members) != len(plain):
        raise BadRecord(f"{plain!r} does not have {len(members)} members")
    return tuple(_made(kind, item) for kind, item in zip(members, plain, strict=True))


def _record(kind: Any, plain: Any) -> Any:
    if not isinstance(plain, Mapping):
        raise BadRecord(f"{plain!r} is no {kind.__name__}")
    try:
        return kind(
            **{
                member.field.name: _made(member.type, plain[member.name])
                for member in members(kind)
                if member.field.init and member.name in plain
            }
        )
    except TypeError as exc:  # a member without a default is missing
        raise BadRecord(str(exc)) from exc
