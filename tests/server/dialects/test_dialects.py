"""One server, several dialects: section E of the contract, for the seed and RUFH.

The rows of the table of conflicts are numbered here and in the documentation: E1 which
dialect a request is in, E2 completion, E3 HEAD, E4 the completing PATCH, E5 the wrong
offset, E6 too long, E7 interim responses, E8 integers, E9 one record for all.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Client,
    Recorder,
    byterange,
    chunked,
    head,
    memory_service,
)
from trioresume import Response

BODY = b"The quick brown fox jumps over the lazy dog."
RUFH = {"Upload-Draft-Interop-Version": "8"}
APPEND = {**RUFH, "Content-Type": "application/partial-upload"}


def append(offset: int, complete: bool) -> dict[str, str]:
    """The fields of an append in RUFH."""
    said = "?1" if complete else "?0"
    return {**APPEND, "Upload-Offset": str(offset), "Upload-Complete": said}


async def begin_seed(client: Client, sent: int, **fields: str) -> str:
    """Begin an upload in the seed's words and cut it after *sent* bytes; where it is."""
    interim = await client.start(len(BODY), BODY[:sent], fields=fields)
    await trio.testing.wait_all_tasks_blocked()
    await client.aclose()
    return interim.fields.get("request-content-location") or ""


async def begin_rufh(client: Client, sent: int, **fields: str) -> str:
    """Begin an upload in RUFH's words with *sent* bytes of it; where it is."""
    length = {"Upload-Length": str(len(BODY)), **fields}
    sent_fields = {**RUFH, "Upload-Complete": "?0", **length}
    reply = await client.request("POST", "/", sent_fields, BODY[:sent])
    assert reply.status == 201
    return urlsplit(reply["location"]).path


BEGINNINGS = pytest.mark.parametrize("begin", [begin_seed, begin_rufh])


@BEGINNINGS
async def test_upload_is_seen_and_finished_in_the_other_dialect(
    begin: object,
) -> None:
    """E9, E3, E4: HEAD and the completing PATCH in each dialect, whatever began it."""
    assert callable(begin)
    for finish in ("seed", "rufh"):
        async with memory_service(handler := Recorder()) as service:
            path = await begin(service.connect(), 20)
            client = service.connect()
            plain = await client.request("HEAD", path)
            marked = await client.request("HEAD", path, RUFH)
            for seen in (plain, marked):
                assert (seen.status, seen["content-length"]) == (200, "20")
                assert (seen["upload-offset"], seen["upload-complete"]) == ("20", "?0")
                assert seen["upload-length"] == str(len(BODY))
            if finish == "seed":
                last = await client.patch(path, 20, BODY[20:], len(BODY))
            else:
                last = await client.request("PATCH", path, append(20, True), BODY[20:])
                assert last["upload-complete"] == "?1"
            assert (last.status, last.body) == (200, b"got %d bytes" % len(BODY))
            seen = await client.request("HEAD", path)
            assert seen["upload-complete"] == "?1"
        assert handler.bodies == [BODY]


async def test_both_preferences_name_one_upload() -> None:
    """E1, E9: Prefer: resume beside Upload-Complete; the 104's Location is RCL."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        fields = {**RUFH, "Upload-Complete": "?1", **RESUME}
        reply = await client.request("POST", "/", fields, BODY)
        hundred, early = reply.interims
        assert (hundred.status, early.status) == (100, 104)
        location = early.fields.get("location") or ""
        assert urlsplit(location).path == hundred.fields.get("request-content-location")
        assert reply["upload-complete"] == "?1"
        assert reply["preference-applied"] == "resume=save-incomplete"
        message = await client.request("GET", reply.message)
        assert b"got %d bytes" % len(BODY) in message.body
    assert handler.bodies == [BODY]


async def test_both_preferences_in_parts() -> None:
    """E9: the 201 of an upload in parts carries the seed's fields as well."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        fields = {**RUFH, "Upload-Complete": "?0", **RESUME}
        reply = await client.request("POST", "/", fields, BODY[:5])
        assert reply.status == 201
        assert urlsplit(reply["location"]).path == reply.content


async def test_byte_range_completes_where_the_length_is() -> None:
    """E2: also an upload that RUFH began and would only complete on demand."""
    async with memory_service(handler := Recorder()) as service:
        path = await begin_rufh(service.connect(), len(BODY))
        client = service.connect()
        assert (await client.request("HEAD", path))["upload-complete"] == "?0"
        nothing = b"Content-Range: bytes */%d\r\n\r\n" % len(BODY)
        last = await client.request("PATCH", path, BYTERANGE, nothing)
        assert (last.status, last.body) == (200, b"got %d bytes" % len(BODY))
    assert handler.bodies == [BODY]


async def test_upload_of_the_seed_completes_at_its_length_whoever_reaches_it() -> None:
    """E2: ?0 is answered as ?0, and the next look finds the upload complete."""
    async with memory_service(handler := Recorder()) as service:
        path = await begin_seed(service.connect(), 20)
        client = service.connect()
        reply = await client.request("PATCH", path, append(20, False), BODY[20:])
        assert (reply.status, reply["upload-complete"]) == (204, "?0")
        assert (await client.request("HEAD", path))["upload-complete"] == "?1"
        last = await client.request("PATCH", path, append(len(BODY), True), b"")
        assert (last.status, last["upload-complete"]) == (200, "?1")
    assert handler.bodies == [BODY]


@pytest.mark.parametrize(("version", "status"), [("3", 204), ("4", 204), ("5", 200)])
async def test_head_without_length_for_the_first_drafts(
    version: str, status: int
) -> None:
    """E3: also of an upload that the seed began."""
    async with memory_service(Recorder()) as service:
        path = await begin_seed(service.connect(), 20)
        fields = {"Upload-Draft-Interop-Version": version}
        reply = await service.connect().request("HEAD", path, fields)
        assert (reply.status, reply["upload-offset"]) == (status, "20")
        assert ("content-length" in reply.fields) == (status == 200)


@BEGINNINGS
async def test_wrong_offset_is_a_409_with_the_right_one(begin: object) -> None:
    """E5: in both dialects."""
    assert callable(begin)
    async with memory_service(Recorder()) as service:
        path = await begin(service.connect(), 20)
        client = service.connect()
        by_range = await client.patch(path, 15, BODY[15:], len(BODY))
        client = service.connect()
        by_field = await client.request("PATCH", path, append(15, True), BODY[15:])
        for reply in (by_range, by_field):
            assert (reply.status, reply["upload-offset"]) == (409, "20")
            assert reply.json["type"].endswith("#mismatching-upload-offset")


@BEGINNINGS
@pytest.mark.parametrize("dialect", ["seed", "rufh"])
async def test_too_long_ends_an_upload_only_in_rufh(
    begin: object, dialect: str
) -> None:
    """E6, C10: the dialect of the PATCH decides, not that of the beginning."""
    assert callable(begin)
    async with memory_service(handler := Recorder()) as service:
        path = await begin(service.connect(), 20)
        client = service.connect()
        more = BODY[20:] + b"more"
        if dialect == "seed":
            fields, body = BYTERANGE, b"Content-Range: bytes 20-/*\r\n\r\n" + more
        else:
            fields, body = append(20, False), more
        reply = await client.request("PATCH", path, fields, body)
        assert reply.status == 400
        reply = await service.connect().request("HEAD", path)
        if dialect == "seed":
            assert (reply["upload-offset"], reply["upload-complete"]) == ("20", "?0")
        else:
            assert reply.status == 410
    assert handler.started == 0


@pytest.mark.parametrize("complete", ["?1", None])
async def test_no_interim_response_that_was_not_asked_for(
    complete: str | None, autojump_clock: trio.testing.MockClock
) -> None:
    """E7: many clients take an unasked 1xx for the final response."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        fields = {} if complete is None else {"Upload-Complete": complete}
        await client.send(head("POST", "/", fields, length=len(BODY)) + BODY[:20])
        await trio.sleep(5)
        await client.send(BODY[20:])
        reply = await client.reply()
        assert (reply.status, reply.interims) == (200, [])


async def test_seed_s_patch_gets_no_progress(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """E7: 104s are RUFH's; an upload that RUFH began does not change that."""
    async with memory_service(Recorder()) as service:
        path = await begin_rufh(service.connect(), 20)
        client = service.connect()
        document = byterange(20, BODY[20:], len(BODY))
        await client.send(head("PATCH", path, BYTERANGE, length=len(document)))
        for byte in document:
            await client.send(bytes([byte]))
            await trio.sleep(0.2)
        reply = await client.reply()
        assert (reply.status, reply.interims) == (200, [])


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (append(0, True) | {"Upload-Offset": "1" * 16}, BODY),
        (BYTERANGE, b"Content-Range: bytes %b-/*\r\n\r\n" % (b"1" * 16)),
    ],
)
async def test_integers_have_at_most_fifteen_digits(
    fields: dict[str, str], body: bytes
) -> None:
    """E8, G6: in both dialects."""
    async with memory_service(Recorder()) as service:
        path = await begin_rufh(service.connect(), 0)
        reply = await service.connect().request("PATCH", path, fields, body)
        assert reply.status == 400


async def test_fifteen_digits_are_taken() -> None:
    """E8: the largest length there is, declared and not allocated."""
    async with memory_service(Recorder()) as service:
        most = "9" * 15
        path = await begin_rufh(service.connect(), 3, **{"Upload-Length": most})
        reply = await service.connect().request("HEAD", path)
        assert reply["upload-length"] == most


async def test_responses_of_a_dialect_are_not_mixed_into_what_is_recorded() -> None:
    """E9: the recorded message is the target's; each dialect adds its words to it."""
    handler = Recorder(response=lambda body: Response(200, {"X-Own": "1"}, b"ok\n"))
    async with memory_service(handler) as service:
        path = await begin_seed(service.connect(), 20)
        client = service.connect()
        last = await client.request("PATCH", path, append(20, True), BODY[20:])
        assert last["upload-complete"] == "?1"
        message = await client.request("GET", last.message)
        assert b"x-own: 1" in message.body.lower()
        assert b"upload-complete" not in message.body.lower()


async def test_chunked_upload_in_one_request_has_its_length_at_the_end() -> None:
    """E9, R18: unknown until then, and told in both dialects after."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        fields = {**RUFH, "Upload-Complete": "?1", "Transfer-Encoding": "chunked"}
        await client.send(head("POST", "/", fields) + chunked(BODY))
        reply = await client.reply()
        path = urlsplit(reply["location"]).path
        for marker in ({}, RUFH):
            seen = await client.request("HEAD", path, marker)
            assert seen["upload-length"] == str(len(BODY))
