"""What a run is said to be: the verdict, the table, quantities, doubts."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.console import Console

from tests.bench_command import invented
from trioresume.bench import (
    Check,
    CheckedBy,
    Ending,
    Fault,
    FaultKind,
    FaultPlace,
    Protocol,
    Results,
    ServerSample,
    ServerUsage,
)
from trioresume.bench.report import doubts, units, words
from trioresume.bench.report.curves import server_plots
from trioresume.bench.report.series import bins
from trioresume.bench.report.table import MAX_LISTED, print_results
from trioresume.bench.report.timelines import timeline_plots
from trioresume.bench.report.words import Mood


@pytest.fixture(scope="module")
def good() -> Results:
    return invented.results()


def printed(results: Results, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_results(results, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_all_intact_is_good(good: Results) -> None:
    """Every upload finished, and each was compared by digest."""
    verdict = words.verdict(good)
    assert verdict.mood is Mood.GOOD
    assert verdict.headline == "All 16 uploads finished and are intact"


def test_one_wrong_upload_is_the_verdict(good: Results) -> None:
    """Wrong content comes before everything, failures included."""
    mixed = invented.with_uploads(
        good, invented.wrong(good, 3), invented.failing(good, 5, Ending.TIMEOUT)
    )
    verdict = words.verdict(mixed)
    assert verdict.mood is Mood.BAD
    assert verdict.headline == "Wrong content: 1 upload of 15"
    assert "1 upload failed" in verdict.detail


def test_a_failed_upload_is_bad(good: Results) -> None:
    """It is counted among all that were tried."""
    failed = invented.with_uploads(good, invented.failing(good, 5, Ending.TIMEOUT))
    assert words.verdict(failed).mood is Mood.BAD
    assert words.verdict(failed).headline == "Failed: 1 upload of 16"


@pytest.mark.parametrize(
    "check", [None, Check(CheckedBy.LENGTH, True), Check(CheckedBy.NONE, True)]
)
def test_less_than_a_digest_is_not_good(good: Results, check: Check | None) -> None:
    """Intact is claimed only of content that was compared."""
    weak = invented.with_uploads(good, replace(good.uploads[0], check=check))
    verdict = words.verdict(weak)
    assert verdict.mood is Mood.ATTENTION
    assert "intact" not in verdict.headline
    assert "1 " in verdict.detail.partition("digest.")[2]


def test_stopped_uploads_are_no_failures_and_no_success(good: Results) -> None:
    """A run that ended early did not show that they would have finished."""
    stopped = invented.with_uploads(good, invented.failing(good, 5, Ending.STOPPED))
    verdict = words.verdict(replace(stopped, interrupted=True))
    assert verdict.mood is Mood.ATTENTION
    assert "interrupted" in verdict.detail


def test_table_has_the_figures(good: Results) -> None:
    """The same as on the page."""
    text = printed(good)
    for figure in words.figures(good):
        assert figure.name in text
        assert figure.value in text
    assert "Failed uploads" in text
    assert "All 16 uploads finished and are intact" in text


def test_table_shows_failures(good: Results) -> None:
    """By kind and one by one, with the reason."""
    bad = invented.with_uploads(
        good,
        invented.wrong(good, 3, "byte 17 differs"),
        invented.failing(good, 5, Ending.OFFSET_FELL, "from 900 to 800"),
    )
    text = printed(bad)
    assert "wrong-content" in text
    assert "offset-fell" in text
    assert "byte 17 differs" in text
    assert "from 900 to 800" in text


def test_table_of_a_disaster_is_bounded(good: Results) -> None:
    """It says how many it does not list."""
    failed = [invented.failing(good, n, Ending.REFUSED) for n in range(16)]
    bad = invented.with_uploads(good, *failed)
    bad = replace(bad, uploads=bad.uploads * 10)
    text = printed(bad)
    assert text.count("no connection to the server") == MAX_LISTED + 1
    assert "140 more" in text


def test_a_server_s_words_command_no_terminal(good: Results) -> None:
    """Escape sequences and rich's markup are shown, not obeyed."""
    hostile = "\x1b[2J[bold red]owned[/]"
    bad = invented.with_uploads(
        replace(good, server_name=hostile),
        invented.failing(good, 5, Ending.REJECTED, hostile),
    )
    text = printed(bad)
    assert "\x1b" not in text
    assert text.count("[bold red]owned[/]") == 2


def test_a_busy_generator_is_said_first_thing(good: Results) -> None:
    """Figures of a run that the tool held back must not pass for the server's."""
    (generator,) = good.generators
    busy = replace(good, generators=(replace(generator, system=good.seconds),))
    assert "load generator was a limit" in doubts.suspicions(busy)[0]
    assert "load generator was a limit" in printed(busy, 200)


def test_limits_follow_the_run(good: Results) -> None:
    """What is said not to be shown depends on what was done."""
    here = " ".join(doubts.limits(good))
    assert "same machine" in here
    assert "Cuts were made on purpose" in here
    calm = replace(
        good,
        protocol=Protocol.PLAIN,
        server=None,
        settings=replace(good.settings, url="http://files.example/up/"),
        uploads=tuple(
            replace(u, attempts=(replace(u.attempts[-1], first=0),))
            for u in good.uploads
        ),
    )
    there = " ".join(doubts.limits(calm))
    for part in (
        "network between",
        "Nothing was cut",
        "does not measure resumption",
        "--server-pid",
    ):
        assert part in there


def test_what_a_cut_threw_away_is_not_goodput() -> None:
    """The curve counts each byte at the last time it was sent."""
    base = invented.results(1, size=1000)
    (upload,) = base.uploads
    last = replace(upload.attempts[-1], begun=1.0, ended=2.0, first=0, last=1000)
    lost = replace(last, begun=0.0, ended=1.0, last=900, ending=Ending.CUT)
    retold = replace(
        base,
        seconds=2.0,
        uploads=(replace(upload, ended=2.0, attempts=(lost, last)),),
        series=replace(
            base.series, interval=0.5, sent=(450, 450, 500, 500), finished=(), cuts=()
        ),
    )
    curve = bins(retold)
    assert curve.edges == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert curve.throughput == (900.0, 900.0, 1000.0, 1000.0)
    assert curve.goodput == pytest.approx((0, 0, 1000, 1000))


@pytest.mark.parametrize("seconds", [1.0, 1.001, 1.25, 1.499, 1.5, 1.96, 2.0])
def test_rest_of_a_stretch_is_no_spike(seconds: float) -> None:
    """A tick that came late, in the little that is left of a stretch, is not its rate."""
    base = invented.results(1, size=1000)
    (upload,) = base.uploads
    only = replace(upload.attempts[-1], begun=0.0, ended=seconds, first=0, last=1000)
    ticks = int(seconds / 0.5 - 1e-9) + 1
    sent = (*[500] * (ticks - 1), 400)
    retold = replace(
        base,
        seconds=seconds,
        uploads=(replace(upload, begun=0.0, ended=seconds, attempts=(only,)),),
        series=replace(base.series, interval=0.5, sent=sent, finished=(1,), cuts=()),
    )
    curve = bins(retold)
    assert curve.edges[-1] == seconds
    widths = [b - a for a, b in pairwise(curve.edges)]
    assert min(widths) >= 0.5 - 1e-9
    assert max(curve.throughput) <= 1000 / 0.5
    assert max(curve.throughput) <= 1.9 * min(curve.throughput)
    areas = [rate * width for rate, width in zip(curve.throughput, widths, strict=True)]
    assert sum(areas) == pytest.approx(sum(sent))
    stayed = [rate * width for rate, width in zip(curve.goodput, widths, strict=True)]
    assert sum(stayed) == pytest.approx(1000)
    assert sum(curve.finished) == 1


def test_run_without_a_tick_has_no_curve() -> None:
    """Nothing was sent, and no time has passed."""
    base = invented.results(1, size=1000)
    empty = replace(base.series, sent=(), finished=(), cuts=())
    curve = bins(replace(base, seconds=0.0, series=empty))
    assert curve.throughput == ()


def bars_of(results: Results) -> tuple[list[float | None], list[str]]:
    """Return the times at which connections send, and the names of the drawn bars."""
    (plot,) = timeline_plots(results)
    data = plot.figure["data"]
    (sending,) = (trace for trace in data if trace["name"] == "sending")
    return sending["x"], [trace["name"] for trace in data]


def test_lock_of_the_server_is_not_drawn_as_sending() -> None:
    """Neither a query that was refused with 423, nor one that waited for the lock."""
    base = invented.results(1, size=1000)
    (upload,) = base.uploads
    cut = replace(
        upload.attempts[-1], begun=0.0, ended=1.0, first=0, last=500, sending=0.1,
        ending=Ending.CUT, fault=Fault(FaultKind.FIN, FaultPlace.BODY),
    )  # fmt: skip
    locked = replace(
        cut, begun=1.0, ended=5.0, first=0, last=0, sending=None, status=423,
        ending=Ending.REJECTED, fault=None,
    )  # fmt: skip
    waited = replace(
        cut, begun=5.0, ended=9.0, first=500, last=1000, sending=8.0, status=201,
        ending=Ending.DONE, fault=None,
    )  # fmt: skip
    attempts = (cut, locked, waited)
    told = replace(base, uploads=(replace(upload, ended=9.0, attempts=attempts),))
    times, names = bars_of(told)
    assert times == [0.1, 1.0, None, 8.0, 9.0, None]
    assert "locked by the server (1)" in names
    assert not any(name.startswith("broke otherwise") for name in names)


def test_results_of_an_older_version_are_drawn_as_before() -> None:
    """They do not say when a connection began to send."""
    base = invented.results(1, size=1000)
    (upload,) = base.uploads
    only = replace(upload.attempts[-1], begun=1.0, ended=2.0, first=0, last=1000)
    told = replace(base, uploads=(replace(upload, attempts=(only,)),))
    assert bars_of(told)[0] == [1.0, 2.0, None]


def test_samples_that_nearly_coincide_are_no_spike() -> None:
    """A restart is looked at at once: a tick of CPU time over nothing is not many cores."""
    base = invented.results(2)
    samples = [ServerSample(at / 4, at / 8, 0.0, 1000) for at in range(8)]
    samples.insert(5, ServerSample(1.0001, 0.51, 0.0, 1000))
    usage = ServerUsage(
        pid=1, user=1.0, system=0.0, peak_resident=1000, samples=tuple(samples)
    )
    (plot,) = server_plots(replace(base, server=usage))
    assert max(plot.figure["data"][0]["y"]) < 1


def test_goodput_follows_what_was_sent_when() -> None:
    """A connection that stood still for a while did not make goodput meanwhile."""
    base = invented.results(1, size=1000)
    (upload,) = base.uploads
    only = replace(upload.attempts[-1], begun=0.0, ended=2.0, first=0, last=1000)
    retold = replace(
        base,
        seconds=2.0,
        uploads=(replace(upload, begun=0.0, ended=2.0, attempts=(only,)),),
        series=replace(
            base.series, interval=0.5, sent=(600, 0, 0, 400), finished=(), cuts=()
        ),
    )
    curve = bins(retold)
    assert curve.goodput == pytest.approx((1200, 0, 0, 800))
    assert curve.throughput == pytest.approx((1200, 0, 0, 800))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.00034, "340 \u00b5s"),
        (0.0123, "12.3 ms"),
        (0.9996, "1.00 s"),
        (99.96, "100 s"),
        (185.2, "3 min 5 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    """Three digits and a unit; never a rounded-up 1000 of a smaller unit."""
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (1023.9 * 1024, "1.00 MiB"),
        (10 << 30, "10.0 GiB"),
    ],
)
def test_sizes_read_well(count: float, text: str) -> None:
    """Powers of 1024, as the units say."""
    assert units.size(count) == text


def test_a_small_share_is_not_nothing() -> None:
    """Something that was sent again must not read as none."""
    assert units.share(0.0) == "0 %"
    assert units.share(0.0001) == "< 0.1 %"
    assert units.share(0.034) == "3.4 %"
