"""What a backup costs the uploads beside it: ``python -m bench.backup``.

A server takes uploads all the time. Now and then a command runs beside it: a backup by hard
links, a backup that copies, or ``ls``, which does almost nothing and so shows what any command
of Python costs on this machine. What counts is the throughput while the command runs, compared
with the seconds before and after it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

MIB = 1024 * 1024
CASES: dict[str, list[str]] = {
    "ls": ["ls"],
    "link": ["backup", "--link", "--keep", "2"],
    "copy": ["backup", "--copy", "--keep", "2"],
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

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the clients while the block runs."""
        threads = [
            threading.Thread(target=self._run, args=(n,)) for n in range(self._clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def rate(self, act: Callable[[], object]) -> float:
        """Return the bytes per second that the server takes while *act* runs."""
        begun, before = time.monotonic(), self.bytes
        act()
        return (self.bytes - before) / (time.monotonic() - begun)


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
    assert server.stdout is not None
    try:
        yield int(server.stdout.readline().rstrip("/files\n").rpartition(":")[2])
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def run(case: str, data_dir: Path, directory: Path) -> None:
    """Run the command of *case* to its end."""
    words = [sys.executable, "-m", "trioresume", *CASES[case]]
    words += ["--data-dir", str(data_dir)]
    words += [str(directory)] if case != "ls" else []
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=4, help="MiB of an upload")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--at", help="a directory on the disk to be measured")
    options = parser.parse_args(arguments)
    ratios: dict[str, list[float]] = {case: [] for case in CASES}
    with (
        tempfile.TemporaryDirectory(dir=options.at) as folder,
        serving(Path(folder, "data")) as port,
    ):
        load = Load(port, options.size * MIB, options.clients)
        for number in range(STORED):
            load.store(0, f"stored-{number}")
        with load.running():
            pause = partial(time.sleep, options.seconds)
            pause()
            before = load.rate(pause)
            for _ in range(options.rounds):
                for case in CASES:
                    directory = Path(folder, case)
                    act = partial(run, case, Path(folder, "data"), directory)
                    during = load.rate(act)
                    after = load.rate(pause)
                    ratio = during / ((before + after) / 2)
                    ratios[case].append(ratio)
                    rates = [rate / MIB for rate in (before, during, after)]
                    print(
                        f"{case}: MiB/s before {rates[0]:.0f}, during {rates[1]:.0f},"
                        f" after {rates[2]:.0f}: {ratio:.2f}",
                        flush=True,
                    )
                    before = after
    for case, found in ratios.items():
        print(f"{case}: {median(found):.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
