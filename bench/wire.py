"""The little of HTTP/1.1 that a load generator reads: heads, and lengths of bodies.

Deliberately less than a client: a response whose body has no ``Content-Length``
is refused rather than guessed at. h11 would do it too, but it wants to see every
byte that is sent, and these bytes go from the page cache to the socket.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BadResponse", "Response", "ResponseReader"]

MAX_HEAD = 16 * 1024


class BadResponse(Exception):
    """The server's answer cannot be understood."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response's head; of an interim one when ``status`` is below 200."""

    status: int
    fields: dict[str, str]


class ResponseReader:
    """Turns received bytes into the responses to one request."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._final: Response | None = None
        self._body_left = 0

    def feed(self, data: bytes) -> list[Response]:
        """The responses that *data* completes; a final one when its body is here too."""
        self._buffer += data
        found: list[Response] = []
        while self._final is None and (response := self._next_head()) is not None:
            if response.status < 200:
                found.append(response)
                continue
            self._final = response
            self._body_left = _body_length(response)
        if self._final is not None and self._body_left >= 0:
            self._body_left -= len(self._buffer)
            self._buffer.clear()
            if self._body_left <= 0:
                self._body_left = -1  # told once, whatever comes after it
                found.append(self._final)
        return found

    def _next_head(self) -> Response | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise BadResponse("a response head without an end")
            return None
        head = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 4]
        return _parse_head(head)


def _parse_head(head: str) -> Response:
    status_line, *lines = head.split("\r\n")
    version, _, rest = status_line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise BadResponse(f"not a status line: {status_line[:80]!r}")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    return Response(int(rest[:3]), fields)


def _body_length(response: Response) -> int:
    if response.status in (204, 304):
        return 0
    length = response.fields.get("content-length", "")
    if not length.isdigit():
        raise BadResponse(f"a {response.status} without Content-Length")
    return int(length)
