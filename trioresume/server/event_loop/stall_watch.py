"""Check the deadlines of all tasks that wait for a peer, now and then.

Fast content moves its deadline hundreds of times a second. Moving the deadline of a cancel
scope takes trio some ten function calls; setting an attribute takes none. So a receiver only
notes its deadline, and one task checks the deadlines of all receivers. It looks often enough
for the shortest deadline, is at most :data:`LONGEST_STEP` seconds late, and sleeps while
nothing is being received.
"""

from __future__ import annotations

from typing import Protocol

import trio

__all__ = ["Watch", "Watched"]

LONGEST_STEP = 0.25
"""The longest time in seconds from one look to the next."""


class Watched(Protocol):
    """A receiver with deadlines."""

    def look(self, now: float) -> None:
        """Act on what is overdue at *now*, on trio's clock. Must not raise or take long."""
        ...


class Watch:
    """The receivers, and the task that looks at them."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._step = LONGEST_STEP
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
