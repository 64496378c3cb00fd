"""What is uploaded: bytes that no store can deduplicate and that cost nothing to make.

All content is cut from one endless sequence: a buffer of random bytes, repeated.
The buffer's length is prime and an upload starts at a multiple of :data:`SLOT`,
so that chunks of any size up to a slot start at different places of the buffer,
over all uploads of all rounds, until the sequence has gone round the buffer once
for each of its bytes (1 PiB). Two chunks are therefore never equal, although the
generator holds 256 MiB only and sends straight out of the page cache.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3

__all__ = ["BUFFER_LENGTH", "SLOT", "Buffer", "Piece", "Slots", "pieces"]

MIB = 1 << 20

BUFFER_LENGTH = 268_435_399
"""The largest prime below 256 MiB: far more than a CPU's cache holds."""

SLOT = 4 * MIB
"""Uploads start at multiples of this, the largest chunk size that is kept distinct."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an upload: where it starts in the sequence, and its bytes."""

    position: int
    length: int


def pieces(piece: Piece) -> Iterator[tuple[int, int]]:
    """Where *piece* lies in the buffer: ``(offset, count)``, in order."""
    start = piece.position % BUFFER_LENGTH
    left = piece.length
    while left:
        count = min(left, BUFFER_LENGTH - start)
        yield start, count
        left -= count
        start = 0


class Slots:
    """Hands out stretches of the sequence, each only once."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, length: int) -> Piece:
        """The next *length* bytes that nothing else uses."""
        piece = Piece(self._next, length)
        self._next += -(-length // SLOT) * SLOT
        return piece


class Buffer:
    """The random bytes, in a memfd whose descriptor a generator inherits."""

    def __init__(self, seed: int) -> None:
        self.fd = os.memfd_create("bench-content")
        os.ftruncate(self.fd, BUFFER_LENGTH)
        self._map = mmap.mmap(self.fd, BUFFER_LENGTH)
        # BLAKE3's extended output is the fastest random stream at hand.
        stream = blake3(seed.to_bytes(8, "big"))
        for start in range(0, BUFFER_LENGTH, MIB):
            count = min(MIB, BUFFER_LENGTH - start)
            self._map[start : start + count] = stream.digest(length=count, seek=start)

    def digest(self, piece: Piece) -> bytes:
        """The BLAKE3 hash of *piece*."""
        hasher = blake3()
        with memoryview(self._map) as view:
            for offset, count in pieces(piece):
                hasher.update(view[offset : offset + count])
        return hasher.digest()

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)
