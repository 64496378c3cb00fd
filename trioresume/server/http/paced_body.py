"""The pace of a request's content: the peer's time, and the task's share of the event loop.

This is the same for every carrier, so HTTP/1.1 and HTTP/2 derive their bodies from
:class:`PacedBody`. G5 is in docs/supported-protocols.md.

Some bytes have to be parsed one by one, in the event loop: the framing of chunks, the parts
of a patch. A megabyte of chunks of one byte takes a second. So a task reads only a share of
such bytes in a turn. The sink and the chunked reader count the fields, chunks and parts that
they find. After a turn with much work the task gives way: of all such tasks one goes on in
each round of the event loop, and it reads a smaller share. Plain content needs no parsing; a
sink says how many of the next bytes are plain (``plain``).

After one second without data the watch calls the sink's ``relax()``. The store then frees
memory that it can compute again, such as a hash's state of 2 KiB. This happens once a minute
at most for a body, because going on costs a read of up to a chunk.

Deadlines are attributes that one task looks at (:mod:`trioresume.server.event_loop`), not cancel
scopes. A body moves its deadline with each read. For 128 uploads of 8 MiB at once a scope's
deadline would be set some 35 times each, a twelfth of the event loop's cost. When the deadline
has passed, the wait for the connection ends in an error. A scope only for that would take 700
bytes for each silent upload.

If any progress renewed the deadline in full, a peer could hold on for ever with a byte a
minute (G5). So each byte of content buys 1 / ``min_body_rate`` seconds, and at most
``body_timeout`` is saved up. A silent peer is cut after ``body_timeout``, and a trickling one
not much later. A fast peer never notices. Only bytes of content count. Framing counts for
nothing: chunk sizes and their extensions, trailers, the heads of a patch's parts. While the
task waits for memory or for the disk, the peer's time stands still. It does not start anew:
with many connections there is always a wait for memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio

from trioresume.server.http.exchange import ContentCut

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from trioresume.server.api.config import Config
    from trioresume.server.async_store.receive_memory import Piece, ReceiveMemory
    from trioresume.server.http.exchange import Sink

__all__ = ["Gathered", "PacedBody"]

MUCH_WORK = 256
"""A turn with so many fields, chunks or parts lets other tasks go first: about 0.3 ms."""
SMALLEST_SHARE = 8 * 1024
"""Bytes of the first turn, and of a turn after much work: some milliseconds at worst."""
LARGEST_SHARE = 64 * 1024
"""The most bytes in a turn, if they have to be parsed. The share doubles after little work."""
RELAXED_AFTER = 1.0
"""Seconds of silence after which a connection holds less memory."""
SELDOM_RELAXED = 60.0
"""The same for a body that has held less memory before."""


class PacedBody(ABC):
    """The time and the turns of one request's content, while it is received.

    A carrier calls ``_renew`` after each read, ``_suspend`` before a wait that is not for the
    peer, and ``_resume`` after it.
    """

    __slots__ = (
        "_memory",
        "_rate",
        "_relaxes_after",
        "_saved_until",
        "_share",
        "_since",
        "_sink",
        "_suspended_at",
        "_timeout",
        "_until",
    )

    def __init__(self, memory: ReceiveMemory, config: Config) -> None:
        self._memory = memory
        self._timeout = config.body_timeout
        self._rate = config.min_body_rate
        self._share = SMALLEST_SHARE
        """Bytes of the next turn, if they have to be parsed one by one."""
        self._suspended_at = 0.0
        self._saved_until = 0.0
        self._until = float("inf")
        """The peer's deadline, on trio's clock."""
        self._since = float("inf")
        """The start of the present wait for the peer."""
        self._relaxes_after = RELAXED_AFTER
        self._sink: Sink | None = None
        """The sink of the content that is being received."""

    async def receive(self, sink: Sink) -> None:
        now = trio.current_time()
        self._until = self._saved_until = now + self._timeout
        self._since = now
        self._sink = sink
        self._memory.watch.enter(self, self._timeout)
        self._memory.uploads += 1
        try:
            await self._receive(sink)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._take_last(sink)
            raise
        except trio.BrokenResourceError:
            timed_out = trio.current_time() >= self._until
            raise ContentCut(timed_out=timed_out) from None
        finally:
            self._memory.uploads -= 1
            self._memory.watch.leave(self)
            self._sink = None

    @abstractmethod
    def _receive(self, sink: Sink) -> Awaitable[None]:
        """Receive the whole content.

        Raises :class:`trio.BrokenResourceError` if the peer is gone, or was interrupted, and
        else as :meth:`~trioresume.server.http.exchange.Body.receive` does.
        """

    @abstractmethod
    async def _take_last(self, sink: Sink) -> None:
        """Take the bytes on their way when a newcomer ended this writer; raise nothing.

        It runs in a shield, so it takes some hundredths of a second at most.
        """

    @abstractmethod
    def _interrupt(self) -> None:
        """End the present wait for the peer with an error: its time is up."""

    @abstractmethod
    def _note_silence(self, seconds: float) -> None:
        """Act on a wait for the peer that has taken so long. Fast, and cannot fail."""

    def _renew(self, now: float, gained: int) -> None:
        """Start a new wait at *now*, as long as *gained* bytes of content buy.

        Bytes of another kind, such as the framing of chunks and of parts, buy nothing.
        """
        self._since = now
        if not gained:
            return
        until = now + self._timeout
        if self._rate:
            until = min(until, self._saved_until + gained / self._rate)
        self._until = self._saved_until = until

    def _suspend(self) -> None:
        """Stop the peer's time: the next wait does not depend on the peer."""
        self._suspended_at = trio.current_time()
        self._until = self._since = float("inf")

    def _resume(self) -> float:
        """Let the peer's time go on with the same rest as before; return the time now."""
        now = trio.current_time()
        self._saved_until += now - self._suspended_at
        self._until = self._saved_until
        self._since = now
        return now

    async def _give_way(self) -> None:
        """Wait for the turn of this task, among those whose bytes are much work."""
        self._suspend()
        await self._memory.busy.wait()
        self._resume()

    def _next_share(self, work: int) -> bool:
        """Set the share of the next turn, after a turn with so much *work*.

        Returns True if other tasks have to get their turns first.
        """
        if work < MUCH_WORK:
            self._share = min(2 * self._share, LARGEST_SHARE)
            return False
        self._share = SMALLEST_SHARE
        return True

    def look(self, now: float) -> None:
        """Act on deadlines; the :class:`~trioresume.server.event_loop.Watch` calls it."""
        if now >= self._until:
            self._interrupt()
            return
        silent = now - self._since
        self._note_silence(silent)
        if self._sink is not None and silent >= self._relaxes_after:
            self._sink.relax()
            # Going on costs a read of up to a chunk, so a stuttering peer causes it seldom.
            self._relaxes_after = SELDOM_RELAXED

    async def discard(self, limit: int) -> bool:
        """Read and drop up to *limit* bytes; whether that was all. Raises as ``receive``."""
        sink = _Discard(limit)
        try:
            await self.receive(sink)
        except _EnoughDiscarded:
            return False
        return True


class _EnoughDiscarded(Exception):
    pass


class _Discard:
    """A sink that drops content, up to a limit."""

    offset = 0
    has_room = True
    plain: int | None = None
    work = 0

    def __init__(self, limit: int) -> None:
        self._left = limit
        self.taken = 0

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        self._left -= len(data)
        self.taken += len(data)
        if self._left < 0:
            raise _EnoughDiscarded

    def relax(self) -> None:
        return

    async def room(self) -> None:
        return


class Gathered:
    """Content in small parts, gathered in a piece until it is worth handing on."""

    def __init__(self, sink: Sink, memory: ReceiveMemory) -> None:
        self._sink = sink
        self._memory = memory
        self._piece: Piece | None = None
        self._start = 0
        self._end = 0

    @property
    def size(self) -> int:
        """Bytes that were not handed on yet."""
        return self._end - self._start

    def begin(self, expected: int | None = None) -> bool:
        """Take a piece unless there is one already. Returns False if none is free."""
        if self._piece is None:
            piece = self._memory.take_nowait(expected)
            if piece is None:
                return False
            self.begin_with(piece)
        return True

    def begin_with(self, piece: Piece) -> None:
        self._piece = piece
        self._start = self._end = piece.start(self._sink.offset)

    def add(self, content: memoryview) -> bool:
        """Add *content*. Returns whether some was handed on; without a piece all of it is."""
        handed_on = False
        while content:
            if not self.begin():
                self._sink.append(content)
                return True
            assert self._piece is not None
            room = self._piece.view[self._end :][: len(content)]
            room[:] = content[: len(room)]
            self._end += len(room)
            content = content[len(room) :]
            if self._end == len(self._piece.view):
                self.hand_on()
                handed_on = True
        return handed_on

    def hand_on(self) -> None:
        """Append the gathered content to the sink, and release the piece."""
        piece, self._piece = self._piece, None
        if piece is not None:
            try:
                if self._end > self._start:
                    self._sink.append(piece.view[self._start : self._end], piece)
                    self._memory.share(piece, self._end)
                else:
                    self._memory.share(piece, piece.used)
            finally:
                self._start = self._end = 0
                piece.release()
