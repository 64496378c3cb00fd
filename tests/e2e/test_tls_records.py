"""What TLS itself does in the middle of a connection, with OpenSSL's and Python's clients."""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.certificates import authority, client_context
from tests.e2e.carriers import HTTP1_TLS, HTTP2, Carrier
from tests.e2e.command import Service
from tests.e2e.tus_uploads import request
from tests.e2e.wire import Wire, ask, request_head
from tests.platforms import needs

LINE = b"0123456789" * 6 + b"\r\n"
PIECE = LINE * 330
PIECES = 12


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("records")
    service = Service(folder / "data", ("serve", *HTTP1_TLS.options(folder)))
    service.start()
    yield service
    service.stop()
    service.check_log()


class OpenSSL:
    """``openssl s_client``: lines that are one letter are commands, all others are sent."""

    def __init__(self, service: Service, folder: Path, *options: str) -> None:
        ca = folder / "ca.pem"
        authority().cert_pem.write_to_path(str(ca))
        self._out = (folder / "out").open("w+b")
        command = ["openssl", "s_client", "-brief", "-crlf", "-CAfile", str(ca)]
        address = f"127.0.0.1:{service.port}"
        self.process = subprocess.Popen(
            [*command, "-connect", address, "-servername", "localhost", *options],
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data.replace(b"\r\n", b"\n"))

    def command(self, letter: bytes, said: bytes) -> None:
        """Give a command, and wait until it was obeyed: a command is a read of its own."""
        before = self.output().count(said)
        self.wait_idle()
        self.send(letter + b"\n")
        self.wait(lambda: self.output().count(said) > before)

    def wait_idle(self) -> None:
        """Wait until all that was sent to it has been read."""
        assert self.process.stdin is not None
        count = bytearray(4)

        def is_read() -> bool:
            fcntl.ioctl(self.process.stdin, termios.FIONREAD, count)  # type: ignore[arg-type]
            return not any(count)

        self.wait(is_read)

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, self.output()[-500:]
            time.sleep(0.005)

    def output(self) -> bytes:
        return Path(self._out.name).read_bytes()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._out.close()


@contextmanager
def openssl(service: Service, folder: Path, *options: str) -> Iterator[OpenSSL]:
    client = OpenSSL(service, folder, *options)
    try:
        client.wait(lambda: b"Protocol version" in client.output())
        yield client
    finally:
        client.close()


@needs("openssl")
@pytest.mark.parametrize("letter", [b"k", b"K"])
def test_key_updates_stall_neither_an_upload_nor_a_download(
    letter: bytes, service: Service, tmp_path: Path
) -> None:
    """k: the client's key alone; K: it asks for the server's, too (RFC 8446, section 4.6.3)."""
    name = f"/files/update-{letter.decode()}"
    content = PIECE * PIECES
    with openssl(service, tmp_path, "-tls1_3") as client:
        head = (
            f"PUT {name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        client.send(head.encode())
        for _ in range(PIECES):
            client.send(PIECE)
            client.command(letter, b"KEYUPDATE")
        client.wait(lambda: b"201 Created" in client.output())
        client.send(f"GET {name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for _ in range(3):
            client.command(letter, b"KEYUPDATE")
        # openssl may print its word about a command within a line of the content.
        client.wait(lambda: content in client.output().replace(b"KEYUPDATE\n", b""))
    response, stored = request("GET", service.root + name)
    assert (response.status, stored) == (200, content)


@needs("openssl")
def test_renegotiation_is_refused(service: Service, tmp_path: Path) -> None:
    """TLS 1.2: the client learns so, its request is cut, and nobody else notices."""
    with openssl(service, tmp_path, "-tls1_2") as client:
        client.send(
            b"PUT /files/again HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        )
        client.wait_idle()
        client.send(b"R\n")
        assert client.process.wait(20) != 0
        assert b"renegotiation" in client.output()
    assert request("GET", service.root + "/files/again")[0].status == 404


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_is_taken_up_again(version: ssl.TLSVersion, service: Service) -> None:
    """With a ticket the second handshake is shorter."""
    context = client_context()
    context.maximum_version = version
    session = None
    for is_reused in (False, True):
        with (
            socket.create_connection(service.address, 20) as sock,
            context.wrap_socket(
                sock, server_hostname="localhost", session=session
            ) as secured,
        ):
            secured.sendall(request_head("HEAD", "/files/none"))
            assert secured.recv(9999).startswith(b"HTTP/1.1 404")
            assert secured.session_reused is is_reused
            session = secured.session


@pytest.mark.parametrize("is_chunked", [False, True])
def test_client_that_says_its_end_is_answered(
    is_chunked: bool, service: Service, new_name: str
) -> None:
    """close_notify closes one direction only (RFC 8446, section 6.1)."""
    context = client_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    framing = (
        ("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", "5")
    )
    body = b"5\r\nhello\r\n0\r\n\r\n" if is_chunked else b"hello"
    answer = b""
    with socket.create_connection(service.address, 20) as sock:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        client.write(request_head("PUT", new_name, [framing]) + body)
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()
        sock.sendall(outgoing.read())
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(65536):
            answer += data
    # It is encrypted, and OpenSSL reads no more after its own alert: its size tells enough.
    assert len(answer) > 200
    assert request("GET", service.root + new_name)[1] == b"hello"


@pytest.mark.parametrize("says_end", [False, True])
@pytest.mark.parametrize("carrier", [HTTP1_TLS, HTTP2], ids=str)
async def test_content_without_its_end_is_cut(
    carrier: Carrier, says_end: bool, service: Service, new_name: str
) -> None:
    """Neither the end of TCP nor close_notify stands for the last chunk, or for END_STREAM."""
    content = os.urandom(50_000)
    fields = [("Prefer", "resume"), ("Expect", "100-continue")]
    head = request_head("PUT", new_name, [*fields, ("Transfer-Encoding", "chunked")])
    wire = await Wire.connect(service.address, carrier)
    await wire.send(head)
    place = (await wire.next_head()).fields["request-content-location"]
    await wire.send(b"%x\r\n%b\r\n" % (len(content), content))
    if says_end:
        await wire.say_end()
    wire.close()
    while True:
        seen = await ask(service.address, "HEAD", place, carrier=carrier)
        if seen.fields["upload-offset"] == str(len(content)):
            break
        await trio.sleep(0.02)
    assert seen.fields["upload-complete"] == "?0"
    missing = await ask(service.address, "GET", new_name, carrier=carrier)
    assert missing.status == 404
