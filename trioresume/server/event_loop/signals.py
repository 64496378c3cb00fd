"""A signal and a lock holder that cost almost nothing while nothing waits for them."""

from __future__ import annotations

import trio

__all__ = ["Holding", "Signal"]


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


class Holding:
    """``async with`` a lock; a checkpoint only if another task has the lock."""

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
