"""An operation in memory: its record, its users, its durable offset, what it waits for.

An operation is in memory while something *uses* it: a request, a seal on its way to the disk,
the target's call. It stays for a while after that if it is unfinished and the catalog knows
everything about it. For all other operations only the catalog has the truth. A task that
submits a change of state uses the operation until the change is committed. So an operation
that is loaded again is never older than the changes made to it.

The numbered statements (G7, C16, R35 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from trioresume.errors import (
    PeerError,
    ProblemCode,
    StaleWriter,
    StorageConflict,
    StorageError,
    TargetUnavailable,
    UsageExceeded,
)
from trioresume.protocol.dialects import Interim
from trioresume.protocol.dialects.tus.server import is_partial
from trioresume.protocol.heads import RequestHead
from trioresume.protocol.operation import OperationState
from trioresume.server.event_loop import Signal
from trioresume.server.uploads.incoming_content import IncomingContent
from trioresume.server.uploads.locations import OPEN, concealed
from trioresume.store.port import (
    ForgetOperation,
    Mutation,
    OperationId,
    OperationRecord,
    SetExpiry,
    SetLength,
    SetReserved,
    StoredResponse,
    request_key,
)

if TYPE_CHECKING:
    from trioresume.protocol.clock import ServiceClock
    from trioresume.protocol.dialects import Reply
    from trioresume.protocol.heads import Fields
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import AnyTarget, Progress, RepeatingTarget
    from trioresume.server.api.rulebook import Rulebook
    from trioresume.server.async_store.storage import Storage, Submission
    from trioresume.server.uploads.hashing import Hashing
    from trioresume.server.uploads.quotas import Quotas
    from trioresume.server.uploads.share import Share

__all__ = ["LoadedOperation", "Surroundings", "lifetime_of", "limited", "record_head"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState


LIMIT = ":max-size"
"""The name under which the head of an open upload has the most bytes of its content."""

EXPIRY_SLACK = 60.0
"""An expiry moves only by more than about this many seconds, to save commits."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts of the service that an operation uses."""

    storage: Storage
    target: AnyTarget
    config: Config
    clock: ServiceClock
    quotas: Quotas
    hashing: Hashing
    start: Callable[..., None]
    """``start(operation, function, *args)``: run it in the server's nursery, in use."""
    repeating: RepeatingTarget | None = None
    rulebook: Rulebook | None = None
    """The rules of the service, if it has any; ``config`` has the values of the upload's rule."""
    """The target, if it has a policy for each request."""


class LoadedOperation:
    """What is known of one operation while it is in memory. It changes no state."""

    content_type: ClassVar[type[IncomingContent]] = IncomingContent

    __slots__ = (
        "_bug",
        "_exceeds",
        "around",
        "changed",
        "followers",
        "id",
        "incoming",
        "is_forgotten",
        "is_known",
        "is_loaded",
        "is_retried",
        "left_at",
        "loading",
        "max_size",
        "progress",
        "readmits",
        "record",
        "share",
        "tells_digest",
        "unoffered",
        "users",
        "visitors",
        "was_visited",
    )

    def __init__(self, id: OperationId, surroundings: Surroundings) -> None:
        self.id = id
        self.record: OperationRecord
        self.incoming: IncomingContent
        self.is_loaded = False
        self.loading: Signal | None = None
        """Fired when the task that loads it has ended; None while no task does."""
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
        self.followers: set[Callable[[Interim], None]] | None = None
        """What passes interim responses to the clients that wait for the outcome."""
        self.is_retried = False
        """Whether the target is about to be called again, and the state does not show it."""
        self.around = surroundings
        self.share: Share | None = None
        """How it is shared with other processes; None if this process has the store alone."""
        self._bug: Exception | None = None
        self._exceeds: ProblemCode | None = None
        """The limit that refused its last reservation, until the next bytes are refused."""
        self.changed = Signal()
        """Fired at each change of the state, and of the progress."""

    def load(self, record: OperationRecord, stored: int | None = None) -> None:
        """Begin with *record*, which the catalog has or will soon have.

        *stored* is the stored offset of the content, if it was looked up just now.
        """
        self.record = record
        self.max_size = self.around.config.max_upload_size
        """The most bytes of the content, None for no limit."""
        if self.id[-1] in OPEN:
            self.max_size = least_limit(self.max_size, limit_of(record))
        self.incoming = self.content_type(
            request_key(self.id),
            record.durable_offset,
            self.around.storage,
            self,
            stored,
        )
        self.incoming.turns.ended = record.state is not _S.RECEIVING
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
        self.renew_for_owner()

    def unload(self) -> None:
        """Let go of everything, because the operation leaves memory."""
        self.incoming.close()
        if not self.unoffered:
            self.renew_for_owner()
        elif not self.is_forgotten and self.is_held:
            self.around.storage.submit_later(ForgetOperation(self.id))
        # The content refers back to this: only the garbage collector would end the cycle.
        del self.incoming

    def start(self, function: Callable[..., object], *args: object) -> None:
        """Run *function* in the server's nursery; the operation is in use meanwhile."""
        self.around.start(self, function, *args)

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
        """Whether its content has ended, and its response is being made."""
        works = self.is_retried or self.state in (_S.COMPLETE, _S.PROCESSING)
        return works and self._bug is None

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
            and not self.incoming.turns.has_writer
            and self.record.length == self.durable_offset
            and self.is_held
        )

    @property
    def is_held(self) -> bool:
        """Whether this process may change it, because no other process owns it."""
        return self.share is None or self.share.is_owned

    @property
    def is_partial(self) -> bool:
        """Whether it is a part of a later upload, for which no target is called (D7)."""
        return is_partial(self.record.fields)

    @property
    def is_overdue(self) -> bool:
        """Whether an upload has lived too long, even if it was resumed again and again."""
        end = _ends_at(self.record, self.around.config)
        return self.is_receiving and self.around.clock.now() >= end

    def guaranteed(self) -> tuple[int, float]:
        """Return the seconds for which it is kept at least, and the date of that time.

        They hold if no further request for it comes.
        """
        clock, config = self.around.clock, self.around.config
        lifetime, slack = lifetime_of(self.record, config)
        lifetime -= slack
        if self.is_receiving:
            lifetime = min(lifetime, _ends_at(self.record, config) - clock.now())
        seconds = max(0, int(lifetime))
        return seconds, clock.date() + seconds

    @property
    def durable_offset(self) -> int:
        """The bytes that no crash takes away, and so may be announced."""
        if self.is_frozen and self.record.length is not None:
            return self.record.length
        return self.incoming.durable_offset

    async def make_durable(self) -> int:
        """Make all accepted bytes durable; return the durable offset.

        Raises :class:`StorageError`.
        """
        await self._until_frozen()
        if not (self.is_receiving and self.is_held):
            return self.durable_offset
        try:
            return await self.incoming.make_durable()
        except (StaleWriter, StorageConflict) as exc:
            if self._is_written_here():
                if self.share is None or not isinstance(exc, StaleWriter):
                    raise
                self.share.lose()
            if self.share is not None:
                await self.share.look()
            # The content ended meanwhile: its writer is stale, and there can be no other.
            # Or another process writes it. Look at the new state.
            return await self.make_durable()

    async def confirm(self) -> int:
        """Make durable what a request has sent; return the offset for its answer.

        Raises :class:`StorageError`, and :class:`PeerError` SUPERSEDED if another process has
        taken over: then what was sent last may be lost.
        """
        offset = await self.make_durable()
        if not self.is_held:
            raise self.incoming.turns.superseded()
        return offset

    def _is_written_here(self) -> bool:
        """Whether a request to this process may still write it."""
        return self.is_held and not self.incoming.turns.ended

    async def _until_frozen(self) -> None:
        """Wait while the content has ended and is being frozen: all of it is durable then."""
        while self.state is _S.COMPLETE and not self.is_frozen and self._bug is None:
            await self.changed.wait()

    def is_visited_by(self, principal: str | None) -> bool:
        """Whether *principal* owns it. A stranger's visit changes nothing (R35)."""
        is_owner = self.record.principal == principal
        self.was_visited = self.was_visited or is_owner
        return is_owner

    @property
    def waits_for_target(self) -> bool:
        """Whether even a client waits for the target that is usually answered before it."""
        return False

    def as_answered(self, reply: Reply) -> Reply:
        """Return *reply*, by which a dialect says that the upload is complete."""
        return reply

    def note_bug(self, exc: Exception) -> None:
        """Note that a bug stops the operation in this process, and wake its waiters."""
        self._bug = exc
        self.changed.fire()

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
            reserved = self.around.quotas.extend(self.record, length, exact=True)
            before = self.record
            self.record = replace(before, length=length, reserved=reserved)
            self._submit(
                SetLength(self.id, length), *self._reservation(before, reserved)
            )

    def reserve(self, end: int) -> None:
        """Reserve the bytes below *end* before they arrive (G7).

        Raises :class:`PeerError` 507 if there is no room for them.
        """
        if end > self.record.reserved:
            if self._exceeds is not None:
                exceeds, self._exceeds = self._exceeds, None
                raise PeerError(exceeds, close=True)
            reserved = self.around.quotas.extend(self.record, end, exact=False)
            before = self.record
            self.record = replace(before, reserved=reserved)
            self._submit(*self._reservation(before, reserved))

    def _reservation(self, before: OperationRecord, reserved: int) -> list[Mutation]:
        """Return the mutations that change the reservation of *before* to *reserved*."""
        step: list[Mutation] = [SetReserved(self.id, reserved)]
        if reserved > before.reserved:
            step += self.around.quotas.limit(before)
        return step

    def _submit(self, *mutations: Mutation) -> None:
        # In use until the commit: otherwise a newcomer would load the old state.
        submission = self.around.storage.submit(*mutations)
        self.start(self._note_applied, submission)

    async def _note_applied(self, submission: Submission) -> None:
        try:
            await submission.wait()
        except UsageExceeded as exc:
            # Another process has used up the quota meanwhile. The next bytes are refused:
            # see reserve(). The record here is not what is stored, so it is loaded again.
            self._exceeds = exc.problem
            self.record = replace(self.record, reserved=0)
            self.is_known = False
        except StorageError as exc:
            logger.error("a change of %s was not recorded: %s", concealed(self.id), exc)
            self.is_known = False

    # Its expiry.

    def renew_for_owner(self) -> None:
        """Renew it, if its owner has asked for it."""
        if self.was_visited:
            self.was_visited = False
            self.renew()

    def renew(self) -> None:
        """Move the expiry to a later time, after activity."""
        if self.state is _S.GONE:
            return
        config = self.around.config
        lifetime, slack = lifetime_of(self.record, config)
        expires_at = self.around.clock.now() + lifetime
        if self.state in (_S.RECEIVING, _S.WAITING):
            expires_at = min(expires_at, _ends_at(self.record, config))
        if expires_at <= self.record.expires_at + slack:
            return
        if self.share is not None and not self.share.is_owned:
            if not self.record.is_elsewhere:
                self.share.renew_later()
        else:
            self.around.storage.submit(SetExpiry(self.id, expires_at))
            self.record = replace(self.record, expires_at=expires_at)

    def pass_on(self, status: int, fields: Fields) -> None:
        """Pass an interim response of the target to the clients that wait."""
        if self.share is not None:
            self.share.note_interim(status, fields)
        self.show_interim(status, fields)

    def show_interim(self, status: int, fields: Fields) -> None:
        """Pass an interim response on, whichever process has called the target."""
        interim = Interim(status, fields)
        for follower in tuple(self.followers or ()):
            follower(interim)

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
        completed (a new try is possible), :class:`TargetUnavailable` if the target cannot take
        the request now, :class:`PeerError` GONE if the operation was ended.
        """
        while self.is_working:
            await self.changed.wait()
        if self.record.response is not None:
            return self.record.response
        problem = self._bug or self.incoming.failure
        if problem is None and self.state is _S.WAITING:
            problem = TargetUnavailable(
                "the content is kept, and it will be tried again"
            )
        raise problem or PeerError(ProblemCode.GONE)


def record_head(record: OperationRecord) -> RequestHead:
    """Return the recorded head of the request that began the operation."""
    return RequestHead(
        method=record.method,
        target=record.target,
        fields=record.fields.without(LIMIT) if record.id[-1] in OPEN else record.fields,
        http_version="1.1",
        length=record.length,
    )


def limited(fields: Fields, max_size: int | None) -> Fields:
    """Return the *fields* to record for an open upload, with its own limit.

    No request has a field of such a name, because a colon is no part of one.
    """
    return fields if max_size is None else fields.plus({LIMIT: str(max_size)})


def limit_of(record: OperationRecord) -> int | None:
    """Return the limit of an open upload itself."""
    limit = record.fields.get(LIMIT)
    return None if limit is None else int(limit)


def least_limit(one: int | None, other: int | None) -> int | None:
    """Return the lower one of two limits, each of which may be missing."""
    return min((limit for limit in (one, other) if limit is not None), default=None)


def _ends_at(record: OperationRecord, config: Config) -> float:
    """Return when an upload ends, even if it is resumed again and again (G5)."""
    return record.created_at + config.max_upload_lifetime


def lifetime_of(record: OperationRecord, config: Config) -> tuple[float, float]:
    """Return the seconds for which it is kept, and by how many they may be fewer."""
    done = record.state is _S.DONE
    lifetime = config.response_lifetime if done else config.incomplete_lifetime
    return lifetime, min(EXPIRY_SLACK, lifetime / 10)
