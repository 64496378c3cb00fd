"""Installed peers, kept between runs.

Each peer has a directory below one root: ``TRIORESUME_BENCH_CACHE``, or a directory in
the user's cache. A directory without its mark comes from an interrupted installation;
it is removed and made again. A lock file keeps two runs from installing the same peer
at the same time. The output of the installer stays in a log beside the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import platformdirs

from bench.peers.peer import Peer

__all__ = ["Cache", "InstallFailed", "python_environment", "run_logged"]

VARIABLE = "TRIORESUME_BENCH_CACHE"
TIMEOUT = 1800.0
"""Seconds for one step of an installation: rustus is compiled from source."""

_MARK = ".installed"


class InstallFailed(Exception):
    """A peer could not be installed."""


class Cache:
    """The directory of installed peers."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(
            os.environ.get(VARIABLE)
            or platformdirs.user_cache_path("trioresume") / "bench-peers"
        )

    def installed(self, peer: Peer) -> bool:
        """Return whether *peer* is here, complete and in the wanted version."""
        return not peer.installs or (self._place(peer) / _MARK).exists()

    def get(self, peer: Peer) -> Path:
        """Return the directory of *peer*, which is installed first if it is missing.

        Raises :class:`~bench.peers.peer.ToolMissing` and :class:`InstallFailed`.
        """
        place = self._place(peer)
        if not peer.installs:
            return place
        peer.require_tools()
        with self._lock(peer):
            if not self.installed(peer):
                if place.exists():
                    shutil.rmtree(place)
                place.mkdir()
                peer.install(place, place.with_name(f"{place.name}.log"))
                (place / _MARK).touch()
        return place

    def _place(self, peer: Peer) -> Path:
        return self.root / peer.key().replace("@", "").replace("/", "-")

    @contextlib.contextmanager
    def _lock(self, peer: Peer) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        place = self._place(peer)
        with place.with_name(f"{place.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run *command*, and append its output to *log*.

    Raises :class:`InstallFailed` with the end of the log when it fails or takes
    longer than :data:`TIMEOUT`.
    """
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise InstallFailed(f"{command[0]}: {exc}") from exc
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise InstallFailed(f"{command[0]} failed, see {log}:\n{tail}")


def python_environment(at: Path, requirements: Sequence[str], log: Path) -> None:
    """Make a virtual environment *at* with *requirements*, of the Python that runs this."""
    run_logged([sys.executable, "-m", "venv", str(at)], log)
    pip = [str(at / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet"]
    run_logged([*pip, "--disable-pip-version-check", *requirements], log)
