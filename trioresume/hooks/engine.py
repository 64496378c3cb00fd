"""The hooks of one server: which events it has, how they are built, who is asked.

The server knows this as :class:`trioresume.server.api.hooks.AttachedHooks`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.hooks.answers import HookAnswer
from trioresume.hooks.asking import Asking
from trioresume.hooks.dispatcher import Dispatcher
from trioresume.hooks.events import (
    BLOCKING,
    HookEvent,
    HookKind,
    UploadFacts,
    document,
)
from trioresume.hooks.operations import ToldOperation, ToldRegistry
from trioresume.hooks.progress import ProgressTeller
from trioresume.hooks.service import ToldService
from trioresume.store.port import EventRecord, RecordEvent

if TYPE_CHECKING:
    from trioresume.hooks.settings import Hooks
    from trioresume.hooks.transports.transport import HookTransport
    from trioresume.protocol.heads import Fields, RequestHead
    from trioresume.server.api.handler import Services
    from trioresume.store.port import Mutation

__all__ = ["HookEngine"]

logger = logging.getLogger("trioresume.hooks")


class HookEngine:
    """Builds events, asks questions, and delivers what the outbox has."""

    def __init__(
        self, hooks: Hooks, transport: HookTransport, services: Services
    ) -> None:
        self._hooks = hooks
        self._transport = transport
        self._clock = services.clock
        self._chunk_size = services.storage.store.chunk_size
        self._events = frozenset(map(HookKind, hooks.events))
        self._kept_fields = frozenset(transport.forwarded_fields)
        self._asking = Asking(hooks, transport, services.clock)
        self._dispatcher = Dispatcher(
            services.storage, services.clock, hooks, self._asking.deliver
        )
        self._part = services.part
        self._registry: ToldRegistry
        services.storage.add_observer(self._dispatcher.observe)

    # What takes the place of the server's own parts.

    def registry(self, *args: Any, **options: Any) -> ToldRegistry:
        self._registry = ToldRegistry(self, *args, **options)
        return self._registry

    def service(self, *args: Any, **options: Any) -> ToldService:
        return ToldService(self, *args, **options)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._transport.running():
            yield

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            if self._part.keeps:
                nursery.start_soon(self._dispatcher.run)
            else:
                nursery.start_soon(self._dispatcher.count)
            if self._part.serves and HookKind.POST_RECEIVE in self._events:
                teller = ProgressTeller(
                    self._registry.receiving,
                    self._tell_progress,
                    self._hooks.progress_interval,
                    self._chunk_size,
                    self._hooks.concurrency,
                )
                nursery.start_soon(teller.run)

    # Events.

    def asks(self, kind: HookKind) -> bool:
        """Whether the receivers are asked this question."""
        return kind in self._events

    def tells(self, kind: HookKind) -> bool:
        """Whether events of this kind are recorded."""
        return kind in self._events

    def recorded(
        self,
        kind: HookKind,
        operation: ToldOperation,
        *,
        whole: int | None = None,
        reason: str | None = None,
        storage: Mapping[str, object] | None = None,
    ) -> list[RecordEvent]:
        """Return what records an event of *operation*: nothing, if nobody wants it.

        *whole* is the length of the content, if it has just ended.
        """
        if kind not in self._events:
            return []
        name, date = _new_id(), self._clock.date()
        facts = _facts(operation, whole=whole, reason=reason, storage=storage)
        body = document(
            kind,
            name,
            date,
            facts,
            operation.head,
            stored=True,
            kept_fields=self._kept_fields,
        )
        event = EventRecord(
            id=name,
            operation=operation.id,
            kind=kind,
            recorded_at=self._clock.now(),
            dated=date,
            payload=body,
        )
        return [RecordEvent(event)]

    def check_backlog(self) -> None:
        """Raise :class:`PeerError` (503) if too many events wait to begin another upload."""
        if self._dispatcher.waiting >= self._hooks.max_waiting:
            raise PeerError(
                ProblemCode.SERVICE_UNAVAILABLE,
                "too many events wait for their receiver",
                fields=(("retry-after", "60"),),
                close=True,
            )

    def complain(self, kind: str, reason: object) -> None:
        """Log why an answer or an event was not what it should be."""
        logger.error("%s: %s", kind, reason)

    def release(self, operation: ToldOperation) -> None:
        """End a use of *operation*."""
        self._registry.release(operation)

    # Questions. Each raises :class:`PeerError` if there is no usable answer.

    async def ask_create(
        self,
        head: RequestHead,
        recorded: Fields,
        length: int | None,
        principal: str | None,
    ) -> HookAnswer:
        facts = UploadFacts(
            id="", length=length, offset=0, fields=recorded, principal=principal
        )
        return await self._ask(HookKind.PRE_CREATE, facts, head)

    async def ask_finish(self, operation: ToldOperation, length: int) -> HookAnswer:
        return await self._ask(
            HookKind.PRE_FINISH, _facts(operation, whole=length), operation.head
        )

    async def ask_terminate(self, operation: ToldOperation) -> HookAnswer:
        return await self._ask(
            HookKind.PRE_TERMINATE, _facts(operation), operation.head
        )

    async def _ask(
        self, kind: HookKind, facts: UploadFacts, head: RequestHead
    ) -> HookAnswer:
        assert kind in BLOCKING
        return await self._asking.ask(self._event(kind, facts, head))

    async def _tell_progress(self, operation: ToldOperation) -> HookAnswer:
        event = self._event(HookKind.POST_RECEIVE, _facts(operation), operation.head)
        return await self._asking.deliver(event)

    def _event(
        self, kind: HookKind, facts: UploadFacts, head: RequestHead
    ) -> HookEvent:
        name = _new_id()
        body = document(kind, name, self._clock.date(), facts, head, stored=False)
        return HookEvent(kind, name, body)

    def observe(self, mutations: Sequence[Mutation]) -> None:
        """Note what was committed."""
        self._dispatcher.observe(mutations)


def _new_id() -> str:
    return f"msg_{secrets.token_urlsafe(18)}"


def _facts(
    operation: ToldOperation,
    *,
    whole: int | None = None,
    reason: str | None = None,
    storage: Mapping[str, object] | None = None,
) -> UploadFacts:
    """Return what is known of *operation*; *whole* is the length of complete content."""
    record = operation.record
    return UploadFacts(
        id=operation.id,
        length=record.length if whole is None else whole,
        offset=operation.durable_offset if whole is None else whole,
        fields=record.fields,
        principal=record.principal,
        storage=storage,
        reason=reason,
    )
