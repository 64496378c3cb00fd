"""The task that looks at those who wait for a peer."""

from __future__ import annotations

import trio
import trio.testing

from trioresume.server.event_loop import LONGEST_WATCH_STEP, Watch


class Noted:
    """Notes when it was looked at."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def look(self, now: float) -> None:
        self.times.append(now)


async def test_who_entered_is_looked_at_until_it_leaves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """At even times, the first after one step."""
    watch, noted = Watch(), Noted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(10)
        watch.enter(noted, 60)
        await trio.sleep(2.5 * LONGEST_WATCH_STEP)
        watch.leave(noted)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert [time - 10 for time in noted.times] == [
        LONGEST_WATCH_STEP,
        2 * LONGEST_WATCH_STEP,
    ]


async def test_who_waits_a_short_time_is_looked_at_more_often(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """So that nobody waits much longer than it may."""
    watch, noted = Watch(), Noted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        watch.enter(noted, 0.4)
        await trio.sleep(1.05)
        nursery.cancel_scope.cancel()
    assert len(noted.times) == 10


async def test_while_nobody_waits_nothing_happens() -> None:
    """No polling: there is no deadline at all."""
    watch, noted = Watch(), Noted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float(
            "inf"
        )
        watch.enter(noted, 60)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline <= 0.25
        nursery.cancel_scope.cancel()
