"""The port's contract for the outbox, over every implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.store.helpers import OP, Stand, conflicts, do, record
from trioresume.store.port import (
    BuryEvent,
    CreateOperation,
    DropEvents,
    EventRecord,
    OperationId,
    PostponeEvent,
    RecordEvent,
    ReviveEvents,
    Store,
)

OTHER = OperationId("operation-2")


def event(number: int, operation: OperationId = OP) -> EventRecord:
    return EventRecord(
        id=f"msg_{number}",
        operation=operation,
        kind="post-create",
        recorded_at=10.0,
        dated=1_000.5,
        payload=b'{"Type": "post-create"}',
    )


def put(store: Store, *events: EventRecord) -> list[int]:
    """Record *events*; return their numbers."""
    do(store, *(RecordEvent(each) for each in events))
    wanted = {each.id for each in events}
    return [each.seq for each in due(store) if each.id in wanted]


def due(store: Store, now: float = 0.0) -> list[EventRecord]:
    return store.due_events(now, 100)[0]


def test_event_is_found_again_as_it_was_recorded(stand: Stand) -> None:
    """Every field comes back, also after a restart, and the store numbers the event."""
    (seq,) = put(stand.store, event(1))
    assert due(stand.store) == [replace(event(1), seq=seq)]
    assert due(stand.restart()) == [replace(event(1), seq=seq)]


def test_event_of_a_change_that_did_not_happen_is_not_recorded(stand: Stand) -> None:
    """A submission happens whole or not at all."""
    do(stand.store, CreateOperation(record()))
    again = (RecordEvent(event(1)), CreateOperation(record()))
    assert conflicts(stand.store, *again)
    assert due(stand.store) == []
    assert stand.store.event_count() == 0


def test_events_come_in_the_order_of_commits(stand: Stand) -> None:
    """The limit takes the first ones."""
    for number in range(5):
        put(stand.store, event(number))
    found, _ = stand.store.due_events(0.0, 3)
    assert [each.id for each in found] == ["msg_0", "msg_1", "msg_2"]
    assert stand.store.event_count() == 5


def test_postponed_event_holds_back_later_ones_of_its_operation_only(
    stand: Stand,
) -> None:
    """Order holds for each upload, and one that fails delays nobody else."""
    first, _, other = put(stand.store, event(1), event(2), event(3, OTHER))
    do(stand.store, PostponeEvent(first, 50.0, "refused"))
    found, soonest = stand.store.due_events(20.0, 100)
    assert ([each.seq for each in found], soonest) == ([other], 50.0)
    found, soonest = stand.restart().due_events(50.0, 100)
    assert [each.id for each in found] == ["msg_1", "msg_2", "msg_3"]
    assert (found[0].attempts, found[0].error, soonest) == (1, "refused", None)


def test_dropped_event_is_gone_and_its_number_is_not_used_again(stand: Stand) -> None:
    """A number names one event for ever: a keeper's command may be late."""
    (seq,) = put(stand.store, event(1))
    do(stand.store, DropEvents((seq,)))
    assert due(stand.store) == []
    store = stand.restart()
    (later,) = put(store, event(2))
    assert later > seq


def test_buried_event_waits_for_the_administrator_and_delays_nobody(
    stand: Stand,
) -> None:
    """It keeps its number, and comes back when it is revived."""
    first, second = put(stand.store, event(1), event(2))
    do(stand.store, PostponeEvent(first, 50.0, "refused"))
    do(stand.store, BuryEvent(first, "refused again"))
    assert [each.seq for each in due(stand.store)] == [second]
    (dead,) = stand.restart().events(dead=True, after=0, limit=10)
    assert (dead.seq, dead.attempts, dead.error) == (first, 2, "refused again")
    do(stand.store, ReviveEvents((first,), 70.0))
    assert stand.store.events(dead=True, after=0, limit=10) == []
    revived = due(stand.store)[0]
    assert (revived.seq, revived.attempts, revived.recorded_at) == (first, 0, 70.0)
    assert revived.payload == event(1).payload


def test_revived_event_that_waits_is_due_at_once(stand: Stand) -> None:
    """An administrator need not wait for the next attempt."""
    (seq,) = put(stand.store, event(1))
    do(stand.store, PostponeEvent(seq, 50.0, "refused"))
    assert due(stand.store) == []
    do(stand.store, ReviveEvents((seq,), 5.0))
    assert [each.seq for each in due(stand.store, 5.0)] == [seq]


def test_dead_events_are_dropped_by_number(stand: Stand) -> None:
    """And a waiting event of that number stays, if only the dead ones are meant."""
    first, second = put(stand.store, event(1), event(2))
    do(stand.store, BuryEvent(first, "refused"), DropEvents((second,), dead=True))
    assert [each.seq for each in due(stand.store)] == [second]
    do(stand.store, DropEvents((first,), dead=True))
    assert stand.store.events(dead=True, after=0, limit=10) == []


@pytest.mark.parametrize("count", [1, 1300])
def test_many_events_are_dropped_together(count: int, stand: Stand) -> None:
    """SQLite limits the values of a statement; the port does not."""
    do(stand.store, *(RecordEvent(event(number)) for number in range(count)))
    found, _ = stand.store.due_events(0.0, 2000)
    do(stand.store, DropEvents(tuple(each.seq for each in found)))
    assert stand.store.event_count() == 0


def test_dead_events_are_bounded(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number the oldest go."""
    for module in (
        "trioresume.store.catalog.outbox",
        "trioresume.store.postgres.batch",
        "trioresume.testing.memory_store",
    ):
        monkeypatch.setattr(f"{module}.MOST_DEAD_EVENTS", 3)
    for number in range(5):
        (seq,) = put(stand.store, event(number))
        do(stand.store, BuryEvent(seq, "refused"))
    dead = stand.store.events(dead=True, after=0, limit=10)
    assert [each.id for each in dead] == ["msg_2", "msg_3", "msg_4"]


def test_tasks_of_the_service_are_found_apart_from_events(stand: Stand) -> None:
    """No receiver of events sees one, and neither waits for the other."""
    task = replace(event(2, OTHER), kind="task.test")
    do(stand.store, RecordEvent(event(1)), RecordEvent(task), RecordEvent(event(3)))
    store = stand.restart()
    assert [each.id for each in due(store)] == ["msg_1", "msg_3"]
    (found,), _ = store.due_events(0.0, 100, tasks=True)
    assert (found.id, found.is_task) == ("msg_2", True)
    assert store.event_count() == 2
    do(store, PostponeEvent(found.seq, 50.0, "full"))
    assert store.due_events(0.0, 100) == (due(store), None)
    assert store.due_events(0.0, 100, tasks=True) == ([], 50.0)
    (listed,) = store.events(dead=False, after=0, limit=10, tasks=True)
    assert (listed.seq, listed.error) == (found.seq, "full")
    assert len(store.events(dead=False, after=0, limit=10)) == 2
