"""The table of modules and tests is true, and changes are what they are said to be."""

from __future__ import annotations

import pytest

from tests.mutation.modules import (
    MORE,
    ROOT,
    all_modules,
    first_tests,
    further_tests,
    path_of,
)


def test_every_module_and_every_file_of_tests_is_there() -> None:
    """A module that was moved, or renamed, would not be looked at any more."""
    modules = all_modules()
    assert [m for m in modules if not (ROOT / path_of(m)).is_file()] == []
    assert set(MORE) <= set(modules)
    paths = {p for m in modules for p in (*first_tests(m), *further_tests(m))}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_module_has_tests_that_come_first() -> None:
    """Or most mutants of it would take minutes."""
    lacking = [module for module in all_modules() if not first_tests(module)]
    assert lacking == []


SOURCE = '''"""A docstring."""

LIMIT = 17
Alias = int | str


def f(a: int | None, *, b: bool = False) -> int | str:
    """Does this + that."""
    first(a)
    second(a)
    self.field = 1
    other.field = 2
    logger.info("said %d", 1 + 1)
    assert a == 3
    if a > 1 and b:
        return 4
    raise ValueError
'''


def test_changes_are_made_where_they_can_be_faults() -> None:
    """Not in annotations, docstrings, messages, assertions, or what tunes."""
    mutants = pytest.importorskip("tests.mutation.mutants", exc_type=ImportError)
    found = mutants.places("store/disk/tails", SOURCE)
    lines = {place.line for place in found}
    assert lines == {7, 9, 10, 11, 12, 15, 16, 17}
    changed = {
        mutants.apply(SOURCE, mutant) for place in found for mutant in place.mutants
    }
    for before, after in (
        ("    first(a)\n    second(a)\n", "    second(a)\n    first(a)\n"),
        ("    first(a)\n", "    pass\n"),
        ("    raise ValueError\n", "    pass\n"),
        ("a > 1", "a >= 1"),
        (" and ", " or "),
        ("b: bool = False", "b: bool = True"),
        ("return 4", "return 5"),
    ):
        assert SOURCE.replace(before, after, 1) in changed
    # Which of two fields is set first means nothing.
    first, second = "    self.field = 1\n", "    other.field = 2\n"
    assert SOURCE.replace(first + second, second + first) not in changed


class ScriptedTree:
    """Gives the results of runs of tests one after the other; notes what was run."""

    def __init__(self, *results: str | None) -> None:
        self.results = list(results)
        self.runs: list[list[str]] = []

    def __call__(self, paths: list[str], until: float) -> str | None:
        self.runs.append(list(paths))
        return self.results.pop(0)


FAILS, HANGS = "FAILED tests/a.py::test_a", "HUNG tests/a.py::test_a"
OUT_OF_TIME = "OUT OF TIME"


@pytest.mark.parametrize(
    ("results", "judged", "noticed"),
    [
        ([None, None], None, False),
        ([FAILS], FAILS, True),
        # Among all the tests one may fail or hang by chance: it is run once more.
        ([None, FAILS, FAILS], FAILS, True),
        ([None, HANGS, HANGS], HANGS, True),
        ([None, FAILS, None, None], None, False),
        ([None, HANGS, None, None], None, False),
        # Tests that take too long together prove nothing.
        ([None, OUT_OF_TIME], OUT_OF_TIME, False),
        ([None, FAILS, OUT_OF_TIME], OUT_OF_TIME, False),
    ],
)
def test_mutant_is_noticed_only_if_a_test_fails_for_it(
    results: list[str | None],
    judged: str | None,
    noticed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy machine must not make the figure better."""
    runner = pytest.importorskip("tests.mutation.__main__", exc_type=ImportError)
    tree = object.__new__(runner.Tree)
    script = ScriptedTree(*results)
    monkeypatch.setattr(tree, "_pytest", script)
    assert tree.test("store/disk/tails", 900.0) == judged
    assert script.results == []
    outcome = runner.Outcome("store/disk/tails", None, "", judged, 1.0)
    assert outcome.is_noticed is noticed
