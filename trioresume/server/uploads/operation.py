"""An operation in memory: its state, its endings, its completion.

An :class:`Operation` is in memory while something *uses* it: a request, a seal on its way to
the disk, the target's call. It stays for a while after that if it is unfinished and the
catalog knows everything about it. For all other operations only the catalog has the truth. A
task that submits a change of state uses the operation until the change is committed. So an
operation that is loaded again is never older than the changes made to it.

Completion: with the end of its content a request no longer depends on its connection. The
rest runs in the server's nursery, and the connection only waits for the outcome. The steps
are the rows of :mod:`trioresume.protocol.operation`. :mod:`trioresume.server.uploads.completion` calls
the target and records its response.

The numbered statements (R22, G11, C16 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

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
from trioresume.protocol.operation import Event, OperationState, step
from trioresume.server.event_loop.signals import Signal
from trioresume.server.uploads.incoming import Incoming
from trioresume.store.port import (
    Content,
    EndOperation,
    ForgetOperation,
    JoinContents,
    Mutation,
    OperationId,
    OperationRecord,
    SetExpiry,
    SetLength,
    SetReserved,
    SetState,
    StoredResponse,
    request_key,
)

if TYPE_CHECKING:
    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import Progress
    from trioresume.server.async_store.storage import Storage, Submission
    from trioresume.server.uploads.quotas import Quotas

__all__ = ["Operation", "Surroundings"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState

EXPIRY_SLACK = 60.0
"""An expiry moves only by more than about this many seconds, to save commits."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts of the service that an operation needs."""

    storage: Storage
    config: Config
    clock: ServiceClock
    start: Callable[..., None]
    """``start(operation, function, *args)``: run it in the server's nursery, in use."""
    quotas: Quotas
    answer: Callable[[Operation, list[Mutation]], Awaitable[None]]
    """Call the target and record its response. The mutations freeze the content."""


class Operation:
    """One operation while it is in memory."""

    __slots__ = (
        "_around",
        "_bug",
        "_changed",
        "frozen_content",
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
        self.frozen_content: Content | None = None
        """The content that will be frozen, as soon as it is known."""
        self._around = surroundings
        self._bug: Exception | None = None
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
        return self.state is _S.RECEIVING

    @property
    def is_working(self) -> bool:
        """Whether its content has ended, and its response is still to come."""
        return self.state in (_S.COMPLETE, _S.PROCESSING) and self._bug is None

    @property
    def is_abandoned(self) -> bool:
        """Whether the client gave up while the target ran."""
        return self.state is _S.ABANDONED

    def is_visited(self, *, within: float) -> bool:
        """Whether a request looks at it, or did so *within* the last seconds."""
        return self.visitors > 0 or trio.current_time() - self.left_at <= within

    @property
    def is_frozen(self) -> bool:
        """Whether the content is whole, immutable and durable."""
        return self.state in (_S.PROCESSING, _S.DONE) or self.record.content is not None

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
        now = self._around.clock.now()
        lifetime = self._lifetime
        lifetime -= _expiry_slack(lifetime)
        if self.is_receiving:
            lifetime = min(lifetime, self._ends_at - now)
        seconds = max(0, int(lifetime))
        return seconds, self._around.clock.date() + seconds

    @property
    def _lifetime(self) -> float:
        config = self._around.config
        done = self.state is _S.DONE
        return config.response_lifetime if done else config.incomplete_lifetime

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
        while self.state is _S.COMPLETE and not self.is_frozen and self._bug is None:
            # The content has ended and is being frozen: all of it will be durable soon.
            await self.wait_change()
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

    # Changes of state, in memory. The caller makes each change durable.

    def change(self, event: Event) -> OperationState:
        """Apply *event* and return the new state. The caller performs the effects."""
        new_state = step(self.state, event).state
        self.record = replace(self.record, state=new_state)
        self.incoming.ended = new_state is not _S.RECEIVING
        self.announce_change()
        return new_state

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

    # Endings. The state changes first: from then on no request gets the writer's turn. Then
    # the present writer is ended, even if its request is newer than the one that ends all.

    async def cut(self) -> None:
        """Handle that the writer's connection ended before the content did (R22, R23)."""
        if self.record.keep_incomplete:
            await self.incoming.cut_back()
        elif self.is_receiving:
            await self._end(Event.CUT_FOR_GOOD)

    async def cancel(self) -> None:
        """End it for the client (R25, R29). On return a restart cannot bring it back."""
        if self.state in (_S.GONE, _S.ABANDONED):
            await self.incoming.end_writers()
        elif await self._end(Event.CANCELLED) is not _S.GONE:
            await self._around.storage.commit(SetState(self.id, self.state))

    async def expire(self) -> None:
        """End it at its expiry. One that must not expire now is renewed (G11)."""
        if self.state is _S.GONE:
            self.change(Event.EXPIRED)
            await self._around.storage.commit(ForgetOperation(self.id))
        elif await self._end(Event.EXPIRED) is not _S.GONE:
            self.renew()

    async def _end(self, event: Event) -> OperationState:
        """Apply *event*. If it ends the operation, discard everything."""
        new_state = self.change(event)
        if new_state is not _S.RECEIVING:
            await self.incoming.end_writers()
        if new_state is _S.GONE:
            await self.discard()
        return new_state

    @property
    def _ends_at(self) -> float:
        """When an upload ends, even if it is resumed again and again."""
        return self.record.created_at + self._around.config.max_upload_lifetime

    async def end_overdue(self) -> None:
        """End an upload that has lived too long, because a request for it came (G5).

        Time alone does not cut a running writer (G11), only a newcomer does. An upload that
        has all its bytes is spared: it only lacks the completion. Raises
        :class:`StorageError` if the bytes cannot be made durable; then nothing has ended.
        """
        overdue = self.is_receiving and self._around.clock.now() >= self._ends_at
        if overdue:
            await self.incoming.end_writer()
            try:
                await self.make_durable()  # it must be known whether it is whole
            except ContentLost:
                pass
            if self.is_receiving and not self.is_whole:
                await self._end(Event.EXPIRED)

    async def discard(self) -> None:
        """Release everything; leave a tombstone if it was offered. The state is GONE."""
        self.incoming.close()
        ended: Mutation
        expires_at = self._around.clock.now() + self._around.config.tombstone_lifetime
        if self.unoffered:
            ended = ForgetOperation(self.id)
            self.is_forgotten = True
        else:
            ended = EndOperation(self.id, expires_at)
        self.record = replace(
            self.record, content=None, response=None, expires_at=expires_at
        )
        await self._around.storage.commit(ended)

    def is_visited_by(self, principal: str | None) -> bool:
        """Whether *principal* owns it. A stranger's visit changes nothing (R35)."""
        is_owner = self.record.principal == principal
        self.was_visited = self.was_visited or is_owner
        return is_owner

    def _renew_for_owner(self) -> None:
        if self.was_visited:
            self.was_visited = False
            self.renew()

    def renew(self) -> None:
        """Move the expiry to a later time, after activity."""
        lifetime = self._lifetime
        expires_at = self._around.clock.now() + lifetime
        if self.is_receiving:
            expires_at = min(expires_at, self._ends_at)
        slack = _expiry_slack(lifetime)
        if self.state is not _S.GONE and expires_at > self.record.expires_at + slack:
            self._around.storage.submit(SetExpiry(self.id, expires_at))
            self.record = replace(self.record, expires_at=expires_at)

    # Completion.

    def complete(self) -> None:
        """End the content: freeze it and call the target, in the background."""
        if self.is_receiving:
            self.change(Event.CONTENT_ENDED)
            self.start(self._complete)

    async def _complete(self) -> None:
        """Perform CONTENT_ENDED's effects: FREEZE, then CALL_TARGET."""
        try:
            content, frozen = await self.incoming.finish()
            self.frozen_content = content
            if self.record.length != content.length:
                frozen.append(SetLength(self.id, content.length))
            await self._around.answer(self, frozen)
        except StorageError as exc:
            logger.error("%s cannot be completed now: %s", self.id, exc)
            self.incoming.failure = exc
            if self.state is not _S.COMPLETE or self.record.content is not None:
                raise
            self.change(Event.STORAGE_FAILED)

    async def join(self, parts: tuple[Content, ...]) -> None:
        """Freeze *parts* as the content, and call the target (D7).

        Returns when the content is durable. Raises :class:`StorageConflict` if a part was
        released meanwhile, and other :class:`StorageError`; then nothing was done.
        """
        join = JoinContents(self.id, parts)
        length = join.content.length
        # COMPLETE on disk: the target was not called yet. After a crash it will be called.
        await self._around.storage.commit(
            join, SetLength(self.id, length), SetState(self.id, _S.COMPLETE)
        )
        self.incoming.close()
        self.frozen_content = join.content
        self.record = replace(self.record, content=join.content, length=length)
        self.change(Event.CONTENT_ENDED)
        self.start(self._around.answer, self, [])

    async def frozen(self) -> int:
        """Wait until the content is immutable and durable; return its length.

        Raises as :meth:`outcome` does.
        """
        while self.state is _S.COMPLETE and not self.is_frozen and self._bug is None:
            await self.wait_change()
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

    def note_frozen(self) -> None:
        """Note that the content is frozen in the catalog."""
        self.incoming.close()
        content = self.frozen_content
        assert content is not None
        self.record = replace(self.record, content=content, length=content.length)
        self.announce_change()

    def note_answer(self, response: StoredResponse, expires_at: float) -> None:
        """Note that the response is recorded."""
        keep = self._around.config.retain_content or self.is_partial
        content = self.record.content if keep else None
        self.record = replace(
            self.record, response=response, content=content, expires_at=expires_at
        )
        self.change(Event.ANSWERED)


def _expiry_slack(lifetime: float) -> float:
    return min(EXPIRY_SLACK, lifetime / 10)
