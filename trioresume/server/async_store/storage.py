"""The store for async code: calls in worker threads, commits in groups.

Group commit
============

Every change of the catalog is a submission of mutations. One task takes all submissions that
were made during the previous commit, and applies them in one commit. So a thousand uploads
share one sync of the disk. Submissions take effect in the order of the calls of
:meth:`Storage.commit`.

If a batch fails as a whole, its submissions are tried again one by one. Only the submission
that caused the failure gets the error (G8 in docs/supported-protocols.md: a full disk hurts
one request).

A commit costs much and holds many submissions. So a submission that nobody waits for, such as
the chunks of an upload that goes on, may be delayed a little (:meth:`Storage.submit_later`).

A cancelled waiter does not take its submission back: a submission always happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple, cast

import trio

from trioresume.errors import OutcomeUnknown, StaleWriter, StorageError
from trioresume.server.async_store.threads import Threads
from trioresume.server.event_loop import Signal
from trioresume.store.port import FreezeContent, content_of

if TYPE_CHECKING:
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
"""The longest delay, in seconds, of a submission that no task waits for."""
MOST_DELAYED = 64
"""Submissions delayed at a time. This bounds the files that they hold, such as tails."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(eq=False, slots=True)
class Submission:
    """Mutations on their way into the catalog.

    An upload keeps the submission of its record, so this is small.
    """

    mutations: Sequence[Mutation]
    error: StorageError | None = None
    is_finished: bool = False
    _ended: Signal | None = None
    """Fired at the end; created by the first waiter."""
    then: Callable[[], None] | None = None
    """Called at the end, before the waiters are woken."""

    def finish(self) -> None:
        """Note that nothing more happens to the mutations, and wake the waiters."""
        self.is_finished = True
        self.mutations = ()
        if self.then is not None:
            self.then()
        if self._ended is not None:
            self._ended.fire()

    async def wait(self) -> None:
        """Return once they are applied and durable. A checkpoint if they are not yet.

        Raises :class:`~trioresume.errors.StorageError` if they could not be applied.
        """
        if not self.is_finished:
            if self._ended is None:
                self._ended = Signal()
            await self._ended.wait()
        if self.error is not None:
            # Several tasks may raise the stored error: give each one its own copy.
            raise type(self.error)(*self.error.args) from self.error


class BatchObserver(Protocol):
    """Looks at the store with each batch of commits."""

    def before_batch(self) -> Callable[[], Callable[[], None]]:
        """Prepare for a batch, in the event loop.

        Returns a function that is called in the batch's thread, after the batch. What that
        function returns is called in the event loop, after all mutations were observed.
        """


class Storage:
    """Runs a :class:`~trioresume.store.port.Store` for async callers.

    *workers* makes :class:`Threads` with a given number of threads, which make the store's
    calls. A test passes its own, to choose the order in which the calls begin and end.
    """

    def __init__(
        self,
        store: Store,
        *,
        threads: int,
        workers: Callable[[int], Threads] = Threads,
    ) -> None:
        self.store = store
        threads = threads if store.blocking else 0
        self.workers = workers(threads)
        """For the disk work of running uploads."""
        self.senders = workers(threads)
        """For the disk work of running downloads."""
        self.callers = workers(threads)
        """For calls that a task waits for: looking up, opening, syncing."""
        self.hashers = workers(min(threads, max(1, (os.cpu_count() or 1) // 2)))
        """For digests that clients ask for: no other call waits behind them."""
        # Commits have a thread of their own, so they never wait behind slow syncs.
        self._committer = workers(min(1, threads))
        self._queue: list[Submission] = []
        self._changed = trio.Event()
        self._due = float("inf")
        """When the queue will be committed, on trio's clock."""
        self._stopping = False
        self._observers: list[
            tuple[Callable[[Sequence[Mutation]], None], frozenset[type[Mutation]]]
        ] = []
        self.on_refused: Callable[[Sequence[Mutation]], None] | None = None
        """Called with the mutations of a submission that another process's claim has fenced off."""
        self._is_committing = False
        self.batch_observer: BatchObserver | None = None
        """Told of each batch, before and after it."""

    @property
    def waiting(self) -> int:
        """The number of submissions that wait for a commit."""
        return len(self._queue)

    def add_observer(
        self, observe: Callable[[Sequence[Mutation]], None], *kinds: type[Mutation]
    ) -> None:
        """Call *observe* with the mutations of every submission that was applied.

        With *kinds* only if one of the mutations is of these.
        """
        self._observers.append((observe, frozenset(kinds)))

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function of the store, in a worker thread if it may block.

        A checkpoint. Cancellation does not interrupt the call, and takes effect only after
        it: disk work is one whole step.
        """
        return await self._call(self.callers, partial(function, *args))

    async def send(self, step: Callable[[], T]) -> T:
        """Call *step*, which sends stored content, as :meth:`run` does.

        It waits for other downloads only, and other calls do not wait for it.
        """
        return await self._call(self.senders, step)

    async def hash(self, step: Callable[[], T]) -> T:
        """Call *step*, which hashes stored content, as :meth:`run` does."""
        return await self._call(self.hashers, step)

    async def _call(self, workers: Threads, job: Callable[[], T]) -> T:
        if not self.store.blocking:
            await trio.lowlevel.checkpoint()
            return job()
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()
        outcome: list[tuple[object, Exception | None]] = []

        def go_on(result: object, error: Exception | None) -> None:
            outcome.append((result, error))
            trio.lowlevel.reschedule(task)

        # Less than half the cost of trio.to_thread, and each request has several calls.
        workers.submit(job, go_on)
        await trio.lowlevel.wait_task_rescheduled(_not_now)
        result, error = outcome.pop()
        if error is not None:
            raise error
        return cast("T", result)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the worker threads while the block runs."""
        with (
            self.workers.running(),
            self.senders.running(),
            self.hashers.running(),
            self.callers.running(),
        ):
            yield

    def submit(self, *mutations: Mutation) -> Submission:
        """Have *mutations* applied together, soon, without waiting."""
        return self._submit(mutations, 0.0)

    def put(self, mutations: Sequence[Mutation]) -> Submission:
        """Do what :meth:`submit` does, and hand this very sequence to the store."""
        return self._submit(mutations, 0.0)

    def submit_later(self, *mutations: Mutation) -> Submission:
        """Have *mutations* applied together with the next commit that a task waits for.

        They are applied after :data:`LONGEST_DELAY` seconds at the latest, and at once when
        :meth:`hurry` is called.
        """
        return self._submit(mutations, LONGEST_DELAY)

    def hurry(self) -> None:
        """Commit the delayed submissions now, because a task waits for one."""
        if self._queue:
            self._due = 0.0
            self._changed.set()

    async def commit(self, *mutations: Mutation) -> None:
        """Apply *mutations* together; durable on return. A checkpoint.

        Raises :class:`~trioresume.errors.StorageConflict` if a compare-and-set
        failed, or another :class:`~trioresume.errors.StorageError`; then nothing
        of the submission was done. If cancelled, the commit may still happen.
        """
        await self._submit(mutations, 0.0).wait()

    async def settle(self) -> None:
        """Wait until everything that was submitted has been applied, or has failed."""
        if self._queue or self._is_committing:
            try:
                await self.commit()
            except StorageError:
                pass  # whoever has submitted something is told

    async def finish_content(
        self,
        writer: ContentWriter,
        key: ContentKey,
        earlier: Sequence[SealChunk],
        seals: Sequence[SealChunk],
    ) -> tuple[Content, list[Mutation]]:
        """Return the whole content that *writer* has finished, and the mutations to freeze it.

        *seals* are the last seals. Earlier seals of the writer must have been applied.
        *earlier* are some of them; if they are all, the store is not asked. The caller
        commits the mutations, together with other changes that belong to the same moment.
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
        """Run the committing task until :meth:`stop`, even if it is cancelled.

        Other tasks may still submit while they are being cancelled, and every submission
        happens.
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
        self._is_committing = True
        try:
            await self._apply(batch)
        except OutcomeUnknown as exc:
            # It may have happened, so it must not be tried again.
            for submission in batch:
                submission.error = exc
        except StorageError:
            for submission in batch:
                try:
                    await self._apply([submission])
                except StorageError as exc:
                    submission.error = exc
        except BaseException:
            # A bug, which ends the service: no waiter may take it for a success.
            for submission in batch:
                submission.error = StorageError("a bug ended the commit")
            raise
        finally:
            self._is_committing = False
            for submission in batch:
                submission.finish()

    async def _apply(self, batch: Sequence[Submission]) -> None:
        mutations = [submission.mutations for submission in batch]
        observer = self.batch_observer
        look = None if observer is None else observer.before_batch()
        apply = partial(_apply_and_look, self.store, mutations, look)
        results, take_over = await self._call(self._committer, apply)
        for submission, conflict in zip(batch, results, strict=True):
            submission.error = conflict
            if isinstance(conflict, StaleWriter) and self.on_refused is not None:
                self.on_refused(submission.mutations)
            if conflict is None:
                present = {type(mutation) for mutation in submission.mutations}
                for observe, kinds in self._observers:
                    if not kinds or kinds & present:
                        observe(submission.mutations)
        if take_over is not None:
            take_over()


def _not_now(raise_cancel: object) -> trio.lowlevel.Abort:
    """Refuse cancellation until the call has ended: disk work is one whole step."""
    return trio.lowlevel.Abort.FAILED


def _apply_and_look(
    store: Store,
    batch: Sequence[Sequence[Mutation]],
    look: Callable[[], Callable[[], None]] | None,
) -> tuple[Sequence[StorageError | None], Callable[[], None] | None]:
    """Apply *batch* in a worker thread; then call *look*, and return what it returns."""
    return store.apply(batch), None if look is None else look()
