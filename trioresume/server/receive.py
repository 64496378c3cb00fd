"""The receive path: from the socket to the store, one buffer for all.

Why it looks like this
======================

A body of known length needs no parser. h11 reads the head; what came with it is in
the connection's own buffer, and everything after that is read with ``recv_into``
straight into one buffer shared by all connections (``Config.receive_size``, 2 MiB).
The bytes are hashed and written from there, and only then does the task wait again.
The rule that makes sharing safe: **between a receive and the end of its append there
is no checkpoint.** trio's own ``recv_into`` has one after the call, which is why the
transport offers ``wait_readable`` and ``receive_nowait`` instead. A body whose bytes
got mixed up would keep its length; only a comparison of content shows it, and the
tests compare content.

Memory is therefore the buffer plus a few KiB a connection, however many there are.

Wake-ups, more than bytes, are what Python pays for. On a connection that is fast enough
the kernel is therefore asked (``SO_RCVLOWAT``) to wake its task only for a larger amount
(:attr:`ReceiveBuffer.low_water`), or for the end; the more uploads share the machine the
smaller it is, so that what waits in the kernel stays bounded too. A connection that
would take more than :data:`FILL_TIME` to fill the mark has none, and one that does not
fill it within twice that loses it: a peer may be waiting to have its last bytes
acknowledged before it sends more. What waits in the kernel when a newcomer ends the
writer is taken first. Where the option does not exist nothing changes but the cost.

Fairness: each task takes at most one buffer's worth per turn of the event loop, so a
thousand uploads advance in step and none starves.

Back-pressure: when an upload has ``unsealed_chunks`` full chunks on their way to the
disk, its task waits for room before it reads again; the kernel's buffer fills and TCP
slows the peer down.

Chunked bodies go through h11, which undoes the chunks: some copies more, the same
store. They are read in smaller pieces, because h11 holds what it was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import h11
import trio

from trioresume.errors import PeerError, ProblemCode

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.config import Config
    from trioresume.server.transport import Transport

__all__ = ["BodyReceiver", "ContentCut", "ReceiveBuffer", "Sink"]

CHUNKED_READ = 64 * 1024
DEADLINE_STEP = 1.0
"""The deadline is renewed at most this often, in seconds: renewing is not free.

A short timeout is renewed more often, or progress would not save it."""


LARGEST_LOW_WATER = 512 * 1024
LOW_WATER_SUM = 64 * 1024 * 1024
"""Bytes that all uploads' low-water marks together may leave waiting in the kernel."""
FILL_TIME = 0.25
"""Seconds within which a connection must be able to fill its low-water mark."""


class ReceiveBuffer:
    """The buffer that all connections read into, and how many uploads use it now."""

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))
        self.uploads = 0

    @property
    def low_water(self) -> int:
        """For how many bytes the task of a fast upload is to be woken."""
        share = LOW_WATER_SUM // max(1, self.uploads)
        return min(LARGEST_LOW_WATER, len(self.view) // 2, share)


class ContentCut(Exception):
    """The connection ended, or fell silent for too long, before the content did."""

    def __init__(self, *, timed_out: bool) -> None:
        super().__init__("timed out" if timed_out else "connection ended")
        self.timed_out = timed_out


class Sink(Protocol):
    """Where received content goes."""

    def append(self, data: memoryview) -> None:
        """Consume *data* before returning: its memory is used again at once."""
        ...

    @property
    def has_room(self) -> bool:
        """False to be given no more until ``room`` returned."""
        ...

    async def room(self) -> None: ...


class BodyReceiver:
    """The content of one request, taken off its connection."""

    def __init__(
        self,
        head: RequestHead,
        transport: Transport,
        parser: h11.Connection,
        leftover: bytearray,
        buffer: ReceiveBuffer,
        config: Config,
    ) -> None:
        self._transport = transport
        self._parser = parser
        self._leftover = leftover
        self._buffer = buffer
        self._low_water = 1
        self._timeout = config.body_timeout
        self._remaining = head.length
        """Bytes that have yet to come; None when chunked and not at the end."""
        self._chunks_started = False

    @property
    def finished(self) -> bool:
        return self._remaining == 0

    @property
    def remaining(self) -> int | None:
        return self._remaining

    async def receive(self, sink: Sink) -> None:
        """Move the whole content into *sink*.

        Raises :class:`ContentCut`, :class:`PeerError` for malformed chunks, and what
        the sink raises. When cancelled, the sink has got everything that was read.
        """
        with trio.CancelScope() as scope:
            self._renew(scope)
            try:
                if self._remaining is None:
                    await self._receive_chunked(sink, scope)
                else:
                    await self._receive_known(sink, scope)
            except trio.BrokenResourceError:
                raise ContentCut(timed_out=False) from None
        if scope.cancelled_caught:
            raise ContentCut(timed_out=True)

    def _renew(self, scope: trio.CancelScope) -> None:
        deadline = trio.current_time() + self._timeout
        step = min(DEADLINE_STEP, self._timeout / 10)
        if deadline - scope.deadline >= step or scope.deadline == float("inf"):
            scope.deadline = deadline

    async def _receive_known(self, sink: Sink, scope: trio.CancelScope) -> None:
        assert self._remaining is not None
        if self._leftover and self._remaining:
            taken = bytes(self._leftover[: self._remaining])
            del self._leftover[: len(taken)]
            self._remaining -= len(taken)
            sink.append(memoryview(taken))
        self._buffer.uploads += 1
        try:
            await self._read_into(sink, scope)
        except trio.Cancelled:
            # A newcomer ends this writer: first take what waits in the kernel.
            self._read_once(sink)
            raise
        finally:
            self._buffer.uploads -= 1
            self._set_low_water(1)

    async def _read_into(self, sink: Sink, scope: trio.CancelScope) -> None:
        last = trio.current_time()
        while self._remaining:
            if not sink.has_room:
                scope.deadline = float("inf")  # waiting for our own disk
                await sink.room()
                self._renew(scope)
                last = trio.current_time()
            if not await self._wait_readable():
                self._set_low_water(1)
                continue
            count = self._read_once(sink)
            if count is None:
                continue
            if count == 0:
                raise ContentCut(timed_out=False)
            now = trio.current_time()
            self._adapt(count, now - last)
            last = now
            self._renew(scope)

    async def _wait_readable(self) -> bool:
        """Wait for content; False if the low-water mark was not reached in time."""
        if self._low_water == 1:
            await self._transport.wait_readable()
            return True
        with trio.move_on_after(min(2 * FILL_TIME, self._timeout / 4)) as scope:
            await self._transport.wait_readable()
        return not scope.cancelled_caught

    def _read_once(self, sink: Sink) -> int | None:
        """Receive and append what there is, without a checkpoint."""
        assert self._remaining is not None
        view = self._buffer.view
        count = self._transport.receive_nowait(view[: self._remaining])
        if count:
            self._remaining -= count
            sink.append(view[:count])
        return count

    def _adapt(self, count: int, seconds: float) -> None:
        """Set the low-water mark after *count* bytes came in *seconds*."""
        assert self._remaining is not None
        wanted = min(self._buffer.low_water, self._remaining)
        if count * FILL_TIME < wanted * seconds:
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

    async def _receive_chunked(self, sink: Sink, scope: trio.CancelScope) -> None:
        if not self._chunks_started:
            self._chunks_started = True
            if self._leftover:
                self._parser.receive_data(bytes(self._leftover))
                self._leftover.clear()
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                sink.append(memoryview(event.data))
                self._renew(scope)
            elif isinstance(event, h11.EndOfMessage):
                self._remaining = 0
                self._leftover += self._parser.trailing_data[0]
                return
            else:
                if not sink.has_room:
                    scope.deadline = float("inf")
                    await sink.room()
                    self._renew(scope)
                await self._feed_parser()

    def _next_event(self) -> object:
        try:
            return self._parser.next_event()
        except h11.RemoteProtocolError as exc:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST,
                "the chunked content is malformed",
                close=True,
            ) from exc

    async def _feed_parser(self) -> None:
        await self._transport.wait_readable()
        count = self._transport.receive_nowait(self._buffer.view[:CHUNKED_READ])
        if count == 0:
            raise ContentCut(timed_out=False)
        if count is not None:
            self._parser.receive_data(bytes(self._buffer.view[:count]))

    async def discard(self, limit: int) -> bool:
        """Read and drop up to *limit* bytes; whether that was all. May raise as receive."""
        sink = _Discard(limit)
        try:
            await self.receive(sink)
        except _EnoughDiscarded:
            return False
        return True


class _EnoughDiscarded(Exception):
    pass


class _Discard:
    """A sink for content that nobody wants, up to a bound."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def append(self, data: memoryview) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise _EnoughDiscarded

    has_room = True

    async def room(self) -> None:
        return
