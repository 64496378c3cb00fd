"""A wake-up for whoever waits, that costs next to nothing while nobody does.

An upload has several of them, and thousands of uploads are open: a ``trio.Event`` for
each would be a quarter of what a silent one holds in memory.
"""

from __future__ import annotations

import trio

__all__ = ["Signal"]


class Signal:
    """Wakes those that wait when it is fired; who comes later waits for the next time."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    def fire(self) -> None:
        """Wake everybody who waits now."""
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        """Return when it is fired next. A checkpoint."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()
