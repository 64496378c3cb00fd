"""One request and its answer: interim responses, the final response, the rest of the body.

h11 writes the heads and checks the order of events. Content of known length is sent without
h11, because it needs no framing. So h11 does not see the end of such a body and cannot begin
its next cycle: each exchange has an h11 connection of its own.

The numbered statements (R10, C19, D1 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

import h11
import trio

from trioresume.errors import PeerError
from trioresume.protocol.dialects.seed.server import SEED
from trioresume.protocol.dialects.seed.unasked_continue import takes_unasked_continue
from trioresume.protocol.dialects.tus import server as tus
from trioresume.protocol.fields import format_http_date, split_list
from trioresume.protocol.framing import expects_continue
from trioresume.protocol.heads import Fields
from trioresume.protocol.message import has_content, reason_phrase
from trioresume.protocol.problem import problem_response
from trioresume.server.api.config import upload_limits
from trioresume.server.api.handler import closing_iterator
from trioresume.server.http.body import BodyReceiver, ContentCut
from trioresume.server.http.stored_body import StoredBody

if TYPE_CHECKING:
    from trioresume.protocol.clock import ServiceClock
    from trioresume.protocol.dialects import Interim
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.async_store.receive_memory import ReceiveMemory
    from trioresume.server.http.gateway import Edge
    from trioresume.server.http.transport import Transport

__all__ = ["Exchange"]

logger = logging.getLogger("trioresume.connection")

NO_FIELDS = Fields()

LINGER_SIZE = 64 * 1024 * 1024
"""The most bytes that are read and dropped so that a sending peer can read its answer (R10)."""


class Exchange:
    """A request that was read, and the means to answer it."""

    __slots__ = (
        "_clock",
        "_config",
        "_cut_in_send",
        "_edge",
        "_expects_continue",
        "_keep_alive",
        "_memory",
        "_owes_continue",
        "_parser",
        "_told_location",
        "_transport",
        "body",
        "dialect",
        "head",
        "responded",
    )

    def __init__(
        self,
        head: RequestHead,
        transport: Transport,
        parser: h11.Connection,
        leftover: bytearray,
        memory: ReceiveMemory,
        edge: Edge,
        config: Config,
        clock: ServiceClock,
    ) -> None:
        self.head = head
        self.body = BodyReceiver(head, transport, leftover, memory, config)
        self.responded = False
        """Whether the final response has begun."""
        # D1: an early refusal of a tus request has the form of tus, too.
        self.dialect = tus.recognise(head, on_upload=True) or SEED
        """The dialect of the request, and so of its answers."""
        self._transport = transport
        self._memory = memory
        self._parser = parser
        self._edge = edge
        self._config = config
        self._clock = clock
        self._cut_in_send = False
        # R9: remembered here, because h11 forgets it with the first interim response.
        self._owes_continue = self._expects_continue = False
        # The Location that an interim response gave (C19).
        self._told_location: str | None = None
        connection = split_list((head.fields.get("connection") or "").lower())
        self._keep_alive = head.http_version == "1.1" and "close" not in connection

    def read_expectation(self) -> None:
        """Note whether a 100 is owed. Raises :class:`PeerError` 417 for others (R8)."""
        self._owes_continue = self._expects_continue = expects_continue(self.head)

    # Interim responses. HTTP/1.0 never gets one (R7); h11 does not prevent it.

    @property
    def can_interim(self) -> bool:
        return self.head.http_version == "1.1" and not self.responded

    async def send_continue(
        self, fields: Fields = NO_FIELDS, *, always: bool = False
    ) -> None:
        """Send the 100 if the client waits for it, or if *always* is true (R5)."""
        if always:
            allowed = self._config.interim_responses != "none"
            always = allowed and self._takes_continue
        if self.can_interim and (self._owes_continue or always):
            await self._send_at_once(self._interim(100, fields))
        self._owes_continue = False

    async def send_interim(self, interim: Interim) -> None:
        """Send an interim response and wait until it is sent."""
        if self.can_interim and self._config.interim_responses != "none":
            location = interim.fields.get("location")
            if location is not None:
                self._told_location = location
            await self._send_at_once(self._interim(interim.status, interim.fields))

    def offer_interim(self, interim: Interim) -> None:
        """Send an interim response, unless the peer reads too slowly (R30)."""
        if interim.status == 100 and not self._takes_continue:
            return
        if self.can_interim and self._config.interim_responses == "all":
            self._transport.send_nowait(self._interim(interim.status, interim.fields))

    @property
    def _takes_continue(self) -> bool:
        """Whether the client accepts a 100 that it does not wait for."""
        if self._expects_continue:
            return True
        settings, fields = self._config, self.head.fields
        return settings.continue_without_expect and takes_unasked_continue(fields)

    def _interim(self, status: int, fields: Fields) -> bytes:
        event = h11.InformationalResponse(
            status_code=status, headers=fields.to_wire(), reason=reason_phrase(status)
        )
        return self._parser.send(event)

    # The final response.

    @property
    def can_respond(self) -> bool:
        """Whether no part of a response was sent, and no send was cut in the middle."""
        return not self.responded and not self._cut_in_send

    async def respond(
        self,
        status: int,
        fields: Fields,
        body: bytes | StoredBody | AsyncIterable[bytes] = b"",
    ) -> None:
        """Send the final response.

        Bytes and stored content get their ``Content-Length``. An iterable is sent with the
        ``Content-Length`` in *fields*, which h11 enforces, or else chunked. The response to
        HEAD, or with a status that has no content, is sent without *body*.

        The first bytes of an iterable or of stored content are awaited before the head is
        sent. So a failure to read them can still be answered with an error.

        Raises :class:`trio.BrokenResourceError` if the peer is gone or does not read,
        any exception of the iterable, and :class:`~trioresume.errors.StorageError`.
        """
        fields = self._with_one_location(status, fields)
        bodiless = self.head.method == "HEAD" or not has_content(status)
        said = bodiless and "content-length" in fields
        if has_content(status) and not said and not isinstance(body, AsyncIterable):
            size = len(body) if isinstance(body, bytes) else body.length
            length = {"content-length": str(size)}
            fields = fields.without("content-length").plus(length)
        fields = self._edge.finish(self.head, fields.plus(self.dialect.fields))
        if bodiless:
            await self._send_at_once(self._start_response(status, fields))
        elif isinstance(body, bytes):
            await self._send_at_once(self._start_response(status, fields) + body)
        elif isinstance(body, StoredBody):
            begun, rest = await body.begin()
            await self._send_at_once(self._start_response(status, fields) + begun)
            del begun  # not kept in memory if the peer stops reading
            seconds = self._config.send_timeout
            await rest.send(self._transport.files, self._send, seconds)
        else:
            async with closing_iterator(body) as blocks:
                first = await anext(blocks, b"")
                await self._send(self._start_response(status, fields))
                await self._send_block(first)
                async for block in blocks:
                    await self._send_block(block)
            await self._send(self._parser.send(h11.EndOfMessage()))

    def _with_one_location(self, status: int, fields: Fields) -> Fields:
        """Give *fields* the ``Location`` that an interim response had, if one did (C19).

        libcurl since 8.17 ends a transfer with an error if two responses to one request
        have different ones. A redirect keeps its own, because its meaning depends on it.
        """
        told, own = self._told_location, fields.get("location")
        if told is None or own in (None, told) or 300 <= status < 400:
            return fields
        moved = fields.without("location").plus({"location": told})
        if "content-location" in fields:
            return moved
        return moved.plus({"content-location": own or ""})

    def _start_response(self, status: int, fields: Fields) -> bytes:
        if "date" not in fields:
            fields = fields.plus({"date": format_http_date(self._clock.date())})
        if not self._can_drain:
            self._keep_alive = False
        if not self._keep_alive:
            fields = fields.without("connection").plus({"connection": "close"})
        event = h11.Response(
            status_code=status, headers=fields.to_wire(), reason=reason_phrase(status)
        )
        head = self._parser.send(event)
        self.responded = True
        return head

    async def _send_block(self, block: bytes) -> None:
        # h11 copies nothing here: with a Content-Length it counts the block and returns it.
        event = h11.Data(data=block)
        for data in self._parser.send_with_data_passthrough(event) or ():
            await self._send(data)

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
            with trio.move_on_after(self._config.send_timeout) as scope:
                await self._transport.send_all(view[start : start + 256 * 1024])
            if scope.cancelled_caught:
                raise trio.BrokenResourceError("the peer does not read its response")
        self._cut_in_send = False

    async def respond_problem(self, error: PeerError) -> None:
        """Answer with the problem document of *error* (RFC 9457)."""
        if error.close:
            self._keep_alive = False
        error = self.dialect.problem(error, upload_limits(self._config))
        status, fields, body = problem_response(error)
        await self.respond(status, fields, body)

    def close_after(self) -> None:
        """Have the connection closed after this exchange."""
        self._keep_alive = False

    # The end.

    @property
    def _can_drain(self) -> bool:
        """Whether the unread content is little enough to read it and go on (R10).

        A client that still waits for its 100 may send the content or may not. Only closing
        the connection resolves that.
        """
        remaining = self.body.remaining
        return self.body.finished or (
            remaining is not None
            and remaining <= self._config.drain_size
            and not self._owes_continue
        )

    async def finish(self) -> bool:
        """Prepare the connection for the next request. Returns False if that is impossible.

        In that case this reads for a while what the peer still sends: a reset would destroy
        the response before the peer has read it (RFC 9112, section 9.6).
        """
        if self._keep_alive and self.body.finished:
            return True  # the usual case
        with trio.move_on_after(self._config.drain_timeout):
            try:
                if self._keep_alive:
                    return await self.body.discard(self._config.drain_size)
                if not self.body.finished or self._more_came():
                    await self._transport.send_eof()
                    await self._linger()
            except (ContentCut, PeerError, trio.BrokenResourceError):
                pass
        return False

    def _more_came(self) -> bool:
        """Whether a pipelined request is unread: closing would send a reset then, too."""
        return bool(self._transport.receive_nowait(self._memory.scratch))

    async def _linger(self) -> None:
        left = LINGER_SIZE
        while left > 0:
            await self._transport.wait_readable()
            count = self._transport.receive_nowait(self._memory.scratch)
            if count == 0:
                return
            left -= count or 0
