"""Content that is produced while it is sent, and a window of its latest bytes.

Such content cannot be read twice, which is the hard case of resuming. A task of its own
pulls it, for two reasons. A cut must not cancel the caller's iterator, because a
cancelled asynchronous generator is finished for good. And the bytes that may have to be
sent again, the window, must be kept somewhere.

The window is bounded. Bytes leave it when the server has acknowledged them (R30). A
server that acknowledges nothing would stop the upload as soon as the window is full. So
after a while without a first acknowledgement the oldest bytes are dropped. If a cut
then needs them, the upload fails.

Statement numbers such as R30 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterable

import trio

from trioresume.errors import CallerError

__all__ = ["IterableSource"]

PIECE_BYTES = 256 * 1024

ACKNOWLEDGE_PATIENCE_SECONDS = 5.0
"""For how long a full window waits for the first Acknowledge before it drops bytes."""


class IterableSource:
    """Content that is produced once, with a window of bytes that may be needed again.

    *run* pulls the content. It must run beside the sender, in the request's nursery.
    """

    def __init__(self, blocks: AsyncIterable[bytes], window_bytes: int) -> None:
        if window_bytes < 1:
            raise CallerError(
                "the buffer for content that cannot be read twice is empty"
            )
        self._blocks = blocks
        self._capacity = window_bytes
        self._window = bytearray()
        self._base = 0
        """The offset of the window's first byte."""
        self._length: int | None = None
        self._failure: Exception | None = None
        self._acknowledged = False
        self._drops = False
        """Whether a full window drops its oldest bytes instead of waiting."""
        self._wanted: int | None = None
        """The offset for which a sender waits; None while none waits."""
        self._changed = trio.Event()
        self._hash = hashlib.sha256()

    @property
    def length(self) -> int | None:
        return self._length

    @property
    def window(self) -> int:
        return self._capacity

    @property
    def buffered(self) -> int:
        """The number of bytes in the window; never more than its capacity."""
        return len(self._window)

    def can_start_at(self, offset: int) -> bool:
        return self._base <= offset <= self._end

    def at_hand(self, offset: int) -> int:
        return self._end - offset

    async def gather(self, offset: int, size: int) -> None:
        while self.at_hand(offset) < size and len(self._window) < self._capacity:
            if self._failure is not None:
                raise self._failure
            if self._length is not None:
                return
            await self._changed.wait()

    @property
    def _end(self) -> int:
        return self._base + len(self._window)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Pull the content into the window until it ends. Its errors go to the sender."""
        blocks = aiter(self._blocks)
        try:
            async for block in blocks:
                view = memoryview(block).cast("B")
                while view:
                    room = await self._room()
                    self._window += view[:room]
                    self._hash.update(view[:room])
                    view = view[room:]
                    self._announce()
        except Exception as exc:  # noqa: BLE001 - the caller's own code; raised by pieces()
            self._failure = exc
        else:
            self._length = self._end
        finally:
            self._announce()
            # Only generators have aclose(). If the loop is cancelled, it leaves one half-way.
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()

    async def _room(self) -> int:
        """Wait for room in the window, and return how many bytes fit."""
        while (room := self._capacity - len(self._window)) == 0:
            if self._drops and self._starving and not self._acknowledged:
                self._forget(self._base + max(1, self._capacity // 8))
                continue
            changed, starving = self._changed, self._starving
            with trio.move_on_after(ACKNOWLEDGE_PATIENCE_SECONDS) as scope:
                await changed.wait()
            if scope.cancelled_caught and starving:
                self._drops = True
        return room

    @property
    def _starving(self) -> bool:
        """Whether a sender has sent the whole window.

        Bytes may be dropped only then. After a cut there is no sender, and the client
        does not know what the server has until it has asked.
        """
        return self._wanted == self._end

    @property
    def waits_for_peer(self) -> bool:
        return self._starving and len(self._window) == self._capacity

    def release(self, offset: int, *, acknowledged: bool) -> None:
        self._acknowledged = self._acknowledged or acknowledged
        if self._base < offset <= self._end:
            self._forget(offset)

    def _forget(self, offset: int) -> None:
        del self._window[: offset - self._base]
        self._base = offset
        self._announce()

    async def digest(self) -> bytes | None:
        return None if self._length is None else self._hash.digest()

    async def pieces(self, offset: int) -> AsyncGenerator[memoryview]:
        while True:
            if offset < self._base:
                raise CallerError("content was dropped before it was sent")
            start = offset - self._base
            piece = bytes(self._window[start : start + PIECE_BYTES])
            if piece:
                offset += len(piece)
                yield memoryview(piece)
            elif self._failure is not None:
                raise self._failure
            elif self._length is not None:
                return
            else:
                await self._wait_for(offset)

    async def _wait_for(self, offset: int) -> None:
        self._wanted = offset
        if len(self._window) == self._capacity:
            self._announce()  # tell the pulling task why there is no room
        try:
            await self._changed.wait()
        finally:
            self._wanted = None
