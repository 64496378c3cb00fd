"""An HTTP/1.1 connection: read a head, answer the request, and only then read the next head.

Request N+1 starts after the final response of N (R33). The
bytes that a pipelining client sent ahead wait in the connection's buffer. Only cancellation
leaves a connection as an exception: a failing request, a dead peer or a bug hurts this
connection alone.

h11 frames the content whose length is unknown, and counts the content that a target makes block
by block. Most responses need neither, so their heads are written without it: see
:func:`~trioresume.protocol.framing.response_head`. An exchange that needs h11 makes an h11
connection of its own.

The numbered statements (R10, R33 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import h11
import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.dialects.tus import server as tus
from trioresume.protocol.fields import split_list
from trioresume.protocol.framing import (
    find_head_end,
    head_start,
    parse_head,
    response_head,
)
from trioresume.protocol.heads import Fields, RequestHead, reason_phrase
from trioresume.server.http.base_exchange import BaseExchange
from trioresume.server.http.exchange import ContentCut
from trioresume.server.http.front import address_of
from trioresume.server.http.http1.body import Http1Body

if TYPE_CHECKING:
    from trioresume.server.http.exchange import Tunnel
    from trioresume.server.http.front import Front
    from trioresume.server.http.stored_body import FileSender
    from trioresume.server.http.transport import Transport

__all__ = ["Http1Connection", "Http1Exchange"]

logger = logging.getLogger("trioresume.connection")

LAST_WORDS_SECONDS = 1.0
"""Seconds after the grace period in which a 503 may be sent and read."""

HEAD_READ = 16 * 1024
"""Bytes read at once while a head is expected: little content comes with them."""


class Http1Connection:
    """Serves one transport until it ends."""

    carrier: ClassVar[str] = "http/1.1"

    def __init__(self, transport: Transport, front: Front) -> None:
        self._is_proxy = front.gateway.is_proxy(transport.peer)
        self.address = "" if self._is_proxy else address_of(transport.peer)
        """The address this connection counts for, see :class:`Admission`."""
        self._transport = transport
        self._front = front
        self._leftover = bytearray()
        self.preface: bytes | None = None
        """What came, if the client turned out to speak HTTP/2. The transport is open then."""
        self.stopping = False
        """Whether the server shuts down, so that no further request is read."""
        self._deadline = float("inf")
        """The end of a shutdown's grace period, on trio's clock."""
        self._answering: Http1Exchange | None = None
        self._idle_scope: trio.CancelScope | None = None

    async def run(self) -> None:
        """Serve until the peer or the server ends the connection; then close it.

        A client may speak HTTP/2 at once, if the settings allow that. Then this returns, and
        :attr:`preface` is set.
        """
        clean = False
        try:
            while (exchange := await self._next_exchange()) is not None:
                self._answering = exchange
                if self.stopping:
                    exchange.close_after()
                proxy = self._transport.peer if self._is_proxy else ""
                await self._front.answer(exchange, self, proxy)
                if not await exchange.finish() or self.stopping:
                    break
                if self._is_proxy:
                    self._front.admission.count_as(self, "")
                # Otherwise the exchange would stay in memory until the next request comes.
                del exchange
                self._answering = None
            clean = True
        except trio.BrokenResourceError:
            logger.debug("%s went away", self._transport.peer)
        except Exception:
            logger.exception("the connection of %s failed", self._transport.peer)
        except BaseException:
            # Cancelled, at the end of the grace period or at once; perhaps in a group.
            if trio.current_time() >= self._deadline and self._answering is not None:
                with trio.move_on_after(LAST_WORDS_SECONDS, shield=True):
                    await self._say_unavailable(self._answering)
            raise
        finally:
            if self.preface is None:
                await self._transport.aclose(clean=clean)

    async def _say_unavailable(self, exchange: Http1Exchange) -> None:
        if not exchange.can_respond:
            return
        try:
            await exchange.say_unavailable()
            await exchange.finish()
        except trio.BrokenResourceError:
            logger.debug("%s went away", self._transport.peer)

    async def turn_away(self, error: PeerError) -> None:
        """Answer with *error*, whatever the request will be; then close."""
        clean = False
        try:
            await self._refuse(error)
            clean = True
        except trio.BrokenResourceError:
            logger.debug("%s went away", self._transport.peer)
        finally:
            await self._transport.aclose(clean=clean)

    def dismiss(self) -> None:
        """Close this connection if it is idle: another one needs its place."""
        if self._idle_scope is not None:
            self._idle_scope.cancel()

    def stop(self, deadline: float) -> None:
        """Read no further request. The running one may take until *deadline*.

        A cancellation after *deadline* makes :meth:`run` answer 503, unless the response has
        begun.
        """
        self.stopping = True
        self._deadline = deadline
        self.dismiss()

    async def _next_exchange(self) -> Http1Exchange | None:
        """Return the next request, to be answered; None if no request will come."""
        # Allocate nothing before a request comes: thousands of connections may be idle.
        if self._leftover:
            # A checkpoint, because a peer may send requests without end, all answered at once.
            await trio.lowlevel.checkpoint()
        elif not await self._wait_for_request():
            return None
        raw: bytes | None = None
        try:
            raw = await self._read_head()
            if raw is None:
                return None
            if raw == _PREFACE and self._front.config.h2c and self._answering is None:
                self.preface = raw + bytes(self._leftover)
                return None
            head = self._parse(raw)
        except PeerError as exc:
            if raw is None and self._leftover.startswith(_TLS):
                # Its own message will be of a wrong version, and help nobody.
                logger.info(
                    "%s speaks TLS, and this port does not", self._transport.peer
                )
            await self._refuse(exc, bytes(self._leftover) if raw is None else raw)
            return None
        return Http1Exchange(head, raw, self._transport, self._leftover, self._front)

    async def _refuse(self, error: PeerError, came: bytes = b"") -> None:
        """Answer with *error* and close, if no request could be read.

        *came* is the received part of the request's head.
        """
        refused = Http1Exchange(
            _NO_HEAD, b"", self._transport, self._leftover, self._front
        )
        if tus.shows_mark(came):
            refused.dialect = tus.TUS  # D1 (docs/supported-protocols.md)
        refused.close_after()
        await self._front.refuse(refused, error)
        await refused.finish()

    # Reading a head.

    async def _read_head(self) -> bytes | None:
        """Return the next request's head, or None if none will come."""
        if not self._leftover and self._receive() is False:
            return None
        end = find_head_end(self._leftover, 0, self._front.head_limits)
        if end < 0:
            # This is rare. Mostly the whole head is there at once and needs no deadline.
            with trio.move_on_after(self._front.config.header_timeout) as scope:
                found = await self._find_end(len(self._leftover))
            if scope.cancelled_caught:
                raise PeerError(
                    ProblemCode.REQUEST_TIMEOUT, "the head took too long", close=True
                )
            if found is None:
                return None
            end = found
        raw = bytes(self._leftover[head_start(self._leftover) : end])
        del self._leftover[:end]
        return raw

    async def _wait_for_request(self) -> bool:
        if self.stopping:
            return False
        self._front.admission.note_idle(self)
        with trio.move_on_after(
            self._front.config.keep_alive_timeout
        ) as self._idle_scope:
            await self._transport.wait_readable()
        idle, self._idle_scope = self._idle_scope, None
        self._front.admission.note_busy(self)
        # Not cancelled_caught: if a request comes at the moment of the dismissal, another
        # connection has taken this one's place already.
        return not idle.cancel_called

    async def _find_end(self, searched: int) -> int | None:
        """Receive until the head is complete; return its end.

        Returns None if the stream ended before any byte of a head. The first *searched*
        bytes of the buffer are known not to contain the end.
        """
        end = -1
        while end < 0:
            while (came := self._receive()) is None:
                await self._transport.wait_readable()
            if not came:
                if not self._leftover:
                    return None
                raise PeerError(
                    ProblemCode.MALFORMED_REQUEST, "the head is incomplete", close=True
                )
            end = find_head_end(self._leftover, searched, self._front.head_limits)
            searched = len(self._leftover)
        return end

    def _receive(self) -> bool | None:
        """Receive what is there now. Returns None if nothing is, False at the stream's end."""
        scratch = self._front.memory.scratch[:HEAD_READ]
        count = self._transport.receive_nowait(scratch)
        if count is None:
            return None
        self._leftover += scratch[:count]
        return count > 0

    def _parse(self, raw: bytes) -> RequestHead:
        head = parse_head(raw, self._front.head_limits, peer=self._transport.peer)
        if self._transport.tls is not None:
            head = replace(head, tls=self._transport.tls)
        return self._front.gateway.identify(head)


_TLS = b"\x16\x03"
"""How a handshake begins: the record's kind, and a version (RFC 8446, section 5.1)."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
"""The part of HTTP/2's preface that looks like a head (RFC 9113, section 3.4)."""

_NO_HEAD = RequestHead(
    method="", target="", fields=Fields(), http_version="1.0", length=None
)
"""Stands for a request whose head could not be read. Nothing after it can be read, either."""


LINGER_SIZE = 64 * 1024 * 1024
"""The most bytes that are read and dropped so that a sending peer can read its answer (R10)."""


TUNNEL_READ = 64 * 1024
MOST_AHEAD = 16 * 1024
"""Bytes of later requests that are read while a request is answered."""


class Http1Tunnel:
    """The connection after a 101. *leftover* are bytes that came early."""

    def __init__(
        self, transport: Transport, leftover: bytearray, scratch: memoryview
    ) -> None:
        self._transport = transport
        self._leftover = leftover
        self._scratch = scratch[:TUNNEL_READ]

    async def receive_some(self) -> bytes:
        if self._leftover:
            early = bytes(self._leftover)
            self._leftover.clear()
            return early
        while True:
            await self._transport.wait_readable()
            count = self._transport.receive_nowait(self._scratch)
            if count is not None:
                return bytes(self._scratch[:count])

    async def send_all(self, data: bytes) -> None:
        await self._transport.send_all(data)

    async def send_eof(self) -> None:
        await self._transport.send_eof()


class Http1Exchange(BaseExchange):
    """A request that was read from *transport*, and the means to answer it.

    *raw* is the request's head, or empty if none could be read. *leftover* are the bytes that
    came after it.
    """

    __slots__ = (
        "_body",
        "_cut_in_send",
        "_framed",
        "_h11",
        "_keep_alive",
        "_leftover",
        "_raw",
        "_switched",
        "_transport",
    )

    def __init__(
        self,
        head: RequestHead,
        raw: bytes,
        transport: Transport,
        leftover: bytearray,
        front: Front,
    ) -> None:
        body = Http1Body(head, transport, leftover, front.memory, front.config)
        super().__init__(head, body, front)
        self._body = body
        self._leftover = leftover
        self._switched = False
        self._transport = transport
        self._raw = raw
        self._h11: h11.Connection | None = None
        self._cut_in_send = False
        self._framed = False
        """Whether h11 frames or counts the response's content."""
        connection = split_list((head.fields.get("connection") or "").lower())
        self._keep_alive = head.http_version == "1.1" and "close" not in connection

    def close_after(self) -> None:
        self._keep_alive = False

    @property
    def _framer(self) -> h11.Connection:
        """The h11 connection, made on demand. It must know what it answers."""
        if self._h11 is None:
            self._h11 = h11.Connection(h11.SERVER)
            if self._raw:
                self._h11.receive_data(self._raw)
                self._h11.next_event()
        return self._h11

    # Responses. h11 does not prevent interim responses to HTTP/1.0; the base class does.

    async def _send_interim(self, status: int, fields: Fields) -> None:
        await self._send_at_once(self._interim(status, fields))

    def _offer_interim(self, status: int, fields: Fields) -> None:
        self._transport.send_nowait(self._interim(status, fields))

    def _interim(self, status: int, fields: Fields) -> bytes:
        written = response_head(status, fields)
        if written is not None:
            return written
        event = h11.InformationalResponse(
            status_code=status, headers=fields.to_wire(), reason=reason_phrase(status)
        )
        return self._framer.send(event)

    @property
    def can_respond(self) -> bool:
        """Whether no part of a response was sent, and no send was cut in the middle."""
        return not self.status and not self._cut_in_send

    @property
    def _files(self) -> FileSender | None:
        return self._transport.files

    async def _start(
        self, status: int, fields: Fields, content: bytes, *, ends: bool
    ) -> None:
        # Little unread content can be read, and the connection goes on (R10). A client that
        # still waits for its 100 may send the content or may not: only closing resolves that.
        unread = self._body.remaining
        if unread is None or (
            unread and (unread > self._front.config.drain_size or self._owes_continue)
        ):
            self._keep_alive = False
        if not self._keep_alive:
            fields = fields.without("connection").plus({"connection": "close"})
        # With content, no block follows that h11 would have to frame or count.
        head = response_head(status, fields) if ends or content else None
        if head is None:
            event = h11.Response(
                status_code=status,
                headers=fields.to_wire(),
                reason=reason_phrase(status),
            )
            head = self._framer.send(event)
        self.status = status
        await self._send_at_once(head + content)

    async def _send_block(self, block: bytes) -> None:
        self._framed = True
        # h11 copies nothing here: with a Content-Length it counts the block and returns it.
        event = h11.Data(data=block)
        for data in self._framer.send_with_data_passthrough(event) or ():
            await self._send(data)

    async def _end(self) -> None:
        if self._framed:
            await self._send(self._framer.send(h11.EndOfMessage()))

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

    # The connection itself.

    @property
    def can_switch(self) -> bool:
        head = self.head
        return head.http_version == "1.1" and not head.has_content

    async def switch(self, fields: Fields) -> Tunnel:
        event = h11.InformationalResponse(
            status_code=101, headers=fields.to_wire(), reason=reason_phrase(101)
        )
        data = self._framer.send(event)
        self.status, self._switched = 101, True
        await self._send_at_once(data)
        return Http1Tunnel(self._transport, self._leftover, self._front.memory.scratch)

    async def until_gone(self) -> None:
        # What comes meanwhile is the next request, which waits for its turn.
        scratch = self._front.memory.scratch[:TUNNEL_READ]
        while len(self._leftover) < MOST_AHEAD:
            await self._transport.wait_readable()
            count = self._transport.receive_nowait(scratch)
            if count == 0:
                return
            self._leftover += scratch[: count or 0]
        await trio.sleep_forever()

    # The end.

    async def finish(self) -> bool:
        """Prepare the connection for the next request. Returns False if that is impossible.

        In that case this reads for a while what the peer still sends: a reset would destroy
        the response before the peer has read it (RFC 9112, section 9.6).
        """
        if self._switched:
            return False
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
