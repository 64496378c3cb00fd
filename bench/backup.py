"""What a backup costs the uploads beside it: ``python -m bench.backup``.

A server takes uploads for a few seconds: without a backup, with one backup after the other by
hard links, and with one after the other that copy. The cases follow each other in random
order, several times, and what counts is the ratio of their throughputs within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

MIB = 1024 * 1024
CASES: dict[str, list[str] | None] = {
    "without": None,
    "link": ["--link"],
    "copy": ["--copy"],
}
STORED = 24
"""Files that are stored before a backup begins, so that the first one has something to do."""


class Load:
    """Clients that send one upload after the other, and delete every other one."""

    def __init__(self, port: int, size: int, clients: int) -> None:
        self._port = port
        self._content = os.urandom(size)
        self._clients = clients
        self._over = threading.Event()
        self.bytes = 0

    def store(self, number: int, name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        with contextlib.closing(connection):
            # Each chunk of 4 MiB is new: equal ones would be stored once.
            head = os.urandom(16)
            content = bytearray(self._content)
            for at in range(0, len(content), 4 * MIB):
                content[at : at + 16] = head
            connection.request("PUT", f"/files/{name}", bytes(content))
            response = connection.getresponse()
            response.read()
            if response.status not in (201, 204):
                raise SystemExit(f"PUT was answered with {response.status}")
            if number % 2:
                connection.request("DELETE", f"/files/{name}")
                connection.getresponse().read()

    def _run(self, client: int) -> None:
        number = 0
        while not self._over.is_set():
            self.store(number, f"{client}-{number}")
            self.bytes += len(self._content)
            number += 1

    def measure(self, seconds: float) -> float:
        """Return the bytes per second that the server took."""
        threads = [
            threading.Thread(target=self._run, args=(n,)) for n in range(self._clients)
        ]
        for thread in threads:
            thread.start()
        time.sleep(min(1.0, seconds / 4))
        begun, before = time.monotonic(), self.bytes
        time.sleep(seconds)
        rate = (self.bytes - before) / (time.monotonic() - begun)
        self._over.set()
        for thread in threads:
            thread.join()
        return rate


@contextlib.contextmanager
def serving(data_dir: Path) -> Iterator[int]:
    """Run a server; yield its port."""
    command = [sys.executable, "-m", "trioresume", "serve", "--bind", "127.0.0.1:0"]
    server = subprocess.Popen(
        [*command, "--data-dir", str(data_dir), "--log-level", "warning"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline().rstrip("/files\n").rpartition(":")[2])
    finally:
        server.terminate()
        server.wait()


class Backups:
    """Makes one backup after the other until :meth:`stop`."""

    def __init__(self, data_dir: Path, directory: Path, options: list[str]) -> None:
        self._words = [sys.executable, "-m", "trioresume", "backup", "--keep", "2"]
        self._words += [*options, "--data-dir", str(data_dir), str(directory)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            subprocess.run(self._words, check=True, stdout=subprocess.DEVNULL)
            self.count += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def measure(case: str, place: Path, size: int, clients: int, seconds: float) -> float:
    data_dir = place / "data"
    options = CASES[case]
    with serving(data_dir) as port:
        load = Load(port, size, clients)
        for number in range(STORED):
            load.store(0, f"stored-{number}")
        if options is None:
            return load.measure(seconds)
        backups = Backups(data_dir, place / "backups", options)
        rate = load.measure(seconds)
        backups.stop()
        print(f"  {case}: {backups.count} backups", file=sys.stderr)
        return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=16, help="MiB of an upload")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--at", help="a directory on the disk to be measured")
    options = parser.parse_args()
    dice = random.Random()
    ratios: dict[str, list[float]] = {case: [] for case in CASES}
    for number in range(options.rounds):
        rates = {}
        for case in dice.sample(list(CASES), len(CASES)):
            with tempfile.TemporaryDirectory(dir=options.at) as place:
                rates[case] = measure(
                    case,
                    Path(place),
                    options.size * MIB,
                    options.clients,
                    options.seconds,
                )
        for case, rate in rates.items():
            ratios[case].append(rate / rates["without"])
        shown = ", ".join(f"{case} {rate / MIB:.0f}" for case, rate in rates.items())
        print(f"round {number + 1}: MiB/s {shown}", flush=True)
    for case, found in ratios.items():
        print(
            f"{case}: {median(found):.2f} of without"
            f" ({min(found):.2f} to {max(found):.2f})"
        )


if __name__ == "__main__":
    main()
