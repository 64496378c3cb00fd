"""The receive path: from the socket to the store, in few and large pieces.

Why it looks like this
======================

A body of known length needs no parser. h11 reads the head; what came with it is in
the connection's own buffer, and everything after that is read with ``recv_into``
straight into a piece of the memory that all connections share (see
:mod:`trioresume.server.memory`), up to 2 MiB at a time. A worker thread hashes and
writes it from there, past the page cache where the system can do that, while the task
receives the next piece. What is small takes the same way, and shares a piece with what
others receive. It used to be written in the event loop, as a thread costs more than such a
write; but now and then a write, or making a file, waits for the disk for tens of
milliseconds, and so did everybody else. Since a thread that is woken takes along what else
there is to do, the difference is gone: with 1000 uploads of 1 MiB none in CPU, with 1000
slow ones the worst takeovers were half as long, in one run each.

**Between a receive and handing the bytes on there is no checkpoint.** trio's own
``recv_into`` has one after the call, which is why the transport offers
``wait_readable`` and ``receive_nowait`` instead: a cancelled task has either handed on
what it read, or not read it. A piece is used again only when everybody let go of it. A
body whose bytes got mixed up would keep its length; only a comparison of content shows
it, and the tests compare content.

Memory is therefore a setting, plus a few KiB a connection, however many there are.

Wake-ups, more than bytes, are what Python pays for. On a connection that is fast enough
the kernel is therefore asked (``SO_RCVLOWAT``) to wake its task only for a larger amount
(:attr:`~trioresume.server.memory.ReceiveMemory.low_water`), or for the end: a whole piece
while uploads are few, and less the more of them share the machine, so that what waits in
the kernel stays bounded too. A connection's mark is no more than it fills in
:data:`FILL_TIME` (a thousand uploads of 100 KiB a second cost half of what they did without
one), and one that does not fill it within twice that loses it: a peer may be waiting to
have its last bytes acknowledged before it sends more. What is on its way when a newcomer
ends the writer is taken first: of an upload that is faster than the disk it is megabytes,
which its client would have to send again. Where the option does not exist nothing changes
but the cost.

A read ends on a page of the content where there is enough to read, so that all of it can
bypass the page cache and no page is written twice.

Fairness: each task takes at most one piece per turn, and who waits for memory is served
in order, so a thousand uploads advance in step and none starves. A task that had to wait
for memory or for room has let the others have their turn: what came meanwhile it reads
without waiting for the connection as well. (At n = 1 that is a turn of the event loop of
three, at n = 128 half of the waits.)

Back-pressure: when an upload has two pieces on their way to the disk, its task waits for
room before it reads again, as it does when there is no piece to be had; the kernel's
buffer fills and TCP slows the peer down.

What was tried and lost. Worker threads that take the content off the socket themselves,
each into a buffer of its own, up to 4 MiB a turn: no task waits for memory or for room
then, but the threads want the interpreter as often as the task did. As much CPU at 128
uploads, and a fifth to a third less throughput for a single one, as nothing is received
during a sync. Pieces of 4 MiB: a seventh less CPU for a single upload, but so few of them
that 16 were slower and 128 cost more. Marks that share 64 MiB instead of 256 MiB: at 128
uploads twice as many reads, and a sixth more CPU. Hashing in the event loop, while the
bytes are in the processor's cache: no less CPU. Reading the next piece where the last one's
write is told, without a turn for the task: no less either, as what costs is that the caches
are cold after each two megabytes, not the calls.

Chunked bodies go through :class:`~trioresume.protocol.chunked.ChunkedReader`, and what
it finds is gathered in a piece for as long as there is more to read: some copies more, the
same way to the disk.

Bytes that have to be read one by one are work for the event loop: the framing of chunks,
the parts of a patch. A megabyte of chunks of one byte is a second of it. So a task reads
only a share of such bytes in a turn. The sink and the chunked reader count what they find
there. After a turn with much work the task gives way: of all such tasks one goes on in
each round of the event loop, and it reads a smaller share. Plain content is not
concerned: a sink says how much of what comes next is that (``plain``).

Of who falls silent the store is told after a second (``relax``): it lets go of what it can
find again, such as a hash's state of 2 KiB. That is once a minute at most, for going on
costs a read of up to a chunk.

Deadlines are attributes that one task looks at (:mod:`trioresume.server.watch`), not
cancel scopes: a body's content moves them with each read, and an upload of 8 MiB, 128 at
once, set a scope's some 35 times, which was a twelfth of what it cost the event loop. Who
is too late has its wait for the connection end in an error; a scope that is only there to
be cancelled would be 700 bytes for each silent upload.

A deadline that progress renews would let a peer hold on for ever with a byte a minute
(G5). So each byte of content buys 1 / ``min_body_rate`` seconds and at most ``body_timeout``
is saved up: a silent peer is cut after ``body_timeout``, one that trickles not much later,
and one that is fast enough never notices. Only bytes of content count. Framing counts
for nothing: chunk sizes and their extensions, trailers, the heads of a patch's parts. While
the task waits for memory or for the disk the peer's time stands still. It must not begin
anew: with many connections there is always a wait for memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import trio

from trioresume.errors import PeerError, StorageError
from trioresume.protocol.chunked import ChunkedReader
from trioresume.protocol.framing import HeadLimits
from trioresume.server.memory import PAGE_SIZE

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields, RequestHead
    from trioresume.server.config import Config
    from trioresume.server.memory import Piece, ReceiveMemory
    from trioresume.server.transport import Transport

__all__ = ["BodyReceiver", "ContentCut", "Sink"]

LEAST_ROUNDED = 64 * 1024
"""From how many bytes on a read ends on a page: less is not written past the cache."""
LAST_MOST = 16 * 1024 * 1024
"""Bytes taken at the end of a writer: what the buffers of both ends hold at most."""
LAST_TIME = 0.03
"""Seconds for that."""
LAST_PAUSE = 0.002
"""Seconds after which nothing more was on its way."""
LEAST_MARK = 8 * 1024
"""Bytes: a smaller low-water mark is not worth the system call."""
FILL_TIME = 0.25
"""Seconds within which a connection is to fill its low-water mark."""
MUCH_WORK = 256
"""Fields, chunks or parts of a turn from which on the others go first: about 0.3 ms."""
SMALLEST_SHARE = 8 * 1024
"""Bytes of the first turn, and of one after much work: some milliseconds at worst."""
LARGEST_SHARE = 64 * 1024
"""Bytes of a turn at most, if they have to be read. It doubles after little work."""
RELAXED_AFTER = 1.0
"""Seconds of silence after which a connection is to hold less memory."""
SELDOM_RELAXED = 60.0
"""The same, once that happened to it."""


class ContentCut(Exception):
    """The connection ended, or fell silent for too long, before the content did."""

    def __init__(self, *, timed_out: bool) -> None:
        super().__init__("timed out" if timed_out else "connection ended")
        self.timed_out = timed_out


class Sink(Protocol):
    """Where received content goes."""

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        """Consume *data* before returning, or hold the *piece* that it is in."""
        ...

    @property
    def offset(self) -> int:
        """Where in the content the next byte will most likely belong."""
        ...

    @property
    def taken(self) -> int:
        """Grows by each byte of content that it takes, and by nothing else.

        The framing of a patch is no content, so it is no progress.
        """
        ...

    @property
    def plain(self) -> int | None:
        """How many of the next bytes it takes as they are; None: all.

        Any others it has to read, which may be much work.
        """
        ...

    @property
    def work(self) -> int:
        """How much it has read: grows by one for each field, chunk or part."""
        ...

    @property
    def has_room(self) -> bool:
        """False to be given no more until ``room`` returned."""
        ...

    async def room(self) -> None: ...

    def relax(self) -> None:
        """Nothing comes for a while: hold less memory. At once, and it cannot fail."""
        ...


class BodyReceiver:
    """The content of one request, taken off its connection."""

    __slots__ = (
        "_config",
        "_leftover",
        "_low_water",
        "_memory",
        "_rate",
        "_reader",
        "_relaxes_after",
        "_remaining",
        "_saved_until",
        "_share",
        "_since",
        "_sink",
        "_suspended_at",
        "_timeout",
        "_transport",
        "_until",
    )

    def __init__(
        self,
        head: RequestHead,
        transport: Transport,
        leftover: bytearray,
        memory: ReceiveMemory,
        config: Config,
    ) -> None:
        self._transport = transport
        self._leftover = leftover
        self._memory = memory
        self._low_water = 1
        self._timeout = config.body_timeout
        self._rate = config.min_body_rate
        self._share = SMALLEST_SHARE
        """Bytes to read of the next turn, if they have to be read one by one."""
        self._suspended_at = 0.0
        self._saved_until = 0.0
        self._until = float("inf")
        """When the peer has taken too long, on trio's clock."""
        self._since = float("inf")
        """Since when the low-water mark is waited for."""
        self._relaxes_after = RELAXED_AFTER
        self._sink: Sink | None = None
        """What content is being moved into."""
        self._remaining = head.length
        """Bytes that have yet to come; None when chunked and not at the end."""
        self._config = config
        self._reader: ChunkedReader | None = None

    @property
    def finished(self) -> bool:
        return self._remaining == 0

    @property
    def trailers(self) -> Fields:
        """What followed the content, if it was chunked and has ended."""
        return self._chunks.trailers

    @property
    def _chunks(self) -> ChunkedReader:
        # Made when it is wanted: most content is of known length.
        if self._reader is None:
            config = self._config
            limits = HeadLimits(config.max_header_size, config.max_header_fields)
            self._reader = ChunkedReader(limits)
        return self._reader

    @property
    def remaining(self) -> int | None:
        return self._remaining

    async def receive(self, sink: Sink) -> None:
        """Move the whole content into *sink*.

        Raises :class:`ContentCut`, :class:`PeerError` for malformed chunks, and what
        the sink raises. When cancelled, the sink has got everything that was read.
        """
        memory = self._memory
        self._begin_waiting(trio.current_time())
        self._sink = sink
        memory.watch.enter(self, self._timeout)
        memory.uploads += 1
        try:
            if self._remaining is None:
                await self._receive_chunked(sink)
            else:
                await self._receive_known(sink)
        except trio.Cancelled:
            if self._remaining is not None:
                with trio.CancelScope(shield=True):
                    await self._take_last(sink)
            raise
        except trio.BrokenResourceError:
            timed_out = trio.current_time() >= self._until
            raise ContentCut(timed_out=timed_out) from None
        finally:
            memory.uploads -= 1
            memory.watch.leave(self)
            self._sink = None
            self._set_low_water(1)

    def _begin_waiting(self, now: float) -> None:
        self._until = self._saved_until = now + self._timeout
        self._since = now

    def _renew(self, now: float, gained: int) -> None:
        """Something came: wait on from *now*, as long as *gained* bytes of content buy.

        What else came, such as the framing of chunks and of parts, buys nothing.
        """
        self._since = now
        if not gained:
            return
        until = now + self._timeout
        if self._rate:
            until = min(until, self._saved_until + gained / self._rate)
        self._until = self._saved_until = until

    def _suspend(self) -> None:
        """What is waited for next is not the peer's to do."""
        self._suspended_at = trio.current_time()
        self._until = self._since = float("inf")

    def _resume(self) -> float:
        """That is over: the peer has as much time left as it had before. The time now."""
        now = trio.current_time()
        self._saved_until += now - self._suspended_at
        self._until = self._saved_until
        self._since = now
        return now

    async def _give_way(self) -> None:
        """Wait until it is this one's turn among those whose bytes are much work."""
        self._suspend()
        await self._memory.busy.wait()
        self._resume()

    def _next_share(self, work: int) -> bool:
        """After a turn with so much *work*: set what the next one may read.

        True if others are to have their turns before that.
        """
        if work < MUCH_WORK:
            self._share = min(2 * self._share, LARGEST_SHARE)
            return False
        self._share = SMALLEST_SHARE
        return True

    def look(self, now: float) -> None:
        """Called now and then; see :class:`~trioresume.server.watch.Watch`."""
        if now >= self._until:
            self._transport.interrupt()
            return
        silent = now - self._since
        if self._low_water > 1 and silent >= min(2 * FILL_TIME, self._timeout / 4):
            self._set_low_water(1)  # the system wakes the task if there is anything
        if self._sink is not None and silent >= self._relaxes_after:
            self._sink.relax()
            # Going on costs a read of up to a chunk: one that stutters pays it seldom.
            self._relaxes_after = SELDOM_RELAXED

    async def _receive_known(self, sink: Sink) -> None:
        assert self._remaining is not None
        if self._leftover and self._remaining:
            taken = bytes(self._leftover[: self._remaining])
            del self._leftover[: len(taken)]
            self._remaining -= len(taken)
            sink.append(memoryview(taken))
        last = trio.current_time()
        while self._remaining:
            waited = not sink.has_room
            if waited:
                self._suspend()
                await sink.room()
                last = self._resume()
            # Where the others have, or get, their turn anyway, one wait is enough.
            if not (waited or self._memory.is_taken) or not self._is_ready():
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
            self._set_low_water(1)  # a share may be less than what has come
            if self._next_share(sink.work - work):
                await self._give_way()
            last = trio.current_time()

    async def _take_in_line(self) -> Piece:
        """Wait for a piece. The peer is not charged for that time."""
        self._suspend()
        piece = await self._memory.take()
        self._resume()
        return piece

    def _is_ready(self) -> bool:
        """Whether the connection has what its task would be woken for."""
        assert self._remaining is not None
        return self._transport.readable >= min(self._low_water, self._remaining)

    async def _take_last(self, sink: Sink) -> None:
        """Take what was sent before a newcomer ended this writer: it need not be sent again.

        It waits in the kernel's buffers, the peer's too, and comes as fast as there is
        room for it. Not for long, and no more than such buffers hold: the newcomer waits.
        """
        assert self._remaining is not None
        self._set_low_water(1)
        stop = max(0, self._remaining - LAST_MOST)
        try:
            with trio.move_on_after(LAST_TIME):
                # Who is silent has nothing on its way.
                waiting = self._transport.readable
                piece = self._memory.take_nowait(waiting)
                more = self._read_once(sink, piece, waiting, sink.plain)
                while more and self._remaining > stop:
                    with trio.move_on_after(LAST_PAUSE):
                        await self._transport.wait_readable()
                    piece = await self._memory.take(first=True)
                    waiting = self._transport.readable
                    more = self._read_once(sink, piece, waiting, sink.plain)
        except (trio.BrokenResourceError, StorageError, PeerError):
            pass  # what was read before is in order

    def _read_once(
        self, sink: Sink, piece: Piece | None, waiting: int, plain: int | None
    ) -> int | None:
        """Receive and append what there is, without a checkpoint; let go of *piece*.

        That is about *waiting* bytes. Without a piece it is a little at most. *plain* is
        what the sink says of what comes next.
        """
        assert self._remaining is not None
        try:
            if piece is None:
                start, view = 0, self._memory.scratch
            else:
                start = piece.start(sink.offset)
                view = piece.view[start:]
            view = view[: self._remaining]
            if plain is not None:
                view = view[: max(plain, self._share)]
            if LEAST_ROUNDED <= waiting < len(view):
                view = view[: (start + waiting) // PAGE_SIZE * PAGE_SIZE - start]
            count = self._transport.receive_nowait(view)
            if count:
                self._remaining -= count
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
        assert self._remaining is not None
        wanted = min(self._memory.low_water, self._remaining)
        if count * FILL_TIME < wanted * seconds:
            wanted = int(count * FILL_TIME / seconds)
        if wanted < LEAST_MARK:
            wanted = 1
        # Setting it costs a system call: small differences are not worth it.
        if self._low_water > self._remaining or not (
            wanted <= 2 * self._low_water and self._low_water <= 2 * wanted
        ):
            self._set_low_water(wanted)

    def _set_low_water(self, size: int) -> None:
        size = max(1, size)
        if size != self._low_water:
            self._low_water = size
            self._transport.set_low_water(size)

    async def _receive_chunked(self, sink: Sink) -> None:
        gathered = _Gathered(sink, self._memory)
        try:
            while self._remaining is None:
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
                    gathered.hand_on()  # it reads no more in a turn than was read here
                self._renew(trio.current_time(), sink.taken + gathered.size - taken)
                if self._chunks.fault is not None:
                    raise replace(self._chunks.fault)  # the reader's own stays bare
                if self._next_share(sink.work + self._chunks.work - work):
                    gathered.hand_on()  # others may need the piece meanwhile
                    await self._give_way()
                elif handed_on or sink.plain is not None:
                    await trio.lowlevel.checkpoint()  # the others' turn
        finally:
            gathered.hand_on()

    def _next_bytes(self) -> memoryview | None:
        """What was left over from the head, then what the connection has, if anything."""
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
            self._remaining = 0
            self._leftover += self._chunks.excess
        return content

    async def discard(self, limit: int) -> bool:
        """Read and drop up to *limit* bytes; whether that was all. May raise as receive."""
        sink = _Discard(limit)
        try:
            await self.receive(sink)
        except _EnoughDiscarded:
            return False
        return True


class _Gathered:
    """Content without its chunks' framing, gathered until it is worth handing on."""

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
        """Take a piece, if it has none; False if there is none to be had."""
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
        """Take *content*; whether some was handed on. Without a piece, all of it is."""
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
        """Append what was gathered; no piece is held afterwards."""
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


class _EnoughDiscarded(Exception):
    pass


class _Discard:
    """A sink for content that nobody wants, up to a bound."""

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
