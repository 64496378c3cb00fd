"""trioresume and nginx in front of the same backend, which receives content and forgets it.

nginx receives a whole request before it sends it on, as trioresume does. Both keep nothing
once it is answered. The backend is the bare loop, in a process of its own: its CPU time is
not the front's.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from bench.peers.nginx import NginxProxy
from bench.peers.own import Trioresume, trioresume
from bench.peers.peer import Carrier

__all__ = ["FRONTS"]

_REPOSITORY = Path(__file__).parent.parent.parent


@cache
def _backend() -> str:
    """Start the backend, once for this process; return its URL."""
    folder = tempfile.TemporaryDirectory(prefix="bench-backend-")
    atexit.register(folder.cleanup)
    process = subprocess.Popen(
        (sys.executable, "-m", "bench.rawloop", folder.name, "receive"),
        cwd=_REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    assert process.stdout is not None
    said = process.stdout.readline()
    return said.rpartition(" ")[2].strip().removesuffix("/files/")


@dataclass(frozen=True, kw_only=True)
class Front(Trioresume):
    """``trioresume serve --upstream``."""

    def arguments(self, data_dir: Path, port: int) -> tuple[str, ...]:
        return (*super().arguments(data_dir, port), "--upstream", _backend())


@dataclass(frozen=True, kw_only=True)
class NginxBuffering(NginxProxy):
    """nginx with ``proxy_request_buffering on``."""

    backend: str = ""

    def configuration(self) -> str:
        return NginxProxy.configuration(replace(self, backend=_backend()))


def _front(durability: str, name: str) -> Front:
    own = trioresume(durability)
    return Front(
        name=name,
        durability=durability,
        protocols=("plain",),
        carriers=(Carrier.PLAIN,),
        hashes=own.hashes,
        syncs=own.syncs,
        settings=f"--upstream, {own.settings}",
        serves_back=False,
    )


FRONTS = (
    _front("disk", "trioresume-upstream"),
    _front("process", "trioresume-upstream-process"),
    NginxBuffering(
        name="nginx-buffering",
        protocols=("plain",),
        hashes="none",
        syncs="none",
        settings="proxy_request_buffering on, a worker per core, keep-alive to the backend",
        serves_back=False,
    ),
)
