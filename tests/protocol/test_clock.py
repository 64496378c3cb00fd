"""The service's clock: deadlines count the time in which the service was there."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.clock import ServiceClock


class World:
    """A wall clock and a monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.monotonic = 50.0

    def clock(self, last_seen: float | None = None) -> ServiceClock:
        return ServiceClock(lambda: self.wall, lambda: self.monotonic, last_seen)

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


STEPS = [1e9, 3600.0, -3600.0, -1e6]


def test_it_begins_with_the_date() -> None:
    """In a new data directory service time and the date are the same."""
    world = World()
    clock = world.clock()
    world.pass_time(100)
    assert clock.now() == clock.date() == 1_000_100


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_wall_clock_moves_dates_and_no_deadline(step: float) -> None:
    """G11: one second of service is one second, and a date is right with the wall clock."""
    world = World()
    clock = world.clock()
    world.wall += step
    assert clock.now() == 1_000_000
    world.pass_time(86_400)
    assert clock.now() == 1_086_400
    assert clock.date() == 1_086_400 + step


@pytest.mark.parametrize("step", STEPS)
def test_time_does_not_pass_while_the_service_is_down(step: float) -> None:
    """G11: whatever the wall clock did meanwhile, deadlines keep what was left to them."""
    world = World()
    world.wall += step
    world.monotonic = 3.0  # another boot
    clock = world.clock(last_seen=1_000_000)
    assert clock.now() == 1_000_000
    world.pass_time(5)
    assert clock.now() == 1_000_005


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-10, 1e5)), max_size=20))
def test_it_never_goes_back_and_never_runs_away(
    moves: list[tuple[float, float]],
) -> None:
    """Whatever both clocks do, even a monotonic one that is not."""
    world = World()
    clock = world.clock()
    for step, elapsed in moves:
        before = clock.now()
        world.wall += step
        world.monotonic += elapsed
        assert before <= clock.now() <= before + max(0.0, elapsed) + 1e-3
