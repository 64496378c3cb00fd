"""The routes of a server with hooks: the questions before an upload begins or is cancelled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trioresume.errors import PeerError, ProblemCode
from trioresume.hooks.answers import refusal
from trioresume.hooks.events import (
    LIFETIME_KEY,
    HookKind,
    is_upload,
    metadata_from,
    with_metadata,
)
from trioresume.hooks.operations import ToldCreation, ToldOperation
from trioresume.protocol.filenames import name_fault
from trioresume.protocol.operation import OperationState
from trioresume.server.api.handler import NamingTarget
from trioresume.server.routes.operation_resources import Resources
from trioresume.server.routes.router import Service

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trioresume.hooks.answers import FileChange
    from trioresume.hooks.engine import HookEngine
    from trioresume.protocol.dialects import Creation
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.routes.passing import PassingTarget
    from trioresume.server.uploads.operation import Operation
    from trioresume.store.port import Content

__all__ = ["ToldResources", "ToldService"]


class ToldService(Service):
    """Asks ``pre-create`` before an upload begins, once its sender and target are known."""

    def __init__(self, hooks: HookEngine, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hooks = hooks
        target = self._operations.target
        self._naming = target if isinstance(target, NamingTarget) else None
        self._resources = ToldResources(
            hooks, self._operations, self._config, self._interim_sender
        )

    async def _handle_target(
        self, exchange: Exchange, principal: str | None
    ) -> Creation | None:
        creation = await super()._handle_target(exchange, principal)
        if creation is None or not is_upload(exchange.head.method):
            return creation
        return await self._told(exchange, principal, creation)

    async def _handle_join(
        self,
        exchange: Exchange,
        principal: str | None,
        creation: Creation,
        parts: Sequence[Content],
    ) -> None:
        creation = await self._told(exchange, principal, creation)
        await super()._handle_join(exchange, principal, creation, parts)

    def _passes(
        self, target: PassingTarget, exchange: Exchange, creation: Creation
    ) -> bool:
        # An upload that streams through would leave no trace of which hooks could be told.
        if is_upload(exchange.head.method):
            return False
        return super()._passes(target, exchange, creation)

    async def _told(
        self, exchange: Exchange, principal: str | None, creation: Creation
    ) -> Creation:
        """Ask ``pre-create``; return the upload as the receiver wants it.

        Raises :class:`PeerError` with a refusal.
        """
        head = exchange.head
        recorded = head.fields if creation.fields is None else creation.fields
        metadata = metadata_from(recorded)
        if LIFETIME_KEY in metadata:  # only a receiver may set it
            del metadata[LIFETIME_KEY]
            recorded = with_metadata(recorded, metadata)
            creation = replace(creation, fields=recorded)
        if not self._hooks.asks(HookKind.PRE_CREATE):
            return creation
        answer = await self._hooks.ask_create(
            head, recorded, creation.length, principal
        )
        if answer.rejects:
            raise refusal(ProblemCode.UPLOAD_REJECTED, answer.response)
        return await self._changed(head, principal, creation, answer.change)

    async def _changed(
        self,
        head: RequestHead,
        principal: str | None,
        creation: Creation,
        change: FileChange,
    ) -> Creation:
        recorded = head.fields if creation.fields is None else creation.fields
        if change.metadata is not None or change.lifetime is not None:
            metadata = dict(
                metadata_from(recorded) if change.metadata is None else change.metadata
            )
            metadata.pop(LIFETIME_KEY, None)
            if change.lifetime is not None:
                metadata[LIFETIME_KEY] = f"{change.lifetime:g}"
            recorded = with_metadata(recorded, metadata)
            creation = replace(creation, fields=recorded)
        if change.name is None:
            return creation
        fault = name_fault(change.name)
        if change.name in (".", "..") or "/" in change.name or "\\" in change.name:
            fault = "the name is not one segment of a path"
        if fault is not None:
            self._hooks.complain("pre-create", fault)
            raise PeerError(ProblemCode.HOOK_FAILED, close=True)
        begun = replace(head, fields=recorded)
        named = None if self._naming is None else self._naming.named(begun, change.name)
        if named is None:
            self._hooks.complain("pre-create", "this upload cannot be given a name")
            return creation
        creation = replace(creation, fields=named.fields)
        # The target has admitted the upload under its old name.
        refused = await self._admit(named, principal, creation)
        assert refused is None, "a PUT is either refused or admitted"
        return ToldCreation.of(creation, named)

    def _give_up(
        self,
        exchange: Exchange,
        operation: Operation,
        creation: Creation,
        exc: BaseException,
    ) -> None:
        assert isinstance(operation, ToldOperation)
        operation.broken_by = exc
        super()._give_up(exchange, operation, creation, exc)
        _raise_stop(operation, exc)


class ToldResources(Resources):
    """Asks ``pre-terminate`` before a cancellation, and notes why requests end."""

    def __init__(self, hooks: HookEngine, *args: Any) -> None:
        super().__init__(*args)
        self._hooks = hooks

    async def _patch_content(self, exchange: Exchange, operation: Operation) -> None:
        assert isinstance(operation, ToldOperation)
        if operation.is_upload and self._hooks.tells(HookKind.INTERRUPTED):
            # Each of its requests may be cut, and that is one event more.
            self._hooks.check_backlog()
        operation.request_head, operation.broken_by = exchange.head, None
        try:
            await super()._patch_content(exchange, operation)
        except BaseException as exc:
            operation.broken_by = exc
            _raise_stop(operation, exc)
            raise

    async def _cancel_content(self, exchange: Exchange, operation: Operation) -> None:
        await self._ask(exchange, operation)
        await super()._cancel_content(exchange, operation)

    async def _end(self, exchange: Exchange, operation: Operation) -> None:
        await self._ask(exchange, operation)
        await super()._end(exchange, operation)

    async def _ask(self, exchange: Exchange, operation: Operation) -> None:
        """Ask whether the upload may be cancelled. Raises :class:`PeerError` if not."""
        assert isinstance(operation, ToldOperation)
        ends = operation.state in (OperationState.GONE, OperationState.ABANDONED) or (
            operation.state is OperationState.DONE and not operation.is_partial
        )
        operation.request_head = exchange.head
        if ends or not operation.is_upload:
            return
        if self._hooks.asks(HookKind.PRE_TERMINATE):
            answer = await self._hooks.ask_terminate(operation)
            if answer.rejects:
                raise refusal(ProblemCode.TERMINATION_REJECTED, answer.response)


def _raise_stop(operation: ToldOperation, exc: BaseException) -> None:
    """Raise the answer of the receiver that stopped the upload in the middle of *exc*."""
    is_gone = isinstance(exc, PeerError) and exc.problem is ProblemCode.GONE
    if is_gone and operation.stopped_by is not None:
        raise operation.stopped_by from exc
