"""``python -m bench.watching``: what metrics and the access log cost.

Two services run, one without both and one with both. They take turns, in a new random order for
each round, with the same number of uploads, all of them at once. The figure is the CPU time of
the service that is watched, divided by that of the other one: the median of the rounds. Its
metrics are scraped meanwhile, more often than by a usual Prometheus.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import trio

from bench.options import work_dir_option
from bench.peers.own import trioresume
from bench.server import Server, free_port
from trioresume.bench import Protocol, Settings, Sizes, Verify, run

__all__ = ["measure"]

SCRAPE_EVERY = 5.0
"""Seconds. Prometheus's own default is a minute, and 15 seconds are usual."""


@contextmanager
def scraping(url: str) -> Iterator[None]:
    """Read the metrics again and again while the block runs."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(SCRAPE_EVERY):
            with urllib.request.urlopen(url, timeout=30) as response:
                response.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def load(server: Server, seed: int, uploads: int, size: int) -> float:
    """Return the CPU seconds that *server* takes for *uploads* of *size* bytes, at once."""
    settings = Settings(
        url=server.url,
        protocol=Protocol.PLAIN,
        seed=seed,
        at_once=uploads,
        total=uploads,
        sizes=Sizes(minimum=size, maximum=size),
        verify=Verify.LENGTH,
    )
    before = server.busy()
    results = trio.run(partial(run, settings))
    if not results.ok:
        raise click.ClickException("uploads failed")
    server.settle()
    return server.busy() - before


def measure(
    directory: Path, rounds: int, uploads: int, size: int
) -> Iterator[tuple[float, float]]:
    """Yield the CPU seconds without and with the watch, for each of *rounds*."""
    port = free_port()
    options = (
        *("--admin-bind", f"127.0.0.1:{port}"),
        *("--access-log", str(directory / "access.log")),
    )
    dice = random.Random(0)
    with (
        Server(trioresume(), directory / "plain") as first,
        Server(trioresume(options=options), directory / "watched") as second,
        scraping(f"http://127.0.0.1:{port}/metrics"),
    ):
        servers = [first, second]
        for number in range(-1, rounds):
            taken = {
                server: load(server, number + 2, uploads, size)
                for server in dice.sample(servers, 2)
            }
            if number >= 0:  # the first round fills caches
                yield taken[first], taken[second]


@click.command(help=sys.modules[__name__].__doc__)
@click.option("--rounds", type=click.IntRange(min=1), default=9)
@click.option("--uploads", type=click.IntRange(min=1), default=1000)
@click.option("--size", type=click.IntRange(min=1), default=1 << 20)
@work_dir_option
def main(rounds: int, uploads: int, size: int, work_dir: Path | None) -> None:
    ratios: list[float] = []
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        for without, with_ in measure(Path(name), rounds, uploads, size):
            ratios.append(with_ / without)
            print(f"{without:.2f} s without, {with_:.2f} s with: {ratios[-1]:.3f}")
    low, high = min(ratios), max(ratios)
    print(f"median {statistics.median(ratios):.3f}, {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
