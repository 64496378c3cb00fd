"""Measure the server's memory during one large upload into trioresume.

The README promises that memory does not depend on the size of uploads. After the
first 64 MiB the buffers and caches of the process have their final size. From then on
until the upload ends, the resident set must stay within a band of 16 MiB either way.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from functools import partial
from pathlib import Path

import click
import trio

from bench.options import durability_option, human, work_dir_option
from bench.peers.own import trioresume
from bench.server import Server
from bench.workspace import Workspace
from trioresume.bench import Protocol, Results, Settings, Sizes, Snapshot, Verify, run
from trioresume.bench.usage import raise_file_limit
from trioresume.cli.options import Size

__all__ = ["Sampler", "Stretch", "main"]

MIB = 1 << 20
BAND = 16 * MIB


class Sampler:
    """Reads a server's resident memory at an interval, in a thread, until it is stopped."""

    def __init__(self, server: Server, interval: float) -> None:
        self.samples: list[tuple[float, int]] = []
        self._server = server
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.samples.append((time.monotonic(), self._server.use().resident))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, start: float, end: float) -> list[int]:
        """Return the samples between two times of the monotonic clock, in bytes."""
        return [size for when, size in self.samples if start <= when <= end]


class Stretch:
    """The time in which the samples count, on the monotonic clock."""

    def __init__(self, after: int) -> None:
        self.begun = math.inf
        self.ended = math.inf
        self._after = after

    def observe(self, snapshot: Snapshot) -> None:
        """Take the upload's progress, to find the begin and the end."""
        now = time.monotonic()
        if snapshot.sent >= self._after:
            self.begun = min(self.begun, now)
        if snapshot.done:
            self.ended = min(self.ended, now)


@click.command(help=__doc__)
@click.option(
    "--size", type=Size(), default="4GiB", show_default=True, help="Upload size."
)
@click.option(
    "--after",
    type=Size(),
    default="64MiB",
    show_default=True,
    help="Samples count once this much was sent.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.001),
    default=0.05,
    show_default=True,
    help="Seconds between samples.",
)
@durability_option
@work_dir_option
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Seconds that the upload may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(
    size: int,
    after: int,
    interval: float,
    durability: str,
    work_dir: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    raise_file_limit()
    stretch = Stretch(after)
    with contextlib.ExitStack() as stack:
        workspace = Workspace(work_dir)
        stack.callback(workspace.close)
        directory = stack.enter_context(workspace.data_dir())
        server = stack.enter_context(Server(trioresume(durability), directory))
        idle = server.use().resident
        settings = Settings(
            url=server.url,
            protocol=Protocol.PLAIN,
            at_once=1,
            total=1,
            sizes=Sizes(minimum=size, maximum=size),
            duration=timeout,
            server_pid=server.pid,
            verify=Verify.DIGEST,
        )
        sampler = Sampler(server, interval)
        try:
            results = trio.run(partial(run, settings, observe=stretch.observe))
        finally:
            sampler.stop()
    if not results.ok or results.server is None or not results.done:
        details = [upload.detail for upload in results.uploads]
        raise click.ClickException(f"the upload failed: {' '.join(details)}")
    counted = sampler.between(stretch.begun, stretch.ended)
    peak = results.server.peak_resident
    if not counted:
        raise click.ClickException("the upload was over before a sample was taken")
    _report(size, results, idle, peak, counted, as_json=as_json)
    if max(counted) - min(counted) > 2 * BAND:
        sys.exit(1)


def _report(
    size: int,
    results: Results,
    idle: int,
    peak: int,
    counted: list[int],
    *,
    as_json: bool,
) -> None:
    low, high = min(counted), max(counted)
    if as_json:
        document = {
            "bytes": size,
            "seconds": results.seconds,
            "idle": idle,
            "low": low,
            "high": high,
            "peak": peak,
            "samples": len(counted),
        }
        click.echo(json.dumps(document))
        return
    flat = "within" if high - low <= 2 * BAND else "NOT within"
    click.echo(
        f"{human(size)} in {results.seconds:.1f} s; resident: {human(idle)} idle, "
        f"{human(low)} to {human(high)} over {len(counted)} samples, peak {human(peak)}: "
        f"{flat} {human(BAND)} either way"
    )


if __name__ == "__main__":
    main()
