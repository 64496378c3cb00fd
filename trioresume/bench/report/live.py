"""Shows how far a run is: in a panel on a terminal, in lines elsewhere.

Both get the same snapshots, about ten a second. rich redraws the panel. A line is
printed every :data:`LINE_SECONDS` and for each new phase. So a log shows when something
happened and does not fill the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trioresume.bench.report import units
from trioresume.bench.results import Snapshot
from trioresume.bench.settings import Settings

__all__ = ["LINE_SECONDS", "eta", "progress", "watching"]

LINE_SECONDS = 5.0
"""Seconds between two lines of a phase if there is no terminal."""

Observer = Callable[[Snapshot], None]

_PHASES = {
    "detecting": "asking the server which protocol it speaks",
    "loading": "uploading",
    "settling": "waiting until the server is idle",
    "checking": "checking what was stored",
}


@contextmanager
def watching(settings: Settings, console: Console) -> Iterator[Observer]:
    """Provide a function that shows each snapshot on *console*.

    The panel disappears afterwards, because the result follows.
    """
    if not console.is_terminal:
        yield _Lines(settings, console).show
        return
    with Live(console=console, transient=True, refresh_per_second=8) as live:

        def show(snapshot: Snapshot) -> None:
            live.update(_panel(settings, snapshot))

        yield show


def progress(settings: Settings, snapshot: Snapshot) -> float:
    """Return how much of the current phase is done, 0 to 1.

    Content that is sent again makes the value too high while uploads run. So it stays
    below 1 until all uploads have ended.
    """
    if snapshot.phase == "detecting":
        return 0.0
    if snapshot.phase == "settling":
        return 1.0
    ended = snapshot.done + snapshot.failed
    if snapshot.phase == "checking":
        return min(1.0, snapshot.checked / snapshot.done) if snapshot.done else 1.0
    by_count = ended / snapshot.total
    by_bytes = snapshot.sent / snapshot.planned if snapshot.planned else by_count
    # As long as one upload runs, it is not all done.
    part = max(by_count, min(by_bytes, 0.99 if ended < snapshot.total else 1.0))
    if settings.duration is not None:
        part = max(part, min(1.0, snapshot.at / settings.duration))
    return part


def eta(settings: Settings, snapshot: Snapshot) -> float | None:
    """Return the seconds until the load ends, at the rate so far; None if unknown."""
    part = progress(settings, snapshot)
    if snapshot.phase != "loading" or part < 0.005 or snapshot.at < 1.0:
        return None
    left = snapshot.at * (1 - part) / part
    if settings.duration is not None:
        left = min(left, max(0.0, settings.duration - snapshot.at))
    return left


def _goodput(snapshot: Snapshot) -> float:
    return snapshot.stored / snapshot.at if snapshot.at > 0 else 0.0


def _phase(snapshot: Snapshot) -> str:
    return _PHASES.get(snapshot.phase, snapshot.phase)


# --------------------------------------------------------------------------- panel


def _panel(settings: Settings, snapshot: Snapshot) -> Group:
    left = eta(settings, snapshot)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(_phase(snapshot), style="bold"),
        ProgressBar(total=1.0, completed=progress(settings, snapshot), width=30),
        Text(units.share(progress(settings, snapshot))),
        Text("" if left is None else f"ETA {units.duration(left)}"),
    )
    body = Table.grid(padding=(0, 2))
    for _ in range(3):
        body.add_column(style="dim")
        body.add_column(justify="right", min_width=12)
    cells = _cells(snapshot)
    for index in range(0, len(cells), 3):
        row: list[Text] = []
        for name, value, bad in cells[index : index + 3]:
            row += [Text(name), Text(value, style="bold red" if bad else "")]
        body.add_row(*row)
    return Group(head, body)


def _cells(snapshot: Snapshot) -> list[tuple[str, str, bool]]:
    """Return name, value, and whether the value is bad."""
    checking = snapshot.phase == "checking"
    cells = [
        ("finished", f"{snapshot.done:,} of {snapshot.total:,}", False),
        ("running", units.count(snapshot.running), False),
        ("failures", units.count(snapshot.failed), snapshot.failed > 0),
        ("throughput now", units.rate(snapshot.rate), False),
        ("goodput", units.rate(_goodput(snapshot)), False),
        ("sent", units.size(snapshot.sent), False),
        ("cuts", units.count(snapshot.cuts), False),
        ("resumes", units.count(snapshot.resumed), False),
        ("server kills", units.count(snapshot.kills), False),
    ]
    if checking:
        # The load is over: its rates would only decay.
        cells[3:5] = [
            ("checked", f"{snapshot.checked:,} of {snapshot.done:,}", False),
            ("wrong", units.count(snapshot.wrong), snapshot.wrong > 0),
        ]
    if snapshot.server is not None:
        cpu = snapshot.server.user + snapshot.server.system
        cells += [
            ("server CPU", f"{cpu:.1f} s", False),
            ("server memory", units.size(snapshot.server.resident), False),
            ("elapsed", units.duration(snapshot.at), False),
        ]
    return cells


# --------------------------------------------------------------------------- lines


class _Lines:
    """Prints a line for each phase, and further lines at intervals."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._phase = ""
        self._told_at = 0.0

    def show(self, snapshot: Snapshot) -> None:
        if snapshot.phase != self._phase:
            self._phase = snapshot.phase
            self._told_at = snapshot.at
            self._print(f"{_phase(snapshot)} ...")
        elif snapshot.at - self._told_at >= LINE_SECONDS:
            self._told_at = snapshot.at
            self._print(_line(self._settings, snapshot))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _line(settings: Settings, snapshot: Snapshot) -> str:
    parts = [
        f"{snapshot.at:.0f} s",
        units.share(progress(settings, snapshot)),
        f"{snapshot.done:,} of {units.plural(snapshot.total, 'upload')} finished",
    ]
    if snapshot.phase == "checking":
        parts += [f"{snapshot.checked:,} checked", f"{snapshot.wrong:,} wrong"]
    else:
        parts += [
            f"now {units.rate(snapshot.rate)}",
            f"goodput {units.rate(_goodput(snapshot))}",
            units.plural(snapshot.cuts, "cut"),
            units.plural(snapshot.resumed, "resume"),
        ]
    if snapshot.kills:
        parts.append(units.plural(snapshot.kills, "kill"))
    parts.append(units.plural(snapshot.failed, "failure"))
    left = eta(settings, snapshot)
    if left is not None:
        parts.append(f"ETA {units.duration(left)}")
    return ", ".join(parts)
