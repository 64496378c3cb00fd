"""Medians, ranges, ratios."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from bench.statistics import Spread, ratios


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_the_median_lies_in_the_range(values: list[float]) -> None:
    """Whatever the values; and both ends are values."""
    spread = Spread.of(values)
    assert spread.low <= spread.middle <= spread.high
    assert {spread.low, spread.high} <= set(values)


def test_a_spread_of_nothing_is_an_error() -> None:
    """It is not zero."""
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 3.0, 2.0], "2.00 (1.00-3.00)"),
        ([1.5], "1.50"),
        ([1.001, 1.002], "1.00"),
        ([1.0, 2.0], "1.50 (1.00-2.00)"),
    ],
)
def test_a_range_is_shown_where_it_can_be_seen(values: list[float], text: str) -> None:
    """In as many digits as the median."""
    assert Spread.of(values).text(2) == text


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that slows down between rounds does not show in the ratio."""
    rounds = [{"raw": cpu, "other": 1.5 * cpu} for cpu in (1.0, 2.0, 4.0)]
    assert ratios(rounds, "other", "raw", float) == Spread(1.5, 1.5, 1.5)


def test_a_round_without_both_has_no_ratio() -> None:
    """The others count; without any there is none."""
    rounds = [{"other": 3.0}, {"other": 2.0, "raw": 1.0}, {"raw": 0.0, "other": 1.0}]
    assert ratios(rounds, "other", "raw", float) == Spread(2, 2, 2)
    assert ratios(rounds[:1], "other", "raw", float) is None
