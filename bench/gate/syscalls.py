"""Counts of system calls, by strace, which is attached to the running service."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

from bench.gate.client import Client
from bench.peers.own import trioresume
from bench.server import Server

__all__ = ["available", "count"]

WARM_UP = 20
TIMES = 100
LARGE = 32
"""MiB."""
ATTACH_SECONDS = 20.0
PUT_OFF = 0.7
"""Seconds: longer than the service puts off commits."""


def available() -> bool:
    """Return whether strace is installed and may trace processes here."""
    if shutil.which("strace") is None:
        return False
    return (
        subprocess.run(
            ["strace", "-c", "true"], check=False, capture_output=True
        ).returncode
        == 0
    )


def count(directory: Path) -> dict[str, float]:
    """Return the system calls of all threads of the service; data goes to *directory*."""
    figures: dict[str, float] = {}
    with (
        Server(trioresume("disk"), directory / "data") as server,
        Client((server.host, server.port)) as client,
    ):
        client.do("begin", 1)
        for verb in ("small", "offset", "append"):
            client.do(verb, WARM_UP)
            figures[f"system calls per {verb}"] = (
                _traced(server.pid, directory / "trace", client, verb, TIMES) / TIMES
            )
        client.do("large", LARGE)
        found = _traced(server.pid, directory / "trace", client, "large", LARGE)
        figures["system calls per MiB"] = found / LARGE
    return figures


def _traced(pid: int, output: Path, client: Client, verb: str, times: int) -> int:
    time.sleep(PUT_OFF)
    strace = subprocess.Popen(
        ["strace", "-f", "-c", "-p", str(pid), "-o", str(output)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert strace.stderr is not None
    with strace:
        # strace prints a line when it is attached, and one more for each thread. If a thread
        # ends in this moment, strace first prints a complaint about it.
        said = []
        for line in strace.stderr:
            said.append(line)
            if "attached" in line:
                break
        else:
            raise RuntimeError(f"strace could not be attached: {''.join(said)}")
        _wait_until_traced(pid)
        client.do(verb, times)
        time.sleep(PUT_OFF)
        strace.send_signal(signal.SIGINT)
        strace.communicate(timeout=ATTACH_SECONDS)
    for line in output.read_text().splitlines():
        *_, name = line.split() or [""]
        if name == "total":
            return int(line.split()[3])
    raise RuntimeError(f"strace counted nothing: {output.read_text()!r}")


def _wait_until_traced(pid: int) -> None:
    deadline = time.monotonic() + ATTACH_SECONDS
    while time.monotonic() < deadline:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        if all("TracerPid:\t0\n" not in (t / "status").read_text() for t in tasks):
            return
        time.sleep(0.02)
    raise RuntimeError("strace did not attach to every thread")
