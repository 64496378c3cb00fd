"""A TLS connection over a non-blocking socket.

trio's own TLS stream counts as broken in both directions as soon as sending has failed.
But a server that refuses content answers and then closes, so its answer has to be read
after that (R10). This stream also decrypts and encrypts at the socket, with no copy
between them.

Statement numbers such as R10 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import trio

__all__ = ["TlsStream"]

_RECORD_BYTES = 16 * 1024
"""The most content of one record, which is what one read returns."""

_T = TypeVar("_T")


class TlsStream(trio.abc.Stream):
    """TLS on *stream*, whose socket it takes over. *host* is the server's name.

    One task may send while another receives. An end of the connection without TLS's own
    close is a cut, because anybody on the way can cause it.
    """

    def __init__(
        self, stream: trio.SocketStream, context: ssl.SSLContext, host: str
    ) -> None:
        plain = socket.socket(fileno=stream.socket.detach())
        plain.setblocking(False)
        try:
            self.socket = context.wrap_socket(
                plain,
                server_hostname=host,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )
        except BaseException:
            plain.close()
            raise

    async def do_handshake(self) -> None:
        """Agree on the keys, and check the server's certificate."""
        await self._retry(self.socket.do_handshake)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                with view[sent:] as rest:
                    sent += await self._retry(partial(self.socket.send, rest))

    def send_nowait(self, data: memoryview) -> int:
        """Send *data*, or return 0 if that would have to wait. Raises :class:`OSError`.

        After a 0, the next bytes to be sent are *data* again.
        """
        try:
            return self.socket.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        size = min(max_bytes or _RECORD_BYTES, _RECORD_BYTES)
        return await self._retry(partial(self.socket.recv, size))

    async def _retry(self, call: Callable[[], _T]) -> _T:
        """Return what *call* returns as soon as the socket is ready for it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.socket)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.socket)
            except OSError as exc:
                if self.socket.fileno() == -1:
                    raise trio.ClosedResourceError("this stream is closed") from None
                cut = isinstance(exc, ssl.SSLEOFError)
                words = "was cut" if cut else f"broke: {exc.strerror or exc}"
                raise trio.BrokenResourceError(f"the connection {words}") from exc
            else:
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return result
            waited = True

    async def aclose(self) -> None:
        """Close at once. Tell the server so, if the socket takes that without waiting."""
        if self.socket.fileno() != -1:
            with suppress(OSError, ValueError):
                self.socket.unwrap()
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        await trio.lowlevel.checkpoint()
