"""The regression gate: what it lets pass, and that its bounds are what it measures."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from bench.gate import trace
from bench.gate.__main__ import BOUNDS, RATIO, judge, render
from bench.gate.counts import Amounts, count
from tests.platforms import linux_only

KINDS = ("modules", "classes", "functions")
FIGURES = {
    "calls per small": 100.0,
    "calls per MiB": 100.0,
    "blocks left per request": 0.1,
    RATIO: 1.2,
}


def test_what_was_measured_passes_and_a_fifth_more_does_not() -> None:
    """A bound leaves a tenth; what --write makes is what is judged by."""
    bounds = tomllib.loads(render(FIGURES))
    assert list(bounds) == list(FIGURES)
    assert judge(FIGURES, bounds)[1]
    lines, kept = judge({**FIGURES, "calls per small": 120.0}, bounds)
    assert not kept
    assert [line for line in lines if "FAILED" in line] == [lines[0]]
    assert not judge({**FIGURES, "blocks left per request": 6.0}, bounds)[1]


def test_a_figure_far_below_its_bound_is_told() -> None:
    """It passes, but somebody should lower the bound."""
    bounds = tomllib.loads(render(FIGURES))
    lines, kept = judge({**FIGURES, "calls per small": 50.0}, bounds)
    assert kept
    assert "far below" in lines[0]


@pytest.mark.parametrize("missing", FIGURES)
def test_nothing_passes_unmeasured_or_unbounded(missing: str) -> None:
    """A measurement that was lost, or one that nobody bounded, is a failure."""
    bounds = tomllib.loads(render(FIGURES))
    fewer = {name: figure for name, figure in FIGURES.items() if name != missing}
    assert not judge(fewer, bounds)[1]
    assert not judge(FIGURES, {n: b for n, b in bounds.items() if n != missing})[1]


@linux_only("the system calls that the bounds are of")
def test_counts_are_those_that_are_bounded(tmp_path: Path) -> None:
    """In small: every count has its bound, and counting leaves no profiler behind."""
    few = Amounts(warm_up=2, times=5, large=1, held=5, settle=0.1)
    figures = count(tmp_path, few)
    assert sys.getprofile() is None
    bounds = tomllib.loads(BOUNDS.read_text(encoding="utf-8"))
    ways = {f"{kind} of a {request}" for kind in KINDS for request in trace.REQUESTS}
    ours = {n for n in bounds if "system calls" not in n and n != RATIO} - ways
    assert figures.keys() == ours
    assert all(figures[f"calls per {verb}"] > 100 for verb in ("small", "offset"))


def test_a_way_is_what_was_entered(tmp_path: Path) -> None:
    """Every figure has its bound; the names are those of the code."""
    ways = trace.trace(tmp_path)
    assert sys.getprofile() is None
    bounds = tomllib.loads(BOUNDS.read_text(encoding="utf-8"))
    for request, way in ways.items():
        assert way.figures(request).keys() <= bounds.keys()
    assert any(name.endswith("Operation.complete") for name in ways["post"].functions)
    assert ways["post"].modules["protocol/operation.py"] >= 1
    lines = {line.split()[0]: line.split()[1:] for line in trace.table(ways)[1:]}
    post = ways["post"].modules["protocol/heads.py"]
    assert lines["protocol/heads.py"][0] == str(post)
    assert len(ways["replay"].functions) < len(ways["post"].functions)
