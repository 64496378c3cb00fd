"""The part of an exchange that is the same for every carrier.

A carrier (HTTP/1.1, HTTP/2, ASGI) derives from :class:`BaseExchange` and adds the six methods
that put bytes on the wire. Everything that a request's answer has to obey stands here: which
interim responses go out, the one ``Location`` of an exchange, the fields that a browser or a
proxy needs, and the problem document for each kind of failure.

The numbered statements (R5, R8, C19 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from trioresume.errors import (
    PeerError,
    ProblemCode,
    StaleWriter,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UsageExceeded,
)
from trioresume.protocol.dialects.classify import early_dialect
from trioresume.protocol.dialects.seed.server import (
    parse_preferences,
    takes_unasked_continue,
)
from trioresume.protocol.fields import format_http_date
from trioresume.protocol.framing import expects_continue
from trioresume.protocol.heads import Fields, has_content
from trioresume.protocol.problem import problem_response
from trioresume.server.api.config import problem_page_of
from trioresume.server.api.handler import closing_iterator
from trioresume.server.http.exchange import ContentCut
from trioresume.server.http.stored_body import StoredBody
from trioresume.text import concealed

if TYPE_CHECKING:
    from trioresume.protocol.dialects import Interim, ServerDialect
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Principal
    from trioresume.server.http.exchange import Body, Tunnel, Watched
    from trioresume.server.http.front import Front, Guest
    from trioresume.server.http.stored_body import FileSender

__all__ = ["BaseExchange"]

logger = logging.getLogger("trioresume.connection")

NO_FIELDS = Fields()

RETRY_AFTER = 1
"""Seconds after which a client whose request a shutdown ended may come back."""


class BaseExchange(ABC):
    """A request whose head was read, and the rules for answering it.

    A carrier gives the *body*, and implements the methods at the end of this class.
    """

    __slots__ = (
        "_expects_continue",
        "_front",
        "_owes_continue",
        "_told_location",
        "body",
        "dialect",
        "head",
        "limits",
        "preferences",
        "sender",
        "status",
        "watched",
    )

    def __init__(self, head: RequestHead, body: Body, front: Front) -> None:
        self.head = head
        self.body = body
        self.status = 0
        """The status of the final response; 0 until the response begins."""
        self.watched: Watched | None = None
        """Notes how this request is answered, if the service is watched."""
        self.dialect: ServerDialect = early_dialect(head)
        """The dialect of the request, and so of its answers."""
        self.preferences = parse_preferences(head.fields)
        self.limits = front.upload_limits
        self._front = front
        # R9: remembered here, because a carrier may forget it with the first interim response.
        self._owes_continue = self._expects_continue = False
        self.sender: Principal  # set by the service, if it authenticates
        # The Location that an interim response gave (C19).
        self._told_location: str | None = None

    # The whole way of a request.

    async def answer(self, guest: Guest, proxy: str) -> None:
        """Have the service answer this request; answer with a problem if it fails.

        *guest* is the connection. *proxy* is the address of its peer if that is a trusted
        proxy, and "" if not: then the connection counts for the client that the proxy names.

        Raises only :class:`trio.BrokenResourceError`, if the peer is gone or the response
        failed after its start, and cancellation.
        """
        head = self.head
        if head.length != 0:
            await self._front.admission.starts.wait()
        try:
            if "expect" in head.fields:
                self._owes_continue = self._expects_continue = expects_continue(head)
            gateway = self._front.gateway
            if proxy:
                client = gateway.client_address(head, proxy)
                self._front.admission.count_as(guest, client)
            pages = gateway.cross_origin
            granted = None if pages is None else pages.preflight(head)
            if granted is None:
                await self._front.handle(self)
            else:
                await self.respond(204, granted)
        except ContentCut as exc:
            # A peer that ended its request wants no answer. A silent one might want it.
            self.close_after()
            if exc.timed_out and not self.status:
                await self.respond_problem(
                    PeerError(ProblemCode.REQUEST_TIMEOUT, close=True)
                )
        except PeerError as exc:
            await self._fail(exc)
        except StaleWriter:
            await self._fail(
                PeerError(
                    ProblemCode.SUPERSEDED,
                    "another process of the service has taken the upload over",
                    close=True,
                )
            )
        except UsageExceeded as exc:  # another process has just used up the quota
            await self._fail(PeerError(exc.problem, close=True))
        except StorageError as exc:
            logger.error("%s %s: %s", head.method, concealed(head.path), exc)
            await self._fail(_problem(exc))
        except trio.BrokenResourceError:
            raise
        except Exception:
            logger.exception("%s %s failed", head.method, concealed(head.path))
            await self._fail(PeerError(ProblemCode.INTERNAL_ERROR))

    async def _fail(self, error: PeerError) -> None:
        if self.status:
            # The length was announced: only a cut shows that the content is not whole.
            raise trio.BrokenResourceError("the response failed after its start")
        await self.respond_problem(error)

    async def say_unavailable(self) -> None:
        """Answer a request that a shutdown ended with 503; ``can_respond`` is true.

        The content that has arrived is kept, as after any cut. The client learns at once
        that it should come back, and does not wait for a dead connection. Raises
        :class:`trio.BrokenResourceError` if the peer is gone.
        """
        await self.respond_problem(
            PeerError(
                ProblemCode.SERVICE_UNAVAILABLE,
                "the service is shutting down",
                fields=(("retry-after", str(RETRY_AFTER)),),
                close=True,
            )
        )

    # The connection itself.

    @property
    def can_switch(self) -> bool:
        return False

    async def switch(self, fields: Fields) -> Tunnel:
        raise NotImplementedError("this carrier has no other protocol")

    async def until_gone(self) -> None:
        await trio.sleep_forever()

    # Interim responses. HTTP/1.0 never gets one (R7).

    @property
    def can_interim(self) -> bool:
        return not self.status and self.head.http_version != "1.0"

    async def send_continue(
        self, fields: Fields = NO_FIELDS, *, always: bool = False
    ) -> None:
        if always:
            allowed = self._front.config.interim_responses != "none"
            always = allowed and self._takes_continue
        if self.can_interim and (self._owes_continue or always):
            if self.watched is not None:
                self.watched.note_interim(fields)
            await self._send_interim(100, fields)
        self._owes_continue = False

    async def send_interim(self, interim: Interim) -> None:
        if self.can_interim and self._front.config.interim_responses != "none":
            if self.watched is not None:
                self.watched.note_interim(interim.fields)
            location = interim.fields.get("location")
            if location is not None:
                self._told_location = location
            await self._send_interim(interim.status, interim.fields)

    def offer_interim(self, interim: Interim) -> None:
        if interim.status == 100 and not self._takes_continue:
            return
        if self.can_interim and self._front.config.interim_responses == "all":
            self._offer_interim(interim.status, interim.fields)

    @property
    def _takes_continue(self) -> bool:
        """Whether the client accepts a 100 that it does not wait for."""
        return self._expects_continue or (
            self._front.config.continue_without_expect
            and takes_unasked_continue(self.head.fields)
        )

    # The final response.

    @property
    def can_respond(self) -> bool:
        """Whether no part of a response was sent."""
        return not self.status

    async def respond(
        self,
        status: int,
        fields: Fields,
        body: bytes | StoredBody | AsyncIterable[bytes] = b"",
    ) -> None:
        config = self._front.config
        bodiless = self.head.method == "HEAD" or not has_content(status)
        said = bodiless and "content-length" in fields
        if has_content(status) and not said and not isinstance(body, AsyncIterable):
            size = len(body) if isinstance(body, bytes) else body.length
            length = {"content-length": str(size)}
            fields = fields.without("content-length").plus(length)
        if status == HTTPStatus.NO_CONTENT:
            # It must have none (RFC 9110, section 8.6), whatever a target says.
            fields = fields.without("content-length")
        fields = self._final_fields(status, fields)
        if bodiless:
            await self._start(status, fields, b"", ends=True)
        elif isinstance(body, bytes):
            await self._start(status, fields, body, ends=True)
        elif isinstance(body, StoredBody):
            begun, rest = await body.begin()
            await self._start(status, fields, begun, ends=False)
            files = self._files
            send: Callable[[bytes], Awaitable[None]] = self._send
            if self.watched is not None:
                files, send = self.watched.counting(len(begun), files, send)
            del begun  # not kept in memory if the peer stops reading
            await rest.send(files, send, config.send_timeout)
            await self._end()
        else:
            if self.watched is not None:
                body = self.watched.counted(body)
            async with closing_iterator(body) as blocks:
                first = await anext(blocks, b"")
                await self._start(status, fields, b"", ends=False)
                await self._send_block(first)
                async for block in blocks:
                    await self._send_block(block)
            await self._end()

    def _final_fields(self, status: int, fields: Fields) -> Fields:
        if self._told_location is not None:
            fields = _with_one_location(status, fields, self._told_location)
        fields = fields.plus(self.dialect.fields)
        pages = self._front.gateway.cross_origin
        if pages is not None:
            fields = pages.marked(self.head, fields)
        if "date" not in fields:
            now = self._front.clock.date()
            fields = fields.plus({"date": format_http_date(int(now))})
        if self.watched is not None:
            fields = self.watched.finish_head(status, fields)
        return fields

    async def respond_problem(self, error: PeerError) -> None:
        """Answer with the problem document of *error* (RFC 9457)."""
        if error.close:
            self.close_after()
        if self.watched is not None:
            self.watched.problem = error.problem
        error = self.dialect.problem(error, self.limits)
        page = problem_page_of(self._front.config)
        status, fields, body = problem_response(error, page)
        await self.respond(status, fields, body)

    # What a carrier implements.

    @abstractmethod
    def close_after(self) -> None:
        """Accept no further request on a connection that has one request at a time."""

    @property
    @abstractmethod
    def _files(self) -> FileSender | None:
        """The sender of files over this connection; None if there is none."""

    @abstractmethod
    async def _send_interim(self, status: int, fields: Fields) -> None:
        """Send an interim response and wait until it is sent."""

    @abstractmethod
    def _offer_interim(self, status: int, fields: Fields) -> None:
        """Send an interim response if that needs no wait; else drop it."""

    @abstractmethod
    async def _start(
        self, status: int, fields: Fields, content: bytes, *, ends: bool
    ) -> None:
        """Set ``status``; send the final head and the first *content*.

        *ends* says that this is the whole response. If not, ``_send`` or ``_send_block``
        send the rest, and ``_end`` ends it. *content* is empty if ``_send_block`` follows.
        """

    @abstractmethod
    async def _send(self, data: bytes) -> None:
        """Send content of the length that the head states."""

    @abstractmethod
    async def _send_block(self, block: bytes) -> None:
        """Send content whose length may be unknown; refuse more than the head states."""

    @abstractmethod
    async def _end(self) -> None:
        """End the response; refuse to if blocks were less than the head states."""


def _with_one_location(status: int, fields: Fields, told: str) -> Fields:
    """Give *fields* the ``Location`` *told* that an interim response had (C19).

    libcurl since 8.17 ends a transfer with an error if two responses to one request have
    different ones. A redirect keeps its own, because its meaning depends on it.
    """
    own = fields.get("location")
    if own in (None, told) or 300 <= status < 400:
        return fields
    moved = fields.without("location").plus({"location": told})
    if "content-location" in fields:
        return moved
    return moved.plus({"content-location": own or ""})


def _problem(error: StorageError) -> PeerError:
    """Return what the client is told of an error of the storage: no more than what to do."""
    if isinstance(error, StorageUnavailable):
        return PeerError(
            ProblemCode.SERVICE_UNAVAILABLE,
            "the storage cannot be reached; nothing that was announced is lost",
            fields=(("retry-after", str(RETRY_AFTER)),),
        )
    full = isinstance(error, StorageFull)
    return PeerError(
        ProblemCode.INSUFFICIENT_STORAGE if full else ProblemCode.INTERNAL_ERROR
    )
