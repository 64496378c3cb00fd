"""The content of one stream, from the connection's reader to the sink.

Why it looks like this
======================

One task reads the connection, for all its streams. It reads into a buffer that all connections
share, and copies the content of each stream into a piece of the receive memory. That is the
only copy. What came for a stream in one turn of the reader lies together, so that the store
gets few and large pieces. At the end of its turn the reader gives them to the sinks, and goes
to sleep with no piece in hand. (:mod:`trioresume.server.http.http1.body` has the same rules.)

**Credit follows the store.** A stream begins with :data:`~.engine.INITIAL_WINDOW` bytes of
credit. It gets more when the sink has taken what came, never before. So the content that
waits here is bounded, and a sink without room stops only the peer of its own stream. How much
credit a stream gets, and in which order, is in :mod:`trioresume.server.http.http2.credit`.

**Content that comes before somebody receives it** is kept: at most the initial window. A budget
for all connections bounds the sum (``ReceiveMemory.early``).

**Whole pages.** A large part ends on a page of the content, so that the store can write it past
the page cache. The rest, less than a page, waits for the next turn. It is given to the sink
after :data:`REST_TIME` without content, and whenever the content ends.

A task that only waits for content is not woken for each arrival: the reader appends to its
sink directly. The task wakes when the sink has no room, when the content has to be parsed bit
by bit, and at the end.

Deadlines and the work of parsing are as for HTTP/1.1 (:mod:`~trioresume.server.http.paced_body`).
The peer's time stands still while the sink has no room, and while the reader waits for memory.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, StorageError
from trioresume.protocol.heads import Fields
from trioresume.server.async_store.receive_memory import PAGE_SIZE
from trioresume.server.event_loop import Signal
from trioresume.server.http.exchange import ContentCut
from trioresume.server.http.http2.engine import INITIAL_WINDOW
from trioresume.server.http.paced_body import SMALLEST_SHARE, PacedBody

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.server.async_store.receive_memory import Piece, ReceiveMemory
    from trioresume.server.http.exchange import Sink
    from trioresume.server.http.front import Front
    from trioresume.server.http.http2.credit import CreditTurns
    from trioresume.server.http.http2.engine import Engine

__all__ = ["ReadTurn", "StreamBody"]

ROOM_FOR_END = 1
"""Bytes of credit beyond the content. An empty DATA frame that ends the stream needs no credit
(RFC 9113, section 6.9), but clients on nghttp2 do not send it without."""
LEAST_ROUNDED = 32 * 1024
"""A part of at least this many bytes ends on a page."""
REST_TIME = 0.1
"""Seconds of silence after which the rest of a page waits no more."""
TURN_TIME = 0.5
"""Seconds in which a peer should use up the credit of its turn."""
LAST_TIME = 0.03
"""Seconds for taking the last bytes when a newcomer ends the writer."""
LAST_PAUSE = 0.002
"""Seconds without data after which nothing more is expected to be on its way."""


class ReadTurn:
    """The piece that the reader fills in one turn, and the streams that got content."""

    def __init__(self, memory: ReceiveMemory) -> None:
        self._memory = memory
        self._piece: Piece | None = None
        self.touched: dict[StreamBody, None] = {}
        self.share = memory.piece_size
        """Bytes that a stream will probably get in this turn."""

    def begin(self, expected: int | None = None) -> bool:
        """Take a piece unless there is one. Returns False if none is free.

        If only little content is *expected*, the piece may be partly used.
        """
        if self._piece is None:
            self._piece = self._memory.take_nowait(expected)
        return self._piece is not None

    def begin_with(self, piece: Piece) -> None:
        self._piece = piece

    def region(self, offset: int, wanted: int) -> _Region | None:
        """Return room for about *wanted* bytes that belong at *offset*; None without memory."""
        for _ in range(2):
            piece = self._piece
            if piece is not None:
                start = piece.start(offset)
                end = min(len(piece.view), start + wanted)
                if end > start and (
                    not piece.used or end - start >= min(wanted, SMALLEST_SHARE)
                ):
                    piece.used = end
                    piece.hold()
                    return _Region(piece, start, end)
                self._release()
            if not self.begin():
                return None
        return None

    def end(self) -> None:
        """Give what came to the sinks; keep no piece."""
        touched, self.touched = self.touched, {}
        if touched:
            self.share = self._memory.piece_size // len(touched)
        for body in touched:
            body.hand_on()
        self._release()

    def _release(self) -> None:
        piece, self._piece = self._piece, None
        if piece is not None:
            self._memory.share(piece, piece.used)
            piece.release()


class _Region:
    """A part of a piece that fills with the content of one stream."""

    __slots__ = ("end", "limit", "piece", "start")

    def __init__(self, piece: Piece, start: int, limit: int) -> None:
        self.piece = piece
        self.start = self.end = start
        self.limit = limit

    def add(self, parts: list[memoryview], first: int) -> int:
        """Copy what fits of *parts* from the *first* on; return the index of what is left.

        The first part that is left may have been shortened.
        """
        view, end, limit = self.piece.view, self.end, self.limit
        for index in range(first, len(parts)):
            part = parts[index]
            after = end + len(part)
            if after > limit:
                view[end:limit] = part[: limit - end]
                parts[index] = part[limit - end :]
                self.end = limit
                return index
            view[end:after] = part
            end = after
        self.end = end
        return len(parts)

    def take_back(self, size: int) -> bytes:
        """Remove the last *size* bytes, and return them."""
        end = self.end
        self.end -= size
        return bytes(self.piece.view[self.end : end])

    def close(self) -> memoryview:
        """Return the content. The rest of the region is free again if nothing follows it."""
        if self.piece.used == self.limit:
            self.piece.used = self.end
        return self.piece.view[self.start : self.end]


class StreamBody(PacedBody):
    """Receives the content of one request over HTTP/2.

    *length* is None if the head does not state it, 0 without content. *flush* sends the
    credit that was given.
    """

    __slots__ = (
        "_cut",
        "_discards",
        "_early",
        "_engine",
        "_failure",
        "_flush",
        "_granted_at",
        "_is_slow",
        "_kept_early",
        "_length",
        "_queue",
        "_queued",
        "_region",
        "_rest",
        "_stream",
        "_suspensions",
        "_turn_left",
        "_turns",
        "_wake",
        "_window",
        "came",
        "ended",
        "trailers",
    )

    def __init__(
        self,
        stream: int,
        length: int | None,
        engine: Engine,
        turns: CreditTurns,
        front: Front,
        flush: Callable[[], None],
    ) -> None:
        super().__init__(front.memory, front.config)
        self._stream = stream
        self._length = length
        self._engine = engine
        self._turns = turns
        self._early = front.memory.early
        self._flush = flush
        self.trailers = Fields()
        self.ended = length == 0
        """Whether the content has come to its end."""
        self.came = 0
        """Bytes of content that have come."""
        self._cut: ContentCut | None = None
        self._failure: Exception | None = None
        """What the sink raised."""
        self._discards = False
        """Whether content is dropped, because the request was answered."""
        self._queue: deque[tuple[memoryview, Piece | None]] | tuple[()] = ()
        """What the sink has not taken. An empty deque would take 760 bytes of each stream."""
        self._queued = 0
        """Bytes in the queue: they came, and the sink has not taken them."""
        self._kept_early = 0
        """Bytes that this stream holds of the budget for early content."""
        self._region: _Region | None = None
        self._rest = b""
        """The beginning of a page: it came, and waits for more."""
        self._wake = Signal()
        self._window = INITIAL_WINDOW
        self._granted_at = 0.0
        self._turn_left = 0
        """Bytes of the credit of the present turn that the sink has not taken."""
        self._is_slow = False
        """Whether the peer did not use up its last credit in time."""
        self._suspensions = 0
        """How many waits of the server stop the peer's time."""

    # ------------------------------------------------------------ for the reader

    @property
    def is_early(self) -> bool:
        """Whether content that comes now would have to be kept for a later receiver."""
        return self._sink is None and not (self._discards or self._is_over)

    @property
    def keeps_early(self) -> bool:
        """Whether content is kept that nobody receives yet."""
        return self._kept_early > 0

    def add(self, parts: list[memoryview], turn: ReadTurn) -> None:
        """Take *parts*, before the caller's buffer is used again. The list is used up."""
        size = sum(map(len, parts))
        self.came += size
        if self._discards or self._cut is not None or self._failure is not None:
            self._credit()
            return
        if self._sink is None:
            self._early.take(size)
            self._kept_early += size
            self._enqueue(memoryview(b"".join(parts)), None)
            return
        turn.touched[self] = None
        if self._rest:
            parts.insert(0, memoryview(self._rest))
            self._rest = b""
        index = 0
        while index < len(parts):
            if self._region is None:
                self._region = self._new_region(sum(map(len, parts[index:])), turn)
            if self._region is None:
                # No memory: this is the rest of one read, and no other read follows.
                self._enqueue(memoryview(b"".join(parts[index:])), None)
                return
            index = self._region.add(parts, index)
            if self._region.end == self._region.limit:
                self._close_region()

    def _new_region(self, least: int, turn: ReadTurn) -> _Region | None:
        assert self._sink is not None
        wanted = min(self._window, turn.share)
        if self._length is not None:
            wanted = min(wanted, self._length - self.came + least)
        return turn.region(self._sink.offset + self._queued, max(wanted, least))

    def _enqueue(self, data: memoryview, piece: Piece | None) -> None:
        if not self._queue:
            self._queue = deque()
        self._queue.append((data, piece))
        self._queued += len(data)

    def _close_region(self) -> None:
        region, self._region = self._region, None
        if region is not None:
            self._enqueue(region.close(), region.piece)

    def _keep_rest(self, sink: Sink) -> None:
        """Take the begun page from the end of a large part, unless it is the last part."""
        region = self._region
        if region is None or self._is_over or sink.plain is not None:
            return
        size = region.end - region.start
        if size >= LEAST_ROUNDED:
            rest = (sink.offset + self._queued + size) % PAGE_SIZE
            self._rest = region.take_back(rest)

    def _add_rest(self) -> None:
        """Let the begun page wait no more."""
        if self._rest:
            self._enqueue(memoryview(self._rest), None)
            self._rest = b""

    def hand_on(self) -> None:
        """Give what came to the sink, as far as it has room; wake the task if needed."""
        if self._sink is None:
            return
        self._keep_rest(self._sink)
        self._close_region()
        self._pump(self._sink)
        if self._queue or self._is_over:
            self._wake.fire()

    def end(self) -> None:
        """Note the end of the content."""
        self.ended = True
        self._leave_turns()
        if self._region is None:  # otherwise the rest was added to it
            self._add_rest()
        self._wake.fire()

    def cut(self, *, timed_out: bool = False) -> None:
        """Note that no more will come, although the content has not ended."""
        if not self.ended and self._cut is None:
            self._cut = ContentCut(timed_out=timed_out)
            self._leave_turns()
            self._close_region()
            self._add_rest()
            self._wake.fire()

    def suspend(self) -> None:
        """Stop the peer's time, because the server makes it wait, until one ``resume``."""
        self._suspensions += 1
        if self._suspensions == 1:
            self._suspend()

    def resume(self) -> None:
        """Let the peer's time go on with the same rest as before."""
        self._suspensions -= 1
        if not self._suspensions:
            self._resume()

    # ------------------------------------------------------------ for the request

    @property
    def is_receiving(self) -> bool:
        """Whether a sink takes the content."""
        return self._sink is not None

    @property
    def remaining(self) -> int | None:
        """Bytes still to come; None if that is unknown."""
        if self.ended:
            return 0
        return None if self._length is None else self._length - self.came

    async def receive(self, sink: Sink) -> None:
        self._granted_at = trio.current_time()
        self._turns.receiving += 1
        try:
            await super().receive(sink)
        finally:
            self._turns.receiving -= 1
            self._leave_turns()
            self._close_region()
            self._drop()

    async def _receive(self, sink: Sink) -> None:
        while True:
            self._pump(sink)
            self._flush()
            if self._failure is not None:
                raise self._failure
            if self._queue:
                if not sink.has_room:
                    self.suspend()
                    await sink.room()
                    self.resume()
                else:
                    await self._take_share(sink)
            elif self.ended:
                return
            elif self._cut is not None:
                raise self._cut
            else:
                await self._wake.wait()

    async def _take_share(self, sink: Sink) -> None:
        """Append content that has to be parsed: so much that other tasks get their turns."""
        taken, work = sink.taken, sink.work
        self._append_first(sink, max(sink.plain or 0, self._share))
        self._earn(sink.taken - taken)
        if self._next_share(sink.work - work):
            self.suspend()
            await self._memory.busy.wait()
            self.resume()
        else:
            await trio.lowlevel.checkpoint()

    def _pump(self, sink: Sink) -> None:
        """Append what is queued, as far as the sink has room and need not parse it."""
        while self._queue and sink.plain is None and sink.has_room:
            size = len(self._queue[0][0])
            try:
                self._append_first(sink, size)
            except Exception as exc:  # noqa: BLE001 - the request's task raises it
                self._failure = exc
                return
            self._earn(size)

    def _earn(self, size: int) -> None:
        if not self._suspensions:
            self._renew(trio.current_time(), size)

    def _append_first(self, sink: Sink, most: int) -> None:
        assert self._queue
        data, piece = self._queue[0]
        part, rest = data[:most], data[most:]
        if rest:
            self._queue[0] = rest, piece
            if piece is not None:
                piece.hold()
        elif len(self._queue) > 1:
            self._queue.popleft()
        else:
            self._queue = ()
        try:
            sink.append(part, piece)
        finally:
            if piece is not None:
                piece.release()
            self._queued -= len(part)
            self._give_back_early(len(part))
            self._end_turn(len(part))
        self._credit()

    def _give_back_early(self, size: int) -> None:
        size = min(size, self._kept_early)
        self._kept_early -= size
        self._early.give_back(size)

    def _drop(self) -> None:
        """Give up what nobody has taken."""
        for _, piece in self._queue:
            if piece is not None:
                piece.release()
        self._queue = ()
        self._queued = 0
        self._rest = b""
        self._give_back_early(self._kept_early)

    @property
    def _is_over(self) -> bool:
        return self.ended or self._cut is not None or self._failure is not None

    async def _take_last(self, sink: Sink) -> None:
        """Take the bytes that were on their way when a newcomer ended this writer."""
        try:
            with trio.move_on_after(LAST_TIME):
                while True:
                    self._close_region()
                    self._add_rest()
                    while self._queue:
                        self._append_first(sink, len(self._queue[0][0]))
                    if self._is_over:
                        return
                    came = self.came
                    with trio.move_on_after(LAST_PAUSE):
                        await self._wake.wait()
                    if self.came == came:
                        return
        except (StorageError, PeerError):
            pass  # the bytes that were taken before are in order

    def drop(self, limit: int) -> None:
        """Drop the content from now on, and give credit for up to *limit* bytes of it."""
        self._discards = True
        self._drop()
        self._length = self.came + limit
        self._credit()

    async def wait_end(self) -> None:
        """Return when the content has ended, or when nothing more will come."""
        while not self._is_over:
            await self._wake.wait()

    def close(self) -> None:
        """Take nothing more: the stream is closed."""
        self._discards = True
        self._close_region()
        self._drop()

    # ------------------------------------------------------------ credit and deadlines

    def _credit(self) -> None:
        """Have the peer get credit for what was taken, if that is much of the window."""
        if self.ended or self._turns.is_waiting(self) or not self._grantable:
            return
        if self._sink is None:  # the rest is dropped: it needs no memory
            self._grant()
            return
        if trio.current_time() - self._granted_at < TURN_TIME:
            self._is_slow = False
        if self._is_slow:
            self._window = INITIAL_WINDOW
            self._grant()
        elif not self._turns.ask(self):
            self.suspend()

    @property
    def _grantable(self) -> int:
        """Bytes of credit that the peer may get now, if it has used up half of its window."""
        credit = self._engine.credit(self._stream)
        if credit > self._window // 2:
            return 0
        size = self._window - credit - self._queued - len(self._rest)
        if self._length is not None:
            size = min(size, self._length - self.came - credit + ROOM_FOR_END)
        return max(0, size)

    def _grant(self) -> int:
        size = self._grantable
        if size:
            self._granted_at = trio.current_time()
            self._engine.grant(self._stream, size)
        return size

    def take_turn(self, window: int, *, waited: bool) -> int:
        if waited:
            self.resume()
        self._window = window
        size = self._grant()
        self._turn_left += size
        return size

    def _end_turn(self, size: int) -> None:
        """Note that *size* bytes of this stream's turn are over: another may get credit."""
        size = min(size, self._turn_left)
        if size:
            self._turn_left -= size
            self._turns.give_back(size)

    def _leave_turns(self) -> None:
        if self._turns.leave(self):
            self.resume()
        self._end_turn(self._turn_left)

    def look(self, now: float) -> None:
        if self._rest and self._sink is not None and now - self._since >= REST_TIME:
            self._add_rest()
            self._pump(self._sink)
            if self._queue:
                self._wake.fire()
            self._flush()
        super().look(now)
        if self._turn_left and now - self._granted_at >= TURN_TIME:
            self._is_slow = True
            self._end_turn(self._turn_left)
            self._flush()

    def _interrupt(self) -> None:
        self.cut(timed_out=True)

    def _note_silence(self, seconds: float) -> None:
        return
