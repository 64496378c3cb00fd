"""All operations: create them, load them, and count their users.

An unfinished upload that nothing uses any more *rests*: it stays in memory until others have
come after it. Most likely its client was cut and will ask for the offset, perhaps more than
once. Such a question then needs neither the catalog nor the disk. A resting upload holds no
file and no lock, and the catalog has everything that is known about it.

R31 is in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, StorageError, StorageFull, UsageExceeded
from trioresume.protocol.operation import OperationState
from trioresume.server.api.handler import RepeatingTarget
from trioresume.server.event_loop import Signal
from trioresume.server.uploads.hashing import Hashing
from trioresume.server.uploads.loaded_operation import Surroundings, limited
from trioresume.server.uploads.locations import OPEN, concealed, opened_id
from trioresume.server.uploads.operation import Operation
from trioresume.server.uploads.share import Wish
from trioresume.store.port import (
    CreateOperation,
    OperationId,
    OperationRecord,
    record_size,
    request_key,
)
from trioresume.text import new_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from trioresume.protocol.clock import ServiceClock
    from trioresume.protocol.dialects import Creation
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config, Grant
    from trioresume.server.api.handler import AnyTarget
    from trioresume.server.api.rulebook import Rulebook
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.uploads.quotas import Quotas
    from trioresume.server.uploads.share import Shares
    from trioresume.store.port import Mutation

__all__ = ["CALLING", "Registry"]

logger = logging.getLogger("trioresume.operations")

RECOVER_DELAY = 60.0
"""Seconds until a recovery that failed is tried again."""

_S = OperationState
CALLING = (_S.COMPLETE, _S.PROCESSING, _S.ABANDONED)
"""States on disk of an operation whose target is being called."""


MOST_RESTING = 1024
"""Uploads that rest in memory. Each takes 2.3 KB, and more if its head was large."""


@dataclass(frozen=True, slots=True)
class _Visitor:
    """Who sends a request for an operation, and what for."""

    principal: str | None
    wish: Wish
    by_id: bool = False
    """Whether the id is enough, whoever sends the request."""


class Registry:
    """All operations: finds, creates and loads them, and counts their users."""

    def __init__(
        self,
        storage: Storage,
        target: AnyTarget,
        config: Config,
        clock: ServiceClock,
        background: trio.Nursery,
        quotas: Quotas,
        rulebook: Rulebook | None = None,
        *,
        most_resting: int = MOST_RESTING,
        new_operation: Callable[[OperationId, Surroundings], Operation] = Operation,
    ) -> None:
        self._new_operation = new_operation
        self._quotas = quotas
        self._most_resting = most_resting
        self.storage = storage
        self.target = target
        self.config = config
        self.rulebook = rulebook
        self.clock = clock
        self.hashing = Hashing(storage, config)
        self._surroundings = Surroundings(
            storage,
            target,
            config,
            clock,
            quotas,
            self.hashing,
            self.start,
            target if isinstance(target, RepeatingTarget) else None,
            rulebook,
        )
        self._background = background
        self.shares: Shares | None = None
        """How the operations are shared with other processes, if the store is."""
        self._loaded: dict[OperationId, Operation] = {}
        self._resting: dict[OperationId, None] = {}
        """The loaded operations that nothing uses; the one that has rested longest is first."""

    def start(
        self, operation: Operation, function: Callable[..., object], *args: object
    ) -> None:
        """Run *function* in the server's nursery; *operation* is in use meanwhile."""
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
            # A bug, but of one operation only: log it, and let the service go on.
            logger.exception("operation %s failed", concealed(operation.id))
            operation.note_bug(exc)
        finally:
            self.release(operation)

    def leave(self, operation: Operation) -> None:
        """End a request's use of *operation*."""
        operation.visitors -= 1
        operation.left_at = trio.current_time()
        self.release(operation)

    def release(self, operation: Operation) -> None:
        """End one use of *operation*."""
        operation.users -= 1
        if operation.users:
            return
        self._quotas.forget(operation.id)
        # With a shared store nothing rests: another process may change it unseen, and most
        # likely gets the next request. So it is released, and claimed without asking anybody.
        if operation.may_rest and self.shares is None:
            operation.rest()
            self._resting[operation.id] = None
            if len(self._resting) > self._most_resting:
                oldest = next(iter(self._resting))
                del self._resting[oldest]
                self._unload(self._loaded[oldest])
        else:
            self._unload(operation)

    def _unload(self, operation: Operation) -> None:
        del self._loaded[operation.id]
        if operation.is_loaded:
            operation.unload()
        if self.shares is not None:
            self.shares.let_go(operation)

    async def create(
        self,
        head: RequestHead,
        principal: str | None,
        creation: Creation,
        *,
        offered: bool,
        keep_incomplete: bool,
        must_be_offered: bool = False,
        grant: Grant | None = None,
    ) -> Operation:
        """Create an operation for *head*. The caller ends its use with :meth:`leave`.

        If it is *offered* (the client will be told its locations), its record is durable on
        return: the client will find the operation again, even after a crash.

        At a limit a request that removes something is still admitted, but it is not offered.
        With *must_be_offered* it is refused like any other request.

        With a *grant* the operation is open: whoever knows its id may use it.

        Raises :class:`PeerError` (429, 507) at a quota, :class:`StorageFull` if too little of
        the disk is free.
        """
        now = self.clock.now()
        around = self._surroundings
        if self.rulebook is not None:
            around = self._under_rule(head.method, head.target, principal)
        token = OperationId(new_name())
        fields = head.fields if creation.fields is None else creation.fields
        if grant is not None:
            token = opened_id(token)
            fields = limited(fields, grant.max_size)
        record = OperationRecord(
            id=token,
            method=head.method,
            target=head.target,
            fields=fields,
            principal=principal,
            created_at=now,
            expires_at=now
            + min(around.config.incomplete_lifetime, self.config.max_upload_lifetime),
            keep_incomplete=keep_incomplete,
            explicit_completion=creation.explicit_completion,
            length=creation.length,
        )
        # A client at its limit must still be able to remove something. But such a request
        # must leave nothing behind, or requests with long heads would fill the disk.
        removes = head.method == "DELETE" and not head.has_content
        may_be_unoffered = removes and not must_be_offered
        try:
            reserved = self._quotas.admit(record, exempt=False)
            self.storage.store.take_room(record_size(record))
        except (PeerError, StorageFull):
            self._quotas.withdraw(record.id)
            if not may_be_unoffered:
                raise
            reserved, offered = self._quotas.admit(record, exempt=True), False
        record = replace(record, reserved=reserved)
        operation = self._loaded[record.id] = self._new_operation(record.id, around)
        if self.shares is not None:
            self.shares.add(operation, is_owned=True)
        operation.unoffered = not offered
        operation.readmits = record.length is None
        operation.was_visited = True
        operation.load(record)
        operation.incoming.begin()
        operation.users += 1
        operation.visitors += 1
        try:
            try:
                await self._record(operation, head)
            except (StorageFull, UsageExceeded):
                if not may_be_unoffered or operation.unoffered:
                    raise
                operation.unoffered = True
                await self._record(operation, head)
        except BaseException:
            self.leave(operation)
            raise
        return operation

    async def _record(self, operation: Operation, head: RequestHead) -> None:
        """Put a new operation, which *head* begins, into the catalog.

        If it is offered, this waits for the commit.
        """
        creation = self._creation(operation)
        if operation.unoffered:
            # No other request can look for it. Mostly it is over before the commit is due.
            operation.incoming.creation = self.storage.submit_later(*creation)
        else:
            await self.storage.commit(*creation)
            operation.is_known = True

    def _creation(self, operation: Operation) -> list[Mutation]:
        """Return the mutations that create *operation*, within the quotas.

        A removal that leaves nothing behind is within every quota: see :meth:`create`.
        """
        record = operation.record
        if operation.unoffered and record.method == "DELETE":
            return [CreateOperation(record)]
        return [CreateOperation(record), *self._quotas.limit(record, opens=True)]

    async def visit(
        self, id: OperationId, principal: str | None, wish: Wish = Wish.LOOK
    ) -> Operation | None:
        """Begin to use the operation for a request of *principal*; None if it has none.

        Whoever knows the id of an open operation may use it. The caller ends its use with
        :meth:`leave`.

        An operation of somebody else takes the same steps as one that does not exist, so that
        the time of the answer does not tell them apart (R35): the store does not find it, or,
        if it is in memory, is asked for one that was never there. With :attr:`Wish.OFFSET` one
        look at the disk finds both the operation and its offset.
        """
        if id[-1] in OPEN:
            return await self._visit(id, _Visitor(None, wish, by_id=True))
        known = self._loaded.get(id)
        asked = id
        if known and known.is_loaded and known.record.principal != principal:
            asked = OperationId(id[::-1])  # of 16 random bytes: there is none
        return await self._visit(asked, _Visitor(principal, wish))

    @asynccontextmanager
    async def use(
        self, id: OperationId, wish: Wish = Wish.CHANGE
    ) -> AsyncIterator[Operation | None]:
        """Use the operation called *id* in the block, whoever owns it; None if there is none."""
        operation = await self._visit(id, None, wish)
        try:
            yield operation
        finally:
            if operation is not None:
                self.leave(operation)

    async def _visit(
        self, id: OperationId, visitor: _Visitor | None, wish: Wish = Wish.LOOK
    ) -> Operation | None:
        operation = self.enter(id)
        operation.visitors += 1
        try:
            is_new = not operation.is_loaded
            if is_new:
                await self.load(operation, visitor)
            if operation.is_loaded:
                if visitor is None:
                    share = operation.share
                    if share is None or await share.admit(wish, is_new=is_new):
                        return operation
                elif await self._admits(operation, visitor, is_new=is_new):
                    if operation.state is _S.WAITING:
                        operation.retry()  # its target may be back
                    return operation
        except BaseException:
            self.leave(operation)
            raise
        self.leave(operation)
        return None

    async def _admits(
        self, operation: Operation, visitor: _Visitor, *, is_new: bool
    ) -> bool:
        """Whether *visitor* may use the operation, which is ready for its wish then."""
        principal = visitor.principal
        if visitor.by_id:
            principal = operation.record.principal
        if not operation.is_visited_by(principal):
            return False
        if operation.share is None:
            return True
        # Another process may have moved it to another principal.
        return await operation.share.admit(visitor.wish, is_new=is_new) and (
            visitor.by_id or operation.is_visited_by(principal)
        )

    def enter(self, id: OperationId) -> Operation:
        """Begin a use of the operation, which may not be loaded yet."""
        operation = self._loaded.get(id)
        if operation is None:
            operation = self._loaded[id] = self._new_operation(id, self._surroundings)
            if self.shares is not None:
                self.shares.add(operation)
        elif not operation.users:
            del self._resting[id]
        operation.users += 1
        return operation

    async def load(self, operation: Operation, visitor: _Visitor | None) -> None:
        """Load the operation, if the store has it."""
        # One task loads, the others wait: there must never be two copies of an operation.
        while operation.loading is not None:
            await operation.loading.wait()
        if operation.is_loaded:
            return
        loading = operation.loading = Signal()
        try:
            record, offset = await self.storage.run(self._look, operation.id, visitor)
            if record is not None:
                self.take(operation, record, offset)
        finally:
            operation.loading = None
            loading.fire()

    def take(
        self, operation: Operation, record: OperationRecord, offset: int | None
    ) -> None:
        """Load the operation from the catalog's *record*.

        *offset* is the stored offset of its content, if it was looked up just now.
        """
        if self.rulebook is not None:
            operation.around = self._under_rule(
                record.method, record.target, record.principal
            )
        operation.load(record, offset)
        operation.is_known = True
        if not operation.is_held:
            operation.incoming.turns.surrender()
        elif record.state in CALLING:
            # The last process stopped in the target's call. A running call uses its
            # operation, so no task drives this one, whether recovery or a client
            # loads it first.
            self.start(operation, operation.restart)

    @property
    def loaded(self) -> Mapping[OperationId, Operation]:
        """The operations in memory."""
        return self._loaded

    def _under_rule(
        self, method: str, target: str, principal: str | None
    ) -> Surroundings:
        """Return the surroundings of an upload in a service with rules."""
        assert self.rulebook is not None
        terms = self.rulebook.terms_of_upload(method, target, principal)
        if terms.rule is None:
            return self._surroundings
        return replace(self._surroundings, config=terms.config)

    def _look(
        self, id: OperationId, visitor: _Visitor | None
    ) -> tuple[OperationRecord | None, int | None]:
        """Look into the store, in a worker thread."""
        store = self.storage.store
        if visitor is None:
            return store.operation(id), None
        if visitor.by_id:
            record = store.operation(id)
        else:
            record = store.operation_owned_by(id, visitor.principal)
        if record is None or record.state is not _S.RECEIVING:
            return record, None
        if visitor.wish is not Wish.OFFSET:
            return record, None
        try:
            return record, store.offset(request_key(id))
        except StorageError:
            return record, None  # it will fail again in a place that handles the error

    async def recover(self, tried: trio.Event | None = None) -> None:
        """Go on with operations that the last process left between complete and done (R31).

        Sets *tried* after the first try.

        A catalog that cannot be read does not end the service. The service serves what can be
        read, and tries this again.
        """
        while True:
            try:
                await self._recover()
            except StorageError as exc:
                logger.error("recovery is postponed: %s", exc)
            else:
                return
            finally:
                if tried is not None:
                    tried.set()
            await trio.sleep(RECOVER_DELAY)

    async def _recover(self) -> None:
        after: OperationId | None = None
        while records := await self.storage.run(
            self.storage.store.operations_in, CALLING, 100, after
        ):
            for record in records:
                after = record.id
                if self.shares is not None:
                    if not record.is_elsewhere:
                        await self.shares.take_up(record.id)
                    continue
                # Loading it is enough. This is no request, so it is no visit.
                operation = self.enter(record.id)
                try:
                    if not operation.is_loaded:
                        await self.load(operation, None)
                finally:
                    self.release(operation)
