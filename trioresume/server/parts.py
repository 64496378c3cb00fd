"""What a process does for its service, if several processes share the work.

Usually one process does everything. With several workers the parent *keeps*: it has the
catalog, expires, collects, delivers events, and does the tasks of the service itself. The
workers *serve*: they have the connections and call the targets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

__all__ = ["KEEPING", "SERVING", "WHOLE", "Leading", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the work."""

    keeps: bool
    serves: bool


WHOLE = Part(keeps=True, serves=True)
KEEPING = Part(keeps=True, serves=False)
SERVING = Part(keeps=False, serves=True)


@dataclass(eq=False)
class Leading:
    """Whether this process does what only one of the serving processes should do."""

    _begun: trio.Event = field(default_factory=trio.Event)
    _ended: trio.Event = field(default_factory=trio.Event)

    def begin(self) -> None:
        """Do these things from now on. Idempotent."""
        self._begun.set()

    def end(self) -> None:
        """Leave them to another process. Idempotent."""
        if self._begun.is_set():
            self._begun = trio.Event()
            self._ended.set()
            self._ended = trio.Event()

    async def run(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run *task* while this process leads, each time anew, until this is cancelled."""
        while True:
            await self._begun.wait()
            ended = self._ended
            async with trio.open_nursery() as nursery:
                nursery.start_soon(task)
                await ended.wait()
                nursery.cancel_scope.cancel()
