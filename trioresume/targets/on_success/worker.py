"""The worker that does the actions on success, each at least once.

A task is in the catalog from the commit that publishes the file to the commit after the file
is in its directory. A crash in between repeats it. What fails, such as a directory without
space, is tried again, each time later, as long as the file is there.

If the fault is the directory's, nothing else is tried there meanwhile: a full disk costs one
attempt and one line of the log at a time, however many files wait for it.

If the file was removed or replaced before its turn, nothing is done for it: a file that
replaced it has a task of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import StorageConflict, StorageError
from trioresume.server.uploads.target_call import content_etag_of
from trioresume.store.port import (
    DropEvents,
    EventRecord,
    OperationId,
    PostponeEvent,
    RecordEvent,
    RemoveFile,
)
from trioresume.targets.on_success.directory import Stopped, place
from trioresume.targets.on_success.task import KIND, Task

if TYPE_CHECKING:
    from trioresume.server.api.handler import Services
    from trioresume.server.api.on_success import Action
    from trioresume.store.port import FileRecord, Mutation

__all__ = ["OnSuccess"]

logger = logging.getLogger("trioresume.on_success")

AT_ONCE = 4
"""Files that are put into directories at the same time."""
WINDOW = 64
"""Due tasks that are looked at together."""
FIRST_DELAY = 1.0
LONGEST_DELAY = 300.0
"""Seconds until a failed task is tried again, at first and at most."""
STORE_DELAY = 5.0
"""Seconds until the catalog is asked again after an error."""

_FAULTS_OF_A_DIRECTORY = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
)


@dataclass(frozen=True, slots=True)
class _Closed:
    """A directory that failed."""

    until: float
    """Service time."""
    delay: float
    reason: str


class OnSuccess:
    """Does what is to be done for stored files.

    Without *records* there are only tasks of an earlier process, if any.
    """

    def __init__(self, services: Services, *, records: bool) -> None:
        self._storage = services.storage
        self._clock = services.clock
        self._wake = trio.Event()
        self._busy: set[int] = set()
        self._stopping = threading.Event()
        self._closed: dict[str, _Closed] = {}
        """The directories that failed when a file was put there last."""
        self._names: set[tuple[str, ...]] = set()
        """The paths that are being made: no two tasks work for one at a time."""
        if records:
            services.storage.add_observer(self._observe, RecordEvent)

    def record(self, action: Action, file: FileRecord) -> RecordEvent:
        """Return the mutation that has *action* done for *file*, in the same commit."""
        etag = content_etag_of(file.content)
        task = Task(action=action, owner=file.owner, name=file.name, etag=etag)
        mark = secrets.token_hex(16)
        return RecordEvent(
            EventRecord(
                id=mark,
                # Nothing waits for it, and it waits for nothing else.
                operation=OperationId(mark),
                kind=KIND,
                recorded_at=self._clock.now(),
                dated=self._clock.date(),
                payload=task.pack(),
            )
        )

    def _observe(self, mutations: Sequence[Mutation]) -> None:
        if any(isinstance(m, RecordEvent) and m.event.is_task for m in mutations):
            self._wake.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work while the block runs. On its end a file that is half written is left."""
        self._stopping.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, nursery)
            try:
                yield
            finally:
                self._stopping.set()
                nursery.cancel_scope.cancel()

    async def _run(self, nursery: trio.Nursery) -> None:
        while True:
            self._wake = trio.Event()
            soonest = await self._start_due(nursery)
            seconds = float("inf") if soonest is None else soonest - self._clock.now()
            with trio.move_on_after(max(0.01, seconds)):
                await self._wake.wait()

    async def _start_due(self, nursery: trio.Nursery) -> float | None:
        """Start as many tasks as may run; return when another one is due."""
        now = self._clock.now()
        look = partial(self._storage.store.due_events, now, WINDOW, tasks=True)
        try:
            events, soonest = await self._storage.run(look)
        except StorageError as exc:
            logger.error("files are put into their directories later: %s", exc)
            return now + STORE_DELAY
        waits: list[PostponeEvent] = []
        for event in events:
            if event.seq in self._busy:
                continue
            task = Task.unpack(event.payload)
            closed = self._closed.get(task.action.directory)
            path = (task.action.directory, *task.segments)
            if closed is not None and closed.until > now:
                waits.append(PostponeEvent(event.seq, closed.until, closed.reason))
            elif len(self._busy) < AT_ONCE and path not in self._names:
                # The end of one wakes this up for the next ones.
                self._busy.add(event.seq)
                self._names.add(path)
                nursery.start_soon(self._perform, event, task, path)
        if waits:
            try:
                await self._storage.commit(*waits)
            except StorageError as exc:
                logger.error("files are put into their directories later: %s", exc)
                return now + STORE_DELAY
            self._wake.set()  # there may be more, behind these
        return soonest

    async def _perform(
        self, event: EventRecord, task: Task, path: tuple[str, ...]
    ) -> None:
        try:
            await self._do(event, task)
        except StorageError as exc:
            logger.error("a file is put into its directory later: %s", exc)
            await trio.sleep(STORE_DELAY)
        finally:
            self._busy.discard(event.seq)
            self._names.discard(path)
            self._wake.set()

    async def _do(self, event: EventRecord, task: Task) -> None:
        storage = self._storage
        file = await storage.run(storage.store.file, task.owner, task.name)
        if file is None or content_etag_of(file.content) != task.etag:
            await storage.commit(DropEvents((event.seq,)))
            return
        try:
            # Not one of the store's threads: the directory may be slow, or hang.
            await trio.to_thread.run_sync(
                self._place, file, task, event.id, abandon_on_cancel=True
            )
        except Stopped:
            return
        except (OSError, StorageError) as exc:
            # Also if the content was released: then the file is gone at the next try.
            await self._postpone(event, task, exc)
            return
        except Exception as exc:
            logger.exception("a bug kept a file out of its directory")
            await self._postpone(event, task, exc)
            return
        self._closed.pop(task.action.directory, None)
        await self._finish(event, task, file)

    def _place(self, file: FileRecord, task: Task, mark: str) -> str:
        """Put the file into its directory, in a thread."""
        reader = self._storage.store.open_reader(file.content)
        try:
            return place(
                reader,
                task.action.directory,
                task.segments,
                mark,
                links=task.action.name == "link",
                stop=self._stopping.is_set,
            )
        finally:
            reader.close()

    async def _finish(self, event: EventRecord, task: Task, file: FileRecord) -> None:
        drop = DropEvents((event.seq,))
        if task.action.name == "move":
            try:
                remove = RemoveFile(task.owner, task.name, file.content)
                await self._storage.commit(drop, remove)
            except StorageConflict:
                pass  # it was replaced or removed meanwhile
            else:
                return
        await self._storage.commit(drop)

    async def _postpone(self, event: EventRecord, task: Task, exc: Exception) -> None:
        reason = (getattr(exc, "strerror", None) or str(exc))[:200]
        directory, now = task.action.directory, self._clock.now()
        delay = min(FIRST_DELAY * 2 ** min(event.attempts, 16), LONGEST_DELAY)
        if isinstance(exc, OSError) and _is_fault_of(directory, exc):
            closed = self._closed.get(directory)
            if closed is None:
                closed = _Closed(now + FIRST_DELAY, FIRST_DELAY, reason)
            elif closed.until <= now:
                longer = min(2 * closed.delay, LONGEST_DELAY)
                closed = _Closed(now + longer, longer, reason)
            self._closed[directory] = closed
            delay = closed.until - now
        await self._storage.commit(PostponeEvent(event.seq, now + delay, reason))
        logger.error(
            "a file is not in %s yet, and it is tried again in %.0f s: %s",
            directory,
            delay,
            reason,
        )


def _is_fault_of(directory: str, exc: OSError) -> bool:
    """Whether the next file would fail there, too."""
    if exc.errno in _FAULTS_OF_A_DIRECTORY or not os.path.isdir(directory):
        return True
    return not os.access(directory, os.W_OK | os.X_OK)
