"""The lines of a report: medians, ranges and ratios for each work and case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.compare.run import Measured
from bench.compare.works import Work
from bench.statistics import Spread, ratios
from trioresume.bench import Latency

__all__ = ["Line", "Ratio", "Tail", "lines"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratios of a case to another case, *to*, in the same rounds."""

    to: str
    rate: Spread | None
    cpu: Spread | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """A latency over several runs, in seconds.

    *p50* and *p99* are medians of the runs' percentiles, *max* is the longest of all, and
    *count* is the number of samples.
    """

    count: int
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The figures of a case on a work.

    The units are MiB/s, files/s, CPU seconds per GiB and per file, MiB, and shares of a
    core. The figures come from the *runs* without problems, and are None if there is no
    such run. *problems* counts the problems of the other runs.
    """

    work: Work
    case: str
    runs: int
    rate: Spread | None = None
    cpu: Spread | None = None
    cpu_user: Spread | None = None
    cpu_system: Spread | None = None
    files_rate: Spread | None = None
    cpu_per_file: Spread | None = None
    peak_mib: float | None = None
    generator: float = 0.0
    generator_was_limit: int = 0
    elsewhere: float = 0.0
    cuts: int = 0
    resume: Tail | None = None
    offset_query: Tail | None = None
    sent_again: Spread | None = None
    fairness: Spread | None = None
    checked: tuple[str, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    problems: tuple[tuple[str, int], ...] = ()


def lines(
    rounds: Sequence[Sequence[Measured]],
    works: Sequence[Work],
    cases: Sequence[str],
    baselines: Sequence[str],
) -> list[Line]:
    """Return a line for each of *works* and *cases* that ran, in that order."""
    made = []
    for work in works:
        kept = [
            {run.case: run for run in group if run.work == work} for group in rounds
        ]
        for case in cases:
            runs = [group[case] for group in kept if case in group]
            if runs:
                good = [
                    {name: run for name, run in group.items() if run.ok}
                    for group in kept
                ]
                made.append(_line(work, case, runs, good, baselines))
    return made


def _line(
    work: Work,
    case: str,
    runs: Sequence[Measured],
    good: Sequence[dict[str, Measured]],
    baselines: Sequence[str],
) -> Line:
    problems = Counter(problem for run in runs for problem in run.problems)
    mine = [run for run in runs if run.ok]
    if not mine:
        return Line(
            work=work, case=case, runs=0, problems=tuple(problems.most_common())
        )

    def spread(value: Callable[[Measured], float]) -> Spread:
        return Spread.of(value(run) for run in mine)

    fairness = [run.fairness for run in mine if run.fairness is not None]
    return Line(
        work=work,
        case=case,
        runs=len(mine),
        rate=spread(lambda run: run.rate),
        cpu=spread(lambda run: run.cpu),
        cpu_user=spread(lambda run: run.cpu_user),
        cpu_system=spread(lambda run: run.cpu_system),
        files_rate=spread(lambda run: run.files_rate),
        cpu_per_file=spread(lambda run: run.cpu_per_file),
        # The largest peak matters, not the median.
        peak_mib=max(run.peak_resident for run in mine) / MIB,
        generator=spread(lambda run: run.generator).middle,
        generator_was_limit=sum(run.generator_was_limit for run in mine),
        elsewhere=spread(lambda run: run.elsewhere).middle,
        cuts=sum(run.cuts for run in mine),
        resume=_tail(mine, lambda run: run.resume),
        offset_query=_tail(mine, lambda run: run.offset_query),
        sent_again=spread(lambda run: run.sent_again / work.total),
        fairness=Spread.of(fairness) if fairness else None,
        checked=tuple(sorted({by for run in mine for by in run.checked})),
        ratios=tuple(
            Ratio(
                to,
                ratios(good, case, to, lambda run: run.rate),
                ratios(good, case, to, lambda run: run.cpu),
            )
            for to in baselines
            if to != case
        ),
        problems=tuple(problems.most_common()),
    )


def _tail(
    runs: Iterable[Measured], of: Callable[[Measured], Latency | None]
) -> Tail | None:
    found = [latency for run in runs if (latency := of(run)) is not None]
    if not found:
        return None
    return Tail(
        count=sum(latency.count for latency in found),
        p50=Spread.of(latency.p50 for latency in found).middle,
        p99=Spread.of(latency.p99 for latency in found).middle,
        max=max(latency.max for latency in found),
    )
