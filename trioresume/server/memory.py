"""The memory that content passes through on its way from the network to the disk.

All uploads together have ``Config.receive_memory`` bytes of it, cut into pieces. A task
takes a piece only when its connection has something to read, so silent ones have none,
and gives it back when the bytes are written. Whoever finds none waits in line, while the
kernel's buffer fills and TCP slows the peer down.

A piece begins on a page, and is filled from where the content's place in its page is:
that lets the store write it past the page cache. What is small shares a piece with what
others received just before. The pieces given back last are taken
first, so that a service with little to do touches little of this. Linux is asked for
huge pages: they make it cheaper to receive into the memory and to write from it.
"""

from __future__ import annotations

import mmap
from collections import deque

import trio

from trioresume.server.turnstile import Turnstile
from trioresume.server.watch import Watch
from trioresume.store.disk_io import PAGE_SIZE

__all__ = ["PAGE_SIZE", "PIECE_SIZE", "Piece", "ReceiveMemory"]

PIECE_SIZE = 2 * 1024 * 1024
SCRATCH_SIZE = 64 * 1024
SMALL = 64 * 1024
"""Bytes up to which content does not get a piece of its own."""

LOW_WATER_SUM = 256 * 1024 * 1024
"""Bytes that all uploads' low-water marks together may leave waiting in the kernel."""
USUAL_LOW_WATER = 1024 * 1024
"""From this on a larger mark saves less than it costs, unless uploads are few."""


class Piece:
    """Some of the memory, held by whoever took it and whoever else said ``hold``."""

    __slots__ = ("_holders", "_memory", "used", "view")

    def __init__(self, memory: ReceiveMemory, view: memoryview) -> None:
        self.view = view
        self.used = 0
        """Up to where there is content of others."""
        self._memory = memory
        self._holders = 0

    def hold(self) -> None:
        """Keep it until a ``release`` more."""
        self._holders += 1

    def start(self, offset: int) -> int:
        """Where content that belongs at *offset* begins in it."""
        return self.used + -self.used % PAGE_SIZE + offset % PAGE_SIZE

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._memory.give_back(self)


class ReceiveMemory:
    """At least one piece, and no more than *size* bytes beyond that.

    *uploads* is how many content is being received of, which whoever receives counts.
    """

    def __init__(self, size: int) -> None:
        piece_size = max(PAGE_SIZE, min(PIECE_SIZE, size // PAGE_SIZE * PAGE_SIZE))
        count = max(1, size // piece_size)
        view = memoryview(_pages(count * piece_size))
        self._free = [
            Piece(self, view[start : start + piece_size])
            for start in range(0, count * piece_size, piece_size)
        ]
        self._shared: Piece | None = None
        """One that is held, but has room left for more that is small."""
        self._waiting: deque[trio.lowlevel.Task] = deque()
        self._served: dict[trio.lowlevel.Task, Piece] = {}
        """For those that waited, until they run."""
        self.scratch = memoryview(bytearray(SCRATCH_SIZE))
        """For what is consumed before the next checkpoint."""
        self.piece_size = piece_size
        self.uploads = 0
        self.watch = Watch()
        """Of all that receive into it."""
        self.busy = Turnstile(width=1)
        """For those whose bytes are much work: one of them goes on in each round."""

    @property
    def low_water(self) -> int:
        """For how many bytes the task of a fast upload is to be woken: a piece at most."""
        share = LOW_WATER_SUM // max(1, self.uploads)
        return min(self.piece_size, max(share // 2, min(share, USUAL_LOW_WATER)))

    @property
    def is_taken(self) -> bool:
        """Whether :meth:`take` would have to wait."""
        return not self._free

    def take_nowait(self, expected: int | None = None) -> Piece | None:
        """A piece, if there is one that nobody waits for.

        If no more than a little is *expected*, it may be one of which some is used.
        """
        if not self._free:
            return None
        if self._shared is None or expected is None or expected > SMALL:
            piece = self._free.pop()
        else:
            piece, self._shared = self._shared, None
        piece.hold()
        return piece

    def share(self, piece: Piece, used: int) -> None:
        """Who took *piece* used it as far as *used*: the rest is for others with little."""
        if used + SMALL + 2 * PAGE_SIZE <= self.piece_size:
            self._shared = piece
            piece.used = used

    async def take(self, *, first: bool = False) -> Piece:
        """A piece; who came first is served first. A checkpoint if there is none.

        Who asks to be *first* is served before those: somebody else waits for its end.
        """
        piece = self.take_nowait()
        if piece is not None:
            return piece
        task = trio.lowlevel.current_task()
        if first:
            self._waiting.appendleft(task)
        else:
            self._waiting.append(task)

        def give_up(raise_cancel: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        # An event for each wait would cost as much as everything else here.
        await trio.lowlevel.wait_task_rescheduled(give_up)
        return self._served.pop(task)

    def give_back(self, piece: Piece) -> None:
        piece.used = 0
        if self._shared is piece:
            self._shared = None
        if self._waiting:
            task = self._waiting.popleft()
            piece.hold()
            self._served[task] = piece
            trio.lowlevel.reschedule(task)
        else:
            self._free.append(piece)


def _pages(size: int) -> mmap.mmap:
    """*size* bytes that begin on a page, in huge ones if they are to be had."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    # Not the default of sharing it with child processes: that has no huge pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without them
    return memory
