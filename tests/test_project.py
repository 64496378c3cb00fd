"""The project's own promises: its metadata, its commands, its change notes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

import trioresume

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CI = (ROOT / ".ci/run").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOTE_TYPES = {entry["directory"] for entry in PROJECT["tool"]["towncrier"]["type"]}


def declared(requirements: list[str]) -> dict[str, str]:
    """The distributions that are required, with their bounds."""
    pairs = (line.split(maxsplit=1) for line in requirements)
    return {name.partition("[")[0].lower(): bound for name, bound in pairs}


def imported(folder: str) -> set[str]:
    """The distributions behind what the modules in *folder* import."""
    modules: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        if "apps" in path.parts or path.name == "hatch_build.py":
            continue  # what a peer, or the build, runs in an environment of its own
        for node in ast.walk(ast.parse(path.read_text("utf-8"), path)):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
    owners = packages_distributions()
    own = sys.stdlib_module_names | {"_typeshed", "bench", "trioresume"}
    return {
        owner_of(module, owners[root]).lower().replace("_", "-")
        for module in modules
        if (root := module.partition(".")[0]) not in own
    }


def owner_of(module: str, owners: list[str]) -> str:
    """The one of *owners* that has *module*: several may have a part of one package."""
    if len(owners) == 1:
        return owners[0]
    place = module.replace(".", "/")
    files = {f"{place}.py", f"{place}/__init__.py"}
    (owner,) = (
        name
        for name in owners
        if files & {str(file) for file in distribution(name).files or ()}
    )
    return owner


@pytest.mark.parametrize("what", ["trioresume serve", "pytest"])
def test_readme_sets_up_with_one_line(what: str) -> None:
    """There is exactly one line that makes an environment and then serves, or tests."""
    lines = [
        line
        for line in README.splitlines()
        if line.startswith("python3 -m venv ") and what in line
    ]
    assert len(lines) == 1
    assert " && " in lines[0]


def test_ci_takes_its_commands_from_the_readme() -> None:
    """What CI runs is what the README says, not a copy that may drift."""
    assert 'test_command="$(readme_command pytest)"' in CI
    assert "serve_command=\"$(readme_command 'trioresume serve')\"" in CI
    assert 'bash -c "$test_command"' in CI
    assert 'bash -c "$serve_command"' in CI


def test_ci_executes_what_the_release_checklist_says() -> None:
    """The checklist's first step is a command, and CI runs it."""
    assert "`python -m docs.release`" in (ROOT / "docs/release.md").read_text("utf-8")
    assert "        python3 -m docs.release\n" in CI


def test_ci_reads_no_input_and_stops_at_the_first_failure() -> None:
    """CI runs unattended: strict shell settings, an empty standard input."""
    lines = CI.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert "exec < /dev/null" in lines
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True, timeout=60)


def test_dependencies_are_what_the_package_imports() -> None:
    """Nothing is installed that is not used, and nothing used is left to chance."""
    requirements = PROJECT["project"]["dependencies"]
    extras = PROJECT["project"]["optional-dependencies"]
    extra = extras["html"] + extras["identity"] + extras["tracing"]
    extra += extras["cluster"]
    needed = set(declared(requirements)) | set(declared(extra))
    assert needed == imported("trioresume")


def test_bench_extra_is_what_the_benchmark_imports() -> None:
    """The same for ``bench/``."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(declared(extras["bench"])) == imported("bench")


def test_dependencies_have_a_lower_bound_and_no_upper_one() -> None:
    """A library does not stop its users from upgrading something else."""
    for bound in declared(PROJECT["project"]["dependencies"]).values():
        assert re.fullmatch(r">= [0-9.]+", bound)


def test_console_command_is_there() -> None:
    """``trioresume`` is the click group that ``python -m trioresume`` runs."""
    assert PROJECT["project"]["scripts"] == {"trioresume": "trioresume.cli:main"}


def test_types_are_shipped() -> None:
    """Type checkers of embedding programs see the annotations (PEP 561)."""
    assert (Path(trioresume.__file__).parent / "py.typed").is_file()


def test_change_notes_have_known_types() -> None:
    """A note that towncrier would silently pass over is a mistake in its name."""
    for note in (ROOT / "newsfragments").iterdir():
        if note.name == "README.md":
            continue
        kind = note.name.removesuffix(".md").split(".")[1]
        assert kind in NOTE_TYPES, note.name
        assert note.read_text("utf-8").strip(), note.name


def test_change_notes_can_be_collected() -> None:
    """towncrier understands its settings and finds every note."""
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    collected = " ".join(done.stdout.split())  # towncrier indents the lines of a note
    for note in (ROOT / "newsfragments").glob("[!R]*.md"):
        told = " ".join(note.read_text("utf-8").split())
        assert told.split(":")[0] in collected
