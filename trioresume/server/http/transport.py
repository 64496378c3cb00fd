"""The byte stream under a connection, with only what the receive path needs.

A socket is read in two moves: ``await wait_readable()`` and then, without an ``await``
between, ``receive_nowait(buffer)``. So a connection takes memory only when there are bytes to
put into it, and hands on everything that it has read.

A transport that can send files does it in two moves as well, ``await wait_writable()`` and
``send_file_nowait``: see :class:`~trioresume.server.http.stored_body.FileSender`.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

if sys.platform != "win32":
    import fcntl
    import termios

    _NO_COUNT = bytes(4)

from trioresume.protocol.forwarded import UNIX_PEER

if TYPE_CHECKING:
    from trioresume.protocol.tls_facts import TLSFacts
    from trioresume.server.http.stored_body import FileSender

__all__ = ["BaseTransport", "SocketTransport", "Transport"]

_COPY_SIZE = 256 * 1024
"""Bytes read at once if the system cannot send from files."""

_MOST_UNSENT = 256 * 1024
"""Bytes that may wait in a socket's buffer without having been sent."""

# Errors of sendfile() if the system or the file system does not support it.
_NO_SENDFILE = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EOVERFLOW}
)
# Errors of a send when the connection has ended, besides ConnectionError.
_GONE = frozenset(
    {
        errno.EBADF,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
    }
)


class Transport(Protocol):
    """A connected, reliable, bidirectional byte stream."""

    @property
    def peer(self) -> str:
        """The other end's address."""
        ...

    @property
    def tls(self) -> TLSFacts | None:
        """The result of the TLS handshake; None without TLS."""
        ...

    async def wait_readable(self) -> None:
        """Return when ``receive_nowait`` is likely to have something. A checkpoint."""
        ...

    def interrupt(self) -> None:
        """Make the present ``wait_readable``, if any, raise BrokenResourceError.

        This ends a wait that took too long: a cancel scope for each wait would cost more.
        """
        ...

    def receive_nowait(self, buffer: memoryview) -> int | None:
        """Read into *buffer*; return the count, 0 at the end, None if it would block.

        Raises :class:`trio.BrokenResourceError` if the connection was reset, or ended
        without the alert that ends a TLS connection.
        """
        ...

    @property
    def readable(self) -> int:
        """The least number of bytes that ``receive_nowait`` has; 0 if it is not known."""
        ...

    def set_low_water(self, size: int) -> None:
        """Let ``wait_readable`` wait for *size* bytes, or for the end. Only a hint.

        *size* must not be more than the number of bytes still to come. A task that waits
        already is woken by a lower mark, if there are that many bytes.
        """
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything, after the rest of ``send_nowait``. A checkpoint.

        Raises :class:`trio.BrokenResourceError` if the connection broke. When
        cancelled, an unknown part was sent and the stream must not be used again.
        """
        ...

    def send_some_nowait(self, data: bytes) -> int | None:
        """Send what the kernel takes at once; return the number of bytes.

        Returns None if earlier bytes still wait to be sent, or if the connection broke;
        ``send_all`` then raises the error.
        """
        ...

    def send_nowait(self, data: bytes) -> bool:
        """Send a small message without blocking, or do not send it at all.

        Returns False if earlier bytes still wait to be sent; nothing was taken then.
        Otherwise the message is taken whole: the bytes that the kernel does not accept now
        are sent before the next ``send_all``.
        """
        ...

    @property
    def files(self) -> FileSender | None:
        """The sender of files over this connection, after everything sent before.

        None if a file has to be read and given to ``send_all``.
        """
        ...

    async def send_eof(self) -> None:
        """Half-close: tell the peer that nothing more comes. Errors are ignored.

        Over TLS, what is received later is encrypted, and fit for counting only.
        """
        ...

    async def aclose(self, *, clean: bool = False) -> None:
        """Close at once. A checkpoint. Raises nothing except on cancellation.

        *clean* says that nothing was cut. Over TLS the peer is told, which may take a
        moment if it does not read.
        """
        ...


class BaseTransport:
    """What all transports over a connected stream socket share."""

    tls: TLSFacts | None = None

    def __init__(self, raw: socket.socket, peer: str) -> None:
        self._raw = raw
        self._unsent = b""
        self.peer = peer
        raw.setblocking(False)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                # trio's own streams set 16 KiB. Then a download would wake its task, or take
                # a thread, for little more than that.
                raw.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT
                )
        except OSError:
            pass  # not TCP: a Unix socket has no such options

    def set_most_unsent(self, size: int) -> None:
        """Let *size* bytes wait in the socket's buffer, instead of the usual 256 KiB."""
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            try:
                self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)
            except OSError:
                pass  # not TCP, as in the constructor

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._raw.fileno()

    def interrupt(self) -> None:
        trio.lowlevel.notify_closing(self._raw)

    @property
    def readable(self) -> int:
        """The number of bytes that the kernel has; 0 if it is not known."""
        if sys.platform == "win32":
            return 0
        try:
            answer = fcntl.ioctl(self._raw, termios.FIONREAD, _NO_COUNT)
        except OSError:
            return 0
        return int.from_bytes(answer, sys.byteorder)

    def set_low_water(self, size: int) -> None:
        if sys.platform != "linux":
            return  # a lower mark might not wake a task that waits already
        try:
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        except OSError:
            pass  # closed, or not supported: one more wake-up does no harm

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._send(memoryview(unsent))
        await self._send(memoryview(data))

    async def _send(self, view: memoryview) -> None:
        raise NotImplementedError

    def send_some_nowait(self, data: bytes) -> int | None:
        raise NotImplementedError

    def send_nowait(self, data: bytes) -> bool:
        sent = self.send_some_nowait(data)
        if sent is None:
            return False
        self._unsent = data[sent:]
        return True


class SocketTransport(BaseTransport):
    """A :class:`Transport` over a connected stream socket of trio."""

    sendfile: Callable[[int, int, int, int], int] | None = getattr(os, "sendfile", None)
    """The system's sendfile; None if there is none, or if it has failed here."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        # Plain recv_into on the descriptor, without trio's checkpoints (module docstring).
        super().__init__(socket.socket(fileno=sock.fileno()), _describe(sock))

    def peek(self) -> bytes | None:
        """Return the next byte without taking it, b"" at the end, None if it would block.

        Raises :class:`trio.BrokenResourceError` if the connection was reset.
        """
        try:
            return self._raw.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise trio.BrokenResourceError(f"receive failed: {exc}") from exc

    def detach(self) -> socket.socket:
        """Return the socket for another transport. This one must not be used any more."""
        self._raw.detach()
        return socket.socket(fileno=self._sock.detach())

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

    async def _send(self, view: memoryview) -> None:
        try:
            while view:
                view = view[await self._sock.send(view) :]
        except OSError as exc:
            raise trio.BrokenResourceError(f"send failed: {exc}") from exc

    def send_some_nowait(self, data: bytes) -> int | None:
        if self._unsent:
            return None
        try:
            return self._raw.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The next receive or send_all will meet the same error and report it.
            return None

    @property
    def files(self) -> FileSender:
        return self

    async def wait_writable(self) -> None:
        if self._unsent:
            await self.send_all(b"")
        try:
            await trio.lowlevel.wait_writable(self._raw)
        except (OSError, trio.ClosedResourceError) as exc:
            raise trio.BrokenResourceError("the connection is closed") from exc

    def send_file_nowait(self, descriptor: int, offset: int, size: int) -> int | None:
        if self._unsent:
            return None
        try:
            return self._send_file(descriptor, offset, size)
        except BlockingIOError:
            return None
        except OSError as exc:
            if isinstance(exc, ConnectionError) or exc.errno in _GONE:
                raise trio.BrokenResourceError(f"send failed: {exc}") from exc
            raise

    def _send_file(self, descriptor: int, offset: int, size: int) -> int:
        sendfile = self.sendfile
        if sendfile is not None:
            try:
                return sendfile(self._raw.fileno(), descriptor, offset, size)
            except OSError as exc:
                if exc.errno not in _NO_SENDFILE:
                    raise
                self.sendfile = None
        data = os.pread(descriptor, min(size, _COPY_SIZE), offset)
        return self._raw.send(data) if data else 0

    async def send_eof(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer was faster
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """Close at once."""
        self._raw.detach()
        self._sock.close()

    async def aclose(self, *, clean: bool = False) -> None:
        self.close_nowait()
        await trio.lowlevel.checkpoint()


def _describe(sock: trio.socket.SocketType) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    # The other end of a Unix socket may have any name, also one that looks like an address.
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else UNIX_PEER
