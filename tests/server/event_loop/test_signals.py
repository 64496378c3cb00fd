"""Signals: who is woken by what, and who is not."""

from __future__ import annotations

import trio
import trio.testing

from trioresume.server.event_loop import Signal


async def test_firing_wakes_those_that_wait_and_nobody_later() -> None:
    signal = Signal()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await signal.wait()
        woken.append(number)

    signal.fire()  # nobody is there; it is not remembered
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 1)
        nursery.start_soon(wait, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []
        signal.fire()
        nursery.start_soon(wait, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == [1, 2]
        signal.fire()
    assert sorted(woken) == [1, 2, 3]


async def test_who_was_cancelled_waits_no_more() -> None:
    signal = Signal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(signal.wait)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await signal.wait()
        assert scope.cancelled_caught
        signal.fire()


async def test_fired_and_cancelled_at_once_counts_as_fired() -> None:
    """The one that was fired first: a task is not woken twice."""
    signal = Signal()
    ended: list[str] = []

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            await signal.wait()
            ended.append("fired")

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, scope)
        await trio.testing.wait_all_tasks_blocked()
        signal.fire()
        scope.cancel()
    assert ended == ["fired"]
