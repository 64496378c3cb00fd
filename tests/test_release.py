"""What a release is made of: the sdist has all that the wheel needs, and both are in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
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
    assert modules - names == {"trioresume/hatch_build.py"}
    assert "trioresume/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    pages = {Path(name).name for name in names if "/share/man/man1/" in name}
    assert pages == {path.name for path in (ROOT / "docs/man").iterdir()}
    run(tmp_path, "twine", "check", "--strict", str(sdist), str(wheel))


def description(folder: Path, tmp_path: Path) -> str:
    """What an index shows of a wheel of *folder*."""
    run(folder, "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        shown = message_from_bytes(archive.read(name))
    assert shown["Description-Content-Type"] == "text/markdown"
    content = shown.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the project as a wheel needs."""
    root = tmp_path / "checkout"
    (root / "trioresume/ui").mkdir(parents=True)
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "trioresume/__init__.py",
        "trioresume/hatch_build.py",
        "trioresume/ui/build.py",
    ):
        shutil.copy(ROOT / name, root / name)
    return root


def test_index_shows_the_readme_as_it_is_without_an_address(
    checkout: Path, tmp_path: Path
) -> None:
    """The project has no public address: a made-up one would be worse than none."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "urls" not in settings["project"]
    assert description(checkout, tmp_path) == (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("files", [None, "src/branch/main"])
def test_links_of_the_readme_lead_somewhere_from_an_index(
    files: str | None, checkout: Path, tmp_path: Path
) -> None:
    """With an address, every link is absolute, and every other character as before."""
    settings = checkout / "pyproject.toml"
    text = settings.read_text("utf-8")
    text = text.replace(
        "[project.scripts]",
        '[project.urls]\nSource = "https://forge.example/our/project"\n\n[project.scripts]',
    )
    if files is not None:
        hook = "[tool.hatch.metadata.hooks.custom]\n"
        text = text.replace(hook, f'{hook}files = "{files}"\n')
    settings.write_text(text)
    readme = checkout / "README.md"
    code = "\n```python\nhandlers[0](path)\n```\n[above](#limits) [mail](mailto:a@b.example)\n"
    with readme.open("a") as file:
        file.write(code)
    shown = description(checkout, tmp_path)
    place = f"https://forge.example/our/project/{files or 'blob/HEAD'}/"
    links = re.findall(r"\]\((?!#)([^)\s]+)\)", shown.removesuffix(code))
    assert all(link.startswith("https://") for link in links)
    below = {link.removeprefix(place) for link in links if link.startswith(place)}
    assert len(below) > 20
    assert all((ROOT / name.partition("#")[0]).exists() for name in below)
    assert shown.endswith(code)
    assert shown.replace(place, "") == readme.read_text("utf-8")
