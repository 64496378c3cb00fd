"""An upload that waits for its client stays in memory, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from tests.server.harness import (
    MemoryService,
    Recorder,
    chunked,
    head,
    memory_service,
)
from tests.server.seed import BODY
from trioresume import Config, Principal, RequestHead
from trioresume.errors import StorageConflict, StorageFull
from trioresume.server.serving import Tuning
from trioresume.store.port import CreateOperation, Mutation, SetLength
from trioresume.testing import MemoryStore

Clock = trio.testing.MockClock


class Watched(MemoryStore):
    """Notes what is looked up; refuses to record what is of one of *refused*."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[str] = []
        self.refused: tuple[type[Mutation], ...] = ()

    def operation(self, id: Any) -> Any:
        self.asked.append("operation")
        return super().operation(id)

    def operation_owned_by(self, id: Any, principal: Any) -> Any:
        self.asked.append("operation")
        return super().operation_owned_by(id, principal)

    def offset(self, key: Any) -> int:
        self.asked.append("offset")
        return super().offset(key)

    def open_writer(self, key: Any) -> Any:
        self.asked.append("writer")
        return super().open_writer(key)

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        if any(isinstance(m, self.refused) for submission in batch for m in submission):
            raise StorageFull("no space for it")
        return super().apply(batch)


async def begun(service: MemoryService, sent: int = 100) -> str:
    """An upload that was cut after so many bytes; its place."""
    client = service.connect()
    interim = await client.start(512, BODY[:sent])
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked()
    return interim.fields.get("request-content-location") or ""


async def shown(service: MemoryService, place: str) -> str:
    reply = await service.connect().request("HEAD", place)
    assert reply.status == 200
    return reply["content-length"]


async def test_resting_upload_is_not_looked_up_and_goes_on(
    autojump_clock: Clock,
) -> None:
    """One look once it is durable: none for the next offset, a writer for the rest."""
    store = Watched(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        place = await begun(service)
        assert await shown(service, place) == "100"
        assert store.asked == ["writer"]  # to sync what came
        store.asked.clear()
        assert await shown(service, place) == "100"
        assert store.asked == []
        reply = await service.connect().patch(place, 100, BODY[100:], 512)
        assert reply.status == 200
        assert store.asked == ["writer"]
        await trio.testing.wait_all_tasks_blocked()
        assert not service.operations._loaded  # it is finished: nothing to wait for
    assert handler.bodies == [BODY]


async def test_no_more_than_so_many_rest(autojump_clock: Clock) -> None:
    """The one that rests longest goes; it is looked up again."""
    store, tuning = Watched(chunk_size=64), Tuning(most_resting=2)
    async with memory_service(Recorder(), store=store, tuning=tuning) as service:
        first, second, third = [await begun(service) for _ in range(3)]
        assert len(service.operations._loaded) == 2
        store.asked.clear()
        assert await shown(service, second) == await shown(service, third) == "100"
        assert "operation" not in store.asked
        assert await shown(service, first) == "100"
        assert store.asked.count("operation") == 1
        assert len(service.operations._loaded) == 2
        store.asked.clear()
        assert await shown(service, third) == "100"  # it was visited after the second
        assert store.asked == []


async def test_what_was_not_recorded_does_not_rest(autojump_clock: Clock) -> None:
    """Nobody may be told of what a restart would not know."""
    store = Watched(chunk_size=64)
    async with memory_service(Recorder(), store=store) as service:
        store.refused = (CreateOperation,)
        reply = await service.connect().request(
            "POST", "/", {"Prefer": "resume"}, b"abc"
        )
        assert reply.status == 507
        assert not service.operations._loaded
        store.refused = ()
        client = service.connect()
        fields = {"Prefer": "resume", "Transfer-Encoding": "chunked"}
        await client.send(head("POST", "/", fields) + chunked(BODY[:100])[:-5])
        interim = await client.interim()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert len(service.operations._loaded) == 1
        store.refused = (SetLength,)
        place = interim.fields.get("request-content-location") or ""
        await service.connect().patch(place, 100, BODY[100:150], 512)
        await trio.testing.wait_all_tasks_blocked()
        assert not service.operations._loaded


async def test_request_that_finds_nothing_leaves_nothing() -> None:
    """Guesses fill no memory."""
    async with memory_service(Recorder()) as service:
        for number in range(5):
            place = f"/operations/{number:022}/content"
            reply = await service.connect().request("HEAD", place)
            assert reply.status == 404
        assert not service.operations._loaded


async def _by_name(request: RequestHead) -> Principal:
    return Principal(request.fields.get("x-name") or "owner")


STRANGER = {"X-Name": "stranger"}
NONE = f"/operations/{'A' * 22}/content"


async def looks(
    service: MemoryService, store: Watched, method: str, path: str
) -> list[str]:
    """What the store is asked when a stranger sends a request."""
    store.asked.clear()
    reply = await service.connect().request(method, path, STRANGER)
    assert reply.status == 404
    return list(store.asked)


@pytest.mark.parametrize("is_forgotten", [False, True])
@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE", "OPTIONS"])
async def test_stranger_causes_as_many_looks_as_for_no_upload(
    method: str, is_forgotten: bool, autojump_clock: Clock
) -> None:
    """R35: in memory or not, the first time and later: the time must not tell."""
    store = Watched(chunk_size=64)
    async with memory_service(
        Recorder(), Config(authenticate=_by_name), store=store
    ) as service:
        place = await begun(service)
        if is_forgotten:
            service.operations._resting.clear()
            service.operations._loaded.clear()
        for _ in range(2):
            assert await looks(service, store, method, place) == ["operation"]
            assert await looks(service, store, method, NONE) == ["operation"]
        # A longer answer would also tell that a record was loaded.
        assert len(service.operations._loaded) == (0 if is_forgotten else 1)


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE", "OPTIONS"])
async def test_stranger_loads_no_upload_that_has_ended(
    method: str, autojump_clock: Clock
) -> None:
    """R35: a record with a response takes longer to read than none, and is not read."""
    store = Watched(chunk_size=64)
    async with memory_service(
        Recorder(), Config(authenticate=_by_name), store=store
    ) as service:
        place = await begun(service)
        reply = await service.connect().patch(place, 100, BODY[100:], 512)
        assert reply.status == 200
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            assert await looks(service, store, method, place) == ["operation"]
            assert not service.operations._loaded


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_part_of_somebody_else_causes_as_many_looks_as_none(
    is_forgotten: bool, autojump_clock: Clock
) -> None:
    """R35: the references of a concatenation are requests for uploads, too."""
    store = Watched(chunk_size=64)
    async with memory_service(
        Recorder(), Config(authenticate=_by_name), store=store
    ) as service:
        place = await begun(service)
        if is_forgotten:
            service.operations._resting.clear()
            service.operations._loaded.clear()
        for path in (place, NONE, place):
            store.asked.clear()
            fields = {"Tus-Resumable": "1.0.0", "Upload-Concat": f"final;{path}"}
            reply = await service.connect().request("POST", "/", fields | STRANGER)
            assert reply.status == 400
            assert store.asked == ["operation"]
