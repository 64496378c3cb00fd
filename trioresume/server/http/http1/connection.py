"""An HTTP/1.1 connection: read a head, answer the request, and only then read the next head.

Request N+1 starts after the final response of N (R33 in docs/supported-protocols.md). The
bytes that a pipelining client sent ahead wait in the connection's buffer. Only cancellation
leaves a connection as an exception: a failing request, a dead peer or a bug hurts this
connection alone.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import h11
import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.dialects.tus import server as tus
from trioresume.protocol.framing import (
    find_head_end,
    head_start,
    parse_head,
)
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.server.http.connection_limits import address_of
from trioresume.server.http.http1.exchange import Http1Exchange

if TYPE_CHECKING:
    from trioresume.server.http.front import Front
    from trioresume.server.http.transport import Transport

__all__ = ["Http1Connection"]

logger = logging.getLogger("trioresume.connection")

LAST_WORDS_SECONDS = 1.0
"""Seconds after the grace period in which a 503 may be sent and read."""

HEAD_READ = 16 * 1024
"""Bytes read at once while a head is expected: little content comes with them."""


class Http1Connection:
    """Serves one transport until it ends."""

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
                await exchange.answer(self, proxy)
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
        parser = h11.Connection(
            h11.SERVER, max_incomplete_event_size=self._front.config.max_header_size
        )
        raw: bytes | None = None
        try:
            raw = await self._read_head()
            if raw is None:
                return None
            if raw == _PREFACE and self._front.config.h2c and self._answering is None:
                self.preface = raw + bytes(self._leftover)
                return None
            head = self._parse(parser, raw)
        except PeerError as exc:
            await self._refuse(exc, bytes(self._leftover) if raw is None else raw)
            return None
        return self._exchange(head, parser)

    async def _refuse(self, error: PeerError, came: bytes = b"") -> None:
        """Answer with *error* and close, if no request could be read.

        *came* is the received part of the request's head.
        """
        refused = self._exchange(_NO_HEAD, h11.Connection(h11.SERVER))
        if tus.shows_mark(came):
            refused.dialect = tus.TUS  # D1 (docs/supported-protocols.md)
        refused.close_after()
        await refused.respond_problem(error)
        await refused.finish()

    def _exchange(self, head: RequestHead, parser: h11.Connection) -> Http1Exchange:
        return Http1Exchange(head, self._transport, parser, self._leftover, self._front)

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

    def _parse(self, parser: h11.Connection, raw: bytes) -> RequestHead:
        head = parse_head(raw, self._front.head_limits, peer=self._transport.peer)
        parser.receive_data(raw)
        try:
            parser.next_event()
        except h11.RemoteProtocolError as exc:
            raise PeerError(
                ProblemCode.NOT_IMPLEMENTED
                if exc.error_status_hint == 501
                else ProblemCode.MALFORMED_REQUEST,
                "the head is malformed",
                close=True,
            ) from exc
        if self._transport.tls is not None:
            head = replace(head, tls=self._transport.tls)
        return self._front.gateway.identify(head)


_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
"""The part of HTTP/2's preface that looks like a head (RFC 9113, section 3.4)."""

_NO_HEAD = RequestHead(
    method="", target="", fields=Fields(), http_version="1.0", length=None
)
"""Stands for a request whose head could not be read. Nothing after it can be read, either."""
