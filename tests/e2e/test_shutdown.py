"""SIGTERM under load, with the real command (promise 6, G9)."""

from __future__ import annotations

import secrets
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import IO

import pytest

from tests.e2e.command import Service
from tests.e2e.wire import request_head
from tests.sockets import wait_until_read

MakeService = Callable[..., Service]

MIB = 1024 * 1024
UPLOADS = 20
LENGTH = 3 * MIB


class Upload:
    """One resumable upload by hand, blocking."""

    def __init__(self, service: Service, name: str) -> None:
        self.name = name
        self.body = secrets.token_bytes(LENGTH)
        self.sent = 0
        self._service = service
        self.sock = socket.create_connection(service.address, timeout=20)
        fields = [("Prefer", "resume"), ("Content-Length", str(LENGTH))]
        self.sock.sendall(request_head("PUT", f"/files/{name}", fields))
        head = self.sock.recv(4096).decode()
        assert head.startswith("HTTP/1.1 100 ")
        (self.location,) = [
            line.partition(": ")[2]
            for line in head.split("\r\n")
            if line.lower().startswith("request-content-location")
        ]

    def send(self, size: int) -> None:
        self.sock.sendall(self.body[self.sent : self.sent + size])
        self.sent += size

    def answer(self) -> bytes:
        """All that comes up to the end of the connection."""
        parts = []
        try:
            while part := self.sock.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)

    def resume(self) -> None:
        """Ask for the offset, send the rest, and compare what is served."""
        with closing(
            socket.create_connection(self._service.address, timeout=20)
        ) as sock:
            stream = sock.makefile("rb")
            sock.sendall(request_head("HEAD", self.location))
            offset = int(_read(stream, content=False)["upload-offset"])
            assert self.acknowledged <= offset <= self.sent
            rest = self.body[offset:]
            patch = b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (
                offset, LENGTH - 1, LENGTH,
            ) + rest  # fmt: skip
            fields = [
                ("Content-Type", "message/byterange"),
                ("Content-Length", str(len(patch))),
            ]
            sock.sendall(request_head("PATCH", self.location, fields) + patch)
            assert _read(stream)[":status"] == "201"
            sock.sendall(request_head("GET", f"/files/{self.name}"))
            assert _read(stream)[":content"].encode("latin-1") == self.body

    acknowledged = 0
    """What the service said it had, before it was told to stop."""

    def ask(self) -> None:
        with closing(
            socket.create_connection(self._service.address, timeout=20)
        ) as sock:
            sock.sendall(request_head("HEAD", self.location))
            fields = _read(sock.makefile("rb"), content=False)
            self.acknowledged = int(fields["upload-offset"])


def _read(stream: IO[bytes], *, content: bool = True) -> dict[str, str]:
    """A response: its fields, and its status and content under names of their own."""
    fields = {":status": stream.readline().split()[1].decode()}
    while line := stream.readline().strip().decode():
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    if content:
        size = int(fields.get("content-length", 0))
        fields[":content"] = stream.read(size).decode("latin-1")
    return fields


def _terminate(service: Service) -> None:
    assert service._process is not None
    service._process.send_signal(signal.SIGTERM)


def _wait(service: Service, seconds: float) -> int:
    assert service._process is not None
    code = service._process.wait(seconds)
    service.kill()  # it is gone: only its pipe is left to close
    return code


def _begin(service: Service, stack: ExitStack) -> list[Upload]:
    uploads = []
    for number in range(UPLOADS):
        upload = Upload(service, f"{number}")
        stack.callback(upload.sock.close)
        upload.send(MIB + number * 1000)
        uploads.append(upload)
    return uploads


def test_sigterm_under_load_finishes_or_keeps_every_upload(
    make_service: MakeService,
) -> None:
    """G9: new connections are refused at once, running requests get the grace period,
    the rest is kept, and the next start has all of it."""
    service = make_service("--grace-timeout", "4s")
    service.start()
    with ExitStack() as stack:
        uploads = _begin(service, stack)
        finishing, kept = uploads[: UPLOADS // 2], uploads[UPLOADS // 2 :]
        wait_until_read(*(upload.sock for upload in uploads))
        began = time.monotonic()
        _terminate(service)
        _wait_until_refused(service)
        assert time.monotonic() - began < 1.5
        for upload in finishing:
            upload.send(LENGTH)
            assert b"HTTP/1.1 201 " in upload.answer()
        for upload in kept:
            upload.send(100_000)
        for upload in kept:
            last = upload.answer()
            assert last.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in last.lower()
            assert b"the service is shutting down" in last
        assert _wait(service, 15) == 0
        assert 3.5 < time.monotonic() - began < 12
        service.start()
        for upload in kept:
            # What came within the grace period was taken and is there.
            upload.acknowledged = upload.sent
            upload.resume()
    assert service.file_names() == {upload.name for upload in uploads}
    assert service.tails() == []
    service.stop()


def test_second_signal_stops_at_once_and_loses_nothing_announced(
    make_service: MakeService,
) -> None:
    """G9: without waiting for the grace period; what was announced is there."""
    service = make_service("--grace-timeout", "60s")
    service.start()
    with ExitStack() as stack:
        uploads = _begin(service, stack)
        for upload in uploads[::2]:
            upload.ask()  # which ends the writer, and so this connection
        for upload in uploads[1::2]:
            upload.send(50_000)
        _terminate(service)
        _wait_until_refused(service)
        began = time.monotonic()
        _terminate(service)
        assert _wait(service, 10) == 0
        assert time.monotonic() - began < 5
        service.start()
        for upload in uploads:
            upload.resume()
    service.stop()


def _wait_until_refused(service: Service) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(service.address, timeout=5).close()
        except ConnectionRefusedError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_service_ends_at_once(make_service: MakeService, number: int) -> None:
    """Idle connections are closed, nobody waits for a grace period."""
    service = make_service("--grace-timeout", "60s")
    service.start()
    with closing(socket.create_connection(service.address, timeout=10)) as sock:
        sock.sendall(request_head("GET", "/files/none"))
        assert sock.recv(100).startswith(b"HTTP/1.1 404 ")
        assert service._process is not None
        began = time.monotonic()
        service._process.send_signal(number)
        assert _wait(service, 10) == 0
        assert time.monotonic() - began < 5


TUS = [("Tus-Resumable", "1.0.0")]
RUFH = [("Upload-Draft-Interop-Version", "8"), ("Upload-Complete", "?1")]
CHUNKED = [("Transfer-Encoding", "chunked")]
LONG = [("Content-Length", "1000000")]

KINDS: dict[str, tuple[str, str, list[tuple[str, str]], bytes]] = {
    "seed": ("PUT", "/files/a", [("Prefer", "resume"), *LONG], b"abc"),
    "rufh": ("POST", "/files/", [*RUFH, *LONG], b"abc"),
    "tus": ("POST", "/files/", [*TUS, ("Upload-Length", "1000000"), *LONG,
            ("Content-Type", "application/offset+octet-stream")], b"abc"),
    "plain": ("PUT", "/files/b", LONG, b"abc"),
    "chunked": ("PUT", "/files/c", CHUNKED, b"3\r\nabc\r\n"),
    "expecting": ("PUT", "/files/d", [("Expect", "100-continue"), *LONG], b""),
}  # fmt: skip


def test_every_upload_is_told_when_the_grace_period_ends(
    make_service: MakeService,
) -> None:
    """A 503 that can be read, also by a client that still sends; then the connection ends."""
    service = make_service("--grace-timeout", "1s")
    service.start()
    with ExitStack() as stack:
        streams = {}
        for name, (method, path, fields, body) in KINDS.items():
            sock = socket.create_connection(service.address, timeout=20)
            stack.callback(sock.close)
            sock.sendall(request_head(method, path, fields) + body)
            streams[name] = sock
        idle = socket.create_connection(service.address, timeout=20)
        stack.callback(idle.close)
        begun = socket.create_connection(service.address, timeout=20)
        stack.callback(begun.close)
        begun.sendall(b"GET /files/ HT")
        wait_until_read(begun, *streams.values())
        _terminate(service)
        began = time.monotonic()
        assert idle.recv(100) == b""
        assert time.monotonic() - began < 0.8
        for name, sock in streams.items():
            if name not in ("chunked", "expecting"):
                sock.sendall(bytes(50_000))
            said = b""
            while piece := sock.recv(65536):
                said += piece
            final = said[said.index(b"HTTP/1.1 503 ") :]
            assert b"\r\nconnection: close\r\n" in final.lower(), name
            assert b"application/problem+json" in final, name
            assert (b"tus-resumable" in final.lower()) == (name == "tus")
        assert time.monotonic() - began >= 0.8
        assert _wait(service, 10) == 0
    service.check_log()


def test_default_grace_period_ends_before_a_container_is_killed(
    make_service: MakeService,
) -> None:
    """Ten seconds after SIGTERM comes SIGKILL. One client stalls, another reads nothing."""
    service = make_service()
    service.start()
    with ExitStack() as stack:
        stalled = Upload(service, "stalled")
        stack.callback(stalled.sock.close)
        stalled.send(1000)
        big = Upload(service, "big")
        stack.callback(big.sock.close)
        big.body = bytes(LENGTH)
        big.send(LENGTH)
        assert b"HTTP/1.1 201 " in big.sock.recv(4096)
        deaf = socket.create_connection(service.address, timeout=20)
        stack.callback(deaf.close)
        deaf.sendall(request_head("GET", "/files/big") * 100)
        wait_until_read(stalled.sock)
        began = time.monotonic()
        _terminate(service)
        assert stalled.answer().startswith(b"HTTP/1.1 503 ")
        assert time.monotonic() - began > 6
        assert _wait(service, 10) == 0
        assert time.monotonic() - began < 9.5


@pytest.mark.parametrize("times", [1, 3])
def test_hangup_ends_nothing(make_service: MakeService, times: int) -> None:
    """SIGHUP, as of a terminal that is closed or a tool that wants a new configuration."""
    service = make_service()
    service.start()
    with ExitStack() as stack:
        upload = Upload(service, "file")
        stack.callback(upload.sock.close)
        upload.send(MIB)
        assert service._process is not None
        for time_ in range(1, times + 1):
            service._process.send_signal(signal.SIGHUP)
            service.wait_for_log("SIGHUP", times=time_)
        upload.send(LENGTH)
        assert b"HTTP/1.1 201 " in upload.sock.recv(4096)
    service.stop()
