"""An exchange on a stream of an HTTP/2 connection.

Its connection hands it the events of the stream, and it turns them into those of the port
:mod:`trioresume.client.http.exchange`. It copies content into blocks of frames, which the
connection sends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from trioresume.client.content.file_source import BLOCK_BYTES, FileSpan, Piece
from trioresume.client.http.exchange import (
    Content,
    End,
    Event,
    Head,
    Interim,
    MalformedAnswer,
    Moved,
    NotProcessed,
)
from trioresume.client.http.http2 import engine as wire
from trioresume.client.http.http2.engine import ErrorCodes
from trioresume.protocol.http2_head import (
    MalformedResponse,
    read_response_fields,
    request_fields,
)

if TYPE_CHECKING:
    import h11

    from trioresume.client.http.http2.connection import Http2Connection
    from trioresume.client.http.http2.frames import FrameBlock

__all__ = ["Http2Exchange"]

MOST_UNREAD = 256
"""Events of one stream, beside content, that may wait until they are read."""

_NOT_PROCESSED = frozenset({ErrorCodes.REFUSED_STREAM, ErrorCodes.HTTP_1_1_REQUIRED})


class Http2Exchange:
    """An :class:`~trioresume.client.http.exchange.Exchange` on a stream of *connection*."""

    def __init__(
        self, connection: Http2Connection, request: h11.Request, on_moved: Moved
    ) -> None:
        self._connection = connection
        self._request = request
        self._on_moved = on_moved
        self._stream = 0
        self._events: deque[wire.Event] = deque()
        self._came = trio.Event()
        self._cause: Exception | None = None
        """Why no more events come."""
        self._unread = 0
        self._is_ended = False
        """Whether the whole response has come."""
        self._is_whole = False
        """Whether it was read."""
        self._block: FrameBlock | None = None

    # For the connection.

    def note(self, event: wire.Event) -> None:
        """Take an event of the stream."""
        if self._cause is not None:
            return
        self._on_moved(0)
        if isinstance(event, wire.Reset):
            self._connection.note_fault(event.code)
            self.note_end(_cause_of(event))
            return
        self._is_ended = self._is_ended or isinstance(event, wire.ContentEnded)
        if not isinstance(event, wire.Content):
            self._unread += 1
            if self._unread > MOST_UNREAD:
                words = "the server sends interim responses faster than they are read"
                self._connection.reset(self._stream, ErrorCodes.ENHANCE_YOUR_CALM)
                self.note_end(MalformedAnswer(words))
                return
        self._events.append(event)
        self._came.set()

    def note_end(self, cause: Exception) -> None:
        """Note that no more events come, because of *cause*."""
        self._cause = self._cause or cause
        self._came.set()

    def close(self) -> None:
        """End the exchange where it is."""
        if self._stream:
            self._connection.leave(self._stream, is_whole=self._is_whole)

    # Sending.

    async def send_head(self, *, ends: bool) -> None:
        request = self._request
        pairs = request_fields(
            request.method,
            self._connection.origin.scheme.encode("ascii"),
            request.target,
            request.headers,
        )
        try:
            self._stream = await self._connection.begin(self, pairs, ends=ends)
        except (NotProcessed, trio.BrokenResourceError) as exc:
            self.note_end(exc)
            raise trio.BrokenResourceError(str(exc)) from exc
        self._on_moved(0)

    async def send_content(self, piece: Piece) -> None:
        while len(piece):
            block = self._block
            if block is None or block.capacity < min(len(piece), BLOCK_BYTES):
                size = min(len(piece), BLOCK_BYTES)
                block = self._block = self._connection.block_for(self._stream, size)
            if isinstance(piece, FileSpan):
                count = await trio.to_thread.run_sync(block.read, piece)
            else:
                count = block.copy(piece)
            at = 0
            while at < count:
                sent = await self._connection.send_content(
                    self._stream, block, at, count
                )
                at += sent
                self._on_moved(sent)
            piece = piece[count:]

    async def send_end(self) -> None:
        if not self._is_ended:
            self._connection.send_end(self._stream)
        await trio.lowlevel.checkpoint()

    # Receiving.

    async def receive(self) -> Event:
        while not self._events:
            if self._cause is not None:
                raise _as_raised(self._cause)
            self._came = trio.Event()
            await self._came.wait()
        event = self._events.popleft()
        match event:
            case wire.Content(_, data):
                self._connection.grant(self._stream, len(data))
                return Content(data)
            case wire.Section(_, pairs):
                self._unread -= 1
                try:
                    status, fields = read_response_fields(pairs)
                except MalformedResponse as exc:
                    raise MalformedAnswer(
                        f"the server's response is malformed: {exc}"
                    ) from exc
                if status < 200:
                    return Interim(status, fields)
                return Head(status, fields)
            case _:
                self._is_whole = True
                return End()


def _cause_of(event: wire.Reset) -> Exception:
    if event.code in _NOT_PROCESSED:
        return NotProcessed(f"the server refused the request: {event.reason}")
    return trio.BrokenResourceError(event.reason)


def _as_raised(cause: Exception) -> Exception:
    """Return what one exchange raises for the *cause* that several share."""
    if isinstance(cause, NotProcessed | MalformedAnswer):
        return type(cause)(str(cause))
    raised: Exception = trio.BrokenResourceError(str(cause))
    raised.__cause__ = cause.__cause__ or cause
    return raised
