"""Loads: what each client uploads, where its connection is cut, and how long it stays away."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Bout", "Habits", "UploadPlan", "mobile_upload", "small_plan"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Bout:
    """One connection: its node, and the number of bytes until the cut."""

    node: int
    sends: int
    is_silent: bool = False
    """Whether the node does not notice the cut: nothing is closed."""


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """One upload: each bout but the last one ends with a cut."""

    size: int
    bouts: tuple[Bout, ...]
    away: float
    """Seconds between a cut and the next bout."""
    rate: float
    """Bytes a second of the client's uplink."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How mobile clients upload. All of these are assumptions, stated in docs/explanation/scale.md."""

    median_size: float = 24 * MIB
    size_sigma: float = 1.3
    """Of the logarithm: most are photos, and a few are films of several hundred MiB."""
    most_size: int = 4096 * MIB
    median_rate: float = 0.5e6
    """Bytes a second of the uplink: 4 Mbit/s."""
    rate_sigma: float = 0.8
    mean_connected: float = 45.0
    """Seconds between two cuts while the client is connected, exponential."""
    silent_share: float = 0.5
    """The share of cuts that the server does not notice at once: no packet tells of them."""
    short_share: float = 0.7
    """The share of cuts that are handovers and lost signals: the client is back in seconds."""
    short_median: float = 4.0
    short_sigma: float = 1.0
    long_median: float = 1800.0
    """Seconds of the other cuts: the phone sleeps, its owner is in a train, the app is stopped."""
    long_sigma: float = 1.5

    def size(self, dice: random.Random) -> int:
        drawn = self.median_size * math.exp(self.size_sigma * dice.gauss(0, 1))
        return max(1, min(self.most_size, int(drawn)))

    def rate(self, dice: random.Random) -> float:
        return self.median_rate * math.exp(self.rate_sigma * dice.gauss(0, 1))

    def away(self, dice: random.Random) -> float:
        if dice.random() < self.short_share:
            return self.short_median * math.exp(self.short_sigma * dice.gauss(0, 1))
        return self.long_median * math.exp(self.long_sigma * dice.gauss(0, 1))

    @property
    def mean_away(self) -> float:
        """The mean of :meth:`away`, in seconds."""
        short = self.short_median * math.exp(self.short_sigma**2 / 2)
        long = self.long_median * math.exp(self.long_sigma**2 / 2)
        return self.short_share * short + (1 - self.short_share) * long

    @property
    def connected_share(self) -> float:
        """The share of open uploads that are connected at a time."""
        return self.mean_connected / (self.mean_connected + self.mean_away)


def mobile_upload(habits: Habits, dice: random.Random) -> tuple[int, float]:
    """Return the size and the uplink's rate of one upload."""
    return habits.size(dice), habits.rate(dice)


def small_plan(
    seed: int,
    uploads: int,
    nodes: int,
    *,
    rate: float = 50e6,
    most_cuts: int = 3,
) -> list[UploadPlan]:
    """Return a load that one machine can carry, with cuts at places that *seed* draws."""
    return list(_small(random.Random(seed), uploads, nodes, rate, most_cuts))


def _small(
    dice: random.Random, uploads: int, nodes: int, rate: float, most_cuts: int
) -> Iterator[UploadPlan]:
    for _ in range(uploads):
        size = dice.randrange(1 * MIB, 40 * MIB)
        cuts = sorted(
            dice.randrange(1, size) for _ in range(dice.randint(0, most_cuts))
        )
        ends = [*cuts, size]
        starts = [0, *cuts]
        bouts = tuple(
            Bout(dice.randrange(nodes), end - start, dice.random() < 0.5)
            for start, end in zip(starts, ends, strict=True)
            if end > start
        )
        yield UploadPlan(size, bouts, 0.05, rate)
