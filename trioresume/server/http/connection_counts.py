"""Counts that all processes of a service see: how many connections each worker has.

The limits of connections hold for the whole service, and each connection is accepted by one
worker. The counts are in memory that the processes share. Each worker has a *slot*, and only
this worker writes there, so nothing needs a lock. The parent clears the slot of a worker that
has died: its connections died with it.

A slot has the number of its connections, and two rows of numbers for addresses. An address
stands for one place in each row, by a keyed hash, and is counted in both. The count of an
address over all workers is the smaller of its two sums. So a count may be too high, if other
addresses share both places, but never too low. The key is random: nobody can choose addresses
that share places with somebody else's.

The file begins with the key and the number of slots that were ever in use.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from functools import lru_cache
from hashlib import blake2b

__all__ = ["MOST_SLOTS", "SharedCounts", "make_counts_file"]

MOST_SLOTS = 256
"""Workers at a time, with those that end after they were replaced."""
_PLACES = 4096
"""Numbers in a row. With 10,000 connections of as many addresses, two or three share one."""
_WORD = 4
_KEY_SIZE = 16
_SLOT_WORDS = 16 + 2 * _PLACES
"""The words of a slot. The first one has the number of connections, the second one says that
the worker accepts connections."""
_HEAD_SIZE = mmap.PAGESIZE
_SIZE = _HEAD_SIZE + MOST_SLOTS * _SLOT_WORDS * _WORD


def make_counts_file() -> int:
    """Return the descriptor of a new file in memory for the counts. The caller closes it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("trioresume-counts", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _SIZE)
    os.pwrite(descriptor, os.urandom(_KEY_SIZE), 0)
    return descriptor


class SharedCounts:
    """The counts, as the process with the number *slot* sees them; None only looks.

    *descriptor* is that of :func:`make_counts_file`. It may be closed afterwards.
    """

    def __init__(self, descriptor: int, slot: int | None) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._head = memoryview(self._memory)[_KEY_SIZE:_HEAD_SIZE].cast("I")
        self._words = memoryview(self._memory)[_HEAD_SIZE:].cast("I")
        self._slot = slot
        self._start = (slot or 0) * _SLOT_WORDS
        key = self._memory[:_KEY_SIZE]

        @lru_cache(maxsize=1024)
        def places(address: str) -> tuple[int, int]:
            found = blake2b(address.encode(), digest_size=8, key=key).digest()
            first = int.from_bytes(found[:4], "little") % _PLACES
            second = int.from_bytes(found[4:], "little") % _PLACES
            return 16 + first, 16 + _PLACES + second

        self._places = places

    def _slots(self) -> range:
        """Return where the slots begin that may be in use: the first word of the file counts."""
        return range(0, self._head[0] * _SLOT_WORDS, _SLOT_WORDS)

    # The worker's own slot.

    def begin(self) -> None:
        """Say that this worker accepts connections."""
        self._words[self._start + 1] = 1

    def end(self) -> None:
        """Say that it accepts no more."""
        self._words[self._start + 1] = 0

    def add(self, address: str, number: int) -> None:
        """Count *number* connections of *address* more, or fewer; "" is no address."""
        words, start = self._words, self._start
        words[start] += number
        if address:
            for place in self._places(address):
                words[start + place] += number

    # All slots.

    @property
    def all(self) -> int:
        """The number of connections of all workers."""
        words = self._words
        return sum([words[start] for start in self._slots()])

    def of(self, address: str) -> int:
        """Return the number of connections of *address* at all workers, or a little more."""
        words, slots = self._words, self._slots()
        first, second = self._places(address)
        return min(
            sum([words[start + first] for start in slots]),
            sum([words[start + second] for start in slots]),
        )

    def own(self) -> int:
        """Return the number of connections of this worker."""
        return self._words[self._start]

    def least(self) -> int:
        """Return the number of connections of the worker that has the fewest and accepts."""
        words = self._words
        return min(
            (words[start] for start in self._slots() if words[start + 1]),
            default=0,
        )

    # The parent.

    def open(self, slot: int) -> None:
        """Have *slot* looked at from now on. Call this before its worker starts."""
        self._head[0] = max(self._head[0], slot + 1)

    def clear(self, slot: int) -> None:
        """Clear the slot of a worker that has died."""
        start = slot * _SLOT_WORDS
        for word in range(start, start + _SLOT_WORDS):
            self._words[word] = 0

    def close(self) -> None:
        """Let go of the memory. Idempotent."""
        self._head.release()
        self._words.release()
        self._memory.close()
