"""Peers that tests make up."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bench.peers.peer import Launch, Peer

FAULTY = Path(__file__).parent / "faulty_server.py"


@dataclass(frozen=True, kw_only=True)
class Fake(Peer):
    """A command that nobody needs to install."""

    name: str = "fake"
    protocols: tuple[str, ...] = ("tus", "plain")
    hashes: str = "none"
    syncs: str = "none"
    settings: str = "none"
    command: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return "1"

    @property
    def installs(self) -> bool:
        return False

    def install(self, at: Path, log: Path) -> None:
        raise AssertionError("nothing to install")

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        return Launch(command=(*self.command, str(port)))


def faulty(fault: str) -> Fake:
    """A small tus and PUT server with a built-in *fault*; none if it is empty."""
    return Fake(name=f"faulty-{fault}", command=(sys.executable, str(FAULTY), fault))
