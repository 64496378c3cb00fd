"""Counts what passes between a node and its two servers, for the check of the model.

A recorder is a TCP proxy on the loopback interface. It reads along: the requests of S3, and the
statements and notifications of PostgreSQL's protocol. It changes nothing.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["DatabaseTap", "ObjectsTap", "Recorder"]

Read = Callable[[bytes], None]
_QUESTIONS = {
    "SELECT o.id, o.state, o.method": "record",
    "SELECT c.chunk_size, coalesce(o.gen": "content",
}
"""How the questions begin that the model knows by a name."""
_PIECE = 1 << 18


class ObjectsTap:
    """Counts requests by kind: ``put chunk``, ``put tail``, ``get``, and the bytes put."""

    _HEAD = re.compile(rb"(PUT|GET|DELETE|POST|HEAD) ([^ \r\n]+) HTTP/1\.1\r\n")
    _LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")

    def __init__(self, counts: Counter[str], lock: threading.Lock) -> None:
        self.counts, self.lock = counts, lock

    def new(self) -> tuple[Read, Read]:
        head = bytearray()
        left = 0

        def requests(data: bytes) -> None:
            nonlocal left
            while data:
                if left:
                    skipped = min(left, len(data))
                    left -= skipped
                    data = data[skipped:]
                    continue
                head.extend(data)
                end = head.find(b"\r\n\r\n")
                if end < 0:
                    return
                data = bytes(head[end + 4 :])
                left = self._count(bytes(head[: end + 4]))
                head.clear()

        return requests, _ignore

    def _count(self, head: bytes) -> int:
        request, length = self._HEAD.match(head), self._LENGTH.search(head)
        size = 0 if length is None else int(length[1])
        if request is None:
            raise ValueError(f"not a request: {head[:80]!r}")
        kind = request[1].decode().lower()
        if kind == "put":
            kind += " tail" if b"/tails/" in request[2] else " chunk"
        with self.lock:
            self.counts[kind] += 1
            if kind.startswith("put"):
                self.counts["bytes put"] += size
        return size


class DatabaseTap:
    """Counts statements by the function that they call, and the notifications to nodes."""

    _CALL = re.compile(r"^\s*(?:SELECT \* FROM|SELECT) ([a-z_]+)\(")

    def __init__(self, counts: Counter[str], lock: threading.Lock) -> None:
        self.counts, self.lock = counts, lock

    def new(self) -> tuple[Read, Read]:
        names: dict[bytes, str] = {}

        def statement(kind: int, body: bytes) -> None:
            if kind == ord("P"):
                name, query, _ = body.split(b"\0", 2)
                names[name] = self._name(query.decode())
            elif kind == ord("B"):
                name = body.split(b"\0", 2)[1]
                self._add(names.get(name, "?"))
            elif kind == ord("Q"):
                self._add(self._name(body[:-1].decode()))

        def answer(kind: int, body: bytes) -> None:
            if kind == ord("A"):
                word = body[4:].split(b"\0")[1].split(b" ", 1)[0].decode()
                self._add(f"notified {word}")

        return _messages(statement, has_startup=True), _messages(answer)

    def _name(self, query: str) -> str:
        for start, name in _QUESTIONS.items():
            if query.lstrip().startswith(start):
                return f"sql {name}"
        called = self._CALL.match(query)
        return f"sql {called[1] if called else ' '.join(query.split())[:60]}"

    def _add(self, name: str) -> None:
        with self.lock:
            self.counts[name] += 1


def _ignore(data: bytes) -> None:
    """Read nothing."""


def _messages(take: Callable[[int, bytes], None], *, has_startup: bool = False) -> Read:
    """Return a reader that cuts PostgreSQL's stream into messages: a byte, a length, a body."""
    buffer = bytearray()
    is_startup = has_startup

    def read(data: bytes) -> None:
        nonlocal is_startup
        buffer.extend(data)
        while len(buffer) >= 5:
            first = 0 if is_startup else 1
            length = int.from_bytes(buffer[first : first + 4], "big") + first
            if len(buffer) < length:
                return
            if not is_startup:
                take(buffer[0], bytes(buffer[5:length]))
            is_startup = False
            del buffer[:length]

    return read


class Recorder:
    """Carries connections to *port*, and has *tap* read them."""

    def __init__(self, port: int, tap: ObjectsTap | DatabaseTap) -> None:
        self._to, self._tap = port, tap
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.failure: Exception | None = None
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._open += [near, far]
            reads = self._tap.new()
            for source, sink, read in ((near, far, reads[0]), (far, near, reads[1])):
                threading.Thread(
                    target=self._carry, args=(source, sink, read), daemon=True
                ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, read: Read) -> None:
        try:
            for each in (source, sink):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := source.recv(_PIECE):
                try:
                    read(data)
                except Exception as exc:  # noqa: BLE001 - the count is wrong: who counts must know
                    self.failure = exc
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
