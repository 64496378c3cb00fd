"""``python -m bench.scale.sizes``: the cost of requests for an upload of a tebibyte.

For each size it writes the chunks of ``--repeat`` uploads into the catalog, by the code
that seals chunks in the service, but the chunks have no bytes. The measured costs depend on
the catalog's rows about the chunks, not on their bytes. Only the end of each upload is
real: a sparse tail that lacks 64 KiB to the declared length.

Then it starts ``trioresume serve`` on this directory. A plain HTTP client asks for the
offset, appends 1,000 bytes, sends the rest and completes the upload, reads the last bytes
of the file, and deletes it. ``trioresume gc`` releases the rest. The figures are medians in
milliseconds, with the highest in parentheses: the server's CPU time, and the time that the
client waited, which includes the client's own work. The figures of a commit come from this
process.
"""

from __future__ import annotations

import http.client
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click

from bench.options import durability_option, human, work_dir_option
from bench.peers.own import trioresume
from bench.server import Server
from trioresume import Fields
from trioresume.cli.options import Size
from trioresume.store.catalog.batch import FileChanges, Ledger
from trioresume.store.disk_store import open_store
from trioresume.store.port import (
    CreateOperation,
    OperationId,
    OperationRecord,
    SealChunk,
    request_key,
)
from trioresume.store.port.recipes import digest_of

__all__ = ["build", "main"]

CHUNK_SIZE = 4 * 1024 * 1024
REST = 64 * 1024
APPEND = 1000
APPENDS = 20
BATCH = 64
"""Chunks that one commit names, as with a fast upload."""
SIZES = (1 << 20, 1 << 30, 64 << 30, 1 << 40)


class _NoFiles:
    """A publisher for chunks that have no bytes."""

    def is_ready(self, seal: SealChunk) -> bool:
        return True

    def publish(self, seal: SealChunk, *, known: bool) -> bool:
        return True


def operation_id(size: int, number: int) -> OperationId:
    """Return a token in the form of the service's, but a known one."""
    return OperationId(f"{size:018x}{number:04}")


def build(data_dir: Path, size: int, repeat: int, commits: Times) -> None:
    """Write the chunks of *repeat* uploads of *size* bytes into the catalog.

    *commits* gets the times of the commits, of :data:`BATCH` chunks each.
    """
    chunks = (size - 1) // CHUNK_SIZE
    now = time.time()
    with closing(open_store(data_dir)) as store:
        for number in range(repeat):
            record = OperationRecord(
                id=operation_id(size, number),
                method="PUT",
                target=f"/files/{size}-{number}",
                fields=Fields(),
                created_at=now,
                expires_at=now + 86400,
                length=size,
                reserved=size,
            )
            assert store.apply([[CreateOperation(record)]]) == [None]
    with closing(
        sqlite3.connect(data_dir / "catalog.sqlite3", isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        (epoch,) = connection.execute(
            "SELECT value FROM store WHERE name = 'epoch'"
        ).fetchone()
        ledger = Ledger(connection, _NoFiles(), chunk_size=CHUNK_SIZE, epoch=int(epoch))
        for number in range(repeat):
            key = request_key(operation_id(size, number))
            for first in range(0, chunks, BATCH):
                seals = [
                    SealChunk(
                        key, index, digest_of(b"%d %d" % (number, index)), CHUNK_SIZE
                    )
                    for index in range(first, min(chunks, first + BATCH))
                ]
                began, busy = time.perf_counter(), time.process_time()
                connection.execute("BEGIN IMMEDIATE")
                assert ledger.submit(seals, FileChanges()) is None
                connection.execute("COMMIT")
                commits.wall.append(time.perf_counter() - began)
                commits.cpu.append(time.process_time() - busy)
            with open(data_dir / "tails" / f"{key}.{chunks}", "wb") as tail:
                tail.truncate(size - chunks * CHUNK_SIZE - REST)
            connection.execute(
                "UPDATE contents SET durable_offset = ? WHERE key = ?",
                (size - REST, key),
            )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@dataclass
class Times:
    """The times of one kind of request, in seconds."""

    what: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.what}: CPU {_spread(self.cpu)}, waited {_spread(self.wall)}"


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{statistics.median(seconds) * 1000:.1f} ({max(seconds) * 1000:.1f})"


class _Client:
    """A client with one connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        place = urlsplit(server.url)
        self._connection = http.client.HTTPConnection(
            place.hostname or "", place.port, timeout=120
        )
        self._connection.connect()

    def ask(
        self,
        times: Times,
        status: int,
        method: str,
        target: str,
        body: bytes | None = None,
        **fields: str,
    ) -> http.client.HTTPResponse:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        busy, began = self._server.busy(), time.perf_counter()
        self._connection.request(method, target, body, headers)
        response = self._connection.getresponse()
        text = response.read()
        times.wall.append(time.perf_counter() - began)
        times.cpu.append(self._server.busy() - busy)
        if response.status != status:
            raise click.ClickException(f"{method} {target}: {response.status} {text!r}")
        return response

    def close(self) -> None:
        self._connection.close()


@dataclass
class Visit:
    """The requests to one server, and their times."""

    size: int
    head: Times = field(default_factory=partial(Times, "HEAD"))
    append: Times = field(default_factory=partial(Times, "PATCH of 1,000 bytes"))
    complete: Times = field(default_factory=partial(Times, "completing PATCH"))
    read: Times = field(default_factory=partial(Times, "GET of the last bytes"))
    delete: Times = field(default_factory=partial(Times, "DELETE"))
    grown: int = 0
    """The bytes by which the server's peak memory grew."""

    def run(self, server: Server, repeat: int) -> None:
        before = server.use().peak
        for number in range(repeat):
            with closing(_Client(server)) as client:
                self._visit(client, number)
        self.grown = server.use().peak - before

    def _visit(self, client: _Client, number: int) -> None:
        size = self.size
        content = f"/operations/{operation_id(size, number)}/content"
        offset = size - REST
        for _ in range(APPENDS):
            found = client.ask(self.head, 200, "HEAD", content)
            assert found.headers["upload-offset"] == str(offset)
            self._patch(client, self.append, 204, content, offset, offset + APPEND)
            offset += APPEND
        self._patch(client, self.complete, 201, content, offset, size)
        file = f"/files/{size}-{number}"
        client.ask(self.read, 206, "GET", file, range="bytes=-1000")
        client.ask(self.delete, 204, "DELETE", file)
        client.ask(self.delete, 204, "DELETE", content)

    def _patch(
        self,
        client: _Client,
        times: Times,
        status: int,
        content: str,
        first: int,
        end: int,
    ) -> None:
        said = f"Content-Range: bytes {first}-{end - 1}/{self.size}\r\n\r\n"
        body = said.encode() + bytes(end - first)
        client.ask(
            times, status, "PATCH", content, body, content_type="message/byterange"
        )

    @property
    def times(self) -> Sequence[Times]:
        return (self.head, self.append, self.complete, self.read, self.delete)


@click.command(help=__doc__)
@click.option(
    "--size",
    "sizes",
    type=Size(),
    multiple=True,
    default=SIZES,
    help="Upload size; may be repeated. [default: 1MiB, 1GiB, 64GiB, 1TiB]",
)
@click.option("--repeat", default=5, show_default=True, help="Uploads of each size.")
@durability_option
@work_dir_option
def main(
    sizes: Sequence[int], repeat: int, durability: str, work_dir: Path | None
) -> None:
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        for number, size in enumerate(sizes):
            data_dir = Path(name) / str(number)
            commits = Times(f"commit of {BATCH} chunks")
            build(data_dir, size, repeat, commits)
            visit = Visit(size)
            with Server(trioresume(durability), data_dir, start_timeout=60) as server:
                visit.run(server, repeat)
            click.echo(f"{human(size)}, {(size - 1) // CHUNK_SIZE} chunks sealed")
            for times in (commits, *visit.times):
                click.echo(f"  {times} ms")
            click.echo(f"  peak memory grew by {human(visit.grown)}")
            click.echo(f"  gc: {_timed(partial(_collect, data_dir)):.1f} s")


def _timed(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _collect(data_dir: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "trioresume", "gc", "--data-dir", str(data_dir)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


if __name__ == "__main__":
    main()
