"""``trioresume bench`` as a user runs it: the table, the JSON, the page, the pipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.e2e.command import Service
from tests.e2e.conftest import make_service, service
from trioresume.bench import from_json
from trioresume.bench.document import json_schema
from trioresume.bench.report import units

__all__ = ["make_service", "service"]


def bench(url: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "trioresume", "bench", url),
            *("-n", "3", "--total", "6", "--size", "1MiB", "--cut-every", "400KiB"),
            *map(str, options),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_table_json_and_page_say_the_same(service: Service, tmp_path: Path) -> None:
    """One real run with cuts, told in three ways; progress goes to standard error."""
    data, page = tmp_path / "run.json", tmp_path / "run.html"
    done = bench(service.root + "/files/", "--json", data, "--html", page)
    assert done.returncode == 0, done.stderr
    results = from_json(data.read_bytes())
    jsonschema.validate(json.loads(data.read_bytes()), json_schema())
    assert "All 6 uploads finished and are intact" in done.stdout
    text = page.read_text("utf-8")
    for shown in (done.stdout, text):
        assert units.rate(results.throughput) in shown
        assert units.rate(results.goodput) in shown
    assert sum(results.cuts.values()) > 0
    assert "uploading ..." in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_json_on_standard_output_is_alone_there(service: Service) -> None:
    """The table moves out of the way, for ``trioresume bench --json - | jq``."""
    done = bench(service.root + "/files/", "--json", "-", "--quiet")
    assert done.returncode == 0, done.stderr
    assert from_json(done.stdout).ok
    assert "are intact" in done.stderr
    assert "uploading" not in done.stderr


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_file_without_a_directory_is_refused_before_the_load(
    option: str, tmp_path: Path
) -> None:
    """Nobody listens there: the run would have failed with another error."""
    done = bench("http://127.0.0.1:1/files/", option, tmp_path / "none" / "file")
    assert done.returncode == 2
    assert "there is no directory" in done.stderr


def test_html_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    """Before the load, and as a usage error."""
    script = (
        "import sys; sys.modules['plotly'] = None\n"
        "from trioresume.cli import main\n"
        f"main(['bench', 'http://127.0.0.1:1/', '--html', {str(tmp_path / 'x.html')!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'trioresume[html]'" in " ".join(done.stderr.split())
