"""Bad requests by the million: nothing of them may stay behind.

In full::

    python -m tests.e2e.bad_requests --requests 1000000

It prints a line of figures; its exit code is 0 only if the service takes no more memory
after all of them than after the first thousand, but for :data:`SLACK`.

The memory that content passes through is a setting, and how much of it was ever touched
depends on what came together. Here it is small, and uploads touch all of it beforehand.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import IO

from tests.e2e.command import Service

__all__ = ["ARGUMENTS", "BAD", "ENVIRONMENT", "SLACK", "Report", "run"]

ARGUMENTS = ("--receive-memory", "2MiB")
"""Of the service, so that its memory can be compared."""
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""The same: glibc's defaults, but fixed. By itself it raises them once something large was
freed, and then keeps up to twice as much of what else is freed: some MiB more, once."""
SLACK = 4 * 1024 * 1024
"""Bytes for what fills up to its bound: SQLite's page caches of 512 KiB for a connection,
the window of the soonest expiries, what waits for a full garbage collection, an arena or
two of the allocator. Most of it is there after the first twenty thousand."""
FIRST = 1000
TOGETHER = 16
LARGE = 4 * 1024 * 1024

_RANGE = b"Content-Type: message/byterange\r\n"

# Each is answered, and the connection closed or kept; all are independent of each other.
BAD: tuple[bytes, ...] = (
    b"GET /files/none HTTP/1.1\r\nHost: x\r\n\r\n",
    b"BREW /files/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /operations/AAAAAAAAAAAAAAAAAAAAAA/content HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PATCH /operations/AAAAAAAAAAAAAAAAAAAAAA/content HTTP/1.1\r\nHost: x\r\n"
    + _RANGE
    + b"Content-Length: 1\r\n\r\nx",
    b"PUT /files/a%2fb HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b'PUT /files/x HTTP/1.1\r\nHost: x\r\nIf-Match: "no"\r\nContent-Length: 3\r\n\r\nabc',
    b"POST /files/ HTTP/1.1\r\nHost: x\r\nExpect: the-worst\r\nContent-Length: 1\r\n\r\nx",
    (b"POST /files/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    b"POST /files/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    (b"POST /files/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Prefer: resume=ignore-incomplete\r\n\r\n3\r\nabc\r\nzz\r\n"),
    b"POST /files/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999\r\n\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n",
    b"GET / HTTP/2.0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
)  # fmt: skip


@dataclass
class Report:
    """What was sent, what came back, what stayed."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    after_first: int = 0
    """Bytes of memory after the first thousand requests, and after all."""
    after_all: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        statuses = ", ".join(f"{n} x {s}" for s, n in sorted(self.statuses.items()))
        return (
            f"{self.requests} bad requests ({statuses}) in {self.seconds:.0f} s; "
            f"{self.after_first / 2**20:.1f} MiB after {FIRST}, "
            f"{self.after_all / 2**20:.1f} MiB after all"
        )


def run(service: Service, requests: int, *, clients: int = 4) -> Report:
    """Send *requests* bad requests to *service*, a thousand of them first."""
    report = Report()
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(lambda n: _upload(service.address, n), range(TOGETHER)))
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        for total in (FIRST, requests - FIRST):
            share = [total // clients] * clients
            share[0] += total - sum(share)
            for statuses in pool.map(lambda n: _send(service.address, n), share):
                report.statuses += statuses
            resident = (
                service.settled_resident()
            )  # connections end, a collection may run
            if total is not FIRST:
                report.after_all = resident
            else:
                report.after_first = resident
    report.requests = report.statuses.total()
    report.seconds = time.monotonic() - began
    return report


def _upload(address: tuple[str, int], number: int) -> None:
    head = b"PUT /files/%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(address, timeout=30) as sock:
        with sock.makefile("rb") as stream:
            sock.sendall(head % (number, LARGE))
            sock.sendall(random.Random(number).randbytes(LARGE))
            assert _read_answer(stream)[0] == 201


def _send(address: tuple[str, int], count: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    kinds = cycle(BAD)
    left = count
    while left:
        with socket.create_connection(address, timeout=30) as sock:
            with sock.makefile("rb") as stream:
                for request in _take(kinds, left):
                    sock.sendall(request)
                    status, closes = _read_answer(stream)
                    statuses[status] += 1
                    left -= 1
                    if closes:
                        break
    return statuses


def _take(kinds: Iterator[bytes], count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield next(kinds)


def _read_answer(stream: IO[bytes]) -> tuple[int, bool]:
    """Status of the final response, and whether the connection closes after it."""
    while True:
        status = int(stream.readline().split()[1])
        length, closes = 0, False
        while line := stream.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
            closes = closes or line == b"connection: close"
        if status >= 200:
            stream.read(length)
            return status, closes


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trioresume-bad-") as directory:
        service = Service(
            Path(directory) / "data", ("serve", *ARGUMENTS), environment=ENVIRONMENT
        )
        service.start()
        try:
            report = run(service, options.requests)
            service.stop()
            service.check_log()
        finally:
            service.close()
    print(report)  # noqa: T201
    return 0 if report.after_all - report.after_first <= SLACK else 1


if __name__ == "__main__":
    sys.exit(_main())
