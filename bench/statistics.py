"""Medians, ranges, and ratios of runs in the same round."""

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
        """Return the spread of *values*. Raises :class:`ValueError` if there are none."""
        known = list(values)
        if not known:
            raise ValueError("no values")
        return cls(median(known), min(known), max(known))

    def text(self, digits: int) -> str:
        """Return text such as ``1.25 (1.10-1.40)``, without a range that has no width."""
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
    """Return the spread of the ratios of *value* for *of* to *value* for *to*.

    A machine's speed drifts, so only runs of the same round are compared: each round gives
    one ratio. Returns None if no round has both, or if *value* for *to* is always zero.
    """
    found = [
        value(group[of]) / value(group[to])
        for group in rounds
        if of in group and to in group and value(group[to])
    ]
    return Spread.of(found) if found else None
