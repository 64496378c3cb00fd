"""``python -m bench.scale.crowd``: ten thousand uploads at once, slow and fast, on one server.

Two loads of ``trioresume bench`` run at the same time against one ``trioresume serve``.
*Slow* uploads send at a set rate. *Fast* uploads send as fast as the server takes the
bytes; ``--fast`` of them run at a time. Unless ``--slow-total`` is larger than ``--slow``,
all slow uploads are open the whole time: they begin together and end together. Meanwhile
further uploads fall silent and are taken over, one after the other. A takeover is the time
from a HEAD on a new connection to the answer with the offset.

It prints how long the uploads of each kind took. Uploads of one kind have the same speed,
so the slowest over the fastest, per byte, shows how fair the server was. It also prints the
CPU time and memory that the server used, and what held up its event loop (see
:mod:`bench.watched`). Every upload is read back and compared by its digest. The exit code
is 1 unless all uploads succeeded with the right bytes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import trio

from bench.options import durability_option, human, work_dir_option
from bench.peers.own import Trioresume, trioresume
from bench.server import Server
from bench.watched import Step, longest, read_report
from trioresume.bench import (
    Latency,
    Protocol,
    Results,
    Settings,
    SizeKind,
    Sizes,
    Verify,
    run,
)
from trioresume.bench.usage import raise_file_limit
from trioresume.cli.options import Size

__all__ = ["Watched", "main"]

TAKEN = 100_000
"""The bytes that an upload sends before it falls silent."""
TAKEOVER_EVERY = 0.1
MOST_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Watched(Trioresume):
    """``trioresume serve``, with a watch on its event loop."""

    report: Path

    @classmethod
    def of(cls, plain: Trioresume, report: Path) -> Watched:
        return cls(**{**vars(plain), "report": report})

    def arguments(self, data_dir: Path, port: int) -> tuple[str, ...]:
        _, *command = super().arguments(data_dir, port)
        return ("bench.watched", str(self.report), *command)


class Takeover(NamedTuple):
    """One takeover: its begin in Unix seconds, and its length in seconds."""

    began: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of upload."""

    name: str
    at_once: int
    total: int
    sizes: Sizes
    rate: int | None

    def settings(self, server: Server, number: int) -> Settings:
        return Settings(
            url=server.url,
            protocol=Protocol.PLAIN,
            seed=number + 1,
            at_once=self.at_once,
            total=self.total,
            sizes=self.sizes,
            rate=self.rate,
            duration=MOST_SECONDS,
            idle_timeout=120.0,
            verify=Verify.DIGEST,
        )


async def takeovers(
    server: Server, done: list[Takeover], failures: list[str], stop: trio.Event
) -> None:
    """Make uploads that fall silent, and take them over, until *stop* is set."""
    number = 0
    while not stop.is_set():
        number += 1
        try:
            done.append(await take_over(server, number))
        except (OSError, click.ClickException) as exc:
            failures.append(str(exc))
        await trio.sleep(TAKEOVER_EVERY)


async def take_over(server: Server, number: int) -> Takeover:
    """Make an upload that falls silent, take it over, and delete it."""
    with contextlib.ExitStack() as stack:
        silent = await _connect(server, stack)
        await silent.sendall(
            f"PUT {server.path}taken-{number} HTTP/1.1\r\nHost: bench\r\n"
            "Prefer: resume\r\nExpect: 100-continue\r\n"
            "Content-Length: 1000000000\r\n\r\n".encode()
        )
        told = await silent.head()
        place = told["request-content-location"]
        await silent.sendall(os.urandom(TAKEN))
        await trio.sleep(0.05)  # let the bytes arrive
        newcomer = await _connect(server, stack)
        at, began = time.time(), time.perf_counter()
        await newcomer.sendall(f"HEAD {place} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        told = await newcomer.head()
        took = Takeover(at, time.perf_counter() - began)
        if not 0 < int(told["upload-offset"]) <= TAKEN:
            raise click.ClickException(f"not the right offset: {told}")
        await newcomer.sendall(
            f"DELETE {place} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        )
        await newcomer.head()
        return took


class _Wire:
    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock

    async def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._sock.send(view) :]

    async def head(self) -> dict[str, str]:
        """Return the fields of the next answer, which must have no content."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            more = await self._sock.recv(4096)
            if not more:
                raise click.ClickException(f"the connection was closed after {data!r}")
            data += more
        lines = data.decode().split("\r\n")[1:-2]
        return {n.lower(): v.strip() for n, _, v in (x.partition(":") for x in lines)}


async def _connect(server: Server, stack: contextlib.ExitStack) -> _Wire:
    sock = trio.socket.socket()
    stack.callback(sock.close)
    await sock.connect((server.host, server.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _Wire(sock)


async def _run(
    server: Server, loads: Sequence[Load]
) -> tuple[list[Results], list[Takeover], list[str]]:
    results: dict[int, Results] = {}
    done: list[Takeover] = []
    failures: list[str] = []
    stop = trio.Event()

    async def one(number: int, load: Load) -> None:
        results[number] = await run(load.settings(server, number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(takeovers, server, done, failures, stop)
        async with trio.open_nursery() as loading:
            for number, load in enumerate(loads):
                loading.start_soon(one, number, load)
        stop.set()
    return [results[number] for number in range(len(loads))], done, failures


def _report(load: Load, results: Results) -> bool:
    done = [upload for upload in results.uploads if upload.ended and not upload.failed]
    taken = Latency.of(upload.ended - upload.begun for upload in done)
    paces = sorted((u.ended - u.begun) / u.size for u in done if u.size)
    right = sum(u.check is not None and u.check.ok for u in results.uploads)
    click.echo(
        f"{load.name}: {load.total} of {_sizes(load.sizes)}, {load.at_once} at once:"
        f" {len(done)} succeeded, {right} have the right content"
    )
    if taken is not None and paces:
        click.echo(
            f"  took {taken.p50:.2f} s (median), {taken.p90:.2f} s (90 %),"
            f" {taken.p99:.2f} s (99 %), {taken.max:.2f} s (the longest);"
            f" slowest over fastest {paces[-1] / paces[0]:.2f}"
        )
    trouble = Counter(
        attempt.detail
        for upload in results.uploads
        for attempt in upload.attempts
        if attempt.detail
    )
    for detail, count in trouble.most_common(3):
        click.echo(f"  {count} attempts: {detail}")
    return right == load.total


def _range(least: int | None, most: int) -> Sizes:
    if least is None:
        return Sizes(minimum=most, maximum=most)
    return Sizes(kind=SizeKind.UNIFORM, minimum=least, maximum=most)


def _sizes(sizes: Sizes) -> str:
    if sizes.kind is SizeKind.FIXED:
        return human(sizes.minimum)
    return f"{human(sizes.minimum)} to {human(sizes.maximum)}"


def _report_takeovers(what: str, done: Sequence[Takeover]) -> None:
    taken = Latency.of(takeover.seconds for takeover in done)
    if taken is None:
        return
    click.echo(
        f"{taken.count} takeovers{what}: {taken.p50 * 1000:.1f} ms (median),"
        f" {taken.p99 * 1000:.1f} ms (99 %), {taken.max * 1000:.1f} ms (the longest)"
    )


def _crowded(done: Sequence[Takeover], results: Sequence[Results]) -> list[Takeover]:
    """Return the takeovers during which (nearly) the full number of uploads was open."""
    begun = sorted(r.started + u.begun for r in results for u in r.uploads)
    ended = sorted(r.started + u.ended for r in results for u in r.uploads)
    enough = 0.95 * sum(r.settings.at_once for r in results)
    return [
        takeover
        for takeover in done
        if bisect_right(begun, takeover.began) - bisect_right(ended, takeover.began)
        >= enough
    ]


def _report_watch(name: str, steps: Sequence[Step]) -> None:
    late = sum(step.seconds > 0.005 for step in steps)
    click.echo(f"  {name}: {late} held the loop for more than 5 ms; the longest:")
    for step in steps[:5]:
        click.echo(
            f"    {step.seconds * 1000:.1f} ms, {step.cpu * 1000:.1f} of CPU"
            f" {step.where and f'until {step.where}'}"
        )


@click.command(help=__doc__)
@click.option("--slow", default=9000, show_default=True, help="Slow uploads at once.")
@click.option("--slow-total", type=int, help="Slow uploads in all. [default: as many]")
@click.option("--slow-size", type=Size(), default="32KiB", show_default=True)
@click.option(
    "--slow-least",
    type=Size(),
    help="The smallest slow upload, if sizes differ: then they do not end together.",
)
@click.option(
    "--slow-rate",
    type=Size(),
    default="512",
    show_default=True,
    help="Bytes a second of each slow upload.",
)
@click.option("--fast", default=800, show_default=True, help="Fast uploads at once.")
@click.option("--fast-total", default=4000, show_default=True)
@click.option("--fast-size", type=Size(), default="256KiB", show_default=True)
@durability_option
@work_dir_option
def main(
    slow: int,
    slow_total: int | None,
    slow_size: int,
    slow_least: int | None,
    slow_rate: int,
    fast: int,
    fast_total: int,
    fast_size: int,
    durability: str,
    work_dir: Path | None,
) -> None:
    raise_file_limit()
    loads = [
        Load(
            "slow", slow, slow_total or slow, _range(slow_least, slow_size), slow_rate
        ),
        Load("fast", fast, fast_total, _range(None, fast_size), None),
    ]
    loads = [load for load in loads if load.at_once]
    options = (
        *("--max-connections-per-address", str(slow + fast + 200)),
        *("--max-connections", str(slow + fast + 200)),
        *("--max-open-uploads-per-principal", str(slow + fast + 200)),
    )
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        report = Path(name) / "watch.json"
        peer = Watched.of(trioresume(durability, options), report)
        with Server(peer, Path(name) / "data") as server:
            idle = server.use().resident
            began = time.monotonic()
            results, taken_over, failures = trio.run(partial(_run, server, loads))
            ended = time.monotonic()
            used = server.use()
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        click.echo(f"{slow + fast} uploads at once; the limit of open files is {files}")
        right = [
            _report(load, result) for load, result in zip(loads, results, strict=True)
        ]
        loaded = max(result.seconds for result in results)
        at_once = slow + fast
        click.echo(
            f"server: {used.cpu:.1f} s of CPU, with the check; {human(idle)} resident when"
            f" idle, {human(used.peak)} at most: {human((used.peak - idle) / at_once)} an upload"
        )
        _report_takeovers("", taken_over)
        _report_takeovers(f" while {at_once} were open", _crowded(taken_over, results))
        click.echo(f"{len(failures)} takeovers failed {failures[:2] or ''}")
        steps, rounds = read_report(report)
        # Only while both loads ran: reading back is another load.
        until = min(ended, began + loaded)
        click.echo("event loop:")
        _report_watch("steps", longest(steps, began, until))
        _report_watch("rounds", longest(rounds, began, until))
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
