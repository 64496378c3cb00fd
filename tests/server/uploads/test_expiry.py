"""What ends by itself and what does not: R22, R27, G11, promise 9."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tests.server.harness import (
    EPOCH,
    RESUME,
    FullCatalog,
    MemoryService,
    Recorder,
    head,
    memory_service,
)
from tests.server.seed import BODY, cut_upload
from trioresume import Config, FileService, Principal, RequestHead
from trioresume.errors import StorageConflict
from trioresume.protocol.clock import Schedule, ServiceClock
from trioresume.server.serving import Tuning
from trioresume.server.uploads import expiry
from trioresume.store.port import SERVICE_CLOCK, Mutation, OperationId
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock

HOUR = 3600.0


async def _status(service: MemoryService, location: str) -> int:
    client = service.connect()
    reply = await client.request("GET", location)
    await client.aclose()
    return reply.status


def _id(location: str) -> OperationId:
    return OperationId(location.split("/")[2])


async def test_incomplete_upload_expires_after_its_last_request(
    autojump_clock: Clock,
) -> None:
    """R22, R27: kept for the configured time, counted anew with each visit."""
    config = Config(incomplete_lifetime=HOUR, tombstone_lifetime=600)
    async with memory_service(Recorder(), config) as service:
        location = await cut_upload(service, BODY, 100)
        for _ in range(5):
            await trio.sleep(0.8 * HOUR)
            assert await _status(service, location) == 200
        await trio.sleep(1.1 * HOUR)
        assert await _status(service, location) == 410
        await trio.sleep(700)
        assert await _status(service, location) == 404
        assert service.store.stored_bytes == 0
        assert service.store.expiring(10) == []
        assert service.used == 0


async def test_nothing_expires_that_receives(autojump_clock: Clock) -> None:
    """G11, promise 9: an upload slower than any lifetime comes to its end."""
    config = Config(incomplete_lifetime=10, tombstone_lifetime=10, min_body_rate=0)
    async with memory_service(handler := Recorder(), config) as service:
        client = service.connect()
        await client.start(512)
        for at in range(0, 512, 8):
            await trio.sleep(7)
            await client.send(BODY[at : at + 8])
        assert (await client.reply()).status == 200
    assert handler.bodies == [BODY]


async def test_nothing_expires_that_processes(autojump_clock: Clock) -> None:
    """G11, promise 9: nor does the response's lifetime begin before there is one."""
    config = Config(incomplete_lifetime=10, response_lifetime=100)
    handler = Recorder(gate=trio.Event())
    assert handler.gate is not None
    async with memory_service(handler, config) as service:
        client = service.connect()
        interim = await client.start(512, BODY)
        message = interim.fields.get("response-message-location") or ""
        await client.aclose()
        await trio.sleep(5000)
        assert await _status(service, message) == 202
        handler.gate.set()
        await trio.sleep(95)
        assert await _status(service, message) == 200
        await trio.sleep(200)
        assert await _status(service, message) == 410


async def test_tombstone_in_use_at_its_end_is_forgotten_later(
    autojump_clock: Clock,
) -> None:
    """R27: who asks at the very moment does not keep the tombstone for ever."""
    config = Config(tombstone_lifetime=100)
    async with memory_service(Recorder(), config) as service:
        location = await cut_upload(service, BODY, 100)
        reply = await service.connect().request("DELETE", location)
        assert reply.status == 204
        gone = EPOCH + trio.current_time() + 100
        async with service.operations.use(_id(location)) as operation:
            assert operation is not None
            await trio.sleep(150)
            assert service.clock.now() > gone
        await trio.sleep(150)
        assert service.store.expiring(10) == []


@pytest.mark.parametrize("step", [365 * 24 * HOUR, -365 * 24 * HOUR])
async def test_step_of_the_wall_clock_neither_expires_all_nor_nothing(
    step: float, autojump_clock: Clock
) -> None:
    """G11: deadlines count seconds of service, whatever the wall clock says."""
    offset = 0.0

    def wall() -> float:
        return EPOCH + trio.current_time() + offset

    clock = ServiceClock(wall, trio.current_time)
    config = Config(incomplete_lifetime=HOUR)
    async with memory_service(Recorder(), config, clock=clock) as service:
        location = await cut_upload(service, BODY, 100)
        offset = step
        await trio.sleep(0.98 * HOUR)
        other = await cut_upload(service, BODY, 100)
        assert service.store.operation(_id(location)) is not None
        await trio.sleep(0.05 * HOUR)
        assert await _status(service, location) == 410
        assert await _status(service, other) == 200


async def test_what_was_due_when_the_service_was_killed_goes_at_its_start(
    autojump_clock: Clock,
) -> None:
    """R22: deadlines are in the catalog and outlive the process."""
    config = Config(incomplete_lifetime=HOUR)
    store = MemoryStore(chunk_size=64)
    async with memory_service(Recorder(), config, store=store) as service:
        location = await cut_upload(service, BODY, 100)
    store = store.crash(power_loss=False)
    await trio.sleep(2 * HOUR)
    async with memory_service(Recorder(), config, store=store) as service:
        await trio.sleep(5)
        assert await _status(service, location) == 410
        assert store.stored_bytes == 0


async def test_time_goes_on_from_where_the_last_process_left_it(
    autojump_clock: Clock,
) -> None:
    """G11: the clock's reading is kept while the service is in use, and rarely if not."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(Recorder(), store=store) as service:
        for wait in (0.0, 100.0, 20 * HOUR):
            await trio.sleep(wait)
            await cut_upload(service, BODY, 10)
            await trio.sleep(1.0)
            reading = store.meta(SERVICE_CLOCK)
            assert reading is not None
            now, date = map(float, reading.split())
            assert service.clock.now() - now < 2.0
            assert service.clock.date() - date < 2.0
        await trio.sleep(13 * HOUR)
        idle = store.meta(SERVICE_CLOCK)
        assert idle is not None
        assert service.clock.now() - float(idle.split()[0]) < 12 * HOUR


async def test_what_is_due_at_once_shares_commits(autojump_clock: Clock) -> None:
    """Hundreds of uploads that end together do not cost hundreds of syncs."""

    class _Counting(MemoryStore):
        commits = 0

        def apply(
            self, batch: Sequence[Sequence[Mutation]]
        ) -> list[StorageConflict | None]:
            self.commits += 1
            return super().apply(batch)

    config = Config(incomplete_lifetime=HOUR, tombstone_lifetime=2 * HOUR)
    store = _Counting(chunk_size=64)
    async with memory_service(Recorder(), config, store=store) as service:
        for _ in range(400):
            await cut_upload(service, BODY, 10)
        before = store.commits
        await trio.sleep(1.5 * HOUR)
        assert store.stored_bytes == 0
        assert store.commits - before < 80


async def test_more_deadlines_than_the_window_all_come(autojump_clock: Clock) -> None:
    """What the schedule does not hold the catalog brings back in time."""
    config = Config(incomplete_lifetime=HOUR, tombstone_lifetime=100)
    store, tuning = (
        MemoryStore(chunk_size=64),
        Tuning(make_schedule=lambda: Schedule(4)),
    )
    async with memory_service(
        Recorder(), config, store=store, tuning=tuning
    ) as service:
        locations = []
        for _ in range(25):
            locations.append(await cut_upload(service, BODY, 10))
            await trio.sleep(random.Random(len(locations)).random() * 200)
        await trio.sleep(2 * HOUR)
        assert store.expiring(10) == []
        assert store.stored_bytes == 0


async def test_each_file_expires_in_its_own_time(autojump_clock: Clock) -> None:
    """file_lifetime: a later upload does not put off an earlier one's end."""
    store = MemoryStore(chunk_size=64)
    config = Config(file_lifetime=100)
    async with memory_service(FileService(), config, store=store) as service:
        for number in range(10):
            reply = await service.connect().request("PUT", f"/files/{number}", {}, BODY)
            assert reply.status == 201
            await trio.sleep(20)
        # 200 s have passed: of ten, those of the last hundred seconds are there.
        found = [await _status(service, f"/files/{number}") for number in range(10)]
        assert found == [404] * 6 + [200] * 4
        await trio.sleep(100)
        found = [await _status(service, f"/files/{number}") for number in range(10)]
        assert found == [404] * 10
        assert store.stored_bytes == 0


async def test_file_written_anew_lives_anew(autojump_clock: Clock) -> None:
    """file_lifetime: counted from the last PUT."""
    config = Config(file_lifetime=100)
    async with memory_service(FileService(), config) as service:
        for _ in range(5):
            await service.connect().request("PUT", "/files/a", {}, BODY)
            await trio.sleep(60)
        assert await _status(service, "/files/a") == 200
        await trio.sleep(60)
        assert await _status(service, "/files/a") == 404


async def test_finished_files_stay_for_ever_unless_configured(
    autojump_clock: Clock,
) -> None:
    """The default: the response's record goes, the file does not."""
    async with memory_service(FileService()) as service:
        first = await service.connect().request("PUT", "/files/a", RESUME, BODY)
        await trio.sleep(1000 * HOUR)
        assert await _status(service, "/files/a") == 200
        assert await _status(service, first.message) == 404


class _Steps(trio.abc.Instrument):
    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_the_scheduler_sleeps_and_does_not_poll(autojump_clock: Clock) -> None:
    """DESIGN: with a deadline 24 hours away next to nothing runs for 23 of them."""
    async with memory_service(Recorder()) as service:
        await cut_upload(service, BODY, 100)
        await trio.sleep(10)
        steps = _Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(23 * HOUR)
        trio.lowlevel.remove_instrument(steps)
        assert steps.count < 10


async def test_expiry_that_fails_is_tried_again(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 10: a full catalog postpones it and does not end the task."""

    store = FullCatalog(chunk_size=64)
    config = Config(incomplete_lifetime=HOUR)
    async with memory_service(Recorder(), config, store=store) as service:
        location = await cut_upload(service, BODY, 100)
        store.full = True
        await trio.sleep(1.1 * HOUR)
        store.full = False
        await trio.sleep(2 * expiry.RETRY_DELAY)
        assert await _status(service, location) == 410
        assert store.stored_bytes == 0


async def test_a_deadline_is_noted_when_the_catalog_has_it(
    autojump_clock: Clock,
) -> None:
    """Before, a look for deadlines that is on its way would miss it for good."""
    store = MemoryStore(chunk_size=64)
    noted: list[float] = []

    class Watched(Schedule):
        def add(self, token: str, deadline: float) -> None:
            record = store.operation(OperationId(token.removeprefix("o:")))
            assert record is not None
            assert record.expires_at == deadline
            noted.append(deadline)
            super().add(token, deadline)

    tuning = Tuning(make_schedule=lambda: Watched(10))
    async with memory_service(Recorder(), store=store, tuning=tuning) as service:
        location = await cut_upload(service, BODY, 100)
        await trio.sleep(HOUR)
        assert await _status(service, location) == 200  # which moves it on
        await trio.sleep(10)
        reply = await service.connect().request("DELETE", location)
        assert reply.status == 204
    assert len(noted) == 3


async def test_plain_operations_leave_no_deadline(autojump_clock: Clock) -> None:
    """What nobody was told of is forgotten with its response, on disk and in memory."""
    schedule = Schedule(10)
    tuning = Tuning(make_schedule=lambda: schedule)
    async with memory_service(Recorder(), tuning=tuning) as service:
        client = service.connect()
        for _ in range(5):
            await client.send(head("POST", "/", length=3) + b"abc")
            assert (await client.reply()).status == 200
        await trio.sleep(10)
        assert service.store.expiring(10) == []
        assert len(schedule) == 0
        await cut_upload(service, BODY, 100)
        assert len(schedule) == 1


async def test_bug_in_expiry_is_logged_and_the_service_lives_on(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 10: whatever a chore meets, requests are answered and it tries again."""

    class _Broken(MemoryStore):
        broken = True

        def expiring(self, limit: int) -> list[tuple[float, str]]:
            if self.broken:
                raise ZeroDivisionError
            return super().expiring(limit)

    store = _Broken(chunk_size=64)
    config = Config(incomplete_lifetime=HOUR)
    async with memory_service(Recorder(), config, store=store) as service:
        location = await cut_upload(service, BODY, 100)
        await trio.sleep(2 * HOUR)
        assert (await service.connect().request("GET", "/")).status == 200
        store.broken = False
        await trio.sleep(2 * HOUR)
        assert (await service.connect().request("HEAD", location)).status in (404, 410)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE", "OPTIONS"])
async def test_stranger_does_not_renew_an_upload(
    method: str, autojump_clock: Clock
) -> None:
    """R35: whether it rests or has to be loaded; its owner does renew it."""

    async def authenticate(request: RequestHead) -> Principal:
        return Principal(request.fields.get("x-name") or "owner")

    config = Config(authenticate=authenticate, incomplete_lifetime=1000.0)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        interim = await client.start(100, b"x" * 10)
        location = interim.fields.get("request-content-location") or ""
        await client.aclose()
        for _ in range(4):
            await trio.sleep(300)
            other = service.connect()
            reply = await other.request(method, location, {"X-Name": "stranger"})
            assert reply.status == 404
            await other.aclose()
        owner = service.connect()
        assert (await owner.request("HEAD", location)).status == 410
