"""A look, now and then, at those who wait for a peer.

Content that comes fast moves its deadlines hundreds of times a second. Each move of a
cancel scope's deadline takes trio some ten function calls; an attribute takes none. So
whoever receives only notes until when it waits, and one task for all of them looks who
has waited too long: often enough for the shortest time that anybody waits, at most
:data:`LONGEST_STEP` seconds late, and not at all while nobody receives anything.
"""

from __future__ import annotations

from typing import Protocol

import trio

__all__ = ["Watch", "Watched"]

LONGEST_STEP = 0.25
"""Seconds from one look to the next."""


class Watched(Protocol):
    """Somebody who waits."""

    def look(self, now: float) -> None:
        """Act on what is overdue at *now*, on trio's clock. Must not raise or take long."""
        ...


class Watch:
    """Those who wait, and the task that looks at them."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._step = LONGEST_STEP
        self._begun = trio.Event()

    def enter(self, watched: Watched, shortest: float) -> None:
        """Look at *watched* until it leaves; the *shortest* it waits is so many seconds."""
        self._watched.add(watched)
        self._step = min(self._step, shortest / 4)
        self._begun.set()

    def leave(self, watched: Watched) -> None:
        self._watched.discard(watched)

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await self._begun.wait()
            await trio.sleep(self._step)
            self._look(trio.current_time())
            if not self._watched:
                self._begun = trio.Event()

    def _look(self, now: float) -> None:
        for watched in list(self._watched):
            watched.look(now)
