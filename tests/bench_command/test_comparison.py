"""Figures of two runs side by side, and comparisons that fail a run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.bench_command import invented
from tests.cli.test_upload import Network
from trioresume import cli
from trioresume.bench import Results, to_json
from trioresume.bench.comparison import FIGURES, Change, changes
from trioresume.cli.bench import ThresholdType


@pytest.fixture
def before() -> Results:
    return invented.results()


@pytest.fixture
def slower(before: Results) -> Results:
    return replace(before, seconds=2 * before.seconds)


def _diff(*words: object) -> Result:
    return CliRunner().invoke(
        cli.main, ["bench", "diff", *map(str, words)], env={"COLUMNS": "160"}
    )


def _files(tmp_path: Path, *results: Results) -> list[Path]:
    paths = [tmp_path / f"{number}.json" for number in range(len(results))]
    for path, each in zip(paths, results, strict=True):
        path.write_text(to_json(each))
    return paths


def test_change_says_which_run_is_better(before: Results, slower: Results) -> None:
    found = {change.figure.name: change for change in changes(before, slower)}
    assert found["goodput"].is_better is False
    assert found["goodput"].ratio == pytest.approx(0.5)
    assert found["duration"].is_better is False
    assert found["duration"].ratio == pytest.approx(2)
    assert found["done"].is_better is None
    backwards = {change.figure.name: change for change in changes(slower, before)}
    assert backwards["goodput"].is_better is True
    assert backwards["duration"].is_better is True


def test_figures_without_data_in_both_runs_are_left_out(before: Results) -> None:
    bare = replace(before, uploads=(), server=None, generators=())
    names = {change.figure.name for change in changes(bare, bare)}
    assert names == {
        "throughput", "goodput", "duration", "done", "failed", "wrong", "unchecked",
        "sent-again",
    }  # fmt: skip
    one_sided = {change.figure.name: change for change in changes(before, bare)}
    assert one_sided["upload.p99"].after is None
    assert one_sided["upload.p99"].ratio is None
    assert one_sided["upload.p99"].is_better is None


@pytest.mark.parametrize(("one", "other"), [(0.0, 1.0), (1.0, None), (None, 1.0)])
def test_no_ratio_without_two_numbers(one: float | None, other: float | None) -> None:
    assert Change(FIGURES["failed"], one, other).ratio is None


def test_two_files_are_compared(
    before: Results, slower: Results, tmp_path: Path
) -> None:
    page = tmp_path / "diff.html"
    result = _diff(*_files(tmp_path, before, slower), "--html", page)
    assert result.exit_code == 0, result.output
    (line,) = re.findall(r".*\bduration\b.*", result.stdout)
    assert line.split()[-2] == "2.00x"
    assert "The runs differ in" not in result.stdout
    html = page.read_text()
    assert html.count("<tr>") == len(changes(before, slower)) + 1
    assert "<script" not in html
    assert '<strong class="bad">2.00x</strong> worse' in html


def test_what_makes_the_runs_hard_to_compare_is_said(
    before: Results, tmp_path: Path
) -> None:
    other = replace(before, settings=replace(before.settings, at_once=3))
    result = _diff(*_files(tmp_path, before, other))
    assert "! The runs differ in: number of uploads at once." in result.stdout


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', "\udcff"])
def test_file_that_is_no_result_is_a_usage_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    result = _diff(path, path)
    assert result.exit_code == 2
    assert "is no result of 'trioresume bench --json'" in " ".join(
        result.output.split()
    )


def test_hostile_server_name_is_harmless_on_the_page(
    before: Results, tmp_path: Path
) -> None:
    hostile = replace(before, server_name="<script>alert(1)</script>\x1b[31m")
    page = tmp_path / "diff.html"
    result = _diff(*_files(tmp_path, hostile, hostile), "--html", page)
    assert "\x1b[31m" not in result.stdout
    assert "<script" not in page.read_text()


# Thresholds.


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("resume.p99>500ms", 0.5, False),
        ("resume.p99>500ms", 0.501, True),
        ("resume.p99>=500ms", 0.5, True),
        ("goodput < 100MiB/s", 100 * 2**20 - 1, True),
        ("goodput<100MiB", 100 * 2**20, False),
        ("goodput<=100MiB", 100 * 2**20, True),
        ("failed>0", 1, True),
        ("failed>0", 0, False),
        ("sent-again-share>0.1%", 0.002, True),
        ("sent-again-share>0.1%", 0.0005, False),
        ("fairness>1.5", 1.6, True),
        ("sent-again>1k", 1001, True),
    ],
)
def test_comparison_holds(text: str, value: float, holds: bool) -> None:
    assert ThresholdType().convert(text, None, None).is_met(value) is holds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a comparison"),
        ("resume.p99", "is not a comparison"),
        ("resume.p99=5", "is not a comparison"),
        ("resume.p98>5s", "there is no figure 'resume.p98'; there are throughput"),
        ("resume.p99>many", "is not a duration"),
        ("goodput>5 apples", "is not a size"),
        ("failed>5%", "is not a number"),
        ("failed>x", "is not a number"),
    ],
)
def test_wrong_comparison_is_a_usage_error(text: str, reason: str) -> None:
    result = CliRunner().invoke(
        cli.main, ["bench", "--fail-if", text, "http://127.0.0.1:1/"]
    )
    assert result.exit_code == 2
    assert reason in " ".join(result.output.replace("│", " ").split())


def test_run_fails_if_a_comparison_holds(tmp_path: Path) -> None:
    with Network() as network:
        words = ["bench", "--total", "2", "-n", "1", "--size", "1k", "--quiet"]
        passed = CliRunner().invoke(
            cli.main, [*words, "--fail-if", "failed>0", network.url]
        )
        assert passed.exit_code == 0, passed.output
        held = CliRunner().invoke(
            cli.main,
            [*words, "--fail-if", "done>1", "--fail-if", "resume.max>1s", network.url],
        )
    assert held.exit_code == 4
    assert "--fail-if done>1: it is 2" in held.stderr
    assert "--fail-if resume.max>1s: the run has no such figure" in held.stderr
