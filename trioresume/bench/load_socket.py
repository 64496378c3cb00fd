"""The sockets of the load generator: plain ones, and ones that speak TLS.

Over a plain socket content goes by ``sendfile``, and costs the generator nothing. TLS
encrypts in this process, so the generator's own CPU is part of what it measures.
"""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import struct
from typing import Protocol

import trio

from trioresume.client.http.tls_stream import TlsStream

__all__ = [
    "LoadSocket",
    "PlainSocket",
    "TlsSocket",
    "close_in_order",
    "reset",
    "unsent",
]

RECEIVE_BYTES = 256 * 1024

# linux/sockios.h: "output queue size (not sent only)". What is sent but not yet
# acknowledged (SIOCOUTQ) may well have arrived: acknowledgements are delayed.
_SIOCOUTQNSD = 0x894B

_SENT_AT_ONCE = 64 * 1024
"""The most content that is encrypted at once."""


class LoadSocket(Protocol):
    """What a connection does with its socket."""

    @property
    def plain(self) -> socket.socket | trio.socket.SocketType:
        """The socket, for its options and its end."""
        ...

    @property
    def tls_version(self) -> str | None:
        """The version of TLS, such as ``TLSv1.3``; None without TLS."""
        ...

    @property
    def stream(self) -> trio.SocketStream | TlsStream:
        """The same socket as a stream."""
        ...

    async def send(self, data: memoryview) -> int: ...

    async def recv(self, size: int) -> bytes: ...

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send up to *count* bytes of *fd*. Return how many; after them nothing is awaited."""
        ...


class PlainSocket:
    """A connection without TLS."""

    tls_version: str | None = None

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.plain = sock

    @property
    def stream(self) -> trio.SocketStream:
        return trio.SocketStream(self.plain)

    async def send(self, data: memoryview) -> int:
        return await self.plain.send(data)

    async def recv(self, size: int) -> bytes:
        return await self.plain.recv(size)

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        while True:
            try:
                return os.sendfile(self.plain.fileno(), fd, offset, count)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.plain)


class TlsSocket:
    """A connection with TLS. Its errors are those of a plain socket: :class:`OSError`."""

    def __init__(self, stream: TlsStream) -> None:
        self.stream = stream
        self.plain = stream.socket

    @classmethod
    async def secure(
        cls, sock: trio.socket.SocketType, context: ssl.SSLContext, host: str
    ) -> TlsSocket:
        """Speak TLS on *sock*, which it takes over. Raises :class:`OSError`."""
        stream = TlsStream(trio.SocketStream(sock), context, host)
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as exc:
            stream.socket.close()
            raise _cause_of(exc) from exc
        except BaseException:
            stream.socket.close()
            raise
        return cls(stream)

    @property
    def tls_version(self) -> str | None:
        return self.plain.version()

    @property
    def speaks_http2(self) -> bool:
        """Whether the server agreed to HTTP/2."""
        return self.plain.selected_alpn_protocol() == "h2"

    async def send(self, data: memoryview) -> int:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as exc:
            raise _cause_of(exc) from exc
        return len(data)

    async def recv(self, size: int) -> bytes:
        try:
            return await self.stream.receive_some(size)
        except trio.BrokenResourceError as exc:
            raise _cause_of(exc) from exc

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        # A piece is smaller than what the socket takes, so the others get their turn here.
        await trio.lowlevel.checkpoint()
        data = os.pread(fd, min(count, _SENT_AT_ONCE), offset)
        while True:
            try:
                return self.plain.send(data)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.plain)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.plain)


def _cause_of(exc: trio.BrokenResourceError) -> OSError:
    cause = exc.__cause__
    return cause if isinstance(cause, OSError) else ConnectionError(str(exc))


# Ways to end a socket. None of them blocks.


def close_in_order(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close by FIN: written bytes still arrive."""
    try:
        sock.shutdown(socket.SHUT_WR)
        # Unread bytes would turn the FIN into a RST.
        for _ in range(64):
            if not os.read(sock.fileno(), RECEIVE_BYTES):
                break
    except OSError:
        pass
    _close(sock)


def reset(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close by RST (SO_LINGER with a time of zero, socket(7))."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    _close(sock)


def _close(sock: socket.socket | trio.socket.SocketType) -> None:
    if sock.fileno() != -1:
        trio.lowlevel.notify_closing(sock)
    sock.close()


def unsent(sock: socket.socket | trio.socket.SocketType) -> int:
    """Return how many bytes were written but are not on the network yet."""
    try:
        answer = fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
