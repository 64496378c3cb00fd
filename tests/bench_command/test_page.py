"""The HTML page: it says what the results say, runs nobody else's code, loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.bench_command import invented
from tests.e2e.chromium import chromium
from trioresume.bench import Check, CheckedBy, Ending, Latency, Results
from trioresume.bench.report import doubts, plots, series, units, words
from trioresume.bench.report.page import MAX_LISTED, html_page
from trioresume.errors import CallerError

HOSTILE = (
    "</script><script>alert(1)</script><img src=http://example.invalid/ onerror=x>"
)

VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Page(HTMLParser):
    """A page taken apart: every element has to be closed in order."""

    text: list[str] = field(default_factory=list)
    scripts: list[tuple[dict[str, str | None], str]] = field(default_factory=list)
    attributes: list[tuple[str, str, str | None]] = field(default_factory=list)
    cards: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._card = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        if where == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif where != "style":
            self.text.append(data)
        if where == "dt":
            self._card = data
            self.cards[data] = []
        elif where == "span" and "dd" in self._open:
            self.cards[self._card].append(data)

    def close(self) -> None:
        super().close()
        assert not self._open

    @property
    def data(self) -> dict[str, Any]:
        """What the plots are drawn from."""
        (text,) = (text for attrs, text in self.scripts if attrs.get("id") == "data")
        made = json.loads(text)
        assert isinstance(made, dict)
        return made

    def plot(self, id: str) -> dict[str, Any]:
        (found,) = (plot for plot in self.data["plots"] if plot["id"] == id)
        assert isinstance(found, dict)
        return found


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    return page


@pytest.fixture(scope="module")
def results() -> Results:
    return invented.with_kills(invented.results())


@pytest.fixture(scope="module")
def text(results: Results) -> str:
    return html_page(results)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return parsed(text)


def trace(plot: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (t for t in plot["data"] if t.get("name", "").startswith(name))
    assert isinstance(found, dict)
    return found


# ---------------------------------------------------------------- what the page says


def test_figures_on_the_page_are_the_results(results: Results, page: Page) -> None:
    """Each figure's value is that of the property of the same name."""
    resume = results.resume
    assert resume is not None
    assert results.server_cpu_per_gib is not None
    assert results.fairness is not None
    said = {name: values[:2] for name, values in page.cards.items()}
    assert said["Throughput"][0] == units.rate(results.throughput)
    assert said["Goodput"][0] == units.rate(results.goodput)
    assert said["Sent again"][0] == units.size(results.sent_again)
    assert said["Time to resume"][0] == f"{units.duration(resume.p50)} p50"
    for part in (resume.p90, resume.p99, resume.max):
        assert units.duration(part) in said["Time to resume"][1]
    assert said["Fairness"][0] == f"{results.fairness:.2f}x"
    assert said["Cuts"][0] == str(sum(upload.cuts for upload in results.uploads))
    assert said["Server kills"][0] == "2"
    assert said["Failed uploads"][0] == "0"
    assert said["Server CPU per GiB"][0] == f"{results.server_cpu_per_gib:.2f} s"
    assert said["Server memory"][0] == "60.0 MiB"
    # Each figure has a value and is explained on the page itself.
    assert all(values[0] and len(values[-1]) > 20 for values in page.cards.values())


def test_throughput_curve_adds_up_to_the_series(results: Results, page: Page) -> None:
    """The area below the curve is what was handed to the kernel, to the byte."""
    sent = trace(page.plot("rates"), "sent")
    widths = [b - a for a, b in zip(sent["x"], sent["x"][1:], strict=False)]
    area = sum(w * y for w, y in zip(widths, sent["y"], strict=False))
    assert area * (1 << 20) == pytest.approx(sum(results.series.sent))


def test_goodput_curve_adds_up_to_goodput(results: Results, page: Page) -> None:
    """The area below the line is the goodput times the seconds."""
    stayed = trace(page.plot("rates"), "stayed")
    widths = [b - a for a, b in zip(stayed["x"], stayed["x"][1:], strict=False)]
    area = sum(w * y for w, y in zip(widths, stayed["y"], strict=False))
    assert area * (1 << 20) == pytest.approx(results.goodput * results.seconds)
    cuts = trace(page.plot("rates"), "cuts")
    assert sum(cuts["y"]) == sum(results.series.cuts) == sum(results.cuts.values())


@pytest.mark.parametrize("id", ["resume", "offset-query", "upload-duration"])
def test_percentiles_are_marked_in_the_distribution(
    id: str, results: Results, page: Page
) -> None:
    """p50, p90, p99 and max stand where the results say, with the number."""
    latency = {
        "resume": results.resume,
        "offset-query": results.offset_query,
        "upload-duration": results.upload_seconds,
    }[id]
    assert isinstance(latency, Latency)
    curve, marks = page.plot(id)["data"]
    assert marks["x"] == [latency.p50, latency.p90, latency.p99, latency.max]
    assert marks["y"] == [50, 90, 99, 100]
    assert marks["text"][1].strip() == f"p90 {units.duration(latency.p90)}"
    assert curve["x"] == sorted(curve["x"])
    assert len(curve["x"]) == latency.count
    assert curve["x"][-1] == latency.max
    assert curve["y"][-1] == 100


def test_each_cut_is_marked_where_it_happened(results: Results, page: Page) -> None:
    """The timelines have every connection that sent, and every cut, of a small run."""
    plot = page.plot("timelines")
    marks = [
        point
        for mark in plot["data"]
        if "cut by" in mark["name"]
        for point in zip(mark["x"], mark["y"], strict=True)
    ]
    expected = [
        (attempt.ended, row)
        for row, upload in enumerate(results.uploads)
        for attempt in upload.attempts
        if attempt.fault
    ]
    assert sorted(marks) == sorted(expected)
    sending = trace(plot, "sending")
    attempts = [a for upload in results.uploads for a in upload.attempts if a.sent]
    assert len([x for x in sending["x"] if x is None]) == len(attempts)
    assert len(plot["layout"]["shapes"]) == len(results.kills) == 2


def test_server_plot_adds_up_to_its_cpu(results: Results, page: Page) -> None:
    """The stacked areas are the CPU time that the samples tell."""
    assert results.server is not None
    user, system = page.plot("server")["data"][:2]
    for curve, total in ((user, results.server.user), (system, results.server.system)):
        assert sum(curve["y"]) * 0.5 == pytest.approx(total)


def test_settings_and_machine_are_on_the_page(page: Page) -> None:
    """Who reads it can repeat it; credentials are not passed on."""
    said = " ".join(page.text)
    for part in ("8.00 MiB", "at once", "Invented CPU", "Linux 6.1", "3.11.2"):
        assert part in said
    assert "hush" not in said
    assert "Authorization: (not shown)" in said


def test_url_is_shown_without_its_password(results: Results) -> None:
    """Reports are passed on."""
    settings = replace(results.settings, url="http://me:hush@127.0.0.1:8080/files/")
    text = html_page(replace(results, settings=settings))
    assert "hush" not in text
    assert "http://127.0.0.1:8080/files/" in text


def test_what_the_run_does_not_show_is_said(results: Results, page: Page) -> None:
    """Each limit and each doubt of this run is on the page."""
    for said in (*doubts.limits(results), *doubts.suspicions(results)):
        assert said in page.text
    assert any("same machine" in said for said in doubts.limits(results))
    assert any("lasted only" in said for said in doubts.suspicions(results))


# ------------------------------------------------------------------- bounds and sizes


def test_a_thousand_uploads_stay_readable() -> None:
    """All are drawn, a few again more closely, and the page is hardly larger."""
    many = invented.results(1000, at_once=100, size=16 << 20)
    many = invented.with_uploads(many, invented.failing(many, 500, Ending.TIMEOUT))
    text = html_page(many)
    page = parsed(text)
    waiting = trace(page.plot("timelines"), "waiting")
    assert len(waiting["x"]) == 3 * 1000
    closer = page.plot("closer")
    numbers = closer["layout"]["yaxis"]["ticktext"]
    assert "500" in numbers
    assert len(numbers) == series.CLOSER_ROWS
    assert len(trace(page.plot("rates"), "sent")["x"]) <= series.MAX_BINS + 1
    assert len(page.plot("resume")["data"][0]["x"]) <= series.MAX_POINTS + 2
    assert len(text) < 7_000_000


def test_too_many_uploads_are_thinned_but_not_the_failed_ones() -> None:
    """What is drawn is bounded, and the page says what is left out."""
    many = invented.results(3000, at_once=500, size=1 << 20)
    failed = [invented.failing(many, n, Ending.CLOSED) for n in range(7, 3000, 50)]
    many = invented.with_uploads(many, *failed)
    lines = series.timelines(many)
    assert len(lines.rows) == series.MAX_ROWS
    assert {upload.number for upload in failed} <= {row.number for row in lines.rows}
    assert [row.begun for row in lines.rows] == sorted(row.begun for row in lines.rows)
    (all_of_them, *_) = (p for p in plots.plots(many) if p.id == "timelines")
    assert "1,000 of 3,000 are drawn" in all_of_them.reading


def test_many_failures_are_counted_and_the_first_listed() -> None:
    """A disaster does not make an endless page."""
    base = invented.results(300, size=1 << 20)
    failed = [invented.failing(base, n, Ending.REFUSED) for n in range(300)]
    page = parsed(html_page(invented.with_uploads(base, *failed)))
    assert f"The first {MAX_LISTED} of 300, one by one" in page.text
    assert page.cards["Failed uploads"][0] == "300"
    assert "Failed: 300 uploads of 300" in page.text


def test_an_empty_run_makes_a_page(results: Results) -> None:
    """Interrupted at once: there is nothing to plot, and that is said."""
    empty = replace(
        results,
        uploads=(),
        seconds=0.0,
        series=replace(results.series, sent=(), finished=(), cuts=()),
        generators=(),
        server=None,
        kills=(),
        interrupted=True,
    )
    page = parsed(html_page(empty))
    assert page.data["plots"] == []
    assert "No result: no upload finished" in page.text


# ----------------------------------------------------------------- nobody else's code


def test_page_refers_to_nothing_outside(page: Page) -> None:
    """No element loads or links anything, and the policy forbids whatever would."""
    for tag, name, value in page.attributes:
        assert name not in ("src", "href", "action", "data", "srcset"), (tag, value)
        assert not name.startswith("on"), (tag, name)
    (policy,) = (
        v for _, n, v in page.attributes if n == "content" and v and "src" in v
    )
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert not re.search(r"script-src[^;]*unsafe-inline", policy)


def test_only_the_page_s_own_scripts_may_run(page: Page) -> None:
    """The policy names the digest of each script that is one, and no more."""
    (policy,) = (
        v for _, n, v in page.attributes if n == "content" and v and "src" in v
    )
    code = [text for attributes, text in page.scripts if "type" not in attributes]
    digests = [
        base64.b64encode(hashlib.sha256(c.encode()).digest()).decode() for c in code
    ]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert len(code) == 2


def test_hostile_words_are_text(results: Results) -> None:
    """A server's name, an upload's location and a failure's detail end no element."""
    bad = replace(
        invented.failing(results, 3, Ending.NOT_UNDERSTOOD, HOSTILE), location=HOSTILE
    )
    wrong = replace(
        results.uploads[4],
        check=Check(CheckedBy.DIGEST, False, HOSTILE),
        location=HOSTILE,
    )
    settings = replace(results.settings, url=f"http://127.0.0.1:1/{HOSTILE}")
    hostile = invented.with_uploads(
        replace(results, server_name=HOSTILE, settings=settings), bad, wrong
    )
    text = html_page(hostile)
    page = parsed(text)
    assert len(page.scripts) == 3
    assert not any(tag == "img" for tag, _, _ in page.attributes)
    assert "<img src" not in text
    assert sum(HOSTILE in part for part in page.text) >= 5
    # Not even as a value: plotly reads some markup in its texts.
    assert "alert(1)" not in json.dumps(page.data)


@pytest.mark.parametrize("name", ["plotly", "plotly.graph_objects"])
def test_without_plotly_the_error_says_what_to_install(
    name: str, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CallerError, match=r"pip install 'trioresume\[html\]'"):
        html_page(results)


def test_figures_do_not_need_plotly(results: Results) -> None:
    """The table and the JSON work without the extra: plotly is imported for a page only."""
    script = (
        "import sys; sys.modules['plotly'] = None\n"
        "import trioresume.bench.report.page, trioresume.bench.report.table\n"
        "import trioresume.bench.report.live\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert words.figures(results)


# ------------------------------------------------------------------- in a real browser


def test_browser_draws_every_plot(text: str, page: Page, tmp_path: Path) -> None:
    """A real browser, under the page's own policy, draws each plot and complains of nothing."""
    file = tmp_path / "report.html"
    file.write_text(text, "utf-8")
    done = subprocess.run(
        [
            chromium(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=10000",
            "--enable-logging=stderr",
            "--dump-dom",
            file.as_uri(),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    drawn = re.findall(r'id="plot-([a-z-]+)"[^>]*data-drawn="light"', done.stdout)
    assert drawn == [plot["id"] for plot in page.data["plots"]]
    assert done.stdout.count('class="main-svg"') >= len(drawn)
    assert "could not be drawn" not in done.stdout.partition("<script")[0]
    assert "CONSOLE" not in done.stderr, done.stderr
