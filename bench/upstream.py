"""Measure what it costs to stand in front of a backend, compared with nginx.

The same backend is behind each front: it reads a request to its end, answers with how many
bytes came, and keeps nothing. Before and after each measurement it answers with the digest of
a few requests instead. No two requests have equal content: otherwise trioresume would store it
once, and read it from memory. nginx receives the whole request before it sends it on
(``proxy_request_buffering on``), as trioresume does. The fronts take turns, in a new random
order for each round. The CPU time is the kernel's figure for the front alone. The first byte
is the time from the last byte of a request to the first byte of its response.

With --small, requests of that size stream through trioresume, and nothing of them is stored.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from blake3 import blake3

from bench.options import human, machine, work_dir_option
from bench.peers import Peer
from bench.peers.nginx import NginxProxy
from bench.peers.own import trioresume
from bench.server import Server
from bench.workspace import Workspace
from trioresume.cli.options import Size

__all__ = ["Measured", "Work", "answer_requests", "backend", "measure"]

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """*requests* of *size* bytes, *at_once* of them at a time."""

    requests: int
    size: int
    at_once: int

    @property
    def name(self) -> str:
        """The name of the work, for people."""
        return f"{self.requests} x {human(self.size)}, {self.at_once} at once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One front's run of one work. Times are in seconds."""

    front: str
    work: str
    cpu: float
    """The front's CPU time, for all requests together."""
    cpu_per_gib: float
    cpu_per_request: float
    first_byte: float
    """The median."""
    seconds: float


def answer_requests(listener: socket.socket) -> None:
    """Be the backend, until the process ends: a thread for each connection."""
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_answer, args=(sock,), daemon=True).start()


def _answer(sock: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            head = b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(65536)
                if not data:
                    return
                head += data
            head, _, came = head.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            hasher = blake3(came) if b"?digest" in head.partition(b"\r\n")[0] else None
            left = length - len(came)
            while left:
                count = sock.recv_into(view[: min(left, len(buffer))])
                if not count:
                    return
                if hasher is not None:
                    hasher.update(view[:count])
                left -= count
            told = str(length) if hasher is None else hasher.hexdigest()
            body = told.encode()
            sock.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )


@contextmanager
def backend() -> Iterator[str]:
    """Run the backend as a process; yield its URL."""
    command = [sys.executable, "-m", "bench.upstream", "--be-backend"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class _Content:
    """Random content, which differs from all other content in each block."""

    _numbers = itertools.count()
    _block = os.urandom(MIB)

    def __init__(self, size: int) -> None:
        self._left = size
        self._own = bytearray(self._block)

    def __iter__(self) -> Iterator[memoryview]:
        """Yield it block by block. A block is valid until the next one."""
        while self._left:
            struct.pack_into(">Q", self._own, 0, next(self._numbers))
            size = min(self._left, len(self._own))
            self._left -= size
            yield memoryview(self._own)[:size]


def _send(
    address: tuple[str, int], work: Work, count: int, *, proves: bool = False
) -> list[float]:
    """Send *count* requests on a connection; return how long each first byte took.

    If *proves* is true, the backend answers with the digest of the content that it received. Raises
    :class:`click.ClickException` for a wrong answer.
    """
    head = b"POST /files/x%b HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n"
    times = []
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            hasher = blake3()
            sock.sendall(head % (b"?digest" if proves else b"", work.size))
            for block in _Content(work.size):
                sock.sendall(block)
                if proves:
                    hasher.update(block)
            ended = time.perf_counter()
            answer = sock.recv(65536)
            times.append(time.perf_counter() - ended)
            told = hasher.hexdigest() if proves else str(work.size)
            while not answer.endswith(b"\r\n\r\n" + told.encode()):
                more = sock.recv(65536)
                if not more:
                    raise click.ClickException(f"a wrong answer: {answer[:200]!r}")
                answer += more
    return times


def measure(server: Server, work: Work) -> Measured:
    """Do *work*; raise :class:`click.ClickException` for a wrong answer."""
    address = (server.host, server.port)
    _send(address, work, 1, proves=True)
    before = server.settle()
    began = time.perf_counter()
    each = work.requests // work.at_once
    with ThreadPoolExecutor(work.at_once) as pool:
        sent = pool.map(lambda _: _send(address, work, each), range(work.at_once))
        times = [seconds for part in sent for seconds in part]
    seconds = time.perf_counter() - began
    used = server.settle()
    _send(address, work, 1, proves=True)
    cpu = used.user + used.system - before.user - before.system
    return Measured(
        front=server.peer.name,
        work=work.name,
        cpu=cpu,
        cpu_per_gib=cpu * GIB / (len(times) * work.size),
        cpu_per_request=cpu / len(times),
        first_byte=statistics.median(times),
        seconds=seconds,
    )


def _fronts(url: str) -> list[Peer]:
    own = [
        replace(trioresume(durability, ("--upstream", url)), name=name)
        for durability, name in (
            ("disk", "trioresume"),
            ("process", "trioresume-process"),
        )
    ]
    proxy = NginxProxy(
        name="nginx-proxy",
        backend=url,
        protocols=("plain",),
        hashes="none",
        syncs="none",
        settings="proxy_request_buffering on, a worker per core, keep-alive to the backend",
    )
    return [*own, proxy]


def _show(runs: Sequence[Measured]) -> None:
    """Print each front's medians, and how they compare with nginx in the same round."""
    for work in dict.fromkeys(run.work for run in runs):
        click.echo(f"\n{work}")
        of_work = [run for run in runs if run.work == work]
        reference = [run for run in of_work if run.front == "nginx-proxy"]
        for front in dict.fromkeys(run.front for run in of_work):
            mine = [run for run in of_work if run.front == front]
            pairs = list(zip(mine, reference, strict=True))
            cpu = [a.cpu / b.cpu if b.cpu else 0.0 for a, b in pairs]
            first = [a.first_byte / b.first_byte for a, b in pairs]
            click.echo(
                f"  {front:<20} {statistics.median(r.cpu_per_gib for r in mine):6.2f} CPU-s/GiB"
                f" {statistics.median(r.cpu_per_request for r in mine) * 1e3:7.2f} CPU-ms each,"
                f" x nginx {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f});"
                f" first byte {statistics.median(r.first_byte for r in mine) * 1e3:7.1f} ms,"
                f" x nginx {statistics.median(first):.2f} ({min(first):.2f} to {max(first):.2f})"
            )


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--bytes", "total", default="256MiB", type=Size(), show_default=True)
@click.option("--at-once", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--requests", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--small", default="10KiB", type=Size(), show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
@work_dir_option
@click.option("--be-backend", is_flag=True, hidden=True)
def main(
    rounds: int,
    total: int,
    at_once: int,
    requests: int,
    small: int,
    json_path: Path | None,
    work_dir: Path | None,
    be_backend: bool,
) -> None:
    if be_backend:
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
            click.echo(listener.getsockname()[1])
            answer_requests(listener)
    works = [Work(requests, total // requests, at_once), Work(2000, small, at_once)]
    runs: list[Measured] = []
    dice = random.Random(1)
    with closing(Workspace(work_dir)) as workspace, backend() as url:
        for round_ in range(rounds + 1):
            fronts = _fronts(url)
            dice.shuffle(fronts)
            for front in fronts:
                with (
                    workspace.data_dir() as directory,
                    Server(front, directory) as server,
                ):
                    for work in works:
                        measured = measure(server, work)
                        if round_:
                            runs.append(measured)
    _show(sorted(runs, key=lambda run: run.work))
    if json_path is not None:
        facts = {"machine": machine(work_dir), "runs": [asdict(run) for run in runs]}
        json_path.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
