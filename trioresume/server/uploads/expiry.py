"""The expiry task and the collector: end what has expired, and release its bytes.

The catalog's index is the schedule. A window of its soonest deadlines is in memory
(:class:`~trioresume.protocol.clock.Schedule`). One task sleeps until the soonest
deadline, or until an earlier one is noted. Nothing polls, whatever the number of deadlines.

An operation in use does not expire (G11 in docs/supported-protocols.md): its expiry is moved
to a later time instead.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import StorageError
from trioresume.protocol.clock import Schedule
from trioresume.protocol.operation import Event
from trioresume.server.uploads.share import Wish
from trioresume.store.port import (
    SERVICE_CLOCK,
    Collected,
    CreateOperation,
    EndOperation,
    ForgetOperation,
    Mutation,
    OperationId,
    PublishFile,
    RecordResponse,
    RemoveFile,
    SetExpiry,
    SetMeta,
)

if TYPE_CHECKING:
    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.uploads.registry import Registry

__all__ = [
    "LAST_SEEN",
    "RELEASING",
    "SHARED_LOAD_EVERY",
    "Collector",
    "Expiry",
    "clock_reading",
]

logger = logging.getLogger("trioresume.expiry")

WINDOW = 1024
SHORTEST_SLEEP = 0.001
"""Seconds. Unix time as a float has steps of a quarter of a microsecond. Without this minimum,
a sleep for the time left might end again and again just before the deadline."""
RETRY_DELAY = 60.0
"""Seconds until an expiry that failed is tried again."""
AT_ONCE = 64
"""Uploads and files that expire at the same time."""
COLLECT_LIMIT = 200
"""Rows and files released in one step. Commits wait for a step, which takes some milliseconds."""
COLLECT_DELAY = 1.0
"""Seconds between a release and the collection, so that one collection serves many releases."""
LAST_SEEN = "last-seen"
"""The key that earlier versions used for :data:`SERVICE_CLOCK`."""
RELEASING = (EndOperation, ForgetOperation, RemoveFile, PublishFile, RecordResponse)
"""The mutations that may release something."""
SHARED_LOAD_EVERY = 60.0
"""Seconds after which a process loads the deadlines that others have noted in a shared store."""
NOTE_EVERY = 60.0
"""Seconds of service time that a kill may lose. Deadlines come later by that time."""
NOTE_IDLE_EVERY = 12 * 3600.0
"""The same if nothing happens, so that an idle service is not woken more often."""

_RELOAD = "reload"


def clock_reading(clock: ServiceClock) -> SetMeta:
    """Return the reading of *clock* that the catalog keeps for the next process and for gc."""
    return SetMeta(SERVICE_CLOCK, f"{clock.now()!r} {clock.date()!r}")


class Expiry:
    """Expires operations and files at their deadlines."""

    def __init__(
        self,
        storage: Storage,
        clock: ServiceClock,
        schedule: Schedule,
        *,
        load_every: float = SHARED_LOAD_EVERY,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._schedule = schedule
        self._load_every = load_every
        self._noted = trio.Event()
        self._wakes_at = 0.0
        # The soonest deadline of a published file that is not in the schedule.
        self._reload_at = float("inf")
        self._reloads = 0

        self._loaded_at = float("-inf")
        """When the schedule was last loaded from the catalog."""
        self._read_at = float("-inf")
        """When the clock's reading was last written to the catalog."""

    def _note(self, deadline: float, token: str) -> None:
        """Add or move a deadline in the schedule. A deadline of the catalog is there already."""
        self._schedule.add(token, deadline)
        if deadline < self._wakes_at:
            self._noted.set()

    def observe(self, mutations: Sequence[Mutation]) -> None:
        """Note the deadlines that were committed, as the schedule demands.

        This also drops the deadlines of operations that are forgotten. There may be thousands
        of these in a second that no client was told of, with deadlines a day from now.
        """
        now = self._clock.now()
        if now >= self._read_at + NOTE_EVERY:
            self._read_at = now
            self._storage.submit_later(clock_reading(self._clock))
        for mutation in mutations:
            if isinstance(mutation, CreateOperation):
                record = mutation.record
                self._note(record.expires_at, f"o:{record.id}")
            elif isinstance(mutation, _MOVING):
                self._note(mutation.expires_at, f"o:{mutation.operation}")
            elif isinstance(mutation, ForgetOperation):
                self._schedule.discard(f"o:{mutation.operation}")
            elif (
                isinstance(mutation, PublishFile)
                and mutation.file.expires_at is not None
                and mutation.file.expires_at < self._reload_at
            ):
                # Only the catalog knows the file's token. This entry stands for it. Its
                # unique name keeps a later file from postponing it.
                self._reload_at = mutation.file.expires_at
                self._reloads += 1
                self._note(self._reload_at, f"{_RELOAD}:{self._reloads}")

    async def run(self, operations: Registry) -> None:
        """Run the expiry task until cancelled."""
        while True:
            if await _succeeds(partial(self._run_once, operations), "expiry"):
                await self._sleep()
            else:
                await trio.sleep(RETRY_DELAY)

    async def _run_once(self, operations: Registry) -> None:
        await self._keep_time()
        await self._expire_due(operations)

    async def _keep_time(self) -> None:
        """Tell the next process how long this one was running (G11)."""
        now = self._clock.now()
        if now >= self._read_at + NOTE_IDLE_EVERY:
            self._read_at = now
            await self._storage.commit(clock_reading(self._clock))

    async def _expire_due(self, operations: Registry) -> None:
        while True:
            if self._schedule.needs_load or self._is_outdated():
                await self._load()
            due = self._schedule.due(self._clock.now())
            if not due and not self._schedule.needs_load:
                return
            for first in range(0, len(due), AT_ONCE):
                await self._expire_together(operations, due[first : first + AT_ONCE])

    def _is_outdated(self) -> bool:
        """Whether other processes may have noted deadlines of which this one knows nothing."""
        is_old = self._clock.now() >= self._loaded_at + self._load_every
        return is_old and self._storage.store.sharing is not None

    async def _expire_together(
        self, operations: Registry, tokens: Sequence[str]
    ) -> None:
        """Expire *tokens* at the same time, so that they share commits.

        If one fails, the others go on. The failed one stays due, and the first failure is
        raised.
        """
        failures: list[Exception] = []

        async def expire(token: str) -> None:
            try:
                await self._expire(operations, token)
            except Exception as exc:  # noqa: BLE001 - raised below
                failures.append(exc)
                self._note(self._clock.now(), token)

        async with trio.open_nursery() as nursery:
            for token in tokens:
                nursery.start_soon(expire, token)
        if failures:
            raise failures[0]

    async def _expire(self, operations: Registry, token: str) -> None:
        now = self._clock.now()
        kind, _, name = token.partition(":")
        if kind == "f":
            mutations = await self._storage.run(
                self._storage.store.expire_file, token, now
            )
            if mutations:
                await self._storage.commit(*mutations)
        elif kind == "o":
            operation_id = OperationId(name)
            async with operations.use(operation_id, Wish.SPARE) as operation:
                if operation is None:
                    return
                if not operation.is_held:
                    # Its owner renews what is in use. If it does not, look again later.
                    expires_at = operation.record.expires_at
                    self._note(max(expires_at, now + RETRY_DELAY), token)
                    return
                if operation.record.expires_at > now:
                    # It was moved to a later time, which the schedule did not know.
                    self._note(operation.record.expires_at, token)
                elif operation.users == 1:
                    await operation.apply(Event.EXPIRED)
                else:
                    operation.renew()
                    if operation.record.expires_at <= now:
                        # A tombstone, which cannot be renewed: it expires a little later.
                        self._note(now + RETRY_DELAY, token)
        else:
            await self._load()

    async def _load(self) -> None:
        schedule = self._schedule
        self._loaded_at = self._clock.now()
        schedule.begin_load()
        self._reload_at = float("inf")
        try:
            entries = await self._storage.run(
                self._storage.store.expiring, schedule.window
            )
        except BaseException:
            schedule.abandon_load()
            raise
        schedule.load(entries, complete=len(entries) < schedule.window)

    async def _sleep(self) -> None:
        deadline = self._schedule.next_deadline()
        self._noted = trio.Event()
        self._wakes_at = float("inf") if deadline is None else deadline
        until = min(self._wakes_at, self._read_at + NOTE_IDLE_EVERY)
        if self._storage.store.sharing is not None:
            until = min(until, self._loaded_at + self._load_every)
        seconds = max(SHORTEST_SLEEP, until - self._clock.now())
        with trio.move_on_after(seconds):
            await self._noted.wait()


class Collector:
    """Releases the bytes that nothing refers to any more, in small steps."""

    def __init__(self, storage: Storage, delay: float = COLLECT_DELAY) -> None:
        self._storage = storage
        self._delay = delay
        # A crash may have left garbage: look once at the start.
        self._released = trio.Event()
        self._released.set()
        # One collection at a time, so that "nothing was left" is true for each caller.
        self._collecting = trio.Lock()
        self._stepping = trio.Lock()
        self._holds = 0
        self._let_go = trio.Event()

    def note_released(self, mutations: Sequence[Mutation]) -> None:
        """Wake the task: *mutations* may have released something."""
        self._released.set()

    async def run(self) -> None:
        """Run the collecting task until cancelled."""
        while True:
            await self._released.wait()
            await trio.sleep(self._delay)
            self._released = trio.Event()
            if not await _succeeds(partial(self.collect, _ignore), "collection"):
                await trio.sleep(RETRY_DELAY)
                self._released.set()

    async def collect(
        self, on_step: Callable[[Collected], Awaitable[None]], *, sweep: bool = False
    ) -> None:
        """Collect until nothing is left. Cancellation takes effect between two steps.

        With *sweep* this looks at every file as well. Raises :class:`StorageError`.
        """
        store, run = self._storage.store, self._storage.run
        async with self._collecting:
            if sweep:
                await run(store.sweep)
            while (done := await self._step()) != Collected():
                logger.debug("collected %d chunks, %d bytes", done.chunks, done.bytes)
                await on_step(done)

    async def _step(self) -> Collected:
        """Take one step, once nobody holds collection."""
        storage = self._storage
        while True:
            async with self._stepping:
                if not self._holds:
                    return await storage.run(storage.store.collect, COLLECT_LIMIT)
            await self._let_go.wait()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Remove nothing while the block runs. It begins after the running step."""
        self._holds += 1
        try:
            async with self._stepping:
                pass  # the step that was running has ended
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self._let_go.set()
                self._let_go = trio.Event()


async def _succeeds(function: Callable[[], Awaitable[None]], name: str) -> bool:
    """Call *function*, and log its failure. Returns whether it did not fail."""
    try:
        await function()
    except StorageError as exc:
        # Most likely the disk is full: that needs no traceback.
        logger.error("%s is postponed: %s", name, exc)
    except Exception:
        logger.exception("%s failed and is postponed", name)
    else:
        return True
    return False


async def _ignore(done: Collected) -> None:
    """Ignore a step of the background collection."""


_MOVING = (SetExpiry, RecordResponse, EndOperation)
