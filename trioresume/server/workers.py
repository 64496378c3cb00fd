"""Threads for the work of running uploads and requests that may block.

``trio.to_thread`` hands every call to a thread of its own and every result to a task:
about 120 µs of processor time. A piece of content is short work, there are hundreds
of them a second, and nobody waits for a single one. So a few threads take jobs from a
queue, and what is to happen then is called in the event loop, for all the jobs that
ended meanwhile by one wake-up: about half of that.

A thread that finds nothing to do waits for a lock of its own. (The standard library's
queues have one lock that all wait for: each job wakes a second thread for nothing.)
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import trio

from trioresume.server.signals import Signal

__all__ = ["Lane", "Workers"]

logger = logging.getLogger("trioresume.operations")

T = TypeVar("T")

Job = Callable[[], object]
Then = Callable[[object, Exception | None], None]
"""Called in the event loop with a job's result, or with what it raised."""


class Workers:
    """Calls jobs in *threads* threads; without any, where they are submitted."""

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._threads: list[threading.Thread] = []
        self._jobs: deque[tuple[Job, Then] | None] = deque()
        self._idle: list[threading.Lock] = []
        """Of each thread that waits for its lock, the last one first to be woken."""
        self._done: deque[tuple[Then, object, Exception | None]] = deque()
        self._token: trio.lowlevel.TrioToken | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take jobs while the block runs; on exit those submitted are done.

        Their results are called for only as far as the event loop still turns: whoever
        waits for one must have got it before.
        """
        self._token = trio.lowlevel.current_trio_token()
        self._threads = [
            threading.Thread(target=self._work, name="trioresume-disk", daemon=True)
            for _ in range(self._size)
        ]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            for _ in self._threads:
                self._put(None)
            for thread in self._threads:
                thread.join()

    def submit(self, job: Job, then: Then) -> None:
        """Have *job* called soon, and *then* after it."""
        if self._size:
            self._put((job, then))
        else:
            _call(then, *_run(job))

    def _put(self, item: tuple[Job, Then] | None) -> None:
        self._jobs.append(item)
        try:
            self._idle.pop().release()
        except IndexError:
            pass  # all are busy: who ends first takes it

    def _get(self, lock: threading.Lock) -> tuple[Job, Then] | None:
        while True:
            try:
                return self._jobs.popleft()
            except IndexError:
                self._idle.append(lock)
            if self._jobs and self._retract(lock):
                continue  # it came in between
            lock.acquire()

    def _retract(self, lock: threading.Lock) -> bool:
        """Be idle no more; False if somebody is about to release the lock."""
        try:
            self._idle.remove(lock)
        except ValueError:
            return False
        return True

    def _work(self) -> None:
        assert self._token is not None
        lock = threading.Lock()
        lock.acquire()
        while (item := self._get(lock)) is not None:
            job, then = item
            result, error = _run(job)
            self._done.append((then, result, error))
            # Of several at once the event loop makes one.
            self._token.run_sync_soon(self._finish, idempotent=True)
            # Neither may be kept until the next job comes.
            del item, job, then, result, error

    def _finish(self) -> None:
        while self._done:
            _call(*self._done.popleft())


def _run(job: Job) -> tuple[object, Exception | None]:
    try:
        return job(), None
    except Exception as exc:  # noqa: BLE001 - handed on to whoever waits for the result
        return None, exc


def _call(then: Then, result: object, error: Exception | None) -> None:
    try:
        then(result, error)
    except Exception:
        # Nobody is here to take it; the loop and the other jobs must go on.
        logger.exception("a bug after disk work")


class Lane:
    """Jobs of one upload, one after the other, in the order they were put in."""

    __slots__ = ("_ended", "_jobs", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._jobs: list[tuple[Job, Then]] = []
        """Those that have not ended; the first one runs. Few: a deque would be larger."""
        self._ended: Signal | None = None
        """Fired whenever one has; made when somebody waits for it first."""

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""
        return len(self._jobs)

    def put(self, job: Job, then: Then) -> None:
        self._jobs.append((job, then))
        if len(self._jobs) == 1:
            self._submit()

    def _submit(self) -> None:
        self._workers.submit(self._jobs[0][0], self._after)

    def _after(self, result: object, error: Exception | None) -> None:
        then = self._jobs[0][1]
        try:
            then(result, error)
        finally:
            del self._jobs[0]
            if self._jobs:
                self._submit()
            if self._ended is not None:
                self._ended.fire()

    async def call(self, job: Callable[[], T]) -> T:
        """Call *job* in its turn; what it returns or raises. A checkpoint.

        When cancelled, it is called all the same.
        """
        ended = trio.Event()
        outcome: list[tuple[object, Exception | None]] = []

        def note(result: object, error: Exception | None) -> None:
            outcome.append((result, error))
            ended.set()

        self.put(job, note)
        await ended.wait()
        result, error = outcome[0]
        if error is not None:
            raise error
        return cast("T", result)

    async def until(self, pending: int) -> None:
        """Return when at most *pending* jobs have not ended. A checkpoint if not at once."""
        while len(self._jobs) > pending:
            if self._ended is None:
                self._ended = Signal()
            await self._ended.wait()
