"""Medians, ranges, and ratios of runs that were neighbours."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

__all__ = ["Spread", "ratios"]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several values and their range."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises :class:`ValueError` if there are none."""
        known = list(values)
        if not known:
            raise ValueError("no values")
        return cls(median(known), min(known), max(known))

    def text(self, digits: int) -> str:
        """``1.25 (1.10-1.40)``; without a range where it has no width."""
        middle, low, high = (
            f"{value:.{digits}f}" for value in (self.middle, self.low, self.high)
        )
        return middle if low == high else f"{middle} ({low}-{high})"


def ratios(
    rounds: Sequence[Mapping[K, T]],
    of: K,
    to: K,
    value: Callable[[T], float],
) -> Spread | None:
    """How *value* of *of* relates to that of *to*, round by round.

    A machine's speed drifts, so that only runs of one round compare; the result is
    of the rounds' ratios. None if no round has both, or *to* is always zero.
    """
    found = [
        value(group[of]) / value(group[to])
        for group in rounds
        if of in group and to in group and value(group[to])
    ]
    return Spread.of(found) if found else None
