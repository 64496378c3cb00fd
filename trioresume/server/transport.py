"""The byte stream under a connection, as narrow as the receive path needs it.

A socket is read in two moves: ``await wait_readable()`` and then, without an
``await`` between, ``receive_nowait(buffer)``. That is what lets every connection
read into one shared buffer: its bytes are consumed before any other task runs.
"""

from __future__ import annotations

import socket
from typing import Protocol

import trio

__all__ = ["SocketTransport", "Transport"]


class Transport(Protocol):
    """A connected, reliable, bidirectional byte stream."""

    @property
    def peer(self) -> str:
        """The other end's address, for logs."""
        ...

    async def wait_readable(self) -> None:
        """Return when ``receive_nowait`` is likely to have something. A checkpoint."""
        ...

    def receive_nowait(self, buffer: memoryview) -> int | None:
        """Read into *buffer*; the count, 0 at end of stream, None if it would block.

        Raises :class:`trio.BrokenResourceError` if the connection was reset.
        """
        ...

    def set_low_water(self, size: int) -> None:
        """Let ``wait_readable`` wait for *size* bytes, or for the end: only a hint.

        The mark must not be more than what is still to come.
        """
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything, after what ``send_nowait`` left over. A checkpoint.

        Raises :class:`trio.BrokenResourceError` if the connection broke. When
        cancelled, an unknown part was sent and the stream must not be used again.
        """
        ...

    def send_nowait(self, data: bytes) -> bool:
        """Send a small message without blocking, or not at all.

        False when earlier bytes still wait to be sent; then nothing was taken.
        Otherwise the message is taken whole: what the kernel does not accept now
        goes out before the next ``send_all``.
        """
        ...

    async def send_eof(self) -> None:
        """Half-close: tell the peer that nothing more comes. Errors are ignored."""
        ...

    async def aclose(self) -> None:
        """Close at once. A checkpoint; never raises but on cancellation."""
        ...


class SocketTransport:
    """A :class:`Transport` over a connected stream socket of trio's."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        # Plain recv_into on the descriptor, without trio's own checkpoints: see above.
        self._raw = socket.socket(fileno=sock.fileno())
        self._raw.setblocking(False)
        self._unsent = b""
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # not TCP: a Unix socket has no such option
        self.peer = _describe(sock)

    async def wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._raw)
        except (OSError, trio.ClosedResourceError) as exc:
            raise trio.BrokenResourceError("the connection is closed") from exc

    def receive_nowait(self, buffer: memoryview) -> int | None:
        try:
            return self._raw.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise trio.BrokenResourceError(f"receive failed: {exc}") from exc

    def set_low_water(self, size: int) -> None:
        try:
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        except OSError:
            pass  # closed, or not to be had here: a wake-up more does no harm

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._send(memoryview(unsent))
        await self._send(memoryview(data))

    async def _send(self, view: memoryview) -> None:
        try:
            while view:
                view = view[await self._sock.send(view) :]
        except OSError as exc:
            raise trio.BrokenResourceError(f"send failed: {exc}") from exc

    def send_nowait(self, data: bytes) -> bool:
        if self._unsent:
            return False
        try:
            sent = self._raw.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The next receive or send_all will meet the same error and report it.
            return False
        self._unsent = data[sent:]
        return True

    async def send_eof(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer was faster
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._raw.detach()
        self._sock.close()
        await trio.lowlevel.checkpoint()


def _describe(sock: trio.socket.SocketType) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
