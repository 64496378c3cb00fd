"""The store on disk, and client and server over real sockets, without the calls of Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_store_and_sockets_work_without_what_only_linux_has() -> None:
    """What macOS and the BSDs run, as far as it can be run here: see tests/portable.py."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.portable", "-n0", "-q"),
            # These tests take the call away by themselves, and need it to be there.
            *("-k", "(disk or sockets or file) and not without_sendfile"),
            "tests/store/contract/test_content.py",
            "tests/client/test_sockets.py",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
