"""From runs to lines of a table."""

from __future__ import annotations

from bench.load import LoadFailed, Outcome
from bench.measure import Run
from bench.server import Cpu, Target
from bench.summary import Spread, figures
from bench.upload import rounds

GIB = 1 << 30


def unexpected(message: str) -> None:
    raise AssertionError(message)


def run_of(target: str, n: int, cpu: float, seconds: float = 1.0) -> Run:
    return Run(
        target=target,
        n=n,
        bytes=GIB,
        outcome=Outcome(
            started=0.0,
            seconds=seconds,
            first_done=seconds,
            marked=0.0,
            cpu_user=0.1,
            cpu_system=0.85,
            locations=[],
        ),
        server=Cpu(cpu / 4, 3 * cpu / 4),
        peak_resident=1 << 20,
        elsewhere=0.0,
        stolen=0.0,
    )


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that slows down between rounds does not show in the ratio."""
    lines = figures(
        [[run_of("raw", 1, cpu), run_of("other", 1, 1.5 * cpu)] for cpu in (1, 2, 4)],
        "raw",
    )
    assert [line.target for line in lines] == ["other", "raw"]
    assert lines[0].ratio == Spread(1.5, 1.5, 1.5)
    assert lines[0].cpu == Spread(3, 1.5, 6)
    assert lines[1].ratio is None


def test_a_missing_run_leaves_out_its_ratio_only() -> None:
    """What was measured counts, though its neighbour failed."""
    lines = figures(
        [[run_of("other", 1, 3)], [run_of("other", 1, 2), run_of("raw", 1, 1)]],
        "raw",
    )
    assert lines[0].runs == 2
    assert lines[0].ratio == Spread(2, 2, 2)


def test_a_busy_generator_is_counted() -> None:
    """Above 90 % of a core the generator may have set the pace."""
    lines = figures([[run_of("raw", 1, 1, 1.0)], [run_of("raw", 1, 1, 2.0)]], "raw")
    assert lines[0].load_was_limit == 1


def test_the_first_round_is_discarded_and_failures_are_told() -> None:
    """Every target runs at every n in each round; one that fails is left out."""
    seen: list[tuple[str, int]] = []
    failures: list[str] = []

    def measure(target: Target, n: int) -> Run:
        seen.append((target.name, n))
        if target.name == "bad":
            raise LoadFailed("refused")
        return run_of(target.name, n, 1)

    targets = [Target("good", ()), Target("bad", ())]
    kept = rounds(measure, targets, [1, 16], number=2, seed=5, failed=failures.append)
    assert len(kept) == 2
    assert all({run.n for run in group} == {1, 16} for group in kept)
    assert len(seen) == 3 * 4
    assert len(failures) == 6
    # The same n is measured side by side.
    assert all(seen[i][1] == seen[i + 1][1] for i in range(0, len(seen), 2))


def test_the_order_is_drawn_from_the_seed() -> None:
    """Two runs with one seed measure in the same order."""

    def order_of(seed: int) -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []

        def measure(target: Target, n: int) -> Run:
            seen.append((target.name, n))
            return run_of(target.name, n, 1)

        targets = [Target(name, ()) for name in "abcd"]
        rounds(measure, targets, [1, 2, 3], number=2, seed=seed, failed=unexpected)
        return seen

    assert order_of(1) == order_of(1)
    assert order_of(1) != order_of(2)
