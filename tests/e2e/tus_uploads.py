"""What tests with tus clients give to a client, and look at when it is through."""

from __future__ import annotations

import http.client
import io
from contextlib import closing
from urllib.parse import urlsplit

from tests.certificates import client_context
from tests.e2e.command import Service
from tests.e2e.wire import parse_message

__all__ = ["MARK", "Source", "check_stored", "offset_of", "request"]

MARK = {"Tus-Resumable": "1.0.0"}


class Source(io.BytesIO):
    """Content as a file that stays open: tuspy closes what it will read again."""

    def close(self) -> None:
        """It is memory, and goes with its last reference."""


def request(
    method: str,
    url: str,
    fields: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own: the response, and its content."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    if parts.scheme == "https":
        context = client_context()
        connection = http.client.HTTPSConnection(
            parts.netloc, timeout=20, context=context
        )
    with closing(connection):
        connection.request(method, parts.path, body, fields or {})
        response = connection.getresponse()
        return response, response.read()


def offset_of(url: str) -> int:
    """How much of the upload the service has."""
    response, _ = request("HEAD", url, MARK)
    assert response.status == 200
    return int(response.getheader("Upload-Offset") or "")


def check_stored(service: Service, url: str, content: bytes) -> dict[str, str]:
    """The upload is *content*, and so is the file it became (D8); the file's fields."""
    assert url.startswith(f"{service.root}/operations/")
    response, body = request("GET", url)
    assert (response.status, body) == (200, content)
    # A client has its answer before the target is through.
    place, wait = url.removesuffix("content") + "message", {"Prefer": "wait=10"}
    response, message = request("GET", place, wait)
    assert response.status == 200
    recorded = parse_message(message)
    assert recorded.status == 201
    file, body = request("GET", service.root + recorded.fields["location"])
    assert (file.status, body) == (200, content)
    return {name.lower(): value for name, value in file.getheaders()}
