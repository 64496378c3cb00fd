"""Whether a patch applies as a whole or byte by byte: ``Prefer: transaction`` (B9)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    MemoryService,
    Recorder,
    head,
    memory_service,
)
from tests.server.seed import BODY, MULTIPART, cut_upload, patches

ATOMIC = {"Prefer": "transaction=atomic"}
PERSIST = {"Prefer": "transaction=persist"}
EVERY = patches(100, BODY[100:], len(BODY))
WHICH = pytest.mark.parametrize(
    ("fields", "patch"), EVERY, ids=[f["Content-Type"].split(";")[0] for f, _ in EVERY]
)
Clock = trio.testing.MockClock


async def offset_after_a_cut(
    service: MemoryService, location: str, fields: Mapping[str, str], patch: bytes
) -> int:
    """How much is there when *patch* was cut just before its end."""
    client = service.connect()
    request = head("PATCH", location, fields, length=len(patch))
    await client.send(request + patch[:-20])
    await trio.testing.wait_all_tasks_blocked()
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked()
    reply = await service.connect().request("HEAD", location)
    return int(reply["upload-offset"])


@WHICH
async def test_atomic_patch_that_is_cut_leaves_nothing(
    fields: dict[str, str], patch: bytes, autojump_clock: Clock
) -> None:
    """B9: of any media type; and whole it is applied."""
    async with memory_service(handler := Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        wished = fields | ATOMIC
        assert await offset_after_a_cut(service, location, wished, patch) == 100
        reply = await service.connect().request("PATCH", location, wished, patch)
        assert reply.status == 200
        said = reply.fields.get_all("preference-applied")
        assert said == ["resume=save-incomplete", "transaction=atomic"]
    assert handler.bodies == [BODY]


@WHICH
async def test_persistent_patch_that_is_cut_leaves_what_came(
    fields: dict[str, str], patch: bytes, autojump_clock: Clock
) -> None:
    """B9: several parts, too, which are all or nothing otherwise (B8)."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        offset = await offset_after_a_cut(service, location, fields | PERSIST, patch)
        # The end of a multipart document is its last delimiter, and not content.
        whole = fields is MULTIPART
        assert len(BODY) - 40 < offset <= len(BODY) - (0 if whole else 20)


async def test_what_was_done_is_said(autojump_clock: Clock) -> None:
    """B9: on a 204 as well, and not to those who did not ask."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        at = 100
        for prefer, applied in (
            (ATOMIC, "transaction=atomic"),
            (PERSIST, "transaction=persist"),
            ({"Prefer": "transaction=maybe"}, None),
            ({}, None),
        ):
            part = patches(at, BODY[at : at + 50], len(BODY))[0][1]
            fields = BYTERANGE | prefer
            reply = await service.connect().request("PATCH", location, fields, part)
            at += 50
            assert (reply.status, reply["upload-offset"]) == (204, str(at))
            assert reply.get("preference-applied") == applied


async def test_short_atomic_patch_is_refused(autojump_clock: Clock) -> None:
    """B5, B9: shorter content than its range is an interruption, which is not taken."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        patch = b"Content-Range: bytes 100-199/512\r\n\r\n" + BODY[100:150]
        client = service.connect()
        reply = await client.request("PATCH", location, BYTERANGE | ATOMIC, patch)
        assert (reply.status, reply.code) == (400, "bad-patch")
        seen = await service.connect().request("HEAD", location)
        assert seen["upload-offset"] == "100"
        plain = await service.connect().request("PATCH", location, BYTERANGE, patch)
        assert (plain.status, plain["upload-offset"]) == (204, "150")
