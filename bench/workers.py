"""Measure how a service scales with its workers. Each worker has a share of a processor.

Each worker gets a quota, a quarter of a processor by default, so that two processors are
enough for four workers, the parent and the load generator. The quota is one of the kernel's
(control groups, version 1 or 2) where this process may set one. Elsewhere this process lets the
workers run by turns: it stops and continues them.

With one worker the service is one process, which has the catalog, too, within its share. The
parent of several workers has no quota: its CPU time is measured.

Numbers of workers take turns, in a new random order for each round. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench.options import machine, work_dir_option
from bench.server import free_port
from bench.statistics import Spread, ratios
from bench.workspace import Workspace
from trioresume.bench.usage import TICK, raise_file_limit

__all__ = ["LOADS", "Load", "Measured", "Turns", "limited", "measure", "report"]

PERIOD = 0.02
"""Seconds in which each worker has its turn once."""
START_SECONDS = 120.0
CHUNK = 4 << 20
GIB = 1 << 30
_GROUPS_V1 = Path("/sys/fs/cgroup/cpu")
_GROUPS_V2 = Path("/sys/fs/cgroup")
_PERIOD_US = 20_000


@dataclass(frozen=True, slots=True)
class Load:
    """Uploads of one size that begin together."""

    uploads: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.uploads} x {self.size >> 20} MiB"

    @property
    def chunks(self) -> int:
        """The chunks of one upload."""
        return -(-self.size // CHUNK)


LOADS = (Load(128, 8 << 20), Load(1000, 1 << 20), Load(16, 64 << 20))


@dataclass(frozen=True, slots=True)
class Measured:
    """One load on one number of workers. Times are in seconds, sizes in bytes."""

    rate: float
    """Bytes a second."""
    cpu: float
    """CPU time of all processes."""
    parent_cpu: float
    peak: int
    """The most memory that a worker has held, at most."""
    quota: str
    """What kept the workers to their share."""


# A share of a processor for each worker.


class Turns:
    """Lets *processes* run by turns: each one for its *share* of the time."""

    def __init__(self, processes: Sequence[int], share: float) -> None:
        self._processes = list(processes)
        self._share = share
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()
        for pid in self._processes:
            _signal(pid, signal.SIGCONT)

    def _run(self) -> None:
        for pid in self._processes:
            _signal(pid, signal.SIGSTOP)
        turn = PERIOD * self._share
        while not self._ending.is_set():
            began = time.monotonic()
            for pid in self._processes:
                _signal(pid, signal.SIGCONT)
                time.sleep(turn)
                _signal(pid, signal.SIGSTOP)
            rest = began + PERIOD - time.monotonic()
            if rest > 0:
                time.sleep(rest)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def limited(processes: Sequence[int], share: float) -> Iterator[str]:
    """Keep each of *processes* to its *share* of a processor; yield how that is done."""
    with contextlib.ExitStack() as stack:
        try:
            for pid in processes:
                stack.enter_context(_group(pid, share))
        except OSError:
            stack.close()
            stack.enter_context(Turns(processes, share))
            yield "turns"
        else:
            yield "control groups"


@contextlib.contextmanager
def _group(pid: int, share: float) -> Iterator[None]:
    """Put *pid* into a control group of its own. Raises :class:`OSError`."""
    is_first = (_GROUPS_V1 / "cpu.cfs_quota_us").exists()
    parent = _GROUPS_V1 if is_first else _GROUPS_V2
    own = parent / f"trioresume-bench-{pid}"
    quota = int(_PERIOD_US * share)
    own.mkdir()
    try:
        if is_first:
            (own / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (own / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (own / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        (own / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with contextlib.suppress(OSError):
            (parent / "cgroup.procs").write_text(str(pid))
        for _ in range(50):
            with contextlib.suppress(OSError):
                own.rmdir()
                break
            time.sleep(0.05)


# One run.


@dataclass(frozen=True, slots=True)
class _Running:
    url: str
    parent: int
    workers: Sequence[int]


@contextlib.contextmanager
def _service(directory: Path, workers: int) -> Iterator[_Running]:
    """Run a service with so many workers; one worker is its own parent."""
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "trioresume", "serve", "--workers", str(workers)]
    command += ["--data-dir", str(directory / "data"), "--bind", f"127.0.0.1:{port}"]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("You can now upload"):
                raise click.ClickException((directory / "log").read_text()[-2000:])
            children = _children(process.pid)
            own = children if workers > 1 else [process.pid]
            if len(own) != workers:
                raise click.ClickException(f"{len(own)} workers started")
            yield _Running(f"http://127.0.0.1:{port}/files/", process.pid, own)
        finally:
            process.terminate()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    found = [(task / "children").read_text().split() for task in tasks.iterdir()]
    return sorted(int(child) for children in found for child in children)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(directory: Path, load: Load, workers: int, share: float) -> Measured:
    """Put *load* on a new service in *directory*, and return what it cost."""
    with (
        _service(directory, workers) as running,
        limited(running.workers, share) as quota,
        tempfile.NamedTemporaryFile(suffix=".json") as results,
    ):
        processes = {running.parent, *running.workers}
        before = {pid: _cpu(pid) for pid in processes}
        subprocess.run(
            [
                *(sys.executable, "-m", "trioresume", "bench", running.url, "-q"),
                *("-n", str(load.uploads), "--total", str(load.uploads)),
                *("--size", str(load.size), "--verify", "length"),
                *("--idle-timeout", "10m", "--json", results.name),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        used = {pid: _cpu(pid) - before[pid] for pid in processes}
        seconds = json.loads(Path(results.name).read_text("utf-8"))["seconds"]
        return Measured(
            rate=load.uploads * load.size / seconds,
            cpu=sum(used.values()),
            parent_cpu=used[running.parent] if workers > 1 else 0.0,
            peak=max(map(_peak, running.workers)),
            quota=quota,
        )


# All runs.


def report(
    rounds: Sequence[Mapping[tuple[Load, int], Measured]],
    loads: Sequence[Load],
    counts: Sequence[int],
) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| load | workers | MiB/s | x one worker | CPU s/GiB | x one worker | parent, ms an upload | MiB a worker |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for load in loads:
        for count in counts:
            key, one = (load, count), (load, counts[0])
            runs = [each[key] for each in rounds if key in each]
            total = load.uploads * load.size / GIB
            speed = ratios(rounds, key, one, lambda run: run.rate)
            cost = ratios(rounds, key, one, lambda run: run.cpu)
            parent = Spread.of(run.parent_cpu / load.uploads * 1e3 for run in runs)
            yield " | ".join(
                [
                    f"| {load.name}",
                    str(count),
                    Spread.of(run.rate / (1 << 20) for run in runs).text(1),
                    "-" if speed is None else speed.text(2),
                    Spread.of(run.cpu / total for run in runs).text(2),
                    "-" if cost is None else cost.text(2),
                    parent.text(2) if count > 1 else "-",
                    f"{Spread.of(run.peak / (1 << 20) for run in runs).text(0)} |",
                ]
            )
    few, many = LOADS[1], LOADS[2]
    for count in counts:
        chunk = [
            (
                each[many, count].parent_cpu / many.uploads
                - each[few, count].parent_cpu / few.uploads
            )
            / (many.chunks - few.chunks)
            for each in rounds
            if count > 1 and (many, count) in each and (few, count) in each
        ]
        if chunk:
            text = Spread.of(each * 1e3 for each in chunk).text(3)
            yield ""
            yield f"{count} workers: the parent's CPU for a chunk more is {text} ms."


@click.command()
@click.option("--workers", default="1,2,4", show_default=True, help="Numbers to try.")
@click.option("--rounds", default=5, show_default=True, help="Runs of each.")
@click.option(
    "--share", default=0.25, show_default=True, help="Of a processor, for each worker."
)
@click.option("--seed", default=1, show_default=True, help="Of the order of the runs.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="All runs.")
@work_dir_option
def main(
    workers: str,
    rounds: int,
    share: float,
    seed: int,
    json_file: Path | None,
    work_dir: Path | None,
) -> None:
    """Measure how throughput and CPU time grow with the number of workers."""
    raise_file_limit()
    counts = [int(count) for count in workers.split(",")]
    draw = random.Random(seed)
    done: list[dict[tuple[Load, int], Measured]] = []
    with contextlib.closing(Workspace(work_dir)) as workspace:
        for number in range(1, rounds + 1):
            runs = [(load, count) for load in LOADS for count in counts]
            draw.shuffle(runs)
            found: dict[tuple[Load, int], Measured] = {}
            for load, count in runs:
                workspace.prepare(load.uploads * load.size)
                with workspace.data_dir() as directory:
                    found[load, count] = measure(directory, load, count, share)
                click.echo(
                    f"round {number}: {load.name}, {count} workers:"
                    f" {found[load, count].rate / (1 << 20):.1f} MiB/s",
                    err=True,
                )
            done.append(found)
    quotas = {run.quota for found in done for run in found.values()}
    facts = ", ".join(machine(work_dir).values())
    click.echo(
        f"{facts}. {rounds} rounds; {share:g} of a processor a worker, by"
        f" {' and '.join(sorted(quotas))}.\n"
    )
    for line in report(done, LOADS, counts):
        click.echo(line)
    if json_file is not None:
        rows = [
            {"round": number, "load": load.name, "workers": count, **asdict(run)}
            for number, found in enumerate(done, 1)
            for (load, count), run in found.items()
        ]
        json_file.write_text(json.dumps(rows, indent=1), "utf-8")


if __name__ == "__main__":
    main()
