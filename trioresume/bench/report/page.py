"""The HTML page of a run: one file that a person can read without the documentation.

Self-contained
    Styles, scripts, plotly itself and the data are in the file. Its Content Security
    Policy forbids the browser to load anything. So the page contacts no server, even if
    a later plotly tries to.

Hostile text
    A server's name, its statuses and the details of failures come from the server. They
    become text nodes, escaped by :mod:`~trioresume.bench.report.markup`. The data for
    the plots has none of them, and is written so that it cannot end its element. The
    policy names the digests of the only two scripts that may run.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from enum import Enum
from importlib import resources
from typing import Any

from trioresume.bench.records import HIDDEN
from trioresume.bench.report import doubts, units, words
from trioresume.bench.report.markup import Html, element, void
from trioresume.bench.report.plots import plots, require_plotly
from trioresume.bench.report.style import PALETTE, Plot
from trioresume.bench.results import Results

__all__ = ["MAX_LISTED", "html_page", "stylesheet"]

MAX_LISTED = 100
"""The most failed and wrong uploads that are listed one by one."""


def html_page(results: Results) -> str:
    """Return the whole page. Raises :class:`~trioresume.errors.CallerError` without plotly."""
    require_plotly()
    from plotly.offline import get_plotlyjs

    drawn = plots(results)
    library = str(get_plotlyjs())
    # No script may contain the end tag of its own element.
    if "</script" in library.lower():
        raise AssertionError("plotly's script would end its own element")
    script = _asset("page.js")
    data = _data(
        {"palette": PALETTE, "plots": [{"id": p.id, **p.figure} for p in drawn]}
    )
    policy = (
        f"default-src 'none'; script-src {_digest(library)} {_digest(script)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        void("meta", charset="utf-8"),
        void("meta", http_equiv="Content-Security-Policy", content=policy),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        element(
            "title", f"trioresume bench: {words.url_to_show(results.settings.url)}"
        ),
        element("style", stylesheet()),
    )
    body = element(
        "body",
        element("main", *_sections(results, drawn)),
        element("script", data, id="data", type="application/json"),
        element("script", Html(library)),
        element("script", Html(script)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def stylesheet() -> Html:
    """Return the styles of the report's pages."""
    return Html(_asset("page.css"))


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data(value: Any) -> Html:
    """Return *value* as JSON that contains no tag and no beginning of a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Html(
        text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )


# ------------------------------------------------------------------------- sections


def _sections(results: Results, drawn: Iterable[Plot]) -> Iterator[Html]:
    yield _header(results)
    yield _verdict(results)
    if found := doubts.suspicions(results):
        yield _section(
            "Before you use these figures",
            element("ul", *(element("li", text) for text in found)),
            class_="suspicions",
        )
    yield _section("The figures", _figures(results))
    if words.unhappy(results):
        yield _section("What went wrong", _failures(results), _unhappy(results))
    yield _section("Over time, and how evenly", *_plots(drawn), class_="plots")
    yield _section(
        "What this run does not show",
        element("ul", *(element("li", text) for text in doubts.limits(results))),
    )
    yield _section("How it was made", *_settings(results))
    yield element(
        "footer",
        f"Made by trioresume {results.machine.trioresume}, with plotly.js (MIT license). "
        "This page loads nothing from anywhere.",
    )


def _section(title: str, *content: Html, class_: str | None = None) -> Html:
    return element("section", element("h2", title), *content, class_=class_)


def _header(results: Results) -> Html:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(results.started))
    facts = [words.PROTOCOLS[results.protocol], results.carrier, when]
    facts.append(units.duration(results.seconds))
    if results.server_name:
        facts.insert(1, f"server: {results.server_name}")
    return element(
        "header",
        element("p", "trioresume bench", class_="kicker"),
        element("h1", words.url_to_show(results.settings.url)),
        element("p", " \u00b7 ".join(facts), class_="facts"),
        element("p", _what(results)),
    )


def _what(results: Results) -> str:
    """Describe the run in a sentence or two."""
    settings, faults = results.settings, results.settings.faults
    at_once = min(settings.at_once, settings.total)
    text = f"{units.plural(len(results.uploads), 'upload')}, {at_once:,} at once"
    if settings.rate is not None:
        text += f", each at up to {units.rate(settings.rate)}"
    text += "."
    if faults.mean_bytes is not None:
        text += (
            " Connections were cut on purpose, on average once in "
            f"{units.size(faults.mean_bytes)} of each upload, and every upload had to continue "
            "from the bytes that the server had kept."
        )
    if faults.kill_command is not None:
        text += (
            f" The server was killed after every {units.duration(faults.kill_every)} and "
            "started again."
        )
    return text


def _verdict(results: Results) -> Html:
    verdict = words.verdict(results)
    sign = {"good": "\u2713", "attention": "!", "bad": "\u2717"}[verdict.mood.value]
    return element(
        "div",
        element("span", sign, class_="sign", aria_hidden="true"),
        element(
            "div",
            element("strong", verdict.headline),
            element("p", verdict.detail) if verdict.detail else Html(),
        ),
        class_=f"verdict {verdict.mood.value}",
        role="status",
    )


def _figures(results: Results) -> Html:
    cards = [
        element(
            "div",
            element("dt", figure.name),
            element(
                "dd",
                element("span", figure.value, class_="value"),
                element("span", figure.beside, class_="beside"),
                element("span", figure.meaning, class_="meaning"),
            ),
        )
        for figure in words.figures(results)
    ]
    return element("dl", *cards, class_="figures")


def _failures(results: Results) -> Html:
    kinds = [
        (units.count(number), f"{ending.value}: {words.ENDINGS[ending]}")
        for ending, number in results.failures.items()
    ]
    if results.wrong:
        kinds.insert(0, (units.count(len(results.wrong)), "wrong content"))
    return _table(("uploads", "what happened"), kinds)


def _unhappy(results: Results) -> Html:
    all_of_them = words.unhappy(results)
    rows = [
        (
            str(upload.number),
            units.size(upload.size),
            str(len(upload.attempts)),
            f"{upload.ended:.2f} s",
            upload.location or "",
            why,
        )
        for upload, why in all_of_them[:MAX_LISTED]
    ]
    heads = ("upload", "size", "connections", "ended at", "location", "what happened")
    title = "One by one"
    if len(all_of_them) > MAX_LISTED:
        title = f"The first {MAX_LISTED} of {len(all_of_them):,}, one by one"
    return element(
        "details",
        element("summary", title),
        _table(heads, rows),
        open="" if len(rows) <= 20 else None,
    )


def _plots(drawn: Iterable[Plot]) -> Iterator[Html]:
    yield element(
        "noscript",
        element("p", "The plots need JavaScript; the figures above do not."),
    )
    for plot in drawn:
        yield element(
            "figure",
            element("h3", plot.title),
            element("figcaption", plot.reading),
            element(
                "div",
                id=f"plot-{plot.id}",
                class_="plot",
                style=f"min-height:{plot.height}px",
                role="img",
                aria_label=plot.title,
            ),
            class_="half" if plot.half else None,
        )


# --------------------------------------------------------------- settings and machine


def _settings(results: Results) -> Iterator[Html]:
    machine = results.machine
    yield element("h3", "Settings")
    yield _table(("setting", "value"), _flat(results.settings))
    yield element("h3", "Machine of the load generator")
    yield _table(
        ("", ""),
        [
            ("processor", f"{machine.cpus} x {machine.cpu}"),
            ("kernel", machine.kernel),
            ("Python", machine.python),
            ("trioresume", machine.trioresume),
        ],
    )
    if results.generators:
        yield element("h3", "Load generator")
        yield _table(
            ("process", "CPU user", "CPU system", "busy"),
            [
                (
                    str(generator.process),
                    units.duration(generator.user),
                    units.duration(generator.system),
                    units.share(generator.busy),
                )
                for generator in results.generators
            ],
        )


_UNITS = {
    "minimum": units.size,
    "maximum": units.size,
    "median": units.size,
    "mean_bytes": units.size,
    "chunk": units.size,
    "rate": units.rate,
    "think": units.duration,
    "duration": units.duration,
    "kill_every": units.duration,
    "down_seconds": units.duration,
    "idle_timeout": units.duration,
}


def _flat(record: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the members of *record* and of the records in it, as rows."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        name = prefix + field.name.replace("_", " ")
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{name}: ")
        elif field.metadata.get("secret"):
            yield name, ", ".join(f"{key}: {HIDDEN}" for key, _ in value) or "none"
        elif field.name == "url":
            yield name, words.url_to_show(value)
        else:
            yield name, _value(field.name, value)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(_value(name, item) for item in value) or "none"
    if isinstance(value, Enum):
        return str(value.value)
    if name in _UNITS:
        return _UNITS[name](value)
    return str(value)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Html:
    names = list(heads)
    body = element(
        "tbody",
        *(element("tr", *(element("td", cell) for cell in row)) for row in rows),
    )
    if not any(names):
        return element("div", element("table", body), class_="scroll")
    head = element(
        "thead", element("tr", *(element("th", n, scope="col") for n in names))
    )
    return element("div", element("table", head, body), class_="scroll")
