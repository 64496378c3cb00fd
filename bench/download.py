"""Measure what a download costs the server, compared with nginx and the same file.

Each server gets the same content by PUT. Then some connections at once fetch it: as whole
files, or as ranges of a large file, on kept connections. One run fetches the same number of
bytes with any number of connections. The fetching process checks all content by digest.
The server's CPU time is the kernel's figure for the server alone. Meanwhile a HEAD is sent
every 20 ms, to show when something blocks the server's loop.

The files are in the page cache. With --cold they are removed from it before each run, and
come from the disk. Servers take turns, in a new random order for each round. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench.fetch import Question, Request, WrongAnswer, fetch, store
from bench.options import human, machine, work_dir_option
from bench.peers import find
from bench.rounds import order
from bench.server import Server
from bench.statistics import Spread, ratios
from bench.workspace import Workspace
from trioresume.bench import Latency
from trioresume.bench.content import Region
from trioresume.bench.usage import raise_file_limit
from trioresume.cli.options import Size

__all__ = ["Measured", "Work", "measure"]

MIB = 1 << 20
GIB = 1 << 30
KINDS = ("whole", "range")
DISTINCT = 64
"""The number of different ranges. Each of them is fetched many times."""


@dataclass(frozen=True, slots=True)
class Work:
    """*connections* at once fetch *total* bytes together, in ranges of *range* bytes.

    With *range* None each fetches a whole file, the same for all, of its share of *total*.
    """

    connections: int
    total: int
    range: int | None = None

    @property
    def share(self) -> int:
        """The bytes that each connection fetches."""
        return self.total // self.connections

    @property
    def size(self) -> int:
        """The size of the file, in bytes."""
        return self.share if self.range is None else self.total

    @property
    def name(self) -> str:
        """The name of the work, for people."""
        if self.range is None:
            return f"{self.connections} x {human(self.size)}"
        return (
            f"{self.connections} x {self.share // self.range} ranges of "
            f"{human(self.range)}"
        )

    def requests(self, path: str, region: Region, seed: int) -> list[list[Request]]:
        """Return the requests of each connection."""
        if self.range is None:
            digest = region.digest(0, self.size)
            return [[Request(path, self.size, digest)]] * self.connections
        dice = random.Random(seed)
        known = [
            Request(path, self.range, region.digest(first, self.range), first)
            for first in dice.choices(range(self.size - self.range + 1), k=DISTINCT)
        ]
        count = self.share // self.range
        return [dice.choices(known, k=count) for _ in range(self.connections)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One server's run of one work, in seconds and bytes.

    *user* and *system* are the server's CPU time.
    """

    bytes: int
    seconds: float
    user: float
    system: float
    peak_resident: int
    generator: float
    """The share of a core that fetching used. Near 1, fetching was the limit."""
    heads: Sequence[float]
    """The seconds that each HEAD took meanwhile."""

    @property
    def rate(self) -> float:
        """The speed in MiB/s."""
        return self.bytes / MIB / self.seconds

    @property
    def cpu(self) -> float:
        """The server's CPU seconds per GiB."""
        return (self.user + self.system) * GIB / self.bytes

    @property
    def cpu_user(self) -> float:
        return self.user * GIB / self.bytes

    @property
    def cpu_system(self) -> float:
        return self.system * GIB / self.bytes

    @property
    def head(self) -> Latency:
        """How long the HEADs took; zero if none was answered in time."""
        return Latency.of(self.heads) or Latency(0, 0.0, 0.0, 0.0, 0.0)


def measure(
    server: Server, work: Work, region: Region, *, seed: int = 1, cold: Path | None
) -> Measured:
    """Store the file, fetch it and check it.

    *cold* is the server's directory if the file has to come from the disk. Raises
    :class:`~bench.fetch.WrongAnswer`, and :class:`OSError`.
    """
    address = (server.host, server.port)
    path = f"{server.path}download"
    blocks = (
        region.read(at, min(MIB, work.size - at)) for at in range(0, work.size, MIB)
    )
    store(address, path, work.size, blocks)
    requests = work.requests(path, region, seed)
    fetch(address, [each[:1] for each in requests[:16]])  # warm-up
    if cold is not None:
        forget(cold)
    question = Question(address, path)
    before = server.settle()
    with question.asked():
        fetched = fetch(address, requests)
    used = server.settle()
    return Measured(
        bytes=fetched.bytes,
        seconds=fetched.seconds,
        user=used.user - before.user,
        system=used.system - before.system,
        peak_resident=used.peak,
        generator=fetched.busy / fetched.seconds,
        heads=question.latencies,
    )


def forget(directory: Path) -> None:
    """Remove the files in *directory* from the page cache."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            # Skip sockets. A running server may also remove files meanwhile.
            if path.is_file():
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _numbers(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


@click.command(help=__doc__)
@click.option(
    "--servers",
    default="trioresume,nginx",
    show_default=True,
    help="The last one is the reference of the ratios.",
)
@click.option(
    "--connections",
    default="1,16,128",
    callback=_numbers,
    show_default=True,
    help="Numbers of connections at once.",
)
@click.option(
    "--bytes",
    "total",
    type=Size(),
    default="1GiB",
    show_default=True,
    help="Bytes of one run, over all its connections.",
)
@click.option(
    "--range",
    "range_",
    type=Size(),
    default="1MiB",
    show_default=True,
    help="Size of each range.",
)
@click.option("--kinds", default=",".join(KINDS), show_default=True)
@click.option("--cold", is_flag=True, help="Read from the disk, not the page cache.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@work_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print every run as JSON.")
def main(
    servers: str,
    connections: list[int],
    total: int,
    range_: int,
    kinds: str,
    cold: bool,
    rounds: int,
    seed: int,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    raise_file_limit()
    names = servers.split(",")
    works = [
        Work(count, total, range_ if kind == "range" else None)
        for kind in kinds.split(",")
        for count in connections
    ]
    found: list[dict[tuple[Work, str], Measured]] = []
    with (
        contextlib.closing(Workspace(work_dir)) as workspace,
        Region.make(seed, total) as region,
    ):
        for number in range(rounds):
            found.append({})
            for work, name in order(works, names, random.Random(seed + number)):
                with (
                    workspace.data_dir() as directory,
                    Server(find(name), directory) as server,
                ):
                    try:
                        run = measure(
                            server,
                            work,
                            region,
                            seed=seed,
                            cold=directory if cold else None,
                        )
                    except WrongAnswer as exc:
                        raise click.ClickException(f"{name}: {exc}") from exc
                found[-1][work, name] = run
                click.echo(
                    f"round {number + 1}, {work.name}, {name}: {run.rate:.0f} MiB/s, "
                    f"{run.cpu:.3f} s/GiB",
                    err=True,
                )
    if as_json:
        document = [
            [
                {"work": work.name, "server": name, **asdict(run)}
                for (work, name), run in group.items()
            ]
            for group in found
        ]
        click.echo(json.dumps({"machine": machine(work_dir), "rounds": document}))
    else:
        for line in report(works, names, found):
            click.echo(line)


def report(
    works: Sequence[Work],
    names: Sequence[str],
    rounds: Sequence[Mapping[tuple[Work, str], Measured]],
) -> Iterator[str]:
    """Yield the table, line by line."""
    last = names[-1]
    yield (
        f"| fetched | server | MiB/s | x {last} | CPU s/GiB | user + system | x {last} "
        "| HEAD meanwhile, ms: p50 / p99 / max | peak MiB | generator |"
    )
    yield "| --- | --- " + "| ---: " * 8 + "|"
    for work in works:
        for name in names:
            runs = [group[work, name] for group in rounds]
            speed = ratios(rounds, (work, name), (work, last), lambda run: run.rate)
            cost = ratios(rounds, (work, name), (work, last), lambda run: run.cpu)
            user, system, p50, p99 = (
                Spread.of(values).middle
                for values in (
                    [run.cpu_user for run in runs],
                    [run.cpu_system for run in runs],
                    [run.head.p50 for run in runs],
                    [run.head.p99 for run in runs],
                )
            )
            longest = max(run.head.max for run in runs)
            busy = max(run.generator for run in runs)
            cells = [
                work.name,
                name,
                Spread.of(run.rate for run in runs).text(0),
                speed.text(2) if speed and name != last else "1",
                Spread.of(run.cpu for run in runs).text(2),
                f"{user:.2f} + {system:.2f}",
                cost.text(2) if cost and name != last else "1",
                f"{p50 * 1000:.1f} / {p99 * 1000:.1f} / {longest * 1000:.0f}",
                f"{max(run.peak_resident for run in runs) / MIB:.0f}",
                f"{busy:.0%}" + (" !" if busy > 0.9 else ""),
            ]
            yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
