"""The driver of an operation: it performs the table of its life.

:meth:`Operation.apply` is the only place in which the state changes. It looks up the row of
:mod:`trioresume.protocol.operation` and performs its effects, each by the method that
:data:`_EFFECTS` names. An effect that finds something out returns the event that follows.

The operation has two parts, which know nothing of it: ``incoming``, its content while it is
received, and, once the content is whole, the call of its target
(:class:`~trioresume.server.uploads.target_call.TargetCall`).

With the end of its content a request no longer depends on its connection. The rest runs in
the server's nursery, and the connection only waits for the outcome.

The numbered statements (R22, G11, C16 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import trio

from trioresume.errors import (
    ContentLost,
    PeerError,
    ProblemCode,
    StaleWriter,
    StorageConflict,
    StorageError,
    TargetUnavailable,
)
from trioresume.protocol.operation import (
    Effect,
    Event,
    OperationState,
    Transition,
    step,
)
from trioresume.server.uploads.hashing import WANTED_FOR
from trioresume.server.uploads.loaded_operation import LoadedOperation
from trioresume.server.uploads.locations import concealed
from trioresume.server.uploads.target_call import Patience, TargetCall
from trioresume.store.port import (
    Content,
    EndOperation,
    ForgetOperation,
    JoinContents,
    Mutation,
    OperationId,
    RecordResponse,
    SetLength,
    SetState,
)

if TYPE_CHECKING:
    from trioresume.server.api.handler import Progress
    from trioresume.server.uploads.loaded_operation import Surroundings
    from trioresume.server.uploads.share import Share

__all__ = ["Change", "Operation"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState

MOST_CLAIMS = 3
"""How often an operation is claimed for its end: its owner may just have answered its client."""
MOST_CONFLICTS = 10
"""How often the target is called because its effects could not be committed."""


@dataclass(slots=True)
class Change:
    """A transition that is being performed."""

    transition: Transition
    event: Event
    was: OperationState
    """The state before it."""
    gathered: list[Mutation] = field(default_factory=list)
    """The mutations for the next commit."""
    learnt: dict[str, Any] = field(default_factory=dict)
    """Fields of the operation's record that hold as soon as the state has changed."""
    must_exist: bool = False
    """Whether the commit is in vain without the operation's record."""


class Operation(LoadedOperation):
    """One operation while it is in memory, and everything that happens to it."""

    __slots__ = ("_call",)

    def __init__(self, id: OperationId, surroundings: Surroundings) -> None:
        super().__init__(id, surroundings)
        self._call: TargetCall | None = None
        """The call of the target, from the end of the content to the response."""

    # Its life.

    def complete(self) -> None:
        """End the content; what follows runs in the background."""
        if self.is_receiving and self.is_held:
            ended = Event.CONTENT_ENDED
            change = Change(step(self.state, ended), ended, self.state)
            assert not change.transition.before
            self._enter(change)
            self.start(self._go_on, change)

    async def join(self, parts: tuple[Content, ...]) -> None:
        """Make *parts* the content (D7); what follows runs in the background.

        Returns when the content is durable. Raises :class:`StorageConflict` if a part was
        released meanwhile, and other :class:`StorageError`; then nothing was done.
        """
        join = JoinContents(self.id, parts)
        content = join.content
        joined = replace(self.record, length=content.length)
        mutations: list[Mutation] = [join, SetLength(self.id, content.length)]
        self._call = TargetCall(self.around, joined, content, mutations)
        self.start(self._go_on, await self._change(Event.JOINED))

    async def restart(self) -> None:
        """Go on where the last process stopped (R31)."""
        content = self.record.content or Content(0, inline=b"")
        self._call = TargetCall(self.around, self.record, content, [])
        self.tells_digest = False  # no client waits for it any more
        await self._go_on(await self._change(Event.RESTARTED))

    def retry(self) -> None:
        """Call the target again; what follows runs in the background.

        The content is frozen, and either the target could not take the request before, or
        nobody knows whether it did and the administrator wants this.
        """
        if not self.is_retried and self.is_held:
            self.is_retried = True
            self.start(self._retry)

    async def _retry(self) -> None:
        content = self.record.content
        assert content is not None
        try:
            self._call = TargetCall(self.around, self.record, content, [])
            change = await self._change(Event.RETRIED)
        except StorageError as exc:
            logger.error("%s cannot be tried again now: %s", concealed(self.id), exc)
            return
        finally:
            self.is_retried = False
            self.changed.fire()
        await self._go_on(change)

    async def cut(self) -> None:
        """Handle that the writer's connection ended before the content did (R22, R23)."""
        if self.is_receiving and self.is_held:
            keeps = self.record.keep_incomplete
            await self.apply(Event.CUT if keeps else Event.CUT_FOR_GOOD)

    async def cancel(self) -> None:
        """End it for the client (R25, R29). On return a restart cannot bring it back."""
        if self.share is None:
            await self._cancel()
            return
        for _ in range(MOST_CLAIMS):
            try:
                await self._bring_to_end(self.share)
                await self._cancel()
            except StaleWriter:
                # Another process has taken it meanwhile. That is no reason to keep it.
                self.share.lose()
                await self.share.look()
            else:
                return
        raise StaleWriter("other processes take the operation again and again")

    async def _cancel(self) -> None:
        while self.is_retried:
            await self.changed.wait()  # one commit, after which the target is called
        if self.state in (_S.GONE, _S.ABANDONED):
            await self.incoming.turns.end_writers()
        else:
            await self.apply(Event.CANCELLED)

    async def _bring_to_end(self, share: Share) -> None:
        """Claim it, unless it has ended or its owner has ended it for this client."""
        for _ in range(MOST_CLAIMS):
            if self.state in (_S.GONE, _S.ABANDONED) or await share.bring(ends=True):
                return
            await share.look()
        if self.state not in (_S.GONE, _S.ABANDONED):
            raise StorageError("the process that works for it does not end it")

    async def end_overdue(self) -> None:
        """End an upload that is overdue, because a request for it came (G5).

        Time alone does not cut a running writer (G11), only a newcomer does. An upload that
        has all its bytes is spared: it only lacks the completion. Raises
        :class:`StorageError` if the bytes cannot be made durable; then nothing has ended.
        """
        if self.share is not None and not await self.share.bring():
            return  # it has all its bytes, and its owner processes it
        await self.incoming.turns.end_writer()
        try:
            await self.make_durable()  # it must be known whether it is whole
        except ContentLost:
            pass
        if self.is_overdue and not self.is_whole:
            await self.apply(Event.EXPIRED)

    async def apply(self, event: Event) -> None:
        """Apply *event* and those that follow: perform the rows of the table, in their order.

        Raises :class:`StorageError` as the effects do. A cancelled caller leaves the effects
        that are still to come undone.
        """
        await self._follow(await self._change(event))

    async def _change(self, event: Event) -> Change:
        """Perform what comes before the change of state that *event* demands, and change it."""
        while True:
            if not self.is_held:
                raise StaleWriter("another process owns the operation")
            was = self.state
            policy = None if self._call is None else self._call.policy
            change = Change(step(was, event, policy), event, was)
            following: Event | None = None
            for effect in change.transition.before:
                following = await self.perform(effect, change)
                if self.state is not was:
                    break
            if self.state is not was:
                continue  # the client gave it up meanwhile: the event meets the new state
            if following is None:
                self._enter(change)
                return change
            event = following

    async def perform(self, effect: Effect, change: Change) -> Event | None:
        """Perform one *effect* of *change*; return the event that follows, if any."""
        return await _EFFECTS[effect](self, change)

    def _enter(self, change: Change) -> None:
        """Change the state, and wake all that wait for it."""
        state = change.transition.state
        self.record = replace(self.record, state=state, **change.learnt)
        self.incoming.turns.ended = state is not _S.RECEIVING
        if "content" in change.learnt:
            self.incoming.close()
        if self.share is not None:
            self.share.note_state()
        self.changed.fire()

    async def _follow(self, change: Change) -> None:
        """Perform what comes after the change of state, and apply the event that follows."""
        while True:
            event: Event | None = None
            for effect in change.transition.after:
                event = await self.perform(effect, change)
            if event is None:
                return
            change = await self._change(event)

    async def _go_on(self, change: Change) -> None:
        """Follow *change* in the background, up to the response."""
        try:
            await self._follow(change)
        except StorageError as exc:
            gone = self.state is _S.ABANDONED
            if self.share is not None and isinstance(exc, StaleWriter) and not gone:
                self.share.lose()
            if not self.is_held:
                logger.warning("%s was left to another process", concealed(self.id))
                return
            unfrozen = self.state is _S.COMPLETE and not self.is_frozen
            if not unfrozen and self.state is not _S.ABANDONED:
                raise
            logger.error("%s cannot be completed now: %s", concealed(self.id), exc)
            self.incoming.failure = exc
            await self.apply(Event.STORAGE_FAILED)
        finally:
            self._call = None

    # The effects, in the order of the table. Each returns the event that follows, if any.

    async def _keep(self, change: Change) -> None:
        await self.incoming.cut_back()

    async def _end_writer(self, change: Change) -> None:
        # From the change on no request gets the writer's turn. So this ends the present
        # writer even if its request is newer than the one that ends the operation.
        await self.incoming.turns.end_writers()

    async def _seal(self, change: Change) -> None:
        content, frozen = await self.incoming.finish()
        self._call = TargetCall(self.around, self.record, content, frozen)

    async def _check(self, change: Change) -> Event:
        assert self._call is not None
        is_right = await self._call.check(
            tells_digest=self.tells_digest, is_wanted=self._wants_digest
        )
        return Event.STARTED if is_right else Event.ANSWERED

    def _wants_digest(self, claimed: bool) -> bool:
        """Whether a digest is still needed; *claimed*: the client has announced one."""
        if self.state is _S.ABANDONED:
            return False
        if claimed or self.visitors:
            return True
        return trio.current_time() - self.left_at <= WANTED_FOR

    async def _freeze(self, change: Change) -> None:
        call = self._call
        assert call is not None
        if self.record.content is None:
            change.gathered += call.frozen
            # At last, the answer is recorded whatever happens. Otherwise it could tell of
            # content that was dropped silently. A request without content, such as DELETE,
            # has an effect on a full disk, too, where its answer cannot be recorded (G8).
            if Effect.COMMIT in change.transition.before and call.content.length:
                change.must_exist = True
            change.learnt.update(content=call.content, length=call.content.length)

    async def _save_state(self, change: Change) -> None:
        if not self.unoffered:
            change.gathered.append(SetState(self.id, change.transition.state))
        if self.record.response is not None:
            change.learnt["response"] = None  # it is replaced by that of the next call
        change.must_exist = True

    async def _commit(self, change: Change) -> Event | None:
        """Commit what was gathered. Raises :class:`StorageError`; then nothing was done."""
        try:
            if change.gathered:
                await self.around.storage.commit(*change.gathered)
        except StaleWriter:
            raise  # the target's effects belong to an operation of another process now
        except StorageConflict:
            if self._call is None or not self._call.has_answered:
                raise
            return self._count_conflict()
        if change.must_exist:
            self.incoming.check_created()
        if ForgetOperation(self.id) in change.gathered:
            self.is_forgotten = True
        return None

    async def _commit_at_last(self, change: Change) -> Event | None:
        """Commit what was gathered; wait while the store cannot, unless the client gives up."""
        patience: Patience | None = None
        was = self.state
        while self.state is was:
            try:
                return await self._commit(change)
            except StaleWriter:
                raise
            except StorageError as exc:
                patience = patience or Patience(self.id)
                await patience.wait(exc)
        return None

    def _count_conflict(self) -> Event:
        """Have the target called again, unless that is wrong (R31) or was done too often."""
        self.incoming.check_created()
        call = self._call
        assert call is not None
        call.conflicts += 1
        if self.state is _S.COMPLETE and call.conflicts < MOST_CONFLICTS:
            return Event.CONFLICTED
        call.refuse(PeerError(ProblemCode.CONFLICT))
        return Event.ANSWERED

    async def _call_target(self, change: Change) -> Event:
        call = self._call
        assert call is not None
        postponed = await call.run(
            readmits=self.readmits,
            on_progress=self._show_progress,
            on_interim=self.pass_on,
        )
        if postponed is None:
            return Event.ANSWERED
        return self._postpone(call, postponed)

    def _postpone(self, call: TargetCall, reason: TargetUnavailable) -> Event:
        """Have the operation wait for its target, if its client can ask again."""
        if self.unoffered:
            call.refuse(reason)
            return Event.ANSWERED
        logger.warning("%s waits for its target: %s", concealed(self.id), reason.detail)
        return Event.POSTPONED

    def _show_progress(self, progress: Progress) -> None:
        self.progress = progress.following(self.progress)
        if self.share is not None:
            self.share.note_progress()
        self.changed.fire()

    async def _record(self, change: Change) -> None:
        around, call = self.around, self._call
        assert call is not None
        stored, mutations = await call.store()
        lifetime = around.config.response_lifetime
        keep = around.config.retain_content or call.is_partial
        if call.is_unknown and not self.unoffered:
            lifetime = max(lifetime, around.config.indeterminate_lifetime)
            keep = True  # so that the administrator can have it tried again
        expires_at = around.clock.now() + lifetime
        change.gathered += mutations
        if self.unoffered and stored.body.digest is None:
            change.gathered.append(ForgetOperation(self.id))
        else:
            recorded = RecordResponse(self.id, stored, expires_at, keep)
            change.gathered.append(recorded)
        change.learnt.update(response=stored, expires_at=expires_at)
        if not keep:
            change.learnt["content"] = None

    async def _answer_indeterminate(self, change: Change) -> Event:
        assert self._call is not None
        self._call.refuse(PeerError(ProblemCode.INDETERMINATE))
        return Event.ANSWERED

    async def _discard(self, change: Change) -> None:
        self.incoming.close()
        around = self.around
        expires_at = around.clock.now() + around.config.tombstone_lifetime
        if self.unoffered:
            change.gathered.append(ForgetOperation(self.id))
        else:
            change.gathered.append(EndOperation(self.id, expires_at))
        self.record = replace(
            self.record, content=None, response=None, expires_at=expires_at
        )

    async def _renew(self, change: Change) -> None:
        self.renew()

    async def _forget(self, change: Change) -> None:
        change.gathered.append(ForgetOperation(self.id))


_EFFECTS: dict[Effect, Callable[[Operation, Change], Awaitable[Event | None]]] = {
    Effect.KEEP: Operation._keep,
    Effect.END_WRITER: Operation._end_writer,
    Effect.SEAL: Operation._seal,
    Effect.JOIN: Operation._freeze,
    Effect.CHECK: Operation._check,
    Effect.FREEZE: Operation._freeze,
    Effect.SAVE_STATE: Operation._save_state,
    Effect.COMMIT: Operation._commit,
    Effect.COMMIT_AT_LAST: Operation._commit_at_last,
    Effect.CALL_TARGET: Operation._call_target,
    Effect.RECORD: Operation._record,
    Effect.ANSWER_INDETERMINATE: Operation._answer_indeterminate,
    Effect.DISCARD: Operation._discard,
    Effect.RENEW: Operation._renew,
    Effect.FORGET: Operation._forget,
}
"""The method that performs each effect."""
