"""One request and its answer on a connection: interims, the response, the rest.

h11 writes the heads and guards the order of events; content of known length is sent
past it, since there is nothing to frame. Each exchange has an h11 connection of its
own, because a body that h11 never saw cannot bring it to its next cycle.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

import h11
import trio

from trioresume.errors import PeerError
from trioresume.protocol.continuing import takes_unasked_continue
from trioresume.protocol.dialects import UNION, tus
from trioresume.protocol.fields import format_http_date, split_list
from trioresume.protocol.framing import expects_continue
from trioresume.protocol.heads import Fields
from trioresume.protocol.message import has_content, reason_phrase
from trioresume.protocol.problem import problem_response
from trioresume.server.config import upload_limits
from trioresume.server.messages import closing_iterator
from trioresume.server.receive import BodyReceiver, ContentCut
from trioresume.server.sending import StoredBody

if TYPE_CHECKING:
    from trioresume.protocol.clock import ServiceClock
    from trioresume.protocol.dialects import Interim
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.config import Config
    from trioresume.server.edge import Edge
    from trioresume.server.memory import ReceiveMemory
    from trioresume.server.transport import Transport

__all__ = ["Exchange"]

logger = logging.getLogger("trioresume.connection")

NO_FIELDS = Fields()

LINGER_SIZE = 64 * 1024 * 1024
"""Most bytes read and dropped so that a peer still sending can read its answer (R10)."""


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
        """Whether the final response was begun."""
        # D1: also what is refused before anything is looked at is said in tus.
        self.dialect = tus.recognise(head, on_upload=True) or UNION
        """What the request is written in, and its answers are to be."""
        self._transport = transport
        self._memory = memory
        self._parser = parser
        self._edge = edge
        self._config = config
        self._clock = clock
        self._cut_in_send = False
        # R9: remembered here; h11 forgets it with the first interim response.
        self._owes_continue = self._expects_continue = False
        # What an interim response gave as Location (C19).
        self._told_location: str | None = None
        connection = split_list((head.fields.get("connection") or "").lower())
        self._keep_alive = head.http_version == "1.1" and "close" not in connection

    def read_expectation(self) -> None:
        """Take note of an owed 100. Raises :class:`PeerError` 417 for others (R8)."""
        self._owes_continue = self._expects_continue = expects_continue(self.head)

    # Interim responses. Never to HTTP/1.0 (R7), which h11 does not prevent.

    @property
    def can_interim(self) -> bool:
        return self.head.http_version == "1.1" and not self.responded

    async def send_continue(
        self, fields: Fields = NO_FIELDS, *, always: bool = False
    ) -> None:
        """The 100 that the client waits for; *always*: also if it does not wait (R5)."""
        if always:
            allowed = self._config.interim_responses != "none"
            always = allowed and self._takes_continue
        if self.can_interim and (self._owes_continue or always):
            await self._send_at_once(self._interim(100, fields))
        self._owes_continue = False

    async def send_interim(self, interim: Interim) -> None:
        """Send an interim response that the client is to have before anything else."""
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
        """Whether the client can be sent a 100 that it does not wait for."""
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
        """Whether no part of a response was sent, and nothing was cut within a send."""
        return not self.responded and not self._cut_in_send

    async def respond(
        self,
        status: int,
        fields: Fields,
        body: bytes | StoredBody | AsyncIterable[bytes] = b"",
    ) -> None:
        """Send the final response.

        Bytes and stored content get their ``Content-Length``. An iterable has the one
        that is in *fields*, which h11 holds it to, or is chunked. To HEAD, and with a
        status that has no content, none is sent whatever *body* is.

        The first bytes of an iterable and of stored content are awaited before the head
        is sent: what cannot be read can still be answered with an error.

        Raises :class:`trio.BrokenResourceError` if the peer is gone or reads nothing,
        what the iterable raises, and :class:`~trioresume.errors.StorageError`.
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
            del begun  # a peer that reads no further must not hold it
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
        """C19: *fields* with the ``Location`` that an interim response gave, if one did.

        libcurl since 8.17 ends a transfer with an error when two responses to one request
        have different ones. A redirect keeps its own: its meaning depends on it.
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
        # Not copied: with a Content-Length h11 only counts it, hands it back.
        event = h11.Data(data=block)
        for data in self._parser.send_with_data_passthrough(event) or ():
            await self._send(data)

    async def _send_at_once(self, data: bytes) -> None:
        """As :meth:`_send`, but mostly neither a checkpoint nor a deadline is needed."""
        sent = self._transport.send_some_nowait(data) or 0
        if sent < len(data):
            await self._send(memoryview(data)[sent:])

    async def _send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self._cut_in_send = True  # and so it stays, if it is cancelled
        # In pieces, so that the deadline is about progress and not about size.
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
        """Close the connection once this exchange is over."""
        self._keep_alive = False

    # The end.

    @property
    def _can_drain(self) -> bool:
        """Whether content left unread is little enough to read it and go on (R10).

        A client that still waits for its 100 may send the content or not: only closing
        tells the one from the other.
        """
        remaining = self.body.remaining
        return self.body.finished or (
            remaining is not None
            and remaining <= self._config.drain_size
            and not self._owes_continue
        )

    async def finish(self) -> bool:
        """Leave the connection ready for the next request; whether it is.

        If it is not, what the peer still sends is read for a while: a reset would
        destroy the response before the peer has read it (RFC 9112, section 9.6).
        """
        if self._keep_alive and self.body.finished:
            return True  # as it mostly is: nothing to wait for
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
        """Whether a pipelined request waits unread: to close on it is a reset, too."""
        return bool(self._transport.receive_nowait(self._memory.scratch))

    async def _linger(self) -> None:
        left = LINGER_SIZE
        while left > 0:
            await self._transport.wait_readable()
            count = self._transport.receive_nowait(self._memory.scratch)
            if count == 0:
                return
            left -= count or 0
