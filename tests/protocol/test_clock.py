"""The service's clock: it advances, at very nearly one second per second."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.clock import SLEW_RATE, ServiceClock


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


def test_it_shows_the_walls_time() -> None:
    """As long as nobody touches the wall's clock."""
    world = World()
    clock = world.clock()
    world.pass_time(100)
    assert clock.now() == 1_000_100


@pytest.mark.parametrize("step", [1e9, 3600.0, -3600.0, -1e6])
def test_a_step_of_the_wall_clock_is_not_followed(step: float) -> None:
    """G11: deadlines move by one per cent of what is left to them at most."""
    world = World()
    clock = world.clock()
    world.wall += step
    assert clock.now() == 1_000_000
    world.pass_time(86_400)
    assert abs(clock.now() - 1_086_400) <= 86_400 * SLEW_RATE * 1.000001


def test_a_wrong_hour_is_made_good_in_time() -> None:
    """Slowly, and then it stays right."""
    world = World()
    clock = world.clock()
    world.wall += 3600
    for _ in range(101):
        world.pass_time(3600)
        clock.now()
    assert clock.now() == pytest.approx(world.wall)


def test_time_never_goes_back_over_a_restart() -> None:
    """G11: a wall clock set back while the service was down."""
    world = World()
    assert world.clock(last_seen=2_000_000).now() == 2_000_000
    assert world.clock(last_seen=900_000).now() == 1_000_000


def test_after_a_time_in_the_future_it_still_advances() -> None:
    """G11: nothing is kept for ever."""
    world = World()
    clock = world.clock(last_seen=9e9)
    world.pass_time(1000)
    assert clock.now() == pytest.approx(9e9 + 1000 * (1 - SLEW_RATE))


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
        after = clock.now()
        passed = max(0.0, elapsed)
        assert before <= after
        assert after - before == pytest.approx(passed, rel=SLEW_RATE * 1.01, abs=1e-3)
