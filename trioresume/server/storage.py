"""The store as async code sees it: calls in worker threads, commits in groups.

Group commit
============

Every change of the catalog is a submission of mutations. One task takes all that
have been submitted while the previous commit was on its way and applies them in
one go, so that a thousand uploads share one sync of the disk. A submission's order
against the others is the order of the calls of :meth:`Storage.commit`.

When a batch fails as a whole it is tried again one submission at a time: whoever
caused the failure gets it, the others do not suffer for it (promise 10).

What nobody waits for, such as the chunks of an upload that goes on, may be put off a
little (:meth:`Storage.submit_later`): a commit costs much and holds many.

A cancelled waiter does not take its submission back: what was submitted happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, cast

import trio

from trioresume.errors import StorageError
from trioresume.server.workers import Workers
from trioresume.store.port import FreezeContent, content_of

if TYPE_CHECKING:
    from trioresume.errors import StorageConflict
    from trioresume.server.quotas import Counted, Quotas
    from trioresume.store.port import (
        Content,
        ContentKey,
        ContentWriter,
        Mutation,
        SealChunk,
        Store,
    )

__all__ = ["Storage", "Submission"]

LONGEST_DELAY = 0.5
"""Seconds for which a submission that nobody waits for may be put off."""
MOST_DELAYED = 64
"""Submissions put off at a time; what they hold, such as tails, is bounded by it."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(eq=False, slots=True)
class Submission:
    """Mutations on their way into the catalog."""

    mutations: Sequence[Mutation]
    finished: trio.Event = field(default_factory=trio.Event)
    error: StorageError | None = None

    async def wait(self) -> None:
        """Return once they are applied and durable. A checkpoint if they are not yet.

        Raises :class:`~trioresume.errors.StorageError` if they were not.
        """
        if not self.finished.is_set():
            await self.finished.wait()
        if self.error is not None:
            # The stored one may be raised in several tasks: give each its own.
            raise type(self.error)(*self.error.args) from self.error


class Storage:
    """Runs a :class:`~trioresume.store.port.Store` for async callers.

    *workers* makes the :class:`Workers` of so many threads that its calls are made in. A
    test gives its own, to choose the order in which the calls are made and end.
    """

    def __init__(
        self,
        store: Store,
        *,
        threads: int,
        workers: Callable[[int], Workers] = Workers,
    ) -> None:
        self.store = store
        threads = threads if store.blocking else 0
        self.workers = workers(threads)
        """For what a running upload has to do on the disk."""
        self.senders = workers(threads)
        """For what a running download has to do there."""
        self.callers = workers(threads)
        """For what somebody waits for: looking things up, opening, syncing."""
        self.hashers = workers(min(threads, max(1, (os.cpu_count() or 1) // 2)))
        """For digests that clients ask for: nothing else waits behind them."""
        # Commits have a thread of their own: never behind a queue of slow syncs.
        self._committer = workers(min(1, threads))
        self._queue: list[Submission] = []
        self._changed = trio.Event()
        self._due = float("inf")
        """When the queue is to be committed, on trio's clock."""
        self._stopping = False
        self.observe: Callable[[Sequence[Mutation]], None] = _observe_nothing
        """Called with every submission that was applied."""
        self.quotas: Quotas | None = None
        """Told before and after each batch, and what is counted then."""

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function of the store, in a worker thread if it may block.

        A checkpoint. The call itself is not interrupted by cancellation, which is
        delivered only after it: disk work is one whole step.
        """
        return await self._call(self.callers, partial(function, *args))

    async def send(self, step: Callable[[], T]) -> T:
        """Call *step*, which sends what it finds in the store, as by :meth:`run`.

        It waits for other downloads only, and the other calls do not wait for it.
        """
        return await self._call(self.senders, step)

    async def hash(self, step: Callable[[], T]) -> T:
        """Call *step*, which hashes what it finds in the store, as by :meth:`run`."""
        return await self._call(self.hashers, step)

    async def _call(self, workers: Workers, job: Callable[[], T]) -> T:
        if not self.store.blocking:
            await trio.lowlevel.checkpoint()
            return job()
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()
        outcome: list[tuple[object, Exception | None]] = []

        def go_on(result: object, error: Exception | None) -> None:
            outcome.append((result, error))
            trio.lowlevel.reschedule(task)

        # Less than half of what trio.to_thread costs, and each request has several.
        workers.submit(job, go_on)
        await trio.lowlevel.wait_task_rescheduled(_not_now)
        result, error = outcome.pop()
        if error is not None:
            raise error
        return cast("T", result)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Calls may be made while the block runs."""
        with (
            self.workers.running(),
            self.senders.running(),
            self.hashers.running(),
            self.callers.running(),
        ):
            yield

    def submit(self, *mutations: Mutation) -> Submission:
        """Have *mutations* applied together, soon; nobody needs to wait for it."""
        return self._submit(mutations, 0.0)

    def submit_later(self, *mutations: Mutation) -> Submission:
        """Have *mutations* applied with the next commit that somebody waits for.

        Or after :data:`LONGEST_DELAY` seconds, or when :meth:`hurry` is called.
        """
        return self._submit(mutations, LONGEST_DELAY)

    def hurry(self) -> None:
        """Commit now what was submitted for later: somebody waits for it."""
        if self._queue:
            self._due = 0.0
            self._changed.set()

    async def commit(self, *mutations: Mutation) -> None:
        """Apply *mutations* together; durable on return. A checkpoint.

        Raises :class:`~trioresume.errors.StorageConflict` if a compare-and-set
        failed, or another :class:`~trioresume.errors.StorageError`; then nothing
        of the submission was done. If cancelled, it may or may not happen.
        """
        await self._submit(mutations, 0.0).wait()

    async def finish_content(
        self,
        writer: ContentWriter,
        key: ContentKey,
        earlier: Sequence[SealChunk],
        seals: Sequence[SealChunk],
    ) -> tuple[Content, list[Mutation]]:
        """The whole content that *writer* has finished, and what freezes it.

        *seals* are the last ones; those that the writer gave before must have been
        applied, and *earlier* are some of them: if all, nothing has to be looked up. The
        mutations are left to the caller to commit, together with what else is then true.
        """
        known = [*earlier, *seals]
        if sum(seal.length for seal in known) == writer.offset:
            content = content_of(writer.chunk_size, known)
        else:
            content = await self.run(self.store.sealed_content, key, seals)
        if content.length != writer.offset:
            raise ValueError("the chunks do not add up to the length")
        return content, [*seals, FreezeContent(key, content)]

    def _submit(self, mutations: Sequence[Mutation], delay: float) -> Submission:
        submission = Submission(mutations)
        self._queue.append(submission)
        if len(self._queue) > MOST_DELAYED:
            delay = 0.0
        due = trio.current_time() + delay
        if due < self._due:
            self._due = due
            self._changed.set()
        return submission

    async def run_commits(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """The committing task: runs until :meth:`stop`, also when it is cancelled.

        Others that are being cancelled may still submit; what was submitted happens.
        """
        with trio.CancelScope(shield=True), self._committer.running():
            task_status.started()
            while not self._stopping or self._queue:
                if self._due > trio.current_time() and not self._stopping:
                    self._changed = trio.Event()
                    if self._due == float("inf"):
                        await self._changed.wait()
                    else:
                        with trio.move_on_at(self._due):
                            await self._changed.wait()
                else:
                    self._due = float("inf")
                    await self._commit_queue()

    def stop(self) -> None:
        """End the committing task once everything submitted is applied."""
        self._stopping = True
        self._changed.set()

    async def _commit_queue(self) -> None:
        batch, self._queue = self._queue, []
        if not batch:
            return
        try:
            await self._apply(batch)
        except StorageError:
            for submission in batch:
                try:
                    await self._apply([submission])
                except StorageError as exc:
                    submission.error = exc
        except BaseException:
            # A bug, which ends the service: nobody may take it for a success.
            for submission in batch:
                submission.error = StorageError("the commit failed")
            raise
        finally:
            for submission in batch:
                submission.finished.set()

    async def _apply(self, batch: Sequence[Submission]) -> None:
        mutations = [submission.mutations for submission in batch]
        quotas = self.quotas
        count = _count_nothing if quotas is None else quotas.brace()
        apply = partial(_apply_and_count, self.store, mutations, count)
        results, counted = await self._call(self._committer, apply)
        for submission, conflict in zip(batch, results, strict=True):
            submission.error = conflict
            if conflict is None:
                self.observe(submission.mutations)
        if quotas is not None:
            quotas.learn(counted)


def _not_now(raise_cancel: object) -> trio.lowlevel.Abort:
    """Disk work is one whole step: cancellation waits for it."""
    return trio.lowlevel.Abort.FAILED


def _apply_and_count(
    store: Store,
    batch: Sequence[Sequence[Mutation]],
    count: Callable[[], Counted | None],
) -> tuple[list[StorageConflict | None], Counted | None]:
    return store.apply(batch), count()


def _count_nothing() -> None:
    """Where there are no quotas."""


def _observe_nothing(mutations: Sequence[Mutation]) -> None:
    """The default of :attr:`Storage.observe`."""
