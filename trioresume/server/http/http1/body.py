"""The receive path: from the socket to the store, in few and large pieces.

G5 is in docs/supported-protocols.md. What was measured, tried and rejected is in
docs/benchmarks.md ("What was tried") and docs/explanation/design.md ("Rejected").

Why it looks like this
======================

A body of known length needs no parser. h11 reads the head. The bytes that came with the head
are in the connection's buffer. Everything after that is read with ``recv_into`` straight into
a piece of the memory that all connections share (:mod:`trioresume.server.async_store.receive_memory`), up to
2 MiB at a time. A worker thread hashes and writes it from there, past the page cache if the
system can do that, while the task receives the next piece. Small content takes the same way
and shares a piece with content of others. It is not written in the event loop: now and then
a write, or the creation of a file, waits for the disk for tens of milliseconds, and all other
tasks would wait with it.

**Between a receive and handing the bytes on there is no checkpoint.** trio's own
``recv_into`` has one after the call. So the transport offers ``wait_readable`` and
``receive_nowait`` instead: a cancelled task has either handed on what it read, or not read
it. A piece is reused only when all its holders have released it. If bytes of two uploads
were mixed up, the lengths would still be right. Only a comparison of content shows such a
fault, and the tests compare content.

So the memory is a setting, plus a few KiB for each connection.

Python pays for wake-ups more than for bytes. On a fast connection the kernel is therefore
asked (``SO_RCVLOWAT``) to wake the task only when a larger amount has come
(:attr:`~trioresume.server.async_store.receive_memory.ReceiveMemory.low_water`), or the end. This low-water mark
is a whole piece while there are few uploads, and less with more uploads, so that the bytes
that wait in the kernel are bounded, too. A mark is never more than the connection fills in
:data:`FILL_TIME`. A connection that does not fill its mark within twice that time loses it:
its peer may be waiting for an acknowledgement of its last bytes before it sends more. When a
newcomer ends the writer, the bytes that are on their way are taken first. For an upload that
is faster than the disk these are megabytes, which its client would have to send again. On
systems without the option only the cost differs.

A read ends on a page of the content if there is enough to read. Then all of it can bypass the
page cache, and no page is written twice.

Fairness: each task takes at most one piece in a turn, and tasks that wait for memory are
served in order. So a thousand uploads advance together and none starves. A task that has just
waited for memory or for room has given the others their turn. It reads the bytes that came
meanwhile without waiting for the connection, too. (With one upload that saves one of three
turns of the event loop; with 128 uploads, half of the waits.)

Back-pressure: when an upload has two pieces on their way to the disk, or when no piece is
free, its task waits before it reads again. The kernel's buffer fills, and TCP slows the peer
down.

Chunked bodies go through :class:`~trioresume.protocol.chunked.ChunkedReader`. The content
that it finds is gathered in a piece for as long as there is more to read. That copies the
content once more; the way to the disk is the same.

"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, StorageError
from trioresume.protocol.chunked import ChunkedReader
from trioresume.protocol.framing import HeadLimits
from trioresume.server.async_store.receive_memory import PAGE_SIZE
from trioresume.server.http.exchange import ContentCut
from trioresume.server.http.paced_body import Gathered, PacedBody

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from trioresume.protocol.heads import Fields, RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.async_store.receive_memory import Piece, ReceiveMemory
    from trioresume.server.http.exchange import Sink
    from trioresume.server.http.transport import Transport

__all__ = ["Http1Body"]

LEAST_ROUNDED = 64 * 1024
"""A read of at least this many bytes ends on a page: less is not written past the cache."""
LAST_MOST = 16 * 1024 * 1024
"""Bytes taken at the end of a writer: at most those in the buffers of both ends."""
LAST_TIME = 0.03
"""Seconds for taking them."""
LAST_PAUSE = 0.002
"""Seconds without data after which nothing more is expected to be on its way."""
LEAST_MARK = 8 * 1024
"""Bytes: a smaller low-water mark is not worth the system call."""
FILL_TIME = 0.25
"""Seconds in which a connection has to fill its low-water mark."""


class Http1Body(PacedBody):
    """The content of one request, on its way from the connection."""

    __slots__ = (
        "_config",
        "_leftover",
        "_low_water",
        "_reader",
        "_transport",
        "remaining",
    )

    def __init__(
        self,
        head: RequestHead,
        transport: Transport,
        leftover: bytearray,
        memory: ReceiveMemory,
        config: Config,
    ) -> None:
        super().__init__(memory, config)
        self._transport = transport
        self._leftover = leftover
        self._low_water = 1
        self.remaining = head.length
        """Bytes still to come; None for a chunked body that has not ended."""
        self._config = config
        self._reader: ChunkedReader | None = None

    @property
    def trailers(self) -> Fields:
        """The trailers of chunked content that has ended."""
        return self._chunks.trailers

    @property
    def _chunks(self) -> ChunkedReader:
        # Created on demand: most content is of known length.
        if self._reader is None:
            config = self._config
            limits = HeadLimits(config.max_header_size, config.max_header_fields)
            self._reader = ChunkedReader(limits)
        return self._reader

    def _receive(self, sink: Sink) -> Awaitable[None]:
        if self.remaining is None:
            return self._receive_chunked(sink)
        return self._receive_known(sink)

    def _interrupt(self) -> None:
        self._transport.interrupt()

    def _note_silence(self, seconds: float) -> None:
        if self._low_water > 1 and seconds >= min(2 * FILL_TIME, self._timeout / 4):
            self._set_low_water(1)  # the system wakes the task if any byte is there

    async def _receive_known(self, sink: Sink) -> None:
        assert self.remaining is not None
        if self._leftover and self.remaining:
            self._take_leftover(sink)
        last = trio.current_time()
        try:
            while self.remaining:
                waited = not sink.has_room
                if waited:
                    self._suspend()
                    await sink.room()
                    last = self._resume()
                # If the other tasks get their turn anyway, one wait is enough.
                turned = waited or self._memory.is_taken
                waiting = self._transport.readable if turned else 0
                if waiting < min(self._low_water, self.remaining):
                    await self._transport.wait_readable()
                    waiting = self._transport.readable
                piece = self._memory.take_nowait(waiting)
                if piece is None:
                    piece = await self._take_in_line()
                    last = trio.current_time()
                    waiting = self._transport.readable
                plain = sink.plain
                content = work = 0
                if plain is not None:
                    content, work = sink.taken, sink.work
                count = self._read_once(sink, piece, waiting, plain)
                if count is None:
                    continue
                if count == 0:
                    raise ContentCut(timed_out=False)
                now = trio.current_time()
                if plain is None:
                    self._renew(now, count)
                    self._adapt(count, now - last)
                    last = now
                    continue
                self._renew(now, sink.taken - content)
                self._set_low_water(
                    1
                )  # a share may be less than the bytes that have come
                if self._next_share(sink.work - work):
                    await self._give_way()
                last = trio.current_time()
        finally:
            self._set_low_water(1)

    def _take_leftover(self, sink: Sink) -> None:
        """Append the bytes that came with the head; if the rest is there, together with it.

        Small content is then one part, which costs one job and not two.
        """
        assert self.remaining is not None
        taken = bytes(self._leftover[: self.remaining])
        del self._leftover[: len(taken)]
        self.remaining -= len(taken)
        size = len(taken) + self.remaining
        piece = None
        if (
            self.remaining
            and sink.plain is None
            and size <= self._memory.piece_size - PAGE_SIZE
            and self._transport.readable >= self.remaining
        ):
            piece = self._memory.take_nowait(size)
        if piece is None:
            sink.append(memoryview(taken))
            return
        start = piece.start(sink.offset)
        end = start + len(taken)
        piece.view[start:end] = taken
        try:
            rest = piece.view[end : start + size]
            end += self._transport.receive_nowait(rest) or 0
        finally:
            self.remaining -= end - start - len(taken)
            try:
                sink.append(piece.view[start:end], piece)
                self._memory.share(piece, end)
            finally:
                piece.release()

    async def _take_in_line(self) -> Piece:
        """Wait for a piece. The peer's time stands still meanwhile."""
        self._suspend()
        piece = await self._memory.take()
        self._resume()
        return piece

    async def _take_last(self, sink: Sink) -> None:
        """Take the bytes sent before a newcomer ended this writer, to save sending them again.

        They wait in the kernel's buffers, the peer's too, and come as fast as there is room.
        This takes only a short time and no more bytes than such buffers hold, because the
        newcomer waits. Content in chunks is not taken: it is worth less.
        """
        if self.remaining is None:
            return
        stop = max(0, self.remaining - LAST_MOST)
        try:
            with trio.move_on_after(LAST_TIME):
                # A silent peer has nothing on its way.
                waiting = self._transport.readable
                piece = self._memory.take_nowait(waiting)
                more = self._read_once(sink, piece, waiting, sink.plain)
                while more and self.remaining > stop:
                    with trio.move_on_after(LAST_PAUSE):
                        await self._transport.wait_readable()
                    piece = await self._memory.take(first=True)
                    waiting = self._transport.readable
                    more = self._read_once(sink, piece, waiting, sink.plain)
        except (trio.BrokenResourceError, StorageError, PeerError):
            pass  # the bytes that were read before are in order

    def _read_once(
        self, sink: Sink, piece: Piece | None, waiting: int, plain: int | None
    ) -> int | None:
        """Receive and append the bytes that are there, about *waiting*; release *piece*.

        Not a checkpoint. Without a piece this reads only a little. *plain* is the sink's
        ``plain``. Returns as ``receive_nowait`` does.
        """
        assert self.remaining is not None
        try:
            if piece is None:
                start, view = 0, self._memory.scratch
            else:
                start = piece.start(sink.offset)
                view = piece.view[start:]
            view = view[: self.remaining]
            if plain is not None:
                view = view[: max(plain, self._share)]
            if LEAST_ROUNDED <= waiting < len(view):
                view = view[: (start + waiting) // PAGE_SIZE * PAGE_SIZE - start]
            count = self._transport.receive_nowait(view)
            if count:
                self.remaining -= count
                sink.append(view[:count], piece)
                if piece is not None:
                    self._memory.share(piece, start + count)
            elif piece is not None:
                self._memory.share(piece, piece.used)
            return count
        finally:
            if piece is not None:
                piece.release()

    def _adapt(self, count: int, seconds: float) -> None:
        """Set the low-water mark after *count* bytes came in *seconds*."""
        assert self.remaining is not None
        wanted = min(self._memory.low_water, self.remaining)
        if count * FILL_TIME < wanted * seconds:
            wanted = int(count * FILL_TIME / seconds)
        if wanted < LEAST_MARK:
            wanted = 1
        # Setting it costs a system call: small differences are not worth it.
        if self._low_water > self.remaining or not (
            wanted <= 2 * self._low_water and self._low_water <= 2 * wanted
        ):
            self._set_low_water(wanted)

    def _set_low_water(self, size: int) -> None:
        size = max(1, size)
        if size != self._low_water:
            self._low_water = size
            self._transport.set_low_water(size)

    async def _receive_chunked(self, sink: Sink) -> None:
        gathered = Gathered(sink, self._memory)
        try:
            while self.remaining is None:
                if not sink.has_room:
                    self._suspend()
                    await sink.room()
                    self._resume()
                if not gathered.begin(self._transport.readable):
                    gathered.begin_with(await self._take_in_line())
                data = self._next_bytes()
                if data is None:
                    gathered.hand_on()
                    await self._transport.wait_readable()
                    continue
                taken = sink.taken + gathered.size
                work = sink.work + self._chunks.work
                content = self._feed(data)
                handed_on = bool(content) and gathered.add(content)
                if sink.plain is not None:
                    gathered.hand_on()  # the sink parses no more in a turn than was read here
                self._renew(trio.current_time(), sink.taken + gathered.size - taken)
                if self._chunks.fault is not None:
                    raise replace(self._chunks.fault)  # a copy, for its traceback
                if self._next_share(sink.work + self._chunks.work - work):
                    gathered.hand_on()  # others may need the piece meanwhile
                    await self._give_way()
                elif handed_on or sink.plain is not None:
                    await trio.lowlevel.checkpoint()  # the other tasks' turn
        finally:
            gathered.hand_on()

    def _next_bytes(self) -> memoryview | None:
        """Return the bytes left over from the head; then those the connection has, or None."""
        if self._leftover:
            taken = bytes(self._leftover)
            self._leftover.clear()
            return memoryview(taken)
        share = self._memory.scratch[: self._share]
        count = self._transport.receive_nowait(share)
        if count == 0:
            raise ContentCut(timed_out=False)
        return None if count is None else share[:count]

    def _feed(self, data: memoryview) -> memoryview:
        content = self._chunks.feed(data)
        if self._chunks.finished:
            self.remaining = 0
            self._leftover += self._chunks.excess
        return content
