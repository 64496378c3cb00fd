"""Resumable Uploads for HTTP against the real command, over real sockets.

The header sets of Apple's URLSession are put together from what is public:

* Immich's description of its resumable uploads, which goes with pull request 22385 of
  github.com/immich-app/immich, lists the requests that its server got from URLSession:
  POST, HEAD and PATCH of iOS 17 in interop version 3, of iOS 18 and 26 in 6. HEAD and
  PATCH repeat what the app set on the first request, its ``Content-Type`` and its
  ``Repr-Digest`` included; HEAD comes with ``Content-Length: 0`` from iOS 18 on; PATCH
  has its own media type in 6, and still the app's in 3.
* The server that Apple publishes, github.com/apple/swift-nio-extras (NIOResumableUpload,
  HTTPResumableUploadProtocol.swift), knows 3, 5 and 6, tells them apart by the same
  fields, and refuses HEAD and DELETE with those of an append. Its end-to-end test
  (NIOResumableUploadE2ETests.swift) sends ``Upload-Length`` in 6, on both POST and PATCH.
* 8 is what iOS 26.2 sends according to a comment of December 2025 in pull request 10 of
  github.com/tus/rufh-implementations: with ``Upload-Complete: ?1`` and ``Upload-Length``.
* 3 in draft -01: nodejs/node issue 51924 shows the same request as Immich.
* What is around them (``Accept``, ``Accept-Language``, ``Accept-Encoding``, ``Priority``,
  CFNetwork's ``User-Agent``) is as in the requests of apps that others have published.
  URLSession labels content without a type as a form.

No source shows an append of version 5; it is taken to be that of 3 with
``Upload-Complete``, as draft -03 has no media type for it either. URLSession takes only
an absolute ``Location``, and needs the 104 before it sends much.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

import trioresume
from tests.e2e.command import Service
from tests.e2e.test_curl import PATIENCE_SECONDS, PATIENT, curl
from tests.e2e.tus_uploads import request
from tests.platforms import needs
from tests.server.harness import Client, Reply, chunked
from trioresume.protocol.dialects.rufh.versions import VERSIONS

SIZE = 300_000

URLSESSION = {
    "Accept": "*/*",
    "Accept-Language": "en-GB,en;q=0.9",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "Priority": "u=3, i",
}
FORM = "application/x-www-form-urlencoded"
APP = {
    "Content-Type": "video/mp4",
    "Repr-Digest": "xxh64=:2Dw7zeWSRAI=:",
    "X-Asset-Data": 'device-id="ios", filename="500gb.mp4"',
    "X-API-Key": "secret",
}
"""What an app may set; URLSession sends it with each request."""
AGENTS = {
    3: "Uploader/1 CFNetwork/1474 Darwin/23.0.0",
    5: "Uploader/1 CFNetwork/1568.100.1 Darwin/24.0.0",
    6: "Uploader/1 CFNetwork/1568.200.51 Darwin/24.1.0",
    8: "Uploader/1 CFNetwork/3860 Darwin/25.0.0",
}


def markers(number: int, app: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every request of one generation of URLSession carries."""
    mark = {"Upload-Draft-Interop-Version": str(number)}
    said = app or {"Content-Type": FORM}
    return {**URLSESSION, "User-Agent": AGENTS[number], **said, **mark}


def completes(number: int, size: int) -> dict[str, str]:
    """What says that this is all there is."""
    if number == 3:
        return {"Upload-Incomplete": "?0"}
    length = {"Upload-Length": str(size)} if number >= 6 else {}
    return {"Upload-Complete": "?1", **length}


def creation(
    number: int, size: int, app: Mapping[str, str] | None = None
) -> dict[str, str]:
    """An upload task's first request: all of the content at once."""
    return {**markers(number, app), **completes(number, size)}


def retrieval(number: int, app: Mapping[str, str] | None = None) -> dict[str, str]:
    """The HEAD after a cut."""
    empty = {"Content-Length": "0"} if number >= 5 else {}
    return {**markers(number, app), **empty}


def append(
    number: int, offset: int, size: int, app: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The rest, after HEAD told the offset."""
    fields = {**markers(number, app), **completes(number, size)}
    if number >= 6:
        fields["Content-Type"] = "application/partial-upload"
    return {**fields, "Upload-Offset": str(offset)}


def raw_head(service: Service, method: str, path: str, fields: dict[str, str]) -> bytes:
    """A request's head as a client on this machine sends it."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{service.port}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def connect(service: Service) -> Client:
    return Client(await trio.open_tcp_stream(*service.address))


async def ask(
    service: Service, method: str, path: str, fields: dict[str, str], body: bytes = b""
) -> Reply:
    """One request on a connection of its own."""
    client = await connect(service)
    framing = {"Content-Length": str(len(body))} if method in ("POST", "PATCH") else {}
    await client.send(raw_head(service, method, path, {**fields, **framing}) + body)
    try:
        return await client.reply(method)
    finally:
        await client.aclose()


def is_stored(service: Service, reply: Reply, body: bytes) -> bool:
    """Whether the file service has *body* where its answer said."""
    described = json.loads(reply.body)
    name = described["location"].rpartition("/")[2]
    return bool(described["length"] == len(body)) and name in service.file_names()


@pytest.mark.parametrize(("number", "app"), [(3, APP), (5, {}), (6, APP), (8, {})])
async def test_urlsession_resumes_after_a_cut_and_a_crash(
    number: int, app: dict[str, str], service: Service, seed: int
) -> None:
    """C2, C3, C4, C6, C8, C11, G9: cut, killed, asked for its offset, and finished."""
    body = random.Random(seed).randbytes(SIZE)
    client = await connect(service)
    fields = {**creation(number, SIZE, app), "Content-Length": str(SIZE)}
    await client.send(raw_head(service, "POST", "/files/", fields))
    early = await client.interim()  # before a byte of the content was sent
    assert early.status == 104
    assert early.fields.get("upload-draft-interop-version") == str(number)
    location = early.fields.get("location") or ""
    assert location.startswith(f"{service.root}/")
    path = urlsplit(location).path
    await client.send(body[: SIZE // 2])
    # It falls silent, and the next request ends it, whatever had arrived by then.
    looked = await ask(service, "HEAD", path, retrieval(number, app))
    assert looked.status == (204 if number == 3 else 200)
    assert looked["cache-control"] == "no-store"
    offset = int(looked["upload-offset"])
    assert 0 <= offset <= SIZE // 2
    await client.aclose()
    await trio.to_thread.run_sync(service.kill)
    await trio.to_thread.run_sync(service.start)
    looked = await ask(service, "HEAD", path, retrieval(number, app))
    assert int(looked["upload-offset"]) >= offset
    offset = int(looked["upload-offset"])
    fields = append(number, offset, SIZE, app)
    last = await ask(service, "PATCH", path, fields, body[offset:])
    assert last.status == 201
    assert last["upload-incomplete" if number == 3 else "upload-complete"] == (
        "?0" if number == 3 else "?1"
    )
    assert is_stored(service, last, body)
    stored = json.loads(last.body)["location"]
    file = await ask(service, "GET", stored, {})
    assert file.body == body
    # Of the first request, not of the append.
    assert file["content-type"] == app.get("Content-Type", FORM)


@pytest.mark.parametrize("number", AGENTS)
async def test_urlsession_uploads_without_a_cut(
    number: int, shared_service: Service
) -> None:
    """C2, C4: one request, one 104, and the file service's own answer."""
    service = shared_service
    body = b"a small form, or so it says"
    fields = creation(number, len(body))
    reply = await ask(service, "POST", "/files/", fields, body)
    assert [interim.status for interim in reply.interims] == [104]
    assert reply.status == 201
    assert is_stored(service, reply, body)
    assert reply["upload-offset"] == str(len(body))


@pytest.mark.parametrize("number", AGENTS)
async def test_urlsession_streams_content_of_unknown_length(
    number: int, shared_service: Service
) -> None:
    """C2, C9: from a stream it is chunked; the end of the request is that of the upload."""
    service = shared_service
    body = random.Random(number).randbytes(SIZE)
    fields = {**markers(number), **completes(number, SIZE)}
    fields.pop("Upload-Length", None)
    client = await connect(service)
    head = {**fields, "Transfer-Encoding": "chunked"}
    await client.send(raw_head(service, "POST", "/files/", head))
    early = await client.interim()
    assert early.status == 104
    await client.send(chunked(body, 16 * 1024))
    reply = await client.reply("POST")
    assert reply.status == 201
    assert is_stored(service, reply, body)
    await client.aclose()


@pytest.mark.parametrize("number", VERSIONS)
async def test_every_version_uploads_in_parts(
    number: int, shared_service: Service
) -> None:
    """C2, C8, C9, C11, C12: over real sockets, into a real store."""
    service = shared_service
    version = VERSIONS[number]
    body = random.Random(number).randbytes(SIZE)
    path = ""
    reply: Reply | None = None
    for start in range(0, SIZE, 100_000):
        complete = start + 100_000 == SIZE
        fields = {
            "Upload-Draft-Interop-Version": str(number),
            version.completeness_field: (
                "?1" if complete != version.says_incomplete else "?0"
            ),
        }
        if start:
            fields["Upload-Offset"] = str(start)
            fields["Content-Type"] = "application/partial-upload"
        method, target = ("PATCH", path) if start else ("POST", "/files/")
        part = body[start : start + 100_000]
        reply = await ask(service, method, target, fields, part)
        assert reply["upload-offset"] == str(start + 100_000)
        path = path or urlsplit(reply["location"]).path
    assert reply is not None
    assert reply.status == 201
    assert is_stored(service, reply, body)


async def test_client_that_comes_back_at_once_is_not_kept_waiting(
    shared_service: Service,
) -> None:
    """C7: while the old connection is open and silent, HEAD and PATCH are answered."""
    service = shared_service
    client = await connect(service)
    fields = {**creation(6, SIZE), "Content-Length": str(SIZE)}
    await client.send(raw_head(service, "POST", "/files/", fields) + bytes(100_000))
    location = (await client.interim()).fields.get("location") or ""
    path = urlsplit(location).path
    with trio.fail_after(20):  # a third of the time after which a silent one is cut
        looked = await ask(service, "HEAD", path, retrieval(6))
        offset = int(looked["upload-offset"])
        last = await ask(
            service, "PATCH", path, append(6, offset, SIZE), bytes(SIZE - offset)
        )
    assert last.status == 201
    await client.aclose()


async def test_limits_of_the_command(
    make_service: Callable[..., Service],
) -> None:
    """C13: from its options to OPTIONS, 413 and the 104."""
    service = make_service("--max-upload-size", "1MB", "--max-append-size", "200kB")
    await trio.to_thread.run_sync(service.start)
    for target, fields in (("/files/", {}), ("*", {}), ("/files/", markers(6))):
        told = await ask(service, "OPTIONS", target, fields)
        assert told["upload-limit"] == "max-size=1000000, max-append-size=200000"
    refused = await ask(service, "POST", "/files/", creation(8, SIZE), bytes(SIZE))
    assert refused.status == 413
    assert "max-append-size=200000" in refused["upload-limit"]
    assert refused.interims == []


async def test_digests_of_the_command(shared_service: Service) -> None:
    """C15: a wrong one is refused and nothing is stored; a wanted one is told."""
    service = shared_service
    body = bytes(range(256)) * 1000
    before = service.file_names()
    wrong = {**creation(8, len(body)), "Repr-Digest": f"sha-256=:{'A' * 43}=:"}
    reply = await ask(service, "POST", "/files/", wrong, body)
    assert (reply.status, reply.code) == (400, "digest-mismatch")
    assert service.file_names() == before
    wants = {**creation(8, len(body)), "Want-Repr-Digest": "sha-512=1"}
    reply = await ask(service, "POST", "/files/", wants, body)
    assert reply.status == 201
    expected = hashlib.sha512(body).digest()
    assert reply["repr-digest"].startswith("sha-512=:")
    assert _decoded(reply["repr-digest"]) == expected


def _decoded(value: str) -> bytes:
    return base64.b64decode(value.partition("=:")[2].removesuffix(":"))


@needs("curl")
def test_curl_uploads_in_parts_and_has_a_lost_answer_again(
    shared_service: Service, tmp_path: Path
) -> None:
    """C2, C4, C8, C11, R24: with an owed 100, which the 104 does not replace."""
    service = shared_service
    marker = ("-H", "Upload-Draft-Interop-Version: 8")
    body = random.Random(1).randbytes(SIZE)
    first, rest, empty = (tmp_path / name for name in ("first", "rest", "empty"))
    first.write_bytes(body[:100_000])
    rest.write_bytes(body[100_000:])
    empty.write_bytes(b"")
    ran = curl(
        tmp_path,
        f"{service.root}/files/",
        *marker,
        *PATIENT,
        *("-H", "Upload-Complete: ?0", "-H", "Expect: 100-continue"),
        *("--data-binary", f"@{first}"),
    )
    assert ran.code == 0
    assert ran.seconds < PATIENCE_SECONDS
    assert [answer.status for answer in ran.heads] == [100, 104, 201]
    location = ran.final.fields["location"]
    assert ran.heads[1].fields["location"] == location
    stored = ""
    for offset, part in ((100_000, rest), (SIZE, empty)):
        ran = curl(
            tmp_path,
            location,
            *marker,
            *("-X", "PATCH", "-H", "Upload-Complete: ?1"),
            *("-H", f"Upload-Offset: {offset}"),
            *("-H", "Content-Type: application/partial-upload"),
            *("--data-binary", f"@{part}"),
        )
        assert (ran.code, ran.final.status) == (0, 201)
        assert ran.final.fields["upload-complete"] == "?1"
        stored = json.loads(ran.body)["location"]
    assert re.fullmatch(r"/files/[\w-]+", stored)
    ran = curl(tmp_path, service.root + stored)
    assert ran.body == body


@pytest.mark.parametrize("credentials", ["right", "wrong", None])
@pytest.mark.parametrize("number", AGENTS)
def test_question_before_a_background_upload_is_answered(
    number: int,
    credentials: str | None,
    make_service: Callable[..., Service],
    tmp_path: Path,
) -> None:
    """C17: 200 with Upload-Limit, although nothing else is answered without a token."""
    token, line = trioresume.new_token("ann")
    tokens = tmp_path / "tokens"
    tokens.write_text(line + "\n")
    service = make_service("--tokens-file", str(tokens), "--max-upload-size", "1MB")
    service.start()
    fields = {**URLSESSION, "User-Agent": AGENTS[number]}
    if credentials is not None:
        said = token if credentials == "right" else "x" * 43
        fields["Authorization"] = f"Bearer {said}"
    for path in ("/files/", "/files", "/files/name"):
        response, _ = request("OPTIONS", service.root + path, fields)
        assert response.status == 200
        assert response.getheader("Upload-Limit") == "max-size=1000000"
        assert response.getheader("Tus-Version") == "1.0.0"
    response, _ = request("POST", f"{service.root}/files/", fields, b"content")
    assert response.status == (201 if credentials == "right" else 401)
