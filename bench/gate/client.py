"""The gate's client: it reads commands on standard input and prints ``done`` after each.

It is a separate process, so that its calls are not counted. Each line has a verb and a
count. All requests use one connection, except those whose connection must stay open.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from typing import Self

import h2.config
import h2.connection
import h2.events

__all__ = ["Client"]

SMALL = 10 * 1024
APPEND = 1000
POST = 5 << 20
CUT = 1 << 20
STREAMS = 100
"""Streams of one connection: fewer than the server's limit."""
LENGTH = 1 << 40
"""The length of uploads that are never finished."""


class Client:
    """Starts the client process. Use it in a ``with`` statement.

    The verbs that end in ``over_tls`` and ``over_http2`` use *tls_port*.
    """

    def __init__(self, address: tuple[str, int], tls_port: int = 0) -> None:
        command = [sys.executable, "-m", "bench.gate.client", address[0]]
        self._process = subprocess.Popen(
            [*command, str(address[1]), str(tls_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def do(self, verb: str, count: int) -> None:
        """Have the process do *verb*, and wait. Raises :class:`RuntimeError` if it failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{verb} {count}\n")
        stdin.flush()
        if stdout.readline() != "done\n":
            raise RuntimeError(f"the client failed at {verb}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._process:
            self._process.kill()


class _Worker:
    def __init__(self, address: tuple[str, int], tls_port: int) -> None:
        self._address = address
        self._tls_port = tls_port
        self._shared: list[_Http2] = []
        self._sock = self._connect()
        self._open: list[socket.socket] = []
        self._place = ""
        self._message = ""
        self._offset = 0
        self.verbs: dict[str, Callable[[int], None]] = {
            "small": self.small,
            "large": self.large,
            "begin": self.begin,
            "offset": self.offset,
            "append": self.append,
            "idle": self.idle,
            "stalled": self.stalled,
            "post": self.post,
            "cut": self.cut,
            "head": self.head,
            "replay": self.replay,
            "idle_over_tls": self.idle_over_tls,
            "idle_over_http2": self.idle_over_http2,
            "stalled_over_http2": self.stalled_over_http2,
            "large_over_http2": self.large_over_http2,
        }

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, timeout=60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _ask(
        self,
        sock: socket.socket,
        status: int,
        start: str,
        *fields: str,
        content: bytes = b"",
    ) -> dict[str, str]:
        head = "\r\n".join([f"{start} HTTP/1.1", "Host: gate", *fields, "", ""])
        sock.sendall(head.encode() + content)
        return self._answer(sock, status, reads=not start.startswith("HEAD"))

    def _answer(
        self, sock: socket.socket, status: int, *, reads: bool = True
    ) -> dict[str, str]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(sock, data)
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        if int(first.split()[1]) != status:
            raise RuntimeError(f"{first}: {rest!r}")
        fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        while reads and len(rest) < int(fields.get("content-length", 0)):
            rest += self._more(sock, rest)
        return fields

    def _more(self, sock: socket.socket, data: bytes) -> bytes:
        more = sock.recv(65536)
        if not more:
            raise RuntimeError(f"the connection was closed after {data!r}")
        return more

    def small(self, count: int) -> None:
        """Make *count* small uploads, each sent together with its head."""
        for _ in range(count):
            self._ask(
                self._sock,
                201,
                "POST /files/",
                f"Content-Length: {SMALL}",
                content=os.urandom(SMALL),
            )

    def large(self, count: int) -> None:
        """Make one upload of *count* MiB."""
        head = f"POST /files/ HTTP/1.1\r\nHost: gate\r\nContent-Length: {count << 20}"
        self._sock.sendall(head.encode() + b"\r\n\r\n")
        for _ in range(count):
            self._sock.sendall(os.urandom(1 << 20))
        self._answer(self._sock, 201)

    def _begin(self, sock: socket.socket) -> dict[str, str]:
        return self._ask(
            sock,
            100,
            "POST /files/",
            "Prefer: resume",
            "Expect: 100-continue",
            f"Content-Length: {LENGTH}",
        )

    def begin(self, count: int) -> None:
        """Begin *count* uploads that are cut; later verbs use the last one."""
        for _ in range(count):
            with self._connect() as sock:
                told = self._begin(sock)
            self._place, self._offset = told["request-content-location"], 0

    def offset(self, count: int) -> None:
        for _ in range(count):
            self._ask(self._sock, 200, f"HEAD {self._place}")

    def append(self, count: int) -> None:
        for _ in range(count):
            end = self._offset + APPEND
            part = f"Content-Range: bytes {self._offset}-{end - 1}/{LENGTH}\r\n\r\n"
            content = part.encode() + os.urandom(APPEND)
            self._ask(
                self._sock,
                204,
                f"PATCH {self._place}",
                "Content-Type: message/byterange",
                f"Content-Length: {len(content)}",
                content=content,
            )
            self._offset = end

    def idle(self, count: int) -> None:
        """Open *count* more connections that wait for their next request."""
        for _ in range(count):
            sock = self._connect()
            self._open.append(sock)
            self._ask(sock, 200, "OPTIONS /files/")

    def stalled(self, count: int) -> None:
        """Open *count* more connections in the middle of an upload."""
        for _ in range(count):
            sock = self._connect()
            self._open.append(sock)
            self._begin(sock)
            sock.sendall(os.urandom(SMALL))

    def post(self, count: int) -> None:
        """Make *count* resumable requests that are not cut."""
        for _ in range(count):
            told = self._ask(
                self._sock,
                100,
                "POST /files/",
                "Prefer: resume",
                "Expect: 100-continue",
                f"Content-Length: {POST}",
            )
            self._sock.sendall(os.urandom(POST))
            self._answer(self._sock, 201)
            self._message = told["response-message-location"]

    def cut(self, count: int) -> None:
        """Begin *count* uploads that are cut after 1 MiB."""
        for _ in range(count):
            with self._connect() as sock:
                told = self._begin(sock)
                sock.sendall(os.urandom(CUT))
            self._place = told["request-content-location"]

    def head(self, count: int) -> None:
        """Ask *count* times for the offset of the last cut upload."""
        for _ in range(count):
            self._ask(self._sock, 200, f"HEAD {self._place}")

    def replay(self, count: int) -> None:
        """Fetch the response of the last :meth:`post` *count* times."""
        for _ in range(count):
            self._ask(self._sock, 200, f"GET {self._message}")

    def _connect_securely(self, protocol: str) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        address = self._address[0], self._tls_port
        sock = context.wrap_socket(socket.create_connection(address, timeout=60))
        self._open.append(sock)
        return sock

    def idle_over_tls(self, count: int) -> None:
        """Open *count* more connections as :meth:`idle` does, over TLS."""
        for _ in range(count):
            self._ask(self._connect_securely("http/1.1"), 200, "OPTIONS /files/")

    def idle_over_http2(self, count: int) -> None:
        """Open *count* more connections as :meth:`idle` does, over HTTP/2 and TLS."""
        for _ in range(count):
            peer = _Http2(self._connect_securely("h2"))
            peer.until_ended(peer.begin("OPTIONS", ends=True))

    def stalled_over_http2(self, count: int) -> None:
        """Begin *count* more uploads that stall, on as few connections as possible."""
        for number in range(count):
            if number % STREAMS == 0:
                self._shared.append(_Http2(self._connect_securely("h2")))
            peer = self._shared[-1]
            stream = peer.begin("POST", ("content-length", str(LENGTH)))
            peer.content(stream, os.urandom(SMALL))

    def large_over_http2(self, count: int) -> None:
        """Make one upload of *count* MiB over HTTP/2 and TLS."""
        peer = _Http2(self._connect_securely("h2"))
        stream = peer.begin("POST", ("content-length", str(count << 20)))
        for _ in range(count):
            peer.content(stream, os.urandom(1 << 20))
        peer.until_ended(stream)


class _Http2:
    """A client of HTTP/2."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        config = h2.config.H2Configuration(client_side=True)
        self._books = h2.connection.H2Connection(config)
        self._books.initiate_connection()
        self._ended: set[int] = set()
        self._flush()

    def _flush(self) -> None:
        self._sock.sendall(self._books.data_to_send())

    def _read(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise RuntimeError("the connection was closed")
        for event in self._books.receive_data(data):
            if isinstance(event, h2.events.StreamReset):
                raise RuntimeError(f"a stream was reset: {event}")
            if isinstance(event, h2.events.StreamEnded):
                self._ended.add(event.stream_id)
        self._flush()

    def begin(self, method: str, *fields: tuple[str, str], ends: bool = False) -> int:
        """Send a request's head; return its stream."""
        stream = self._books.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":authority", "gate")]
        pairs = [*head, (":path", "/files/"), *fields]
        self._books.send_headers(stream, pairs, end_stream=ends)
        self._flush()
        return stream

    def content(self, stream: int, data: bytes) -> None:
        """Send *data*, as the windows allow."""
        view = memoryview(data)
        while view:
            room = self._books.local_flow_control_window(stream)
            room = min(room, self._books.max_outbound_frame_size)
            if not room:
                self._read()
                continue
            self._books.send_data(stream, view[:room])
            view = view[room:]
            self._flush()

    def until_ended(self, stream: int) -> None:
        """End the request if that is still to be done; wait for the whole answer."""
        known = self._books.streams[stream]
        if known.state_machine.state.name == "OPEN":
            self._books.end_stream(stream)
            self._flush()
        while stream not in self._ended:
            self._read()


def main() -> None:
    worker = _Worker((sys.argv[1], int(sys.argv[2])), int(sys.argv[3]))
    for line in sys.stdin:
        verb, count = line.split()
        worker.verbs[verb](int(count))
        print("done", flush=True)


if __name__ == "__main__":
    main()
