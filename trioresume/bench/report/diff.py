"""Shows two runs side by side, in a terminal and as a page."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trioresume.bench.comparison import Change, Quantity, changes
from trioresume.bench.report import units, words
from trioresume.bench.report.markup import Html, element, void
from trioresume.bench.report.page import stylesheet
from trioresume.bench.results import Results
from trioresume.text import printable

__all__ = ["diff_page", "figure_text", "print_diff"]

_NONE = "\u2013"
_STYLES = {True: "green", False: "red", None: "dim"}
_CLASSES = {True: "good", False: "bad", None: "meaning"}


def figure_text(quantity: Quantity, value: float | None) -> str:
    """Return a figure's value with its unit."""
    if value is None:
        return _NONE
    match quantity:
        case Quantity.COUNT:
            return units.count(round(value))
        case Quantity.SECONDS:
            return units.duration(value)
        case Quantity.BYTES:
            return units.size(value)
        case Quantity.RATE:
            return units.rate(value)
        case Quantity.SHARE:
            return f"{value:.3g}"


def print_diff(before: Results, after: Results, console: Console) -> None:
    """Print the figures of both runs, and how many times the second is of the first."""
    table = Table(title_justify="left")
    for heading in ("figure", "before", "after", "after/before"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for change in changes(before, after):
        style = _STYLES[change.is_better]
        cells = _cells(change)
        table.add_row(*cells[:3], Text(cells[3], style=style))
    for name, results in (("before", before), ("after", after)):
        console.print(f"{name}: {_about(results)}", markup=False, highlight=False)
    console.print(table, markup=False, highlight=False)
    for difference in _differences(before, after):
        console.print(Text(f"! {difference}", style="yellow"))


def _cells(change: Change) -> tuple[str, str, str, str]:
    quantity = change.figure.quantity
    ratio = change.ratio
    return (
        change.figure.name,
        figure_text(quantity, change.before),
        figure_text(quantity, change.after),
        _NONE if ratio is None else units.factor(ratio),
    )


def _about(results: Results) -> str:
    server = f", {printable(results.server_name)}" if results.server_name else ""
    return (
        f"{printable(words.url_to_show(results.settings.url))}{server}, "
        f"{units.plural(len(results.uploads), 'upload')}, "
        f"{results.settings.at_once:,} at once, {results.protocol.value}, {results.carrier}"
    )


def _differences(before: Results, after: Results) -> list[str]:
    """What makes the two runs hard to compare."""
    ways: dict[str, Callable[[Results], object]] = {
        "number of uploads at once": lambda r: r.settings.at_once,
        "sizes of the uploads": lambda r: r.settings.sizes,
        "protocol": lambda r: r.protocol,
        "version of HTTP": lambda r: r.carrier,
        "cuts": lambda r: r.settings.faults,
        "machine": lambda r: (r.machine.cpu, r.machine.cpus),
    }
    found = [
        f"The runs differ in: {name}."
        for name, of in ways.items()
        if of(before) != of(after)
    ]
    for name, results in (("first", before), ("second", after)):
        if results.generator_was_limit:
            found.append(f"The load generator was the limit of the {name} run.")
    return found


def diff_page(before: Results, after: Results) -> str:
    """Return a page with the figures of both runs. It loads nothing and has no script."""
    rows = []
    for change in changes(before, after):
        name, one, other, ratio = _cells(change)
        rows.append(
            element(
                "tr",
                element("th", name, scope="row"),
                element("td", one, class_="beside"),
                element("td", other, class_="beside"),
                element(
                    "td",
                    element("strong", ratio, class_=_CLASSES[change.is_better]),
                    {True: " better", False: " worse", None: ""}[change.is_better],
                ),
            )
        )
    headings = (
        element("th", text, scope="col")
        for text in ("figure", "before", "after", "after/before")
    )
    table = element(
        "div",
        element(
            "table",
            element("thead", element("tr", *headings)),
            element("tbody", *rows),
        ),
        class_="scroll",
    )
    doubts = _differences(before, after)
    noted = (
        (
            element(
                "section",
                element("ul", *(element("li", each) for each in doubts)),
                class_="suspicions",
            ),
        )
        if doubts
        else ()
    )
    head = element(
        "head",
        void("meta", charset="utf-8"),
        void(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'",
        ),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        element("title", "trioresume bench: two runs side by side"),
        element("style", stylesheet()),
    )
    body = element(
        "body",
        element(
            "main",
            element("h1", "Two runs side by side"),
            element("p", f"before: {_about(before)}", class_="facts"),
            element("p", f"after: {_about(after)}", class_="facts"),
            *noted,
            element("section", table),
        ),
    )
    page = element("html", head, body, lang="en")
    return f"<!DOCTYPE html>\n{Html(page)}\n"
