"""``kill -9`` again and again over a service with workers: a worker, or the parent.

The same clients, instants and checks as in :mod:`tests.e2e.soak`. When a worker dies, the
service goes on: its clients resume with another worker, or with its successor. When the parent
dies, all workers end, and the service is started again.

For longer than CI has time for::

    python -m tests.e2e.worker_soak --kills 1000

It prints the seed first, and a line of figures in the end; its exit code is 0 only if
nothing was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from tests.e2e.carriers import CARRIERS
from tests.e2e.command import Service
from tests.e2e.soak import (
    Soak,
    check_file,
    delete_file,
    make_file_upload,
    run_all,
)

__all__ = ["WorkerSoak", "workers_of"]

WAIT_SECONDS = 120.0


def workers_of(pid: int) -> list[int]:
    """The processes that are the workers of the parent *pid*, in the order of their start."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                words = (path / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended
            is_child = int(fields[1]) == pid and fields[0] not in "ZX"
            if is_child and b"start_worker.py" in words:
                found.append((int(fields[19]), int(path.name)))
    return [worker for _, worker in sorted(found)]


def _serves(pid: int) -> bool:
    """Whether the worker has read its options, and so ignores Ctrl-C: soon it listens."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(ignored.split()[1], 16) & 1 << (signal.SIGINT - 1))


class WorkerSoak(Soak):
    """Kills workers most of the time, and the parent every eighth time or so."""

    deaths: Counter[str]

    async def _restart(self) -> None:
        if self._done or self._draw.random() < 0.12:
            self.deaths["parent"] += 1
            await super()._restart()
            return
        self.deaths["worker"] += 1
        deadline = time.monotonic() + WAIT_SECONDS
        # Mostly one that serves: a service whose workers all die while they start ends.
        while not (workers := [*filter(_serves, workers_of(self._service.pid))]):
            assert time.monotonic() < deadline, "there is no worker any more"
            await trio.sleep(0.01)
        if self._draw.random() < 0.1:
            workers = workers_of(self._service.pid) or workers
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._draw.choice(workers), signal.SIGKILL)


def soaks_of(
    services: Sequence[Service], seed: int, kills: int, uploaders: int, carrier: str
) -> list[WorkerSoak]:
    """One soak for each service."""
    (chosen,) = [each for each in CARRIERS if each.name == carrier]
    soaks: list[WorkerSoak] = []
    for number, service in enumerate(services):
        soak = WorkerSoak(
            service,
            seed + number,
            partial(make_file_upload, carrier=chosen),
            check_file,
            kills=kills // len(services),
            uploaders=uploaders,
            delete=delete_file,
        )
        soak.deaths = Counter()
        soaks.append(soak)
    return soaks


def main() -> None:
    """The long form, as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--services", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--uploaders", type=int, default=6)
    parser.add_argument("--carrier", choices=[c.name for c in CARRIERS], default="h1")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32)
    )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as directory:
        services = [
            Service(
                Path(directory, f"data{number}"),
                ("serve", "--workers", str(options.workers)),
            )
            for number in range(options.services)
        ]
        try:
            soaks = soaks_of(
                services,
                options.seed,
                options.kills,
                options.uploaders,
                options.carrier,
            )
            print(trio.run(run_all, soaks))  # noqa: T201
            deaths = sum((soak.deaths for soak in soaks), Counter())
            print(f"of these {deaths['worker']} of workers")  # noqa: T201
        finally:
            for service in services:
                service.close()
                service.check_log()


if __name__ == "__main__":
    main()
