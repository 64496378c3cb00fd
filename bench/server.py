"""Servers under test, as subprocesses, and the CPU time and memory that they use.

The figures come from the kernel: see :class:`~trioresume.bench.usage.ProcessUse`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.peers import Peer
from bench.peers.cache import Cache
from bench.peers.peer import Carrier, Certificate
from trioresume.bench.usage import TICK, ProcessUse, process_use

__all__ = ["Server", "ServerFailed", "free_port", "machine_cpu", "make_certificate"]

_ATTEMPTS = 3
"""How many ports to try: another program may take a free port before the server does."""


class ServerFailed(Exception):
    """A server did not start, or died."""


class Server:
    """A running server, and a context manager that ends it.

    The constructor installs the peer if necessary, makes *data_dir*, starts the server on
    a free port of the loopback interface and waits until it answers a request.
    Raises :class:`ServerFailed`, and the errors of :meth:`bench.peers.cache.Cache.get`.
    """

    def __init__(
        self,
        peer: Peer,
        data_dir: Path,
        *,
        cache: Cache | None = None,
        start_timeout: float = 20.0,
        carrier: Carrier = Carrier.PLAIN,
    ) -> None:
        self.peer = peer
        self.carrier = carrier
        self.host = "127.0.0.1"
        self._output: deque[str] = deque(maxlen=40)
        at = (cache or Cache()).get(peer)
        data_dir.mkdir(parents=True, exist_ok=True)
        certificate: Certificate | None = None
        if carrier.is_secure:
            certificate = make_certificate(data_dir.with_name(f"{data_dir.name}-tls"))
        for _ in range(_ATTEMPTS):
            self.port = free_port()
            launch = peer.launch(at, data_dir, self.port)
            if certificate is not None:
                launch = peer.secure(launch, certificate)
            elif carrier is Carrier.H2C:
                command = (*launch.command, *peer.h2c_options)
                launch = replace(launch, command=command)
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
                # In a new session, so that its children can be ended with it.
                start_new_session=True,
            )
            # A server that logs would stop at a full pipe, so a thread reads it.
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
        """The URL for uploads."""
        scheme = "https" if self.carrier.is_secure else "http"
        return f"{scheme}://{self.host}:{self.port}{self.path}"

    @property
    def output(self) -> str:
        """The last lines that the server printed."""
        return "".join(self._output)

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._output.append(line)

    def _wait_until_ready(self, timeout: float) -> bool:
        """Return whether the server answers in time; False also if it has ended."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                if self._answers():
                    return self._process.poll() is None
            time.sleep(0.02)
        return False

    def _answers(self) -> bool:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(
                socket.create_connection((self.host, self.port), timeout=2)
            )
            if self.carrier.is_secure:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                sock = stack.enter_context(context.wrap_socket(sock))
            request = (
                f"OPTIONS {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
                "Connection: close\r\n\r\n"
            )
            sock.sendall(request.encode())
            return sock.recv(64).startswith(b"HTTP/1.1 ")

    def use(self) -> ProcessUse:
        """Return its CPU time and memory. Raises :class:`ServerFailed` if it has ended."""
        if (
            self._process.poll() is None
            and (found := process_use(self.pid)) is not None
        ):
            return found
        raise ServerFailed(f"{self.peer.name} ended:\n{self.output}")

    def busy(self) -> float:
        """Return the CPU seconds so far of its present threads, with nanoseconds.

        Use it for a short time, such as that of one request: threads that end meanwhile
        drop out of the sum.
        """
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread may end at any time
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def settle(self, timeout: float = 10.0) -> ProcessUse:
        """Wait until the server is idle, so that work after its answers counts as well."""
        deadline = time.monotonic() + timeout
        before = self.use()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            now = self.use()
            if now.cpu - before.cpu <= TICK:
                return now
            before = now
        return before

    def stop(self) -> None:
        """End the server by SIGTERM, then by SIGKILL; then kill its remaining children."""
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


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate that nobody trusts. Raises :class:`ServerFailed`."""
    folder.mkdir(exist_ok=True)
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = (
        *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "30"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"),
        *("-keyout", str(made.keyfile), "-out", str(made.certfile)),
    )
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise ServerFailed(f"no certificate was made: {exc}") from exc
    return made


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def machine_cpu() -> tuple[float, float]:
    """Return the seconds that all CPUs were busy, and those that the hypervisor took."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq) * TICK, steal * TICK
