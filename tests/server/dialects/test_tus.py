"""tus 1.0.0, over memory: the core protocol, and one record for all dialects (section D)."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from tests.server.harness import FullCatalog, Recorder, byterange, head, memory_service
from tests.server.tus import (
    BODY,
    MARK,
    OCTETS,
    append,
    b64,
    create,
    offset_of,
    place,
    receiving,
    result,
    upload,
)
from trioresume import Config, Principal, Rejection, Request, RequestHead, Response
from trioresume.targets.files import FileService

# The core protocol.


async def test_whole_upload_creation_patch_result() -> None:
    """D1, D5, D6, D8: 201, 204 with the offset; the target's response is the RML's."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        created = await client.request(
            "POST", "/files/", {**MARK, "Upload-Length": str(len(BODY))}, b""
        )
        assert (created.status, created["upload-offset"]) == (201, "0")
        path = place(created)
        assert path.startswith("/operations/")
        done = await append(client, path, 0, BODY)
        assert (done.status, done["upload-offset"]) == (204, str(len(BODY)))
        for reply in (created, done):
            assert reply["tus-resumable"] == "1.0.0"
        assert done["response-message-location"] == created["response-message-location"]
        assert b"got %d bytes" % len(BODY) in await result(client, path)
    assert handler.requests == [("POST", "/files/", BODY)]


async def test_upload_in_pieces_with_questions_between() -> None:
    """D4, D5: HEAD tells what the next PATCH is to begin with."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client)
        for at in range(0, len(BODY), 50):
            assert await offset_of(client, path) == at
            reply = await append(client, path, at, BODY[at : at + 50])
            assert reply.status == 204
            assert reply["upload-offset"] == str(min(at + 50, len(BODY)))
        await result(client, path)
    assert handler.bodies == [BODY]


async def test_head_tells_all_about_the_upload() -> None:
    """D4: length, metadata as it came, not to be stored; and for other methods, too."""
    metadata = "filename YS50eHQ=,,x ,y YQ=="
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client, 20, {"Upload-Metadata": metadata})
        await append(client, path, 0, b"12345")
        shown = await client.request("HEAD", path, MARK)
        assert (shown["upload-offset"], shown["upload-length"]) == ("5", "20")
        assert shown["upload-metadata"] == metadata
        assert shown["cache-control"] == "no-store"
        assert shown["tus-resumable"] == "1.0.0"


async def test_wrong_offset_changes_nothing() -> None:
    """D5, E5: 409 with the right one."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client)
        await append(client, path, 0, BODY[:50])
        for wrong in (0, 49, 51, 1000):
            reply = await append(client, path, wrong, BODY[50:60])
            assert (reply.status, reply["upload-offset"]) == (409, "50")
        assert await offset_of(client, path) == 50


async def test_other_media_types_are_refused() -> None:
    """D5: 415, nothing changed, also for the patch formats of other dialects."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client)
        for media_type in ("application/octet-stream", "message/byterange", ""):
            fields = {**MARK, "Upload-Offset": "0", "Content-Type": media_type}
            reply = await client.request("PATCH", path, fields, BODY)
            assert reply.status == 415
            assert reply["accept-patch"] == "application/offset+octet-stream"
        assert await offset_of(client, path) == 0


async def test_what_arrived_before_a_cut_is_kept() -> None:
    """D5, R21: a client that comes back at once is not told to wait."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client)
        fields = {**OCTETS, "Upload-Offset": "0"}
        start = head("PATCH", path, fields, length=len(BODY))
        await client.send(start + BODY[:33])
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        again = service.connect()
        assert await offset_of(again, path) == 33
        assert (await append(again, path, 33, BODY[33:])).status == 204
        await result(again, path)
    assert handler.bodies == [BODY]


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
async def test_newcomer_takes_over_from_a_silent_connection(
    method: str, autojump_clock: MockClock
) -> None:
    """D5, R21: no 423, no waiting for the old connection's timeout."""
    async with memory_service(Recorder()) as service:
        silent = service.connect()
        path = await create(silent)
        fields = {**OCTETS, "Upload-Offset": "0"}
        await silent.send(head("PATCH", path, fields, length=len(BODY)) + BODY[:33])
        await trio.sleep(1)
        began = trio.current_time()
        client = service.connect()
        if method == "HEAD":
            assert await offset_of(client, path) == 33
        elif method == "PATCH":
            assert (await append(client, path, 33, BODY[33:])).status == 204
        else:
            assert (await client.request("DELETE", path, MARK)).status == 204
        assert trio.current_time() - began < 0.1
        # Whatever the old one still sends belongs to nobody.
        ended = await silent.reply("PATCH")
        assert ended.status in (409, 410)


async def test_more_than_the_length_is_refused() -> None:
    """E6: 413, unchanged; known from the head it is refused before any content."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client, 10)
        reply = await append(client, path, 0, b"12345678901")
        assert reply.status == 413
        client = service.connect()
        assert await offset_of(client, path) == 0
        assert (await append(client, path, 0, b"1234567890")).status == 204
        await result(client, path)
        assert handler.bodies == [b"1234567890"]
        late = await append(client, path, 10, b"1")
        assert late.status == 409
        client = service.connect()
        assert (await append(client, path, 10, b"")).status == 204


async def test_offset_and_length_are_strict_numbers() -> None:
    """D5, G6: 400 for anything else."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client)
        for value in ("", "-1", "+0", "0x0", "1" * 16, "0;a=1"):
            reply = await client.request(
                "PATCH", path, {**OCTETS, "Upload-Offset": value}, BODY
            )
            assert reply.status == 400
            reply = await client.request(
                "POST", "/files/", {**MARK, "Upload-Length": value}, b""
            )
            assert reply.status == 400
        assert (await client.request("PATCH", path, OCTETS, BODY)).status == 400
        assert await offset_of(client, path) == 0


async def test_every_answer_carries_the_version() -> None:
    """D1: refusals too, whatever they are about."""

    async def nobody(request: RequestHead) -> Principal | Rejection:
        return Rejection(401)

    async with memory_service(Recorder()) as service:
        client = service.connect()
        for method, target in (
            ("HEAD", "/operations/nothing"),
            ("DELETE", f"/operations/{'x' * 22}/content"),
            ("POST", "/files/"),
        ):
            reply = await client.request(method, target, MARK)
            assert reply.status in (400, 404)
            assert reply["tus-resumable"] == "1.0.0"
    async with memory_service(Recorder(), Config(authenticate=nobody)) as service:
        reply = await service.connect().request("POST", "/files/", MARK)
        assert (reply.status, reply["tus-resumable"]) == (401, "1.0.0")


async def test_upload_is_read_under_the_name_it_was_given() -> None:
    """D6, G14: while it is incomplete, and after."""
    metadata = {"Upload-Metadata": f"name {b64(b'a.txt')},type {b64(b'text/plain')}"}
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client, 10, metadata)
        for at in (0, 5):
            await append(client, path, at, b"12345")
            shown = await client.request("GET", path)
            assert shown.body == b"1234512345"[: at + 5]
            assert shown["content-disposition"] == 'attachment; filename="a.txt"'
            assert shown["content-type"] == "text/plain"
            assert shown["content-security-policy"].startswith("sandbox")


# Version negotiation, discovery, method override.


@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
async def test_another_version_is_not_processed(method: str) -> None:
    """D1: 412 and the version that is spoken; nothing is done."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client)
        count = len(receiving(service))
        fields = {
            **OCTETS,
            "Tus-Resumable": "0.2.2",
            "Upload-Offset": "0",
            "Upload-Length": str(len(BODY)),
        }
        target = "/files/" if method == "POST" else path
        body = None if method == "HEAD" else b""
        reply = await client.request(method, target, fields, body)
        assert (reply.status, reply["tus-version"]) == (412, "1.0.0")
        assert reply["tus-resumable"] == "1.0.0"
        assert await offset_of(client, path) == 0
        assert len(receiving(service)) == count
    assert handler.requests == []


async def test_options_tells_what_is_spoken() -> None:
    """D2, C17: on the target and on an upload; 200, whatever version is asked with."""
    config = Config(max_upload_size=1000)
    async with memory_service(FileService(), config) as service:
        client = service.connect()
        path = await create(client, 10)
        for target in ("/files/", path):
            for fields in ({}, {"Tus-Resumable": "7.0.0"}):
                reply = await client.request("OPTIONS", target, fields)
                assert reply.status == 200
                assert reply["tus-version"] == "1.0.0"
                assert "concatenation" in reply["tus-extension"].split(",")
                assert reply["tus-max-size"] == "1000"
                assert reply["tus-checksum-algorithm"] == "sha1,sha256,sha512,md5"
                assert reply.get("tus-resumable") is None


async def test_post_stands_for_other_methods() -> None:
    """D3: whole uploads by POST alone; on other methods the field is nothing."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client)
        fields = {**OCTETS, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
        reply = await client.request("POST", path, fields, BODY)
        assert (reply.status, reply["upload-offset"]) == (204, str(len(BODY)))
        shown = await client.request(
            "POST", path, {**MARK, "X-HTTP-Method-Override": "HEAD"}, b""
        )
        assert (shown.status, shown["upload-offset"]) == (200, str(len(BODY)))
        assert shown.body == b""
        assert await offset_of(client, path) == len(BODY)
        ignored = {**MARK, "X-HTTP-Method-Override": "DELETE"}
        assert (await client.request("HEAD", path, ignored)).status == 200
        gone = await client.request("POST", path, ignored, b"")
        assert gone.status == 204
        assert (await client.request("HEAD", path, MARK)).status == 410
    assert handler.bodies == [BODY]


async def test_post_without_an_override_is_not_allowed_on_an_upload() -> None:
    """D3: 405, and what is."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client)
        reply = await client.request(
            "POST", path, {**OCTETS, "Upload-Offset": "0"}, b""
        )
        assert reply.status == 405
        assert "PATCH" in reply["allow"]


# Creation.


async def test_empty_upload_is_complete_at_once() -> None:
    """D6: Upload-Length 0."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client, 0)
        assert b"got 0 bytes" in await result(client, path)
        assert (await append(client, path, 0, b"")).status == 204
    assert handler.bodies == [b""]


async def test_too_large_an_upload_is_not_begun() -> None:
    """D6: 413 with the most that is taken."""
    config = Config(max_upload_size=100)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        reply = await client.request(
            "POST", "/files/", {**MARK, "Upload-Length": "101"}, b""
        )
        assert (reply.status, reply["tus-max-size"]) == (413, "100")
        await create(client, 100)


async def test_malformed_creation_leaves_nothing() -> None:
    """D6: 400 without a record."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        for fields in (
            {},
            {"Upload-Length": "1", "Upload-Defer-Length": "1"},
            {"Upload-Length": "0100"},
            {"Upload-Length": "1", "Upload-Metadata": "\xe4 YQ=="},
            {"Upload-Length": "1", "Upload-Metadata": "a YQ==,a YQ=="},
            {"Upload-Length": "1", "Upload-Concat": "half"},
        ):
            reply = await client.request("POST", "/files/", {**MARK, **fields}, b"")
            assert (reply.status, reply.code) == (400, "malformed-request")
        assert service.used == 0
        assert service.store.expiring(10) == []


async def test_empty_metadata_is_accepted() -> None:
    """D6: tuspy sends an empty field."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client, 5, {"Upload-Metadata": ""})
        assert (await client.request("HEAD", path, MARK)).status == 200


async def test_metadata_that_is_not_base64_is_kept_or_refused() -> None:
    """D6: kept as it came, and of no meaning; 400 with strict_metadata."""
    metadata = "filename my file.txt,filetype dGV4dC9wbGFpbg==,x Zm8,y a_-b"
    fields = {**MARK, "Upload-Length": "5", "Upload-Metadata": metadata}
    async with memory_service(FileService()) as service:
        client = service.connect()
        path = await create(client, 5, fields)
        assert (await append(client, path, 0, b"hello")).status == 204
        shown = await client.request("HEAD", path, MARK)
        assert shown["upload-metadata"] == metadata
        stored = await client.request("GET", path, MARK)
        assert (stored.body, stored["content-type"]) == (b"hello", "text/plain")
        assert stored["content-disposition"] == "attachment"
    async with memory_service(FileService(), Config(strict_metadata=True)) as service:
        client = service.connect()
        for member in metadata.split(","):
            said = {**fields, "Upload-Metadata": member}
            reply = await client.request("POST", "/files/", said, b"")
            whole = member.startswith("filetype")
            assert reply.status == (201 if whole else 400)
            assert reply["tus-resumable"] == "1.0.0"


async def test_target_learns_name_and_type_from_the_metadata() -> None:
    """D6, G14: as Content-Type and Content-Disposition, made harmless."""
    seen: list[RequestHead] = []

    async def keep(request: Request) -> Response:
        seen.append(request.head)
        return Response(200)

    metadata = f"filename {b64(b'../../a<b>.txt')},filetype {b64(b'text/plain')}"
    async with memory_service(keep) as service:
        client = service.connect()
        path = await create(client, 3, {"Upload-Metadata": metadata})
        await append(client, path, 0, b"abc")
        while not seen:
            await trio.lowlevel.checkpoint()
    fields = seen[0].fields
    assert fields.get("content-type") == "text/plain"
    assert fields.get("content-disposition") == 'attachment; filename="a<b>.txt"'
    assert fields.get("upload-metadata") == metadata
    assert (seen[0].method, seen[0].target, seen[0].length) == ("POST", "/files/", 3)


async def test_file_service_keeps_name_and_type() -> None:
    """D6, D8, G14: the file is served as a harmless attachment under that name."""
    metadata = f"filename {b64('ü.html'.encode())},filetype {b64(b'text/html')}"
    async with memory_service(FileService()) as service:
        client = service.connect()
        path = await upload(client, BODY, {"Upload-Metadata": metadata})
        message = path.removesuffix("content") + "message"
        recorded = (await client.request("GET", message)).body
        assert recorded.startswith(b"HTTP/1.1 201 ")
        at = recorded.index(b"/files/")
        where = recorded[at : recorded.index(b"\r\n", at)].decode()
        file = await client.request("GET", where)
        assert file.body == BODY
        assert file["content-type"] == "text/html"
        assert file["content-disposition"].startswith("attachment; filename=")
        assert "%C3%BC.html" in file["content-disposition"]
        assert file["x-content-type-options"] == "nosniff"


# The target's part, faults.


async def test_completing_patch_does_not_wait_for_the_target() -> None:
    """D8: 204 when the content is safe; HEAD, too; the result is there later."""
    handler = Recorder(gate=trio.Event())
    async with memory_service(handler) as service:
        client = service.connect()
        path = await upload(client, BODY)
        assert await offset_of(client, path) == len(BODY)
        await handler.begun.wait()
        assert handler.bodies == []
        message = path.removesuffix("content") + "message"
        assert (await client.request("GET", message)).status == 202
        assert handler.gate is not None
        handler.gate.set()
        await result(client, path)
    assert handler.bodies == [BODY]


async def test_no_client_is_told_that_all_is_done_while_it_is_not() -> None:
    """G8: a full catalog is a 507 for the PATCH and for HEAD; then it completes."""
    store = FullCatalog(chunk_size=64)
    handler = Recorder()
    async with memory_service(handler, store=store) as service:
        client = service.connect()
        path = await create(client)
        store.full = True
        assert (await append(client, path, 0, BODY)).status == 507
        store.full = False
        assert await offset_of(client, path) == len(BODY)
        await result(client, path)
    assert handler.bodies == [BODY]


# One record for all dialects (section E).


async def test_upload_begun_in_tus_is_resumed_in_the_seed_and_back() -> None:
    """E9: one record; each PATCH is answered in its own dialect."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client)
        await append(client, path, 0, BODY[:50])
        fields = {"Content-Type": "message/byterange"}
        patch = byterange(50, BODY[50:100], len(BODY))
        reply = await client.request("PATCH", path, fields, patch)
        assert (reply.status, reply["upload-offset"]) == (204, "100")
        assert reply.get("tus-resumable") is None
        await append(client, path, 100, BODY[100:150])
        last = byterange(150, BODY[150:], len(BODY))
        reply = await client.request("PATCH", path, fields, last)
        assert (reply.status, reply.body) == (200, b"got %d bytes" % len(BODY))
    assert handler.bodies == [BODY]


async def test_upload_begun_in_the_seed_is_finished_in_tus() -> None:
    """D8, E4, E9: the completing PATCH is a 204; the response waits at RML."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        begun = await client.start(len(BODY), BODY[:50])
        await client.aclose()
        path = begun.fields.get("request-content-location") or ""
        client = service.connect()
        assert await offset_of(client, path) == 50
        reply = await append(client, path, 50, BODY[50:])
        assert (reply.status, reply["upload-offset"]) == (204, str(len(BODY)))
        await result(client, path)
    assert handler.bodies == [BODY]


async def test_patch_without_the_mark_gets_the_target_s_response() -> None:
    """E1, R15, R17: what a person with curl sends; its format is told by its media type."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client)
        fields = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": "0",
        }
        reply = await client.request("PATCH", path, fields, BODY)
        assert (reply.status, reply.body) == (200, b"got %d bytes" % len(BODY))
    assert handler.bodies == [BODY]


async def test_upload_of_another_principal_does_not_exist() -> None:
    """R35: on every method, and as if it had never been."""

    async def who(request: RequestHead) -> Principal | Rejection:
        return Principal(request.fields.get("authorization") or "nobody")

    async with memory_service(Recorder(), Config(authenticate=who)) as service:
        client = service.connect()
        path = await create(client, fields={"Authorization": "me"})
        never = path.replace(path.split("/")[2], "x" * 22)
        for method in ("HEAD", "PATCH", "DELETE"):
            fields = {**OCTETS, "Upload-Offset": "0"}
            body = b"" if method == "PATCH" else None
            theirs = await client.request(method, path, fields, body)
            unknown = await client.request(method, never, fields, body)
            assert theirs.status == unknown.status == 404
            assert theirs.fields.without("date") == unknown.fields.without("date")
            assert theirs.body == unknown.body
