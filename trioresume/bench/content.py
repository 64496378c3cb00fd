"""The content of uploads: bytes that a chunk store cannot deduplicate and that cost nothing.

All content is cut from one endless sequence: a region of random bytes, repeated. The
region's length is prime, and each upload starts at a multiple of :data:`SLOT`. So
chunks of any fixed size up to a slot start at different places of the region, over all
uploads of a run. This holds until the sequence has gone round the region once for each
of its bytes (1 PiB for the largest region). Two such chunks are never equal, although
the generator holds only one region and sends straight out of its pages. A store that
cuts chunks by content could see the repetition, every 256 MiB.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from blake3 import blake3

from trioresume.errors import CallerError

__all__ = ["SLOT", "Region", "length_for", "pieces"]

MIB = 1 << 20

SLOT = 4 * MIB
"""Uploads start at multiples of this. It is the largest chunk size without duplicates."""

_PRIMES = (1_048_573, 16_777_213, 268_435_399)
"""The largest primes below 1, 16 and 256 MiB. The last is larger than a CPU's cache."""


def length_for(total: int) -> int:
    """Return the length of the region for *total* bytes: the smallest that is large enough."""
    return next((prime for prime in _PRIMES if prime >= total), _PRIMES[-1])


def pieces(length: int, position: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield where *count* bytes from *position* on lie in a region: (offset, count)."""
    start = position % length
    while count:
        part = min(count, length - start)
        yield start, part
        count -= part
        start = 0


class Region:
    """The random bytes, in memory that has a file descriptor. A context manager."""

    def __init__(self, fd: int, length: int) -> None:
        self.fd = fd
        self.length = length
        self._map = mmap.mmap(fd, length)

    @classmethod
    def make(cls, seed: int, total: int) -> Region:
        """Make a region for *total* bytes. Equal arguments make equal content.

        Raises :class:`CallerError` if the system has no memfd: only Linux has it.
        """
        if not hasattr(os, "memfd_create"):
            raise CallerError("the load generator needs Linux (memfd, sendfile)")
        length = length_for(total)
        fd = os.memfd_create("trioresume-bench")
        os.ftruncate(fd, length)
        region = cls(fd, length)
        # BLAKE3's extended output is the fastest random stream available.
        stream = blake3(b"trioresume bench %d" % seed)
        for start in range(0, length, MIB):
            count = min(MIB, length - start)
            region._map[start : start + count] = stream.digest(length=count, seek=start)
        return region

    def read(self, position: int, count: int) -> bytes:
        """Return *count* bytes of the sequence from *position* on."""
        return b"".join(
            self._map[offset : offset + part]
            for offset, part in pieces(self.length, position, count)
        )

    @contextmanager
    def view(self, offset: int, count: int) -> Iterator[memoryview]:
        """Return *count* bytes at *offset* of the region, without a copy."""
        with memoryview(self._map) as whole, whole[offset : offset + count] as part:
            yield part

    def digest(self, position: int, count: int) -> bytes:
        """Return the BLAKE3 hash of *count* bytes from *position* on."""
        hasher = blake3()
        with memoryview(self._map) as view:
            for offset, part in pieces(self.length, position, count):
                hasher.update(view[offset : offset + part])
        return hasher.digest()

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
