"""``Incremental`` (RFC 10036) on requests: taken as granted, since nothing is collected."""

from __future__ import annotations

import pytest

from tests.server.harness import RESUME, Client, Recorder, head, memory_service
from tests.server.rufh import NEWEST, path_of, says
from tests.server.tus import MARK, OCTETS, create, offset_of

BODY = b"The quick brown fox jumps over the lazy dog." * 5
VALUES = ["?1", "?0", "?1;x=2", "yes", "?1, ?1", ""]


@pytest.mark.parametrize("value", VALUES)
async def test_value_changes_nothing_of_the_answer(value: str) -> None:
    """C18: it is a word for proxies; no value of it is a fault."""
    async with memory_service(handler := Recorder()) as service:
        for fields in ({}, RESUME, says(NEWEST, True)):
            said = {**fields, "Incremental": value}
            reply = await service.connect().request("POST", "/", said, BODY)
            assert reply.status == 200
            assert reply.get("incremental") is None
    assert handler.bodies == [BODY] * 3


async def _cut(client: Client, request: bytes) -> None:
    await client.send(request + BODY[:50])
    await client.aclose()


@pytest.mark.parametrize("value", VALUES)
async def test_content_counts_as_it_comes(value: str) -> None:
    """C18: of a request that is cut the content that came is there, in each dialect."""
    said = {"Incremental": value}
    async with memory_service(Recorder()) as service:
        client = service.connect()
        start = head("POST", "/", {**RESUME, **said}, length=len(BODY))
        await client.send(start)
        offer = await client.interim()
        await client.send(BODY[:50])
        await client.aclose()
        seed = offer.fields.get("request-content-location") or ""

        client = service.connect()
        start = head("POST", "/", {**says(NEWEST, True), **said}, length=len(BODY))
        await client.send(start)
        offer = await client.interim()
        await client.send(BODY[:50])
        await client.aclose()
        rufh = path_of(offer.fields.get("location") or "")

        tus = await create(service.connect(), len(BODY), MARK)
        fields = {**OCTETS, **said, "Upload-Offset": "0"}
        await _cut(service.connect(), head("PATCH", tus, fields, length=len(BODY)))

        asking = service.connect()
        for path in (seed, rufh):
            shown = await asking.request("HEAD", path)
            assert shown["upload-offset"] == "50"
        assert await offset_of(asking, tus) == 50
