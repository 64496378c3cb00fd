"""The page's folder, as a build leaves it, and programs that stand in for Node and npm."""

from __future__ import annotations

import shutil
from pathlib import Path

from trioresume.ui import build

__all__ = ["BUILDS", "copy_sources", "make_page", "make_program"]

BUILDS = 'mkdir dist && cp src/index.html dist && echo "$@" > dist/page.js'
"""What to have ``node`` do so that something is built."""


def copy_sources(folder: Path) -> Path:
    """*folder*, with what the page is made of and nothing that was made."""
    ignored = shutil.ignore_patterns("dist", "__pycache__", ".dist-*")
    shutil.copytree(build.HERE, folder, ignore=ignored)
    return folder


def make_page(folder: Path) -> Path:
    """*folder*, with a page in it that nobody had to build."""
    copy_sources(folder)
    dist = folder / "dist"
    dist.mkdir()
    copied = ("index.html", "admin.html", "admin.css", "icon.svg", "style.css")
    for name in (*copied, "words.en.json"):
        shutil.copy(folder / "src" / name, dist)
    (dist / "page.js").write_text("document.title = 'made';\n")
    (dist / "admin.js").write_text("document.title = 'made';\n")
    (dist / "licences.txt").write_text("Nobody's.\n")
    (dist / "packages.json").write_text("{}\n")
    (dist / "sources").write_text(build.sources_digest(folder))
    return folder


def make_program(folder: Path, name: str, script: str) -> None:
    """A shell script as a command of that name."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
