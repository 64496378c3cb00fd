"""A private PostgreSQL for the tests: on a Unix socket and a port of its own, in a directory.

PostgreSQL does not run as root. A test run as root has it run as ``postgres``, the user that the
package makes, or as ``nobody``. What is not installed is said by :func:`why_not`.

``python -m tests.postgres DIRECTORY`` runs one until it is interrupted, and prints its URL.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["PostgresServer", "why_not"]

_START = 30.0
"""Seconds for the server to start or to stop."""


def _programs() -> Path | None:
    """The directory of the server's programs, which Debian has in no PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: float(path.parts[-3]),
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return None if on_path is None else Path(on_path).parent


def why_not() -> str | None:
    """Why there can be no server here; None if there can."""
    if _programs() is None:
        return "PostgreSQL is not installed"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL does not run as root, and setpriv is not installed"
    return None


def _other_user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


class PostgresServer:
    """One server. Its data directory is removed by :meth:`close`."""

    def __init__(self, directory: Path | None = None) -> None:
        programs = _programs()
        assert programs is not None
        self._programs = programs
        self._user = _other_user()
        memory = Path("/dev/shm")
        self._is_ours = directory is None
        self._directory = directory or Path(
            tempfile.mkdtemp(
                prefix="trioresume-pg-",
                dir=memory if os.access(memory, os.W_OK) else None,
            )
        )
        if self._user is not None:
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            f"--pgdata={self._data}",
            "--username=trioresume",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        self.start()

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    @property
    def url(self) -> str:
        """The URL over the loopback interface."""
        return f"postgresql://trioresume@127.0.0.1:{self.port}/postgres"

    @property
    def socket_url(self) -> str:
        """The URL over the Unix socket."""
        return (
            f"postgresql://trioresume@/postgres?host={self._directory}&port={self.port}"
        )

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._programs / program), *arguments]
        if self._user is None:
            return command
        ids = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}"]
        return ["setpriv", *ids, "--clear-groups", *command]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: PLW1510 - the assertion shows more
            self._command(program, *arguments),
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start the server, and return once it takes connections."""
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(
                    "postgres",
                    f"-D{self._data}",
                    f"-k{self._directory}",
                    f"-p{self.port}",
                    "-clisten_addresses=127.0.0.1",
                    "-cmax_connections=200",
                    "-cshared_buffers=32MB",
                    "-cwal_level=minimal",
                    "-cmax_wal_senders=0",
                ),
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, "LC_ALL": "C"},
            )
        deadline = time.monotonic() + _START
        ready = self._command(
            "pg_isready", "-q", "-h127.0.0.1", f"-p{self.port}", "-Utrioresume"
        )
        while subprocess.run(ready, cwd="/", check=False).returncode != 0:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text("utf-8", "replace")

    def stop(self, *, crash: bool = False) -> None:
        """End the server and every connection; with *crash* without an orderly end."""
        process, self._process = self._process, None
        if process is None:
            return
        # SIGINT is the fast shutdown, SIGQUIT the immediate one, which recovers at the start.
        process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        process.wait(_START)

    def restart(self, *, crash: bool = False) -> None:
        self.stop(crash=crash)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its directory."""
        self.stop(crash=True)
        if self._is_ours:
            shutil.rmtree(self._directory)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    reason = why_not()
    if reason is not None:
        sys.exit(reason)
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    server = PostgresServer(directory)
    try:
        print(server.url, flush=True)  # noqa: T201 - what the script is for
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        server.close()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
