"""Waiting, at next to no cost while there is nothing to wait for."""

from __future__ import annotations

import trio

__all__ = ["Holding", "Signal"]


class Signal:
    """Wakes those that wait when it is fired; who comes later waits for the next time.

    An upload has several of them, and thousands of uploads are open: a ``trio.Event`` for
    each would be a quarter of what a silent one holds in memory, and one for each wait
    costs as much as the rest of it.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[trio.lowlevel.Task] | None = None

    def fire(self) -> None:
        """Wake everybody who waits now."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            for task in waiting:
                trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Return when it is fired next. A checkpoint."""
        task = trio.lowlevel.current_task()
        if self._waiting is None:
            self._waiting = []
        waiting = self._waiting
        waiting.append(task)

        def give_up(raise_cancel: object) -> trio.lowlevel.Abort:
            waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)


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
