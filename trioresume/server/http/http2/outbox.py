"""The way out of an HTTP/2 connection: one task sends what all streams have queued.

The engine queues frames in the order of HPACK, and :meth:`Outbox.flush` takes them. Mostly the
kernel takes them at once, in the task that made them, and no other task has to wake. The rest
waits for the writer task. That task begins when something waits for the first time: an idle
connection mostly needs none.

Everything that waits is bounded. A stream that has much to send waits in :meth:`Outbox.room`
before it queues more. The reader of the connection waits there, too: otherwise a peer that
sends PINGs, or requests, and reads nothing could fill the memory with answers. A peer that
takes nothing for ``send_timeout`` loses its connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trioresume.server.event_loop import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.server.http.http2.engine import Engine
    from trioresume.server.http.transport import Transport

__all__ = ["Outbox"]

MOST_WAITING = 64 * 1024
"""Bytes that may wait for the peer before nothing more is queued."""


class Outbox:
    """The bytes that wait for the peer of one connection.

    *timeout* is the number of seconds in which the peer must take something. *start* is called
    once, to begin :meth:`run` in a task.
    """

    def __init__(
        self,
        transport: Transport,
        engine: Engine,
        timeout: float,
        start: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._engine = engine
        self._timeout = timeout
        self._start: Callable[[], None] | None = start
        self._waiting = bytearray()
        self._wake = Signal()
        self._progress = Signal()
        self._is_sending = False
        self.is_broken = False
        """Whether nothing can be sent any more."""

    @property
    def has_room(self) -> bool:
        return len(self._waiting) < MOST_WAITING

    @property
    def is_empty(self) -> bool:
        """Whether the kernel has everything."""
        return not self._waiting and not self._is_sending

    def flush(self) -> None:
        """Send what the engine has queued, or let the writer send it. Not a checkpoint."""
        output = self._engine.take_output()
        if not output:
            return
        if self.is_empty and not self.is_broken:
            sent = self._transport.send_some_nowait(bytes(output)) or 0
            del output[:sent]
        if output:
            self._waiting += output
            start, self._start = self._start, None
            if start is not None:
                start()
            self._wake.fire()

    async def room(self) -> None:
        """Wait until more may be queued. A checkpoint only if this waits.

        Raises :class:`trio.BrokenResourceError` if the connection broke.
        """
        while not self.has_room and not self.is_broken:
            await self._progress.wait()
        self._check()

    async def drained(self) -> None:
        """Wait until the kernel has everything. Raises as :meth:`room` does."""
        while not self.is_empty and not self.is_broken:
            await self._progress.wait()
        self._check()

    def _check(self) -> None:
        if self.is_broken:
            raise trio.BrokenResourceError("the connection is closed")

    async def run(self) -> None:
        """Send until cancelled. Raises :class:`trio.BrokenResourceError`."""
        try:
            while True:
                while self._waiting:
                    part = bytes(self._waiting[:MOST_WAITING])
                    del self._waiting[: len(part)]
                    await self._send(part)
                    self._progress.fire()
                await self._wake.wait()
        finally:
            self.is_broken = True
            self._progress.fire()

    async def _send(self, part: bytes) -> None:
        self._is_sending = True
        with trio.move_on_after(self._timeout) as scope:
            await self._transport.send_all(part)
            self._is_sending = False
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the peer does not read its responses")
