"""Where a request goes: who sent it, to an operation's resource or to the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.message import end_to_end_fields
from trioresume.protocol.preferences import ResumeMode, parse_preferences
from trioresume.server.config import Principal
from trioresume.server.locations import locate, operation_fields
from trioresume.server.messages import (
    Progress,
    RecordedWith,
    Representation,
    Request,
    RequestBody,
    Response,
)
from trioresume.server.representation import Served, serve_bytes
from trioresume.server.resources import Resources, send_recorded
from trioresume.server.uploads import Acknowledger, receive_content
from trioresume.store.port import Content

if TYPE_CHECKING:
    from trioresume.protocol.preferences import Preferences
    from trioresume.server.config import Config
    from trioresume.server.exchange import Exchange
    from trioresume.server.operation import Operation
    from trioresume.server.operations import Operations

__all__ = ["Service"]

# Safe methods (RFC 9110, section 9.2.1) change nothing: nothing of them need survive.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Service:
    """Answers every request of the server."""

    def __init__(
        self, operations: Operations, config: Config, background: trio.Nursery
    ) -> None:
        self._operations = operations
        self._storage = operations.storage
        self._target = operations.target
        self._config = config
        self._acknowledger = Acknowledger(background, config.acknowledge_interval)
        self._resources = Resources(operations, config, self._acknowledger)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Raises what the connection turns into an answer."""
        principal = await self._authenticate(exchange)
        path = exchange.head.path
        if path.startswith(self._config.operation_path):
            place = locate(self._config, path)
            await self._resources.handle(exchange, principal, place)
        else:
            await self._handle_target(exchange, principal)

    async def _authenticate(self, exchange: Exchange) -> str | None:
        """Who sent the request, before anything else is done for it (R10, R35)."""
        if self._config.authenticate is None:
            return None
        with trio.move_on_after(self._config.header_timeout) as scope:
            verdict = await self._config.authenticate(exchange.head)
        if scope.cancelled_caught:
            raise PeerError(
                ProblemCode.SERVICE_UNAVAILABLE, "who you are took too long"
            )
        if isinstance(verdict, Principal):
            return verdict.name
        problem = {
            401: ProblemCode.UNAUTHORIZED,
            403: ProblemCode.FORBIDDEN,
            429: ProblemCode.TOO_MANY_REQUESTS,
            503: ProblemCode.SERVICE_UNAVAILABLE,
        }[verdict.status]
        raise PeerError(problem, verdict.detail, fields=tuple(verdict.headers))

    async def _handle_target(self, exchange: Exchange, principal: str | None) -> None:
        head = exchange.head
        limit = self._config.max_upload_size
        if limit is not None and head.length is not None and head.length > limit:
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE, f"at most {limit} bytes are taken"
            )
        early = await self._target.admit(head, principal)
        preferences = parse_preferences(head.fields)
        if early is not None:
            await self._send(exchange, early)
        elif (
            preferences.resume is None and head.method in _SAFE and not head.has_content
        ):
            await self._handle_safe(exchange, principal)
        else:
            await self._handle_operation(exchange, principal, preferences)

    async def _handle_safe(self, exchange: Exchange, principal: str | None) -> None:
        """A safe request without content: nothing to store, nothing to record."""
        request = Request(
            head=exchange.head,
            body=RequestBody(Content(0, inline=b""), self._storage),
            principal=principal,
            on_progress=_ignore_progress,
        )
        answer = await self._target.respond(request)
        if isinstance(answer, RecordedWith):
            await self._storage.commit(*answer.mutations)
            answer = answer.response
        await self._send(exchange, answer)

    async def _send(
        self, exchange: Exchange, answer: Response | Representation
    ) -> None:
        if isinstance(answer, Response):
            fields = end_to_end_fields(answer.fields)
            await exchange.respond(answer.status, fields, answer.body)
            return
        reader = await self._storage.run(
            self._storage.store.open_reader, answer.content
        )
        served = Served(answer.fields, reader, answer.etag, answer.last_modified)
        await serve_bytes(
            exchange, self._storage, served, max_ranges=self._config.max_ranges
        )

    async def _handle_operation(
        self, exchange: Exchange, principal: str | None, preferences: Preferences
    ) -> None:
        head, resume = exchange.head, preferences.resume
        async with self._operations.create(
            head,
            principal,
            offered=resume is not None,
            keep_incomplete=resume is ResumeMode.SAVE_INCOMPLETE,
        ) as operation:
            if resume is None:
                await exchange.send_continue()
            else:
                locations = operation_fields(
                    self._config, operation.id, head.has_content
                )
                await exchange.send_continue(locations, always=True)
            await self._receive(exchange, operation, preferences)
            await send_recorded(exchange, self._storage, await operation.outcome())

    async def _receive(
        self, exchange: Exchange, operation: Operation, preferences: Preferences
    ) -> None:
        try:
            await receive_content(
                exchange, operation, preferences, self._acknowledger, self._config
            )
        except BaseException as exc:
            # Also when cancelled: what becomes of it is decided in the background.
            too_large = (
                isinstance(exc, PeerError)
                and exc.problem is ProblemCode.CONTENT_TOO_LARGE
            )
            ending = operation.cancel if too_large else operation.cut
            self._operations.start(operation, ending)
            raise


def _ignore_progress(progress: Progress) -> None:
    """Nobody can ask how far a request is that has no resources."""
