"""What an outsider can do to a TLS port, against the real command.

After each attack the service still serves, has as many descriptors open as before, has not
grown, and has logged neither an error nor a traceback.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.certificates import client_context, write_server_files
from tests.e2e.command import Service
from tests.platforms import linux_only, reads_memory

pytestmark = reads_memory

MIB = 1024 * 1024
GROWTH = 24 * MIB
"""What a service may need for the first handshakes of all, and as many at once."""
HTTP2_START = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x01\x00\x00"  # SETTINGS
    b"\x00\x00\x04\x01\x04\x00\x00\x00\x01\x82\x87\x84\x41"  # HEADERS, and part of a field
)
PROTOCOLS = (["h2"], ["http/1.1"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two certificates, for all attacks that leave it running."""
    folder = tmp_path_factory.mktemp("attacked")
    options: list[str] = []
    for name in ("localhost", "two.example"):
        certificate, key = write_server_files(folder, name)
        options += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    service = Service(folder / "data", ("serve", *options))
    service.start()
    yield service
    service.stop()
    service.check_log()


def ask(service: Service) -> bytes:
    """The status line of a good client's request."""
    with (
        socket.create_connection(service.address, 20) as sock,
        TRUSTING.wrap_socket(sock, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET /operations/none HTTP/1.1\r\nHost: x\r\n\r\n")
        return secured.recv(9999).partition(b"\r\n")[0]


TRUSTING = client_context()


def descriptors(service: Service) -> int:
    return len(os.listdir(f"/proc/{service.pid}/fd"))


@contextmanager
def unharmed(service: Service, *, quiet: bool = True) -> Iterator[None]:
    """Whatever the block does, *service* is as it was before."""
    assert ask(service) == b"HTTP/1.1 404 Not Found"
    open_before = descriptors(service)
    held_before = service.resident()
    logged_before = len(service.log.read_text())
    yield
    assert ask(service) == b"HTTP/1.1 404 Not Found"
    deadline = time.monotonic() + 20
    while descriptors(service) > open_before:
        assert time.monotonic() < deadline, f"{descriptors(service)} descriptors"
        time.sleep(0.02)
    assert service.resident() < held_before + GROWTH
    log = service.log.read_text()[logged_before:]
    assert "Traceback" not in log, log
    if quiet:
        assert "error" not in log, log


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@cache
def context_for(protocols: tuple[str, ...]) -> ssl.SSLContext:
    context = client_context()
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


class Hello:
    """A client's end of a handshake, in memory."""

    def __init__(self, *protocols: str) -> None:
        context = context_for(protocols)
        self.is_through = False
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_hostname="localhost"
        )

    def step(self) -> bytes:
        """The bytes that the client sends next; the start of HTTP/2 after the handshake."""
        try:
            self.tls.do_handshake()
            self.tls.write(HTTP2_START)
            self.is_through = True
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()


HELLO = Hello("h2", "http/1.1").step()


def mutated(draw: random.Random) -> bytes:
    """First bytes that are garbage, or nearly a ClientHello."""
    data = bytearray(HELLO)
    match draw.randrange(5):
        case 0:
            return draw.randbytes(draw.randrange(300))
        case 1:
            return b"\x16\x03\x01" + draw.randbytes(draw.randrange(400))
        case 2:
            return bytes(data[: draw.randrange(len(data))])
        case 3:
            place = draw.randrange(len(data))
            data[place:place] = draw.randbytes(draw.randrange(30))
        case _:
            for _ in range(draw.randint(1, 8)):
                data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def leave(sock: socket.socket, draw: random.Random) -> None:
    """End a connection in one of the ways that there are."""
    match draw.randrange(4):
        case 0:
            reset(sock)
        case 1:
            sock.close()
        case 2:
            sock.settimeout(0.02)
            try:
                sock.recv(9999)
            except OSError:
                pass
            reset(sock)
        case _:
            try:
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(0.02)
                sock.recv(9999)
            except OSError:
                pass
            sock.close()


def test_first_bytes_of_any_kind_hurt_nobody(
    service: Service, seed: int, full: bool
) -> None:
    """Also host names that are not ASCII: they made Python print a traceback."""
    draw = random.Random(seed)
    named = HELLO.replace(b"localhost", b"local\xffost")
    assert named != HELLO
    with unharmed(service):
        for number in range(10_000 if full else 500):
            data = mutated(draw) if number else named
            sock = socket.create_connection(service.address, 20)
            try:
                sock.sendall(data)
            except OSError:
                pass  # the service has seen enough
            leave(sock, draw)


def cut(service: Service, protocols: list[str], size: int, *, resets: bool) -> int:
    """Shake hands and start HTTP/2, but end after *size* bytes; return what was sent."""
    client = Hello(*protocols)
    sent = 0
    with socket.create_connection(service.address, 20) as sock:
        while True:
            data = client.step()[: size - sent]
            sock.sendall(data)
            sent += len(data)
            if sent == size or client.is_through:
                break
            client.incoming.write(sock.recv(65536))
        if resets:
            reset(sock)
    return sent


def test_cut_after_any_byte_hurts_nobody(service: Service, full: bool) -> None:
    """Each point of the handshake, of the preface of HTTP/2, and of its first frames."""
    with unharmed(service):
        for protocols in PROTOCOLS:
            size = 0
            while cut(service, protocols, size, resets=bool(size % 2)) == size:
                size += 1 if full else 13
            assert size > len(HELLO) + len(HTTP2_START)


def test_thousands_of_short_connections_hurt_nobody(service: Service) -> None:
    """They end before, or right after, their first byte."""
    with unharmed(service):
        for number in range(3000):
            sock = socket.create_connection(service.address, 20)
            if number % 3:
                sock.send(HELLO[: number % 3])
            if number % 2:
                reset(sock)
            else:
                sock.close()


def test_flood_of_handshakes_lets_others_in(service: Service) -> None:
    """Clients that begin, have the server sign, and stop; more than run at once."""
    with unharmed(service):
        held = []
        for number in range(600):
            sock = socket.create_connection(service.address, 20)
            sock.sendall(HELLO if number % 2 else HELLO[:200])
            held.append(sock)
        assert ask(service) == b"HTTP/1.1 404 Not Found"
        for sock in held:
            sock.close()


@linux_only("prlimit")
def test_handshakes_that_take_all_descriptors_hurt_nobody(tmp_path: Path) -> None:
    """Above the limit of connections; then they go, and everything is as before."""
    import resource

    certificate, key = write_server_files(tmp_path)
    options = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    service = Service(tmp_path / "data", ("serve", *options))
    service.start()
    try:
        with unharmed(service, quiet=False):
            # From below: the service has found its limit, and now there are fewer.
            few = descriptors(service) + 20
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (few, few))
            held = []
            for number in range(100):
                sock = socket.create_connection(service.address, 20)
                sock.sendall(HELLO[: 100 + number * 9])
                held.append(sock)
            service.wait_for_log("no descriptor or memory for another connection")
            for sock in held:
                reset(sock)
    finally:
        service.close()
    service.check_log()


def test_hangups_with_broken_files_hurt_nobody(
    tmp_path: Path, make_service: Callable[..., Service], seed: int
) -> None:
    """The files change, vanish and come back while they are read, and clients come meanwhile."""
    draw = random.Random(seed)
    options: list[str] = []
    files: dict[Path, bytes] = {}
    for name in ("localhost", "two.example"):
        certificate, key = write_server_files(tmp_path, name)
        options += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
        files |= {path: path.read_bytes() for path in (certificate, key)}
    service = make_service(*options)
    service.start()
    over = threading.Event()
    failures: list[Exception] = []

    def visit() -> None:
        try:
            while not over.is_set():
                assert ask(service) == b"HTTP/1.1 404 Not Found"
        except (OSError, AssertionError) as exc:
            failures.append(exc)

    with unharmed(service, quiet=False):
        visitor = threading.Thread(target=visit)
        visitor.start()
        for _ in range(150):
            path = draw.choice(list(files))
            match draw.randrange(4):
                case 0:
                    path.write_bytes(draw.randbytes(100))
                case 1:
                    path.write_bytes(b"")
                case 2:
                    path.unlink()
                case _:
                    path.write_bytes(files[path][: draw.randrange(len(files[path]))])
            os.kill(service.pid, signal.SIGHUP)
            time.sleep(draw.uniform(0, 0.01))
            path.write_bytes(files[path])
        over.set()
        visitor.join()
    assert failures == []
    os.kill(service.pid, signal.SIGHUP)
    service.wait_for_log("the certificates were read again")


@pytest.mark.parametrize("protocols", [["h2"], ["http/1.1"]], ids=str)
def test_shutdown_at_any_point_of_a_handshake(
    protocols: list[str], tmp_path: Path, make_service: Callable[..., Service]
) -> None:
    """The service waits for none of them, and says goodbye to those that are through."""
    certificate, key = write_server_files(tmp_path)
    service = make_service(
        "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)
    )
    service.start()
    held: list[socket.socket] = []
    for size in (0, 1, 5, 60, len(HELLO) - 1):
        sock = socket.create_connection(service.address, 20)
        sock.sendall(HELLO[:size])
        held.append(sock)
    for stage in range(3):
        client = Hello(*protocols)
        sock = socket.create_connection(service.address, 20)
        sock.sendall(client.step())
        if stage:
            client.incoming.write(sock.recv(65536))
            data = client.step()
            sock.sendall(data[: None if stage == 2 else len(data) // 2])
        held.append(sock)
    begun = time.monotonic()
    service.stop()  # exit code 0
    assert time.monotonic() - begun < 10
    for sock in held:
        sock.close()
    assert "error" not in service.log.read_text()
