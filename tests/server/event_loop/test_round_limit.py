"""A burst of requests begins a few at a time, and nobody else waits for all of it."""

from __future__ import annotations

import trio
import trio.testing

from trioresume.server.event_loop import RoundLimit

WIDTH = 4


class Rounds(trio.abc.Instrument):
    """Counts the event loop's rounds."""

    number = 0

    def after_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_few_pass_in_each_round_and_first_come_first_served() -> None:
    """A hundred at once: at most WIDTH begin between two looks at the network."""
    limit = RoundLimit(WIDTH)
    rounds = Rounds()
    trio.lowlevel.add_instrument(rounds)
    came: list[int] = []
    passed: list[tuple[int, int]] = []

    async def come(number: int) -> None:
        came.append(number)
        await limit.wait()
        passed.append((rounds.number, number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(100):
            nursery.start_soon(come, number)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(rounds)
    # trio runs the tasks of a round in any order: those let through together are a set.
    by_round: dict[int, list[int]] = {}
    for round_number, number in passed:
        by_round.setdefault(round_number, []).append(came.index(number))
    assert max(map(len, by_round.values())) <= WIDTH
    order = [p for _, places in sorted(by_round.items()) for p in sorted(places)]
    assert order == list(range(100))


async def test_somebody_else_goes_on_between_them() -> None:
    """A task over the limit waits for one round, not for the whole burst."""
    limit = RoundLimit(WIDTH)
    passed = 0

    async def come() -> None:
        nonlocal passed
        await limit.wait()
        passed += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(1000):
            nursery.start_soon(come)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        assert 0 < passed <= 6 * WIDTH
        nursery.cancel_scope.cancel()


async def test_who_gives_up_takes_nobodys_turn() -> None:
    """Cancelled ones leave the line; the others pass."""
    limit = RoundLimit(1)
    passed: list[int] = []

    async def come(number: int) -> None:
        await limit.wait()
        passed.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit.run)
        await trio.testing.wait_all_tasks_blocked()
        await come(0)
        async with trio.open_nursery() as impatient:
            for number in range(1, 10):
                impatient.start_soon(come, number)
            impatient.cancel_scope.cancel()
        given_up = len(passed)
        await come(10)
        assert passed[given_up:] == [10]
        assert given_up <= 2
        nursery.cancel_scope.cancel()


async def test_nobody_is_kept_when_it_does_not_run() -> None:
    """Before its task runs, and when that has ended, everybody passes."""
    limit = RoundLimit(1)
    passed = 0

    async def come() -> None:
        nonlocal passed
        await limit.wait()
        passed += 1

    for _ in range(10):
        await come()
    async with trio.open_nursery() as waiting:
        async with trio.open_nursery() as running:
            running.start_soon(limit.run)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(10):
                waiting.start_soon(come)
            await trio.lowlevel.checkpoint()
            running.cancel_scope.cancel()
    await come()
    assert passed == 21
