"""The dispatcher: delivers the events of the outbox, each at least once.

The catalog has the truth. An event is loaded after its commit, sent, and dropped from the
outbox once a receiver has taken it. A crash between the two sends it again, with the same id.

* The events of one upload are sent one after the other, in the order of their commits. The
  events of different uploads do not wait for each other.
* An event that fails is postponed in the catalog, and leaves memory together with the later
  events of its upload. So the memory has only events that can be sent now, and not many.
* An event that nobody has taken for ``give_up_after`` becomes a dead one, and the later events
  of its upload go on without it.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from trioresume.errors import StorageError
from trioresume.hooks.answers import HookFailed
from trioresume.hooks.events import HookEvent, HookKind
from trioresume.store.port import (
    BuryEvent,
    DropEvents,
    PostponeEvent,
    RecordEvent,
    ReviveEvents,
)

if TYPE_CHECKING:
    from trioresume.hooks.settings import Hooks
    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.async_store.storage import Storage
    from trioresume.store.port import EventRecord, Mutation, OperationId

__all__ = ["Dispatcher"]

logger = logging.getLogger("trioresume.hooks")

MOST_LOADED = 256
"""Events in memory. An event has up to about 20 KB, most of it the fields of a request."""
LONGEST_BACKOFF = 300.0
DROP_DELAY = 0.2
"""Seconds after which delivered events are dropped, many in one statement."""
MOST_DELIVERED = 64
"""Delivered events that wait to be dropped. Each load reads past them."""
RETRY_DELAY = 5.0
"""Seconds until the catalog is asked again after an error."""
MOST_ERROR = 200
"""Characters of an error that are kept."""


class Dispatcher:
    """Delivers events by *deliver*, which raises :class:`HookFailed`."""

    def __init__(
        self,
        storage: Storage,
        clock: ServiceClock,
        hooks: Hooks,
        deliver: Callable[[HookEvent], Awaitable[object]],
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._hooks = hooks
        self._deliver = deliver
        self._queues: dict[OperationId, deque[EventRecord]] = {}
        """The loaded events of the uploads that a task works for."""
        self._held: set[int] = set()
        """Events that must not be loaded: they are in memory, or delivered and not dropped."""
        self._let_go: set[int] = set()
        """Events that left ``_held`` during a load. What was read of them is too old."""
        self._delivered: list[int] = []
        self._loaded = 0
        self._wake = trio.Event()
        self._drop = trio.Event()
        self._drop_now = trio.Event()
        self.waiting = 0
        """Events in the outbox."""

    def observe(self, mutations: Sequence[Mutation]) -> None:
        """Note the changes of the outbox that were committed."""
        for mutation in mutations:
            if isinstance(mutation, RecordEvent):
                self.waiting += 1
                self._wake.set()
            elif isinstance(mutation, DropEvents):
                if not mutation.dead:
                    self.waiting -= len(mutation.seqs)
                    self._release(mutation.seqs)
            elif isinstance(mutation, BuryEvent):
                self.waiting -= 1
            elif isinstance(mutation, ReviveEvents):
                self.waiting += len(mutation.seqs)  # at most; each load counts again
                self._wake.set()

    def _release(self, seqs: Sequence[int]) -> None:
        self._held.difference_update(seqs)
        self._let_go.update(seqs)

    async def count(self) -> None:
        """Count the events that wait, until cancelled: another process delivers them."""
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            try:
                self.waiting = await self._storage.run(self._storage.store.event_count)
            except StorageError as exc:
                logger.error("events that wait cannot be counted: %s", exc)
            await trio.sleep(RETRY_DELAY)
            if self.waiting:
                self._wake.set()

    @property
    def _has_room(self) -> bool:
        return self._loaded <= MOST_LOADED // 2

    async def run(self) -> None:
        """Deliver until cancelled. What was delivered is dropped even then."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drop_delivered)
                while True:
                    soonest = await self._load(nursery)
                    seconds = (
                        float("inf") if soonest is None else soonest - self._clock.now()
                    )
                    with trio.move_on_after(max(0.01, seconds)):
                        await self._wake.wait()
                        while not self._has_room:
                            self._wake = trio.Event()
                            await self._wake.wait()
        finally:
            if self._delivered:
                self._storage.submit_later(DropEvents(tuple(self._delivered)))

    async def _load(self, nursery: trio.Nursery) -> float | None:
        """Load what can be sent now; return when something else will be due."""
        self._wake = trio.Event()
        self._let_go.clear()
        # Past those that are delivered, and still there.
        limit = MOST_LOADED + len(self._held) - self._loaded
        now = self._clock.now()
        store = self._storage.store
        try:
            events, soonest = await self._storage.run(store.due_events, now, limit)
            self.waiting = await self._storage.run(store.event_count)
        except StorageError as exc:
            logger.error("events are delivered later: %s", exc)
            return now + RETRY_DELAY
        passed: set[OperationId] = set()
        for event in events:
            if event.seq in self._held:
                continue
            if event.seq in self._let_go or event.operation in passed:
                # It may have failed meanwhile: then the later ones must not overtake it.
                passed.add(event.operation)
                continue
            self._held.add(event.seq)
            self._loaded += 1
            queue = self._queues.get(event.operation)
            if queue is None:
                self._queues[event.operation] = deque((event,))
                nursery.start_soon(self._deliver_all, event.operation)
            else:
                queue.append(event)
        if passed or len(events) >= limit:
            self._wake.set()  # there may be more, as soon as there is room
        return soonest

    async def _deliver_all(self, operation: OperationId) -> None:
        """Deliver the loaded events of one upload, in order, up to one that fails."""
        queue = self._queues[operation]
        try:
            while queue and await self._deliver_one(queue[0]):
                queue.popleft()
                self._loaded -= 1
        finally:
            del self._queues[operation]
            self._loaded -= len(queue)
            self._release([event.seq for event in queue])
            self._wake.set()

    async def _deliver_one(self, event: EventRecord) -> bool:
        """Return whether the later events of the upload can follow."""
        if event.seq not in self._held:
            return True  # the administrator has dropped it
        try:
            await self._deliver(
                HookEvent(HookKind(event.kind), event.id, event.payload)
            )
        except HookFailed as exc:
            return await self._failed(event, str(exc)[:MOST_ERROR])
        except Exception:
            logger.exception("a bug kept event %d from being delivered", event.seq)
            return await self._failed(event, "a bug; see the log")
        if event.seq in self._held:
            self._delivered.append(event.seq)
            self._drop.set()
            if len(self._delivered) >= MOST_DELIVERED:
                self._drop_now.set()
        return True

    async def _failed(self, event: EventRecord, error: str) -> bool:
        now = self._clock.now()
        gives_up = now - event.recorded_at >= self._hooks.give_up_after
        name = f"event {event.seq} ({event.kind} of {event.operation[:6]}…)"
        try:
            if gives_up:
                await self._storage.commit(BuryEvent(event.seq, error))
                logger.error("%s is given up: %s", name, error)
                self._release([event.seq])
                return True
            delay = min(
                self._hooks.backoff * 2 ** min(event.attempts, 32), LONGEST_BACKOFF
            )
            delay *= random.uniform(0.75, 1.25)
            await self._storage.commit(PostponeEvent(event.seq, now + delay, error))
            logger.warning("%s is tried again in %.0f s: %s", name, delay, error)
        except StorageError as exc:
            logger.error("%s cannot be postponed: %s", name, exc)
            await trio.sleep(RETRY_DELAY)
        return False

    async def _drop_delivered(self) -> None:
        while True:
            await self._drop.wait()
            with trio.move_on_after(DROP_DELAY):
                await self._drop_now.wait()
            self._drop, self._drop_now = trio.Event(), trio.Event()
            delivered, self._delivered = self._delivered, []
            try:
                # They share the next commit that somebody waits for.
                drop = DropEvents(tuple(delivered))
                await self._storage.submit_later(drop).wait()
            except StorageError as exc:
                logger.error("delivered events are dropped later: %s", exc)
                self._delivered += delivered
                self._drop.set()
                await trio.sleep(RETRY_DELAY)
