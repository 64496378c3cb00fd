"""A store that is full, breaks or has a bug: one request suffers, the service lives on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    FullCatalog,
    MemoryService,
    Recorder,
    head,
    memory_service,
)
from tests.server.seed import BODY, MULTIPART, multipart
from trioresume import Config, FileService, Response
from trioresume.errors import StorageConflict, StorageFull, StorageUnavailable
from trioresume.protocol.operation import CallPolicy
from trioresume.server.uploads.locations import opened_id
from trioresume.store.port import (
    Content,
    ContentKey,
    CreateOperation,
    Mutation,
    OperationId,
    SealChunk,
)
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock


async def _complete(service: MemoryService, location: str) -> int:
    """Complete the upload from where it is; that offset."""
    client = service.connect()
    shown = await client.request("HEAD", location)
    assert shown.status == 200
    at = int(shown["upload-offset"])
    assert (await client.request("GET", location)).body == BODY[:at]
    reply = await client.patch(location, at, BODY[at:], len(BODY))
    assert (reply.status, reply.body) == (200, b"got 512 bytes")
    return at


@pytest.mark.parametrize("room", [0, 1, 63, 64, 100, 200, 511])
async def test_full_store_is_507_and_the_upload_completes_when_there_is_space(
    room: int, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """G8: the offset stays true, the service lives on."""
    store = MemoryStore(chunk_size=64)
    store.full_after = room
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        reply = await client.request("POST", "/", RESUME, BODY)
        assert (reply.status, reply.code) == (507, "insufficient-storage")
        location = reply.content
        shown = await service.connect().request("HEAD", location)
        assert int(shown["upload-offset"]) <= room
        assert (await service.connect().request("GET", "/")).status == 200
        store.full_after = None
        assert await _complete(service, location) <= room
    assert handler.bodies == [b"", BODY]


class UnreachableCatalog(MemoryStore):
    """A store whose catalog does not answer while ``is_away`` is set."""

    is_away = False

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        if self.is_away:
            raise StorageUnavailable("no answer")
        return super().apply(batch)


async def test_storage_that_does_not_answer_is_a_503_with_the_time_to_come_back(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster's database restarts: the upload goes on afterwards, and the offset is true."""
    store = UnreachableCatalog(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        interim = await client.start(512, BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        store.is_away = True
        reply = await service.connect().request("HEAD", location)
        assert reply.status == 503
        assert int(reply["retry-after"]) >= 1
        store.is_away = False
        assert await _complete(service, location) == 100
    assert handler.bodies == [BODY]


async def test_full_store_refuses_a_patch_and_keeps_the_offset(
    autojump_clock: Clock,
) -> None:
    """G8, B8: of a multipart nothing is there, though there was space for some of it."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        interim = await client.start(512, BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        store.full_after = store.stored_bytes + 50
        patch = multipart(100, BODY[100:300], BODY[300:], total=512)
        reply = await service.connect().request("PATCH", location, MULTIPART, patch)
        assert reply.status == 507
        store.full_after = None
        assert await _complete(service, location) == 100
    assert handler.bodies == [BODY]


@pytest.mark.parametrize("sent", [50, 64, 300])
async def test_failing_sync_is_a_500_and_only_recorded_bytes_count(
    sent: int, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 2: after a failed sync the store is looked at anew."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        interim = await client.start(512, b"")
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        store.fail_next_sync = True
        await client.send(BODY[:sent])
        await trio.testing.wait_all_tasks_blocked()
        first = await service.connect().request("HEAD", location)
        store.fail_next_sync = False
        assert first.status in (200, 500)
        await _complete(service, location)
    assert handler.bodies == [BODY]


async def test_failing_sync_does_not_end_an_operation_that_others_use(
    autojump_clock: Clock,
) -> None:
    """Promise 10: whoever waits for its response keeps it loaded; it recovers still."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        interim = await client.start(512, BODY[:50])
        location = interim.fields.get("request-content-location") or ""
        message = interim.fields.get("response-message-location") or ""
        waiting = service.connect()
        await waiting.send(head("GET", message, {"Prefer": "wait=30"}))
        await trio.testing.wait_all_tasks_blocked()
        store.fail_next_sync = True
        assert (await service.connect().request("HEAD", location)).status == 500
        await _complete(service, location)
        assert (await waiting.reply()).status == 200
    assert handler.bodies == [BODY]


async def test_file_that_cannot_be_published_is_507_and_completes_later(
    autojump_clock: Clock,
) -> None:
    """G8: a transactional target has no effect without its record."""

    store = FullCatalog(chunk_size=1000)
    async with memory_service(FileService(), store=store) as service:
        client = service.connect()
        interim = await client.start(512, BODY[:500], target="/files/")
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        store.full = True
        await client.send(BODY[500:])
        assert (await client.reply()).status == 507
        store.full = False
        shown = await service.connect().request("HEAD", location)
        assert shown["upload-offset"] == "512"
        await trio.testing.wait_all_tasks_blocked()
        reply = await service.connect().request(
            "PATCH", location, BYTERANGE, b"Content-Range: bytes */512\r\n\r\n"
        )
        assert reply.status == 201
        got = await service.connect().request("GET", reply["location"])
        assert got.body == BODY


class NoCreations(MemoryStore):
    """A store whose catalog has no room for a new operation, but for smaller changes."""

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        if any(isinstance(m, CreateOperation) for s in batch for m in s):
            raise StorageFull("no room in the catalog")
        return super().apply(batch)


@pytest.mark.parametrize("body", [b"", BODY])
async def test_request_whose_record_found_no_space_is_507(
    body: bytes, autojump_clock: Clock
) -> None:
    """G8: also if nobody waited for the record, because no resumption was asked for."""
    store = NoCreations(chunk_size=64)
    async with memory_service(FileService(), store=store) as service:
        reply = await service.connect().request("PUT", "/files/a", {}, body)
        assert (reply.status, reply.code) == (507, "insufficient-storage")
    store = NoCreations(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        reply = await service.connect().request("POST", "/", {}, body)
        assert (reply.status, reply.code) == (507, "insufficient-storage")
    assert handler.bodies == []


class Committing(Recorder):
    """A handler whose answers are recorded with the content, in one commit."""

    policy = CallPolicy.TRANSACTIONAL


@pytest.mark.parametrize("size", [10, 64, 512])
async def test_answer_is_not_given_for_content_without_a_record(
    size: int, autojump_clock: Clock
) -> None:
    """Promise 1: all was dropped silently, because there was no room for the record."""
    store = NoCreations(chunk_size=64)
    async with memory_service(Committing(), store=store) as service:
        reply = await service.connect().request("POST", "/", {}, BODY[:size])
        assert (reply.status, reply.code) == (507, "insufficient-storage")


async def test_response_is_recorded_when_there_is_space_again(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """G8, R31: it is not sent before, and its handler is not called again."""

    store = FullCatalog(chunk_size=1000)

    def answer(body: bytes) -> Response:
        store.full = True
        return Response(200, {}, b"done")

    handler = Recorder(response=answer)
    async with memory_service(handler, store=store) as service:
        client = service.connect()
        await client.send(head("POST", "/", RESUME, length=3) + b"abc")
        await client.interim()
        with trio.move_on_after(30) as scope:
            await client.reply()
        assert scope.cancelled_caught
        store.full = False
        assert (await client.reply()).body == b"done"
    assert handler.bodies == [b"abc"]


async def test_bug_in_the_store_ends_the_service_without_a_lie(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 1: a commit that broke is told to nobody as done."""

    class _Buggy(MemoryStore):
        buggy = False

        def apply(
            self, batch: Sequence[Sequence[Mutation]]
        ) -> list[StorageConflict | None]:
            if self.buggy:
                raise ZeroDivisionError
            return super().apply(batch)

    store = _Buggy(chunk_size=64)
    received: list[bytes] = []
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with memory_service(Recorder(), store=store) as service:
            _, ours = service.transports()
            store.buggy = True
            await ours.send_all(head("POST", "/", RESUME, length=3) + b"abc")
            try:
                while data := await ours.receive_some():
                    received.append(data)
            except trio.BrokenResourceError:
                pass
            await trio.sleep(1)
    assert not any(b" 100 " in data or b" 200 " in data for data in received)


async def test_bug_in_completing_leaves_nobody_waiting(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 10: the upload's own request gets a 500, and HEAD an answer."""

    class _Buggy(MemoryStore):
        def sealed_content(
            self, key: ContentKey, seals: Sequence[SealChunk] = ()
        ) -> Content:
            raise ZeroDivisionError

    async with memory_service(Recorder(), store=_Buggy(chunk_size=16)) as service:
        client = service.connect()
        interim = await client.start(512, BODY[:500])
        content = interim.fields.get("request-content-location") or ""
        message = interim.fields.get("response-message-location") or ""
        waiting = service.connect()
        await waiting.send(head("GET", message, {"Prefer": "wait=30"}))
        await trio.sleep(
            1
        )  # the catalog names the chunks, and has to be asked for them
        await client.send(BODY[500:])
        assert (await client.reply()).status == 500
        with trio.fail_after(20):
            assert (await service.connect().request("HEAD", content)).status == 200
        assert (await waiting.reply()).status == 202
    assert "ZeroDivisionError" in caplog.text


async def test_large_atomic_patch_needs_no_data_directory(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """B8: all that is held back lies in the store, also in one of the caller's own."""
    body = bytes(range(256)) * 5000
    store = MemoryStore(chunk_size=1024 * 1024)
    config = Config(data_dir=tmp_path / "none")
    async with memory_service(handler := Recorder(), config, store=store) as service:
        client = service.connect()
        interim = await client.start(len(body))
        location = interim.fields.get("request-content-location") or ""
        await client.aclose()
        patch = multipart(0, body[:1000], body[1000:], total=len(body))
        reply = await service.connect().request("PATCH", location, MULTIPART, patch)
        assert reply.status == 200
    assert handler.bodies == [body]


async def test_storage_error_is_logged_with_its_request(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors: the keeper reads which request the disk failed."""
    store = MemoryStore(chunk_size=64)
    store.full_after = 0
    with caplog.at_level(logging.ERROR):
        async with memory_service(Recorder(), store=store) as service:
            await service.connect().request("POST", "/up", RESUME, BODY)
    assert any("POST /up" in record.getMessage() for record in caplog.records)


async def test_storage_error_is_logged_without_a_credential(
    autojump_clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The id of an upload by a signed address lets anybody continue it."""
    upload = opened_id(OperationId("abcdefghij0123456789-A"))
    store = MemoryStore()
    async with memory_service(Recorder(), store=store) as service:
        errors = [StorageFull("no space"), RuntimeError("a bug")]

        def fails(id: OperationId) -> None:
            raise errors[0]

        monkeypatch.setattr(store, "operation", fails)
        while errors:
            reply = await service.connect().request(
                "GET", f"/operations/{upload}/result"
            )
            assert reply.status >= 500
            del errors[0]
    assert "GET /operations/abcdefghij.../result: no space" in caplog.text
    assert "GET /operations/abcdefghij.../result failed" in caplog.text
    assert upload not in caplog.text


async def test_large_response_waits_for_space_instead_of_a_second_call(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """G8, R31: what the one call gave is neither lost nor asked for again."""
    large = bytes(range(256)) * 1024
    store = MemoryStore(chunk_size=64 * 1024)
    handler = Recorder(response=lambda body: Response(200, body=large))
    async with memory_service(handler, store=store) as service:
        client = service.connect()
        await client.start(len(BODY), BODY[:-1])
        await trio.testing.wait_all_tasks_blocked()
        store.full_after = store.stored_bytes + 100_000
        await client.send(BODY[-1:])
        with trio.move_on_after(10):
            await client.reply()
            raise AssertionError("answered without a place for the answer")
        store.full_after = None
        assert (await client.reply()).body == large
    assert handler.bodies == [BODY]
    assert "cannot be recorded yet" in caplog.text
