"""The page's scripts that need no page, by node's own test runner."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.platforms import needs

SCRIPTS = sorted(Path(__file__).parent.glob("*.test.mjs"))


@needs("node")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name.split(".")[0])
def test_script_of_the_page(script: Path) -> None:
    """Each file of tests passes, and has some."""
    done = subprocess.run(
        ["node", "--test", str(script)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    named = re.findall(r"^test\(", script.read_text("utf-8"), re.MULTILINE)
    assert f"pass {len(named)}\n" in done.stdout
