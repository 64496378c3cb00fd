"""Whatever tells an offset tells a durable one (promise 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.server.harness import Recorder, memory_service, socket_service
from tests.server.held import HeldStore, having
from tests.server.seed import BODY
from trioresume.errors import StorageConflict, StorageFull
from trioresume.server.api.config import Config
from trioresume.server.serving import Tuning
from trioresume.server.uploads.locations import locate
from trioresume.store.disk_store import Durability, open_store
from trioresume.store.port import Mutation, RecordOffset, request_key
from trioresume.testing import MemoryStore

Clock = trio.testing.MockClock


async def test_offset_of_a_409_survives_power_loss(autojump_clock: Clock) -> None:
    """R16: a patch at the wrong place learns the offset, so it is synced before."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(Recorder(), store=store) as service:
        interim = await service.connect().start(512, BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        reply = await service.connect().patch(location, 7, BODY[7:20], 512)
        assert (reply.status, reply["upload-offset"]) == (409, "100")
    place = locate(Config(), location)
    assert place is not None
    after = store.crash(power_loss=True)
    assert after.offset(request_key(place[0])) == 100


async def test_offset_that_another_request_is_recording_is_not_told_yet(
    autojump_clock: Clock,
) -> None:
    """Its bytes are synced, but a power loss would leave what is recorded."""
    store = HeldStore(MemoryStore(chunk_size=64))
    async with memory_service(Recorder(), store=store) as service:
        interim = await service.connect().start(512, BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        recording = store.hold("apply", having(RecordOffset))
        told: list[str] = []

        async def ask() -> None:
            reply = await service.connect().request("HEAD", location)
            told.append(reply["upload-offset"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await recording.reached()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert told == []
            recording.release()
        assert told == ["100", "100"]


class _NoSpaceForOffsets(MemoryStore):
    """The catalog cannot grow: a sync cannot be recorded."""

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        if any(isinstance(m, RecordOffset) for submission in batch for m in submission):
            raise StorageFull("no space for the catalog")
        return super().apply(batch)


async def test_head_answers_what_was_durable_when_the_disk_is_full(
    autojump_clock: Clock,
) -> None:
    """G8, R12: a HEAD that fails in passing makes clients begin from zero."""
    store = _NoSpaceForOffsets(chunk_size=64)
    async with memory_service(Recorder(), store=store) as service:
        interim = await service.connect().start(512, BODY[:30])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        shown = await service.connect().request("HEAD", location)
        assert (shown.status, shown["content-length"]) == (200, "0")
        assert shown["upload-complete"] == "?0"


@pytest.mark.parametrize("durability", ["disk", "process"])
async def test_offset_of_what_nobody_writes_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """Once, and no writer is opened for it. (If it rests in memory: not even that.)"""
    store = open_store(tmp_path / "data", chunk_size=64, durability=durability)
    called: list[str] = []

    def watched(name: str) -> Callable[..., object]:
        method = getattr(store, name)

        def call(*args: object) -> object:
            called.append(name)
            return method(*args)

        return call

    for name in ("operation", "operation_owned_by", "offset", "open_writer"):
        monkeypatch.setattr(store, name, watched(name))
    tuning = Tuning(most_resting=0)
    async with socket_service(
        Recorder(), tmp_path, store=store, tuning=tuning
    ) as service:
        async with service.connect() as peer:
            interim = await peer.start(512, BODY[:100])
            location = interim.fields.get("request-content-location") or ""
        async with service.connect() as peer:
            while (await peer.request("HEAD", location))["content-length"] != "100":
                pass
            await trio.testing.wait_all_tasks_blocked(0.05)  # nobody uses it any more
            called.clear()
            shown = await peer.request("HEAD", location)
            assert (shown.status, shown["content-length"]) == (200, "100")
    assert called == ["operation_owned_by", "offset"]
