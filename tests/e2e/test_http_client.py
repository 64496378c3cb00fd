"""Python's ``http.client``, which knows no Expect and swallows every 100 (R5, R6)."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator

import pytest

from tests.e2e.command import Service
from tests.e2e.wire import parse_message

CONTENT = os.urandom(200_000)


@pytest.fixture
def connection(shared_service: Service) -> Iterator[http.client.HTTPConnection]:
    """One connection to the service, for all requests of a test."""
    connection = http.client.HTTPConnection(*shared_service.address, timeout=20)
    yield connection
    connection.close()


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | Iterator[bytes] | None = None,
    prefer: str = "",
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request and its response, read to the end."""
    fields = {"Prefer": prefer} if prefer else {}
    connection.request(method, target, body, fields)
    response = connection.getresponse()
    return response, response.read()


@pytest.mark.parametrize("prefer", ["", "resume"])
def test_all_methods_over_one_connection(
    connection: http.client.HTTPConnection, new_name: str, prefer: str
) -> None:
    """R5, R33: POST, PUT, GET, HEAD, DELETE in turn; an unasked 100 does no harm."""
    response, body = exchange(connection, "POST", "/files/", CONTENT, prefer)
    assert response.status == 201
    assert json.loads(body)["length"] == len(CONTENT)
    # R5: who cannot see the 100 finds the locations in the final response.
    assert (response.getheader("Request-Content-Location") is not None) == bool(prefer)
    place = response.getheader("Location")
    assert place is not None
    connected = connection.sock
    for status in (201, 204):
        response, _ = exchange(connection, "PUT", new_name, CONTENT, prefer)
        assert response.status == status
    for target in (place, new_name):
        response, body = exchange(connection, "GET", target)
        assert (response.status, body) == (200, CONTENT)
        response, body = exchange(connection, "HEAD", target)
        assert response.getheader("Content-Length") == str(len(CONTENT))
        assert (response.status, body) == (200, b"")
        response, _ = exchange(connection, "DELETE", target, None, prefer)
        assert response.status == 204
        response, _ = exchange(connection, "GET", target)
        assert response.status == 404
    assert connection.sock is connected is not None


def test_the_recorded_response_is_what_was_received(
    connection: http.client.HTTPConnection,
) -> None:
    """R26: the message at Response-Message-Location is the response that was sent."""
    response, body = exchange(connection, "POST", "/files/", CONTENT, "resume")
    place = response.getheader("Response-Message-Location")
    assert place is not None
    message, recorded = exchange(connection, "GET", place)
    assert message.getheader("Content-Type") == "message/http"
    answer = parse_message(recorded)
    assert (answer.status, answer.body) == (response.status, body)
    for name in ("location", "etag", "date", "content-type"):
        assert answer.fields[name] == response.getheader(name)
    _, again = exchange(connection, "GET", place)
    assert again == recorded


def test_chunked_content_from_an_iterator(
    connection: http.client.HTTPConnection, new_name: str
) -> None:
    """R18, R19: http.client sends chunks when it does not know the length."""
    pieces = (CONTENT[i : i + 7000] for i in range(0, len(CONTENT), 7000))
    response, _ = exchange(connection, "PUT", new_name, pieces, "resume")
    assert response.status == 201
    _, body = exchange(connection, "GET", new_name)
    assert body == CONTENT


def test_empty_content_is_content(
    connection: http.client.HTTPConnection, new_name: str
) -> None:
    """A request of length 0 is complete at once and makes an empty file."""
    response, _ = exchange(connection, "PUT", new_name, b"", "resume")
    assert response.status == 201
    response, body = exchange(connection, "GET", new_name)
    assert (response.status, body) == (200, b"")
