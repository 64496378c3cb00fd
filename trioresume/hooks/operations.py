"""Uploads of which hooks are told.

The event of a change is added to the mutations that the change commits, so both are durable
together or not at all (promise 12). What is told, and when:

===============  =========================================================================
post-create      the operation's record
post-finish      the response, the target's effects, the end of the content
post-terminate   the release of an upload that has no response of its target, or was refused
expired          the same, because its time was over
interrupted      a commit of its own, after the offset is durable
===============  =========================================================================

Released responses are no news: an upload that has ended ends once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError, TargetUnavailable
from trioresume.hooks.answers import HookResponse, refusal
from trioresume.hooks.events import LIFETIME_KEY, HookKind, is_upload, metadata_from
from trioresume.protocol.dialects import Creation, Reply
from trioresume.protocol.heads import RequestHead
from trioresume.protocol.operation import Effect, Event, OperationState
from trioresume.server.api.handler import RecordedWith, Response
from trioresume.server.http.exchange import ContentCut
from trioresume.server.uploads.loaded_operation import Surroundings, record_head
from trioresume.server.uploads.operation import Change, Operation
from trioresume.server.uploads.registry import Registry
from trioresume.store.port import PublishFile, RecordEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trioresume.hooks.engine import HookEngine

__all__ = ["ToldCreation", "ToldOperation", "ToldRegistry", "ToldSurroundings"]

_S = OperationState


@dataclass(frozen=True, slots=True)
class ToldSurroundings(Surroundings):
    """What an operation uses, and the hooks."""

    hooks: HookEngine | None = None


class ToldOperation(Operation):
    """An operation whose changes are told."""

    # Without slots, so that a class that counts its changes can be another base.

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        surroundings = args[-1]
        assert isinstance(surroundings, ToldSurroundings)
        assert surroundings.hooks is not None
        self._hooks = surroundings.hooks
        self._accepted = False
        """Whether the target has taken the upload: its own answer was no error."""
        self.request_head: RequestHead | None = None
        """The head of the last request for it, as long as it is in memory."""
        self.broken_by: BaseException | None = None
        """The reason for which the last request with content ended early."""
        self.finish_response: HookResponse | None = None
        """What ``pre-finish`` has answered."""
        self.stopped_by: PeerError | None = None
        """The answer to a request in whose middle ``post-receive`` stopped the upload."""
        self.told_offset = 0
        """The offset of the last ``post-receive``."""
        self.told_at = 0.0

    @property
    def is_upload(self) -> bool:
        """Whether hooks are told of it at all."""
        return is_upload(self.record.method)

    @property
    def head(self) -> RequestHead:
        """The head to tell of: that of the last request, or of the first one."""
        return self.request_head or record_head(self.record)

    @property
    def waits_for_target(self) -> bool:
        """Whether an answer to tus has to wait, because ``pre-finish`` decides on it."""
        return self.is_upload and self._hooks.asks(HookKind.PRE_FINISH)

    def rest(self) -> None:
        super().rest()
        self.request_head = self.broken_by = None

    def as_answered(self, reply: Reply) -> Reply:
        """Put what ``pre-finish`` wants into an answer that is not the target's."""
        wanted = self.finish_response
        if wanted is None:
            return reply
        names = [name for name, _ in wanted.fields]
        fields = reply.fields.without(*names).plus(wanted.fields)
        return Reply(wanted.status or reply.status, fields, wanted.body or reply.body)

    def let_go(self) -> None:
        """End a use that was begun by counting up ``users``."""
        self._hooks.release(self)

    # The effects.

    async def perform(self, effect: Effect, change: Change) -> Event | None:
        if effect is Effect.DISCARD and self.is_upload:
            event = self._end_of(change)
            following = await super().perform(effect, change)
            change.gathered += event
            return following
        if effect is Effect.CALL_TARGET and self.is_upload:
            return await self._call_with_hooks(change)
        following = await super().perform(effect, change)
        if effect is Effect.RECORD and self.is_upload:
            change.gathered += self._finish_of()
        return following

    def _end_of(self, change: Change) -> list[RecordEvent]:
        """Return the event of an upload's end without a response."""
        if change.was is _S.DONE and not self.is_partial:
            return []
        if change.event is Event.EXPIRED:
            return self._hooks.recorded(HookKind.EXPIRED, self)
        cut = change.event is Event.CUT_FOR_GOOD
        return self._hooks.recorded(
            HookKind.POST_TERMINATE, self, reason="cut" if cut else "cancelled"
        )

    def _finish_of(self) -> list[RecordEvent]:
        """Return the event of a recorded response."""
        call = self._call
        assert call is not None
        if call.is_unknown:
            return []  # it is told when it is known
        if not self._accepted and not call.is_partial:
            return self._hooks.recorded(HookKind.POST_TERMINATE, self, reason="refused")
        storage: dict[str, object] | None = None
        for mutation in call.answer.mutations:
            if isinstance(mutation, PublishFile):
                digest = mutation.file.content.digest
                storage = {
                    "Type": "trioresume",
                    "Path": mutation.file.name,
                    "Digest": None if digest is None else digest.hex(),
                }
        return self._hooks.recorded(
            HookKind.POST_FINISH, self, whole=call.content.length, storage=storage
        )

    async def _call_with_hooks(self, change: Change) -> Event | None:
        """Ask ``pre-finish``, call the target, and change its answer as the hook wants."""
        call = self._call
        assert call is not None
        self._accepted = False
        self.finish_response = None
        if self._hooks.asks(HookKind.PRE_FINISH) and not call.is_partial:
            try:
                answer = await self._hooks.ask_finish(self, call.content.length)
            except PeerError as exc:
                # The content stays, and the target is called when the receiver is back.
                return self._postpone(call, TargetUnavailable(exc.detail))
            if answer.rejects:
                rejected = refusal(ProblemCode.UPLOAD_REJECTED, answer.response)
                self.finish_response = answer.response
                call.refuse(rejected)
                return Event.ANSWERED
            self.finish_response = answer.response
        following = await super().perform(Effect.CALL_TARGET, change)
        if following is Event.ANSWERED:
            self._accepted = call.answer.response.status < 400
            call.amend(self._amended(call.answer))
        return following

    def _amended(self, answer: RecordedWith) -> RecordedWith:
        """Apply to the target's answer what the hooks have changed."""
        mutations = answer.mutations
        lifetime = metadata_from(self.record.fields).get(LIFETIME_KEY)
        if lifetime is not None:
            expires_at = self.around.clock.now() + float(lifetime)
            mutations = tuple(
                replace(each, file=replace(each.file, expires_at=expires_at))
                if isinstance(each, PublishFile)
                else each
                for each in mutations
            )
        response = answer.response
        if self.finish_response is not None:
            response = _with(response, self.finish_response)
        return RecordedWith(response, mutations)

    # A connection that was lost.

    async def cut(self) -> None:
        reason, self.broken_by = self.broken_by, None
        await super().cut()
        if (
            isinstance(reason, (ContentCut, trio.Cancelled))
            and self.is_receiving
            and self.is_upload
            and not self.incoming.turns.has_writer
            and self._hooks.tells(HookKind.INTERRUPTED)
        ):
            await self._tell_interruption()

    async def _tell_interruption(self) -> None:
        try:
            await self.make_durable()
            if self.is_receiving:
                events = self._hooks.recorded(HookKind.INTERRUPTED, self)
                await self.around.storage.commit(*events)
        except StorageError as exc:
            self._hooks.complain("interrupted", exc)

    async def stop(self, response: HookResponse | None) -> None:
        """End the upload, because ``post-receive`` wants it."""
        if self.is_receiving:
            self.stopped_by = refusal(ProblemCode.UPLOAD_REJECTED, response)
            await self.cancel()


def _with(response: Response, wanted: HookResponse) -> Response:
    """Return *response* with what a hook wants: status, content, and fields."""
    names = [name for name, _ in wanted.fields]
    return Response(
        wanted.status or response.status,
        response.fields.without(*names).plus(wanted.fields),
        wanted.body or response.body,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldCreation(Creation):
    """An upload that ``pre-create`` has changed: it begins as if with *head*."""

    head: RequestHead

    @classmethod
    def of(cls, creation: Creation, head: RequestHead) -> ToldCreation:
        known = {each.name: getattr(creation, each.name) for each in fields(Creation)}
        return cls(**known, head=head)


def _told(new_operation: Callable[..., Operation]) -> Callable[..., Operation]:
    """Return what makes the same operations as *new_operation*, but tells their changes."""
    known: tuple[object, ...] = ()
    made: object = new_operation
    if isinstance(new_operation, partial):
        made, known = new_operation.func, new_operation.args
    if made is Operation:
        return partial(ToldOperation, *known)
    assert isinstance(made, type)
    return partial(type("ToldOperation", (ToldOperation, made), {}), *known)


class ToldRegistry(Registry):
    """Makes operations whose changes are told."""

    def __init__(self, hooks: HookEngine, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hooks = hooks
        self._new_operation = _told(self._new_operation)
        known: Any = self._surroundings
        self._surroundings = ToldSurroundings(
            **{each.name: getattr(known, each.name) for each in fields(Surroundings)},
            hooks=hooks,
        )

    async def create(
        self,
        head: RequestHead,
        principal: str | None,
        creation: Creation,
        **options: Any,
    ) -> Operation:
        if is_upload(head.method):
            self._hooks.check_backlog()
        if isinstance(creation, ToldCreation):
            head = creation.head
        return await super().create(head, principal, creation, **options)

    async def _record(self, operation: Operation, head: RequestHead) -> None:
        assert isinstance(operation, ToldOperation)
        operation.request_head = head
        creation = self._creation(operation)
        if operation.is_upload:
            creation += self._hooks.recorded(HookKind.POST_CREATE, operation)
        if operation.unoffered:
            operation.incoming.creation = self.storage.submit_later(*creation)
        else:
            await self.storage.commit(*creation)
            operation.is_known = True

    def receiving(self) -> Iterator[ToldOperation]:
        """Yield the uploads that are being received now."""
        for operation in self._loaded.values():
            assert isinstance(operation, ToldOperation)
            if (
                operation.is_loaded
                and operation.is_receiving
                and operation.is_upload
                and operation.incoming.turns.has_writer
            ):
                yield operation
