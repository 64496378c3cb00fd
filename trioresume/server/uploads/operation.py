"""An operation in memory. It performs the table of an operation's life.

An :class:`Operation` is in memory while something *uses* it: a request, a seal on its way to
the disk, the target's call. It stays for a while after that if it is unfinished and the
catalog knows everything about it. For all other operations only the catalog has the truth. A
task that submits a change of state uses the operation until the change is committed. So an
operation that is loaded again is never older than the changes made to it.

The driver
==========

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
import math
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
)
from trioresume.protocol.dialects.tus.fields import is_partial
from trioresume.protocol.operation import (
    Effect,
    Event,
    OperationState,
    Transition,
    step,
)
from trioresume.server.event_loop.signals import Signal
from trioresume.server.uploads.hashing import WANTED_FOR
from trioresume.server.uploads.incoming import Incoming
from trioresume.server.uploads.lifetimes import ends_at, guaranteed, renewed
from trioresume.server.uploads.response_writer import Patience
from trioresume.server.uploads.target_call import TargetCall
from trioresume.store.port import (
    Content,
    EndOperation,
    ForgetOperation,
    JoinContents,
    Mutation,
    OperationId,
    OperationRecord,
    RecordResponse,
    SetExpiry,
    SetLength,
    SetReserved,
    SetState,
    StoredResponse,
    request_key,
)

if TYPE_CHECKING:
    from trioresume.server.api.handler import Progress
    from trioresume.server.async_store.storage import Submission
    from trioresume.server.uploads.surroundings import Surroundings

__all__ = ["Change", "Operation"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState

MOST_CONFLICTS = 10
"""How often the target is called because its effects could not be committed."""


@dataclass(slots=True)
class Change:
    """A transition that is being performed."""

    transition: Transition
    gathered: list[Mutation] = field(default_factory=list)
    """The mutations for the next commit."""
    learnt: dict[str, Any] = field(default_factory=dict)
    """Fields of the operation's record that hold as soon as the state has changed."""
    must_exist: bool = False
    """Whether the commit is in vain without the operation's record."""


class Operation:
    """One operation while it is in memory."""

    __slots__ = (
        "_around",
        "_bug",
        "_call",
        "_changed",
        "id",
        "incoming",
        "is_forgotten",
        "is_known",
        "is_loaded",
        "left_at",
        "loading",
        "progress",
        "readmits",
        "record",
        "tells_digest",
        "unoffered",
        "users",
        "visitors",
        "was_visited",
    )

    def __init__(self, id: OperationId, surroundings: Surroundings) -> None:
        self.id = id
        self.record: OperationRecord
        self.incoming: Incoming
        self.is_loaded = False
        self.loading: trio.Lock | None = None
        self.users = 0
        self.visitors = 0
        """The number of requests among its users."""
        self.left_at = -math.inf
        """When the last visitor left, on trio's clock."""
        self.tells_digest = True
        """Whether ``Want-Repr-Digest`` is answered."""
        self.unoffered = False
        """Whether no client was told of it: then no resources, no replay, no tombstone."""
        self.is_known = False
        """Whether the catalog has it, with every change that was submitted for it."""
        self.is_forgotten = False
        """Whether the catalog has removed it."""
        self.readmits = True
        """Whether the target is asked again before it is called (C16).

        The target was asked when the upload began. Since then it may have changed its mind,
        or the length was not known at that time.
        """
        self.was_visited = False
        """Whether its owner has asked for it since it was loaded or began to rest."""
        self.progress: Progress | None = None
        self._around = surroundings
        self._bug: Exception | None = None
        self._call: TargetCall | None = None
        """The call of the target, from the end of the content to the response."""
        self._changed = Signal()

    def load(self, record: OperationRecord, offset: int | None = None) -> None:
        """Begin with *record*, which the catalog has or will soon have.

        *offset* is the offset of the content, if it was looked up just now.
        """
        self.record = record
        self.incoming = Incoming(
            request_key(self.id),
            record.durable_offset,
            self._around.storage,
            self,
            offset,
        )
        self.incoming.ended = record.state is not _S.RECEIVING
        self.is_loaded = True

    @property
    def may_rest(self) -> bool:
        """Whether it is worth keeping in memory, and equal to its record in the catalog."""
        return (
            self.is_known
            and self.is_receiving
            and self._bug is None
            and self.incoming.failure is None
        )

    def rest(self) -> None:
        """Note that nothing uses it now. The next use finds it as if it were loaded again."""
        self.incoming.rest()
        self.readmits = True
        self.progress = None
        self._renew_for_owner()

    def unload(self) -> None:
        """Let go of everything, because the operation leaves memory."""
        self.incoming.close()
        if not self.unoffered:
            self._renew_for_owner()
        elif not self.is_forgotten:
            self._around.storage.submit_later(ForgetOperation(self.id))
        # The content refers back to this: only the garbage collector would end the cycle.
        del self.incoming

    def start(self, function: Callable[..., object], *args: object) -> None:
        """Run *function* in the server's nursery; the operation is in use meanwhile."""
        self._around.start(self, function, *args)

    # Its present state.

    @property
    def state(self) -> OperationState:
        return self.record.state

    @property
    def is_receiving(self) -> bool:
        """Whether content is still missing, or only the completion."""
        return self.record.state is _S.RECEIVING

    @property
    def is_working(self) -> bool:
        """Whether its content has ended, and its response is still to come."""
        return self.state in (_S.COMPLETE, _S.PROCESSING) and self._bug is None

    @property
    def is_frozen(self) -> bool:
        """Whether the content is whole, immutable and durable."""
        return self.record.content is not None or self.state is _S.DONE

    @property
    def is_whole(self) -> bool:
        """Whether every byte is here and durable, and only the completion is missing."""
        return (
            self.is_receiving
            and not self.record.explicit_completion
            and not self.incoming.has_writer
            and self.record.length == self.durable_offset
        )

    @property
    def is_partial(self) -> bool:
        """Whether it is a part of a later upload, for which no target is called (D7)."""
        return is_partial(self.record.fields)

    def guaranteed(self) -> tuple[int, float]:
        """Return the seconds for which it is kept at least, and the date of that time.

        They hold if no further request for it comes.
        """
        clock = self._around.clock
        seconds = guaranteed(self.record, self._around.config, clock.now())
        return seconds, clock.date() + seconds

    @property
    def durable_offset(self) -> int:
        """Bytes that are known to be durable, and so may be announced."""
        if self.is_frozen and self.record.length is not None:
            return self.record.length
        return self.incoming.durable_offset

    async def make_durable(self) -> int:
        """Make all accepted bytes durable; return the offset that may be announced.

        Raises :class:`StorageError`.
        """
        await self._until_frozen()
        if not self.is_receiving:
            return self.durable_offset
        try:
            return await self.incoming.make_durable()
        except (StaleWriter, StorageConflict):
            if not self.incoming.ended:
                raise
            # The content ended meanwhile: its writer is stale, and there can be no other.
            # Look at the new state.
            return await self.make_durable()

    async def _until_frozen(self) -> None:
        """Wait while the content has ended and is being frozen: all of it is durable then."""
        while self.state is _S.COMPLETE and not self.is_frozen and self._bug is None:
            await self.wait_change()

    def is_visited_by(self, principal: str | None) -> bool:
        """Whether *principal* owns it. A stranger's visit changes nothing (R35)."""
        is_owner = self.record.principal == principal
        self.was_visited = self.was_visited or is_owner
        return is_owner

    def announce_change(self) -> None:
        """Wake the tasks that wait for a change of state or of progress."""
        self._changed.fire()

    async def wait_change(self) -> None:
        """Return at the next change of state or of progress."""
        await self._changed.wait()

    def note_bug(self, exc: Exception) -> None:
        """Note that a bug stops the operation in this process, and wake its waiters."""
        self._bug = exc
        self.announce_change()

    # Its length, and the space for it.

    def forget_preferences(self) -> None:
        """Drop the request's preferences for its answer; the client was told nothing yet."""
        fields = self.record.fields.without("prefer")
        self.record = replace(self.record, fields=fields)

    def learn_length(self, length: int | None) -> None:
        """Note the content's length, which the caller has checked against the known one.

        Raises :class:`PeerError` 507 if there is no room for so many bytes.
        """
        if length is not None and length != self.record.length:
            reserved = self._around.quotas.extend(self.record, length, exact=True)
            self.record = replace(self.record, length=length, reserved=reserved)
            self._submit(SetLength(self.id, length), SetReserved(self.id, reserved))

    def reserve(self, end: int) -> None:
        """Reserve the bytes below *end* before they arrive (G7).

        Raises :class:`PeerError` 507 if there is no room for them.
        """
        if end > self.record.reserved:
            reserved = self._around.quotas.extend(self.record, end, exact=False)
            self.record = replace(self.record, reserved=reserved)
            self._submit(SetReserved(self.id, reserved))

    def _submit(self, *mutations: Mutation) -> None:
        # In use until the commit: otherwise a newcomer would load the old state.
        submission = self._around.storage.submit(*mutations)
        self.start(self._note_applied, submission)

    async def _note_applied(self, submission: Submission) -> None:
        try:
            await submission.wait()
        except StorageError as exc:
            logger.error("a change of %s was not recorded: %s", self.id, exc)
            self.is_known = False

    # Its life.

    def complete(self) -> None:
        """End the content; what follows runs in the background."""
        if self.is_receiving:
            change = Change(step(self.state, Event.CONTENT_ENDED))
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
        self._call = TargetCall(self._around, joined, content, mutations)
        self.start(self._go_on, await self._change(Event.JOINED))

    async def restart(self) -> None:
        """Go on where the last process stopped (R31)."""
        content = self.record.content or Content(0, inline=b"")
        self._call = TargetCall(self._around, self.record, content, [])
        self.tells_digest = False  # no client waits for it any more
        await self._go_on(await self._change(Event.RESTARTED))

    async def cut(self) -> None:
        """Handle that the writer's connection ended before the content did (R22, R23)."""
        if self.is_receiving:
            keeps = self.record.keep_incomplete
            await self.apply(Event.CUT if keeps else Event.CUT_FOR_GOOD)

    async def cancel(self) -> None:
        """End it for the client (R25, R29). On return a restart cannot bring it back."""
        if self.state in (_S.GONE, _S.ABANDONED):
            await self.incoming.end_writers()
        else:
            await self.apply(Event.CANCELLED)

    async def end_overdue(self) -> None:
        """End an upload that has lived too long, because a request for it came (G5).

        Time alone does not cut a running writer (G11), only a newcomer does. An upload that
        has all its bytes is spared: it only lacks the completion. Raises
        :class:`StorageError` if the bytes cannot be made durable; then nothing has ended.
        """
        end = ends_at(self.record, self._around.config)
        overdue = self.is_receiving and self._around.clock.now() >= end
        if overdue:
            await self.incoming.end_writer()
            try:
                await self.make_durable()  # it must be known whether it is whole
            except ContentLost:
                pass
            if self.is_receiving and not self.is_whole:
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
            was = self.state
            policy = None if self._call is None else self._call.policy
            change = Change(step(was, event, policy))
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
        self.incoming.ended = state is not _S.RECEIVING
        if "content" in change.learnt:
            self.incoming.close()
        self.announce_change()

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
            if self.state not in (_S.COMPLETE, _S.ABANDONED) or self.is_frozen:
                raise
            logger.error("%s cannot be completed now: %s", self.id, exc)
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
        await self.incoming.end_writers()

    async def _seal(self, change: Change) -> None:
        content, frozen = await self.incoming.finish()
        self._call = TargetCall(self._around, self.record, content, frozen)

    async def _check(self, change: Change) -> Event:
        is_right = await self._the_call.check(
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
        call = self._the_call
        if self.record.content is None:
            change.gathered += call.frozen
            change.learnt.update(content=call.content, length=call.content.length)

    async def _save_state(self, change: Change) -> None:
        if not self.unoffered:
            change.gathered.append(SetState(self.id, change.transition.state))
        change.must_exist = True

    async def _commit(self, change: Change) -> Event | None:
        """Commit what was gathered. Raises :class:`StorageError`; then nothing was done."""
        try:
            if change.gathered:
                await self._around.storage.commit(*change.gathered)
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
        patience = Patience(self.id)
        was = self.state
        while self.state is was:
            try:
                return await self._commit(change)
            except StorageError as exc:
                await patience.wait(exc)
        return None

    def _count_conflict(self) -> Event:
        """Have the target called again, unless that is wrong (R31) or was done too often."""
        self.incoming.check_created()
        call = self._the_call
        call.conflicts += 1
        if self.state is _S.COMPLETE and call.conflicts < MOST_CONFLICTS:
            return Event.CONFLICTED
        call.refuse(PeerError(ProblemCode.CONFLICT))
        return Event.ANSWERED

    async def _call_target(self, change: Change) -> Event:
        await self._the_call.run(
            readmits=self.readmits, on_progress=self._show_progress
        )
        return Event.ANSWERED

    def _show_progress(self, progress: Progress) -> None:
        self.progress = progress.following(self.progress)
        self.announce_change()

    async def _record(self, change: Change) -> None:
        around = self._around
        stored, mutations = await self._the_call.store()
        expires_at = around.clock.now() + around.config.response_lifetime
        keep = around.config.retain_content or self.is_partial
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
        self._the_call.refuse(PeerError(ProblemCode.INDETERMINATE))
        return Event.ANSWERED

    async def _discard(self, change: Change) -> None:
        self.incoming.close()
        around = self._around
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

    @property
    def _the_call(self) -> TargetCall:
        assert self._call is not None
        return self._call

    # Its expiry.

    def _renew_for_owner(self) -> None:
        if self.was_visited:
            self.was_visited = False
            self.renew()

    def renew(self) -> None:
        """Move the expiry to a later time, after activity."""
        around = self._around
        expires_at = renewed(self.record, around.config, around.clock.now())
        if expires_at is not None:
            around.storage.submit(SetExpiry(self.id, expires_at))
            self.record = replace(self.record, expires_at=expires_at)

    # Waiting for what comes of it.

    async def frozen(self) -> int:
        """Wait until the content is immutable and durable; return its length.

        Raises as :meth:`outcome` does.
        """
        await self._until_frozen()
        if self.state in (_S.GONE, _S.ABANDONED):
            raise PeerError(ProblemCode.GONE)
        if not self.is_frozen:
            raise self._bug or self.incoming.failure or PeerError(ProblemCode.GONE)
        return self.durable_offset

    async def outcome(self) -> StoredResponse:
        """Return the final response once it is recorded; wait while the target runs.

        If there is none, raises the reason: :class:`StorageError` if the content could not be
        completed (a new try is possible), :class:`PeerError` GONE if the operation was ended.
        """
        while self.is_working:
            await self.wait_change()
        if self.record.response is not None:
            return self.record.response
        problem = self._bug or self.incoming.failure
        raise problem or PeerError(ProblemCode.GONE)


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
