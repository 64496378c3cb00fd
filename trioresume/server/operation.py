"""An operation in memory: its state, its endings, its completion.

An :class:`Operation` is in memory while somebody *uses* it: a request, a seal on its
way to the disk, the target's call; and for a while after that, if it is unfinished and
the catalog has all that is known of it. The catalog is the truth for all others. Whoever
submits a change of state holds a use until it is committed, so that an operation
loaded anew is never older than what was done to it.

Completion (promise 4): the end of the content is where the request's fate leaves its
connection. The rest runs in the server's nursery, and the connection merely waits for
the outcome. The steps are the rows of :mod:`trioresume.protocol.operation`; the calls
of the target and what is recorded of them are in :mod:`trioresume.server.answers`.
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
from trioresume.protocol.dialects.tus_fields import is_partial
from trioresume.protocol.operation import Event, OperationState, step
from trioresume.server.incoming import Incoming
from trioresume.server.signals import Signal
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
    from trioresume.server.config import Config
    from trioresume.server.messages import Progress
    from trioresume.server.quotas import Quotas
    from trioresume.server.storage import Storage, Submission

__all__ = ["Operation", "Surroundings"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState

EXPIRY_SLACK = 60.0
"""An expiry is moved on only by more than about this many seconds: fewer commits."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an operation needs of the service around it."""

    storage: Storage
    config: Config
    clock: ServiceClock
    start: Callable[..., None]
    """``start(operation, function, *args)``: run it in the server's nursery, in use."""
    quotas: Quotas
    answer: Callable[[Operation, list[Mutation]], Awaitable[None]]
    """Call the target and record its response; the mutations freeze the content."""


class Operation:
    """One operation while it is in use."""

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
        """Requests among its users."""
        self.left_at = -math.inf
        """When the last visitor left, on trio's clock."""
        self.tells_digest = True
        """Whether ``Want-Repr-Digest`` is answered."""
        self.unoffered = False
        """Whether nobody was told of it: no resources, no replay, no tombstone."""
        self.is_known = False
        """Whether the catalog has it, and everything that was submitted for it."""
        self.is_forgotten = False
        """Whether the catalog has nothing of it any more."""
        self.readmits = True
        """Whether the target is asked again before it is called (C16).

        It was asked when the upload began. But since then it may have changed its mind,
        or the length was not known then.
        """
        self.was_visited = False
        """Whether its owner asked for it since it was loaded, or went to rest."""
        self.progress: Progress | None = None
        self.frozen_content: Content | None = None
        """The content as it will be frozen, known before it is."""
        self._around = surroundings
        self._bug: Exception | None = None
        self._changed = Signal()

    def load(self, record: OperationRecord, offset: int | None = None) -> None:
        """Begin with what the catalog has, or is about to have.

        *offset* is how far its content is, if that was just looked up.
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
        """Whether it is worth keeping, and no newer than what the catalog has."""
        return (
            self.is_known
            and self.is_receiving
            and self._bug is None
            and self.incoming.failure is None
        )

    def rest(self) -> None:
        """Nobody uses it for now; as if it were loaded anew when somebody does."""
        self.incoming.rest()
        self.readmits = True
        self.progress = None
        self._renew_for_owner()

    def unload(self) -> None:
        """Nobody uses it any more."""
        self.incoming.close()
        if not self.unoffered:
            self._renew_for_owner()
        elif not self.is_forgotten:
            self._around.storage.submit_later(ForgetOperation(self.id))
        # It calls this back: a circle, which only the garbage collector would undo.
        del self.incoming

    def start(self, function: Callable[..., object], *args: object) -> None:
        """Run *function* in the server's nursery, keeping this in use."""
        self._around.start(self, function, *args)

    # What it is now.

    @property
    def state(self) -> OperationState:
        return self.record.state

    @property
    def is_receiving(self) -> bool:
        """Whether content is still missing, or only the completion."""
        return self.state is _S.RECEIVING

    @property
    def is_working(self) -> bool:
        """Whether its content has ended, and its response is to come."""
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
        """Seconds for which it is kept at least from now on, without a further visit.

        And until when that is, as a date.
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
        """Make all that was accepted so far durable; the offset that may be announced.

        Raises :class:`StorageError`.
        """
        while self.state is _S.COMPLETE and not self.is_frozen and self._bug is None:
            # It has ended and is being frozen: soon all of it is durable.
            await self.wait_change()
        if not self.is_receiving:
            return self.durable_offset
        try:
            return await self.incoming.make_durable()
        except (StaleWriter, StorageConflict):
            if not self.incoming.ended:
                raise
            # It ended while this waited: its writer is stale, and there can be no other.
            # Look at what it is now.
            return await self.make_durable()

    def forget_preferences(self) -> None:
        """What the request preferred of its answer is ignored; nobody was told of it."""
        fields = self.record.fields.without("prefer")
        self.record = replace(self.record, fields=fields)

    def learn_length(self, length: int | None) -> None:
        """Somebody stated the content's length; it was checked against what is known.

        Raises :class:`PeerError` 507 if there is no room for so much.
        """
        if length is not None and length != self.record.length:
            reserved = self._around.quotas.extend(self.record, length, exact=True)
            self.record = replace(self.record, length=length, reserved=reserved)
            self._submit(SetLength(self.id, length), SetReserved(self.id, reserved))

    def reserve(self, end: int) -> None:
        """Have the bytes below *end* counted, before they arrive (G7).

        Raises :class:`PeerError` 507 if there is no room for them.
        """
        if end > self.record.reserved:
            reserved = self._around.quotas.extend(self.record, end, exact=False)
            self.record = replace(self.record, reserved=reserved)
            self._submit(SetReserved(self.id, reserved))

    def _submit(self, *mutations: Mutation) -> None:
        # Used until it is committed, or a newcomer would load what was before.
        submission = self._around.storage.submit(*mutations)
        self.start(self._note_applied, submission)

    async def _note_applied(self, submission: Submission) -> None:
        try:
            await submission.wait()
        except StorageError as exc:
            logger.error("a change of %s was not recorded: %s", self.id, exc)
            self.is_known = False

    # Changes of state, in memory; whoever makes one makes it true on disk.

    def change(self, event: Event) -> OperationState:
        """Apply *event*; the new state. Its effects are left to the caller."""
        new_state = step(self.state, event).state
        self.record = replace(self.record, state=new_state)
        self.incoming.ended = new_state is not _S.RECEIVING
        self.announce_change()
        return new_state

    def announce_change(self) -> None:
        """Wake whoever waits for a change of state or of progress."""
        self._changed.fire()

    async def wait_change(self) -> None:
        """Return at the next change of state or of progress."""
        await self._changed.wait()

    def note_bug(self, exc: Exception) -> None:
        """The operation cannot go on in this process; its waiters must not wait."""
        self._bug = exc
        self.announce_change()

    # Endings. The state changes first: from then on nobody gets the writer's turn. Then
    # whoever has it is ended, also a request that is newer than the one that ends all.

    async def cut(self) -> None:
        """The writer's connection ended before the content did (R22, R23)."""
        if self.record.keep_incomplete:
            await self.incoming.cut_back()
        elif self.is_receiving:
            await self._end(Event.CUT_FOR_GOOD)

    async def cancel(self) -> None:
        """The client wants it gone (R25, R29); on return a restart cannot bring it back."""
        if self.state in (_S.GONE, _S.ABANDONED):
            await self.incoming.end_writers()
        elif await self._end(Event.CANCELLED) is not _S.GONE:
            await self._around.storage.commit(SetState(self.id, self.state))

    async def expire(self) -> None:
        """Its time has come, and nobody moved it on (promise 9)."""
        if self.state is _S.GONE:
            self.change(Event.EXPIRED)
            await self._around.storage.commit(ForgetOperation(self.id))
        elif await self._end(Event.EXPIRED) is not _S.GONE:
            self.renew()

    async def _end(self, event: Event) -> OperationState:
        """Apply *event*, which may end the operation: then nothing of it is left."""
        new_state = self.change(event)
        if new_state is not _S.RECEIVING:
            await self.incoming.end_writers()
        if new_state is _S.GONE:
            await self.discard()
        return new_state

    @property
    def _ends_at(self) -> float:
        """When an upload that goes on and on ends all the same."""
        return self.record.created_at + self._around.config.max_upload_lifetime

    async def end_overdue(self) -> None:
        """A request for an upload that has lived too long ends it instead (G5).

        Whoever still writes is not cut by time alone (promise 9), only by newcomers. An
        upload that has all its bytes is spared: it only has to be completed. Raises
        :class:`StorageError` if the bytes cannot be made durable; then nothing has ended.
        """
        overdue = self.is_receiving and self._around.clock.now() >= self._ends_at
        if overdue:
            await self.incoming.end_writer()
            try:
                await self.make_durable()  # or it could not be known to be whole
            except ContentLost:
                pass
            if self.is_receiving and not self.is_whole:
                await self._end(Event.EXPIRED)

    async def discard(self) -> None:
        """Release everything, leave a tombstone if it was offered. The state is GONE."""
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
        """Whether *principal* owns it; a stranger's visit changes nothing of it (R35)."""
        is_owner = self.record.principal == principal
        self.was_visited = self.was_visited or is_owner
        return is_owner

    def _renew_for_owner(self) -> None:
        if self.was_visited:
            self.was_visited = False
            self.renew()

    def renew(self) -> None:
        """Move the expiry on, after activity."""
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
        """The content has ended: freeze it and call the target, in the background."""
        if self.is_receiving:
            self.change(Event.CONTENT_ENDED)
            self.start(self._complete)

    async def _complete(self) -> None:
        """CONTENT_ENDED's effects: FREEZE, then CALL_TARGET."""
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
        """The content is that of *parts*: freeze it so, and call the target (D7).

        Returns when that is durable. Raises :class:`StorageConflict` if a part was
        released meanwhile, and other :class:`StorageError`; then nothing was done.
        """
        join = JoinContents(self.id, parts)
        length = join.content.length
        # COMPLETE on disk: the target was not called yet, and will be after a crash.
        await self._around.storage.commit(
            join, SetLength(self.id, length), SetState(self.id, _S.COMPLETE)
        )
        self.incoming.close()
        self.frozen_content = join.content
        self.record = replace(self.record, content=join.content, length=length)
        self.change(Event.CONTENT_ENDED)
        self.start(self._around.answer, self, [])

    async def frozen(self) -> int:
        """Wait until the content is immutable and durable; its length.

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
        """The final response, once it is recorded; waits while the target runs.

        Raises what prevented it: :class:`StorageError` when the content could not be
        completed (it can be tried again), :class:`PeerError` GONE when it was ended.
        """
        while self.is_working:
            await self.wait_change()
        if self.record.response is not None:
            return self.record.response
        problem = self._bug or self.incoming.failure
        raise problem or PeerError(ProblemCode.GONE)

    def note_frozen(self) -> None:
        """The content is frozen in the catalog."""
        self.incoming.close()
        content = self.frozen_content
        assert content is not None
        self.record = replace(self.record, content=content, length=content.length)
        self.announce_change()

    def note_answer(self, response: StoredResponse, expires_at: float) -> None:
        """The response is recorded."""
        keep = self._around.config.retain_content or self.is_partial
        content = self.record.content if keep else None
        self.record = replace(
            self.record, response=response, content=content, expires_at=expires_at
        )
        self.change(Event.ANSWERED)


def _expiry_slack(lifetime: float) -> float:
    return min(EXPIRY_SLACK, lifetime / 10)
