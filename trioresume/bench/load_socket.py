"""The sockets of the load generator: plain ones, and ones that speak TLS.

Over a plain socket content goes by ``sendfile``, and costs the generator nothing. TLS
encrypts in this process, so the generator's own CPU is part of what it measures.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Protocol

import trio

from trioresume.client.http.tls_stream import TlsStream

__all__ = ["LoadSocket", "PlainSocket", "TlsSocket"]

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
        self._stream = stream
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

    async def send(self, data: memoryview) -> int:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as exc:
            raise _cause_of(exc) from exc
        return len(data)

    async def recv(self, size: int) -> bytes:
        try:
            return await self._stream.receive_some(size)
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
