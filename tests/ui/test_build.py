"""Building the page: with what is there, within a time, or with a sentence that says why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.ui.pages import BUILDS, copy_sources, make_page, make_program
from trioresume import CallerError
from trioresume.ui import __main__ as command
from trioresume.ui.build import HERE, CannotBuild, build, is_built
from trioresume.ui.page import load_page

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sources, not built."""
    return copy_sources(tmp_path / "ui")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that are found before all others."""
    place = tmp_path / "programs"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return place


def test_build_leaves_a_page_of_these_sources(folder: Path, programs: Path) -> None:
    """And of no others: what was made before a change counts as nothing."""
    make_program(programs, "npm", 'test "$1 $2" = "install --ignore-scripts"')
    make_program(programs, "node", BUILDS)
    assert not is_built(folder)
    build(folder)
    assert is_built(folder)
    assert (folder / "dist/page.js").read_text() == "bundle.mjs dist\n"
    source = folder / "src/main.js"
    source.write_text(source.read_text() + "\n")
    assert not is_built(folder)
    build(folder)
    assert is_built(folder)
    assert not list(folder.glob(".dist-*"))


@pytest.mark.parametrize("missing", ["node", "npm"])
def test_missing_program_is_named(
    missing: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is tried."""
    only = tmp_path / "only"
    make_program(only, "npm" if missing == "node" else "node", "exit 0")
    monkeypatch.setenv("PATH", str(only))
    with pytest.raises(CannotBuild, match=f"{missing} is not installed"):
        build(folder)


@pytest.mark.parametrize("failing", ["npm", "node"])
def test_failure_is_told_and_leaves_what_was_there(
    failing: str, tmp_path: Path, programs: Path
) -> None:
    """Half a page never replaces a whole one."""
    folder = make_page(tmp_path / "made")
    make_program(programs, "npm", "exit 0")
    make_program(programs, "node", BUILDS)
    make_program(programs, failing, "mkdir -p dist; echo no such thing >&2; exit 3")
    with pytest.raises(CannotBuild, match=f"{failing}.* failed: no such thing"):
        build(folder)
    assert is_built(folder)
    assert (folder / "dist/page.js").read_text().startswith("document.title")


def test_build_that_hangs_is_ended(folder: Path, programs: Path) -> None:
    """With all that it started, some of which would hold its output open."""
    make_program(programs, "npm", "sleep 300 & sleep 300")
    start = time.monotonic()
    with pytest.raises(CannotBuild, match="npm took too long"):
        build(folder, seconds=0.2)
    assert time.monotonic() - start < 60
    assert not (folder / "dist").exists()


def test_command_says_what_is_missing(
    folder: Path,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 and a sentence, 0 and how to go on, 2 for anything else."""
    make_program(programs, "npm", "echo no network; exit 1")
    make_program(programs, "node", BUILDS)
    monkeypatch.setattr(command, "is_built", lambda: is_built(folder))
    monkeypatch.setattr(command, "build", lambda: build(folder))
    assert command.main(["build"]) == 1
    assert "no network" in capsys.readouterr().err
    make_program(programs, "npm", "exit 0")
    assert command.main(["build"]) == 0
    assert "trioresume serve --ui" in capsys.readouterr().out
    assert command.main([]) == 2


def test_page_that_was_not_built_is_an_error_with_a_way_out(
    folder: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for it learns what it takes, and what of that is missing."""
    make_program(programs, "npm", "exit 1")
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(CallerError, match=r"python -m trioresume\.ui build.*Node 18 "):
        load_page("../files/", folder=folder)
    with pytest.raises(CallerError, match=r"; node cannot be found here$"):
        load_page("../files/", folder=folder)


def test_page_knows_where_to_upload_to(tmp_path: Path) -> None:
    """Whatever the path holds, it stays one attribute."""
    folder = make_page(tmp_path / "made")
    page = load_page("""../a"'><script>/""", folder=folder)[""].content.decode()
    assert 'data-endpoint="../a&quot;&#x27;&gt;&lt;script&gt;/"' in page
    assert "{{" not in page


# The wheel.


def wheel(root: Path, **environment: str) -> tuple[set[str], str]:
    """The names in the wheel that hatchling makes of *root*, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "made"],
        cwd=root,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (root / "made").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist()), done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a wheel is made of, and no page."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root)
    package = root / "trioresume"
    package.mkdir()
    for name in ("__init__.py", "errors.py", "hatch_build.py"):
        shutil.copy(ROOT / "trioresume" / name, package)
    copy_sources(package / "ui")
    return root


def test_wheel_has_the_page_where_node_is(checkout: Path, programs: Path) -> None:
    """And its sources, so that it can be built later; but not the hook itself."""
    make_program(programs, "npm", "exit 0")
    make_program(programs, "node", BUILDS)
    names, _ = wheel(checkout)
    assert "trioresume/ui/dist/page.js" in names
    assert "trioresume/ui/src/main.js" in names
    assert not [name for name in names if "hatch" in name]


def test_wheel_is_made_without_the_page_where_node_fails(
    checkout: Path, programs: Path
) -> None:
    """The install goes on; it says what is left out, and why."""
    make_program(programs, "npm", "echo no network; exit 1")
    names, said = wheel(checkout)
    assert not [name for name in names if "/dist/" in name]
    assert "trioresume/ui/bundle.mjs" in names
    assert "The page of --ui is left out" in said
    assert "no network" in said


def test_wheel_is_made_without_the_page_where_that_was_asked(checkout: Path) -> None:
    """Whoever installs from source a hundred times a day need not wait."""
    names, said = wheel(checkout, TRIORESUME_BUILD_UI="0")
    assert not [name for name in names if "/dist/" in name]
    assert "TRIORESUME_BUILD_UI" in said


# What npm really gives.


def test_everything_in_the_bundle_is_pinned() -> None:
    """Not only what is asked for by name: a page made tomorrow is the same page."""
    wanted = json.loads((HERE / "package.json").read_text("utf-8"))
    pinned = {**wanted["dependencies"], **wanted["overrides"]}
    assert all(version[0].isdigit() for version in pinned.values())
    if not is_built():
        pytest.skip("the page is not built: node or npm is missing")
    used = json.loads((HERE / "dist/packages.json").read_text("utf-8"))
    assert used == {name: pinned[name] for name in used}
    assert set(wanted["overrides"]) <= set(used), "pinned, and not used"
    licences = (HERE / "dist/licences.txt").read_text("utf-8")
    for name, version in used.items():
        assert f"{name} {version} (" in licences
