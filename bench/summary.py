"""From runs to a table: medians, ranges, and ratios within a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from bench.measure import Run

__all__ = ["Figures", "Spread", "figures", "table"]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several runs and their range."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        if self.low == self.high:
            return f"{self.middle:.{digits}f}"
        return (
            f"{self.middle:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One line of the table."""

    target: str
    n: int
    runs: int
    rate: Spread
    cpu: Spread
    user: float
    system: float
    ratio: Spread | None
    peak_mib: float
    load: float
    load_was_limit: int
    elsewhere: float


def figures(rounds: Sequence[Sequence[Run]], baseline: str) -> list[Figures]:
    """A line for each n and target; ratios are of runs of the same round."""
    runs = [run for group in rounds for run in group]
    keys = sorted({(run.n, run.target) for run in runs})
    return [_line(n, target, rounds, baseline) for n, target in keys]


def _line(
    n: int, target: str, rounds: Sequence[Sequence[Run]], baseline: str
) -> Figures:
    mine: list[Run] = []
    ratios: list[float] = []
    for group in rounds:
        by_target = {run.target: run for run in group if run.n == n}
        run = by_target.get(target)
        if run is None:
            continue
        mine.append(run)
        base = by_target.get(baseline)
        if base is not None and target != baseline and base.cpu_per_gib:
            ratios.append(run.cpu_per_gib / base.cpu_per_gib)
    gib = mine[0].bytes / (1 << 30)

    def middle(value: Callable[[Run], float]) -> float:
        return median(value(run) for run in mine)

    return Figures(
        target=target,
        n=n,
        runs=len(mine),
        rate=Spread.of([run.rate for run in mine]),
        cpu=Spread.of([run.cpu_per_gib for run in mine]),
        user=middle(lambda run: run.server.user) / gib,
        system=middle(lambda run: run.server.system) / gib,
        ratio=Spread.of(ratios) if ratios else None,
        # Of a peak the worst is what matters.
        peak_mib=max(run.peak_resident for run in mine) / (1 << 20),
        load=middle(lambda run: run.outcome.cpu / run.outcome.seconds),
        load_was_limit=sum(run.outcome.was_limit for run in mine),
        elsewhere=middle(lambda run: run.elsewhere / run.outcome.seconds),
    )


def table(lines: Sequence[Figures]) -> Table:
    """For people."""
    made = Table(
        caption="median (range); CPU in seconds; load and other: share of one core"
    )
    for heading in (
        "n",
        "target",
        "MiB/s",
        "CPU/GiB",
        "user",
        "system",
        "x raw",
        "peak MiB",
    ):
        made.add_column(heading, justify="left" if heading == "target" else "right")
    made.add_column("load", justify="right")
    made.add_column("other", justify="right")
    for line in lines:
        made.add_row(
            str(line.n),
            line.target,
            line.rate.text(0),
            line.cpu.text(2),
            f"{line.user:.2f}",
            f"{line.system:.2f}",
            line.ratio.text(2) if line.ratio else "1",
            f"{line.peak_mib:.0f}",
            f"{line.load:.0%}{'!' if line.load_was_limit else ''}",
            f"{line.elsewhere:.0%}",
        )
    return made
