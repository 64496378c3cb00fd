"""One request and its response over HTTP/1.1.

No call of h11 spans an ``await``, so the two tasks of an exchange need no lock. Content
does not pass through h11, and goes by ``sendfile`` where the kernel can do that.
"""

from __future__ import annotations

import errno
import os
from typing import cast

import h11
import trio

from trioresume.client.content.file_source import FileSpan, Piece, shrunk
from trioresume.client.http.exchange import (
    Content,
    End,
    Event,
    Head,
    Interim,
    MalformedAnswer,
    Moved,
)
from trioresume.protocol.heads import Fields

__all__ = ["Http1Exchange"]

RECEIVE_BYTES = 256 * 1024

_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK)
_BROKEN = (
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.ENOBUFS,
    errno.EHOSTDOWN,
)


class Http1Exchange:
    """An :class:`~trioresume.client.http.exchange.Exchange` on *stream*."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        parser: h11.Connection,
        request: h11.Request,
        on_moved: Moved,
    ) -> None:
        self._stream = stream
        self._parser = parser
        self._request = request
        self._on_moved = on_moved
        self._use_sendfile = hasattr(os, "sendfile") and isinstance(
            stream, trio.SocketStream
        )

    # Sending.

    async def send_head(self, *, ends: bool) -> None:
        head = self._parser.send(self._request) or b""
        if ends:
            head += self._parser.send(h11.EndOfMessage()) or b""
        await self._send_bytes(memoryview(head))

    async def send_content(self, piece: Piece) -> None:
        # h11 only needs the length for the framing, and returns the piece unread.
        data = h11.Data(data=cast("bytes", piece))
        parts: list[object] = [*(self._parser.send_with_data_passthrough(data) or ())]
        for part in parts:
            if part is not piece:
                assert isinstance(part, bytes)
                await self._send_bytes(memoryview(part))
            elif isinstance(piece, FileSpan):
                await self._send_span(piece)
            else:
                await self._send_bytes(piece, is_content=True)

    async def send_end(self) -> None:
        end = self._parser.send(h11.EndOfMessage()) or b""
        await self._send_bytes(memoryview(end))

    async def _send_bytes(self, view: memoryview, *, is_content: bool = False) -> None:
        # In pieces, so that the watchdog sees a slow connection move.
        for start in range(0, len(view), RECEIVE_BYTES):
            part = view[start : start + RECEIVE_BYTES]
            await self._stream.send_all(part)
            self._on_moved(len(part) if is_content else 0)

    async def _send_span(self, span: FileSpan) -> None:
        while len(span):
            if self._use_sendfile:
                count = await self._sendfile(span)
                self._on_moved(count)
            else:
                data = await trio.to_thread.run_sync(span.read)
                await self._send_bytes(memoryview(data), is_content=True)
                count = len(data)
            span = span[count:]

    async def _sendfile(self, span: FileSpan) -> int:
        """Send *span*; return how much the kernel took, 0 if sendfile cannot do it."""
        assert isinstance(self._stream, trio.SocketStream)
        sock = self._stream.socket
        # This is always a checkpoint. With TCP_NOTSENT_LOWAT it also paces the sending.
        await trio.lowlevel.wait_writable(sock)
        try:
            count = os.sendfile(sock.fileno(), span.fd, span.offset, span.size)
        except BlockingIOError:
            return 0
        except OSError as exc:
            if exc.errno in _NOT_SUPPORTED:
                self._use_sendfile = False
                return 0
            if exc.errno in _BROKEN:
                raise trio.BrokenResourceError(f"the connection broke: {exc}") from exc
            raise
        if count == 0:
            raise shrunk()
        return count

    # Receiving.

    async def receive(self) -> Event:
        while True:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError as exc:
                if self._parser.trailing_data[1]:
                    # At the end of the stream h11 only names what it expected instead.
                    raise EOFError(
                        "the server closed the connection too early"
                    ) from None
                raise MalformedAnswer(str(exc)) from exc
            match event:
                case h11.NEED_DATA:
                    data = await self._stream.receive_some(RECEIVE_BYTES)
                    self._on_moved(0)
                    self._parser.receive_data(bytes(data))
                case h11.InformationalResponse():
                    return Interim(event.status_code, Fields.from_wire(event.headers))
                case h11.Response():
                    return Head(event.status_code, Fields.from_wire(event.headers))
                case h11.Data():
                    return Content(event.data)
                case h11.EndOfMessage():
                    return End()
                case h11.ConnectionClosed():
                    raise EOFError("the server closed the connection")
                case _:
                    raise AssertionError(f"h11 does not give a client {event!r}")
