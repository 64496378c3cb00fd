"""The content of one request over ASGI.

The server below has read the content already, and hands it on block by block, mostly of 64 KiB
or less. A job for a worker thread costs more than to copy such a block. So blocks that follow
each other quickly are gathered in a piece of the receive memory. They go to the store when the
piece is full, when the content ends, and when no block comes for a moment. A block that comes
alone, or while no piece is free, goes to the store as it is: it is an immutable object of its
own. The next block is asked for only when the sink has room: a server that knows back-pressure
then stops reading, and TCP or HTTP/2 slows the peer down.

Deadlines and the work of parsing are as for HTTP/1.1
(:mod:`~trioresume.server.http.paced_body`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from trioresume.errors import PeerError, StorageError
from trioresume.protocol.heads import Fields
from trioresume.server.http.paced_body import Gathered, PacedBody

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trioresume.server.http.exchange import Sink
    from trioresume.server.http.front import Front

__all__ = ["AsgiBody", "Channel"]

QUICK = 0.05
"""Seconds after a block in which the next one has to come to be gathered."""
LAST_TIME = 0.03
"""Seconds for taking the last bytes when a newcomer ends the writer."""
LAST_PAUSE = 0.002
"""Seconds without data after which nothing more is expected to be on its way."""


class Channel(Protocol):
    """One request's way to the ASGI server and back."""

    async def receive(self) -> tuple[bytes, bool]:
        """Return a block of the content, and whether more may follow.

        After the content's end this waits until the client is gone. Raises
        :class:`trio.BrokenResourceError` when it is. A cancelled call may lose a block.
        """
        ...

    async def send(self, messages: Sequence[Mapping[str, object]]) -> None:
        """Send *messages*, in order. Raises :class:`trio.BrokenResourceError`."""
        ...


class AsgiBody(PacedBody):
    """Receives the content of one request."""

    __slots__ = (
        "_came",
        "_channel",
        "_failure",
        "_gathered",
        "_pushed_back",
        "_rest",
        "_waiting",
        "ended",
        "length",
        "trailers",
    )

    def __init__(self, channel: Channel, front: Front) -> None:
        super().__init__(front.memory, front.config)
        self.trailers = Fields()  # ASGI has none
        self.ended = False
        """Whether the content has come to its end."""
        self.length: int | None = None
        """The length that the head states; None if it does not."""
        self._channel = channel
        self._came = 0
        self._pushed_back: tuple[bytes, bool] | None = None
        self._rest = memoryview(b"")
        """Bytes of the last block that the sink has not taken yet."""
        self._waiting: trio.CancelScope | None = None
        self._gathered: Gathered | None = None
        self._failure: Exception | None = None
        """What kept gathered content from the sink while the task waited for the peer."""

    async def find_end(self, seconds: float) -> bool:
        """Whether there is no content at all, for a head that does not tell.

        Waits for the first block, at most *seconds*. Raises
        :class:`trio.BrokenResourceError` if the client is gone.
        """
        with trio.move_on_after(seconds):
            while self._pushed_back in (None, (b"", True)):
                self._pushed_back = await self._channel.receive()
        if self._pushed_back == (b"", False):
            self.ended = True
        return self.ended

    async def _receive(self, sink: Sink) -> None:
        gathered = None if sink.plain is not None else Gathered(sink, self._memory)
        self._gathered = gathered
        try:
            with trio.CancelScope() as self._waiting:
                while not self.ended:
                    await self._next_block()
                    if gathered is None:
                        await self._take(sink)
                    else:
                        await self._gather(sink, gathered)
                return
        finally:
            self._gathered = None
            if gathered is not None:
                gathered.hand_on()
        raise self._failure or trio.BrokenResourceError("the peer's time is up")

    async def _gather(self, sink: Sink, gathered: Gathered) -> None:
        """Gather the block, or append it if it does not come quickly after the last one."""
        if not sink.has_room:
            self._suspend()
            await sink.room()
            self._resume()
        now = trio.current_time()
        is_quick = now - self._since < QUICK
        self._renew(now, len(self._rest))
        is_alone = self.ended and not gathered.size
        if is_quick and not is_alone:
            gathered.add(self._rest)
        else:
            gathered.hand_on()
            sink.append(self._rest)
        self._rest = memoryview(b"")

    async def _next_block(self) -> None:
        block, more = self._pushed_back or await self._channel.receive()
        self._pushed_back = None
        self._came += len(block)
        if not more:
            if self.length is not None and self._came < self.length:
                raise trio.BrokenResourceError("the content ended too early")
            self.ended = True
        self._rest = memoryview(block)

    async def _take(self, sink: Sink) -> None:
        """Append the block: all of it, or so much that other tasks get their turns."""
        while self._rest:
            if not sink.has_room:
                self._suspend()
                await sink.room()
                self._resume()
                continue
            plain = sink.plain
            work = sink.work
            self._append(sink, None if plain is None else max(plain, self._share))
            if plain is not None and self._next_share(sink.work - work):
                await self._give_way()

    def _append(self, sink: Sink, most: int | None) -> None:
        part, self._rest = self._rest[:most], self._rest[len(self._rest[:most]) :]
        taken = sink.taken
        sink.append(part)
        self._renew(trio.current_time(), sink.taken - taken)

    async def _take_last(self, sink: Sink) -> None:
        """Take the bytes that were on their way when a newcomer ended this writer."""
        try:
            with trio.move_on_after(LAST_TIME):
                while True:
                    if self._rest:
                        self._append(sink, None)
                    if self.ended:
                        return
                    with trio.move_on_after(LAST_PAUSE) as pause:
                        await self._next_block()
                    if pause.cancelled_caught:
                        return
        except (StorageError, PeerError, trio.BrokenResourceError):
            pass  # the bytes that were taken before are in order

    def _interrupt(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    def _note_silence(self, seconds: float) -> None:
        if self._gathered is not None and seconds >= QUICK:
            try:
                self._gathered.hand_on()
            except (PeerError, StorageError) as exc:
                self._failure = exc
                self._interrupt()
