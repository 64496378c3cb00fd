"""Messages between the load generator's processes: msgpack, one after the other in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, Self

import msgpack

from trioresume.bench.records import Bytes

__all__ = ["MAX_MESSAGE", "Counts", "Unpacker", "pack"]

MAX_MESSAGE = 64 << 20
"""Bytes of one message: an upload's record, with all its attempts."""


def pack(message: object) -> bytes:
    """*message*, of plain values."""
    data = msgpack.packb(message)
    assert isinstance(data, bytes)
    return data


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a process is: uploads by their state, bytes, cuts, resumptions."""

    running: int = 0
    sent: Bytes = 0
    stored: Bytes = 0
    done: int = 0
    failed: int = 0
    cuts: int = 0
    resumed: int = 0

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """All processes together; there is at least one."""
        return cls(*map(sum, zip(*map(astuple, parts), strict=True)))


class Unpacker:
    """Messages out of the bytes of a pipe, however they were cut."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_MESSAGE)

    def feed(self, data: bytes | bytearray) -> Iterator[Any]:
        """The messages that *data* completes; take each before feeding again."""
        self._unpacker.feed(data)
        yield from self._unpacker
