"""The ways of one request between an ASGI server and the engine.

On a trio server the engine calls ``receive`` and ``send`` itself. On an asyncio server the two
run in different threads. Each hop from one loop to the other wakes a thread, so content is not
fetched block by block: a task of asyncio reads ahead, a little, while the engine is busy, and
the engine takes all bytes that have come. At most ``AHEAD`` bytes of a request are read ahead.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import trio

from trioresume.server.event_loop import Signal

__all__ = ["AsyncioChannel", "TrioChannel"]

logger = logging.getLogger("trioresume.asgi")

AHEAD = 128 * 1024
"""Bytes of content that are read ahead before the reader waits for the engine."""

Message = MutableMapping[str, Any]
Messages = Sequence[Mapping[str, object]]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class TrioChannel:
    """The channel of a server that runs in the engine's own loop."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def receive(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise trio.BrokenResourceError("the client is gone")
        return _block_of(message)

    async def send(self, messages: Messages) -> None:
        try:
            for message in messages:
                await self._send(dict(message))
        except OSError as exc:
            raise trio.BrokenResourceError("the client is gone") from exc


class AsyncioChannel:
    """The channel of a server on asyncio; the engine is in another thread.

    Made in asyncio's thread. :meth:`run` has to run there while the engine uses the channel.
    """

    def __init__(
        self, token: trio.lowlevel.TrioToken, receive: Receive, send: Send
    ) -> None:
        self._token = token
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._send = send
        self._blocks: deque[tuple[bytes, bool]] = deque()
        # Each count is changed by one thread only: by asyncio's, and by trio's.
        self._came = 0
        self._taken = 0
        self._is_gone = False
        self._arrived = Signal()
        self._reader_waits = False
        self._room = asyncio.Event()
        self._is_reading = False
        self._read = asyncio.Event()
        self._outgoing: asyncio.Queue[tuple[Messages, _Sent]] = asyncio.Queue()

    # ------------------------------------------------------------ in trio's thread

    async def receive(self) -> tuple[bytes, bool]:
        """Return the next block; a cancelled call loses none."""
        while not self._blocks:
            if self._is_gone:
                raise trio.BrokenResourceError("the client is gone")
            if not self._is_reading:
                self._is_reading = True
                self._tell_asyncio(self._read.set)
            await self._arrived.wait()
        block = self._blocks.popleft()
        self._taken += len(block[0])
        if self._reader_waits and self._came - self._taken <= AHEAD:
            self._reader_waits = False
            self._tell_asyncio(self._room.set)
        if not block[1]:
            self._is_reading = False  # the next call watches for the client's end
        return block

    async def send(self, messages: Messages) -> None:
        """Send *messages*, and return when the server has taken them."""
        sent = _Sent()
        self._tell_asyncio(self._outgoing.put_nowait, (messages, sent))
        await sent.done.wait()
        if sent.failure is not None:
            raise trio.BrokenResourceError("the client is gone") from sent.failure

    def _tell_asyncio(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError as exc:
            raise trio.BrokenResourceError("the server's loop is closed") from exc

    def _wake(self) -> None:
        self._arrived.fire()

    # ------------------------------------------------------------ in asyncio's thread

    async def run(self) -> None:
        """Read and send for the engine, until cancelled."""
        reader = asyncio.create_task(self._read_ahead())
        try:
            while True:
                messages, sent = await self._outgoing.get()
                try:
                    for message in messages:
                        await self._send(dict(message))
                except Exception as exc:
                    if not isinstance(exc, OSError):
                        logger.exception("the ASGI server takes no response")
                    sent.failure = exc
                self._tell_trio(sent.done.set)
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    async def _read_ahead(self) -> None:
        try:
            while True:
                await self._read.wait()
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    break
                block = _block_of(message)
                self._blocks.append(block)
                self._came += len(block[0])
                if not block[1]:
                    self._read.clear()  # the engine says when to watch for the end
                self._tell_trio(self._wake, idempotent=True)
                if self._came - self._taken > AHEAD:
                    await self._wait_for_room()
        except Exception:
            logger.exception("the ASGI server gives no content")
        finally:
            self._is_gone = True
            self._tell_trio(self._wake, idempotent=True)

    async def _wait_for_room(self) -> None:
        self._room.clear()
        self._reader_waits = True  # before the second look: trio may take a block now
        if self._came - self._taken > AHEAD:
            await self._room.wait()
        self._reader_waits = False

    def _tell_trio(
        self, function: Callable[[], object], *, idempotent: bool = False
    ) -> None:
        try:
            self._token.run_sync_soon(function, idempotent=idempotent)
        except trio.RunFinishedError:
            pass  # the engine has ended


class _Sent:
    """Whether messages were sent."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: Exception | None = None


def _block_of(message: Mapping[str, Any]) -> tuple[bytes, bool]:
    return bytes(message.get("body", b"")), bool(message.get("more_body", False))
