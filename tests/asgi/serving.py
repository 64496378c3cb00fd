"""ASGI servers as processes: started, used and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.certificates import write_server_files
from tests.e2e.command import free_port
from tests.processes import SOURCE

START_SECONDS = 60.0
STOP_SECONDS = 20.0


@contextmanager
def served(arguments: Sequence[str], folder: Path) -> Iterator[int]:
    """Run ``python *arguments`` with its places filled in; yield its port.

    In the end it has to end by itself, with no traceback of our code in its log.
    """
    port = free_port()
    cert, key = write_server_files(folder)
    filled = [a.format(port=port, cert=cert, key=key) for a in arguments]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *filled],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=SOURCE,
            env={**os.environ, "TEST_DATA_DIR": str(folder / "data")},
        )
    try:
        _wait_until_it_listens(port, process, log)
        yield port
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    finally:
        process.kill()
        process.wait()
    text = log.read_text()
    assert f"{SOURCE}/trioresume/" not in text, text


def _wait_until_it_listens(
    port: int, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
