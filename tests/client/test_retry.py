"""Backoff, jitter and the budget, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.client import RetryPolicy
from trioresume.client.decisions.retry import RetryBudget
from trioresume.errors import CallerError


def test_delays_double_up_to_the_bound() -> None:
    """With the largest draw, a delay is its bound."""
    policy = RetryPolicy(first_delay=1, longest_delay=10, seconds=1000)
    budget = RetryBudget(policy, lambda: 1.0)
    assert [budget.delay(0) for _ in range(6)] == [1, 2, 4, 8, 10, 10]


@given(st.integers(0, 50), st.floats(0, 1, exclude_max=True))
def test_jitter_is_full(failures: int, draw: float) -> None:
    """Any delay between nothing and the bound: clients cut together come back apart."""
    budget = RetryBudget(RetryPolicy(attempts=100), lambda: draw)
    for _ in range(failures):
        budget.delay(0)
    delay = budget.delay(0)
    assert delay is not None
    assert delay == pytest.approx(draw * min(0.2 * 2**failures, 20.0))


def test_attempts_run_out_and_progress_brings_them_back() -> None:
    """It counts failures without progress."""
    budget = RetryBudget(RetryPolicy(attempts=2), lambda: 0.0)
    for _ in range(3):
        assert [budget.delay(0), budget.delay(0)] == [0, 0]
        assert budget.delay(0) is None
        budget.note_progress()


def test_time_counts_from_the_first_failure() -> None:
    """Hours of undisturbed sending do not count against the failure that ends them."""
    budget = RetryBudget(RetryPolicy(attempts=100, seconds=60), lambda: 0.0)
    assert budget.delay(7200) == 0
    assert budget.delay(7259) == 0
    assert budget.delay(7260) is None


def test_last_delay_ends_with_the_budget() -> None:
    """One last try at the very end, not after it."""
    budget = RetryBudget(
        RetryPolicy(seconds=60, first_delay=20, longest_delay=20), lambda: 1.0
    )
    assert budget.delay(0) == 20
    assert budget.delay(50) == 10


def test_servers_wish_is_a_lower_bound() -> None:
    """Retry-After, and a little jitter so that not all come in the same instant."""
    budget = RetryBudget(RetryPolicy(seconds=60), lambda: 1.0)
    delay = budget.delay(0, 30)
    assert delay is not None
    assert 30 <= delay <= 31
    assert budget.delay(0, 61) is None


def test_short_wish_does_not_shorten_the_delays_of_repeated_failures() -> None:
    """Retry-After with 0, or with a date in the past, must not make the client hurry."""
    policy = RetryPolicy(seconds=60, first_delay=1, longest_delay=20)
    budget = RetryBudget(policy, lambda: 1.0)
    assert [budget.delay(0, 0.0) for _ in range(6)] == [1, 2, 4, 8, 16, 20]
    assert budget.delay(55, 0.0) == 5
    assert budget.delay(55, 5.0) == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"attempts": -1},
        {"seconds": -1},
        {"restarts": -1},
        {"first_delay": -1},
        {"first_delay": 2, "longest_delay": 1},
    ],
)
def test_senseless_policies_are_refused(settings: dict[str, int]) -> None:
    """At once, by the caller's name."""
    with pytest.raises(CallerError):
        RetryPolicy(**settings)
