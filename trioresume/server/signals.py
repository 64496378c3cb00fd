"""Waiting, at next to no cost while there is nothing to wait for."""

from __future__ import annotations

import trio

__all__ = ["Holding", "Signal"]


class Signal:
    """Wakes those that wait when it is fired; who comes later waits for the next time.

    An upload has several of them, and thousands of uploads are open: a ``trio.Event`` for
    each would be a quarter of what a silent one holds in memory.
    """

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


class Holding:
    """``async with`` the lock, but a checkpoint only if somebody else has it."""

    __slots__ = ("_lock",)

    def __init__(self, lock: trio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
