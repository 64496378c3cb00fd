"""All operations: makes and loads them, and remembers who uses which.

An upload that nobody uses any more, but that was not finished, *rests*: it stays in
memory until others came after it. Its client was cut, most likely, and will ask how far
it came, perhaps more than once; then neither the catalog nor the disk is asked. It holds
no file and no lock, and what is known of it is what the catalog has.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, StorageError, StorageFull
from trioresume.protocol.operation import Event, OperationState
from trioresume.server.answers import Answering
from trioresume.server.hashing import Hashing
from trioresume.server.operation import Operation, Surroundings
from trioresume.server.signals import Holding
from trioresume.store.port import (
    CreateOperation,
    OperationId,
    OperationRecord,
    record_size,
    request_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.protocol.clock import ServiceClock
    from trioresume.protocol.dialects import Creation
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.config import Config
    from trioresume.server.messages import AnyTarget
    from trioresume.server.quotas import Quotas
    from trioresume.server.storage import Storage
    from trioresume.store.port import Mutation

__all__ = ["Operations"]

logger = logging.getLogger("trioresume.operations")

RECOVER_DELAY = 60.0
"""Seconds until a recovery that failed is tried again."""

_S = OperationState
_CALLING = (_S.COMPLETE, _S.PROCESSING, _S.ABANDONED)
"""States on disk of an operation whose target is being called."""


MOST_RESTING = 1024
"""Uploads that rest in memory, each with 2.3 KB, and more if its head was large."""


class _Creating:
    """A new operation, used within the block. (A class: a generator would hold more.)"""

    __slots__ = ("_may_be_unoffered", "_operation", "_operations")

    def __init__(
        self, operations: Operations, operation: Operation, may_be_unoffered: bool
    ) -> None:
        self._operations = operations
        self._operation = operation
        self._may_be_unoffered = may_be_unoffered

    async def __aenter__(self) -> Operation:
        self._operation.users += 1
        self._operation.visitors += 1
        try:
            try:
                await self._operations.record(self._operation)
            except StorageFull:
                if not self._may_be_unoffered or self._operation.unoffered:
                    raise
                self._operation.unoffered = True
                await self._operations.record(self._operation)
        except BaseException:
            self._operations.leave(self._operation)
            raise
        return self._operation

    async def __aexit__(self, *_: object) -> None:
        self._operations.leave(self._operation)


class _Using:
    """An operation that is there already, used within the block."""

    __slots__ = ("_asks_offset", "_id", "_operation", "_operations")

    def __init__(
        self, operations: Operations, id: OperationId, asks_offset: bool
    ) -> None:
        self._operations = operations
        self._id = id
        self._asks_offset = asks_offset
        self._operation: Operation

    async def __aenter__(self) -> Operation | None:
        operation = self._operation = self._operations.enter(self._id)
        operation.visitors += 1
        try:
            if not operation.is_loaded:
                await self._operations.load(operation, self._asks_offset)
        except BaseException:
            self._operations.leave(operation)
            raise
        return operation if operation.is_loaded else None

    async def __aexit__(self, *_: object) -> None:
        self._operations.leave(self._operation)


class Operations:
    """All operations: finds, makes and loads them, and remembers who uses which."""

    def __init__(
        self,
        storage: Storage,
        target: AnyTarget,
        config: Config,
        clock: ServiceClock,
        background: trio.Nursery,
        quotas: Quotas,
    ) -> None:
        self._quotas = quotas
        self.storage = storage
        self.target = target
        self.config = config
        self.clock = clock
        self.hashing = Hashing(storage, config)
        self._surroundings = Surroundings(
            storage, config, clock, self.start, quotas, self._answer
        )
        self._background = background
        self._loaded: dict[OperationId, Operation] = {}
        self._resting: dict[OperationId, None] = {}
        """Those of them that nobody uses, the one that came first in front."""

    async def _answer(self, operation: Operation, frozen: list[Mutation]) -> None:
        await self._answering(operation, frozen).run()

    def _answering(self, operation: Operation, frozen: list[Mutation]) -> Answering:
        return Answering(
            operation,
            self.storage,
            self.target,
            self.config,
            self.clock,
            frozen,
            self.hashing,
        )

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
            self.release(operation)

    def leave(self, operation: Operation) -> None:
        """A request does not use it any more."""
        operation.visitors -= 1
        operation.left_at = trio.current_time()
        self.release(operation)

    def release(self, operation: Operation) -> None:
        """Somebody does not use it any more."""
        operation.users -= 1
        if operation.users:
            return
        self._quotas.forget(operation.id)
        if operation.may_rest:
            operation.rest()
            self._resting[operation.id] = None
            if len(self._resting) > MOST_RESTING:
                oldest = next(iter(self._resting))
                del self._resting[oldest]
                self._unload(self._loaded[oldest])
        else:
            self._unload(operation)

    def _unload(self, operation: Operation) -> None:
        del self._loaded[operation.id]
        if operation.is_loaded:
            operation.unload()

    def create(
        self,
        head: RequestHead,
        principal: str | None,
        creation: Creation,
        *,
        offered: bool,
        keep_incomplete: bool,
        must_be_offered: bool = False,
    ) -> AbstractAsyncContextManager[Operation]:
        """A new operation for *head*, used within the block.

        When it is *offered* (its locations will be told) the record is durable on
        entry: a client that was told of an operation finds it again.

        A request that removes something is let through at a limit, but not offered
        then, which raises all the same if it *must_be_offered*.

        Raises :class:`PeerError` (429, 507) at a quota, :class:`StorageFull` if too
        little of the disk is free.
        """
        now = self.clock.now()
        record = OperationRecord(
            id=OperationId(secrets.token_urlsafe(16)),
            method=head.method,
            target=head.target,
            fields=head.fields if creation.fields is None else creation.fields,
            principal=principal,
            created_at=now,
            expires_at=now
            + min(self.config.incomplete_lifetime, self.config.max_upload_lifetime),
            keep_incomplete=keep_incomplete,
            explicit_completion=creation.explicit_completion,
            length=creation.length,
        )
        # Who is at a limit must still be able to remove something. But nothing of such a
        # request may stay then, or long heads of them would fill the disk.
        removes = head.method == "DELETE" and not head.has_content
        may_be_unoffered = removes and not must_be_offered
        try:
            reserved = self._admit(record)
        except (PeerError, StorageFull):
            if not may_be_unoffered:
                raise
            reserved, offered = self._quotas.admit(record, exempt=True), False
        record = replace(record, reserved=reserved)
        operation = self._loaded[record.id] = Operation(record.id, self._surroundings)
        operation.unoffered = not offered
        operation.readmits = record.length is None
        operation.was_visited = True
        operation.load(record)
        operation.incoming.begin()
        return _Creating(self, operation, may_be_unoffered)

    def _admit(self, record: OperationRecord) -> int:
        """Let a new operation begin; the bytes that are reserved for it.

        Raises :class:`PeerError` at a quota, :class:`StorageFull` if the disk has no room
        for its record.
        """
        reserved = self._quotas.admit(record, exempt=False)
        try:
            self.storage.store.take_room(record_size(record))
        except StorageFull:
            self._quotas.withdraw(record.id)
            raise
        return reserved

    async def record(self, operation: Operation) -> None:
        """Have the catalog know a new operation: if it is offered, on return."""
        creation = CreateOperation(operation.record)
        if operation.unoffered:
            # Nobody else can look for it: mostly it is over before this is due.
            operation.incoming.creation = self.storage.submit_later(creation)
        else:
            await self.storage.commit(creation)
            operation.is_known = True

    def use(
        self, id: OperationId, *, asks_offset: bool = False
    ) -> AbstractAsyncContextManager[Operation | None]:
        """The operation called *id*, used within the block; None if there is none.

        With *asks_offset* one look at the disk finds both it and how far its content is.
        """
        return _Using(self, id, asks_offset)

    def remembers(self, id: OperationId) -> bool:
        """Whether it is found in memory, without a look into the store."""
        operation = self._loaded.get(id)
        return operation is not None and operation.is_loaded

    def enter(self, id: OperationId) -> Operation:
        """Somebody uses the operation, which need not be loaded yet."""
        operation = self._loaded.get(id)
        if operation is None:
            operation = self._loaded[id] = Operation(id, self._surroundings)
        elif not operation.users:
            del self._resting[id]
        operation.users += 1
        return operation

    async def load(self, operation: Operation, asks_offset: bool) -> None:
        """Load it, if there is one in the store."""
        # One loads, the others wait: two copies of an operation must never be.
        if operation.loading is None:
            operation.loading = trio.Lock()
        async with Holding(operation.loading):
            if not operation.is_loaded:
                record, offset = await self.storage.run(
                    self._look, operation.id, asks_offset
                )
                if record is not None:
                    operation.load(record, offset)
                    operation.is_known = True
                    self._resume_call(operation)
        operation.loading = None if operation.is_loaded else operation.loading

    def _look(
        self, id: OperationId, asks_offset: bool
    ) -> tuple[OperationRecord | None, int | None]:
        """Called in a worker thread."""
        store = self.storage.store
        record = store.operation(id)
        if record is None or record.state is not _S.RECEIVING or not asks_offset:
            return record, None
        try:
            return record, store.offset(request_key(id))
        except StorageError:
            return record, None  # it will come again, where it is dealt with

    def _resume_call(self, operation: Operation) -> None:
        """Go on with the target's call if the last process stopped in it.

        A call that runs uses its operation. So one that is loaded in the middle of a
        call has nobody who drives it, whoever loads it first: recovery or a client.
        """
        if operation.state in _CALLING:
            self.start(operation, self._restart, operation)

    async def recover(self) -> None:
        """Go on with what the last process left between complete and done (R31).

        A catalog that cannot be read does not end the service: what can be read is served,
        and this is tried again.
        """
        while True:
            try:
                await self._recover()
            except StorageError as exc:
                logger.error("recovery is postponed: %s", exc)
            else:
                return
            await trio.sleep(RECOVER_DELAY)

    async def _recover(self) -> None:
        after: OperationId | None = None
        while records := await self.storage.run(
            self.storage.store.operations_in, _CALLING, 100, after
        ):
            for record in records:
                after = record.id
                # Loading it is all it takes. That is no request's visit.
                operation = self.enter(record.id)
                try:
                    if not operation.is_loaded:
                        await self.load(operation, False)
                finally:
                    self.release(operation)

    async def _restart(self, operation: Operation) -> None:
        """RESTARTED: go on where the last process stopped."""
        was = operation.state
        operation.change(Event.RESTARTED)
        operation.frozen_content = operation.record.content
        operation.tells_digest = False  # nobody waits for it any more
        if was is _S.ABANDONED:
            await operation.discard()
        elif was is _S.PROCESSING:
            await self._answering(operation, []).record_indeterminate()
        else:
            await self._answering(operation, []).run()
