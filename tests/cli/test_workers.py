"""``--workers``: what it takes, how many ``auto`` are, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from trioresume.cli import main
from trioresume.cli.service.processors import usable_processors
from trioresume.cli.service.worker import main as worker_main
from trioresume.cli.service.workers import MOST_WORKERS, Workers

PROGRAM = Path(sys.modules[Workers.__module__].__file__ or "").with_name(
    "start_worker.py"
)


def _show(*options: str, toml: str | None = None) -> dict[str, object]:
    arguments = ["config", "show", "--json", *options]
    if toml is not None:
        Path("trioresume.toml").write_text(toml, "utf-8")
        arguments += ["--config", "trioresume.toml"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    shown: dict[str, object] = json.loads(result.stdout)["serve"]["workers"]
    return shown


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("17", 17), ("auto", "auto"), ("64", MOST_WORKERS)]
)
def test_number_of_workers_is_shown_as_it_was_given(
    text: str, value: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the command line and in the file."""
    monkeypatch.chdir(tmp_path)
    assert _show("--workers", text)["value"] == value
    file = value if isinstance(value, int) else f'"{value}"'
    assert _show(toml=f"[serve]\nworkers = {file}\n") == {
        "value": value,
        "origin": "file",
    }


def test_one_process_is_the_default() -> None:
    """Nothing changes for those who do not ask for more."""
    assert _show() == {"value": 1, "origin": "default"}


@pytest.mark.parametrize("text", ["0", "-1", "65", "1000", "two", "1.5", "", "Auto"])
def test_what_is_no_number_of_workers_is_a_usage_error(text: str) -> None:
    """The error says what is wanted."""
    result = CliRunner().invoke(main, ["serve", "--workers", text])
    assert result.exit_code == 2
    assert "neither a number from 1 to 64 nor 'auto'" in result.output


@pytest.mark.parametrize("more", [[], ["--http3"]])
def test_hypercorn_has_no_workers(more: list[str]) -> None:
    """Its own sockets and connections are not shared."""
    arguments = ["config", "check", "--workers", "2", "--front", "hypercorn", *more]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--workers needs --front own" in result.output


def test_auto_is_the_number_of_usable_processors(tmp_path: Path) -> None:
    """Of those that the affinity mask allows, at most those that a quota pays for."""
    mask = len(os.sched_getaffinity(0))
    assert usable_processors(tmp_path) == mask
    assert Workers.number(Workers().convert("auto", None, None)) <= MOST_WORKERS
    assert Workers.number(3) == 3


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        ("max 100000", None),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("5000000 100000", 50),
        ("0 0", None),
        ("garbage", None),
        ("", None),
    ],
)
def test_quota_of_a_container_counts(
    limit: str, most: int | None, tmp_path: Path
) -> None:
    """cgroup v2; a part of a processor is one."""
    (tmp_path / "cpu.max").write_text(limit)
    mask = len(os.sched_getaffinity(0))
    assert usable_processors(tmp_path) == (mask if most is None else min(mask, most))


@pytest.mark.parametrize(
    ("quota", "most"), [("-1", None), ("100000", 1), ("20000", 1), ("x", None)]
)
def test_quota_of_an_older_container_counts(
    quota: str, most: int | None, tmp_path: Path
) -> None:
    """cgroup v1: -1 is no quota."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    mask = len(os.sched_getaffinity(0))
    assert usable_processors(tmp_path) == (mask if most is None else min(mask, most))


@pytest.mark.parametrize("words", [[], ["serve"], ["x", "serve"]])
def test_worker_program_is_for_its_parent_only(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody who starts it by hand is told so."""
    assert worker_main(words) == 2
    assert "only 'trioresume serve' starts this program" in capsys.readouterr().err


def test_worker_whose_parent_is_gone_ends_before_it_imports_anything() -> None:
    """It would have the sockets and the lock while the service starts again."""
    command = [sys.executable, "-X", "importtime", str(PROGRAM), "1", "9", "serve"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "trioresume" not in done.stderr
