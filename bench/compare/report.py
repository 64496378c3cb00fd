"""The report of a comparison as Markdown, for a page of the documentation, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from bench.compare.figures import Line, Tail
from bench.compare.run import Measured
from bench.compare.works import Case, Work
from bench.statistics import Spread

__all__ = ["Report", "markdown_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All results of a comparison. *skipped* says why a case did not run at all."""

    command: str
    machine: dict[str, str]
    begun: str
    rounds: Sequence[Sequence[Measured]]
    works: Sequence[Work]
    cases: Sequence[Case]
    versions: dict[str, str]
    skipped: dict[str, str]
    lines: Sequence[Line]
    baselines: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether every run was without a problem."""
        return all(run.ok for group in self.rounds for run in group)

    def markdown(self) -> str:
        """Return the report as tables, with headings of the third level."""
        parts = [self._preamble(), self._cases()]
        for work in self.works:
            mine = [line for line in self.lines if line.work == work]
            if not mine:
                continue
            parts.append(f"### {work.name}")
            parts.append(_figures(mine) if work.files is None else _small(mine))
            if work.cuts is not None:
                parts.append(_resumption(mine))
            if self.baselines:
                parts.append(_ratios(mine, self.baselines))
            parts.extend(_problems(mine))
        return "\n\n".join(parts) + "\n"

    def _preamble(self) -> str:
        facts = ", ".join(self.machine.values())
        return (
            f"{facts}. {len(self.rounds)} rounds, {self.begun}. "
            "Median (range); CPU in seconds per GiB, of the server and its children; "
            "memory is the highest peak of all rounds. `!` marks runs in which the load "
            f"generator may have been the limit.\n\n```text\n{self.command}\n```"
        )

    def _cases(self) -> str:
        rows = [
            (
                case.name,
                self.versions.get(case.name, ""),
                case.spoken,
                case.peer.hashes,
                case.peer.syncs,
                case.peer.settings,
            )
            for case in self.cases
            if case.peer is not None
        ]
        headings = ("server", "version", "protocol", "hashes", "syncs", "settings")
        text = markdown_table(headings, rows, numbers=False)
        for name, reason in self.skipped.items():
            text += f"\n\nNot measured: {name}: {reason}."
        return text

    def json(self) -> str:
        """Return the same as JSON, with every run."""
        document = {
            "command": self.command,
            "machine": self.machine,
            "begun": self.begun,
            "versions": self.versions,
            "settings": {
                case.name: case.peer.settings
                for case in self.cases
                if case.peer is not None
            },
            "skipped": self.skipped,
            "lines": [asdict(line) for line in self.lines],
            "rounds": [
                [
                    {
                        **asdict(run),
                        "mib_per_second": run.rate,
                        "cpu_seconds_per_gib": run.cpu,
                    }
                    for run in group
                ]
                for group in self.rounds
            ],
        }
        return json.dumps(document, indent=1, allow_nan=False)


def _figures(lines: Sequence[Line]) -> str:
    rows = [
        (
            line.case,
            _text(line.rate, 0),
            _text(line.cpu, 2),
            _text(line.cpu_user, 2),
            _text(line.cpu_system, 2),
            "-" if line.peak_mib is None else f"{line.peak_mib:.0f}",
            f"{line.generator:.0%}{'!' if line.generator_was_limit else ''}",
            f"{line.elsewhere:.0%}",
        )
        for line in lines
    ]
    headings = (
        *("server", "MiB/s", "CPU s/GiB", "user", "system"),
        *("peak MiB", "load", "other"),
    )
    return markdown_table(headings, rows)


def _small(lines: Sequence[Line]) -> str:
    """Return the table for many small files, with figures per file."""
    rows = [
        (
            line.case,
            _text(line.files_rate, 0),
            _text(line.cpu_per_file, 2, 1000),
            "-" if line.peak_mib is None else f"{line.peak_mib:.0f}",
            f"{line.generator:.0%}{'!' if line.generator_was_limit else ''}",
            f"{line.elsewhere:.0%}",
        )
        for line in lines
    ]
    headings = ("server", "files/s", "CPU ms/file", "peak MiB", "load", "other")
    return markdown_table(headings, rows)


def _resumption(lines: Sequence[Line]) -> str:
    rows = [
        (
            line.case,
            str(line.cuts),
            _tail(line.resume),
            _tail(line.offset_query),
            "-" if line.sent_again is None else f"{line.sent_again.middle:.2%}",
            _text(line.fairness, 2),
        )
        for line in lines
    ]
    headings = (
        *("server", "cuts", "to resume, ms: p50 / p99 / max"),
        *("offset query, ms: p50 / p99 / max", "sent again", "fastest / slowest"),
    )
    return markdown_table(headings, rows)


def _ratios(lines: Sequence[Line], baselines: Sequence[str]) -> str:
    """Return a table with a column for speed and one for CPU time for each baseline."""
    rows = []
    for line in lines:
        by_name = {ratio.to: ratio for ratio in line.ratios}
        row = [line.case]
        for name in baselines:
            ratio = by_name.get(name)
            if name == line.case:
                row += ["1", "1"]
            else:
                row += [
                    _text(ratio.rate if ratio else None, 2),
                    _text(ratio.cpu if ratio else None, 2),
                ]
        rows.append(tuple(row))
    headings = ["server"]
    for name in baselines:
        headings += [f"speed x {name}", f"CPU x {name}"]
    return markdown_table(headings, rows)


def _problems(lines: Iterable[Line]) -> Iterable[str]:
    for line in lines:
        for problem, count in line.problems:
            yield f"{line.case}: in {count} rounds {problem}."


def _text(spread: Spread | None, digits: int, factor: float = 1) -> str:
    if spread is None:
        return "-"
    values = (spread.low, spread.middle, spread.high)
    return Spread.of(factor * value for value in values).text(digits)


def _tail(tail: Tail | None) -> str:
    if tail is None:
        return "-"
    return " / ".join(f"{1000 * value:.1f}" for value in (tail.p50, tail.p99, tail.max))


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True
) -> str:
    """Return a table. With *numbers* all columns but the first are right-aligned."""
    other = "---:" if numbers else "---"
    marks = ["---", *[other] * (len(headings) - 1)]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, marks, *escaped))
