"""Rules in a running service: refused in every dialect, before content and at completion."""

from __future__ import annotations

import pytest
import trio.testing

from tests.server.harness import (
    RESUME,
    Client,
    MemoryService,
    Reply,
    chunked,
    head,
    memory_service,
)
from tests.server.rufh import NEWEST, appends, says
from tests.server.tus import MARK, append, b64, create
from trioresume import Config, FileService, Principal, RequestHead, Rule

Clock = trio.testing.MockClock

BODY = b"0123456789" * 10
PNG = {"Content-Type": "image/png"}


async def _authenticate(head: RequestHead) -> Principal:
    return Principal(head.fields.get("x-name") or "nobody")


def _config(*rules: Rule, **settings: float) -> Config:
    return Config(rules=rules, authenticate=_authenticate, **settings)  # type: ignore[arg-type]


def _replace(service: MemoryService, *rules: Rule) -> None:
    assert service.doorman.rulebook is not None
    service.doorman.rulebook.replace(rules)


def _tus(media_type: str, length: int) -> dict[str, str]:
    metadata = f"filetype {b64(media_type.encode())},filename {b64(b'a.bin')}"
    return {**MARK, "Upload-Length": str(length), "Upload-Metadata": metadata}


async def _begin(client: Client, dialect: str, media_type: str, length: int) -> Reply:
    """Send only the head of an upload to /files/."""
    said = {"Expect": "100-continue", "Content-Type": media_type}
    if dialect == "tus":
        return await client.request("POST", "/files/", _tus(media_type, length), b"")
    fields = says(NEWEST, True) if dialect == "rufh" else RESUME
    fields = {} if dialect == "plain" else fields
    await client.send(head("POST", "/files/", {**said, **fields}, length=length))
    return await client.reply()


@pytest.mark.parametrize("dialect", ["plain", "seed", "rufh", "tus"])
async def test_refusals_come_before_content_in_every_dialect(
    dialect: str, autojump_clock: Clock
) -> None:
    """The status and the code say why, and nothing is left behind."""
    cases = [
        (Rule(access="none"), "image/png", 403, "forbidden"),
        (Rule(access="read-only"), "image/png", 405, "method-not-allowed"),
        (Rule(max_upload_size=99), "image/png", 413, "content-too-large"),
        (Rule(media_types="text/*"), "image/png", 415, "unsupported-media-type"),
        (
            Rule(max_stored_bytes_per_principal=99),
            "image/png",
            507,
            "quota-exceeded",
        ),
    ]
    async with memory_service(FileService(), _config(Rule())) as service:
        for rules, media_type, status, code in cases:
            _replace(service, rules)
            client = service.connect()
            reply = await _begin(client, dialect, media_type, len(BODY))
            assert (reply.status, reply.code) == (status, code), rules
            assert reply.interims == []
            await client.aclose()
        assert service.store.usage("nobody").bytes == 0


async def test_rule_may_allow_more_than_the_service_does(autojump_clock: Clock) -> None:
    """Its value takes the setting's place, in what is told and in what is taken."""
    config = _config(Rule(path="/files/big", max_upload_size=100), max_upload_size=50)
    async with memory_service(FileService(), config) as service:
        client = service.connect()
        for path, limit in (("/files/big", "100"), ("/files/other", "50")):
            told = await client.request("OPTIONS", path, says(NEWEST, True))
            assert f"max-size={limit}" in told["upload-limit"]
        assert (await client.request("PUT", "/files/big", {}, BODY)).status == 201
        client = service.connect()
        assert (await client.request("PUT", "/files/other", {}, BODY)).status == 413


async def test_content_of_unknown_length_is_cut_at_the_rules_limit(
    autojump_clock: Clock,
) -> None:
    """In one request, and over several."""
    async with memory_service(
        FileService(), _config(Rule(max_upload_size=99))
    ) as service:
        client = service.connect()
        fields = {"Transfer-Encoding": "chunked"}
        await client.send(head("POST", "/files/", fields) + chunked(BODY))
        assert (await client.reply()).status == 413
        client = service.connect()
        path = await create(client, None)
        assert (await append(client, path, 0, BODY[:60])).status == 204
        assert (await append(client, path, 60, BODY[:39])).status == 204
        assert (await append(client, path, 99, b"x")).status == 413


@pytest.mark.parametrize("fresh", [True, False])
async def test_changed_rules_hold_at_completion(
    fresh: bool, autojump_clock: Clock
) -> None:
    """The upload is not cut short, but the target does not get it."""
    async with memory_service(FileService(), _config(Rule())) as service:
        client = service.connect()
        metadata = {"Upload-Metadata": f"filetype {b64(b'text/html')}"}
        path = await create(client, len(BODY), metadata)
        if not fresh:
            assert (await append(client, path, 0, BODY[:50])).status == 204
        _replace(service, Rule(methods="POST", media_types="image/*"))
        offset = 0 if fresh else 50
        reply = await append(client, path, offset, BODY[offset:])
        assert reply.status == 204
        message = path.removesuffix("content") + "message"
        told = await client.request("GET", message, {"Prefer": "wait=5"})
        assert b" 415 " in told.body.splitlines()[0]
        got = await client.request("GET", path)
        assert (got.status, got.body) == (200, BODY)


async def test_length_learnt_late_is_judged_at_completion(
    autojump_clock: Clock,
) -> None:
    """A rule that got tighter meanwhile holds, and what was received is kept."""
    async with memory_service(FileService(), _config(Rule())) as service:
        client = service.connect()
        reply = await client.request("POST", "/files/", says(NEWEST, False), BODY)
        assert reply.status == 201
        path = "/" + reply["location"].split("/", 3)[3]
        _replace(service, Rule(max_upload_size=99))
        reply = await client.request("PATCH", path, appends(NEWEST, 100, True), b"")
        assert (reply.status, reply.code) == (413, "content-too-large")
        assert (await client.request("GET", path)).body == BODY


async def test_lifetimes_are_those_of_the_rule(autojump_clock: Clock) -> None:
    """Of an unfinished upload and of a file; the service's hold elsewhere."""
    rule = Rule(path="/files/tmp-*", file_lifetime=10.0, incomplete_lifetime=20.0)
    config = _config(rule, incomplete_lifetime=50.0)
    async with memory_service(FileService(), config) as service:
        client = service.connect()
        for name in ("tmp-a", "b"):
            reply = await client.request("PUT", f"/files/{name}", {}, BODY)
            assert reply.status == 201
        begun = head("PUT", "/files/tmp-c", says(NEWEST, True), length=100)
        kept = service.connect()
        await kept.send(begun + BODY[:50])
        interim = await kept.interim()
        while "location" not in interim.fields:
            interim = await kept.interim()
        path = "/" + interim.fields.get("location", "").split("/", 3)[3]  # type: ignore[union-attr]
        await trio.testing.wait_all_tasks_blocked()
        await kept.aclose()
        reply = await client.request(
            "HEAD", path, {"Upload-Draft-Interop-Version": "8"}
        )
        assert "max-age=18" in reply["upload-limit"]
        await trio.sleep(11)
        assert (await client.request("GET", "/files/tmp-a")).status == 404
        assert (await client.request("GET", "/files/b")).status == 200
        await trio.sleep(12)
        reply = await client.request(
            "HEAD", path, {"Upload-Draft-Interop-Version": "8"}
        )
        assert reply.status == 410


async def test_public_download_needs_no_name(autojump_clock: Clock) -> None:
    """Everybody reads alice's file there, and nobody else's; writing needs a name."""
    rule = Rule(path="/files/pub-*", principal="alice", public_download=True)
    async with memory_service(FileService(), _config(rule)) as service:
        client = service.connect()
        for name in ("alice", "bob"):
            said = {"X-Name": name}
            for path in ("/files/pub-a", "/files/own"):
                body = f"{name} {path}".encode()
                assert (await client.request("PUT", path, said, body)).status == 201
        for said in ({}, {"X-Name": "bob"}, {"X-Name": "alice"}):
            reply = await client.request("GET", "/files/pub-a", said)
            assert reply.body == b"alice /files/pub-a"
        assert (await client.request("GET", "/files/own")).status == 404
        assert (await client.request("DELETE", "/files/pub-a")).status == 404


async def test_parts_of_a_joined_upload_are_judged_together(
    autojump_clock: Clock,
) -> None:
    """A part may be refused for its path and size, the whole for its type and length."""
    rule = Rule(max_upload_size=150, media_types="image/*")
    async with memory_service(FileService(), _config(rule)) as service:
        client = service.connect()
        partial = {"Upload-Concat": "partial"}
        parts = []
        for _ in range(2):
            path = await create(client, len(BODY), partial)
            assert (await append(client, path, 0, BODY)).status == 204
            parts.append(path)
        over = {**MARK, **partial, "Upload-Length": "151"}
        assert (await client.request("POST", "/files/", over, b"")).status == 413

        async def join(paths: list[str], media_type: str) -> int:
            metadata = f"filetype {b64(media_type.encode())}"
            said = {"Upload-Concat": f"final;{' '.join(paths)}"}
            said |= {**MARK, "Upload-Metadata": metadata}
            return (await client.request("POST", "/files/", said, b"")).status

        assert await join(parts, "image/png") == 413
        assert await join(parts[:1], "text/html") == 415
        assert await join(parts[:1], "image/png") == 201
        _replace(service, Rule(access="read-only"))
        new = {**MARK, **partial, "Upload-Length": "1"}
        assert (await client.request("POST", "/files/", new, b"")).status == 405
