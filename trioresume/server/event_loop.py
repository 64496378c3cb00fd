"""Ways to wait and to take turns in trio's event loop.

* :class:`Signal` costs almost nothing while nothing waits for it.
* :class:`RoundLimit` lets only a few tasks go on in each round of the loop.
* :class:`Watch` checks the deadlines of all tasks that wait for a peer.
* :func:`in_background` runs a task in the server's nursery for as long as a block runs.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, Protocol

import trio

__all__ = ["RoundLimit", "Signal", "Watch", "Watched", "in_background"]

ROUND_WIDTH = 8
"""Requests let through in a round: some 5 ms of work."""

_NO_LIMIT = float("inf")


class RoundLimit:
    """Lets a few tasks through in each round while ``run`` runs, and all tasks otherwise.

    To begin an upload takes the event loop most of a millisecond. After a failure of the
    network a thousand clients may come back at once. trio would run all of their tasks before
    it looks at the network again. A client that only asks for an offset, or takes over an
    upload, would wait for a second. So at most :data:`ROUND_WIDTH` requests with content begin in a
    round, first come, first served. Other requests pass between them.
    """

    def __init__(self, width: int = ROUND_WIDTH) -> None:
        self._width = width
        self._limit = _NO_LIMIT
        self._passed = 0
        """Tasks let through in this round."""
        self._waiting = trio.lowlevel.ParkingLot()
        self._sleeping = trio.lowlevel.ParkingLot()
        """The task in ``run``, while no task comes."""

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for their turn."""
        return len(self._waiting)

    async def wait(self) -> None:
        """Return when it is the caller's turn. A checkpoint only if this waits."""
        if self._sleeping:
            self._sleeping.unpark()
        if self._passed < self._limit and not self._waiting:
            self._passed += 1
        else:
            await self._waiting.park()

    async def run(self) -> None:
        """Begin round after round until cancelled; sleep while no task comes."""
        self._limit = self._width
        try:
            while True:
                self._passed = len(self._waiting.unpark(count=self._width))
                if self._passed:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._sleeping.park()
        finally:
            self._limit = _NO_LIMIT
            self._waiting.unpark_all()


class Signal:
    """Wakes the waiting tasks when it is fired. A later task waits for the next time.

    An upload has several signals, and thousands of uploads are open. A
    :class:`trio.lowlevel.ParkingLot` takes 190 bytes, and a signal takes 40. A new
    ``trio.Event`` for each wait would cost as much as the rest of the wait.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[trio.lowlevel.Task] | None = None

    def fire(self) -> None:
        """Wake all tasks that wait now."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            for task in waiting:
                trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Return when the signal is fired next. A checkpoint."""
        task = trio.lowlevel.current_task()
        if self._waiting is None:
            self._waiting = []
        waiting = self._waiting
        waiting.append(task)

        def give_up(raise_cancel: object) -> trio.lowlevel.Abort:
            waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)


LONGEST_WATCH_STEP = 0.25
"""The longest time in seconds from one look to the next."""


class Watched(Protocol):
    """A receiver with deadlines."""

    def look(self, now: float) -> None:
        """Act on what is overdue at *now*, on trio's clock. Must not raise or take long."""
        ...


class Watch:
    """Checks the deadlines of all receivers, now and then, in one task.

    Fast content moves its deadline hundreds of times a second. Moving the deadline of a
    cancel scope takes trio some ten function calls; setting an attribute takes none. So a
    receiver only notes its deadline. The watch looks often enough for the shortest deadline,
    is at most :data:`LONGEST_WATCH_STEP` seconds late, and sleeps while nothing is being received.
    """

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._step = LONGEST_WATCH_STEP
        self._begun = trio.Event()

    def enter(self, watched: Watched, shortest: float) -> None:
        """Look at *watched* until it leaves. Its *shortest* deadline is in seconds."""
        self._watched.add(watched)
        self._step = min(self._step, shortest / 4)
        self._begun.set()

    def leave(self, watched: Watched) -> None:
        self._watched.discard(watched)

    async def run(self) -> None:
        """Look at the receivers until cancelled."""
        while True:
            await self._begun.wait()
            await trio.sleep(self._step)
            self._look(trio.current_time())
            if not self._watched:
                self._begun = trio.Event()

    def _look(self, now: float) -> None:
        for watched in list(self._watched):
            watched.look(now)


logger = logging.getLogger("trioresume.connection")

_P = ParamSpec("_P")


@asynccontextmanager
async def in_background(
    nursery: trio.Nursery,
    function: Callable[_P, Awaitable[None]],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> AsyncIterator[None]:
    """Run *function* in *nursery* while the block runs, and cancel it at the block's end.

    *nursery* is not the block's own. So an exception of *function* does not reach the block:
    it is logged, and ends neither the request nor the server.
    """
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            try:
                await function(*args, **kwargs)
            except Exception:
                logger.exception("%s failed", function)

    nursery.start_soon(run)
    try:
        yield
    finally:
        scope.cancel()
