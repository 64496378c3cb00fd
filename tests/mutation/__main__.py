"""Change one place of a module at a time, and see whether a test notices::

    python -m tests.mutation --sample 100 --seed 1

Cosmic Ray has to be installed (``pip install '.[mutation]'``). Nothing is changed
in the project's own files: each process works in a copy.
"""

from __future__ import annotations

import argparse
import difflib
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.modules import (
    ROOT,
    all_modules,
    first_tests,
    further_tests,
    path_of,
)
from tests.mutation.mutants import Mutant, Place, apply, places

_MEMORY = 4 * 1024**3
"""Bytes of address space a run of tests may take: a mutant may be greedy."""
_OUT_OF_TIME = "OUT OF TIME"
# How pytest-timeout shows where a test hangs, before it ends the process.
_HUNG = re.compile(r"^\++ Timeout \++$", re.MULTILINE)
_HANGING_TEST = re.compile(r'File ".*/(tests/[\w/]+\.py)", line \d+, in (test_\w+)')
_COPIED = ("trioresume", "tests", "docs", "bench", "newsfragments", ".ci")
_COPIED_FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutant."""

    module: str
    mutant: Mutant
    diff: str
    noticed_by: str | None
    """The test that failed or hung; None for a survivor."""
    seconds: float

    @property
    def is_noticed(self) -> bool:
        """Whether a test noticed it. Tests that take too long together prove nothing.

        On a busy machine they do so without any change.
        """
        return self.noticed_by not in (None, _OUT_OF_TIME)


class Tree:
    """A copy of the project in which modules may be broken."""

    def __init__(self, root: Path) -> None:
        self._root = root
        ignored = shutil.ignore_patterns("__pycache__", "node_modules", "_build")
        for name in _COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=ignored)
        for name in _COPIED_FILES:
            shutil.copy(ROOT / name, root / name)

    def judge(self, place: Place, mutant: Mutant, seconds: float) -> Outcome | None:
        """Run the tests with *mutant*; None if it is none."""
        path = self._root / path_of(place.module)
        source = path.read_text("utf-8")
        mutated = apply(source, mutant)
        if mutated is None:
            return None
        begun = time.monotonic()
        path.write_text(mutated, "utf-8")
        try:
            noticed = self.test(place.module, seconds)
        finally:
            path.write_text(source, "utf-8")
        return Outcome(
            place.module,
            mutant,
            _diff(path_of(place.module), source, mutated),
            noticed,
            time.monotonic() - begun,
        )

    def test(self, module: str, seconds: float) -> str | None:
        """Run the tests of *module*; which one failed."""
        until = time.monotonic() + seconds
        first = first_tests(module)
        noticed = self._pytest(first, until) if first else None
        if noticed is not None:
            return noticed
        # Among so many tests one may fail by chance: it has to fail twice.
        chance: list[str] = []
        while True:
            skipped = [f"--deselect={test}" for test in chance]
            noticed = self._pytest([*further_tests(module), *skipped], until)
            how, _, test = (noticed or "").partition(" ")
            if how not in ("FAILED", "HUNG") or not test or len(chance) > 3:
                return noticed
            again = self._pytest([test], until)
            if again is not None:
                return again if again == _OUT_OF_TIME else noticed
            chance.append(test)

    def _pytest(self, paths: list[str], until: float) -> str | None:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "--no-header"]
        command += ["-p", "no:cacheprovider", "-m", "not alone", "--tb=no", "-rfE"]
        # A test that hangs ends all of them: it may hold a lock that no signal reaches.
        command += ["--timeout=120", "--timeout-method=thread", *paths]
        # Tests that draw their cases draw the same ones each time: see the second look.
        environment = {
            **os.environ,
            "PYTHONPATH": str(self._root),
            "TRIORESUME_SEED": "1",
        }
        with subprocess.Popen(
            command,
            cwd=self._root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_bound_memory,  # noqa: PLW1509 - it calls nothing that takes a lock
        ) as process:
            try:
                output, _ = process.communicate(
                    timeout=max(1.0, until - time.monotonic())
                )
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return _OUT_OF_TIME
        if process.returncode == 0:
            return None
        lines = output.splitlines()
        if _HUNG.search(output):
            found = _HANGING_TEST.search(output)
            return f"HUNG {found[1]}::{found[2]}" if found else "HUNG"
        failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
        return failed[0].split(" - ")[0] if failed else f"exit {process.returncode}"


def _bound_memory() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _diff(name: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), name, name, lineterm="", n=2
    )
    return "\n".join(lines)


def _sample(options: argparse.Namespace) -> list[tuple[Place, Mutant]]:
    """One change at each of as many places as are asked for."""
    chosen = random.Random(options.seed)
    found = [
        place
        for module in options.module or all_modules()
        for place in places(module, (ROOT / path_of(module)).read_text("utf-8"))
    ]
    print(f"{len(found)} places can be changed")
    if options.line:
        picked = [place for place in found if place.line == options.line]
        return [(place, mutant) for place in picked for mutant in place.mutants]
    # Some changes turn out to be none: a few more are drawn.
    picked = chosen.sample(found, min(len(found), options.sample + options.sample // 5))
    return [(place, chosen.choice(place.mutants)) for place in picked]


class _Run:
    """Judges a sample in several trees at once."""

    def __init__(self, trees: list[Tree], limit: int, seconds: float) -> None:
        self._trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for tree in trees:
            self._trees.put(tree)
        self._lock = threading.Lock()
        self._limit = limit
        self._seconds = seconds
        self.outcomes: list[Outcome] = []
        self._begun = 0

    def judge(self, chosen: tuple[Place, Mutant]) -> None:
        with self._lock:
            if self._begun >= self._limit:
                return
            self._begun += 1
        tree = self._trees.get()
        try:
            outcome = tree.judge(*chosen, self._seconds)
        finally:
            self._trees.put(tree)
        with self._lock:
            if outcome is None:
                self._begun -= 1
                return
            self.outcomes.append(outcome)
            mutant = outcome.mutant
            print(
                f"{len(self.outcomes):4}  {outcome.seconds:5.1f} s  "
                f"{path_of(outcome.module)}:{mutant.line}  {mutant.operator}  "
                f"{outcome.noticed_by or 'SURVIVED'}",
                flush=True,
            )


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description="Change one place of a module at a time; see whether a test notices.",
    )
    add = parser.add_argument
    add("--sample", type=int, default=100, help="how many mutants [100]")
    add("--seed", type=int, default=1, help="which ones [1]")
    add("--module", action="append", help="only this module, e.g. store/disk/tails")
    add("--line", type=int, help="every change that begins in this line")
    add("--jobs", type=int, default=2, help="processes at a time [2]")
    add("--seconds", type=float, default=900, help="limit for one mutant [900]")
    add("--no-baseline", action="store_true", help="trust that the tests pass")
    options = parser.parse_args()
    chosen = _sample(options)
    with tempfile.TemporaryDirectory(prefix="trioresume-mutants-") as scratch:
        trees = [Tree(Path(scratch) / str(number)) for number in range(options.jobs)]
        if not options.no_baseline:
            folders = {place.module.split("/")[0] for place, _ in chosen}
            for folder in sorted(folders):
                failed = trees[0].test(f"{folder}/", options.seconds)
                if failed is not None:
                    sys.exit(f"without any change {failed}")
        limit = len(chosen) if options.line else options.sample
        run = _Run(trees, limit, options.seconds)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(run.judge, chosen))
    survivors = [o for o in run.outcomes if not o.is_noticed]
    for outcome in sorted(survivors, key=lambda o: (o.module, o.mutant.line)):
        print(f"\n{outcome.diff}")
    total = len(run.outcomes)
    noticed = total - len(survivors)
    print(f"\n{noticed} of {total} noticed ({noticed / max(1, total):.0%})")


if __name__ == "__main__":
    _main()
