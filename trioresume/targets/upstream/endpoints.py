"""Where a backend listens, and which requests are its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from trioresume.errors import CallerError
from trioresume.protocol.urls import Origin, Url

__all__ = ["Endpoint", "Route", "parse_endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A backend: its origin, and the socket and the path below which it is."""

    origin: Origin
    socket: str | None = None
    """The path of a Unix socket; None for TCP."""
    base: str = ""
    """Precedes the path of each request; "" or like ``/app``."""

    def __str__(self) -> str:
        if self.socket is not None:
            return f"unix:{self.socket}"
        return f"{self.origin.scheme}://{self.origin.authority}{self.base}"


def parse_endpoint(text: str) -> Endpoint:
    """Parse ``http://HOST:PORT``, ``https://…`` or ``unix:PATH``; raise :class:`CallerError`."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            path = path.removeprefix("//")
        if not path.startswith("/"):
            raise CallerError(f"{text!r} does not name a socket, as unix:/run/app.sock")
        return Endpoint(Origin("http", "localhost", 80), path)
    url = Url.parse(text)
    if urlsplit(text).query or "?" in url.target:
        raise CallerError(f"{text!r}: the URL of a backend has no query")
    return Endpoint(url.origin, None, url.target.rstrip("/"))


@dataclass(frozen=True, slots=True)
class Route:
    """The backends for the paths below *prefix*, each of which can take any of the requests."""

    prefix: str
    endpoints: Sequence[Endpoint]

    def __post_init__(self) -> None:
        if not self.prefix.startswith("/") or not self.endpoints:
            raise CallerError("a route begins with '/' and names a backend")

    def covers(self, path: str) -> bool:
        """Whether a request for *path* takes this route: whole segments are compared."""
        prefix = self.prefix.rstrip("/")
        return path == prefix or path.startswith(prefix + "/")
