"""Packages of npm, for tests with programs that others wrote.

npm fetches them into a cache of their own the first time. Where there is no node or no
npm, or npm cannot fetch them, the tests that need them are skipped and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs
import pytest

__all__ = ["installed"]

INSTALL_SECONDS = 120


def installed(*packages: str) -> Path:
    """The folder that *packages*, each as ``name@version``, are installed in."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    cache = platformdirs.user_cache_path("trioresume-tests", ensure_exists=True)
    folder = cache / "+".join(packages).replace("/", "-")
    if not folder.exists():
        # Elsewhere first: a folder of that name is a whole one, whoever was the first of
        # the test processes that fetched it.
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as new:
            command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
            done = subprocess.run(
                [*command, "--ignore-scripts", "--prefix", new, *packages],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(f"npm could not install {packages}: {done.stderr[-500:]}")
            try:
                os.rename(new, folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder
