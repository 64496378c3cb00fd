"""One stream's request and its answer.

The rules for answering are those of every carrier, see
:mod:`trioresume.server.http.base_exchange`. This module sends them in frames.

A response may end before the request's content does. Then the rest of the content is dropped,
if it is little; otherwise the stream is reset with NO_ERROR (RFC 9113, section 8.1), which
leaves the response whole. The connection and its other streams go on in both cases. So does a
connection whose stream was taken over: the old writer's 409 is such an early response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trioresume.errors import CallerError
from trioresume.protocol.http2_head import response_fields
from trioresume.server.event_loop import Signal
from trioresume.server.http.base_exchange import BaseExchange
from trioresume.server.http.http2.engine import ErrorCodes

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields, RequestHead
    from trioresume.server.http.front import Front
    from trioresume.server.http.http2.body import StreamBody
    from trioresume.server.http.http2.engine import Engine
    from trioresume.server.http.http2.outbox import Outbox

__all__ = ["StreamExchange"]

LARGEST_PART = 64 * 1024
"""Bytes of content that a stream queues before the other streams get their turns."""


class StreamExchange(BaseExchange):
    """A request on *stream*, and the means to answer it."""

    __slots__ = (
        "_closes",
        "_engine",
        "_left",
        "_outbox",
        "_stream",
        "_window",
        "content",
    )

    def __init__(
        self,
        stream: int,
        head: RequestHead,
        body: StreamBody,
        engine: Engine,
        outbox: Outbox,
        front: Front,
    ) -> None:
        super().__init__(head, body, front)
        self._stream = stream
        self._engine = engine
        self._outbox = outbox
        self.content = body
        """The body, as the connection knows it."""
        self._closes = False
        self._window = Signal()
        self._left: int | None = None
        """Bytes of content that the response's head has promised; None: no promise."""

    def open_window(self) -> None:
        """Note that the peer takes more content, or that the stream is closed."""
        self._window.fire()

    @property
    def can_respond(self) -> bool:
        return super().can_respond and self._engine.may_send(self._stream)

    def close_after(self) -> None:
        # There is nothing to close: the rest of the content is not waited for.
        self._closes = True

    @property
    def _files(self) -> None:
        return None

    async def _send_interim(self, status: int, fields: Fields) -> None:
        if not self._engine.may_send(self._stream):
            return  # the peer is gone, but what it sent is still to be taken
        self._engine.send_head(self._stream, response_fields(status, fields))
        await self._sent()

    def _offer_interim(self, status: int, fields: Fields) -> None:
        if self._outbox.is_empty and self._engine.may_send(self._stream):
            self._engine.send_head(self._stream, response_fields(status, fields))
            self._outbox.flush()

    async def _start(
        self, status: int, fields: Fields, content: bytes, *, ends: bool
    ) -> None:
        self._check_open()
        pairs = response_fields(status, fields)
        length = fields.get("content-length")
        self._left = None if length is None else int(length)
        self.status = status
        self._engine.send_head(self._stream, pairs, ends=ends and not content)
        await self._send_part(content, ends=ends)

    async def _send(self, data: bytes) -> None:
        await self._send_part(data, ends=False)

    async def _send_block(self, block: bytes) -> None:
        await self._send_part(block, ends=False)

    async def _end(self) -> None:
        if self._left:
            raise CallerError("the response has less content than its Content-Length")
        self._check_open()
        self._engine.send_content(self._stream, b"", ends=True)
        await self._sent()

    async def _send_part(self, data: bytes, *, ends: bool) -> None:
        if self._left is not None and data:
            self._left -= len(data)
            if self._left < 0:
                raise CallerError(
                    "the response has more content than its Content-Length"
                )
        view = memoryview(data)
        while view:
            room = await self._room()
            part, view = (
                view[: min(room, LARGEST_PART)],
                view[min(room, LARGEST_PART) :],
            )
            self._engine.send_content(self._stream, part, ends=ends and not view)
            await self._sent()
        if not data:
            await self._sent()

    async def _room(self) -> int:
        """Wait until the peer takes content on this stream; return how many bytes."""
        room = self._engine.room(self._stream)
        if room:
            return room
        with trio.move_on_after(self._front.config.send_timeout):
            while not (room := self._engine.room(self._stream)):
                self._check_open()
                await self._window.wait()
        if not room:
            raise trio.BrokenResourceError("the peer does not read its response")
        return room

    async def _sent(self) -> None:
        self._outbox.flush()
        await self._outbox.room()

    def _check_open(self) -> None:
        if not self._engine.may_send(self._stream):
            raise trio.BrokenResourceError("the stream is closed")

    # The end.

    async def finish(self) -> None:
        """Close the stream. A little content that is still coming is read before."""
        body, config = self.content, self._front.config
        remaining = body.remaining
        answered = self.status > 0 and not self._engine.may_send(self._stream)
        little = remaining is None or remaining <= config.drain_size
        waits = answered and not body.ended and not self._closes and little
        if waits and not self._owes_continue:
            body.drop(config.drain_size)
            self._outbox.flush()
            with trio.move_on_after(config.drain_timeout):
                await body.wait_end()
        body.close()
        if not answered:
            self._engine.reset(self._stream, ErrorCodes.INTERNAL_ERROR)
        elif not body.ended:
            self._engine.reset(self._stream, ErrorCodes.NO_ERROR)
        self._outbox.flush()
