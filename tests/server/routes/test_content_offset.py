"""Patches with ``Content-Offset``, and ranges that cannot be met (B13)."""

from __future__ import annotations

import pytest

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Client,
    MemoryService,
    Recorder,
    byterange,
    chunked,
    head,
    memory_service,
)
from trioresume import FileService

BODY = b"The quick brown fox jumps over the lazy dog." * 5


async def begun(service: MemoryService, *, length: int | None, sent: int = 20) -> str:
    """An upload with *sent* bytes whose request was cut; where its content is."""
    client = service.connect()
    if length is None:
        fields = {**RESUME, "Transfer-Encoding": "chunked"}
        await client.send(head("POST", "/", fields))
        offer = await client.interim()
        await client.send(b"%x\r\n%b\r\n" % (sent, BODY[:sent]))
    else:
        await client.send(head("POST", "/", RESUME, length=length))
        offer = await client.interim()
        await client.send(BODY[:sent])
    await client.aclose()
    path = offer.fields.get("request-content-location") or ""
    asking = service.connect()
    assert (await asking.request("HEAD", path))["upload-offset"] == str(sent)
    return path


def patch(lines: str, content: bytes = b"") -> bytes:
    return f"{lines}\r\n\r\n".encode() + content


async def test_content_of_unknown_length_is_appended_and_ended() -> None:
    """B3, B13, R18: chunked, with an offset; its end is told by the length alone."""
    async with memory_service(handler := Recorder()) as service:
        path = await begun(service, length=None)
        client = service.connect()
        document = patch("Content-Offset: 20", BODY[20:])
        fields = {**BYTERANGE, "Transfer-Encoding": "chunked"}
        await client.send(head("PATCH", path, fields) + chunked(document))
        reply = await client.reply("PATCH")
        assert (reply.status, reply["upload-offset"]) == (204, str(len(BODY)))
        assert handler.started == 0
        end = patch(f"Content-Range: bytes */{len(BODY)}")
        assert (await client.request("PATCH", path, BYTERANGE, end)).status == 200
    assert handler.bodies == [BODY]


@pytest.mark.parametrize(
    "lines",
    [
        f"Content-Offset: 20;complete-length={len(BODY)}",
        f"Content-Offset: 20;unit=bytes;complete-length={len(BODY)}",
        f"content-offset: 20; complete-length={len(BODY)}",
        f"Content-Range: bytes 20-/{len(BODY)}",
    ],
)
async def test_both_forms_complete_at_the_length(lines: str) -> None:
    """B13: the length that the part states is the upload's."""
    async with memory_service(handler := Recorder()) as service:
        path = await begun(service, length=None)
        client = service.connect()
        document = patch(lines, BODY[20:])
        assert (await client.request("PATCH", path, BYTERANGE, document)).status == 200
    assert handler.bodies == [BODY]


async def refused(
    client: Client, path: str, document: bytes, status: int, code: str
) -> None:
    """*document* is refused, and changes nothing."""
    reply = await client.request("PATCH", path, BYTERANGE, document)
    assert (reply.status, reply.code) == (status, code), document
    assert reply.json["detail"]
    assert (await client.request("HEAD", path))["upload-offset"] == "20"


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        # What the upload's state does not allow.
        ("Content-Range: bytes 20-220/*", 422, "range-beyond-length"),
        ("Content-Range: bytes 20-999/*", 422, "range-beyond-length"),
        ("Content-Offset: 19", 409, "offset-mismatch"),
        ("Content-Offset: 21", 409, "offset-mismatch"),
        ("Content-Offset: 20;complete-length=221", 400, "inconsistent-length"),
        ("Content-Range: bytes */19", 400, "inconsistent-length"),
        # What is no range in any state.
        ("Content-Offset: -1", 400, "bad-content-range"),
        ("Content-Offset: 20;unit=lines", 400, "bad-content-range"),
        ("Content-Offset: 20;complete-length=x", 400, "bad-content-range"),
        ("Content-Offset: 20;complete-length=19", 400, "bad-content-range"),
        (
            "Content-Offset: 20\r\nContent-Range: bytes 20-/*",
            400,
            "bad-content-range",
        ),
        ("Content-Range: bytes 20-10/*", 400, "bad-content-range"),
        ("X: y", 400, "bad-content-range"),
    ],
)
async def test_range_that_cannot_be_met_changes_nothing(
    lines: str, status: int, code: str
) -> None:
    """B13: 422 for what the state does not allow, 400 for what is malformed; the offset
    and stated lengths have answers of their own (R16, B2, B3).
    """
    async with memory_service(handler := Recorder()) as service:
        path = await begun(service, length=len(BODY))
        client = service.connect()
        content = b"" if "*/19" in lines else b"x"
        await refused(client, path, patch(lines, content), status, code)
        rest = byterange(20, BODY[20:], len(BODY))
        assert (await client.request("PATCH", path, BYTERANGE, rest)).status == 200
    assert handler.bodies == [BODY]


async def test_partial_put_with_an_offset_is_refused() -> None:
    """RFC 9110, section 14.5, B13: a part must not replace the whole."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        assert (await client.request("PUT", "/files/a", {}, BODY)).status == 201
        part = {"Content-Offset": "3"}
        reply = await client.request("PUT", "/files/a", part, b"x")
        assert (reply.status, reply.code) == (400, "malformed-request")
        assert (await client.request("GET", "/files/a")).body == BODY
