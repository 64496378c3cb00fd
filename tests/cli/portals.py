"""Captive portals: servers that answer any request in the place of the one that was meant.

A :class:`Gateway` is the network between the command and the service. It passes connections
on to the service, or to a portal, as a function of the connection's number decides.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

PAGE = b"<!doctype html><title>Welcome</title><form>Your room number</form>"


def reply(status: str, *lines: str, body: bytes = b"") -> bytes:
    """A response; a HEAD gets the same without the content."""
    head = [f"HTTP/1.1 {status}", *lines, "Connection: close"]
    if not status.startswith("204"):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


PORTALS = {
    "page": reply("200 OK", "Content-Type: text/html; charset=utf-8", body=PAGE),
    "page without a type": reply("200 OK", body=PAGE),
    "page with a validator": reply(
        "200 OK", "Content-Type: text/html", 'ETag: "1"', body=PAGE
    ),
    "text with a date": reply(
        "200 OK",
        "Content-Type: text/plain",
        "Last-Modified: Sun, 29 Nov 2026 10:00:00 GMT",
        body=b"log in first",
    ),
    "json with a validator": reply(
        "200 OK", "Content-Type: application/json", 'ETag: "1"', body=b"{}"
    ),
    "json": reply("200 OK", "Content-Type: application/json", body=b'{"login": true}'),
    "empty": reply("200 OK"),
    "nothing": reply("204 No Content"),
    "found": reply("302 Found", "Location: http://portal.test/login"),
    "see other": reply("303 See Other", "Location: /login", body=PAGE),
    "temporary": reply("307 Temporary Redirect", "Location: http://portal.test/"),
    "moved": reply("301 Moved Permanently", "Location: http://portal.test/"),
    "permanent": reply("308 Permanent Redirect", "Location: http://portal.test/"),
    "authentication": reply(
        "511 Network Authentication Required", "Content-Type: text/html", body=PAGE
    ),
    "accepted": reply("202 Accepted", "Content-Type: text/html", body=PAGE),
}


@dataclass
class Gateway:
    """The network. *diverts* says which connections meet the portal instead of the service.

    *waits* is whether the portal reads the whole request before it answers.
    """

    service: tuple[str, int] | None
    portal: bytes
    waits: bool = False
    diverts: Callable[[int], bool] = lambda _: True
    reflects: bool = False
    """Whether the portal gives back the fields of the request."""
    cut_after: int | None = None
    """The service's connections break once so many bytes went up, while this is set."""
    connections: int = 0
    asked: list[str] = field(default_factory=list)
    """Methods of the requests that the portal answered."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/files/"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            divert = self.service is None or self.diverts(number)
            work = self._answer if divert else self._pass_on
            threading.Thread(target=work, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                if not (data := connection.recv(65536)):
                    return
                request += data
            head, _, content = request.partition(b"\r\n\r\n")
            method = head.split(b" ", 1)[0].decode()
            self.asked.append(method)
            if self.waits and b"100-continue" in head.lower():
                # It lets the content come, as a server does that reads it in full.
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self.waits:
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                while len(content) < length:
                    if not (data := connection.recv(65536)):
                        return
                    content += data
            answer = self.portal
            if self.reflects:
                line, _, rest = answer.partition(b"\r\n")
                fields = b"\r\n".join(
                    given
                    for given in head.split(b"\r\n")[1:]
                    if not given.lower().startswith((b"content-length:", b"transfer-"))
                )
                answer = line + b"\r\n" + fields + b"\r\n" + rest
            if method == "HEAD":
                answer = answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            connection.sendall(answer)
            # The client may still be sending: let it read the answer first.
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(2)
            try:
                while connection.recv(65536):
                    pass
            except OSError:
                pass

    def _pass_on(self, connection: socket.socket) -> None:
        assert self.service is not None
        with connection, socket.create_connection(self.service) as service:
            back = threading.Thread(
                target=self._copy, args=(service, connection), daemon=True
            )
            back.start()
            self._copy(connection, service, self.cut_after)
            back.join(5)

    @staticmethod
    def _copy(
        source: socket.socket, target: socket.socket, most: int | None = None
    ) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                passed += len(data)
                if most is not None and passed > most:
                    source.shutdown(socket.SHUT_RDWR)
                    break
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass
