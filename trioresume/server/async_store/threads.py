"""Threads for blocking work of uploads and requests.

``trio.to_thread`` hands every call to a thread of its own and every result to a task: about
120 µs of processor time. A piece of content is short work, there are hundreds of them a
second, and no task waits for a single one. So a few threads take jobs from a queue. The
functions that take the results are called in the event loop, with one wake-up for all jobs
that have ended meanwhile. That costs about half.

An idle thread waits for a lock of its own. (In the standard library's queues all threads wait
for one lock, so each job wakes a second thread for nothing.) Of many small jobs in a row only
the first one wakes a thread. That thread cannot run before the event loop releases the
interpreter, and by then it finds most of the other jobs as well.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeAlias, TypeVar, cast

import trio

from trioresume.server.event_loop import Signal

__all__ = ["Lane", "Threads"]

logger = logging.getLogger("trioresume.operations")

T = TypeVar("T")

Job = Callable[[], object]
Then = Callable[[object, Exception | None], None]
"""Called in the event loop with a job's result, or with its exception."""
Work: TypeAlias = "tuple[Job, Then] | Lane"


class Threads:
    """Calls jobs in *threads* threads; with none, calls each job at once in ``submit``."""

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._threads: list[threading.Thread] = []
        self._todo: deque[Work] = deque()
        self._idle: list[threading.Lock] = []
        """The locks of the idle threads. The thread that became idle last is woken first."""
        self._done: deque[tuple[Then, object, Exception | None]] = deque()
        self._token: trio.lowlevel.TrioToken | None = None
        self._is_ending = False
        self._is_waking = False
        """Whether a woken thread is about to look for work: one at a time. It wakes the next
        one if it finds more than it takes."""
        self._is_told = False
        """Whether the event loop was told that jobs are done, and has not looked yet."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take jobs while the block runs; on exit all submitted jobs are done.

        The results are delivered only while the event loop still turns. So a task that waits
        for a result must get it before the block ends.
        """
        self._token = trio.lowlevel.current_trio_token()
        self._is_ending = False
        self._threads = [
            threading.Thread(target=self._work, name="trioresume-disk", daemon=True)
            for _ in range(self._size)
        ]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._is_ending = True
            while self._idle:
                self._wake()
            for thread in self._threads:
                thread.join()

    @property
    def waiting(self) -> int:
        """The number of jobs and lanes that wait for a thread."""
        return len(self._todo)

    def submit(self, job: Job, then: Then) -> None:
        """Have *job* called soon in a thread, and then *then* in the event loop."""
        if self._size:
            self._put((job, then))
        else:
            _call(then, *_run(job))

    def follow(self, lane: Lane) -> None:
        """Have the jobs of *lane* called soon, one after the other, until none is left."""
        if self._size:
            self._put(lane)
        else:
            while (work := lane.next_job()) is not None:
                job, then = work
                _call(then, *_run(job))

    def hasten(self, lane: Lane) -> None:
        """Have *lane* followed next, if it waits for a thread."""
        try:
            self._todo.remove(lane)
        except ValueError:
            return  # it has no jobs, or a thread
        self._todo.appendleft(lane)
        if not self._is_waking:
            self._wake()

    def _put(self, work: Work) -> None:
        self._todo.append(work)
        if not self._is_waking:
            self._wake()

    def _wake(self) -> None:
        """Wake one idle thread, if there is one, to look for work."""
        try:
            lock = self._idle.pop()
        except IndexError:
            return  # all threads are busy: the first one to be free takes the work
        self._is_waking = True
        lock.release()

    def _get(self, lock: threading.Lock) -> Work | None:
        while True:
            try:
                work = self._todo.popleft()
            except IndexError:
                self._is_waking = False
                if self._is_ending:
                    return None
                self._idle.append(lock)
            else:
                self._is_waking = False
                if self._todo:
                    self._wake()
                return work
            if (self._todo or self._is_ending) and self._retract(lock):
                continue  # work came in between
            lock.acquire()

    def _retract(self, lock: threading.Lock) -> bool:
        """Be idle no more. Returns False if another thread is about to release the lock."""
        try:
            self._idle.remove(lock)
        except ValueError:
            return False
        return True

    def _work(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        while (work := self._get(lock)) is not None:
            if isinstance(work, Lane):
                while self._do(work.next_job()):
                    if self._todo:  # the turn of other work
                        self._todo.append(work)
                        break
            else:
                self._do(work)
            del work  # do not keep it until the next work comes

    def _do(self, work: tuple[Job, Then] | None) -> bool:
        if work is None:
            return False
        job, then = work
        result, error = _run(job)
        self._done.append((then, result, error))
        if not self._is_told:
            # One wake-up for all jobs that end before the event loop looks.
            self._is_told = True
            assert self._token is not None
            self._token.run_sync_soon(self._finish)
        return True

    def _finish(self) -> None:
        self._is_told = False  # a job that ends from now on tells the loop again
        while self._done:
            _call(*self._done.popleft())


def _run(job: Job) -> tuple[object, Exception | None]:
    try:
        return job(), None
    except Exception as exc:  # noqa: BLE001 - passed to the function that takes the result
        return None, exc


def _call(then: Then, result: object, error: Exception | None) -> None:
    try:
        then(result, error)
    except Exception:
        # No caller can handle it here; the event loop and the other jobs must go on.
        logger.exception("a bug after disk work")


class Lane:
    """Jobs of one upload, called one after the other, in order.

    A thread that has ended one job goes on with the next without asking the event loop.
    """

    __slots__ = ("_ended", "_followed", "_jobs", "_workers", "pending")

    def __init__(self, workers: Threads) -> None:
        self._workers = workers
        self._jobs: SimpleQueue[tuple[Job, Then]] = SimpleQueue()
        """Jobs that have not begun. An empty deque would take more memory."""
        self.pending = 0
        """The number of jobs whose end the event loop does not know yet."""
        self._followed = threading.Lock()
        """Held from the request for a thread until the thread finds no more job."""
        self._ended: Signal | None = None
        """Fired whenever a job has ended; created by the first waiter."""

    def put(self, job: Job, then: Then) -> None:
        self.pending += 1
        self._jobs.put((job, then))
        if self._followed.acquire(blocking=False):
            self._workers.follow(self)

    def hasten(self) -> None:
        """Have the lane served before others, because a task waits for its end."""
        self._workers.hasten(self)

    def next_job(self) -> tuple[Job, Then] | None:
        """Return the next job for the thread that follows; None ends that."""
        while True:
            try:
                job, then = self._jobs.get_nowait()
            except Empty:
                self._followed.release()
            else:
                return job, partial(self._after, then)
            # A job may have been put in before the release: it found the lock held.
            if self._jobs.empty() or not self._followed.acquire(blocking=False):
                return None

    def _after(self, then: Then, result: object, error: Exception | None) -> None:
        try:
            then(result, error)
        finally:
            self.pending -= 1
            if self._ended is not None:
                self._ended.fire()

    async def call(self, job: Callable[[], T]) -> T:
        """Call *job* in its turn; return its result or raise its exception. A checkpoint.

        If cancelled, the job is called all the same.
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
        """Return when at most *pending* jobs have not ended. A checkpoint if this waits."""
        while self.pending > pending:
            if self._ended is None:
                self._ended = Signal()
            await self._ended.wait()
