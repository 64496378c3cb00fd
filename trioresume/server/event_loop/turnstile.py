"""Let only a few requests with content begin in each round of the event loop.

To begin an upload takes the event loop most of a millisecond. After a failure of the network
a thousand clients may come back at once. trio would run all of their tasks before it looks at
the network again. A client that only asks for an offset, or takes over an upload, would wait
for a second. So at most :data:`WIDTH` requests with content begin in a round, first come,
first served. Other requests pass between them.
"""

from __future__ import annotations

from collections import deque

import trio

__all__ = ["Turnstile"]

WIDTH = 8
"""Requests let through in a round: some 5 ms of work."""

_NO_LIMIT = float("inf")


class Turnstile:
    """Lets a few tasks through in each round while ``run`` runs, and all tasks otherwise."""

    def __init__(self, width: int = WIDTH) -> None:
        self._width = width
        self._limit = _NO_LIMIT
        self._passed = 0
        """Tasks let through in this round."""
        self._waiting: deque[trio.lowlevel.Task] = deque()
        self._pump: trio.lowlevel.Task | None = None
        """The task in ``run``, while it sleeps."""

    async def wait(self) -> None:
        """Return when it is the caller's turn. A checkpoint only if this waits."""
        if self._pump is not None:
            pump, self._pump = self._pump, None
            trio.lowlevel.reschedule(pump)
        if self._passed < self._limit and not self._waiting:
            self._passed += 1
            return
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def give_up(raise_cancel: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    async def run(self) -> None:
        """Begin round after round until cancelled; sleep while no task comes."""
        self._limit = self._width
        try:
            while True:
                self._passed = 0
                while self._waiting and self._passed < self._limit:
                    self._passed += 1
                    trio.lowlevel.reschedule(self._waiting.popleft())
                if self._passed:
                    await trio.lowlevel.checkpoint()
                else:
                    self._pump = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._give_up)
        finally:
            self._limit = _NO_LIMIT
            while self._waiting:
                trio.lowlevel.reschedule(self._waiting.popleft())

    def _give_up(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._pump = None
        return trio.lowlevel.Abort.SUCCEEDED
