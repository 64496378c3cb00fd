"""tuspyserver: tus for FastAPI, on uvicorn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers.asgi import APPS, uvicorn_command
from bench.peers.cache import python_environment
from bench.peers.peer import Launch, Peer
from bench.peers.versions import VERSIONS

__all__ = ["TUSPYSERVER"]


@dataclass(frozen=True, kw_only=True)
class Tuspyserver(Peer):
    """The package's router, in an application of a few lines."""

    @property
    def version(self) -> str:
        return VERSIONS["tuspyserver"]

    def install(self, at: Path, log: Path) -> None:
        requirements = (
            f"tuspyserver=={self.version}",
            f"uvicorn[standard]=={VERSIONS['uvicorn']}",
        )
        python_environment(at, requirements, log)

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        return Launch(
            command=uvicorn_command(at, APPS, "tuspyserver_app:app", port),
            environment={"BENCH_DATA_DIR": str(data_dir)},
        )


TUSPYSERVER = Tuspyserver(
    name="tuspyserver",
    protocols=("tus",),
    hashes="none",
    syncs="the record of each upload, not its content",
    settings="local files; uvicorn with uvloop and httptools, one process, no access "
    "log; the benchmark adds a route to read uploads back, because there is none",
)
