"""A clock, tasks and servers with queues: the parts that a discrete-event model is made of.

A task is a generator. It yields the time at which it goes on, or a :class:`Gate` to wait for.
Equal seeds give equal runs: nothing here depends on the real clock or on hashes.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from typing import TypeAlias

__all__ = ["Gate", "Server", "Simulation", "Task"]


class Gate:
    """Tasks wait until it opens; whoever comes later does not wait."""

    __slots__ = ("_simulation", "_waiting", "is_open")

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._waiting: list[Task] = []
        self.is_open = False

    def open(self) -> None:
        self.is_open = True
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            self._simulation.wake(task, self._simulation.now)

    def add(self, task: Task) -> None:
        if self.is_open:
            self._simulation.wake(task, self._simulation.now)
        else:
            self._waiting.append(task)


Task: TypeAlias = Generator["float | Gate", None, None]


class Simulation:
    """The clock, and what is due."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._number = 0
        self._due: list[tuple[float, int, Task]] = []

    def wake(self, task: Task, at: float) -> None:
        """Have *task* go on at the time *at*; of equal times the first one called is first."""
        self._number += 1
        heapq.heappush(self._due, (at, self._number, task))

    def start(self, task: Task, at: float | None = None) -> None:
        self.wake(task, self.now if at is None else at)

    def run(self, until: float) -> None:
        """Run everything that is due up to the time *until*."""
        due = self._due
        while due and due[0][0] <= until:
            at, _, task = heapq.heappop(due)
            assert at >= self.now, "time went back"
            self.now = at
            self.events += 1
            step = next(task, None)
            if step is None:
                continue
            if isinstance(step, Gate):
                step.add(task)
            else:
                self.wake(task, step)
        self.now = until


class Server:
    """*count* equal servers with one queue, first come, first served."""

    __slots__ = ("_free", "busy", "count", "name", "simulation", "used", "waited")

    def __init__(self, simulation: Simulation, name: str, count: int) -> None:
        self.simulation = simulation
        self.name = name
        self.count = count
        self._free = [0.0] * count
        self.busy = 0.0
        """Seconds of all servers."""
        self.used = 0
        self.waited = 0.0
        """Seconds in the queue, of all uses."""

    def use(self, seconds: float) -> float:
        """Return the time at which a use of *seconds*, asked for now, will have ended."""
        now = self.simulation.now
        begins = max(now, self._free[0])
        heapq.heapreplace(self._free, begins + seconds)
        self.busy += seconds
        self.used += 1
        self.waited += begins - now
        return begins + seconds

    def load(self, seconds: float) -> float:
        """Return the load over *seconds*: 1 is all that the server can do. It may exceed 1."""
        return self.busy / (seconds * self.count)

    def forget(self) -> None:
        """Count from now on."""
        self.busy = self.waited = 0.0
        self.used = 0
