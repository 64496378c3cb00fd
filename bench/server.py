"""Servers under test, as subprocesses, and what the kernel says they used.

CPU time is of the process and all its descendants, living and dead. Memory is the
resident set, of the same processes: ``VmHWM`` is the kernel's own high-water mark
since the process began, so no sampling can miss a peak.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.peers import Peer
from bench.peers.cache import Cache

__all__ = ["Cpu", "Server", "ServerFailed", "machine_cpu"]

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_ATTEMPTS = 3
"""Ports tried: one that was free may be taken before the server has it."""


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


class Server:
    """A running server; a context manager that ends it.

    Making one installs the peer if need be, makes *data_dir*, starts the server on
    a free port of the loopback interface and waits until it answers a request.
    Raises :class:`ServerFailed`, and what :meth:`bench.peers.cache.Cache.get` raises.
    """

    def __init__(
        self,
        peer: Peer,
        data_dir: Path,
        *,
        cache: Cache | None = None,
        start_timeout: float = 20.0,
    ) -> None:
        self.peer = peer
        self.host = "127.0.0.1"
        self._output: deque[str] = deque(maxlen=40)
        at = (cache or Cache()).get(peer)
        data_dir.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            self.port = _free_port()
            launch = peer.launch(at, data_dir, self.port)
            self.path = launch.path
            self._process = subprocess.Popen(
                launch.command,
                cwd=data_dir,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # Its children belong to it: they end with it, whatever happens.
                start_new_session=True,
            )
            # A pipe that nobody reads would stop a server that logs.
            self._drain = threading.Thread(target=self._read_output, daemon=True)
            self._drain.start()
            try:
                ready = self._wait_until_ready(start_timeout)
            except BaseException:
                self.stop()
                raise
            if ready:
                return
            self.stop()
        raise ServerFailed(f"{peer.name} did not start:\n{self.output}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        """Where uploads go."""
        return f"http://{self.host}:{self.port}{self.path}"

    @property
    def output(self) -> str:
        """The last lines it printed."""
        return "".join(self._output)

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._output.append(line)

    def _wait_until_ready(self, timeout: float) -> bool:
        """Whether it answers; not if it ended, or says nothing in time."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                if self._answers():
                    return self._process.poll() is None
            time.sleep(0.02)
        return False

    def _answers(self) -> bool:
        with socket.create_connection((self.host, self.port), timeout=2) as sock:
            request = (
                f"OPTIONS {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
                "Connection: close\r\n\r\n"
            )
            sock.sendall(request.encode())
            return sock.recv(64).startswith(b"HTTP/1.1 ")

    def cpu(self) -> Cpu:
        """CPU time so far. Raises :class:`ServerFailed` if the server is gone."""
        if self._process.poll() is not None:
            raise ServerFailed(f"{self.peer.name} ended:\n{self.output}")
        user = system = 0
        for pid in _family(self.pid):
            with contextlib.suppress(OSError):  # a child may end any time
                # The name in parentheses may hold spaces; fields 14 to 17 of proc(5).
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                user += int(stat[11]) + int(stat[13])
                system += int(stat[12]) + int(stat[14])
        return Cpu(user * _TICK, system * _TICK)

    def busy(self) -> float:
        """CPU seconds so far of the threads that it has now, to the nanosecond.

        For the difference between two moments close together, such as one request.
        """
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread may end any time
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

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
        for pid in _family(self.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith(name):
                        total += int(line.split()[1]) * 1024
        return total

    def stop(self) -> None:
        """End the server: politely, then not; and what it may have left behind."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


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
