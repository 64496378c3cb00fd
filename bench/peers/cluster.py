"""trioresume as a node of a cluster, and tusd with its S3 store, on the same object store.

The object store is versitygw, and the catalog's database is PostgreSQL. Both are
processes of their own: their CPU time is not the servers'. Each run has a prefix, and a database,
of its own. Run with ``python -m bench.compare --peers trioresume-cluster,tusd-s3``.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench.peers.own import Trioresume, trioresume
from bench.peers.peer import Carrier, Launch, Peer
from bench.peers.tusd import TUSD, Tusd

__all__ = ["CLUSTER"]

_REPOSITORY = Path(__file__).parent.parent.parent
_runs = itertools.count()
_databases: list[subprocess.Popen[str]] = []
"""The database of the present run."""


def _start(module: str) -> subprocess.Popen[str]:
    """Start a server of the tests, which ends with this process."""
    process = subprocess.Popen(
        (sys.executable, "-m", module),
        cwd=_REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_stop, process)
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()


@cache
def _object_store() -> tuple[str, dict[str, str]]:
    """Start the object store, once; return the address of its bucket, and the credentials."""
    output = _start("tests.s3_servers").stdout
    assert output is not None
    environment: dict[str, str] = {}
    for line in output:
        exported = re.fullmatch(r"export (\w+)=(.*)\n", line)
        if exported is not None:
            environment[exported[1]] = exported[2]
        url = re.fullmatch(r"# --objects '(.*)'\n", line)
        if url is not None:
            return url[1], environment
    raise OSError("versitygw did not start; is it installed?")


def _new_database() -> str:
    """Start a database, in the place of the one before; return its URL."""
    while _databases:
        _stop(_databases.pop())
    _databases.append(_start("tests.postgres"))
    output = _databases[-1].stdout
    assert output is not None
    url = output.readline().strip()
    if not url:
        raise OSError("PostgreSQL did not start; is it installed?")
    return url


@dataclass(frozen=True, kw_only=True)
class ClusterNode(Trioresume):
    """``trioresume serve --catalog --objects``."""

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        launch = super().launch(at, data_dir, port)
        _, environment = _object_store()
        return replace(launch, environment={**launch.environment, **environment})

    def arguments(self, data_dir: Path, port: int) -> tuple[str, ...]:
        prefix = f"own-{os.getpid()}-{next(_runs)}"
        return (
            *super().arguments(data_dir, port),
            *("--catalog", _new_database()),
            *("--objects", _object_store()[0].replace("?", f"{prefix}?", 1)),
        )


@dataclass(frozen=True, kw_only=True)
class TusdS3(Tusd):
    """tusd with its S3 store, whose parts have 8 MiB, too."""

    def key(self) -> str:
        return TUSD.key()  # the same program

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        url, environment = _object_store()
        parts = urlsplit(url)
        (endpoint,) = parse_qs(parts.query)["endpoint"]
        launch = super().launch(at, data_dir, port)
        options = (
            *("-s3-bucket", parts.netloc, "-s3-endpoint", endpoint),
            *("-s3-object-prefix", f"tusd-{os.getpid()}-{next(_runs)}/"),
            *("-s3-part-size", str(8 * 1024 * 1024)),
        )
        return replace(
            launch,
            command=(*launch.command, *options),
            environment=environment,
        )


def _of(peer: Peer) -> dict[str, object]:
    return {each.name: getattr(peer, each.name) for each in fields(peer)}


_NODE = trioresume("disk")

CLUSTER: tuple[Peer, ...] = (
    ClusterNode(
        **_of(_NODE)  # type: ignore[arg-type]
        | {
            "name": "trioresume-cluster",
            "carriers": (Carrier.PLAIN,),
            "syncs": "every chunk in the object store, and the catalog in PostgreSQL",
            "settings": "--catalog, --objects, chunks of 8 MiB",
        }
    ),
    TusdS3(
        **_of(TUSD)  # type: ignore[arg-type]
        | {
            "name": "tusd-s3",
            "carriers": (Carrier.PLAIN,),
            "syncs": "every part in the object store",
            "settings": "S3 store, parts of 8 MiB, otherwise as tusd",
        }
    ),
)
"""Servers that keep content in an object store. They are measured only if they are named."""
