"""What a release is made of: the sdist has all that the wheel needs, and both are in order."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "TRIORESUME_BUILD_UI": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_wheel_is_built_from_the_sdist_and_has_everything(tmp_path: Path) -> None:
    """Every module, the man pages, the licence, the types; and an index would take both."""
    dist = tmp_path / "dist"
    run(ROOT, "hatchling", "build", "--target", "sdist", "--directory", str(dist))
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    run(source, "hatchling", "build", "--target", "wheel", "--directory", str(dist))
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT)) for path in (ROOT / "trioresume").rglob("*.py")
    }
    assert modules - names == {"trioresume/ui/hatch_build.py"}
    assert "trioresume/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    pages = {Path(name).name for name in names if "/share/man/man1/" in name}
    assert pages == {path.name for path in (ROOT / "docs/man").iterdir()}
    run(tmp_path, "twine", "check", "--strict", str(sdist), str(wheel))
