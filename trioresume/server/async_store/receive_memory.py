"""The memory for content on its way from the network to the disk.

All uploads share ``Config.receive_memory`` bytes, cut into pieces. A task takes a piece only
when its connection has bytes to read, so silent connections hold no piece. It gives the piece
back when the bytes are written. If no piece is free, the task waits in line; the kernel's
buffer fills meanwhile, and TCP slows the peer down.

A piece begins on a page. Content is put at the same place within a page as it has in the
upload: so the store can write it past the page cache. Small content shares a piece with the
content that others have just received. The piece that was given back last is taken first, so
a service with little to do uses little of this memory. Linux is asked for huge pages, which
make receiving into the memory and writing from it cheaper.
"""

from __future__ import annotations

import mmap
from collections import deque

import trio

from trioresume.server.event_loop import RoundLimit, Signal, Watch
from trioresume.store.file_system.disk_io import PAGE_SIZE

__all__ = ["PAGE_SIZE", "PIECE_SIZE", "EarlyBudget", "Piece", "ReceiveMemory"]

PIECE_SIZE = 2 * 1024 * 1024
SCRATCH_SIZE = 64 * 1024
LARGE_SCRATCH_SIZE = 256 * 1024
SMALL = 64 * 1024
"""Content of at most this many bytes shares a piece."""

LEAST_EARLY = 64 * 1024
"""The least budget for content that nobody receives yet: a quarter of the memory otherwise."""

LOW_WATER_SUM = 256 * 1024 * 1024
"""Bytes that the low-water marks of all uploads together may leave in the kernel."""
USUAL_LOW_WATER = 1024 * 1024
"""A larger mark saves less than it costs, unless there are few uploads."""


class Piece:
    """A part of the memory. The task that took it holds it, and each caller of ``hold``."""

    __slots__ = ("_holders", "_memory", "used", "view")

    def __init__(self, memory: ReceiveMemory, view: memoryview) -> None:
        self.view = view
        self.used = 0
        """Bytes at the start that contain content of others."""
        self._memory = memory
        self._holders = 0

    def hold(self) -> None:
        """Keep the piece until one more ``release``."""
        self._holders += 1

    def start(self, offset: int) -> int:
        """Return the place in the piece where content for *offset* begins."""
        return self.used + -self.used % PAGE_SIZE + offset % PAGE_SIZE

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._memory.give_back(self)


class EarlyBudget:
    """Counts the content, on all connections, that nobody receives yet.

    HTTP/2 lets a client send some content before the request is routed. While the budget of
    *size* bytes is spent, a connection that holds such content reads no more. The others may
    read a little once: as much as comes with a head of HTTP/1.1.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._freed = Signal()

    @property
    def is_spent(self) -> bool:
        return self._left <= 0

    def take(self, size: int) -> None:
        self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size
        if not self.is_spent:
            self._freed.fire()

    async def wait(self) -> None:
        """Return when some of the budget was given back. A checkpoint."""
        await self._freed.wait()


class ReceiveMemory:
    """The memory of all uploads: *size* bytes, but at least one piece.

    *uploads* is the number of requests that are receiving content. The receivers count it.
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
        """A piece that is in use, but has room for more small content."""
        self._waiting: deque[trio.lowlevel.Task] = deque()
        self._served: dict[trio.lowlevel.Task, Piece] = {}
        """Pieces for tasks that have waited, until these tasks run."""
        self.large_scratch = memoryview(bytearray(LARGE_SCRATCH_SIZE))
        """A buffer for bytes that are consumed before the next checkpoint."""
        self.scratch = self.large_scratch[:SCRATCH_SIZE]
        """A part of it, for bytes that come in small amounts."""
        self.size = count * piece_size
        self.piece_size = piece_size
        self.early = EarlyBudget(max(LEAST_EARLY, self.size // 4))
        self.uploads = 0
        self.watch = Watch()
        """Looks at the deadlines of all receivers."""
        self.busy = RoundLimit(width=1)
        """Lets one receiver go on in each round, of those whose bytes are much work."""

    @property
    def low_water(self) -> int:
        """Bytes for which the task of a fast upload is woken: one piece at most."""
        share = LOW_WATER_SUM // max(1, self.uploads)
        return min(self.piece_size, max(share // 2, min(share, USUAL_LOW_WATER)))

    @property
    def used(self) -> int:
        """Bytes of the pieces that are in use."""
        return self.size - len(self._free) * self.piece_size

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for a piece."""
        return len(self._waiting)

    @property
    def is_taken(self) -> bool:
        """Whether :meth:`take` would have to wait."""
        return not self._free

    def take_nowait(self, expected: int | None = None) -> Piece | None:
        """Return a piece if one is free, else None.

        If only little content is *expected*, the piece may be partly used.
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
        """Offer the rest of *piece*, beyond the byte *used*, to others with little content."""
        if used + SMALL + 2 * PAGE_SIZE <= self.piece_size:
            self._shared = piece
            piece.used = used

    async def take(self, *, first: bool = False) -> Piece:
        """Return a piece; wait in line if there is none. A checkpoint only if this waits.

        With *first* the caller goes to the head of the line, because a newcomer waits for the
        caller to end.
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

        # A trio.Event for each wait would cost as much as the rest of this method.
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
    """Return *size* bytes that begin on a page, in huge pages if possible."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    # Private memory: the default, memory shared with child processes, has no huge pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # this kernel has no huge pages
    return memory
