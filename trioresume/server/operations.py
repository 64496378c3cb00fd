"""Operations in memory: the writer's turn, durability, completion.

An :class:`Operation` is in memory while somebody *uses* it: a request, a seal on its
way to the disk, the target's call. The catalog is the truth for all others. Whoever
submits a change of state holds a use until it is committed, so that an operation
loaded anew is never older than what was done to it.

The writer's turn (R21, promise 3)
==================================

At most one request writes. Its receive loop runs inside the cancel scope of its
*turn*. A newcomer raises the turn's number, cancels the scope and waits until the
old writer has left it; since the loop's only checkpoints are waits for the network
or for room, that takes microseconds even if the old connection is silent and open.
Of several newcomers the last one gets the turn. Bytes are appended without a
checkpoint between reading and writing, so a cancelled writer has either written what
it read, or not read it: nothing of it arrives later. (The store's own generations
guard the same from below.)

Durability (promises 1 and 2)
=============================

Full chunks are sealed in the background while the upload goes on: synced in a thread,
then named in the catalog. :meth:`Operation.make_durable` waits for the seals issued so
far, syncs the tail and records the offset; only what it returns may be announced.

Completion (promise 4)
======================

The end of the content is where the request's fate leaves its connection: the rest runs
in the server's nursery, and the connection merely waits for the outcome. The steps are
the rows of :mod:`trioresume.protocol.operation`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.protocol.operation import Event, OperationState, step
from trioresume.server.answers import Answer, Answering
from trioresume.store.port import (
    Content,
    CreateOperation,
    EndOperation,
    ForgetOperation,
    Mutation,
    OperationId,
    OperationRecord,
    SetExpiry,
    SetLength,
    SetState,
    request_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.protocol.clock import ServiceClock
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.config import Config
    from trioresume.server.messages import Progress, Target
    from trioresume.server.storage import Storage
    from trioresume.store.port import ContentWriter, Flush, Seal, StoredResponse

__all__ = ["Operation", "Operations"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState

EXPIRY_SLACK = 60.0
"""An expiry is moved on only by more than about this many seconds: fewer commits."""


class _Turn:
    """A writer's right to write: its place, its scope, and when it has left it."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.scope = trio.CancelScope()
        self.left = trio.Event()


class Operation:
    """One operation while it is in use."""

    def __init__(self, operations: Operations, id: OperationId) -> None:
        self.id = id
        self.key = request_key(id)
        self.record: OperationRecord
        self.is_loaded = False
        self.unoffered = False
        """Whether nobody was told of it: no resources, no replay, no tombstone."""
        self.progress: Progress | None = None
        self.users = 0
        self.loading = trio.Lock()
        self.frozen_content: Content | None = None
        """The content as it will be frozen, known before it is."""
        self._all = operations
        self._storage = operations.storage
        self._config = operations.config
        self._writer: ContentWriter | None = None
        self._opening = trio.Lock()
        self._turn: _Turn | None = None
        self._turns = 0
        self._unsealed: set[int] = set()
        self._seal_moved = trio.Event()
        self._failure: StorageError | None = None
        self._bug: Exception | None = None
        self._changed = trio.Event()

    # What it is now.

    @property
    def state(self) -> OperationState:
        return self.record.state

    @property
    def is_receiving(self) -> bool:
        """Whether content is still missing, or only the completion."""
        return self.state is _S.RECEIVING

    @property
    def is_abandoned(self) -> bool:
        """Whether the client gave up while the target ran."""
        return self.state is _S.ABANDONED

    @property
    def offset(self) -> int:
        """Bytes accepted. Known only while writing; may be ahead of what is durable."""
        assert self._writer is not None
        return self._writer.offset

    @property
    def durable_offset(self) -> int:
        """Bytes that are known to be durable, and so may be announced."""
        if self.is_frozen and self.record.length is not None:
            return self.record.length
        return self.record.durable_offset

    @property
    def is_frozen(self) -> bool:
        """Whether the content is whole, immutable and durable."""
        return self.state in (_S.PROCESSING, _S.DONE) or self.record.content is not None

    @property
    def has_writer(self) -> bool:
        return self._turn is not None

    def _become(self, event: Event) -> OperationState:
        """Change the state in memory, to what is returned; the caller makes it true."""
        new_state = step(self.state, event).state
        self.record = replace(self.record, state=new_state)
        self.announce_change()
        return new_state

    def announce_change(self) -> None:
        """Wake whoever waits for a change of state or of progress."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_change(self) -> None:
        await self._changed.wait()

    # The writer's turn.

    async def end_writer(self) -> int:
        """End a running writer; on return it has left and writes no more (R21).

        What is returned is the caller's place among the newcomers, for :meth:`writing`.
        """
        self._turns += 1
        place = self._turns
        # Woken together, a newer request may have the turn before an older one looks.
        while self._turn is not None and self._turn.place < place:
            self._turn.scope.cancel()
            await self._turn.left.wait()
        return place

    @asynccontextmanager
    async def writing(self, place: int) -> AsyncIterator[None]:
        """Hold the writer's turn, which *place* is a claim to.

        Raises :class:`PeerError` SUPERSEDED as soon as a newer request wants it.
        """
        turn = _Turn(place)
        if self._turns != place or self._turn is not None or not self.is_receiving:
            raise _superseded()
        self._turn = turn
        try:
            with turn.scope:
                await self._open_writer()
                yield
            if turn.scope.cancelled_caught or self._is_stale(place):
                raise _superseded()
        finally:
            self._turn = None
            turn.left.set()

    def _is_stale(self, place: int) -> bool:
        """Whether a newer request wants the turn; after the end it is not needed."""
        return self.is_receiving and self._turns != place

    async def _open_writer(self) -> ContentWriter:
        # One opens: a second writer would make the first one stale.
        async with self._opening:
            if self._failure is not None:
                # After a failed sync only what was recorded counts: look again (rule 4).
                await self._settle()
                self._failure = None
                self._close_writer()
            if self._writer is None:
                self._writer = await self._storage.run(
                    self._storage.store.open_writer, self.key
                )
            return self._writer

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # Receiving.

    def append(self, data: memoryview) -> None:
        """Write *data* at the offset, without a checkpoint. Only within the turn."""
        assert self._writer is not None
        for seal in self._writer.append(data):
            self._start_seal(seal)

    async def room(self) -> None:
        """Wait until few enough chunks are on their way to the disk.

        This is what bounds dirty memory and pushes back into the peer's TCP window.
        """
        while len(self._unsealed) >= self._config.unsealed_chunks:
            await self._seal_moved.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def has_room(self) -> bool:
        return len(self._unsealed) < self._config.unsealed_chunks and not self._failure

    def _start_seal(self, seal: Seal) -> None:
        self._unsealed.add(seal.index)
        self._all.start(self, self._seal, seal)

    async def _seal(self, seal: Seal) -> None:
        try:
            await self._storage.commit(await self._storage.run(seal.run))
        except StorageError as exc:
            # The end of an operation takes its seals along.
            if self.state is not _S.GONE:
                logger.error(
                    "chunk %d of %s was not sealed: %s", seal.index, self.id, exc
                )
            self._failure = exc
        finally:
            self._unsealed.discard(seal.index)
            self._seal_moved.set()
            self._seal_moved = trio.Event()

    async def _settle(self, below: int | None = None) -> None:
        """Wait for the seals issued so far, or those of chunks before *below*."""
        waited = {i for i in self._unsealed if below is None or i < below}
        while waited & self._unsealed:
            await self._seal_moved.wait()

    async def make_durable(self) -> int:
        """Make all that was accepted so far durable; the offset that may be announced.

        Works beside a running writer. Raises :class:`StorageError`.
        """
        while self.state is _S.COMPLETE and not self.is_frozen and self._bug is None:
            # It has ended and is being frozen: soon all of it is durable.
            await self.wait_change()
        if not self.is_receiving:
            return self.durable_offset
        if self._failure is not None and self._turn is not None:
            # The running writer has yet to learn of it; only its end may reopen.
            raise self._failure
        if self._writer is None:
            offset = await self._storage.run(self._storage.store.offset, self.key)
            if offset == self.record.durable_offset:
                return offset
        writer = await self._open_writer()
        flush = writer.flush()
        offset = writer.offset
        await self._settle()
        if self._failure is not None:
            raise self._failure
        if flush is not None:
            await self._flush(flush)
        return self._note_durable(offset)

    async def _flush(self, flush: Flush) -> None:
        try:
            await self._storage.commit(await self._storage.run(flush.run))
        except StorageError as exc:
            # The writer is broken now, or might be: the next one opens another.
            self._failure = exc
            raise

    def _note_durable(self, offset: int) -> int:
        if offset > self.record.durable_offset:
            self.record = replace(self.record, durable_offset=offset)
        return self.record.durable_offset

    def learn_length(self, length: int | None) -> None:
        """Somebody stated the content's length; it was checked against what is known."""
        if length is not None and length != self.record.length:
            self.record = replace(self.record, length=length)
            # Used until it is committed, or a newcomer would load what was before.
            submission = self._storage.submit(SetLength(self.id, length))
            self._all.start(self, submission.finished.wait)

    # Endings.

    async def cut(self) -> None:
        """The writer's connection ended before the content did (R22, R23)."""
        if self.record.keep_incomplete:
            return
        await self.end_writer()
        if self.state is _S.RECEIVING:
            self._become(Event.CUT_FOR_GOOD)
            await self._discard()

    async def cancel(self) -> None:
        """The client wants it gone (R25, R29); on return a restart cannot bring it back."""
        await self.end_writer()
        if self.state in (_S.GONE, _S.ABANDONED):
            return
        new_state = self._become(Event.CANCELLED)
        if new_state is _S.GONE:
            await self._discard()
        else:
            await self._storage.commit(SetState(self.id, new_state))

    async def expire(self, now: float) -> None:
        """Its time has come, if nobody moved it on meanwhile (promise 9)."""
        if self.record.expires_at > now:
            return
        old_state = self.state
        new_state = self._become(Event.EXPIRED)
        if old_state is _S.GONE:
            await self._storage.commit(ForgetOperation(self.id))
        elif new_state is _S.GONE:
            await self._discard()
        else:
            self.renew()

    async def _discard(self) -> None:
        self._close_writer()
        ended: Mutation
        if self.unoffered:
            ended = ForgetOperation(self.id)
        else:
            expires_at = self._all.clock.now() + self._config.tombstone_lifetime
            ended = EndOperation(self.id, expires_at)
            self._note_expiry(expires_at)
        self.record = replace(self.record, content=None, response=None)
        await self._storage.commit(ended)

    def renew(self) -> None:
        """Move the expiry on, after activity."""
        lifetime = (
            self._config.response_lifetime
            if self.state is _S.DONE
            else self._config.incomplete_lifetime
        )
        expires_at = self._all.clock.now() + lifetime
        slack = min(EXPIRY_SLACK, lifetime / 10)
        if self.state is not _S.GONE and expires_at > self.record.expires_at + slack:
            self._storage.submit(SetExpiry(self.id, expires_at))
            self._note_expiry(expires_at)

    def _note_expiry(self, expires_at: float) -> None:
        self.record = replace(self.record, expires_at=expires_at)
        self._all.on_expiry(expires_at, f"o:{self.id}")

    # Completion.

    @property
    def is_whole(self) -> bool:
        """Whether every byte is here and only the completion is missing."""
        return (
            self.state is _S.RECEIVING
            and self._turn is None
            and self.record.length is not None
            and self.record.length == self.durable_offset
        )

    def complete(self) -> None:
        """The content has ended: freeze it and call the target, in the background."""
        if self.state is _S.RECEIVING:
            self._become(Event.CONTENT_ENDED)
            self._all.start(self, self._complete)

    async def outcome(self) -> StoredResponse:
        """The final response, once it is recorded; waits while the target runs.

        Raises what prevented it: :class:`StorageError` when the content could not be
        completed (it can be tried again), :class:`PeerError` GONE when it was ended.
        """
        while self.state in (_S.COMPLETE, _S.PROCESSING) and self._bug is None:
            await self.wait_change()
        if self.record.response is not None:
            return self.record.response
        if self._bug is not None or self._failure is not None:
            raise self._bug or self._failure  # type: ignore[misc]
        raise PeerError(ProblemCode.GONE)

    async def _complete(self) -> None:
        """CONTENT_ENDED's effects: FREEZE, then CALL_TARGET."""
        try:
            await Answering(self, self._all, await self._freeze()).run()
        except StorageError as exc:
            logger.error("%s cannot be completed now: %s", self.id, exc)
            self._failure = exc
            if self.state is _S.COMPLETE and self.record.content is None:
                self._become(Event.STORAGE_FAILED)
            else:
                raise

    async def _freeze(self) -> list[Mutation]:
        """Seal the rest and build the recipe. The mutations are not committed yet."""
        writer = await self._open_writer()
        await self._settle()
        if self._failure is not None:
            raise self._failure
        recipe, frozen = await self._storage.finish_content(writer, self.key)
        self.frozen_content = Content(recipe.length, digest=recipe.digest)
        if self.record.length != recipe.length:
            frozen.append(SetLength(self.id, recipe.length))
        return frozen

    def note_bug(self, exc: Exception) -> None:
        """The operation cannot go on in this process; its waiters must not wait."""
        self._bug = exc
        self.announce_change()

    def note_frozen(self) -> None:
        """The content is frozen in the catalog."""
        self._close_writer()
        content = self.frozen_content
        assert content is not None
        self.record = replace(self.record, content=content, length=content.length)
        self.announce_change()

    def note_event(self, event: Event) -> None:
        """An event whose effects the caller performs."""
        self._become(event)

    def note_answer(self, answer: Answer) -> None:
        """The response is recorded (or dropped, when the client gave up meanwhile)."""
        keep = self._config.retain_content
        self.record = replace(
            self.record,
            response=answer.response,
            content=self.record.content if keep else None,
        )
        self._become(Event.ANSWERED)
        self._note_expiry(answer.expires_at)

    async def drop_answer(self) -> None:
        """ABANDONED is over: the target is through, its result goes."""
        self._become(Event.ANSWERED)
        await self._discard()

    async def restart(self) -> None:
        """RESTARTED: go on where the last process stopped."""
        was = self.state
        self._become(Event.RESTARTED)
        if was is _S.ABANDONED:
            await self._discard()
            return
        answering = Answering(self, self._all, [])
        if was is _S.PROCESSING:
            await answering.record_indeterminate()
        else:
            assert self.record.content is not None
            self.frozen_content = self.record.content
            await answering.run()

    def unload(self) -> None:
        """Nobody uses it any more."""
        self._close_writer()
        if not self.unoffered:
            self.renew()
        elif self.state is not _S.GONE:
            self._storage.submit(ForgetOperation(self.id))


class Operations:
    """All operations: finds, makes and loads them, and remembers who uses which."""

    def __init__(
        self,
        storage: Storage,
        target: Target,
        config: Config,
        clock: ServiceClock,
        background: trio.Nursery,
        on_expiry: Callable[[float, str], None],
    ) -> None:
        self.storage = storage
        self.target = target
        self.config = config
        self.clock = clock
        self.on_expiry = on_expiry
        self._background = background
        self._used: dict[OperationId, Operation] = {}

    def start(
        self, operation: Operation, function: Callable[..., object], *args: object
    ) -> None:
        """Run *function* in the server's nursery, using *operation* meanwhile."""
        operation.users += 1
        self._background.start_soon(self._run, operation, function, args)

    async def _run(
        self,
        operation: Operation,
        function: Callable[..., object],
        args: tuple[object, ...],
    ) -> None:
        try:
            await function(*args)  # type: ignore[misc]
        except Exception as exc:
            # A bug, but of one operation: the log has it, the service lives on.
            logger.exception("operation %s failed", operation.id)
            operation.note_bug(exc)
        finally:
            self._release(operation)

    def _release(self, operation: Operation) -> None:
        operation.users -= 1
        if operation.users == 0:
            del self._used[operation.id]
            if operation.is_loaded:
                operation.unload()

    @asynccontextmanager
    async def create(
        self,
        head: RequestHead,
        principal: str | None,
        *,
        offered: bool,
        keep_incomplete: bool,
    ) -> AsyncIterator[Operation]:
        """A new operation for *head*, used within the block.

        When it is *offered* (its locations will be told) the record is durable on
        entry: a client that was told of an operation finds it again.
        """
        now = self.clock.now()
        operation = Operation(self, OperationId(secrets.token_urlsafe(16)))
        operation.unoffered = not offered
        operation.record = OperationRecord(
            id=operation.id,
            method=head.method,
            target=head.target,
            fields=head.fields,
            principal=principal,
            created_at=now,
            expires_at=now + self.config.incomplete_lifetime,
            keep_incomplete=keep_incomplete,
            length=head.length,
        )
        operation.is_loaded = True
        operation.users = 1
        self._used[operation.id] = operation
        self.on_expiry(operation.record.expires_at, f"o:{operation.id}")
        try:
            if offered:
                await self.storage.commit(CreateOperation(operation.record))
            else:
                self.storage.submit(CreateOperation(operation.record))
            yield operation
        finally:
            self._release(operation)

    @asynccontextmanager
    async def use(self, id: OperationId) -> AsyncIterator[Operation | None]:
        """The operation called *id*, used within the block; None if there is none."""
        operation = self._used.get(id)
        if operation is None:
            operation = self._used[id] = Operation(self, id)
        operation.users += 1
        try:
            # One loads, the others wait: two copies of an operation must never be.
            async with operation.loading:
                if not operation.is_loaded:
                    record = await self.storage.run(self.storage.store.operation, id)
                    if record is not None:
                        operation.record = record
                        operation.is_loaded = True
            yield operation if operation.is_loaded else None
        finally:
            self._release(operation)

    def is_used(self, id: OperationId) -> bool:
        return id in self._used

    async def recover(self) -> None:
        """Go on with what the last process left between complete and done (R31)."""
        states = (_S.COMPLETE, _S.PROCESSING, _S.ABANDONED)
        after: OperationId | None = None
        while records := await self.storage.run(
            self.storage.store.operations_in, states, 100, after
        ):
            for record in records:
                after = record.id
                if self.is_used(record.id):
                    continue
                async with self.use(record.id) as operation:
                    if operation is not None and operation.state in states:
                        self.start(operation, operation.restart)


def _superseded() -> PeerError:
    return PeerError(
        ProblemCode.SUPERSEDED, "a newer request for this upload arrived", close=True
    )
