"""Servers under test, as subprocesses, and what the kernel says they used.

CPU time is of the process and all its descendants, living and dead. Memory is the
resident set, of the same processes: ``VmHWM`` is the kernel's own high-water mark
since the process began, so no sampling can miss a peak.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

__all__ = [
    "Cpu",
    "Server",
    "ServerFailed",
    "Target",
    "machine_cpu",
    "raw_loop",
    "trioresume",
]

ANNOUNCEMENT = "You can now upload files to: "
"""What every target prints, with the URL, once it listens."""

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_REPOSITORY = Path(__file__).parent.parent


class ServerFailed(Exception):
    """A server did not start, or died."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time in seconds."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.user - other.user, self.system - other.system)


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure: its name and its command, to which the data directory is added."""

    name: str
    command: tuple[str, ...]


def trioresume(options: Sequence[str] = ()) -> Target:
    """``trioresume serve`` on a free port, with further *options*."""
    serve = (sys.executable, "-m", "trioresume", "serve", "--bind", "127.0.0.1:0")
    return Target("trioresume", (*serve, *options, "--data-dir"))


def raw_loop() -> Target:
    """The yardstick of :mod:`bench.rawloop`."""
    return Target("raw loop", (sys.executable, "-m", "bench.rawloop"))


class Server:
    """A running server; a context manager that ends it."""

    def __init__(
        self, target: Target, data_dir: Path, *, start_timeout: float = 20.0
    ) -> None:
        self._output: deque[str] = deque(maxlen=40)
        self._url = ""
        self._announced = threading.Event()
        self._process = subprocess.Popen(
            [*target.command, str(data_dir)],
            cwd=_REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        # A pipe that nobody reads would stop a server that logs.
        self._drain = threading.Thread(target=self._read_output, daemon=True)
        self._drain.start()
        self._announced.wait(start_timeout)
        if not self._url:
            self.stop()
            raise ServerFailed(f"{target.name} did not start:\n{self.output}")
        url = urlsplit(self._url)
        self.host = url.hostname or "127.0.0.1"
        self.port = url.port or 80
        self.path = url.path

    @property
    def output(self) -> str:
        """The last lines it printed."""
        return "".join(self._output)

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._output.append(line)
            if not self._url and ANNOUNCEMENT in line:
                self._url = line.partition(ANNOUNCEMENT)[2].split()[0]
                self._announced.set()
        self._announced.set()

    def cpu(self) -> Cpu:
        """CPU time so far. Raises :class:`ServerFailed` if the server is gone."""
        if self._process.poll() is not None:
            raise ServerFailed(f"the server ended:\n{self.output}")
        user = system = 0
        for pid in _family(self._process.pid):
            with contextlib.suppress(OSError):  # a child may end any time
                # The name in parentheses may hold spaces; fields 14 to 17 of proc(5).
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                user += int(stat[11]) + int(stat[13])
                system += int(stat[12]) + int(stat[14])
        return Cpu(user * _TICK, system * _TICK)

    def settle(self, timeout: float = 10.0) -> Cpu:
        """Wait until the server rests, so that work put off past its answers counts."""
        deadline = time.monotonic() + timeout
        cpu = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            later = self.cpu()
            if later.total - cpu.total <= _TICK:
                return later
            cpu = later
        return cpu

    def resident(self) -> int:
        """Resident memory now, in bytes."""
        return self._memory("VmRSS")

    def peak_resident(self) -> int:
        """The high-water mark of resident memory, in bytes."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        total = 0
        for pid in _family(self._process.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith(name):
                        total += int(line.split()[1]) * 1024
        return total

    def stop(self) -> None:
        """End the server: politely, then not."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._drain.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _family(pid: int) -> Iterator[int]:
    """*pid* and its living descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def machine_cpu() -> tuple[float, float]:
    """Seconds all CPUs were busy so far, and seconds the hypervisor took from them."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq) * _TICK, steal * _TICK
