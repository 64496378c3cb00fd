"""An HTTP/1.1 exchange: heads by h11, content past it, the rest of the body in the end.

h11 writes the heads and checks the order of events. Content of known length is sent without
h11, because it needs no framing. So h11 does not see the end of such a body and cannot begin
its next cycle: each exchange has an h11 connection of its own.

R10 is in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
import trio

from trioresume.errors import PeerError
from trioresume.protocol.fields import split_list
from trioresume.protocol.message import reason_phrase
from trioresume.server.http.base_exchange import BaseExchange
from trioresume.server.http.exchange import ContentCut
from trioresume.server.http.http1.body import Http1Body

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields, RequestHead
    from trioresume.server.http.front import Front
    from trioresume.server.http.stored_body import FileSender
    from trioresume.server.http.transport import Transport

__all__ = ["Http1Exchange"]

LINGER_SIZE = 64 * 1024 * 1024
"""The most bytes that are read and dropped so that a sending peer can read its answer (R10)."""


class Http1Exchange(BaseExchange):
    """A request that was read from *transport*, and the means to answer it.

    *leftover* are the bytes that came after the request's head.
    """

    __slots__ = (
        "_body",
        "_cut_in_send",
        "_framed",
        "_keep_alive",
        "_parser",
        "_transport",
    )

    def __init__(
        self,
        head: RequestHead,
        transport: Transport,
        parser: h11.Connection,
        leftover: bytearray,
        front: Front,
    ) -> None:
        body = Http1Body(head, transport, leftover, front.memory, front.config)
        super().__init__(head, body, front)
        self._body = body
        self._transport = transport
        self._parser = parser
        self._cut_in_send = False
        self._framed = False
        """Whether h11 frames or counts the response's content."""
        connection = split_list((head.fields.get("connection") or "").lower())
        self._keep_alive = head.http_version == "1.1" and "close" not in connection

    def close_after(self) -> None:
        self._keep_alive = False

    # Responses. h11 does not prevent interim responses to HTTP/1.0; the base class does.

    async def _send_interim(self, status: int, fields: Fields) -> None:
        await self._send_at_once(self._interim(status, fields))

    def _offer_interim(self, status: int, fields: Fields) -> None:
        self._transport.send_nowait(self._interim(status, fields))

    def _interim(self, status: int, fields: Fields) -> bytes:
        event = h11.InformationalResponse(
            status_code=status, headers=fields.to_wire(), reason=reason_phrase(status)
        )
        return self._parser.send(event)

    @property
    def can_respond(self) -> bool:
        """Whether no part of a response was sent, and no send was cut in the middle."""
        return not self.responded and not self._cut_in_send

    @property
    def _files(self) -> FileSender | None:
        return self._transport.files

    async def _start(
        self, status: int, fields: Fields, content: bytes, *, ends: bool
    ) -> None:
        if not self._can_drain:
            self._keep_alive = False
        if not self._keep_alive:
            fields = fields.without("connection").plus({"connection": "close"})
        event = h11.Response(
            status_code=status, headers=fields.to_wire(), reason=reason_phrase(status)
        )
        head = self._parser.send(event)
        self.responded = True
        await self._send_at_once(head + content)

    async def _send_block(self, block: bytes) -> None:
        self._framed = True
        # h11 copies nothing here: with a Content-Length it counts the block and returns it.
        event = h11.Data(data=block)
        for data in self._parser.send_with_data_passthrough(event) or ():
            await self._send(data)

    async def _end(self) -> None:
        if self._framed:
            await self._send(self._parser.send(h11.EndOfMessage()))

    async def _send_at_once(self, data: bytes) -> None:
        """Like :meth:`_send`, but mostly without a checkpoint and without a deadline."""
        sent = self._transport.send_some_nowait(data) or 0
        if sent < len(data):
            await self._send(memoryview(data)[sent:])

    async def _send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self._cut_in_send = True  # it stays true if the send is cancelled
        # In pieces, so that the deadline limits the lack of progress and not the size.
        for start in range(0, len(view), 256 * 1024):
            with trio.move_on_after(self._front.config.send_timeout) as scope:
                await self._transport.send_all(view[start : start + 256 * 1024])
            if scope.cancelled_caught:
                raise trio.BrokenResourceError("the peer does not read its response")
        self._cut_in_send = False

    # The end.

    @property
    def _can_drain(self) -> bool:
        """Whether the unread content is little enough to read it and go on (R10).

        A client that still waits for its 100 may send the content or may not. Only closing
        the connection resolves that.
        """
        remaining = self._body.remaining
        return remaining is not None and (
            remaining == 0
            or (remaining <= self._front.config.drain_size and not self._owes_continue)
        )

    async def finish(self) -> bool:
        """Prepare the connection for the next request. Returns False if that is impossible.

        In that case this reads for a while what the peer still sends: a reset would destroy
        the response before the peer has read it (RFC 9112, section 9.6).
        """
        if self._keep_alive and self._body.remaining == 0:
            return True  # the usual case
        config = self._front.config
        with trio.move_on_after(config.drain_timeout):
            try:
                if self._keep_alive:
                    return await self._body.discard(config.drain_size)
                if self._body.remaining != 0 or self._more_came():
                    await self._transport.send_eof()
                    await self._linger()
            except (ContentCut, PeerError, trio.BrokenResourceError):
                pass
        return False

    def _more_came(self) -> bool:
        """Whether a pipelined request is unread: closing would send a reset then, too."""
        return bool(self._transport.receive_nowait(self._front.memory.scratch))

    async def _linger(self) -> None:
        left = LINGER_SIZE
        while left > 0:
            await self._transport.wait_readable()
            count = self._transport.receive_nowait(self._front.memory.scratch)
            if count == 0:
                return
            left -= count or 0
