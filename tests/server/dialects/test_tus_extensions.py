"""tus's extensions, over memory: D7."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from tests.server.harness import EPOCH, Client, Recorder, Reply, head, memory_service
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
    sha1,
    upload,
)
from trioresume import (
    Config,
    Fields,
    Principal,
    Rejection,
    Request,
    RequestHead,
    Response,
    idempotent,
)
from trioresume.protocol.fields import format_http_date
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    CreateOperation,
    JoinContents,
    OperationId,
    OperationRecord,
    SetLength,
    SetState,
)
from trioresume.targets.files import FileService
from trioresume.testing.memory_store import MemoryStore

# Creation with upload, deferred length.


async def test_creation_with_the_whole_upload() -> None:
    """D7: one request; 201 with the offset, the result through RML."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        fields = {**OCTETS, "Upload-Length": str(len(BODY))}
        reply = await client.request("POST", "/files/", fields, BODY)
        assert (reply.status, reply["upload-offset"]) == (201, str(len(BODY)))
        await result(client, place(reply))
    assert handler.bodies == [BODY]


async def test_creation_with_a_piece() -> None:
    """D7: the rest follows by PATCH; a cut creation keeps what arrived."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        fields = {**OCTETS, "Upload-Length": str(len(BODY))}
        reply = await client.request("POST", "/files/", fields, BODY[:20])
        assert (reply.status, reply["upload-offset"]) == (201, "20")
        path = place(reply)
        assert (await append(client, path, 20, BODY[20:])).status == 204
        await result(client, path)
        too_long = await client.request(
            "POST", "/files/", {**OCTETS, "Upload-Length": "5"}, b"123456"
        )
        assert too_long.status == 413
        wrong = {**MARK, "Upload-Length": "5", "Content-Type": "text/plain"}
        assert (await client.request("POST", "/files/", wrong, b"12345")).status == 415
    assert handler.bodies == [BODY]


async def test_content_asked_for_is_not_asked_for_when_it_is_refused() -> None:
    """R10: what cannot be created gets its answer in the place of the 100."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        expecting = {**OCTETS, "Expect": "100-continue"}
        await client.send(head("POST", "/files/", expecting, length=10))
        reply = await client.reply("POST")
        assert (reply.status, reply.interims) == (400, [])
        client = service.connect()
        path = await create(client, 10)
        fields = {**expecting, "Upload-Offset": "0"}
        await client.send(head("PATCH", path, fields, length=10))
        assert (await client.interim()).status == 100
        await client.send(b"1234567890")
        assert (await client.reply("PATCH")).status == 204


async def test_length_that_comes_later() -> None:
    """D7: with any PATCH, also an empty one; then it stays."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client, None)
        shown = await client.request("HEAD", path, MARK)
        assert shown["upload-defer-length"] == "1"
        assert shown.get("upload-length") is None
        await append(client, path, 0, BODY[:50])
        assert (await append(client, path, 50, BODY[50:])).status == 204
        assert handler.bodies == []
        for wrong, status in (("10", 400), ("x", 400)):
            said = {"Upload-Length": wrong}
            assert (await append(client, path, len(BODY), b"", said)).status == status
        said = {"Upload-Length": str(len(BODY))}
        assert (await append(client, path, len(BODY), b"", said)).status == 204
        await result(client, path)
    assert handler.bodies == [BODY]


async def test_length_does_not_change_once_it_is_known() -> None:
    """D7: 400, nothing appended."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client, None)
        assert (
            await append(client, path, 0, b"12", {"Upload-Length": "10"})
        ).status == 204
        reply = await append(client, path, 2, b"34", {"Upload-Length": "11"})
        assert reply.status == 400
        shown = await client.request("HEAD", path, MARK)
        assert (shown["upload-offset"], shown["upload-length"]) == ("2", "10")
        assert shown.get("upload-defer-length") is None


async def test_deferred_length_has_the_same_limit() -> None:
    """D6, D7: 413 for what would be too large from the start."""
    async with memory_service(Recorder(), Config(max_upload_size=100)) as service:
        client = service.connect()
        path = await create(client, None)
        assert (
            await append(client, path, 0, b"1", {"Upload-Length": "101"})
        ).status == 413
        client = service.connect()
        assert (await append(client, path, 0, bytes(101))).status == 413
        client = service.connect()
        assert await offset_of(client, path) <= 100


# Expiration and termination.


async def test_upload_says_when_it_expires_and_does(autojump_clock: MockClock) -> None:
    """D7: Upload-Expires on POST and PATCH, not earlier than true; then 410 and 404."""
    config = Config(incomplete_lifetime=1000, tombstone_lifetime=100)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        created = await client.request(
            "POST", "/", {**MARK, "Upload-Length": "10"}, b""
        )
        assert created["upload-expires"] == format_http_date(EPOCH + 940)
        await trio.sleep(500)
        client = service.connect()
        path = place(created)
        appended = await append(client, path, 0, b"1")
        assert appended["upload-expires"] == format_http_date(EPOCH + 1440)
        await trio.sleep(935)
        assert await offset_of(service.connect(), path) == 1
        await trio.sleep(1050)
        assert (await service.connect().request("HEAD", path, MARK)).status == 410
        await trio.sleep(200)
        gone = await service.connect().request("HEAD", path, MARK)
        assert gone.status == 404
        assert gone["tus-resumable"] == "1.0.0"


@pytest.mark.parametrize("finished", [False, True])
async def test_terminated_upload_is_gone(finished: bool) -> None:
    """D7: 204; no method finds it again."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client, 5)
        await append(client, path, 0, b"12345" if finished else b"1")
        ended = await client.request("DELETE", path, MARK)
        assert (ended.status, ended["tus-resumable"]) == (204, "1.0.0")
        for method in ("HEAD", "PATCH", "DELETE"):
            fields = {**OCTETS, "Upload-Offset": "1"}
            body = b"" if method == "PATCH" else None
            reply = await client.request(method, path, fields, body)
            assert reply.status == 410
            assert reply.get("upload-offset") is None


# Checksums.


@pytest.mark.parametrize("size", [50, 100_000, 3 * 1024 * 1024])
async def test_content_with_the_wrong_checksum_does_not_count(size: int) -> None:
    """D7: 460 and not a byte of it; with the right one it does, short or long."""
    data = (BODY * (size // len(BODY) + 1))[:size]
    store = MemoryStore(chunk_size=1024 * 1024)
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        path = await create(client, 10 + size)
        await append(client, path, 0, b"0123456789")
        reply = await append(client, path, 10, data, sha1(b"other"))
        assert (reply.status, reply.code) == (460, "checksum-mismatch")
        assert await offset_of(client, path) == 10
        reply = await append(client, path, 10, data, sha1(data))
        assert (reply.status, reply["upload-offset"]) == (204, str(10 + size))
        await result(client, path)
    assert handler.bodies == [b"0123456789" + data]


async def test_unknown_algorithm_is_refused() -> None:
    """D7: 400 before any content counts."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client)
        reply = await append(
            client, path, 0, BODY, {"Upload-Checksum": "crc32 AAAAAA=="}
        )
        assert reply.status == 400
        assert await offset_of(client, path) == 0


def with_trailer(path: str, data: bytes, trailer: str) -> bytes:
    fields = {
        **OCTETS,
        "Upload-Offset": "0",
        "Transfer-Encoding": "chunked",
        "Trailer": "Upload-Checksum",
    }
    size = b"%x\r\n" % len(data)
    end = f"\r\n0\r\n{trailer}\r\n".encode()
    return head("PATCH", path, fields) + size + data + end


async def test_checksum_after_the_content() -> None:
    """D7: as a trailer: the right one counts, a wrong or missing one does not."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await create(client)
        good = f"Upload-Checksum: {sha1(BODY)['Upload-Checksum']}\r\n"
        bad = f"Upload-Checksum: {sha1(b'x')['Upload-Checksum']}\r\n"
        for trailer, status in (
            (bad, 460),
            ("", 400),
            ("Upload-Checksum: md5\r\n", 400),
        ):
            await client.send(with_trailer(path, BODY, trailer))
            assert (await client.reply("PATCH")).status == status
            assert await offset_of(client, path) == 0
        await client.send(with_trailer(path, BODY, good))
        reply = await client.reply("PATCH")
        assert (reply.status, reply["upload-offset"]) == (204, str(len(BODY)))
        await result(client, path)
    assert handler.bodies == [BODY]


async def test_cut_content_with_a_checksum_does_not_count() -> None:
    """D7: nothing proves the bytes that came; those without a checksum are kept."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await create(client)
        fields = {**OCTETS, "Upload-Offset": "0", **sha1(BODY)}
        await client.send(head("PATCH", path, fields, length=len(BODY)) + BODY[:40])
        await client.aclose()
        assert await offset_of(service.connect(), path) == 0


async def test_creation_with_the_wrong_checksum_creates_nothing() -> None:
    """D7: 460, and no upload is left; nor is one when the creation is cut."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        fields = {**OCTETS, "Upload-Length": str(len(BODY))}
        reply = await client.request("POST", "/", {**fields, **sha1(b"x")}, BODY)
        assert reply.status == 460
        assert reply.get("location") is None
        start = head("POST", "/", {**fields, **sha1(BODY)}, length=len(BODY))
        await client.send(start + BODY[:40])
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert receiving(service) == []
        client = service.connect()
        reply = await client.request("POST", "/", {**fields, **sha1(BODY)}, BODY)
        assert reply.status == 201
        await result(client, place(reply))
    assert handler.bodies == [BODY]


# Concatenation.

PARTS = [
    b"the first part, ",
    b"",
    b"the second part, which is the longer one, " * 5,
    b"!",
]


async def part(client: Client, data: bytes) -> str:
    return await upload(client, data, {"Upload-Concat": "partial"})


async def concatenate(client: Client, *paths: str, **fields: str) -> Reply:
    final = {**MARK, "Upload-Concat": "final;" + " ".join(paths), **fields}
    return await client.request("POST", "/files/", final, b"")


async def test_parts_become_one_upload() -> None:
    """D7: in their order, with repeats; no target saw them before."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        paths = [await part(client, data) for data in PARTS]
        assert handler.started == 0
        shown = await client.request("HEAD", paths[0], MARK)
        assert shown["upload-concat"] == "partial"
        reply = await concatenate(client, *paths, paths[0])
        whole = b"".join([*PARTS, PARTS[0]])
        assert (reply.status, reply["upload-offset"]) == (201, str(len(whole)))
        path = place(reply)
        await result(client, path)
        shown = await client.request("HEAD", path, MARK)
        assert shown["upload-concat"] == "final;" + " ".join([*paths, paths[0]])
        assert shown["upload-length"] == shown["upload-offset"] == str(len(whole))
        assert (await client.request("GET", path)).body == whole
        refused = await append(client, path, len(whole), b"x")
        assert refused.status == 403
    assert handler.bodies == [whole]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/files/", 201),
        ("/files", 201),
        ("/files/x", 405),
        ("/files/there", 405),
        ("/files/a/b", 404),
        ("/elsewhere", 404),
    ],
)
async def test_part_begins_where_an_upload_does(path: str, status: int) -> None:
    """D7: on a path at which a POST is refused, a part is refused in the same way."""
    about: list[dict[str, str]] = [{}, {"Upload-Metadata": f"filename {b64(b'../x')}"}]
    async with memory_service(FileService()) as service:
        client = service.connect()
        await client.request("PUT", "/files/there", {}, b"x")
        for metadata in about:
            part = {**MARK, **metadata, "Upload-Length": "1"}
            part["Upload-Concat"] = "partial"
            begun = await client.request("POST", path, part, b"")
            plain = await client.request("POST", path, {}, b"x")
            assert begun.status == plain.status == status
            if status != 201:
                assert begun.code == plain.code
                assert begun.get("allow") == plain.get("allow")
                assert begun["tus-resumable"] == "1.0.0"


async def test_a_range_goes_over_the_parts() -> None:
    """D7: a file made of parts is served like any other, and outlives them."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        paths = [await part(client, data) for data in PARTS]
        metadata = {"Upload-Metadata": f"filename {b64(b'whole.txt')}"}
        final = await concatenate(client, *paths, **metadata)
        message = await client.request(
            "GET", final["response-message-location"], {"Prefer": "wait=5"}
        )
        at = message.body.index(b"/files/")
        where = message.body[at : message.body.index(b"\r\n", at)].decode()
        for path in (*paths, place(final)):
            assert (await client.request("DELETE", path, MARK)).status == 204
        while service.store.collect(100).steps:
            pass
        whole = b"".join(PARTS)
        file = await client.request("GET", where)
        assert file.body == whole
        assert 'filename="whole.txt"' in file["content-disposition"]
        for first, last in (
            (10, 20),
            (0, len(whole) - 1),
            (15, 16),
            (len(whole) - 1,) * 2,
        ):
            got = await client.request("GET", where, {"Range": f"bytes={first}-{last}"})
            assert got.status == 206
            assert got.body == whole[first : last + 1]


async def test_parts_are_named_by_any_reference_of_theirs() -> None:
    """R4, G13: absolute or not; the authority is not what finds them."""
    config = Config(public_url="https://example.org/up")
    async with memory_service(handler := Recorder(), config) as service:
        client = service.connect()
        told = [
            (
                await client.request(
                    "POST",
                    "/",
                    {**OCTETS, "Upload-Length": "1", "Upload-Concat": "partial"},
                    b"%d" % n,
                )
            )["location"]
            for n in range(3)
        ]
        assert all(url.startswith("https://example.org/up/operations/") for url in told)
        token = told[1].removeprefix("https://example.org/up")
        reply = await concatenate(client, told[0], token, "http://other" + token)
        assert reply.status == 201
        message = reply["response-message-location"].removeprefix(
            config.public_url or ""
        )
        await client.request("GET", message, {"Prefer": "wait=5"})
    assert handler.bodies[0] == b"011"


async def test_only_finished_parts_of_one_s_own_are_joined() -> None:
    """D7, R35: one answer for all that is no part; 409 for one that is not finished."""

    async def who(request: RequestHead) -> Principal | Rejection:
        return Principal(request.fields.get("authorization") or "nobody")

    async with memory_service(Recorder(), Config(authenticate=who)) as service:
        client = service.connect()
        one = await part(client, b"one")
        whole = await upload(client, b"whole")
        mine = {"Authorization": "me", "Upload-Concat": "partial"}
        theirs = (
            await client.request(
                "POST", "/", {**OCTETS, **mine, "Upload-Length": "1"}, b"1"
            )
        )["location"]
        ended = await part(client, b"ended")
        await client.request("DELETE", ended, MARK)
        answers = []
        for other in (whole, theirs, ended, one[:-7] + "message", "/operations/x", "x"):
            reply = await concatenate(client, one, other)
            answers.append((reply.status, reply.body))
        assert {status for status, _ in answers} == {400}
        assert len(set(answers)) == 1
        begun = await create(client, 10, {"Upload-Concat": "partial"})
        assert (await concatenate(client, one, begun)).status == 409


async def test_concatenation_has_the_same_limit() -> None:
    """D6: 413 for parts that are too large together."""
    async with memory_service(Recorder(), Config(max_upload_size=10)) as service:
        client = service.connect()
        one = await part(client, b"123456")
        assert (await concatenate(client, one, one)).status == 413
        assert (await concatenate(client, one)).status == 201


async def test_concatenation_needs_no_room_of_its_own() -> None:
    """G7: the bytes are there already; from then on they count as any others do."""
    config = Config(max_stored_bytes_per_principal=100_000)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        one, two = await part(client, bytes(30_000)), await part(client, b"x" * 30_000)
        reply = await concatenate(client, one, two)
        assert (reply.status, reply["upload-offset"]) == (201, "60000")
        length = {**MARK, "Upload-Length": "1"}
        assert (await client.request("POST", "/", length, b"")).status == 507
        client = service.connect()
        assert (await concatenate(client, one, two)).status == 507
        client = service.connect()
        for path in (one, two):
            assert (await client.request("DELETE", path, MARK)).status == 204
        await create(client, 20_000)


async def test_concatenation_answers_without_the_target() -> None:
    """D7, D8: at once, however long the target takes."""
    handler = Recorder(gate=trio.Event())
    async with memory_service(handler) as service:
        client = service.connect()
        one, two = await part(client, b"one"), await part(client, b"two")
        reply = await concatenate(client, one, two)
        assert reply.status == 201
        assert handler.started <= 1
        assert handler.gate is not None
        handler.gate.set()
        assert b"got 6 bytes" in await result(client, place(reply))


@pytest.mark.parametrize("repeatable", [False, True])
async def test_interrupted_concatenation_is_processed_after_a_restart(
    repeatable: bool,
) -> None:
    """R31: what was answered with a 201 is not lost, and reaches its target once."""
    gate = trio.Event()
    bodies: list[bytes] = []

    async def handle(request: Request) -> Response:
        await gate.wait()
        bodies.append(await request.body.read())
        return Response(200)

    handler = idempotent(handle) if repeatable else handle
    async with memory_service(handler) as service:
        client = service.connect()
        one, two = await part(client, b"one"), await part(client, b"two")
        path = place(await concatenate(client, one, two))
        await trio.testing.wait_all_tasks_blocked()
        store = service.store.crash(power_loss=True)
    gate.set()
    async with memory_service(handler, store=store) as service:
        client = service.connect()
        assert await offset_of(client, path) == 6
        recorded = await result(client, path)
    assert bodies == ([b"onetwo"] if repeatable else [])
    assert recorded.startswith(b"HTTP/1.1 200" if repeatable else b"HTTP/1.1 500")


async def test_joined_but_not_yet_processed_is_processed_after_a_restart() -> None:
    """R31, D7: stopped between the concatenation and the call, a target is called."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        one, two = await part(client, b"one"), await part(client, b"two")
        parts = [
            service.store.operation(OperationId(path.split("/")[2]))
            for path in (one, two)
        ]
        contents = tuple(p.content for p in parts if p is not None and p.content)
        name = OperationId("x" * 22)
        begun = OperationRecord(
            id=name,
            method="POST",
            target="/files/",
            fields=Fields({**MARK, "Upload-Concat": f"final;{one} {two}"}),
            created_at=0.0,
            expires_at=9e9,
        )
        # What Operation.join commits, and nothing after it.
        join = JoinContents(name, contents)
        state = SetState(name, OperationState.COMPLETE)
        await service.storage.commit(CreateOperation(begun))
        await service.storage.commit(join, SetLength(name, 6), state)
        store = service.store.crash(power_loss=True)
    async with memory_service(handler := Recorder(), store=store) as service:
        await result(service.connect(), f"/operations/{name}/content")
    assert handler.requests == [("POST", "/files/", b"onetwo")]
