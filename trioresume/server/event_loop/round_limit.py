"""Let only a few tasks go on in each round of the event loop.

To begin an upload takes the event loop most of a millisecond. After a failure of the network
a thousand clients may come back at once. trio would run all of their tasks before it looks at
the network again. A client that only asks for an offset, or takes over an upload, would wait
for a second. So at most :data:`WIDTH` requests with content begin in a round, first come,
first served. Other requests pass between them.
"""

from __future__ import annotations

import trio

__all__ = ["RoundLimit"]

WIDTH = 8
"""Requests let through in a round: some 5 ms of work."""

_NO_LIMIT = float("inf")


class RoundLimit:
    """Lets a few tasks through in each round while ``run`` runs, and all tasks otherwise."""

    def __init__(self, width: int = WIDTH) -> None:
        self._width = width
        self._limit = _NO_LIMIT
        self._passed = 0
        """Tasks let through in this round."""
        self._waiting = trio.lowlevel.ParkingLot()
        self._sleeping = trio.lowlevel.ParkingLot()
        """The task in ``run``, while no task comes."""

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
