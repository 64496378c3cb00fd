"""What happens in which order, and what fails in between: each call of the store held.

See :mod:`tests.server.held`. Every test says which call waits, what is done meanwhile, and
how the call ends.
"""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Client,
    FullCatalog,
    Interim,
    MemoryService,
    Recorder,
    chunked,
    head,
    memory_service,
)
from tests.server.held import HeldStore, Hold, having
from tests.server.seed import BODY, MULTIPART, cut_upload, multipart
from trioresume import Config, FileService
from trioresume.errors import StorageError, StorageFull
from trioresume.protocol.operation import OperationState
from trioresume.server.async_store.storage import LONGEST_DELAY, MOST_DELAYED, Storage
from trioresume.store.port import (
    ContentKey,
    CreateOperation,
    FreezeContent,
    LetCount,
    OperationId,
    OperationRecord,
    PublishFile,
    RecordOffset,
    RecordResponse,
    SealChunk,
    SetMeta,
    SetState,
)
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock


def held_store(chunk_size: int = 64) -> HeldStore:
    return HeldStore(MemoryStore(chunk_size=chunk_size))


def record_of(service: MemoryService, location: str) -> OperationRecord:
    """What the catalog says of an upload."""
    record = service.store.operation(OperationId(location.split("/")[2]))
    assert record is not None
    return record


def content_of(interim: Interim) -> str:
    return interim.fields.get("request-content-location") or ""


async def asked(service: MemoryService, method: str, location: str) -> Client:
    """A connection whose request is on its way; its answer is yet to be read."""
    client = service.connect()
    await client.send(head(method, location))
    await trio.testing.wait_all_tasks_blocked()
    return client


async def test_store_that_holds_nothing_is_like_any_other(
    autojump_clock: Clock,
) -> None:
    """The double adds nothing of its own."""
    store = held_store()
    async with memory_service(handler := Recorder(), store=store) as service:
        location = await cut_upload(service, BODY, 100)
        seen = await service.connect().request("HEAD", location)
        assert seen["upload-offset"] == "100"
        reply = await service.connect().patch(location, 100, BODY[100:], 512)
        assert reply.status == 200
    assert handler.bodies == [BODY]
    assert store.count("seal.run") >= 8


async def test_call_is_made_only_when_it_is_released(autojump_clock: Clock) -> None:
    """Held before it, and held after it: its caller waits, and others do not."""
    store = held_store()
    async with memory_service(Recorder(), store=store) as service:
        location = await cut_upload(service, BODY, 100)
        flush = store.hold("flush.run")
        asking = service.connect()
        await asking.send(head("HEAD", location))
        await flush.reached()
        assert (await service.connect().request("GET", "/")).status == 200
        assert record_of(service, location).durable_offset < 100
        flush.perform()
        await trio.testing.wait_all_tasks_blocked()
        flush.release()
        assert (await asking.reply("HEAD"))["upload-offset"] == "100"


# Announced is durable: a call in between that fails, or that has yet to come (promise 1).


async def test_offset_is_not_told_before_it_is_recorded(autojump_clock: Clock) -> None:
    """Synced is not enough: without the record a power loss takes it all."""
    store = held_store()
    async with memory_service(Recorder(), store=store) as service:
        location = await cut_upload(service, BODY, 100)
        recording = store.hold("apply", having(RecordOffset))
        asking = await asked(service, "HEAD", location)
        await recording.reached()
        with trio.move_on_after(5) as waiting:
            await asking.reply("HEAD")
        assert waiting.cancelled_caught
        recording.release()
        assert (await asking.reply("HEAD"))["upload-offset"] == "100"


@pytest.mark.parametrize("sent", [64, 100, 200])
async def test_offset_is_not_told_if_a_full_chunk_was_not_named(
    sent: int, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A chunk that became full and was synced, but that the catalog refused."""
    store = held_store()
    no_room = StorageFull("no room in the catalog")
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        location = content_of(await client.start(512))
        naming = store.hold("apply", having(SealChunk))
        store.fail("apply", no_room, having(SealChunk), times=9)
        await client.send(BODY[:sent])
        await naming.reached()
        asking = await asked(service, "HEAD", location)
        naming.fail(no_room)
        await asking.reply("HEAD")
        # No flush knows of the chunk's tail: nobody may record that it is durable.
        assert not store.committed(RecordOffset)
        assert record_of(service, location).durable_offset == 0
        store.let_go()
        shown = await service.connect().request("HEAD", location)
        at = int(shown["upload-offset"])
        reply = await service.connect().patch(location, at, BODY[at:], 512)
        assert reply.status == 200
    assert handler.bodies == [BODY]


async def test_acknowledge_waits_for_the_name_of_each_chunk(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """R30: it is told beside the running writer, and of durable bytes only."""
    store = held_store()
    config = Config(acknowledge_interval=1)
    async with memory_service(Recorder(), config, store=store) as service:
        client = service.connect()
        await client.start(512, prefer="resume, acknowledge")
        naming = store.hold("apply", having(SealChunk))
        await client.send(BODY[:64])
        await naming.reached()
        with trio.move_on_after(10) as silent:
            await client.interim()
        assert silent.cancelled_caught
        naming.release()
        told = await client.interim()
        assert told.fields.get("acknowledge") == "64"


async def test_chunks_are_named_by_the_commit_that_freezes_them(
    mock_clock: Clock,
) -> None:
    """Promise 4: before the target is called; and no other commit comes first.

    The clock stands still: no commit is made just because it has waited long enough.
    """
    store = held_store()
    async with memory_service(handler := Recorder(), store=store) as service:
        await trio.testing.wait_all_tasks_blocked()  # the start has its own commit
        freezing = store.hold("apply", having(FreezeContent))
        client = service.connect()
        await client.send(head("POST", "/", {"Content-Length": "512"}) + BODY)
        await freezing.reached()
        assert not store.committed(SealChunk)
        assert not handler.bodies
        freezing.release()
        assert (await client.reply()).status == 200
    assert handler.bodies == [BODY]


@pytest.mark.parametrize("length", [512, 512 * 5])
async def test_chunks_that_were_not_named_are_named_by_the_commit_that_freezes_them(
    length: int, autojump_clock: Clock
) -> None:
    """A commit in between that failed has done nothing: all is done at the end.

    Of the longer content too many chunks were named before to be remembered.
    """
    store = held_store()
    no_room = StorageFull("no room in the catalog")
    body = BODY * (length // 512)
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        await client.start(length, body[: length - 412])
        await trio.sleep(2 * LONGEST_DELAY)
        naming = store.hold("apply", having(SealChunk))
        await client.send(body[length - 412 : length - 212])
        await naming.reached()
        await client.send(body[length - 212 :])
        await trio.testing.wait_all_tasks_blocked()
        store.fail("apply", no_room, having(SealChunk), times=3)
        naming.fail(no_room)
        assert (await client.reply()).status == 200
    assert handler.bodies == [body]
    named = {cast("SealChunk", seal).index for seal in store.committed(SealChunk)}
    assert named == set(range(length // 64))


# What was ended stays so (R25).


@pytest.mark.parametrize("call", ["before", "answered"])
async def test_no_file_is_published_after_a_delete_was_answered(
    call: str, autojump_clock: Clock
) -> None:
    """A target's effects are committed with its response: neither after the 204."""
    store = held_store()
    async with memory_service(FileService(), store=store) as service:
        client = service.connect()
        await client.send(head("PUT", "/files/a", RESUME, length=3))
        location = content_of(await client.interim())
        # The target looks for the file once more, before it answers.
        looking = store.hold("file")
        await client.send(b"abc")
        await looking.reached()
        if call == "answered":
            looking.perform()
        reply = await service.connect().request("DELETE", location)
        assert reply.status == 204
        looking.release()
        await trio.testing.wait_all_tasks_blocked()
        assert service.store.file(None, "a") is None
        assert record_of(service, location).state is OperationState.GONE
        assert (await service.connect().request("GET", "/files/a")).status == 404
    assert not store.committed(PublishFile)


async def test_response_that_waited_for_space_is_dropped_after_a_delete(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The 204 came first: nothing of the response may be committed when there is space."""
    store = held_store()
    async with memory_service(handler := Recorder(), store=store) as service:
        client = service.connect()
        location = content_of(await client.start(3))
        full = StorageFull("no room in the catalog")
        store.fail("apply", full, having(RecordResponse), times=2)
        await client.send(b"abc")
        await trio.testing.wait_all_tasks_blocked()
        assert handler.bodies == [b"abc"]
        recording = store.hold("apply", having(RecordResponse))
        assert (await service.connect().request("DELETE", location)).status == 204
        await trio.sleep(100)
        assert not recording.is_reached
        assert record_of(service, location).state is OperationState.GONE


async def test_delete_is_answered_only_when_it_is_recorded(
    autojump_clock: Clock,
) -> None:
    """R25: also while the target runs; a restart must not find it in any other state."""
    store = held_store()
    gate = trio.Event()
    async with memory_service(Recorder(gate=gate), store=store) as service:
        client = service.connect()
        location = content_of(await client.start(3, b"abc"))
        await trio.testing.wait_all_tasks_blocked()
        recording = store.hold("apply", having(SetState))
        deleting = await asked(service, "DELETE", location)
        await recording.reached()
        with trio.move_on_after(5) as waiting:
            await deleting.reply("DELETE")
        assert waiting.cancelled_caught
        recording.release()
        assert (await deleting.reply("DELETE")).status == 204
        gate.set()


# A patch that counts as a whole (B8).


async def multipart_held(
    service: MemoryService, store: HeldStore
) -> tuple[str, Client, Hold]:
    """A multipart patch of bytes 100 to 300 in its last commit: where, and by which client."""
    location = await cut_upload(service, BODY, 100)
    counting = store.hold("apply", having(LetCount))
    patch = multipart(100, BODY[100:200], BODY[200:300], total=512)
    client = service.connect()
    await client.send(head("PATCH", location, MULTIPART, length=len(patch)) + patch)
    await counting.reached()
    return location, client, counting


@pytest.mark.parametrize("performed", [False, True])
async def test_newcomer_waits_for_the_commit_of_a_patch_that_counts_as_a_whole(
    performed: bool, autojump_clock: Clock
) -> None:
    """R21: whoever looks in the middle of it would tell an offset that is none."""
    store = held_store()
    async with memory_service(handler := Recorder(), store=store) as service:
        location, client, counting = await multipart_held(service, store)
        asking = await asked(service, "HEAD", location)
        if performed:
            counting.perform()
        with trio.move_on_after(5) as waiting:
            await asking.reply("HEAD")
        assert waiting.cancelled_caught
        counting.release()
        assert (await asking.reply("HEAD"))["upload-offset"] == "300"
        reply = await service.connect().patch(location, 300, BODY[300:], 512)
        assert reply.status == 200
        await client.aclose()
    assert handler.bodies == [BODY]


async def test_patch_whose_commit_outlasts_its_time_is_not_given_up(
    autojump_clock: Clock,
) -> None:
    """It might be done after the next writer has looked where to begin."""
    store = held_store()
    config = Config(body_timeout=5)
    async with memory_service(handler := Recorder(), config, store=store) as service:
        location, client, counting = await multipart_held(service, store)
        with trio.move_on_after(30) as waiting:
            await client.reply("PATCH")
        assert waiting.cancelled_caught
        counting.release()
        await client.reply("PATCH")
        shown = await service.connect().request("HEAD", location)
        at = int(shown["upload-offset"])
        assert record_of(service, location).durable_offset == at
        reply = await service.connect().patch(location, at, BODY[at:], 512)
        assert reply.status == 200
    assert handler.bodies == [BODY]


async def test_patch_whose_commit_fails_leaves_nothing(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """B8: the bytes are there and synced, but they do not count."""
    store = held_store()
    async with memory_service(handler := Recorder(), store=store) as service:
        location, client, counting = await multipart_held(service, store)
        full = StorageFull("no room in the catalog")
        store.fail("apply", full, having(LetCount))
        counting.fail(full)
        assert (await client.reply("PATCH")).status == 507
        shown = await service.connect().request("HEAD", location)
        assert shown["upload-offset"] == "100"
        reply = await service.connect().patch(location, 100, BODY[100:], 512)
        assert reply.status == 200
    assert handler.bodies == [BODY]


# Quotas, while something is on its way to the store (G7).


async def begin(service: MemoryService) -> int:
    """Begin an upload; 100, or the status of what refuses it."""
    client = service.connect()
    await client.send(head("POST", "/", RESUME, length=9))
    data = bytes(await client.stream.receive_some())
    return int(data[9:12])


async def test_upload_that_is_being_recorded_takes_one_place(
    autojump_clock: Clock,
) -> None:
    """The store has it, the server has yet to hear of that: it is not counted twice."""
    store = held_store()
    config = Config(max_open_uploads_per_principal=3)
    async with memory_service(Recorder(), config, store=store) as service:
        first = store.hold("apply", having(CreateOperation))
        statuses: list[int] = []

        async def start() -> None:
            statuses.append(await begin(service))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await first.reached()
            nursery.start_soon(start)  # it will be in the next batch
            await trio.testing.wait_all_tasks_blocked()
            # What is counted with the first batch gets lost, so that nothing is known.
            store.fail("usage", StorageError("the accounts cannot be read"))
            second = store.hold("apply", having(CreateOperation))
            first.release()
            await second.reached()
            second.perform()
            nursery.start_soon(start)
            await trio.testing.wait_all_tasks_blocked()
            second.release()
        assert statuses == [100, 100, 100]
        assert await begin(service) == 429


async def test_accounts_that_could_not_be_read_are_asked_for_again(
    autojump_clock: Clock,
) -> None:
    """What was known before a commit is not true after it."""
    store = held_store()
    config = Config(max_open_uploads_per_principal=1)
    async with memory_service(Recorder(), config, store=store) as service:
        creating = store.hold("apply", having(CreateOperation))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, service)
            await creating.reached()
            store.fail("usage", StorageError("the accounts cannot be read"))
            creating.release()
        assert await begin(service) == 429


# Content beyond a limit (G6).


@pytest.mark.parametrize("size", [99, 100, 101, 400])
async def test_nothing_beyond_the_limit_is_stored(
    size: int, autojump_clock: Clock
) -> None:
    """Of unknown length: up to the limit all of it is taken, and one byte more is not."""
    most = 0

    class Measured(MemoryStore):
        def write(self, key: ContentKey, index: int, data: memoryview) -> int:
            nonlocal most
            written = super().write(key, index, data)
            most = max(most, self.stored_bytes)
            return written

    store = Measured(chunk_size=1000)
    config = Config(max_upload_size=100)
    async with memory_service(handler := Recorder(), config, store=store) as service:
        client = service.connect()
        fields = {**RESUME, "Transfer-Encoding": "chunked"}
        await client.send(head("POST", "/", fields))
        location = content_of(await client.interim())
        for at in range(0, size, 7):
            try:
                await client.send(chunked(BODY[at : min(at + 7, size)])[:-5])
            except trio.BrokenResourceError:
                break
            await trio.testing.wait_all_tasks_blocked()
        if size <= 100:
            await client.send(b"0\r\n\r\n")
        reply = await client.reply()
        assert most <= 100
        assert reply.status == (200 if size <= 100 else 413)
        if size > 100:
            shown = await service.connect().request("HEAD", location)
            assert shown.status == 410 or int(shown["upload-offset"]) <= 100
    assert handler.bodies == ([BODY[:size]] if size <= 100 else [])


# What is put off.


async def test_many_submissions_for_later_do_not_wait(autojump_clock: Clock) -> None:
    """What they hold is bounded: with so many of them there is a commit at once."""
    store = MemoryStore()
    storage = Storage(store, threads=1)
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        for number in range(MOST_DELAYED):
            storage.submit_later(SetMeta(f"few {number}", ""))
        await trio.testing.wait_all_tasks_blocked()
        assert store.meta("few 0") is None
        await trio.sleep(LONGEST_DELAY + 0.01)
        assert store.meta("few 0") == ""
        begun = trio.current_time()
        waiting = [
            storage.submit_later(SetMeta(f"many {number}", ""))
            for number in range(1000)
        ]
        for submission in waiting:
            await submission.wait()
        took = trio.current_time() - begun
        storage.stop()
    assert took < LONGEST_DELAY / 10


# Too late, but whole (G5).


@pytest.mark.parametrize("method", ["HEAD", "PATCH"])
async def test_upload_that_is_overdue_but_whole_is_completed(
    method: str, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its writer was let go on (promise 9); then the disk was full at the end."""
    store = FullCatalog(chunk_size=1000)
    config = Config(max_upload_lifetime=100, min_body_rate=0)
    async with memory_service(FileService(), config, store=store) as service:
        client = service.connect()
        await client.send(head("PUT", "/files/a", RESUME, length=9))
        location = content_of(await client.interim())
        for at in range(9):
            await trio.sleep(14)
            store.full = at == 8
            await client.send(b"123456789"[at : at + 1])
        assert (await client.reply()).status == 507
        store.full = False
        assert trio.current_time() > config.max_upload_lifetime
        if method == "HEAD":
            reply = await service.connect().request("HEAD", location)
            assert (reply.status, reply["upload-offset"]) == (200, "9")
        nothing = b"Content-Range: bytes */9\r\n\r\n"
        reply = await service.connect().request("PATCH", location, BYTERANGE, nothing)
        assert reply.status == 201
        got = await service.connect().request("GET", "/files/a")
        assert got.body == b"123456789"


# What nobody waits for.


async def test_collection_in_the_background_does_not_look_at_every_file(
    autojump_clock: Clock,
) -> None:
    """That is for a keeper to ask for: it costs as much as there is in the store."""
    store = held_store()
    async with memory_service(Recorder(), store=store) as service:
        location = await cut_upload(service, BODY, 100)
        await service.connect().request("DELETE", location)
        await trio.sleep(10)
        assert store.count("collect") >= 2
        assert store.count("sweep") == 0
