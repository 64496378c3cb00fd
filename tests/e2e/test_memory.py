"""Memory is set by configuration, not by sizes or numbers (promise 5).

The short form sends 1 GiB. ``TRIORESUME_E2E_FULL=1`` makes it 4 GiB, which takes as
much space on the disk.
"""

from __future__ import annotations

import hashlib
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.command import Service
from tests.e2e.soak import MIB
from tests.e2e.wire import request_head
from tests.platforms import reads_memory

SLACK = 16 * MIB
STALLED = 200

pytestmark = reads_memory


def blocks(size: int) -> Iterator[bytes]:
    """Random bytes in blocks of 1 MiB, none equal to another, so that none is shared."""
    block = bytearray(random.Random(size).randbytes(MIB))
    for number in range(size // MIB):
        block[:8] = number.to_bytes(8)
        yield bytes(block)


def start(service: Service, target: str, length: int) -> socket.socket:
    """A connection that was asked for its content."""
    sock = socket.create_connection(service.address, timeout=60)
    fields = [("Expect", "100-continue"), ("Prefer", "resume")]
    fields.append(("Content-Length", str(length)))
    sock.sendall(request_head("PUT", target, fields))
    assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
    return sock


def download_digest(service: Service, target: str) -> bytes:
    """SHA-256 of what is served."""
    digest = hashlib.sha256()
    with socket.create_connection(service.address, timeout=60) as sock:
        sock.sendall(request_head("GET", target, [("Connection", "close")]))
        with sock.makefile("rb") as stream:
            assert stream.readline().startswith(b"HTTP/1.1 200 ")
            while stream.readline().strip():
                pass
            while data := stream.read(MIB):
                digest.update(data)
    return digest.digest()


@pytest.mark.slow
def test_memory_stays_flat_during_a_large_upload(service: Service, full: bool) -> None:
    """±16 MiB around what it is early in the upload, and again while it is served."""
    size = (4096 if full else 1024) * MIB
    digest = hashlib.sha256()
    samples = []
    began = time.monotonic()
    with start(service, "/files/large", size) as sock:
        for number, block in enumerate(blocks(size)):
            sock.sendall(block)
            digest.update(block)
            if number % 8 == 7:
                samples.append(service.resident())
        assert sock.recv(65536).startswith(b"HTTP/1.1 201 ")
        samples.append(service.resident())
    seconds = time.monotonic() - began
    assert download_digest(service, "/files/large") == digest.digest()
    samples.append(service.resident())
    early = samples[size // (16 * 8 * MIB)]
    print(  # noqa: T201
        f"{size // MIB} MiB in {seconds:.1f} s with {service.cpu_seconds():.1f} s of CPU, "
        f"{min(samples) / MIB:.1f} to {max(samples) / MIB:.1f} MiB resident"
    )
    assert all(abs(sample - early) <= SLACK for sample in samples[len(samples) // 16 :])


def test_stalled_uploads_hold_little_memory(service: Service) -> None:
    """Two hundred that sent something and fell silent, and are still open."""
    with start(service, "/files/first", 1 << 30) as first:
        first.sendall(bytes(4 * MIB))
        time.sleep(0.2)
        before = service.resident()
        with ExitStack() as stack:
            for number in range(STALLED):
                sock = stack.enter_context(start(service, f"/files/{number}", 1 << 30))
                sock.sendall(bytes(100_000))
            time.sleep(0.5)
            after = service.resident()
    print(f"{before / MIB:.1f} MiB, then {after / MIB:.1f} MiB")  # noqa: T201
    assert after - before <= SLACK


READERS = 200


def test_readers_that_stop_hold_no_content(service: Service) -> None:
    """What is being sent waits in the page cache: a few KiB each, not a block of it."""
    size = 32 * MIB
    with start(service, "/files/large", size) as sock:
        for block in blocks(size):
            sock.sendall(block)
        assert sock.recv(65536).startswith(b"HTTP/1.1 201 ")
    with ExitStack() as stack:
        idle = []
        for _ in range(READERS):
            idle.append(socket.create_connection(service.address, timeout=60))
            stack.enter_context(idle[-1])
        # Each has asked for something and got it: what a connection takes is counted.
        for sock in idle:
            sock.sendall(request_head("HEAD", "/files/large"))
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        before = service.resident()
        for sock in idle:
            sock.sendall(request_head("GET", "/files/large"))
        for sock in idle:
            assert sock.recv(10).startswith(b"HTTP/1.1 ")
        time.sleep(0.5)  # it sends for as long as the kernel takes anything
        grown = service.resident() - before
        print(f"{grown / READERS / 1024:.1f} KiB for each reader")  # noqa: T201
        assert grown / READERS < 64 * 1024
    assert len(download_digest(service, "/files/large")) == 32
