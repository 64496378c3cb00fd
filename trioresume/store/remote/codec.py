"""The values of the port as msgpack, by their types and without code for each class.

A dataclass is an array: its *tag*, then its fields in order. A tag is the position of the class
in a table, which the caller gives. Everything else is as msgpack has it: a state is its text,
fields of a head are pairs, a tuple is an array.

Packing needs no types: :meth:`Codec.pack` looks at the values. Unpacking does:
:meth:`Codec.kind` makes a *kind* of a type hint once, and the kind unpacks and checks a value.
What does not fit is a :class:`Malformed`, whatever the bytes are: both sides are one program,
but one of them may be older, or broken.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import attrgetter
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

import msgpack

from trioresume.errors import CallerError, StorageError
from trioresume.protocol.heads import Fields

__all__ = ["Codec", "Kind", "Malformed"]

Kind = Callable[[Any], Any]
"""Makes a value of what msgpack has unpacked. Raises :class:`Malformed`."""

_SURROGATES = "surrogatepass"
"""Text from a file name or a head may have half of a pair, which UTF-8 does not allow."""

_SCALARS: dict[Any, frozenset[type]] = {
    str: frozenset({str}),
    bytes: frozenset({bytes}),
    int: frozenset({int}),
    bool: frozenset({bool}),
    float: frozenset({float, int}),
    types.NoneType: frozenset({types.NoneType}),
    None: frozenset({types.NoneType}),
}


class Malformed(StorageError):
    """The other side sent something that is not of the protocol."""


class Codec:
    """Packs and unpacks the dataclasses *classes*, whose order gives their tags.

    :attr:`fingerprint` is the same in two programs only if their classes have the same names,
    fields and types.
    """

    def __init__(self, classes: Sequence[type]) -> None:
        self._tags = {cls: tag for tag, cls in enumerate(classes)}
        self._kinds: dict[Any, Kind] = {}
        self._packers: dict[type, Callable[[Any], Any]] = {Fields: _pack_fields}
        for cls, tag in self._tags.items():
            self._packers[cls] = _packer(cls, tag)
        self._unpackers: list[Callable[[list[Any]], Any]] = [_unmade] * len(classes)
        for cls, tag in self._tags.items():
            self._unpackers[tag] = self._unpacker(cls)
        shapes = [
            (cls.__name__, [(f.name, str(f.type)) for f in fields(cls)])
            for cls in classes
        ]
        self.fingerprint = hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]

    # Packing.

    def pack(self, value: object) -> bytes:
        """Return *value* packed. Raises :class:`CallerError` for what msgpack cannot hold."""
        try:
            packed: bytes = msgpack.packb(
                value, default=self._plain, unicode_errors=_SURROGATES
            )
        except (OverflowError, ValueError) as exc:
            raise CallerError(f"a value cannot be sent to the keeper: {exc}") from exc
        return packed

    def _plain(self, value: object) -> object:
        packer = self._packers.get(type(value))
        if packer is not None:
            return packer(value)
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, Sequence):
            return list(value)
        raise CallerError(f"{type(value).__name__} is no value of the store's port")

    # Unpacking.

    def load(self, packed: bytes | bytearray | memoryview) -> Any:
        """Return what msgpack finds in *packed*, for a kind. Raises :class:`Malformed`."""
        try:
            return msgpack.unpackb(
                packed, unicode_errors=_SURROGATES, strict_map_key=False
            )
        except (ValueError, msgpack.UnpackException) as exc:
            raise Malformed(f"no msgpack: {exc}") from exc

    def kind(self, hint: Any) -> Kind:
        """Return the kind of the type *hint*. Raises :class:`CallerError` for other types."""
        while isinstance(hint, NewType):
            hint = hint.__supertype__
        made = self._kinds.get(hint)
        if made is None:
            made = self._kinds[hint] = self._make(hint)
        return made

    def _make(self, hint: Any) -> Kind:
        if hint in (Any, object):
            return _anything
        if hint in _SCALARS:
            return _scalar(_SCALARS[hint], hint)
        if hint is Fields:
            return _fields
        origin, args = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return self._union(args)
        if origin is tuple and args[-1] is not Ellipsis:
            return _tuple([self.kind(arg) for arg in args])
        if origin is tuple:
            return _many(self.kind(args[0]), tuple)
        if origin in (list, Sequence) or _is_sequence(origin):
            return _many(self.kind(args[0]), list)
        if origin is dict or _is_mapping(origin):
            return _mapping(self.kind(args[0]), self.kind(args[1]))
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _enum(hint)
        if isinstance(hint, type) and hint in self._tags:
            return self._tagged([hint], frozenset())
        raise CallerError(f"{hint} cannot be sent")

    def _union(self, args: Iterable[Any]) -> Kind:
        members = []
        for arg in args:
            while isinstance(arg, NewType):
                arg = arg.__supertype__
            members.append(arg)
        scalars = frozenset[type]().union(
            *(_SCALARS[member] for member in members if member in _SCALARS)
        )
        others = [member for member in members if member not in _SCALARS]
        if not others:
            return _scalar(scalars, members)
        if all(is_dataclass(other) for other in others):
            return self._tagged(others, scalars)
        if len(others) == 1 and scalars == {types.NoneType}:
            return _optional(self.kind(others[0]))
        raise CallerError(f"a union of {members} cannot be sent")

    def _tagged(self, classes: Sequence[type], scalars: frozenset[type]) -> Kind:
        """Return the kind of one of *classes*, or of one of the types *scalars*."""
        tags = frozenset(self._tags[cls] for cls in classes)
        unpackers = self._unpackers

        def unpack(value: Any) -> Any:
            if type(value) is list and value:
                tag = value[0]
                if type(tag) is int and tag in tags:
                    return unpackers[tag](value)
            elif type(value) in scalars:
                return value
            raise Malformed(f"no {' or '.join(cls.__name__ for cls in classes)}")

        return unpack

    def _unpacker(self, cls: type) -> Callable[[list[Any]], Any]:
        """Return what makes a *cls* of its array. It is made when it is needed first.

        The fields of a class may be of a class that comes later in the table.
        """
        tag = self._tags[cls]

        def first(values: list[Any]) -> Any:
            unpacker = self._unpackers[tag] = self._made_unpacker(cls)
            return unpacker(values)

        return first

    def _made_unpacker(self, cls: type) -> Callable[[list[Any]], Any]:
        hints = get_type_hints(cls)
        listed = fields(cls)
        names = [field.name for field in listed]
        kinds = [self.kind(hints[name]) for name in names]
        size = len(names) + 1
        by_name = any(field.kw_only for field in listed)

        def unpack(values: list[Any]) -> Any:
            if len(values) != size:
                raise Malformed(f"{cls.__name__} has {size - 1} fields")
            it = iter(values)
            next(it)
            made = [kind(value) for kind, value in zip(kinds, it, strict=True)]
            try:
                if by_name:
                    return cls(**dict(zip(names, made, strict=True)))
                return cls(*made)
            except (CallerError, ValueError, TypeError) as exc:
                raise Malformed(f"no {cls.__name__}: {exc}") from exc

        return unpack


def _unmade(values: list[Any]) -> Any:
    raise AssertionError("the table of the codec is not filled yet")


def _packer(cls: type, tag: int) -> Callable[[Any], Any]:
    names = [field.name for field in fields(cls)]
    if not names:
        return lambda value: (tag,)
    get = attrgetter(*names)
    if len(names) == 1:
        return lambda value: (tag, get(value))
    return lambda value: (tag, *get(value))


def _pack_fields(value: Fields) -> object:
    return list(value)


def _is_sequence(origin: object) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _is_mapping(origin: object) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _anything(value: Any) -> Any:
    return value


def _scalar(allowed: frozenset[type], hint: object) -> Kind:
    def unpack(value: Any) -> Any:
        if type(value) not in allowed:
            raise Malformed(f"{type(value).__name__} in the place of {hint}")
        return value

    return unpack


def _optional(kind: Kind) -> Kind:
    def unpack(value: Any) -> Any:
        return None if value is None else kind(value)

    return unpack


def _many(kind: Kind, container: Callable[[Iterable[Any]], Any]) -> Kind:
    def unpack(value: Any) -> Any:
        if type(value) is not list:
            raise Malformed("no list")
        return container([kind(member) for member in value])

    return unpack


def _tuple(kinds: Sequence[Kind]) -> Kind:
    def unpack(value: Any) -> Any:
        if type(value) is not list or len(value) != len(kinds):
            raise Malformed(f"no list of {len(kinds)}")
        return tuple([kind(member) for kind, member in zip(kinds, value, strict=True)])

    return unpack


def _mapping(key: Kind, member: Kind) -> Kind:
    def unpack(value: Any) -> Any:
        if type(value) is not dict:
            raise Malformed("no mapping")
        return {key(name): member(found) for name, found in value.items()}

    return unpack


def _enum(cls: type[Enum]) -> Kind:
    members = {member.value: member for member in cls}

    def unpack(value: Any) -> Any:
        try:
            return members[value]
        except (KeyError, TypeError):
            raise Malformed(f"{value!r} is no {cls.__name__}") from None

    return unpack


def _fields(value: Any) -> Fields:
    if type(value) is not list:
        raise Malformed("no fields of a head")
    for pair in value:
        if (
            type(pair) is not list
            or len(pair) != 2
            or type(pair[0]) is not str
            or type(pair[1]) is not str
        ):
            raise Malformed("no field of a head")
    return Fields(value)
