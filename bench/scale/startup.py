"""``python -m bench.scale.startup``: starts with a million uploads in the directory.

It builds an empty and a full store, and starts ``trioresume serve`` on each, after an
orderly end and after ``kill -9``. It prints the time until the service listened, and the
most memory that it used until a while later. Then it times the commands ``ls``, ``verify``
and ``gc`` on each store.

The stores are as the service would have left them, but they are built in bulk: rows in one
transaction, a tail for each unfinished upload, and a chunk file for each distinct content.
All finished uploads share ``--distinct`` contents, because a million separate files would
take 4 GiB. The catalog has all the rows.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click

from bench.options import human, work_dir_option
from trioresume.store.disk_store import open_store
from trioresume.store.port.recipes import Recipe, digest_of

__all__ = ["build", "main"]

LIFETIME = 86400.0
TAIL = b"an unfinished upload's bytes"
FIELDS = b"\x90"  # msgpack: no fields
CHUNK_SIZE = 4 * 1024 * 1024
SETTLE_SECONDS = 5.0


def build(data_dir: Path, *, unfinished: int, finished: int, distinct: int) -> None:
    """Make the store in *data_dir*."""
    # With durability="process" the next start would first sync the whole system.
    open_store(data_dir).close()
    now = time.time()
    with closing(sqlite3.connect(data_dir / "catalog.sqlite3")) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        (epoch,) = connection.execute(
            "SELECT value FROM store WHERE name = 'epoch'"
        ).fetchone()
        connection.executemany(
            "INSERT INTO operations (id, state, method, target, fields, keep_incomplete,"
            " created_at, expires_at, length)"
            " VALUES (?, 'receiving', 'POST', '/files/', ?, 1, ?, ?, 1000000)",
            (
                (f"unfinished{n:012}", FIELDS, now, now + LIFETIME + n / 10)
                for n in range(unfinished)
            ),
        )
        connection.executemany(
            "INSERT INTO contents (key, chunk_size, epoch, durable_offset)"
            " VALUES (?, ?, ?, ?)",
            (
                (f"unfinished{n:012}", CHUNK_SIZE, int(epoch), len(TAIL))
                for n in range(unfinished)
            ),
        )
        recipes = list(_contents(data_dir, distinct if finished else 0))
        holds = [
            finished // distinct + (n < finished % distinct)
            for n in range(len(recipes))
        ]
        connection.executemany(
            "INSERT INTO recipes (digest, length, chunk_count, refs, body)"
            " VALUES (?, ?, 1, ?, ?)",
            (
                (recipe.digest, recipe.length, 2 * held, recipe.serialised)
                for recipe, held in zip(recipes, holds, strict=True)
            ),
        )
        connection.executemany(
            "INSERT INTO chunks (digest, length, refs) VALUES (?, ?, 1)",
            ((recipe.chunk(0), recipe.length) for recipe in recipes),
        )
        connection.executemany(
            "INSERT INTO operations (id, state, method, target, fields, keep_incomplete,"
            " created_at, expires_at, length, content_length, content_digest,"
            " response_head, response_length, response_inline)"
            " VALUES (?, 'done', 'POST', '/files/', ?, 1, ?, ?, ?, ?, ?, ?, 0, x'')",
            (
                (
                    f"finished{n:014}",
                    FIELDS,
                    now,
                    now + LIFETIME + n / 10,
                    recipes[n % distinct].length,
                    recipes[n % distinct].length,
                    recipes[n % distinct].digest,
                    b"\x92\xcc\xc9\x90",  # msgpack: 201, no fields
                )
                for n in range(finished)
            ),
        )
        connection.executemany(
            "INSERT INTO files (namespace, name, fields, modified_at, content_length,"
            " content_digest) VALUES ('', ?, ?, ?, ?, ?)",
            (
                (
                    f"{n:022}",
                    FIELDS,
                    now,
                    recipes[n % distinct].length,
                    recipes[n % distinct].digest,
                )
                for n in range(finished)
            ),
        )
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(unfinished):
        (data_dir / "tails" / f"unfinished{number:012}.0").write_bytes(TAIL)


def _contents(data_dir: Path, distinct: int) -> Iterator[Recipe]:
    for number in range(distinct):
        data = b"content %d\n" % number
        digest = digest_of(data)
        shard = data_dir / "chunks" / digest[2:3].hex()
        shard.mkdir(exist_ok=True)
        (shard / digest.hex()).write_bytes(data)
        yield Recipe.build(CHUNK_SIZE, len(data), [digest])


@dataclass(frozen=True)
class Start:
    """The figures of one start."""

    seconds: float
    resident: int
    """The most resident memory until the service had settled, in bytes."""


def start(data_dir: Path, number: int) -> Start:
    """Start the service, measure it, and end it with the signal *number*."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "trioresume", "serve", "--bind", "127.0.0.1:0"),
            *("--data-dir", str(data_dir)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    with process:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(60) or not process.stdout.readline():
                raise click.ClickException("the service did not start")
        seconds = time.perf_counter() - began
        time.sleep(SETTLE_SECONDS)
        status = Path(f"/proc/{process.pid}/status").read_text()
        (line,) = (x for x in status.splitlines() if x.startswith("VmHWM:"))
        process.send_signal(number)
    return Start(seconds, int(line.split()[1]) * 1024)


@click.command()
@click.option("--unfinished", default=100_000, show_default=True)
@click.option("--finished", default=1_000_000, show_default=True)
@click.option("--distinct", default=20_000, show_default=True)
@work_dir_option
def main(unfinished: int, finished: int, distinct: int, work_dir: Path | None) -> None:
    """Start the service on an empty and on a full directory."""
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        for sizes in ((0, 0), (unfinished, finished)):
            data_dir = Path(name) / "data"
            began = time.perf_counter()
            build(data_dir, unfinished=sizes[0], finished=sizes[1], distinct=distinct)
            built = time.perf_counter() - began
            print(
                f"{sizes[0]} unfinished, {sizes[1]} finished (built in {built:.0f} s)"
            )
            for what, end in (
                ("after an orderly end", signal.SIGTERM),
                ("after another orderly end", signal.SIGKILL),
                ("after kill -9", signal.SIGTERM),
            ):
                found = start(data_dir, end)
                print(
                    f"  {what}: listening after {found.seconds:.2f} s,"
                    f" at most {human(found.resident)}"
                )
            for command in ("ls", "verify", "gc"):
                print(f"  {command}: {_time(command, data_dir)}")
            shutil.rmtree(data_dir)


def _time(command: str, data_dir: Path) -> str:
    """Return a text with *command*'s time, its most memory and its exit code."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "trioresume", command, "--json"),
            *("--data-dir", str(data_dir)),
        ],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    return (
        f"{seconds:.1f} s, at most {human(usage.ru_maxrss * 1024)},"
        f" exit code {process.returncode}"
    )


if __name__ == "__main__":
    main()
