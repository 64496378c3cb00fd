"""rustus: tus in Rust, on actix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers.cache import run_logged
from bench.peers.peer import Launch, Peer
from bench.peers.versions import VERSIONS

__all__ = ["RUSTUS"]

REQUEST_LIMIT = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Rustus(Peer):
    """rustus, built by cargo with the dependencies that its authors locked.

    The build takes minutes.
    """

    @property
    def version(self) -> str:
        return VERSIONS["rustus"]

    def install(self, at: Path, log: Path) -> None:
        run_logged(
            [
                *("cargo", "install", "rustus", "--version", self.version),
                *("--locked", "--root", str(at)),
            ],
            log,
            # Keep compiled files here, so that an interrupted installation can go on.
            environment={"CARGO_TARGET_DIR": str(at.parent / "build" / "cargo")},
        )

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        return Launch(
            command=(
                *(str(at / "bin" / "rustus"), "--host", "127.0.0.1"),
                *("--port", str(port), "--url", "/files"),
                *("--data-dir", str(data_dir), "--info-dir", str(data_dir)),
                # The default of 256 KiB would mean four thousand requests per GiB.
                *("--max-body-size", str(REQUEST_LIMIT), "--log-level", "ERROR"),
            )
        )


RUSTUS = Rustus(
    name="rustus",
    protocols=("tus",),
    hashes="none",
    syncs="none",
    settings="file storage and file info storage, all cores; request bodies of at "
    "most 8 MiB, because it holds each in memory; only errors are logged",
    needs=("cargo",),
    request_limit=REQUEST_LIMIT,
)
