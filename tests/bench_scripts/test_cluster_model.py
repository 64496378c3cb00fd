"""The model of a large cluster: equal seeds, equal runs; no byte is lost; limits show."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from bench.cluster_model.__main__ import compared, report
from bench.cluster_model.figures import Figures
from bench.cluster_model.plan import small_plan
from bench.cluster_model.scenario import Scenario, run_small, simulate

SMALL = Scenario(nodes=4, open_uploads=10_000, warm_up=5, seconds=15)


def test_equal_seeds_give_equal_runs() -> None:
    """Another seed gives another run."""
    first, again = simulate(SMALL), simulate(SMALL)
    assert report(first) == report(again)
    assert first.counts == again.counts
    assert simulate(replace(SMALL, seed=2)).counts != first.counts


def test_no_byte_is_lost_when_a_region_goes_away() -> None:
    """The model's audit accounts for each byte, also of nodes that are gone."""
    figures = replace(SMALL.figures, failover=3.0)
    result = simulate(replace(SMALL, region_away=True, figures=figures))
    assert result.counts["claims by force"] > 0
    assert result.lost > 0  # received, and told to nobody
    assert result.ended > 0


def test_few_threads_are_the_first_bottleneck_and_many_are_not() -> None:
    few = simulate(replace(SMALL, figures=replace(SMALL.figures, store_threads=1)))
    many = simulate(replace(SMALL, figures=replace(SMALL.figures, store_threads=256)))
    assert few.bottleneck == "threads that put chunks"
    assert many.bottleneck != few.bottleneck
    assert many.received > few.received


def test_tails_that_are_put_at_each_cut_cost_puts_and_save_bytes() -> None:
    kept = simulate(
        replace(SMALL, figures=replace(SMALL.figures, keeps_tail_at_cut=True))
    )
    now = simulate(SMALL)
    assert kept.counts["put tail"] > now.counts["put tail"]
    assert kept.lost < now.lost


def test_small_load_puts_each_byte_once() -> None:
    """All cuts at chunks' ends or not: every upload ends, and content is put exactly once."""
    plans = small_plan(3, 8, 1, most_cuts=0)
    counts = run_small(plans, 1, clients=2, figures=Figures())
    assert counts["bytes put"] == sum(plan.size for plan in plans)
    assert counts["put tail"] == counts["cuts"] == 0


def test_comparison_says_which_figure_differs() -> None:
    ours, theirs = Counter({"put chunk": 10}), Counter({"put chunk": 10})
    assert compared(ours, theirs)[1]
    theirs["put chunk"] = 20
    text, is_right = compared(ours, theirs)
    assert not is_right
    assert "put chunk" in text
    assert "differs" in text
