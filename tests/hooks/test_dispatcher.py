"""The dispatcher: at least once, in order for each upload, and no upload waits for another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.hooks.receivers import Receiver, hooks
from tests.server.harness import FullCatalog, memory_service
from tests.server.tus import BODY, MARK, create, upload
from trioresume import Config, FileService, HookEvent
from trioresume.errors import StorageConflict
from trioresume.hooks.answers import HookFailed
from trioresume.hooks.dispatcher import MOST_LOADED, Dispatcher
from trioresume.protocol.clock import ServiceClock
from trioresume.server.async_store.storage import Storage
from trioresume.server.serving import running_storage
from trioresume.store.port import (
    DropEvents,
    EventRecord,
    Mutation,
    OperationId,
    RecordEvent,
    ReviveEvents,
)
from trioresume.testing.memory_store import MemoryStore


def record(number: int, operation: str = "one") -> RecordEvent:
    payload = b'{"Type": "post-create"}'
    return RecordEvent(
        EventRecord(
            id=f"m{number}",
            operation=OperationId(operation),
            kind="post-create",
            recorded_at=trio.current_time(),
            dated=0.0,
            payload=payload,
        )
    )


class Stand:
    """A dispatcher over a store, and what it has delivered."""

    def __init__(self, storage: Storage, dispatcher: Dispatcher) -> None:
        self.storage = storage
        self.dispatcher = dispatcher
        self.receiver = Receiver()

    async def record(self, *events: RecordEvent) -> None:
        for event in events:
            await self.storage.commit(event)

    @property
    def delivered(self) -> list[str]:
        return [event.id for event in self.receiver.events]

    def waiting(self, *, dead: bool = False) -> list[EventRecord]:
        return self.storage.store.events(dead=dead, after=0, limit=10_000)


@asynccontextmanager
async def dispatching(
    receiver: Any, store: MemoryStore | None = None, **settings: Any
) -> AsyncIterator[Stand]:
    store = store or MemoryStore()
    async with running_storage(store, Config()) as storage:
        clock = ServiceClock(trio.current_time, trio.current_time)

        async def deliver(event: HookEvent) -> None:
            try:
                await receiver(event)
            except RuntimeError as exc:
                raise HookFailed(str(exc)) from exc

        dispatcher = Dispatcher(storage, clock, hooks(receiver, **settings), deliver)
        storage.add_observer(dispatcher.observe)
        stand = Stand(storage, dispatcher)
        stand.receiver = receiver
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatcher.run)
            yield stand
            nursery.cancel_scope.cancel()


async def test_events_of_an_upload_come_in_order(autojump_clock: MockClock) -> None:
    """Even if one of them fails now and then; the others wait for it."""
    receiver = Receiver()
    receiver.failures["post-create"] = 3
    async with dispatching(receiver) as stand:
        await stand.record(*(record(number) for number in range(6)))
        await receiver.until("post-create", 6)
        assert stand.delivered == [f"m{number}" for number in range(6)]
        await trio.sleep(2)
        assert stand.waiting() == []
    assert len(receiver.tried) == 9


async def test_upload_that_fails_delays_no_other(autojump_clock: MockClock) -> None:
    """However many of them fail, and for however long."""
    bad = 3 * MOST_LOADED

    async def receive(event: HookEvent) -> None:
        if event.document["bad"]:
            raise HookFailed("never")
        done.append(event.id)
        came.set()

    done: list[str] = []
    came = trio.Event()
    store = MemoryStore()

    def event(number: int, is_bad: bool) -> RecordEvent:
        made = record(number, f"upload-{number}").event
        payload = b'{"bad": %s}' % (b"true" if is_bad else b"false")
        return RecordEvent(
            EventRecord(
                id=made.id,
                operation=made.operation,
                kind=made.kind,
                recorded_at=made.recorded_at,
                dated=0.0,
                payload=payload,
            )
        )

    store.apply([[event(number, True) for number in range(bad)]])
    async with dispatching(receive, store, backoff=60.0) as stand:
        await stand.record(event(bad, False))
        with trio.fail_after(30):
            while not done:
                came = trio.Event()
                await came.wait()
        assert done == [f"m{bad}"]
        assert len(stand.waiting()) >= bad
        assert stand.dispatcher._loaded <= 2 * MOST_LOADED


async def test_uploads_are_told_side_by_side(autojump_clock: MockClock) -> None:
    """A slow call for one does not hold up the next upload's."""
    receiver = Receiver()
    receiver.gate = trio.Event()
    async with dispatching(receiver) as stand:
        await stand.record(record(1, "a"), record(2, "a"), record(3, "b"))
        await receiver.until_true(lambda: len(receiver.tried) == 2)
        assert {event.id for event in receiver.tried} == {"m1", "m3"}
        receiver.gate.set()
        await receiver.until("post-create", 3)


async def test_more_events_than_fit_into_memory_are_all_told(
    autojump_clock: MockClock,
) -> None:
    """The catalog has them; the memory has some."""
    count = 5 * MOST_LOADED
    store = MemoryStore()
    receiver = Receiver()
    async with dispatching(receiver, store) as stand:
        await stand.storage.commit(
            *(record(number, f"upload-{number % 700}") for number in range(count))
        )
        await receiver.until("post-create", count)
        await trio.sleep(2)
        assert stand.waiting() == []
    assert sorted(stand.delivered) == sorted(f"m{number}" for number in range(count))
    for upload_ in range(700):
        own = [name for name in stand.delivered if int(name[1:]) % 700 == upload_]
        assert own == sorted(own, key=lambda name: int(name[1:]))


async def test_full_disk_keeps_no_event_from_being_dropped_later(
    autojump_clock: MockClock,
) -> None:
    """What was delivered is dropped when there is space; it is not sent again meanwhile."""

    class Full(FullCatalog):
        def apply(
            self, batch: Sequence[Sequence[Mutation]]
        ) -> list[StorageConflict | None]:
            if any(isinstance(m, DropEvents) for each in batch for m in each):
                tried.append(trio.current_time() if not tried else 0.0)
                return super().apply(batch)
            return MemoryStore.apply(self, batch)

    tried: list[float] = []
    store = Full()
    store.full = True
    receiver = Receiver()
    async with dispatching(receiver, store) as stand:
        await stand.record(record(1))
        await receiver.until("post-create")
        await trio.sleep(20)
        assert len(tried) > 1
        assert len(stand.waiting()) == 1
        store.full = False
        await trio.sleep(20)
        assert stand.waiting() == []
    assert stand.delivered == ["m1"]


async def test_later_event_does_not_overtake_one_that_fails_while_it_is_read(
    autojump_clock: MockClock,
) -> None:
    """The catalog was read before the failure was noted, and knows both events."""
    receiver = Receiver()
    receiver.gate = trio.Event()
    receiver.failures["post-create"] = 1
    store = MemoryStore()
    async with dispatching(receiver, store) as stand:
        await stand.record(record(1))
        await receiver.until_true(lambda: len(receiver.tried) == 1)
        run, gate = stand.storage.run, receiver.gate

        async def run_slowly(function: Any, *args: Any) -> Any:
            found = await run(function, *args)
            if function == store.due_events:
                gate.set()
                await trio.sleep(0.1)  # virtual: the failure is committed
            return found

        stand.storage.run = run_slowly  # type: ignore[assignment,method-assign]
        await stand.record(record(2))
        await trio.sleep(0.3)
        assert [event.id for event in receiver.tried] == ["m1"]
        await receiver.until("post-create", 2)
        assert stand.delivered == ["m1", "m2"]


async def test_attempts_come_ever_later_and_end(autojump_clock: MockClock) -> None:
    """Backoff; then the event is dead, and those after it go on."""
    receiver = Receiver()
    receiver.failures["post-create"] = 10**6
    times: list[float] = []
    async with dispatching(receiver, give_up_after=1000.0, backoff=1.0) as stand:
        await stand.record(record(1))
        while not stand.waiting(dead=True):
            await receiver.until_true(lambda: len(receiver.tried) > len(times), 500)
            times.append(trio.current_time())
            await trio.sleep(0.1)
        receiver.failures.clear()
        await stand.record(record(2))
        await receiver.until("post-create")
        assert stand.delivered == ["m2"]
        (dead,) = stand.waiting(dead=True)
        assert (dead.attempts, dead.error) == (len(times), "the receiver is ill")
    gaps = [after - before for before, after in pairwise(times)]
    assert all(0.7 <= gap / 2**number <= 1.4 for number, gap in enumerate(gaps[:6]))
    assert max(gaps) <= 300 * 1.25 + 1
    assert 1000 <= times[-1] - times[0] <= 1400


async def test_dead_event_is_sent_again_on_demand(autojump_clock: MockClock) -> None:
    """With the same id."""
    receiver = Receiver()
    receiver.failures["post-create"] = 1
    async with dispatching(receiver, give_up_after=0.0) as stand:
        await stand.record(record(1))
        await receiver.until_true(lambda: len(receiver.tried) == 1)
        await trio.testing.wait_all_tasks_blocked()
        (dead,) = stand.waiting(dead=True)
        await stand.storage.commit(ReviveEvents((dead.seq,), trio.current_time()))
        await receiver.until("post-create")
    assert [event.id for event in receiver.tried] == ["m1", "m1"]


async def test_dropped_event_is_not_sent(autojump_clock: MockClock) -> None:
    """Not even if it is in memory already, behind one that is being sent."""
    receiver = Receiver()
    receiver.gate = trio.Event()
    async with dispatching(receiver) as stand:
        await stand.record(record(1), record(2), record(3))
        await receiver.until_true(lambda: len(receiver.tried) == 1)
        await trio.testing.wait_all_tasks_blocked()
        await stand.storage.commit(DropEvents((stand.waiting()[1].seq,)))
        receiver.gate.set()
        await receiver.until("post-create", 2)
        assert stand.delivered == ["m1", "m3"]


async def test_end_of_the_service_drops_what_was_delivered(
    autojump_clock: MockClock,
) -> None:
    """The next start does not repeat it, and tells the rest."""
    store = MemoryStore()
    receiver = Receiver()
    async with dispatching(receiver, store) as stand:
        await stand.record(record(1, "a"))
        await receiver.until("post-create")
        await trio.testing.wait_all_tasks_blocked()
        receiver.gate = trio.Event()
        await stand.record(record(2, "b"))
    assert [event.id for event in store.events(dead=False, after=0, limit=9)] == ["m2"]
    later = Receiver()
    async with dispatching(later, store.crash(power_loss=True)):
        await later.until("post-create")
    assert [event.id for event in later.events] == ["m2"]


async def test_uploads_are_refused_while_too_many_events_wait(
    autojump_clock: MockClock,
) -> None:
    """503 before anything is stored; what was begun goes on."""
    receiver = Receiver()
    receiver.gate = trio.Event()
    config = Config(hooks=hooks(receiver, ["post-create"], max_waiting=3))
    async with memory_service(FileService(), config) as service:
        client = service.connect()
        for _ in range(3):
            await create(client)
        reply = await client.request("POST", "/files/", {**MARK, "Upload-Length": "5"})
        assert (reply.status, reply.code) == (503, "service-unavailable")
        receiver.gate.set()
        await receiver.until("post-create", 3)
        await trio.sleep(2)
        await upload(service.connect(), BODY)


@pytest.mark.parametrize(
    "settings", [{"timeout": 0}, {"events": ["post-x"]}, {"backoff": -1}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    """By name."""
    from trioresume import CallerError, Hooks

    with pytest.raises(CallerError):
        partial(Hooks, Receiver())(**settings)


async def test_events_of_another_process_are_counted_until_it_delivers_them(
    autojump_clock: MockClock,
) -> None:
    """A worker sends nothing, and does not take for waiting what its parent has delivered."""
    store = MemoryStore()
    async with running_storage(store, Config()) as storage:
        clock = ServiceClock(trio.current_time, trio.current_time)
        receiver = Receiver()

        async def deliver(event: HookEvent) -> None:
            raise AssertionError("only the parent delivers")

        dispatcher = Dispatcher(storage, clock, hooks(receiver), deliver)
        storage.add_observer(dispatcher.observe)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatcher.count)
            await storage.commit(record(1))
            await storage.commit(record(2))
            assert dispatcher.waiting == 2
            # Another process drops them: this one's observer does not see it.
            assert store.apply(
                [
                    [
                        DropEvents(
                            tuple(
                                e.seq
                                for e in store.events(dead=False, after=0, limit=9)
                            )
                        )
                    ]
                ]
            ) == [None]
            await trio.sleep(20)
            assert dispatcher.waiting == 0
            store.apply([[record(3)]])
            await storage.commit(record(4))
            await trio.sleep(20)
            assert dispatcher.waiting == 2
            nursery.cancel_scope.cancel()
