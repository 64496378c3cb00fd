"""The request-content resource: R12 to R25, B1 to B8 through the wire."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Client,
    MemoryService,
    Recorder,
    Reply,
    byterange,
    chunked,
    head,
    memory_service,
    socket_service,
)
from tests.server.seed import (
    BODY,
    MULTIPART,
    cut_upload,
    multipart,
    patches,
)
from trioresume import Config
from trioresume.store.port import OperationId
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock


async def offset_of(service: MemoryService, location: str) -> int:
    reply = await service.connect().request("HEAD", location)
    assert reply.status == 200
    assert reply["content-length"] == reply["upload-offset"]
    return int(reply["upload-offset"])


# HEAD and GET.


@pytest.mark.parametrize("sent", [0, 1, 63, 64, 65, 200])
async def test_head_tells_the_received_count(sent: int, autojump_clock: Clock) -> None:
    """R12, R22: 200 with Content-Length (explicit 0), offset, length, no-store."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, sent)
        reply = await service.connect().request("HEAD", location)
        assert reply.status == 200
        assert reply["content-length"] == str(sent)
        assert reply["upload-offset"] == str(sent)
        assert reply["upload-complete"] == "?0"
        assert reply["upload-length"] == str(len(BODY))
        assert reply["cache-control"] == "no-store"
        assert "message/byterange" in reply["accept-patch"]


async def test_head_of_a_complete_upload_says_so(autojump_clock: Clock) -> None:
    """R12: the content is there after the end as well, with its whole length."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        reply = await client.request("POST", "/", RESUME, BODY)
        shown = await client.request("HEAD", reply.content)
        assert shown["upload-complete"] == "?1"
        assert shown["content-length"] == shown["upload-length"] == str(len(BODY))


async def test_get_serves_exactly_the_received_prefix(autojump_clock: Clock) -> None:
    """R13: the prefix, a range of it, several of them; harmless for browsers (G14)."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 200)
        client = service.connect()
        reply = await client.request("GET", location)
        assert (reply.status, reply.body) == (200, BODY[:200])
        assert reply["content-security-policy"].startswith("sandbox")
        assert reply["x-content-type-options"] == "nosniff"
        part = await client.request("GET", location, {"Range": "bytes=100-130"})
        assert (part.status, part.body) == (206, BODY[100:131])
        assert part["content-range"] == "bytes 100-130/200"
        parts = await client.request("GET", location, {"Range": "bytes=0-1,199-"})
        assert parts.status == 206
        assert parts["content-type"].startswith("multipart/byteranges")
        assert b"\r\n\r\n" + BODY[199:200] + b"\r\n" in parts.body
        beyond = await client.request("GET", location, {"Range": "bytes=200-"})
        assert (beyond.status, beyond["content-range"]) == (416, "bytes */200")


async def test_get_does_not_end_a_writer(autojump_clock: Clock) -> None:
    """R13, R21: reading is not taking over."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        interim = await client.start(len(BODY), BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        reply = await service.connect().request("GET", location)
        assert reply.body == BODY[:100]
        await client.send(BODY[100:])
        assert (await client.reply()).status == 200
    assert handler.bodies == [BODY]


async def test_get_is_405_when_content_is_not_retained(autojump_clock: Clock) -> None:
    """R13: then Allow names what is left, and HEAD still works."""
    async with memory_service(Recorder(), Config(retain_content=False)) as service:
        location = await cut_upload(service, BODY, 100)
        client = service.connect()
        reply = await client.request("GET", location)
        assert (reply.status, reply.code) == (405, "method-not-allowed")
        assert reply["allow"] == "HEAD, PATCH, DELETE"
        assert (await client.request("HEAD", location)).status == 200


async def test_unretained_content_is_released_once_processed(
    autojump_clock: Clock,
) -> None:
    """R13: the response is still replayed; the bytes are gone."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(
        Recorder(), Config(retain_content=False), store=store
    ) as service:
        reply = await service.connect().request("POST", "/", RESUME, BODY)
        await trio.sleep(5)
        assert store.stored_bytes == 0
        again = await service.connect().request("GET", reply.message)
        assert again.body.endswith(b"got 512 bytes")
        shown = await service.connect().request("HEAD", reply.content)
        assert shown["upload-offset"] == "512"


@pytest.mark.parametrize("method", ["PUT", "POST", "TRACE", "BREW"])
async def test_other_methods_are_405_with_allow(
    method: str, autojump_clock: Clock
) -> None:
    """R13: on each of the three resources."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        reply = await client.request("POST", "/", RESUME, BODY)
        for location, allowed in [
            (reply.content, "HEAD, GET, PATCH, DELETE"),
            (reply.message, "HEAD, GET, DELETE"),
            (reply.result, "HEAD, GET"),
        ]:
            refused = await client.request(method, location)
            assert (refused.status, refused["allow"]) == (405, allowed)
            options = await client.request("OPTIONS", location)
            assert (options.status, options["allow"]) == (200, allowed)


# PATCH.


async def test_patch_completes_and_answers_as_the_target(autojump_clock: Clock) -> None:
    """R15, R17: in many steps; 204 with the offset, and at last the response."""
    async with memory_service(handler := Recorder()) as service:
        location = await cut_upload(service, BODY, 10)
        client = service.connect()
        at = 10
        for size in (1, 63, 64, 200):
            reply = await client.patch(location, at, BODY[at : at + size], len(BODY))
            at += size
            assert (reply.status, reply["upload-offset"]) == (204, str(at))
            assert reply["upload-complete"] == "?0"
        reply = await client.patch(location, at, BODY[at:], len(BODY))
        assert (reply.status, reply.body) == (200, b"got 512 bytes")
        recorded = await client.request("GET", reply.message)
        assert recorded.body.endswith(reply.body)
        for name, value in reply.fields:
            assert f"{name.title()}: {value}".encode() in recorded.body
    assert handler.bodies == [BODY]


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_every_media_type_completes_an_upload(
    index: int, framing: str, autojump_clock: Clock
) -> None:
    """R15: message/byterange, both byteranges, partial-upload and tus's."""
    async with memory_service(handler := Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        fields, patch = patches(100, BODY[100:], len(BODY))[index]
        client = service.connect()
        if framing == "length":
            reply = await client.request("PATCH", location, fields, patch)
        else:
            fields = {**fields, "Transfer-Encoding": "chunked"}
            await client.send(head("PATCH", location, fields) + chunked(patch, 50))
            reply = await client.reply()
        assert (reply.status, reply.body) == (200, b"got 512 bytes")
    assert handler.bodies == [BODY]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "nonsense", None]
)
async def test_other_media_types_are_415_with_accept_patch(
    content_type: str | None, autojump_clock: Clock
) -> None:
    """R15: and the response names what is accepted."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        fields = {} if content_type is None else {"Content-Type": content_type}
        reply = await service.connect().request("PATCH", location, fields, b"x")
        assert (reply.status, reply.code) == (415, "unsupported-media-type")
        assert "message/byterange" in reply["accept-patch"]
        assert await offset_of(service, location) == 100


@pytest.mark.parametrize("first", [0, 99, 101, 500])
@pytest.mark.parametrize("index", range(5))
async def test_stale_offset_writes_nothing(
    first: int, index: int, autojump_clock: Clock
) -> None:
    """R16: 409 with the offset, in every media type; the connection is kept."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        client = service.connect()
        fields, patch = patches(first, BODY[first : first + 10], len(BODY))[index]
        if "Upload-Complete" in fields:
            fields = {**fields, "Upload-Complete": "?0"}
        reply = await client.request("PATCH", location, fields, patch)
        assert (reply.status, reply.code) == (409, "offset-mismatch")
        assert reply["upload-offset"] == "100"
        assert reply.json["expected-offset"] == 100
        assert reply.json["provided-offset"] == first
        shown = await client.request("GET", location)
        assert shown.body == BODY[:100]


async def test_refused_patch_with_expect_gets_no_100(autojump_clock: Clock) -> None:
    """R10, R16: where the fields alone show the mismatch, nothing is asked for."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        client = service.connect()
        fields = {
            "Expect": "100-continue",
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": "99",
        }
        await client.send(head("PATCH", location, fields, length=50))
        reply = await client.reply()
        assert (reply.status, reply.interims) == (409, [])


async def test_patch_with_expect_gets_its_100(autojump_clock: Clock) -> None:
    """R9: before the patch's content is read."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        client = service.connect()
        patch = byterange(100, BODY[100:], len(BODY))
        await client.send(
            head(
                "PATCH",
                location,
                {**BYTERANGE, "Expect": "100-continue"},
                length=len(patch),
            )
        )
        assert (await client.interim()).status == 100
        await client.send(patch)
        assert (await client.reply()).status == 200


@pytest.mark.parametrize("said", ["a-b/total", "*/total"])
async def test_unknown_length_is_fixed_by_a_patch(
    said: str, autojump_clock: Clock
) -> None:
    """R18: a chunked request that was cut is completed by naming the total."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        await client.send(head("POST", "/", {"Transfer-Encoding": "chunked", **RESUME}))
        interim = await client.interim()
        location = interim.fields.get("request-content-location") or ""
        await client.send(chunked(BODY)[: -len(b"0\r\n\r\n")])
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        client = service.connect()
        shown = await client.request("HEAD", location)
        assert shown["upload-offset"] == str(len(BODY))
        assert "upload-length" not in shown.fields
        if said == "*/total":
            patch = b"Content-Range: bytes */%d\r\n\r\n" % len(BODY)
            expected = BODY
        else:
            patch = byterange(len(BODY), b"end", len(BODY) + 3)
            expected = BODY + b"end"
        reply = await client.request("PATCH", location, BYTERANGE, patch)
        assert reply.status == 200
    assert handler.bodies == [expected]


async def test_end_of_a_chunked_request_completes_it(autojump_clock: Clock) -> None:
    """R18: its length is what came."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        await client.send(
            head("POST", "/", {"Transfer-Encoding": "chunked", **RESUME})
            + chunked(BODY)
        )
        reply = await client.reply()
        shown = await client.request("HEAD", reply.content)
        assert shown["upload-length"] == str(len(BODY))
    assert handler.bodies == [BODY]


async def test_content_coding_is_not_undone(autojump_clock: Clock) -> None:
    """R19, G16: offsets count coded bytes; the coding is the handler's to see."""
    coded = b"\x1f\x8b not really gzip"
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        reply = await client.request(
            "POST", "/", {**RESUME, "Content-Encoding": "gzip"}, coded
        )
        shown = await client.request("HEAD", reply.content)
        assert shown["content-length"] == str(len(coded))
    assert handler.bodies == [coded]


async def test_etag_changes_with_the_offset_and_guards_a_patch(
    autojump_clock: Clock,
) -> None:
    """R20: If-Match with an old validator is a 412 and nothing is written."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        client = service.connect()
        old = (await client.request("HEAD", location))["etag"]
        patch = byterange(100, BODY[100:200], len(BODY))
        reply = await client.request(
            "PATCH", location, {**BYTERANGE, "If-Match": old}, patch
        )
        assert reply.status == 204
        assert reply["etag"] != old
        patch = byterange(200, BODY[200:300], len(BODY))
        reply = await client.request(
            "PATCH", location, {**BYTERANGE, "If-Match": old}, patch
        )
        assert (reply.status, reply.code) == (412, "precondition-failed")
        assert reply["upload-offset"] == "200"
        assert await offset_of(service, location) == 200


async def test_ignored_incomplete_upload_is_gone_when_cut(
    autojump_clock: Clock,
) -> None:
    """R23: 410, later 404; its fields were sent all the same."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        location = await cut_upload(
            service, BODY, 100, prefer="resume=ignore-incomplete"
        )
        client = service.connect()
        for method in ("HEAD", "GET", "PATCH", "DELETE"):
            reply = await client.request(method, location)
            assert reply.status == 410
        await trio.sleep(10)
        assert store.stored_bytes == 0
        await trio.sleep(3700)
        assert (await service.connect().request("HEAD", location)).status == 404
    assert handler.started == 0


async def test_plain_upload_that_is_cut_leaves_nothing(autojump_clock: Clock) -> None:
    """R22: nobody was told of it, so nothing is kept."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(Recorder(), store=store) as service:
        client = service.connect()
        await client.send(head("POST", "/", length=500) + BODY[:300])
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.sleep(10)
        assert store.stored_bytes == 0
        assert store.expiring(10) == []


@pytest.mark.parametrize("index", range(5))
async def test_completing_patch_is_replayed_without_content(
    index: int, autojump_clock: Clock
) -> None:
    """R24: empty at the end the recorded response comes again; content is a 409."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        first = await client.request("POST", "/", RESUME, BODY)
        fields, _ = patches(512, b"", 512)[index]
        if index <= 2:
            fields = BYTERANGE
            empty = b"Content-Range: bytes */512\r\n\r\n"
        else:
            empty = b""
        reply = await client.request("PATCH", first.content, fields, empty)
        assert (reply.status, reply.body) == (200, b"got 512 bytes")
        assert reply["date"] == first["date"]
        fields, patch = patches(512, b"more", 516)[index]
        if "Upload-Complete" in fields:
            fields = {**fields, "Upload-Complete": "?0"}
        refused = await client.request("PATCH", first.content, fields, patch)
        assert (refused.status, refused.code) == (409, "upload-complete")
    assert handler.bodies == [BODY]


async def test_delete_cancels_for_good(autojump_clock: Clock) -> None:
    """R25: 204, a running writer is ended, the upload never comes back, also not
    after a restart."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        writer = service.connect()
        interim = await writer.start(len(BODY), BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        reply = await service.connect().request("DELETE", location)
        assert (reply.status, reply.body) == (204, b"")
        ended = await writer.reply()
        assert ended.status in (409, 410)
        for method in ("HEAD", "GET", "PATCH", "DELETE"):
            reply = await service.connect().request(method, location)
            assert reply.status == 410
        store = store.crash(power_loss=True)
    async with memory_service(handler, store=store) as service:
        reply = await service.connect().request("HEAD", location)
        assert reply.status == 410
        await trio.sleep(10)
        assert store.stored_bytes == 0
    assert handler.started == 0


# The rules of byte ranges, through the wire.


def _range(value: bytes, body: bytes = b"", extra: bytes = b"") -> bytes:
    return b"Content-Range: " + value + b"\r\n" + extra + b"\r\n" + body


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        (b"\r\nno range", 400),  # B1
        (_range(b"bytes */*"), 400),  # B1
        (_range(b"bytes 100-109/600", BODY[:10]), 400),  # B2: was 512
        (_range(b"bytes */50"), 400),  # B3: below what is there
        (_range(b"bytes */511"), 400),  # B3: contradicts
        (_range(b"bytes 100-109/512", BODY[:10], b"Content-Length: 9\r\n"), 400),  # B4
        (_range(b"bytes 100-109/512", BODY[:11]), 400),  # B5
        (_range(b"lines 100-109/512", BODY[:10]), 400),  # B6
        (_range(b"100-109/512", BODY[:10]), 400),  # B6
        (_range(b"bytes 100-99/512", b""), 400),  # G6
        (_range(b"bytes 100-512/512", BODY[:413]), 400),  # G6
        (_range(b"bytes -5-10/512", BODY[:16]), 400),  # G6
        (_range(b"bytes +100-109/512", BODY[:10]), 400),  # G6
        (_range(b"bytes 1000000000000000-/*", b"x"), 400),  # G6: 16 digits
        (b"Content-Range: bytes 100-109/512\n\n" + BODY[:10], 400),  # G2
        (_range(b"bytes 100-109/512", BODY[:10], b"X: " + b"x" * 17000 + b"\r\n"), 431),
        (_range(b"bytes 100-109/512", BODY[:10], b"X: y\r\n" * 101), 431),  # G3
        (b"", 400),
    ],
)
async def test_malformed_range_changes_nothing(
    patch: bytes, status: int, autojump_clock: Clock
) -> None:
    """B1 to B6, G2, G3, G6: each is refused, and the upload goes on where it was."""
    async with memory_service(handler := Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        client = service.connect()
        reply = await client.request("PATCH", location, BYTERANGE, patch)
        assert reply.status == status, reply
        assert await offset_of(service, location) == 100
        reply = await service.connect().patch(location, 100, BODY[100:], 512)
        assert reply.status == 200
    assert handler.bodies == [BODY]


@pytest.mark.parametrize(
    "patch",
    [
        _range(b"bytes 100-/512", BODY[100:]),
        _range(b"bytes 100-/*", BODY[100:]),
        _range(b"bytes 100-511/*", BODY[100:]),
        _range(b"bytes 100-511/512", BODY[100:], b"Content-Length: 412\r\nETag: x\r\n"),
    ],
)
async def test_ranges_with_open_ends_are_accepted(
    patch: bytes, autojump_clock: Clock
) -> None:
    """B2, B3, B6: the total may be unknown, the end open, other fields are ignored."""
    async with memory_service(handler := Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        reply = await service.connect().request("PATCH", location, BYTERANGE, patch)
        assert reply.status == 200
    assert handler.bodies == [BODY]


async def test_short_content_is_an_interruption(autojump_clock: Clock) -> None:
    """B5: what came is kept; 204 tells the shorter offset."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        patch = _range(b"bytes 100-511/512", BODY[100:150])
        reply = await service.connect().request("PATCH", location, BYTERANGE, patch)
        assert (reply.status, reply["upload-offset"]) == (204, "150")


async def test_lenient_setting_accepts_a_missing_unit(autojump_clock: Clock) -> None:
    """B6: as the drafts' own demonstration client sends it."""
    async with memory_service(Recorder(), Config(lenient_range_unit=True)) as service:
        location = await cut_upload(service, BODY, 100)
        patch = _range(b"100-511/512", BODY[100:])
        reply = await service.connect().request("PATCH", location, BYTERANGE, patch)
        assert reply.status == 200


@pytest.mark.parametrize("total", [b"1001", b"999999999999999"])
async def test_total_over_the_limit_is_400(total: bytes, autojump_clock: Clock) -> None:
    """B7, G6: not 413, and the declared total allocates nothing."""
    async with memory_service(Recorder(), Config(max_upload_size=1000)) as service:
        client = service.connect()
        await client.send(head("POST", "/", {"Transfer-Encoding": "chunked", **RESUME}))
        interim = await client.interim()
        location = interim.fields.get("request-content-location") or ""
        patch = _range(b"bytes 0-0/" + total, b"x")
        reply = await service.connect().request("PATCH", location, BYTERANGE, patch)
        assert (reply.status, reply.code) == (400, "length-over-limit")
        assert await offset_of(service, location) == 0


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        (multipart(100, BODY[100:200], BODY[200:300], total=512)[:-9], 400),
        (multipart(100, BODY[100:200], total=512)[:-60], 400),
        (multipart(100, BODY[100:200], total=512).replace(b"/512", b"/511"), 400),
        (
            multipart(100, BODY[100:200], total=512)[:-9]
            + multipart(300, BODY[300:400], total=512),
            409,
        ),
        (multipart(50, BODY[50:150], total=512), 409),
        (multipart(100, BODY[100:200], total=512) + b"trailing", 400),
        (multipart(100, BODY[100:200], total=512), 204),
        (b"no boundary at all", 400),
    ],
)
async def test_multipart_is_all_or_nothing(
    patch: bytes, status: int, autojump_clock: Clock
) -> None:
    """B8: a patch that is not right to its end leaves the upload as it was."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        reply = await service.connect().request("PATCH", location, MULTIPART, patch)
        assert reply.status == status, reply
        expected = 200 if status == 204 else 100
        assert await offset_of(service, location) == expected
        shown = await service.connect().request("GET", location)
        assert shown.body == BODY[:expected]


async def test_cut_multipart_applies_nothing(autojump_clock: Clock) -> None:
    """B8: also when it is the connection that ends."""
    async with memory_service(Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        client = service.connect()
        patch = multipart(100, BODY[100:300], BODY[300:], total=512)
        await client.send(
            head("PATCH", location, MULTIPART, length=len(patch)) + patch[:-5]
        )
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        assert await offset_of(service, location) == 100


async def test_large_multipart_is_held_back_and_then_counts(tmp_path: Path) -> None:
    """B8: several pieces of memory long, on a real disk, and the bytes are right."""
    body = bytes(range(251)) * 12_000
    async with socket_service(handler := Recorder(), tmp_path) as service:
        async with service.connect() as client:
            interim = await client.start(len(body), body[:1000])
            location = interim.fields.get("request-content-location") or ""
        async with service.connect() as client:
            patch = multipart(1000, body[1000:200_000], body[200_000:], total=len(body))
            while True:
                shown = await client.request("HEAD", location)
                if shown["upload-offset"] == "1000":
                    break
            reply = await client.request("PATCH", location, MULTIPART, patch)
            assert reply.status == 200
    assert handler.bodies == [body]


async def test_stated_length_is_never_forgotten_by_a_newcomer(
    autojump_clock: Clock,
) -> None:
    """B2: also by one that comes before it is committed; trio's order is random."""
    async with memory_service(Recorder()) as service:
        for length in range(600, 640):
            client = service.connect()
            fields = {"Transfer-Encoding": "chunked", **RESUME}
            await client.send(head("POST", "/", fields))
            interim = await client.interim()
            await client.aclose()
            await trio.testing.wait_all_tasks_blocked()
            location = interim.fields.get("request-content-location") or ""
            token = OperationId(location.split("/")[2])
            async with service.operations.use(token) as operation:
                assert operation is not None
                operation.learn_length(length)
            async with service.operations.use(token) as operation:
                assert operation is not None
                assert operation.record.length == length


@pytest.mark.parametrize("chunk_size", [10, 64, 100, 4096])
async def test_upload_keeps_its_chunk_size_over_a_change_of_the_setting(
    chunk_size: int, autojump_clock: Clock
) -> None:
    """R22: begun with chunks of 64 bytes, completed by a service with others."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(Recorder(), store=store) as service:
        location = await cut_upload(service, BODY, 300)
    after = store.crash(power_loss=False, chunk_size=chunk_size)
    async with memory_service(handler := Recorder(), store=after) as service:
        assert await offset_of(service, location) == 300
        reply = await service.connect().patch(location, 300, BODY[300:], 512)
        assert reply.status == 200
        shown = await service.connect().request("GET", location)
        assert shown.body == BODY
    assert handler.bodies == [BODY]


# Any split of the bytes.


async def _through(
    pieces: list[bytes], requests: int
) -> tuple[list[Reply], list[bytes]]:
    handler = Recorder()
    replies: list[Reply] = []
    async with memory_service(handler) as service:
        _, ours = service.transports()
        client = Client(ours)

        async def send() -> None:
            for piece in pieces:
                await ours.send_all(piece)
                # Handled before the next one comes.
                await trio.testing.wait_all_tasks_blocked()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            replies += [await client.reply("POST") for _ in range(requests)]
    return replies, handler.bodies


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


_STREAM = (
    head("POST", "/1", RESUME, length=len(BODY))
    + BODY
    + head("POST", "/2", {**RESUME, "Transfer-Encoding": "chunked"})
    + chunked(BODY, 100)
    + head("PUT", "/3", length=5)
    + b"hello"
)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, len(_STREAM) - 1), max_size=30))
def test_any_split_of_requests_gives_the_same_outcome(cuts: list[int]) -> None:
    """Heads, known length, chunks: what arrives together must not matter."""
    replies, bodies = trio.run(_through, _split(_STREAM, cuts), 3)
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert [len(reply.interims) for reply in replies] == [1, 1, 0]
    assert bodies == [BODY, BODY, b"hello"]


async def _patch_through(index: int, cuts: list[int], framing: str) -> None:
    fields, patch = patches(100, BODY[100:], len(BODY))[index]
    async with memory_service(handler := Recorder()) as service:
        location = await cut_upload(service, BODY, 100)
        if framing == "chunked":
            data = head("PATCH", location, {**fields, "Transfer-Encoding": "chunked"})
            data += chunked(patch, 30)
        else:
            data = head("PATCH", location, fields, length=len(patch)) + patch
        client = service.connect()
        for piece in _split(data, cuts):
            await client.send(piece)
            await trio.testing.wait_all_tasks_blocked()
        reply = await client.reply()
        assert (reply.status, reply.body) == (200, b"got 512 bytes")
    assert handler.bodies == [BODY]


@settings(max_examples=40, deadline=None)
@given(
    index=st.integers(0, 4),
    cuts=st.lists(st.integers(0, 10_000), max_size=20),
    framing=st.sampled_from(["length", "chunked"]),
)
def test_any_split_of_a_patch_gives_the_same_content(
    index: int, cuts: list[int], framing: str
) -> None:
    """R15: every media type, in both framings, compared by bytes."""
    trio.run(_patch_through, index, cuts, framing)
