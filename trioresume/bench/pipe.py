"""Messages between the load generator's processes: a series of msgpack values in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, Self

import msgpack

from trioresume.bench.records import Bytes

__all__ = ["MAX_MESSAGE", "Counts", "Unpacker", "pack"]

MAX_MESSAGE = 64 << 20
"""The largest message in bytes: an upload's record, with all its attempts."""


def pack(message: object) -> bytes:
    """Encode *message*, which has plain values only."""
    data = msgpack.packb(message)
    assert isinstance(data, bytes)
    return data


@dataclass(slots=True)
class Counts:
    """How far a process is: numbers of uploads by state, bytes, cuts and resumptions.

    *sent* counts bytes handed to the kernel.
    """

    running: int = 0
    sent: Bytes = 0
    stored: Bytes = 0
    done: int = 0
    failed: int = 0
    cuts: int = 0
    resumed: int = 0

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Add up the counts of all processes. There is at least one."""
        return cls(*map(sum, zip(*map(astuple, parts), strict=True)))


class Unpacker:
    """Reads messages from the bytes of a pipe, however they were cut."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_MESSAGE)

    def feed(self, data: bytes | bytearray) -> Iterator[Any]:
        """Yield the messages that *data* completes. Take all of them before feeding again."""
        self._unpacker.feed(data)
        yield from self._unpacker
