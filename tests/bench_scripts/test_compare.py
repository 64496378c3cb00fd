"""The comparison: its order, its tables, and a real one of a few megabytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.compare.__main__ import main, rounds
from bench.compare.figures import lines
from bench.compare.report import Report, markdown_table
from bench.compare.run import Bench, Measured
from bench.compare.works import Case, Work, cases_of
from bench.peers import find
from bench.peers.cache import Cache
from bench.rounds import order
from bench.statistics import Spread
from bench.workspace import Workspace
from tests.bench_scripts.fakes import faulty
from tests.platforms import linux_only
from trioresume.bench import FaultKind, Latency

GIB = 1 << 30
WORK = Work(16, GIB)
CUT = Work(16, GIB, 64 << 20)


def measured(
    case: str, cpu: float, index: int = 1, work: Work = WORK, seconds: float = 1.0
) -> Measured:
    return Measured(
        case=case,
        work=work,
        round=index,
        seconds=seconds,
        user=cpu / 4,
        system=3 * cpu / 4,
        peak_resident=index << 20,
    )


def test_cases_are_named_with_their_protocols() -> None:
    """The first protocol is the usual one; twice the same is once."""
    cases = cases_of(["tusd", "tusd:rufh", "@tus/server", "tusd:tus", "disk-write"])
    assert [case.name for case in cases] == [
        "tusd",
        "tusd:rufh",
        "@tus/server",
        "disk-write",
    ]
    assert [case.resumes for case in cases] == [True, True, True, False]


def test_case_says_what_carries_it() -> None:
    """TLS and HTTP/2 are named after the protocol; a server that cannot is refused."""
    cases = cases_of(["nginx+tls", "trioresume:plain+h2", "tusd+tls"])
    assert [case.name for case in cases] == [
        "nginx+tls",
        "trioresume:plain+h2",
        "tusd+tls",
    ]
    assert cases[1].spoken == "plain, HTTP/2 over TLS"
    for name in ("tusd+h2", "uvicorn+tls", "nginx+smoke"):
        with pytest.raises(LookupError):
            cases_of([name])


def test_work_of_many_small_files_keeps_their_size() -> None:
    """Its smaller round has fewer of them; others have smaller uploads."""
    small = Work(64, 10_000 * 10_240, None, 10_000)
    assert (small.count, small.size) == (10_000, 10_240)
    assert small.name == "10000 x 10 KiB, 64 at once"
    assert (small.share(8).count, small.share(8).size) == (1250, 10_240)
    assert (WORK.count, WORK.share(8)) == (16, Work(16, GIB // 8))


def test_small_files_are_told_by_their_number() -> None:
    """Files a second and milliseconds each, not MiB/s."""
    work = Work(64, 1000 * 10_240, None, 1000)
    group = [measured("a", 2.0, work=work, seconds=4.0)]
    found = lines([group], [work], ["a"], [])
    text = Report(
        command="c",
        machine={"cpu": "x"},
        begun="today",
        rounds=[group],
        works=[work],
        cases=[],
        versions={},
        skipped={},
        lines=found,
        baselines=[],
    ).markdown()
    assert "| a | 250 | 2.00 |" in text


@pytest.mark.parametrize("name", ["tuds", "nginx:tus", "tusd:"])
def test_an_unknown_case_is_refused_or_the_usual(name: str) -> None:
    """An empty protocol is the first."""
    if name == "tusd:":
        assert [case.name for case in cases_of([name])] == ["tusd"]
    else:
        with pytest.raises(LookupError):
            cases_of([name])


def test_every_case_does_every_work_next_to_the_others() -> None:
    """In an order that the seed draws; cuts only where there is resumption."""
    cases = cases_of(["tusd", "nginx", "rustus", "raw-write"])
    works = [Work(n, GIB) for n in (1, 16, 128)] + [CUT]

    def drawn(seed: int) -> list[tuple[Work, Case]]:
        return list(order(works, cases, random.Random(seed), Work.suits))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    runs = drawn(1)
    assert {(work, case.name) for work, case in runs} == {
        (work, case.name) for work in works for case in cases if work.suits(case)
    }
    assert len(runs) == 3 * 4 + 2
    # Each work is one stretch.
    changes = sum(a[0] != b[0] for a, b in pairwise(runs))
    assert changes == len(works) - 1


def test_the_first_round_is_small_and_discarded() -> None:
    """Every case runs in each round, and only the later ones are kept."""
    seen: list[tuple[int, str, int]] = []

    def measure(case: Case, work: Work, index: int) -> Measured:
        seen.append((index, case.name, work.total))
        return measured(case.name, 1.0, index, work)

    cases = cases_of(["raw-write", "tusd"])
    kept = rounds(measure, cases, [WORK], number=2, seed=5)
    assert [len(group) for group in kept] == [2, 2]
    assert {run.round for group in kept for run in group} == {1, 2}
    assert {total for index, _, total in seen if index == 0} == {GIB // 8}
    assert {total for index, _, total in seen if index} == {GIB}


def test_an_interrupted_comparison_keeps_its_whole_rounds() -> None:
    """An hour's work is not lost; a round that has only some of the cases is."""
    cases = cases_of(["raw-write", "raw-hash"])

    def until(last: int) -> Callable[[Case, Work, int], Measured]:
        def measure(case: Case, work: Work, index: int) -> Measured:
            if index > last:
                raise KeyboardInterrupt
            return measured(case.name, 1.0, index)

        return measure

    kept = rounds(until(1), cases, [WORK], number=5, seed=1)
    assert [len(group) for group in kept] == [2]
    with pytest.raises(KeyboardInterrupt):
        rounds(until(0), cases, [WORK], number=5, seed=1)


def test_a_line_has_medians_worst_peak_and_ratios_within_rounds() -> None:
    """Of CPU and of speed, to each baseline but itself."""
    found = [
        [measured("raw", cpu, index), measured("other", 1.5 * cpu, index, seconds=2.0)]
        for index, cpu in enumerate((1.0, 2.0, 4.0), 1)
    ]
    other, raw = lines(found, [WORK], ["other", "raw"], ["raw", "absent"])
    assert other.cpu == Spread(3, 1.5, 6)
    assert other.cpu_user == Spread(0.75, 0.375, 1.5)
    assert other.rate == Spread(512, 512, 512)
    assert other.peak_mib == 3
    assert other.ratios[0].cpu == Spread(1.5, 1.5, 1.5)
    assert other.ratios[0].rate == Spread(0.5, 0.5, 0.5)
    assert other.ratios[1].cpu is None
    assert [ratio.to for ratio in raw.ratios] == ["absent"]


def test_a_run_with_a_problem_does_not_count_but_is_told() -> None:
    """Nor does it serve others as a baseline."""
    bad = replace(measured("raw", 100.0), problems=("2 uploads WRONG (x)",))
    found = [
        [bad, measured("other", 2.0)],
        [measured("raw", 1.0, 2), measured("other", 3.0, 2)],
    ]
    raw, other = lines(found, [WORK], ["raw", "other"], ["raw"])
    assert raw.runs == 1
    assert raw.cpu == Spread(1, 1, 1)
    assert raw.problems == (("2 uploads WRONG (x)", 1),)
    assert other.runs == 2
    assert other.ratios[0].cpu == Spread(3, 3, 3)
    (alone,) = lines([[bad]], [WORK], ["raw"], [])
    assert alone.runs == 0
    assert alone.cpu is None


def test_latencies_keep_the_median_percentiles_and_the_longest() -> None:
    """Of runs with cuts."""
    found = [
        [
            replace(
                measured("a", 1.0, index, CUT),
                cuts=4,
                resume=Latency(4, index / 10, index / 10, index / 5, float(index)),
            )
        ]
        for index in (1, 2, 3)
    ]
    (line,) = lines(found, [CUT], ["a"], [])
    assert line.cuts == 12
    assert line.resume is not None
    assert (line.resume.count, line.resume.p50, line.resume.p99, line.resume.max) == (
        12,
        0.2,
        0.4,
        3.0,
    )


def report(found: Sequence[Sequence[Measured]], work: Work) -> Report:
    cases = cases_of(["trioresume", "tusd"])
    names = [case.name for case in cases]
    return Report(
        command="python -m bench.compare --seed 7",
        machine={"cpu": "2 x Thing", "kernel": "Linux 9"},
        begun="2026-01-02",
        rounds=found,
        works=[work],
        cases=cases,
        versions={"tusd": "2.9.1"},
        skipped={"rustus": "rustus needs cargo"},
        lines=lines(found, [work], names, ["tusd"]),
        baselines=["tusd"],
    )


def test_the_report_has_machine_versions_settings_figures_and_what_is_missing() -> None:
    """A reader can place the figures without anything else."""
    found = [[measured("tusd", 2.0), measured("trioresume", 1.0)]]
    text = report(found, WORK).markdown()
    for words in ("2 x Thing", "2.9.1", "Not measured: rustus: rustus needs cargo."):
        assert words in text
    assert "python -m bench.compare --seed 7" in text
    assert "| trioresume | 1024 | 1.00 | 0.25 | 0.75 | 1 | 0% | 0% |" in text
    assert "| trioresume | 1.00 | 0.50 |" in text
    assert "cuts" not in text
    document = json.loads(report(found, WORK).json())
    assert document["rounds"][0][1]["cpu_seconds_per_gib"] == 1.0


def test_the_report_of_cuts_tells_of_resumption_and_of_failures() -> None:
    """A case all of whose runs failed has a line without figures, and its reason."""
    good = replace(
        measured("trioresume", 1.0, work=CUT),
        cuts=16,
        resume=Latency(16, 0.01, 0.02, 0.03, 0.05),
        sent_again=GIB // 100,
    )
    bad = replace(measured("tusd", 1.0, work=CUT), problems=("1 uploads offset-fell",))
    text = report([[good, bad]], CUT).markdown()
    assert "### 16 x 64 MiB, a cut per 64 MiB" in text
    assert "| trioresume | 16 | 10.0 / 30.0 / 50.0 | - | 1.00% | - |" in text
    assert "| tusd | - | - |" in text
    assert "tusd: in 1 rounds 1 uploads offset-fell." in text


def test_cells_cannot_break_a_table() -> None:
    """A bar in a setting stays in its cell."""
    table = markdown_table(["a", "b"], [["x|y", "1"]])
    assert table.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |"]


@pytest.fixture
def bench(workspace: Workspace, tmp_path: Path) -> Bench:
    # Silence is left out: the faulty server's only thread would wait for ever.
    return Bench(
        workspace=workspace,
        cache=Cache(tmp_path / "cache"),
        kinds=(FaultKind.FIN, FaultKind.RST),
        limit=20,
    )


linux = linux_only("/proc and memfd")


@linux
def test_a_server_that_is_wrong_in_a_run_is_found_out(bench: Bench) -> None:
    """Its figures do not count: content is checked in every run."""
    run = bench.run(Case(faulty("drop"), "tus"), Work(2, 8 << 20), 1)
    assert not run.ok
    assert "WRONG" in run.problems[0]


@linux
def test_a_run_without_cuts_and_one_with_are_measured(bench: Bench) -> None:
    """Of a correct server: figures, cuts, checks by digest."""
    case = Case(faulty("none"), "tus")
    # As much as takes several of the units, 10 ms, in which Linux tells CPU time.
    plain = bench.run(case, Work(3, 192 << 20), 1)
    assert plain.ok
    assert plain.seconds > 0
    assert plain.cpu > 0
    assert plain.peak_resident > 1 << 20
    assert plain.checked == {"digest": 3}
    cut = bench.run(case, Work(3, 12 << 20, 1 << 20), 1)
    assert cut.ok
    assert cut.cuts > 0
    assert cut.resume is not None
    assert cut.offset_query is not None


@linux
def test_the_disk_is_measured(bench: Bench) -> None:
    """In a process of its own."""
    (case,) = cases_of(["disk-write"])
    run = bench.run(case, Work(4, 8 << 20), 1)
    assert run.ok
    assert run.rate > 0
    assert 1 << 20 < run.peak_resident < 128 << 20


@pytest.mark.slow
@linux
def test_a_whole_comparison_of_a_few_megabytes(tmp_path: Path) -> None:
    """The real command, real servers, a report and its data."""
    # The file application where it is installed; a test installs nothing.
    asgi = "uvicorn" if Cache().installed(find("uvicorn")) else "raw-write"
    options = [
        *("--peers", f"trioresume,{asgi}", "--uploads", "2", "--bytes", "16MiB"),
        *("--rounds", "1", "--no-prove", "--work-dir", str(tmp_path)),
        *("--json", str(tmp_path / "out.json"), "--baselines", asgi),
        *("--serve-option", "--log-level=error"),
    ]
    done = CliRunner().invoke(main, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "### 2 x 8 MiB" in done.stdout
    assert "--log-level=error" in done.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    runs = [run for group in document["rounds"] for run in group]
    assert {run["case"] for run in runs} == {"trioresume", asgi}
    assert all(run["checked"] == {"digest": 2} for run in runs)


def test_a_wrong_peer_or_number_is_refused() -> None:
    """Before anything is installed or started."""
    runner = CliRunner()
    for options in (
        ["--peers", "tuds"],
        ["--uploads", "many"],
        ["--uploads", "0"],
        ["--cuts", "often"],
        ["--cut-kinds", "axe"],
    ):
        done = runner.invoke(main, options)
        assert done.exit_code == 2
        assert options[1] in done.output


def test_a_peer_without_its_tool_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are still measured."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRIORESUME_BENCH_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(
        main, ["--peers", "rustus", "--work-dir", str(tmp_path), "--uploads", "1"]
    )
    assert "Not measured: rustus: ToolMissing: rustus needs cargo." in done.stdout
