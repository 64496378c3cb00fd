"""A store whose every call can be held, failed and released in an order that a test chooses.

:class:`HeldStore` stands around a store in memory and has the server believe that its
calls may block. The server then makes them where it makes those of a disk: in its lanes
and workers, with every await in between. But nothing runs at the same time. A thread
has its turn only while the event loop waits for it, up to the end of the job or up to
the next call that is held. So a test is as deterministic as one without threads, may
use a clock that jumps, and says which call waits for what::

    store = HeldStore(MemoryStore(chunk_size=64))
    async with memory_service(handler, store=store) as service:
        naming = store.hold("apply", having(SealChunk))
        …                         # a client sends a chunk
        await naming.reached()    # the commit that names it is about to be made
        …                         # and meanwhile?
        naming.fail(StorageError("no"))

Calls are named as the port has them: ``apply``, ``open_writer``, ``writer.append``,
``writer.flush``, ``seal.run``, ``flush.run``, ``reader.read`` and so on. A call that the
server makes on its event loop can fail, but not be held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import trio

from trioresume.errors import StorageConflict
from trioresume.server.async_store.threads import Job, Lane, Then, Threads
from trioresume.store.port import Mutation, Store
from trioresume.testing.memory_store import MemoryStore

__all__ = ["HeldStore", "Hold", "having"]

Which = Callable[..., bool]
"""Whether a call with these arguments is meant."""

_TURN_SECONDS = 20.0
"""Seconds after which a job counts as stuck: it waits for a lock of one that is held."""


def having(*kinds: type[Mutation]) -> Which:
    """Of calls of ``apply``: one whose batch has a mutation of one of *kinds*."""

    def is_meant(batch: Sequence[Sequence[Mutation]]) -> bool:
        return any(isinstance(mutation, kinds) for each in batch for mutation in each)

    return is_meant


def _any(*args: object) -> bool:
    return True


class _Turns:
    """A job in a thread of its own, which runs only while :meth:`go_on` waits for it."""

    current = threading.local()

    def __init__(self, job: Job) -> None:
        self.result: object = None
        self.error: Exception | None = None
        self.hold: Hold | None = None
        """Where it stands, unless it is over."""
        self._job = job
        self._over = False
        self._ours, self._its = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.current.turns = self
        self._its.acquire()
        try:
            self.result = self._job()
        except Exception as exc:  # noqa: BLE001 - handed on as workers do
            self.error = exc
        self._over = True
        self._ours.release()

    def go_on(self) -> bool:
        """Let it run up to its end, or up to a call that is held; whether it is over."""
        self.hold = None
        self._its.release()
        if not self._ours.acquire(timeout=_TURN_SECONDS):
            raise RuntimeError("a job waits for another one, which is held")
        return self._over

    def stop_at(self, hold: Hold) -> None:
        """Called by the job: stand still until it is to go on."""
        self.hold = hold
        self._ours.release()
        self._its.acquire()


class Hold:
    """A call that is to be held, or is. It goes on in one of three ways."""

    def __init__(self) -> None:
        self._reached = trio.Event()
        self._turns: _Turns | None = None
        self._go_on: Callable[[], None] = _nothing
        self._error: Exception | None = None
        self._performs = False

    @property
    def is_reached(self) -> bool:
        return self._reached.is_set()

    @property
    def is_standing(self) -> bool:
        """Whether a call waits here now."""
        return self._turns is not None and self._turns.hold is self

    async def reached(self) -> None:
        """Return when the call is there and waits."""
        with trio.fail_after(60):
            await self._reached.wait()

    def release(self) -> None:
        """Have the call performed, if it was not, and its caller told."""
        self._resume()

    def fail(self, error: Exception) -> None:
        """Have the call raise *error*, performed or not."""
        self._error = error
        self._resume()

    def perform(self) -> None:
        """Have the call performed now. Its caller is told only by :meth:`release`."""
        self._performs = True
        self._resume()

    def _resume(self) -> None:
        assert self._turns is not None, "the call was not made yet"
        self._go_on()

    def note(self, go_on: Callable[[], None]) -> None:
        """For the workers, on the event loop: a job stands here."""
        self._go_on = go_on
        self._reached.set()

    def meet(self, call: Callable[[], object]) -> object:
        """The call was made, in a job's thread."""
        turns: _Turns | None = getattr(_Turns.current, "turns", None)
        assert turns is not None, "a call on the event loop cannot be held"
        self._turns = turns
        turns.stop_at(self)
        result: object = None
        performed = self._performs
        if performed:
            result = call()
            self._performs = False
            turns.stop_at(self)
        if self._error is not None:
            raise self._error
        return result if performed else call()


def _nothing() -> None:
    pass


class _Fault:
    """A call that fails at once."""

    def __init__(self, error: Exception, *, performed: bool) -> None:
        self._error = error
        self._performed = performed

    def meet(self, call: Callable[[], object]) -> object:
        if self._performed:
            call()
        raise self._error


class HeldStore:
    """See the module's text."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.calls: list[str] = []
        """The names of all calls, in the order in which they were made."""
        self._plans: list[tuple[str, Which, Hold | _Fault, int]] = []
        self._holds: list[Hold] = []
        self._committed: list[Mutation] = []

    @property
    def port(self) -> Store:
        """It, as the server sees it."""
        return cast("Store", _Watched(self, "", self.store))

    def hold(self, name: str, which: Which = _any) -> Hold:
        """Hold the next call of *name*, of those that are meant."""
        hold = Hold()
        self._holds.append(hold)
        self._plans.append((name, which, hold, 1))
        return hold

    def let_go(self) -> None:
        """Hold nothing any more, now and later: the test is over."""
        self._plans.clear()
        for hold in self._holds:
            if hold.is_standing:
                hold.release()

    def fail(
        self,
        name: str,
        error: Exception,
        which: Which = _any,
        *,
        performed: bool = False,
        times: int = 1,
    ) -> None:
        """Have the next calls of *name* raise *error*, though they may be *performed*."""
        self._plans.append((name, which, _Fault(error, performed=performed), times))

    def count(self, name: str) -> int:
        return self.calls.count(name)

    def committed(self, kind: type[Mutation]) -> list[Mutation]:
        """The mutations of one kind that the store has performed, in their order."""
        return [each for each in self._committed if isinstance(each, kind)]

    def _apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        results = self.store.apply(batch)
        for submission, conflict in zip(batch, results, strict=True):
            if conflict is None:
                self._committed += submission
        return results

    def make(self, name: str, function: Callable[..., Any], args: Any) -> Any:
        """Make a call, as it was planned."""
        self.calls.append(name)
        if name == "apply":
            function = self._apply
        for number, (planned, which, plan, times) in enumerate(self._plans):
            if planned == name and which(*args):
                if times == 1:
                    del self._plans[number]
                else:
                    self._plans[number] = (planned, which, plan, times - 1)
                return plan.meet(partial(function, *args))
        return function(*args)

    def workers(self, threads: int) -> Threads:
        """What the server makes its calls by."""
        return _HeldThreads()


_MADE = {
    "new_writer": "writer",
    "open_writer": "writer",
    "writer.append": "seal",
    "writer.finish": "seal",
    "writer.flush": "flush",
    "open_reader": "reader",
    "open_prefix": "reader",
}
"""What a call returns that has calls of its own."""


class _Watched:
    """Stands around the store, or around what the store made."""

    def __init__(self, script: HeldStore, kind: str, inner: Any) -> None:
        self._script = script
        self._kind = kind
        self._inner = inner

    @property
    def blocking(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not callable(attribute):
            return attribute
        full = f"{self._kind}.{name}" if self._kind else name
        return partial(self._call, full, attribute)

    def _call(
        self, name: str, function: Callable[..., Any], *args: Any, **named: Any
    ) -> Any:
        made = self._script.make(name, partial(function, **named), args)
        kind = _MADE.get(name)
        if kind is None or made is None:
            return made
        if isinstance(made, list):
            return [_Watched(self._script, kind, each) for each in made]
        return _Watched(self._script, kind, made)


class _HeldThreads(Threads):
    """Calls each job at the next turn of the event loop, as far as nothing holds it."""

    def __init__(self) -> None:
        super().__init__(0)
        self._waiting: deque[tuple[Job, Then] | Lane] = deque()
        self._soon: trio.lowlevel.TrioToken | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        self._soon = trio.lowlevel.current_trio_token()
        try:
            yield
        finally:
            self._run_waiting()

    def submit(self, job: Job, then: Then) -> None:
        self._add((job, then))

    def follow(self, lane: Lane) -> None:
        self._add(lane)

    def hasten(self, lane: Lane) -> None:
        if lane in self._waiting:
            self._waiting.remove(lane)
            self._waiting.appendleft(lane)

    def _add(self, work: tuple[Job, Then] | Lane) -> None:
        assert self._soon is not None
        self._waiting.append(work)
        self._soon.run_sync_soon(self._run_waiting)

    def _run_waiting(self) -> None:
        while self._waiting:
            work = self._waiting.popleft()
            if isinstance(work, Lane):
                self._follow(work)
            else:
                self._begin(*work, _nothing)

    def _follow(self, lane: Lane) -> None:
        work = lane.next_job()
        if work is not None:
            self._begin(*work, partial(self._follow, lane))

    def _begin(self, job: Job, then: Then, after: Callable[[], None]) -> None:
        self._turn(_Turns(job), then, after)

    def _turn(self, turns: _Turns, then: Then, after: Callable[[], None]) -> None:
        if turns.go_on():
            then(turns.result, turns.error)
            after()
            return
        hold = turns.hold
        assert hold is not None
        hold.note(partial(self._turn, turns, then, after))
