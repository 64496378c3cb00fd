"""The real service as a process of its own: started, killed, started again.

Every instance keeps one port and one data directory over all its lives, so that what
a client was told before a crash still leads somewhere after it.
"""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import trio

from tests.processes import Process, environment_of, start

START_SECONDS = 120.0
STOP_SECONDS = 20.0
_LINE = "You can now upload files to: "


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection will be given.

    While a service is down its clients go on connecting; the kernel must not pick
    the service's own port for one of them.
    """
    low = 32768
    bounds = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if bounds.exists():
        low = int(bounds.read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(min(low, 20000), low)
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Service:
    """One service: by default ``python -m trioresume serve``.

    *module* is what ``python -m`` runs instead, *arguments* come before ``--bind``. It is
    forked (:mod:`tests.processes`) unless it has to be *fresh*. *environment* is added to
    this process's; modules may read it while they are imported, so it makes it fresh.
    Blocking: async tests call :meth:`start` and :meth:`stop` in a thread.
    """

    def __init__(
        self,
        data_dir: Path,
        arguments: Sequence[str] = ("serve",),
        *,
        module: str = "trioresume",
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> None:
        self._environment = environment or {}
        self._fresh = fresh or bool(environment)
        self.data_dir = data_dir
        self.log = log or data_dir.with_name(data_dir.name + ".log")
        self.port = free_port()
        self.address = ("127.0.0.1", self.port)
        scheme = "https" if "--ssl-certfile" in arguments else "http"
        self.root = f"{scheme}://127.0.0.1:{self.port}"
        self._command = [module, *arguments]
        self._command += ["--bind", f"127.0.0.1:{self.port}"]
        self._command += ["--data-dir", str(data_dir)]
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it says that it listens."""
        assert self._process is None
        self._process = start(
            self._command,
            environment=environment_of() | dict(self._environment),
            directory=self.log.parent,
            stderr=self.log,
            fresh=self._fresh,
        )
        line = self._first_line(self._process)
        if not line.startswith(_LINE + self.root):
            self.kill()
            raise AssertionError(f"it said {line!r}; its log:\n{self.log.read_text()}")

    def _first_line(self, process: Process) -> str:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline() if selector.select(START_SECONDS) else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def stop(self) -> None:
        """SIGTERM; it has to end by itself, with exit code 0."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        finally:
            self.kill()
        assert code == 0, self.log.read_text()

    def close(self) -> None:
        """Whatever happened: it does not outlive its test."""
        if self._process is not None:
            self.kill()

    def wait_for_log(self, text: str, seconds: float = 20.0, *, times: int = 1) -> None:
        """Wait until the log says *text*, so many times."""
        deadline = time.monotonic() + seconds
        while self.log.read_text().count(text) < times:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def check_log(self) -> None:
        """No bug has reached the log."""
        log = self.log.read_text()
        assert "Traceback" not in log, log

    def resident(self) -> int:
        """Bytes of memory it holds now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (x for x in status.splitlines() if x.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def settled_resident(self, seconds: float = 20.0) -> int:
        """Bytes of memory it holds once it does nothing any more, for a quarter second."""
        deadline = time.monotonic() + seconds
        idle, before = 0, self.cpu_seconds()
        while idle < 5:
            assert time.monotonic() < deadline, "it is still busy"
            time.sleep(0.05)
            now = self.cpu_seconds()
            idle = idle + 1 if now == before and not self._has_work() else 0
            before = now
        return self.resident()

    def _has_work(self) -> bool:
        """Whether a thread of it runs, waits for a processor, or for a disk."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # the thread has ended
            if state in "RD":
                return True
        return False

    def peak(self) -> int:
        """The most bytes of memory that it has held in this life."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (x for x in status.splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def cpu_seconds(self) -> float:
        """Processor time it has used in this life."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # What its data directory holds; see docs/explanation/storage-format.md.

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """The catalog's answer to *query*. While the service is down, or only reading."""
        path = f"file:{self.data_dir / 'catalog.sqlite3'}?mode=ro"
        with closing(sqlite3.connect(path, uri=True)) as connection:
            return connection.execute(query).fetchall()

    def file_names(self) -> set[str]:
        """The names that the file service has."""
        return {str(name) for (name,) in self.rows("SELECT name FROM files")}

    def unfinished(self) -> list[tuple[object, ...]]:
        """Operations that hold content and have no response."""
        return self.rows(
            "SELECT o.id, o.state, o.target FROM operations o JOIN contents c"
            " ON c.key = o.id WHERE o.response_head IS NULL AND EXISTS"
            " (SELECT 1 FROM pieces p WHERE p.cid = c.cid)"
        )

    def tails(self) -> list[str]:
        """The files of bytes that are no chunk yet."""
        return [
            name for _, _, names in os.walk(self.data_dir / "tails") for name in names
        ]

    def tail_sizes(self) -> list[int]:
        """How long these files are."""
        sizes = []
        for folder, _, names in os.walk(self.data_dir / "tails"):
            for name in names:
                try:
                    sizes.append(os.stat(os.path.join(folder, name)).st_size)
                except FileNotFoundError:
                    pass  # of an upload that is complete by now
        return sizes

    async def wait_for_tail(self, size: int, seconds: float = 20.0) -> None:
        """Wait until an upload that is no chunk long has *size* bytes on disk."""
        deadline = time.monotonic() + seconds
        while size not in (found := self.tail_sizes()):
            assert time.monotonic() < deadline, f"{size} bytes are not in {found}"
            await trio.sleep(0.01)

    def wait_for_collection(self, most_bytes: int, seconds: float = 15.0) -> None:
        """Wait until the chunks take no more than *most_bytes* on disk."""
        deadline = time.monotonic() + seconds
        while (held := self.chunk_bytes()) > most_bytes:
            assert time.monotonic() < deadline, f"{held} bytes are still there"
            time.sleep(0.1)

    def chunk_bytes(self) -> int:
        """The sizes of all chunk files, together."""
        total = 0
        for folder, _, names in os.walk(self.data_dir / "chunks"):
            for name in names:
                try:
                    total += os.stat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    pass  # collected while we looked
        return total
