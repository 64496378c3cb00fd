"""Memory is set by configuration, not by sizes or numbers (promise 5).

The short form sends 512 MiB. ``TRIORESUME_E2E_FULL=1`` makes it 4 GiB, which takes as
much space on the disk.
"""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.command import Service
from tests.e2e.soak import MIB
from tests.e2e.wire import request_head
from tests.platforms import reads_memory

SLACK = 16 * MIB
STALLED = 200

pytestmark = reads_memory


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """A fork would count the memory of the process that it was forked from."""
    service = make_service(fresh=True)
    service.start()
    return service


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
    size = (4096 if full else 512) * MIB
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
        before = service.settled_resident()
        with ExitStack() as stack:
            for number in range(STALLED):
                sock = stack.enter_context(start(service, f"/files/{number}", 1 << 30))
                sock.sendall(bytes(100_000))
            after = service.settled_resident()
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
        # It sends for as long as the kernel takes anything.
        grown = service.settled_resident() - before
        print(f"{grown / READERS / 1024:.1f} KiB for each reader")  # noqa: T201
        assert grown / READERS < 64 * 1024
    assert len(download_digest(service, "/files/large")) == 32


JUDGED = 64
"""Patches that are judged as a whole, each just under 1 MiB, all at once."""

TUS = {"Tus-Resumable": "1.0.0"}
RUFH = {"Upload-Draft-Interop-Version": "6", "Upload-Complete": "?0"}
_SHA1 = f"sha1 {base64.b64encode(bytes(20)).decode()}"
_SHA256 = f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"
_APPEND = TUS | {"Content-Type": "application/offset+octet-stream"}
_RANGE = b"Content-Range: bytes 0-%d/*\r\n\r\n"

# What begins the upload, what the patch says, how its content begins.
JUDGED_PATCHES = {
    "tus": (
        TUS | {"Upload-Defer-Length": "1"},
        _APPEND | {"Upload-Offset": "0", "Upload-Checksum": _SHA1},
        b"",
    ),
    "digest": (
        RUFH,
        RUFH
        | {
            "Upload-Offset": "0",
            "Content-Type": "application/partial-upload",
            "Content-Digest": _SHA256,
        },
        b"",
    ),
    "multipart": (
        RUFH,
        {"Content-Type": "multipart/byteranges; boundary=x"},
        b"--x\r\n" + _RANGE % MIB,
    ),
    "atomic": (
        RUFH,
        {"Content-Type": "message/byterange", "Prefer": "transaction=atomic"},
        _RANGE % MIB,
    ),
}


def begin_upload(service: Service, fields: dict[str, str]) -> str:
    """An empty upload; the path of its content."""
    with socket.create_connection(service.address, timeout=60) as sock:
        asked = [*fields.items(), ("Content-Length", "0"), ("Connection", "close")]
        sock.sendall(request_head("POST", "/files/", asked))
        with sock.makefile("rb") as stream:
            said = stream.read().decode()
    assert "HTTP/1.1 201 " in said, said
    location = next(line for line in said.split("\r\n") if "ocation: http" in line)
    return location.split(": ", 1)[1].removeprefix("http://e2e.test")


@pytest.mark.parametrize("kind", list(JUDGED_PATCHES))
def test_judged_patches_take_no_memory_of_their_own(
    service: Service, kind: str
) -> None:
    """However a patch is judged as a whole, its content waits on the disk."""
    creation, said, start_of_content = JUDGED_PATCHES[kind]
    content = start_of_content + bytes(MIB - 100 - len(start_of_content))
    fields = [*said.items(), ("Content-Length", str(MIB - 1))]
    with ExitStack() as stack:

        def send_patch() -> None:
            path = begin_upload(service, creation)
            sock = socket.create_connection(service.address, timeout=60)
            stack.enter_context(sock)
            sock.sendall(request_head("PATCH", path, fields) + content)

        for _ in range(16):  # which touches the memory that all share
            send_patch()
        before = service.settled_resident()
        for _ in range(JUDGED):
            send_patch()
        after = service.settled_resident()
    print(f"{kind}: {before / MIB:.1f} MiB, then {after / MIB:.1f} MiB")  # noqa: T201
    assert after - before <= SLACK
