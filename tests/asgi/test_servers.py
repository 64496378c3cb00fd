"""Every dialect over every ASGI server and version of HTTP in the table of the docs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from tests.asgi.clients import Client, Reply, client_of
from tests.asgi.registry import LIMITS, SERVERS, TRIALS, Server
from tests.asgi.serving import served

KIB = 1024
BODY = os.urandom(100 * KIB)
HALF = 50 * KIB


def path_of(reply: Reply, name: str = "location") -> str:
    parts = urlsplit(reply.fields[name])
    return parts.path


def check_stored(client: Client, location: str) -> None:
    stored = client.request("GET", location)
    assert (stored.status, stored.body) == (200, BODY)


def seed_replay(client: Client) -> None:
    """R2, R5, R26: the final response has the locations, and is fetched again."""
    done = client.request("POST", "/files/", {"Prefer": "resume"}, BODY)
    assert done.status == 201
    again = client.request("GET", path_of(done, "response-message-location"))
    assert again.status == 200
    assert again.body.endswith(done.body)
    assert f"Location: {done.fields['location']}\r\n".encode() in again.body
    check_stored(client, path_of(done))


def seed_careful(client: Client) -> None:
    """R12, R15: created first, cut, and continued with a byte range."""
    fields = {"Prefer": "resume", "Upload-Complete": "?0"}
    created = client.request("POST", "/files/", fields)
    assert created.status == 201
    content = path_of(created)
    patch = {"Content-Type": "message/byterange"}
    head = f"Content-Range: bytes 0-{len(BODY) - 1}/{len(BODY)}\r\n\r\n".encode()
    client.cut("PATCH", content, patch, head + BODY, len(head) + HALF)
    offset = int(client.request("HEAD", content).fields["upload-offset"])
    assert offset <= HALF
    head = f"Content-Range: bytes {offset}-{len(BODY) - 1}/{len(BODY)}\r\n\r\n".encode()
    done = client.request("PATCH", content, patch, head + BODY[offset:])
    assert done.status == 201
    check_stored(client, path_of(done))


def rufh(client: Client) -> None:
    """C6, C8, C11: created first, cut, and appended to."""
    version = {"Upload-Draft-Interop-Version": "8"}
    created = client.request("POST", "/files/", {**version, "Upload-Complete": "?0"})
    assert created.status == 201
    upload = path_of(created)
    append = {
        **version,
        "Content-Type": "application/partial-upload",
        "Upload-Complete": "?1",
    }
    begun = {**append, "Upload-Offset": "0"}
    client.cut("PATCH", upload, begun, BODY, HALF)
    offset = int(client.request("HEAD", upload, version).fields["upload-offset"])
    assert offset <= HALF
    rest = {**append, "Upload-Offset": str(offset)}
    done = client.request("PATCH", upload, rest, BODY[offset:])
    assert (done.status, done.fields["upload-complete"]) == (201, "?1")
    check_stored(client, path_of(done))


def tus(client: Client) -> None:
    """D4 to D6: created, cut, and patched; the result is at the message's location."""
    mark = {"Tus-Resumable": "1.0.0"}
    length = {"Upload-Length": str(len(BODY))}
    created = client.request("POST", "/files/", {**mark, **length})
    assert created.status == 201
    upload = path_of(created)
    patch = {**mark, "Content-Type": "application/offset+octet-stream"}
    client.cut("PATCH", upload, {**patch, "Upload-Offset": "0"}, BODY, HALF)
    offset = int(client.request("HEAD", upload, mark).fields["upload-offset"])
    assert offset <= HALF
    rest = {**patch, "Upload-Offset": str(offset)}
    done = client.request("PATCH", upload, rest, BODY[offset:])
    assert done.status == 204
    assert done.fields["upload-offset"] == str(len(BODY))
    check_stored(client, upload)


RUN: dict[str, Callable[[Client], None]] = {
    "seed_replay": seed_replay,
    "seed_careful": seed_careful,
    "rufh": rufh,
    "tus": tus,
}


@pytest.fixture(scope="module", params=SERVERS, ids=lambda server: server.name)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, int]]:
    """One process of each server, for all its trials."""
    server: Server = request.param
    with served(server.arguments, tmp_path_factory.mktemp("asgi")) as port:
        yield server, port


def test_the_table_names_every_trial() -> None:
    """The columns of the docs are what is run."""
    assert RUN.keys() == TRIALS.keys()
    names = {server.name: server.versions for server in SERVERS}
    for name, version, trial in LIMITS:
        assert version in names[name]
        assert trial in TRIALS


@pytest.mark.slow
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2", "HTTP/3"])
def test_an_upload_in_each_dialect_is_cut_resumed_and_whole(
    running: tuple[Server, int], version: str
) -> None:
    """F1: over each version that the server speaks; the stored bytes are compared."""
    server, port = running
    if version not in server.versions:
        return
    client = client_of(version, port)
    for trial, run in RUN.items():
        if (server.name, version, trial) in LIMITS:
            with pytest.raises(Exception):  # noqa: B017 - how it fails is its own
                run(client)
        else:
            run(client)


@pytest.mark.slow
def test_a_client_that_waits_for_a_100_gets_a_plain_one(
    running: tuple[Server, int],
) -> None:
    """R1 is beyond ASGI: the server below sends a 100 without fields."""
    _, port = running
    client = client_of("HTTP/1.1", port)
    fields = {"Prefer": "resume", "Expect": "100-continue"}
    done = client.request("POST", "/files/", fields, BODY)
    assert done.status == 201
    assert "request-content-location" in done.fields
    check_stored(client, path_of(done))
