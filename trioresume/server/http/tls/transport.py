"""A byte stream over TLS, on the non-blocking socket itself.

``SSLSocket`` reads from the socket and decrypts straight into the buffer that it is given, so
content lands in a piece of the receive memory as it does without TLS. OpenSSL decrypts one
record at a time (16 KiB at most). Three things differ from a plain socket:

* OpenSSL may hold decrypted bytes while the socket has none (``pending``). So nothing waits
  for the socket before these bytes are read.
* OpenSSL may have taken a part of a record from the socket. So the number of bytes in the
  socket says little: ``readable`` counts whole records only, and is 0 after a read that found
  nothing. Otherwise a reader would try again and again.
* A read may have to write first (the answer to a key update), and a write may have to read
  first (a renegotiation, in a context of the embedding program). Each waits for that.

The end of the stream is an alert of its own, ``close_notify``. A connection that ends without
it was cut: then ``receive_nowait`` raises an error and does not return 0. This end sends the
alert on ``send_eof`` and on a clean ``aclose`` only. So a peer can tell a response that ended
from one that was cut.

Files are not sent by the kernel: only with kTLS it could encrypt them, and Python does not
tell whether a connection has that.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from trioresume.protocol.tls_facts import ClientCertificate, TLSFacts
from trioresume.server.http.transport import BaseTransport

if TYPE_CHECKING:
    from trioresume.server.http.stored_body import FileSender

__all__ = ["TLSTransport"]

RECORD = 16 * 1024
"""The most content in a record (RFC 8446, section 5.1)."""
RECORD_COST = 22
"""Bytes of a record that are not content, with TLS 1.3 and AES-GCM."""
LARGEST_RECORD = RECORD + 2048 + 5
"""The most bytes of a record (RFC 5246, section 6.2.3): OpenSSL may hold so many of one."""
WRITE = 64 * 1024
"""Bytes that are encrypted before other tasks get their turn."""
CLOSING_SECONDS = 1.0
"""How long the last alert may wait for room in the kernel's buffer, or to be read."""
MOST_DROPPED = 64 * 1024
"""Bytes that are read and dropped until the peer has read why its handshake failed."""


class TLSTransport(BaseTransport):
    """A :class:`~trioresume.server.http.transport.Transport` over TLS.

    *sock* is not blocking, has not shaken hands, and does not suppress ragged ends. The
    transport owns it. Call :meth:`handshake` before anything else.
    """

    def __init__(self, sock: ssl.SSLSocket, peer: str) -> None:
        self._ssl = sock
        super().__init__(sock, peer)
        self._bytes = _SharedWait(trio.lowlevel.wait_readable, self._ssl)
        self._room = _SharedWait(trio.lowlevel.wait_writable, self._ssl)
        self._read_needs_room = False
        """Whether a read has to write something before it goes on."""
        self._dry = False
        """Whether the last read found no whole record."""
        self._settled = False
        """Whether a read has found the end or a failure: no wait for the socket is needed."""
        self._encrypting = b""
        """Content of a record that OpenSSL holds until there is room to send it."""
        self._ended = False
        """Whether the last alert was sent: nothing more is encrypted or decrypted."""

    async def handshake(self) -> None:
        """Shake hands, and set ``tls``.

        Raises :class:`ssl.SSLError` and :class:`OSError`. When cancelled, close the transport.
        """
        await self._complete(self._ssl.do_handshake)
        der = self._ssl.getpeercert(binary_form=True)
        certificate = None
        # Without verification Python decodes nothing, and nothing may be believed.
        if der is not None and (decoded := self._ssl.getpeercert()):
            certificate = ClientCertificate.from_handshake(der, decoded)
        self.tls = TLSFacts(
            version=self._ssl.version() or "",
            protocol=self._ssl.selected_alpn_protocol(),
            certificate=certificate,
        )

    async def _complete(self, step: Callable[[], object]) -> None:
        """Call *step* until it neither needs bytes nor room."""
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                await self._bytes.wait()
            except ssl.SSLWantWriteError:
                await self._room.wait()
            else:
                return

    # Receiving.

    async def wait_readable(self) -> None:
        if not self._ended and (self._settled or self._ssl.pending()):
            await trio.lowlevel.checkpoint()
        elif self._read_needs_room:
            await self._room.wait()
        else:
            await self._bytes.wait()
        self._dry = False

    def receive_nowait(self, buffer: memoryview) -> int | None:
        if self._ended:
            return self._drop_nowait(buffer)
        count, size = 0, len(buffer)
        self._read_needs_room = False
        try:
            while count < size:
                got = self._ssl.recv_into(buffer[count:], size - count)
                if not got:
                    self._settled = True
                    return count
                count += got
        except ssl.SSLWantReadError:
            self._dry = not count
        except ssl.SSLWantWriteError:
            self._read_needs_room = self._dry = True
        except OSError as exc:  # SSLError is one
            # It is raised again by the next call, when the bytes before it are handed on.
            self._settled = True
            if not count:
                raise trio.BrokenResourceError(f"receive failed: {exc}") from exc
        return count or None

    def _drop_nowait(self, buffer: memoryview) -> int | None:
        """Receive without decrypting: nobody looks at what comes after the last alert."""
        try:
            return socket.socket.recv_into(self._ssl, buffer)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise trio.BrokenResourceError(f"receive failed: {exc}") from exc

    @property
    def readable(self) -> int:
        if self._dry or self._ended:
            return 0
        queued = super().readable
        whole, rest = divmod(queued, RECORD + RECORD_COST)
        if not whole:  # most likely one small record
            return self._ssl.pending() + max(0, rest - RECORD_COST)
        return self._ssl.pending() + whole * RECORD

    def set_low_water(self, size: int) -> None:
        # A part of the next record may have left the socket already.
        super().set_low_water(max(1, size - LARGEST_RECORD))

    # Sending. OpenSSL encrypts a record once, and wants the same bytes again until it is sent.

    async def _send(self, view: memoryview) -> None:
        try:
            if self._encrypting:
                await self._complete(lambda: self._ssl.send(self._encrypting))
                self._encrypting = b""
            for start in range(0, len(view), WRITE):
                block = view[start : start + WRITE]
                await self._complete(lambda block=block: self._ssl.send(block))  # type: ignore[misc]
                await trio.lowlevel.checkpoint()
        except OSError as exc:
            raise trio.BrokenResourceError(f"send failed: {exc}") from exc

    def send_some_nowait(self, data: bytes) -> int | None:
        if self._unsent or self._encrypting:
            return None
        for start in range(0, len(data), RECORD):
            record = data[start : start + RECORD]
            try:
                self._ssl.send(record)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                self._encrypting = record
                return start + len(record)
            except OSError:
                # The next receive or send_all will meet the same error and report it.
                return None
        return len(data)

    @property
    def files(self) -> FileSender | None:
        return None

    # The end.

    async def send_eof(self) -> None:
        await self._say_end()
        try:
            self._ssl.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer was faster
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """Close at once, as a connection that broke."""
        trio.lowlevel.notify_closing(self._ssl)
        self._ssl.close()

    async def let_read_the_alert(self) -> None:
        """Wait a moment for the peer to read why the handshake failed, and to leave.

        In TLS 1.3 a client has sent its request by then. A close would answer that with a
        reset, which may overtake the alert.
        """
        self._ended = True
        dropped = memoryview(bytearray(4096))
        left = MOST_DROPPED
        with trio.move_on_after(CLOSING_SECONDS):
            try:
                await self.send_eof()
                while left > 0 and (count := self._drop_nowait(dropped)) != 0:
                    left -= count or 0
                    await self.wait_readable()
            except trio.BrokenResourceError:
                pass  # the peer is gone

    async def aclose(self, *, clean: bool = False) -> None:
        try:
            if clean:
                await self._say_end()
        finally:
            self.close_nowait()
        await trio.lowlevel.checkpoint()

    async def _say_end(self) -> None:
        """Send everything that waits, and the last alert, if there is room in time."""
        if self._ended:
            return
        with trio.move_on_after(CLOSING_SECONDS):
            try:
                if self._unsent or self._encrypting:
                    await self.send_all(b"")
                await self._complete(self._unwrap)
            except (OSError, trio.BrokenResourceError):
                pass  # the peer is gone, or sends what nobody will read
        self._ended = True

    def _unwrap(self) -> None:
        try:
            self._ssl.unwrap()
        except ssl.SSLWantReadError:
            pass  # our alert is sent; the peer's own is not waited for


class _SharedWait:
    """Lets several tasks wait for the same of a socket; trio lets one.

    The reader and the writer of a connection may both need bytes, or both need room.
    """

    __slots__ = ("_lot", "_raw", "_wait")

    def __init__(
        self, wait: Callable[[socket.socket], Awaitable[None]], raw: socket.socket
    ) -> None:
        self._wait = wait
        self._raw = raw
        self._lot: trio.lowlevel.ParkingLot | None = None
        """Where the others wait, while one task waits for the socket."""

    async def wait(self) -> None:
        """Return when the socket is ready, or may be. A checkpoint.

        Raises :class:`trio.BrokenResourceError` if the connection is closed.
        """
        if self._lot is not None:
            await self._lot.park()
            return
        self._lot = trio.lowlevel.ParkingLot()
        try:
            await self._wait(self._raw)
        except (OSError, trio.ClosedResourceError) as exc:
            raise trio.BrokenResourceError("the connection is closed") from exc
        finally:
            lot, self._lot = self._lot, None
            lot.unpark_all()
