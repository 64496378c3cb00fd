"""Reads the CPU time and memory of processes, and the machine, from ``/proc``."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import trio

from trioresume.bench.results import Machine, ServerSample, ServerUsage
from trioresume.errors import CallerError

__all__ = [
    "TICK",
    "ProcessUse",
    "ServerWatch",
    "machine",
    "process_use",
    "raise_file_limit",
]

SAMPLE_SECONDS = 0.25
MAX_SAMPLES = 4000
"""The most samples. Beyond them every second one is dropped, and half as many are taken."""

TICK = 1 / os.sysconf("SC_CLK_TCK")
"""The seconds of one of the kernel's clock ticks, in which it counts CPU time."""


def machine() -> Machine:
    """Return the facts about this machine."""
    try:
        own = version("trioresume")
    except PackageNotFoundError:  # run from a checkout that was never installed
        own = "unknown"
    return Machine(
        cpus=os.cpu_count() or 1,
        cpu=_cpu_model(),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        trioresume=own,
    )


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def raise_file_limit() -> None:
    """Let this process and its children open as many files as the hard limit allows.

    The usual soft limit is 1024, but a thousand uploads need a socket and a file each.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """CPU seconds so far, and memory in bytes, of a process and its living descendants.

    The parent's times contain those of children that ended and were waited for. *peak* is
    the kernel's high-water mark since the process began, so no peak is missed.
    """

    user: float
    system: float
    resident: int
    peak: int

    @property
    def cpu(self) -> float:
        return self.user + self.system


def _family(pid: int) -> Iterator[int]:
    """Yield *pid* and its living descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def process_use(pid: int) -> ProcessUse | None:
    """Return what *pid* and its descendants use; None if there is no such process."""
    user = system = resident = peak = 0
    alive = False
    for member in _family(pid):
        try:
            # The name in parentheses may hold spaces; fields 14 to 17 of proc(5).
            text = Path(f"/proc/{member}/stat").read_text()
            stat = text.rpartition(")")[2].split()
            status = Path(f"/proc/{member}/status").read_text()
        except OSError:  # a child may end at any time
            continue
        if stat[0] == "Z":
            continue
        alive = alive or member == pid
        user += int(stat[11]) + int(stat[13])
        system += int(stat[12]) + int(stat[14])
        resident += _kib(status, "VmRSS:")
        peak += _kib(status, "VmHWM:")
    if not alive:
        return None
    return ProcessUse(user * TICK, system * TICK, resident * 1024, peak * 1024)


def _kib(status: str, name: str) -> int:
    for line in status.splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


class ServerWatch:
    """Samples the server's processes, also over restarts.

    *pid* is the first process. *pid_file* is read again after each restart. Raises
    :class:`CallerError` if there is no such process.
    """

    def __init__(
        self, pid: int | None, pid_file: str | None, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._pid_file = pid_file
        found = pid if pid is not None else self._read_pid()
        if found is None:
            raise CallerError(f"there is no process id in {pid_file}")
        first = process_use(found)
        if first is None:
            raise CallerError(f"there is no process {found}")
        self.pid = found
        # Its use before the load does not count.
        self._base = (first.user, first.system)
        self._last = self._base
        self._earlier = (0.0, 0.0)
        self._peak = first.peak
        self._every = SAMPLE_SECONDS
        self._samples: list[ServerSample] = []

    def _read_pid(self) -> int | None:
        try:
            return int(Path(self._pid_file or "").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    @property
    def last(self) -> ServerSample | None:
        return self._samples[-1] if self._samples else None

    def sample(self) -> float:
        """Take a sample now. Return the CPU seconds so far."""
        seen = process_use(self.pid)
        if seen is not None:
            self._last = (seen.user, seen.system)
            self._peak = max(self._peak, seen.peak)
        user, system = self._used()
        resident = 0 if seen is None else seen.resident
        self._samples.append(ServerSample(self._clock(), user, system, resident))
        if len(self._samples) > MAX_SAMPLES:
            del self._samples[1::2]
            self._every *= 2
        return user + system

    def restarted(self) -> None:
        """Note that the server runs again; with a pid file, as another process."""
        pid = self._read_pid() if self._pid_file else None
        if pid is None or pid == self.pid or process_use(pid) is None:
            return
        self._earlier = self._used()
        self._base = self._last = (0.0, 0.0)
        self.pid = pid
        self.sample()

    def _used(self) -> tuple[float, float]:
        return (
            self._earlier[0] + self._last[0] - self._base[0],
            self._earlier[1] + self._last[1] - self._base[1],
        )

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            self.sample()
            await trio.sleep(self._every)

    async def settle(self, seconds: float = 10.0) -> None:
        """Wait until the server is idle, so that work after its answers counts too."""
        with trio.move_on_after(seconds):
            before = self.sample()
            while True:
                await trio.sleep(0.3)
                now = self.sample()
                if now - before <= TICK:
                    return
                before = now

    def usage(self) -> ServerUsage:
        """Return what the server used since this object was made."""
        user, system = self._used()
        return ServerUsage(
            pid=self.pid,
            user=user,
            system=system,
            peak_resident=self._peak,
            samples=tuple(self._samples),
        )
