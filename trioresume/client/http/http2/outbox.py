"""The way out of an HTTP/2 connection, which all its streams share.

What a stream sends mostly goes to the kernel at once, in the stream's own task. The rest
waits for the writer task. Frames of the connection itself go first, then the content of the
streams in turn. What the kernel, or TLS, has begun to take is always finished: a task that is
cancelled only stops waiting for it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

import trio

from trioresume.client.http.tls_stream import TlsStream

__all__ = ["Outbox"]

MOST_WAITING = 256 * 1024
"""Bytes of frames of the connection itself that may wait before nothing more is read."""

_AT_ONCE = 64 * 1024
"""Bytes of one call: after each, the connection counts as alive."""


class _Part:
    """Bytes that wait to be sent."""

    __slots__ = ("sent", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.sent = trio.Event()


class Outbox:
    """The bytes that wait for the server. *on_moved* is called whenever some were taken."""

    def __init__(self, stream: trio.abc.Stream, on_moved: Callable[[], object]) -> None:
        self._stream = stream
        self._on_moved = on_moved
        self._current: _Part | None = None
        """What the kernel has begun to take."""
        self._frames: deque[_Part] = deque()
        self._content: deque[_Part] = deque()
        self._waiting = 0
        """Bytes in ``_frames``."""
        self._wake = trio.Event()
        self._progress = trio.Event()
        self.is_broken = False
        """Whether nothing can be sent any more."""

    @property
    def is_idle(self) -> bool:
        """Whether the kernel has everything."""
        return self._current is None and not self._frames and not self._content

    def put(self, frames: bytes | bytearray) -> None:
        """Send *frames* of the connection itself, before all content that waits."""
        if not frames or self.is_broken:
            return
        part = _Part(memoryview(frames))
        if not self.is_idle:
            self._frames.append(part)
            self._waiting += len(frames)
        elif self._send_nowait(part):
            return
        self._wake.set()

    async def send(self, content: memoryview, on_withdrawn: Callable[[], None]) -> None:
        """Send *content*, in turn with other streams.

        If cancelled before any of it was sent, nothing of it will be sent, and
        *on_withdrawn* is called. Otherwise all of it is sent. Raises
        :class:`trio.BrokenResourceError`.
        """
        self._check()
        part = _Part(content)
        if self.is_idle:
            if self._send_nowait(part):
                await trio.lowlevel.cancel_shielded_checkpoint()  # the others' turn
                return
        else:
            self._content.append(part)
        self._wake.set()
        try:
            await part.sent.wait()
        except trio.Cancelled:
            if part in self._content:
                self._content.remove(part)
                on_withdrawn()
            raise
        self._check()

    async def room(self) -> None:
        """Wait until more frames may be put. A checkpoint only if this waits."""
        while self._waiting > MOST_WAITING and not self.is_broken:
            await self._progress.wait()

    def _check(self) -> None:
        if self.is_broken:
            raise trio.BrokenResourceError("the connection is closed")

    def _send_nowait(self, part: _Part) -> bool:
        """Begin to send *part*, and return whether it is sent."""
        while part.view:
            count = _send_some(self._stream, part.view[:_AT_ONCE])
            if not count:
                # TLS wants the same bytes again, so nothing may come before them.
                self._current = part
                return False
            self._on_moved()
            part.view = part.view[count:]
        return True

    async def run(self) -> None:
        """Send until cancelled. Raises :class:`trio.BrokenResourceError`."""
        try:
            while True:
                self._wake = trio.Event()
                while (part := self._next()) is not None:
                    self._current = part
                    while part.view:
                        await self._stream.send_all(part.view[:_AT_ONCE])
                        part.view = part.view[_AT_ONCE:]
                        self._on_moved()
                    self._current = None
                    part.sent.set()
                    self._progress.set()
                    self._progress = trio.Event()
                await self._wake.wait()
        finally:
            self.is_broken = True
            self._progress.set()
            for part in (self._current, *self._content):
                if part is not None:
                    part.sent.set()

    def _next(self) -> _Part | None:
        if self._current is not None:
            return self._current
        if self._frames:
            part = self._frames.popleft()
            self._waiting -= len(part.view)
            return part
        return self._content.popleft() if self._content else None


def _send_some(stream: trio.abc.Stream, view: memoryview) -> int:
    """Send some of *view* if the kernel takes it at once; return how many bytes.

    An error is found again by the call that waits.
    """
    try:
        if isinstance(stream, TlsStream):
            return stream.send_nowait(view)
        if isinstance(stream, trio.SocketStream):
            return os.write(stream.socket.fileno(), view)
    except OSError:
        pass
    return 0
