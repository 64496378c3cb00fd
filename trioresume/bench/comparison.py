"""Named figures of a run, compared with another run or with a bound."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from trioresume.bench.results import Latency, Results
from trioresume.errors import CallerError

__all__ = ["FIGURES", "Better", "Change", "Figure", "Quantity", "Threshold", "changes"]


class Quantity(Enum):
    """What a figure counts."""

    COUNT = "count"
    SECONDS = "seconds"
    BYTES = "bytes"
    RATE = "bytes a second"
    SHARE = "share"
    """A part of one, or how many times."""


class Better(Enum):
    """Which values of a figure are the better ones."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a run. *of* returns None if the run has no data for it."""

    name: str
    """As in ``--fail-if``: ``resume.p99``."""
    quantity: Quantity
    better: Better
    of: Callable[[Results], float | None]


def _latencies(name: str, of: Callable[[Results], Latency | None]) -> Iterator[Figure]:
    for member in ("p50", "p90", "p99", "max"):

        def value(results: Results, member: str = member) -> float | None:
            latency = of(results)
            return None if latency is None else float(getattr(latency, member))

        yield Figure(f"{name}.{member}", Quantity.SECONDS, Better.LOWER, value)


def _sent_again_share(results: Results) -> float | None:
    return results.sent_again / results.sent if results.sent else None


def _busiest(results: Results) -> float | None:
    return max((each.busy for each in results.generators), default=None)


_LOWER, _HIGHER = Better.LOWER, Better.HIGHER

FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure("throughput", Quantity.RATE, _HIGHER, lambda r: r.throughput),
        Figure("goodput", Quantity.RATE, _HIGHER, lambda r: r.goodput),
        Figure("duration", Quantity.SECONDS, _LOWER, lambda r: r.seconds),
        Figure("done", Quantity.COUNT, _HIGHER, lambda r: len(r.done)),
        Figure("failed", Quantity.COUNT, _LOWER, lambda r: sum(r.failures.values())),
        Figure("wrong", Quantity.COUNT, _LOWER, lambda r: len(r.wrong)),
        Figure("unchecked", Quantity.COUNT, _LOWER, lambda r: r.unchecked),
        Figure("sent-again", Quantity.BYTES, _LOWER, lambda r: r.sent_again),
        Figure("sent-again-share", Quantity.SHARE, _LOWER, _sent_again_share),
        *_latencies("resume", lambda r: r.resume),
        *_latencies("offset", lambda r: r.offset_query),
        *_latencies("upload", lambda r: r.upload_seconds),
        Figure("fairness", Quantity.SHARE, _LOWER, lambda r: r.fairness),
        Figure(
            "server-cpu-per-gib",
            Quantity.SECONDS,
            _LOWER,
            lambda r: r.server_cpu_per_gib,
        ),
        Figure(
            "server-memory",
            Quantity.BYTES,
            _LOWER,
            lambda r: r.server.peak_resident if r.server else None,
        ),
        Figure("generator-busy", Quantity.SHARE, _LOWER, _busiest),
    )
}
"""The figures by their names, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of two runs; None without data."""

    figure: Figure
    before: float | None
    after: float | None

    @property
    def ratio(self) -> float | None:
        """*after* divided by *before*; None if that is not a number."""
        if not self.before or self.after is None:
            return None
        return self.after / self.before

    @property
    def is_better(self) -> bool | None:
        """Whether *after* is the better one; None if they are equal, or one is missing."""
        if self.before is None or self.after is None or self.before == self.after:
            return None
        return (self.after < self.before) == (self.figure.better is Better.LOWER)


def changes(before: Results, after: Results) -> list[Change]:
    """Compare two runs: each figure of which at least one has data."""
    found = [Change(f, f.of(before), f.of(after)) for f in FIGURES.values()]
    return [change for change in found if (change.before, change.after) != (None, None)]


_COMPARED = re.compile(
    r"\s*(?P<name>[a-z0-9.-]+)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>\S.*?)\s*"
)
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, slots=True)
class Threshold:
    """A comparison that a run should not meet: ``resume.p99>500ms``."""

    text: str
    figure: Figure
    is_met: Callable[[float], bool]

    @classmethod
    def parse(cls, text: str, read: Callable[[Quantity, str], float]) -> Threshold:
        """Return the comparison in *text*; *read* returns the value of a bound.

        Raises :class:`CallerError`, and the errors of *read*.
        """
        match = _COMPARED.fullmatch(text)
        if match is None:
            raise CallerError(
                f"{text!r} is not a comparison such as 'resume.p99>500ms'"
            )
        figure = FIGURES.get(match["name"])
        if figure is None:
            known = ", ".join(FIGURES)
            raise CallerError(
                f"there is no figure {match['name']!r}; there are {known}"
            )
        compare, bound = _SIGNS[match["sign"]], read(figure.quantity, match["bound"])
        return cls(text.strip(), figure, lambda value: compare(value, bound))
