"""@tus/server with @tus/file-store, on Node."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.peers.cache import run_logged
from bench.peers.peer import Launch, Peer
from bench.peers.versions import VERSIONS

__all__ = ["TUS_SERVER"]

_SCRIPT = Path(__file__).parent / "apps" / "tus_server.mjs"


@dataclass(frozen=True, kw_only=True)
class TusServer(Peer):
    """The two packages, in a Node program of a few lines."""

    @property
    def version(self) -> str:
        return VERSIONS["@tus/server"]

    def install(self, at: Path, log: Path) -> None:
        packages = ("@tus/server", "@tus/file-store")
        run_logged(
            [
                *("npm", "install", "--prefix", str(at), "--no-package-lock"),
                *("--no-audit", "--no-fund", "--ignore-scripts"),
                *(f"{package}@{VERSIONS[package]}" for package in packages),
            ],
            log,
        )

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        # Node looks for a module's imports beside the module.
        script = at / _SCRIPT.name
        shutil.copyfile(_SCRIPT, script)
        return Launch(
            command=("node", str(script), str(data_dir), str(port)),
            environment={"NODE_ENV": "production"},
        )


TUS_SERVER = TusServer(
    name="@tus/server",
    protocols=("tus",),
    hashes="none",
    syncs="none",
    settings="file store, its default locker (in memory) and default intervals, one "
    "process as in its documentation; NODE_ENV=production; an exception of Node's web "
    "streams (ERR_INVALID_STATE) that would end the process is ignored",
    needs=("node", "npm"),
)
