"""Prints a run's results in a terminal: verdict, figures, failures and doubts."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from trioresume.bench.report import doubts, units, words
from trioresume.bench.report.words import Mood
from trioresume.bench.results import Results
from trioresume.text import printable

__all__ = ["MAX_LISTED", "print_results"]

MAX_LISTED = 20
"""The most failed and wrong uploads that are listed one by one."""

_STYLES = {Mood.GOOD: "bold green", Mood.ATTENTION: "bold yellow", Mood.BAD: "bold red"}


def print_results(results: Results, console: Console) -> None:
    """Print the results. Texts from the server are made harmless."""
    for part in _parts(results):
        console.print(part, markup=False, highlight=False)


def _parts(results: Results) -> Iterator[RenderableType]:
    verdict = words.verdict(results)
    yield Text(verdict.headline, style=_STYLES[verdict.mood])
    if verdict.detail:
        yield Text(verdict.detail)
    yield _figures(results)
    if results.failures or results.wrong:
        yield _failures(results)
    if bad := words.unhappy(results):
        yield _unhappy(results)
        if len(bad) > MAX_LISTED:
            yield Text(
                f"... and {len(bad) - MAX_LISTED:,} more; --json has all of them"
            )
    for doubt in doubts.suspicions(results):
        yield Text(f"! {doubt}", style="yellow")


def _figures(results: Results) -> Table:
    settings = results.settings
    server = f", {printable(results.server_name)}" if results.server_name else ""
    server += f", {results.carrier}"
    title = (
        f"{printable(words.url_to_show(settings.url))}{server}: "
        f"{units.plural(len(results.uploads), 'upload')}, "
        f"{min(settings.at_once, settings.total):,} at once, {results.protocol.value}"
    )
    made = Table(title=Text(title), title_justify="left", show_header=False)
    made.add_column()
    made.add_column(justify="right", style="bold", no_wrap=True)
    made.add_column(style="dim")
    for figure in words.figures(results):
        made.add_row(figure.name, figure.value, Text(figure.beside))
    return made


def _failures(results: Results) -> Table:
    made = Table(title=Text("Failures by kind"), title_justify="left", style="red")
    made.add_column("uploads", justify="right")
    made.add_column("kind")
    made.add_column("meaning")
    if results.wrong:
        made.add_row(
            units.count(len(results.wrong)),
            "wrong-content",
            "the stored content differs from what was sent",
        )
    for ending, number in results.failures.items():
        made.add_row(units.count(number), ending.value, words.ENDINGS[ending])
    return made


def _unhappy(results: Results) -> Table:
    made = Table(title=Text("Failed uploads"), title_justify="left", style="red")
    for heading in ("upload", "size", "connections"):
        made.add_column(heading, justify="right")
    made.add_column("what happened", overflow="fold")
    for upload, why in words.unhappy(results)[:MAX_LISTED]:
        made.add_row(
            str(upload.number),
            units.size(upload.size),
            str(len(upload.attempts)),
            Text(printable(why)),
        )
    return made
