"""Building the page: npm fetches packages, and esbuild bundles them.

A build is whole or leaves nothing. It also runs during an installation from source, in an
environment without the dependencies of trioresume. So this module imports only the standard
library, and is loaded by its path. A build never takes longer than :data:`LONGEST_BUILD`,
and runs no script of the packages that it fetches.

``dist/sources`` has the digest of the sources from which the page was built. If these were
other sources, such as those of an older version, the page counts as not built.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

__all__ = [
    "HERE",
    "LONGEST_BUILD",
    "CannotBuild",
    "build",
    "is_built",
    "missing_programs",
    "sources_digest",
]

HERE = Path(__file__).parent
LONGEST_BUILD = 120.0
"""Seconds. A build takes five seconds of CPU time, and npm's fetching may never end."""

_STAMP = "sources"
_SOURCES = ("package.json", "bundle.mjs", "src")
_INSTALL = (
    "npm",
    "install",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--no-package-lock",
    "--no-update-notifier",
    "--prefer-offline",
    "--loglevel=error",
    # Without a network, npm would retry for minutes.
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
    "--fetch-timeout=15000",
)


class CannotBuild(Exception):
    """The page cannot be built. The message says why, for the person who wanted it."""


def is_built(folder: Path = HERE) -> bool:
    """Return whether the page exists and was built from the present sources."""
    try:
        stamp = (folder / "dist" / _STAMP).read_text("ascii")
    except OSError:
        return False
    return stamp == sources_digest(folder)


def missing_programs() -> list[str]:
    """Return the programs that a build needs and this machine does not have."""
    return [name for name in ("node", "npm") if shutil.which(name) is None]


def build(folder: Path = HERE, *, seconds: float = LONGEST_BUILD) -> None:
    """Make ``dist`` again, whole or not at all.

    Raises :class:`CannotBuild` where Node or npm is missing, fails, or is too slow.
    """
    if lacking := missing_programs():
        raise CannotBuild(f"{lacking[0]} is not installed")
    deadline = time.monotonic() + seconds
    try:
        with tempfile.TemporaryDirectory(prefix="trioresume-ui-") as name:
            work = Path(name)
            for source in _SOURCES:
                copy = shutil.copytree if source == "src" else shutil.copy
                copy(folder / source, work / source)
            _run(_INSTALL, work, deadline)
            _run(("node", "bundle.mjs", "dist"), work, deadline)
            (work / "dist" / _STAMP).write_text(sources_digest(folder), "ascii")
            _replace(folder / "dist", work / "dist")
    except OSError as exc:
        raise CannotBuild(f"the page cannot be written: {exc}") from exc


def sources_digest(folder: Path) -> str:
    """Return a digest of the names and contents of all sources."""
    digest = hashlib.sha256()
    for source in _SOURCES:
        path = folder / source
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _run(command: tuple[str, ...], folder: Path, deadline: float) -> None:
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.0))
    except BaseException as exc:
        _end(process)
        if isinstance(exc, subprocess.TimeoutExpired):
            raise CannotBuild(f"{command[0]} took too long") from exc
        raise
    if process.returncode != 0:
        raise CannotBuild(f"{' '.join(command[:2])} failed: {said.strip()[-1000:]}")


def _end(process: subprocess.Popen[str]) -> None:
    """Kill *process* and its children, which are in its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the process has ended meanwhile
    process.communicate()


def _replace(place: Path, new: Path) -> None:
    """Put the folder *new* at *place*. For an instant there is no folder, but never half one."""
    with tempfile.TemporaryDirectory(prefix=".dist-", dir=place.parent) as name:
        beside = Path(name)
        # First copy it to the same file system, where a rename is one step.
        shutil.copytree(new, beside / "new")
        if place.exists():
            place.rename(beside / "old")
        (beside / "new").rename(place)
