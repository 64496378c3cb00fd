"""The load of the download benchmark: connections that fetch, and check the content.

It has one thread, epoll and one buffer. Every response's bytes are hashed as they arrive
and compared with the stored bytes, because a server that sends wrong bytes is not fast but
wrong. Meanwhile another thread makes small requests, to see how long they wait.

A server may close a kept connection at any time between two answers (RFC 9112, section
9.5). nginx does so after a thousand requests. It may say so in the last answer, or the next
request finds the connection closed. In both cases this module opens another connection and
asks there. If a connection ends within an answer, or before its first answer, that is an
error.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

__all__ = ["Fetched", "Question", "Request", "WrongAnswer", "fetch", "store"]

BUFFER = 1 << 20
PAUSE = 0.02
"""Seconds between two requests of :class:`Question`."""

_CLOSE = re.compile(rb"\r\nconnection:[^\r\n]*\bclose\b", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class WrongAnswer(Exception):
    """A server did not send the stored bytes, or not the expected answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request for *length* bytes, and the BLAKE3 digest that they must have."""

    path: str
    length: int
    digest: bytes
    first: int | None = None
    """The offset at which the range begins. None asks for the whole file."""

    def head(self, host: str) -> bytes:
        lines = [f"GET {self.path} HTTP/1.1", f"Host: {host}"]
        if self.first is not None:
            lines.append(f"Range: bytes={self.first}-{self.first + self.length - 1}")
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class Fetched:
    """The cost of fetching: elapsed seconds, and *busy* seconds of this thread's CPU time."""

    bytes: int
    seconds: float
    busy: float


class _Connection:
    """A connection that makes its requests one after the other."""

    def __init__(
        self, address: tuple[str, int], requests: Iterable[Request], scratch: memoryview
    ) -> None:
        self._address = address
        self._host = f"{address[0]}:{address[1]}"
        self._requests = deque(requests)
        self._scratch = scratch
        self.received = 0
        self._open()

    def _open(self) -> None:
        self.sock = socket.create_connection(self._address, timeout=30)
        self.sock.setblocking(False)
        self._answered = False
        """Whether the server has answered on this connection and so may close it."""
        self._closing = False

    def close(self) -> None:
        self.sock.close()

    def ask(self) -> bool:
        """Send the next request; return False when there is none."""
        if not self._requests:
            return False
        self._request = self._requests.popleft()
        if self._closing:
            self.close()
            self._open()
        self._send()
        return True

    def _send(self) -> None:
        self._head: bytes | None = b""
        self._left = self._request.length
        self._hasher = blake3()
        try:
            self.sock.send(self._request.head(self._host))
        except ConnectionError:
            if not self._answered:
                raise
            self._ask_again()

    def _ask_again(self) -> None:
        """Ask on a new connection, because the server closed this one before the request."""
        self.close()
        self._open()
        self._send()

    def read(self) -> bool:
        """Read the available bytes; return whether they end an answer."""
        may_be_closed = self._answered and self._head == b""
        try:
            count = self.sock.recv_into(self._scratch)
        except ConnectionResetError:
            if not may_be_closed:
                raise
            count = 0
        if not count:
            if may_be_closed:
                self._ask_again()
                return False
            raise WrongAnswer(f"cut {self._left} bytes before the end")
        data = self._scratch[:count]
        if self._head is not None:
            self._head += bytes(data)
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            self._check_head(head + b"\r\n")
            self._head, data = None, memoryview(rest)
        if len(data) > self._left:
            raise WrongAnswer("the server sent more bytes than it announced")
        self._hasher.update(data)
        self._left -= len(data)
        if self._left:
            return False
        if self._hasher.digest() != self._request.digest:
            raise WrongAnswer(f"not the stored bytes: {self._request}")
        self.received += self._request.length
        self._answered = True
        return True

    def _check_head(self, head: bytes) -> None:
        expected = b"200" if self._request.first is None else b"206"
        said = _LENGTH.search(head)
        if head.split(b" ", 2)[1] != expected or said is None:
            raise WrongAnswer(f"answered {head!r}")
        if int(said[1]) != self._request.length:
            raise WrongAnswer(f"announced {said[1]!r} bytes, not {self._left}")
        self._closing = _CLOSE.search(head) is not None


def fetch(address: tuple[str, int], requests: Sequence[Sequence[Request]]) -> Fetched:
    """Make all *requests* at once, with one connection for each sequence of them.

    Raises :class:`WrongAnswer`, and :class:`OSError` for a broken connection.
    """
    scratch = memoryview(bytearray(BUFFER))
    with contextlib.ExitStack() as stack, select.epoll() as epoll:
        connections = {}
        for each in requests:
            connection = _Connection(address, each, scratch)
            stack.callback(connection.close)
            connections[connection.sock.fileno()] = connection
            epoll.register(connection.sock, select.EPOLLIN)
        begun, busy = time.perf_counter(), time.thread_time()
        finished = [each for each in connections.values() if not each.ask()]
        for connection in finished:
            del connections[connection.sock.fileno()]
        while connections:
            for number, _ in epoll.poll():
                connection = connections.pop(number)
                sock = connection.sock
                if connection.read() and not connection.ask():
                    epoll.unregister(number)
                    finished.append(connection)
                    continue
                if (
                    connection.sock is not sock
                ):  # closing removed the old one from the epoll
                    epoll.register(connection.sock, select.EPOLLIN)
                connections[connection.sock.fileno()] = connection
        return Fetched(
            sum(connection.received for connection in finished),
            time.perf_counter() - begun,
            time.thread_time() - busy,
        )


@dataclass
class Question:
    """Asks for the head of *path* again and again, in a separate thread."""

    address: tuple[str, int]
    path: str
    latencies: list[float] = field(default_factory=list)
    """The seconds that each answer took."""

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Ask while the block runs. An error of the thread is raised at the block's end."""
        stop = threading.Event()
        problems: list[BaseException] = []

        def ask() -> None:
            try:
                self._ask_until(stop)
            except (OSError, WrongAnswer) as exc:
                problems.append(exc)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if problems:
            raise problems[0]

    def _ask_until(self, stop: threading.Event) -> None:
        host, port = self.address
        question = f"HEAD {self.path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        sock = socket.create_connection(self.address, timeout=30)
        answered = False
        try:
            while not stop.wait(PAUSE):
                begun = time.perf_counter()
                answer = _answer(sock, question)
                if not answer and answered:
                    # The server may close the connection between two requests.
                    sock.close()
                    sock = socket.create_connection(self.address, timeout=30)
                    begun = time.perf_counter()
                    answer = _answer(sock, question)
                if not answer.endswith(b"\r\n\r\n"):
                    raise WrongAnswer("a HEAD was not answered")
                self.latencies.append(time.perf_counter() - begun)
                answered = True
        finally:
            sock.close()


def _answer(sock: socket.socket, question: bytes) -> bytes:
    """Send *question*; return the bytes up to the end of a head or of the connection."""
    answer = b""
    try:
        sock.sendall(question)
        while not answer.endswith(b"\r\n\r\n"):
            data = sock.recv(4096)
            if not data:
                break
            answer += data
    except ConnectionError:
        pass  # the same as the connection's end
    return answer


def store(
    address: tuple[str, int], path: str, length: int, blocks: Iterable[bytes]
) -> None:
    """PUT *blocks*, which have *length* bytes together. Raises :class:`WrongAnswer`."""
    host, port = address
    with socket.create_connection(address, timeout=120) as sock:
        sock.sendall(
            f"PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Content-Length: {length}\r\nConnection: close\r\n\r\n".encode()
        )
        for block in blocks:
            sock.sendall(block)
        answer = sock.recv(64)
    if not answer.startswith((b"HTTP/1.1 201", b"HTTP/1.1 204")):
        raise WrongAnswer(f"PUT answered {answer!r}")
