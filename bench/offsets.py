"""Measure how fast servers answer with an upload's offset, alone and beside a load.

A client that was cut asks for the offset before it continues. When a network comes back,
thousands of clients ask at once. Each server first gets unfinished uploads. In the first
part, some connections ask for offsets one after the other, as fast as they can (by HEAD in
tus's form, which all these servers speak). In the second part, they ask more slowly while
other uploads stream in. Every offset is checked: a wrong one fails the run.

Servers take turns, in a new random order for each round. Linux only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from bench.options import machine, work_dir_option
from bench.peers import find
from bench.server import Server
from bench.statistics import Spread, ratios
from bench.workspace import Workspace
from trioresume.bench import Latency
from trioresume.bench.usage import raise_file_limit

__all__ = ["Answers", "Measured", "ask", "begin_uploads", "measure"]

LENGTH = 2 << 20
"""The declared length of each unfinished upload, in bytes."""
STORED = 64 << 10
"""The bytes of each unfinished upload that are sent."""
STREAM_SIZE = "64MiB"
STREAM_LEAD = 1.5
"""Seconds that the load generator needs to start."""
MICRO = 1e6
TUS = {"Tus-Resumable": "1.0.0"}


class WrongAnswer(Exception):
    """A server's answer was not the expected one."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The seconds that each answer took, and the *seconds* for which they were asked."""

    seconds: float
    latencies: Sequence[float]

    @property
    def rate(self) -> float:
        """The number of answers per second."""
        return len(self.latencies) / self.seconds

    @property
    def latency(self) -> Latency:
        """How long the answers took. Raises :class:`WrongAnswer` if there were none."""
        found = Latency.of(self.latencies)
        if found is None:
            raise WrongAnswer("no offset was answered in time")
        return found


@dataclass(frozen=True, slots=True)
class Measured:
    """One server in one round. Times are in seconds; *cpu* is the server's, per answer."""

    rate: float
    cpu: float
    alone_p50: float
    alone_p99: float
    asker_busy: float
    """The share of a core that asking used. Near 1, the asker was the limit."""
    loaded_p50: float
    loaded_p99: float
    loaded_max: float
    loaded_count: int


def begin_uploads(server: Server, count: int) -> list[str]:
    """Begin *count* uploads, each with :data:`STORED` bytes, and return their paths."""
    paths = []
    content = random.Random(7).randbytes(STORED)
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    with contextlib.closing(connection):
        for _ in range(count):
            fields = {**TUS, "Upload-Length": str(LENGTH), "Content-Length": "0"}
            location = _request(connection, "POST", server.path, fields, b"", 201)
            path = urlsplit(location).path
            fields = {
                **TUS,
                "Upload-Offset": "0",
                "Content-Type": "application/offset+octet-stream",
            }
            _request(connection, "PATCH", path, fields, content, 204)
            paths.append(path)
    return paths


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    fields: Mapping[str, str],
    content: bytes,
    expected: int,
) -> str:
    connection.request(method, path, body=content, headers=dict(fields))
    response = connection.getresponse()
    response.read()
    if response.status != expected:
        raise WrongAnswer(f"{method} answered {response.status}")
    return response.getheader("Location", "")


class _Asker:
    """One connection that asks one question at a time."""

    def __init__(self, server: Server, paths: Iterator[str]) -> None:
        self.sock = socket.create_connection((server.host, server.port), timeout=10)
        self.sock.setblocking(False)
        self.due = 0.0
        self._host = f"{server.host}:{server.port}"
        self._paths = paths
        self._answer = b""
        self._asked = 0.0

    def ask(self) -> None:
        self._answer = b""
        self._asked = time.perf_counter()
        self.sock.send(
            f"HEAD {next(self._paths)} HTTP/1.1\r\nHost: {self._host}\r\n"
            "Tus-Resumable: 1.0.0\r\n\r\n".encode()
        )

    def read(self) -> float | None:
        """Read; return the seconds that the answer took once it is whole, else None."""
        data = self.sock.recv(4096)
        if not data:
            raise WrongAnswer("the connection was closed")
        self._answer += data
        if not self._answer.endswith(b"\r\n\r\n"):
            return None
        seconds = time.perf_counter() - self._asked
        if b"\r\nupload-offset: %d\r\n" % STORED not in self._answer.lower():
            raise WrongAnswer(f"not the right offset: {self._answer!r}")
        return seconds


def ask(
    server: Server,
    paths: Sequence[str],
    *,
    connections: int,
    seconds: float,
    pause: float = 0.0,
) -> Answers:
    """Ask for offsets on *connections* for *seconds*, each *pause* seconds after an answer.

    Raises :class:`WrongAnswer`, and :class:`OSError` for a broken connection.
    """
    latencies: list[float] = []
    turns = iter(lambda: random.choice(paths), None)  # never ends
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        askers = []
        for _ in range(connections):
            asker = _Asker(server, turns)
            stack.callback(asker.sock.close)
            selector.register(asker.sock, selectors.EVENT_READ, asker)
            askers.append(asker)
        begun = time.perf_counter()
        resting = list(askers)
        while (now := time.perf_counter()) < begun + seconds:
            for asker in [asker for asker in resting if asker.due <= now]:
                resting.remove(asker)
                asker.ask()
            for key, _ in selector.select(min(pause, 0.01) if resting else 1.0):
                took = key.data.read()
                if took is not None:
                    latencies.append(took)
                    if pause:
                        key.data.due = time.perf_counter() + pause
                        resting.append(key.data)
                    else:
                        key.data.ask()
        return Answers(time.perf_counter() - begun, latencies)


@contextlib.contextmanager
def _streaming(server: Server, uploads: int, seconds: float) -> Iterator[None]:
    """Keep *uploads* uploads running while the block runs, for *seconds* at most."""
    load = subprocess.Popen(
        [
            *(sys.executable, "-m", "trioresume", "bench", "--protocol", "tus"),
            *("-n", str(uploads), "--total", "100000", "--size", STREAM_SIZE),
            *("--duration", f"{seconds:.0f}s", "--verify", "none", server.url),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(STREAM_LEAD)
        yield
        if load.poll() is not None:
            raise WrongAnswer("the load ended too early")
    finally:
        load.kill()
        load.wait()


def measure(
    server: Server, *, uploads: int, connections: int, streams: int, seconds: float
) -> Measured:
    """Measure both parts for one server. Raises the errors of :func:`ask`."""
    paths = begin_uploads(server, uploads)
    ask(server, paths, connections=connections, seconds=seconds / 4)  # warm-up
    before, busy = server.settle(), time.process_time()
    alone = ask(server, paths, connections=connections, seconds=seconds)
    busy = time.process_time() - busy
    cpu = server.use().cpu - before.cpu
    with _streaming(server, streams, 4 * seconds + 30):
        loaded = ask(
            server, paths, connections=connections, seconds=2 * seconds, pause=0.02
        )
    return Measured(
        rate=alone.rate,
        cpu=cpu / len(alone.latencies),
        alone_p50=alone.latency.p50,
        alone_p99=alone.latency.p99,
        asker_busy=busy / alone.seconds,
        loaded_p50=loaded.latency.p50,
        loaded_p99=loaded.latency.p99,
        loaded_max=loaded.latency.max,
        loaded_count=len(loaded.latencies),
    )


@click.command(help=__doc__)
@click.option("--servers", default="trioresume,tusd", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--uploads",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Unfinished uploads to ask about.",
)
@click.option("--connections", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--streams",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Uploads that stream in during the second part.",
)
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Order's seed.")
@work_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print every round as JSON.")
def main(
    servers: str,
    rounds: int,
    uploads: int,
    connections: int,
    streams: int,
    seconds: float,
    seed: int,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    raise_file_limit()
    peers = [find(name) for name in servers.split(",")]
    draw = random.Random(seed)
    found: list[dict[str, Measured]] = []
    workspace = Workspace(work_dir)
    with contextlib.closing(workspace):
        for number in range(rounds):
            found.append({})
            for peer in draw.sample(peers, len(peers)):
                with (
                    workspace.data_dir() as directory,
                    Server(peer, directory) as server,
                ):
                    found[-1][peer.name] = measure(
                        server,
                        uploads=uploads,
                        connections=connections,
                        streams=streams,
                        seconds=seconds,
                    )
                click.echo(f"round {number + 1}, {peer.name}", err=True)
    if as_json:
        document = [
            {name: asdict(measured) for name, measured in group.items()}
            for group in found
        ]
        click.echo(json.dumps({"machine": machine(work_dir), "rounds": document}))
    else:
        _report([peer.name for peer in peers], found, streams)


def _report(
    names: Sequence[str], rounds: Sequence[Mapping[str, Measured]], streams: int
) -> None:
    click.echo(
        f"| server | HEAD/s | x {names[-1]} | CPU µs each | p50 ms | p99 ms "
        f"| p50 ms, {streams} streaming | p99 ms | max ms | asker busy |"
    )
    click.echo("| --- " + "| ---: " * 9 + "|")
    for name in names:
        group = [measured[name] for measured in rounds]
        ratio = ratios(rounds, name, names[-1], lambda measured: measured.rate)
        cells = [
            Spread.of(m.rate for m in group).text(0),
            "" if ratio is None else ratio.text(2),
            Spread.of(m.cpu * MICRO for m in group).text(0),
            *(
                Spread.of(getattr(m, figure) * 1000 for m in group).text(1)
                for figure in (
                    "alone_p50",
                    "alone_p99",
                    "loaded_p50",
                    "loaded_p99",
                    "loaded_max",
                )
            ),
            Spread.of(m.asker_busy for m in group).text(2),
        ]
        click.echo(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
