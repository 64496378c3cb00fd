"""An ASGI application that writes the body to a file, as a Python user would write it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers.cache import python_environment
from bench.peers.peer import Launch, Peer
from bench.peers.versions import VERSIONS

__all__ = ["APPS", "HYPERCORN_TRIO", "UVICORN", "uvicorn_command"]

APPS = Path(__file__).parent / "apps"
_BACKLOG = "4096"


def uvicorn_command(at: Path, app_dir: Path, app: str, port: int) -> tuple[str, ...]:
    """Return uvicorn's command, with the event loop and parser that its docs recommend."""
    return (
        *(str(at / "bin" / "python"), "-m", "uvicorn", "--app-dir", str(app_dir)),
        *("--host", "127.0.0.1", "--port", str(port), "--backlog", _BACKLOG),
        *("--loop", "uvloop", "--http", "httptools"),
        *("--no-access-log", "--log-level", "warning", app),
    )


@dataclass(frozen=True, kw_only=True)
class Uvicorn(Peer):
    """The file application on uvicorn."""

    @property
    def version(self) -> str:
        return VERSIONS["uvicorn"]

    def install(self, at: Path, log: Path) -> None:
        python_environment(at, (f"uvicorn[standard]=={self.version}",), log)

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        return Launch(
            command=uvicorn_command(at, APPS, "file_app:app", port),
            environment={"BENCH_DATA_DIR": str(data_dir)},
        )


@dataclass(frozen=True, kw_only=True)
class HypercornTrio(Peer):
    """The file application on hypercorn with its trio worker."""

    @property
    def version(self) -> str:
        return VERSIONS["hypercorn"]

    def install(self, at: Path, log: Path) -> None:
        requirements = (f"hypercorn=={self.version}", f"trio=={VERSIONS['trio']}")
        python_environment(at, requirements, log)

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        return Launch(
            command=(
                *(str(at / "bin" / "python"), "-m", "hypercorn"),
                *("--worker-class", "trio", "--bind", f"127.0.0.1:{port}"),
                *("--backlog", _BACKLOG, "--log-level", "warning"),
                "file_app:app",
            ),
            # hypercorn looks for the application in the working directory, and Python
            # also looks in APPS.
            environment={"BENCH_DATA_DIR": str(data_dir), "PYTHONPATH": str(APPS)},
        )


_APPLICATION = "file written in the event loop while the body arrives; one process"

HYPERCORN_TRIO = HypercornTrio(
    name="hypercorn-trio",
    protocols=("plain",),
    hashes="none",
    syncs="none",
    settings=f"{_APPLICATION}, trio worker, no access log",
)

UVICORN = Uvicorn(
    name="uvicorn",
    protocols=("plain",),
    hashes="none",
    syncs="none",
    settings=f"{_APPLICATION}, uvloop and httptools, no access log",
)
