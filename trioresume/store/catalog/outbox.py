"""The outbox in the catalog: events that were committed and are still to be told.

=========== =================================================================
events      one row per event that waits to be delivered, in the order of commits
dead_events events that nobody took in time, until the administrator decides
=========== =================================================================

``seq`` is never used twice, so it names an event in both tables. An event may be sent if it
is due and no earlier event of the same upload is still waiting for its time. The table is
nearly empty in a healthy service, so its pages are few, and always in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from trioresume.store.port import (
    MOST_DEAD_EVENTS,
    TASK,
    BuryEvent,
    DropEvents,
    EventRecord,
    OperationId,
    PostponeEvent,
    RecordEvent,
    ReviveEvents,
)

__all__ = [
    "EVENTS",
    "NO_TASKS",
    "TASKS",
    "change_outbox",
    "due_events",
    "listed_events",
]

EVENTS = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    operation TEXT NOT NULL,
    kind TEXT NOT NULL,
    recorded_at REAL NOT NULL,
    dated REAL NOT NULL,
    payload BLOB NOT NULL,
    due_at REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX events_of_operation ON events (operation);
CREATE INDEX events_postponed ON events (due_at) WHERE due_at > 0;
CREATE TABLE dead_events (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    operation TEXT NOT NULL,
    kind TEXT NOT NULL,
    recorded_at REAL NOT NULL,
    dated REAL NOT NULL,
    payload BLOB NOT NULL,
    due_at REAL NOT NULL,
    attempts INTEGER NOT NULL,
    error TEXT NOT NULL
);
"""

TASKS = f"substr(kind, 1, {len(TASK)}) = '{TASK}'"
"""A condition for the events that are tasks of the service itself."""
NO_TASKS = f"NOT {TASKS}"

_COLUMNS = (
    "seq, id, operation, kind, recorded_at, dated, payload, due_at, attempts, error"
)
_MANY = 500
"""Events named in one statement. SQLite's least limit of values is 999."""

Row = tuple[Any, ...]
OutboxMutation = RecordEvent | DropEvents | PostponeEvent | BuryEvent | ReviveEvents


def change_outbox(
    execute: Callable[..., sqlite3.Cursor], mutation: OutboxMutation
) -> None:
    """Perform *mutation* inside the transaction of *execute*."""
    match mutation:
        case RecordEvent(event):
            execute(
                "INSERT INTO events (id, operation, kind, recorded_at, dated, payload)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    event.id,
                    event.operation,
                    event.kind,
                    event.recorded_at,
                    event.dated,
                    event.payload,
                ),
            )
        case DropEvents(seqs, dead):
            table = "dead_events" if dead else "events"
            for some in _slices(seqs):
                execute(f"DELETE FROM {table} WHERE seq IN ({_marks(some)})", some)
        case PostponeEvent(seq, due_at, error):
            execute(
                "UPDATE events SET due_at = ?, attempts = attempts + 1, error = ?"
                " WHERE seq = ?",
                (due_at, error, seq),
            )
        case BuryEvent(seq, error):
            execute(
                f"INSERT INTO dead_events ({_COLUMNS}) SELECT seq, id, operation, kind,"
                " recorded_at, dated, payload, due_at, attempts + 1, ? FROM events"
                " WHERE seq = ?",
                (error, seq),
            )
            execute("DELETE FROM events WHERE seq = ?", (seq,))
            execute(
                "DELETE FROM dead_events WHERE seq <= (SELECT seq FROM dead_events"
                " ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                (MOST_DEAD_EVENTS,),
            )
        case ReviveEvents(seqs, now):
            for some in _slices(seqs):
                marks = _marks(some)
                # The events that wait are due at once, and the dead ones wait again.
                execute(
                    f"UPDATE events SET due_at = 0, recorded_at = ? WHERE seq IN ({marks})",
                    (now, *some),
                )
                execute(
                    f"INSERT INTO events ({_COLUMNS}) SELECT seq, id, operation, kind, ?,"
                    " dated, payload, 0, 0, error FROM dead_events"
                    f" WHERE seq IN ({marks})",
                    (now, *some),
                )
                execute(f"DELETE FROM dead_events WHERE seq IN ({marks})", some)


def due_events(
    execute: Callable[..., sqlite3.Cursor], now: float, limit: int, *, tasks: bool
) -> tuple[list[EventRecord], float | None]:
    """Return at most *limit* events that may be sent, in order, and when the next is due."""
    kinds = TASKS if tasks else NO_TASKS
    rows = execute(
        f"SELECT {_COLUMNS} FROM events e WHERE {kinds} AND NOT EXISTS (SELECT 1 FROM events f"
        " WHERE f.operation = e.operation AND f.seq <= e.seq AND f.due_at > ?)"
        " ORDER BY seq LIMIT ?",
        (now, limit),
    ).fetchall()
    (soonest,) = execute(
        f"SELECT min(due_at) FROM events WHERE due_at > 0 AND due_at > ? AND {kinds}",
        (now,),
    ).fetchone()
    return [_event_from(row) for row in rows], soonest


def listed_events(
    execute: Callable[..., sqlite3.Cursor],
    *,
    dead: bool,
    after: int,
    limit: int,
    tasks: bool,
) -> list[EventRecord]:
    """Return at most *limit* events after number *after*, in order."""
    table = "dead_events" if dead else "events"
    rows = execute(
        f"SELECT {_COLUMNS} FROM {table} WHERE seq > ? AND"
        f" {TASKS if tasks else NO_TASKS} ORDER BY seq LIMIT ?",
        (after, limit),
    ).fetchall()
    return [_event_from(row) for row in rows]


def _event_from(row: Row) -> EventRecord:
    return EventRecord(
        seq=row[0],
        id=row[1],
        operation=OperationId(row[2]),
        kind=row[3],
        recorded_at=row[4],
        dated=row[5],
        payload=row[6],
        due_at=row[7],
        attempts=row[8],
        error=row[9],
    )


def _slices(seqs: Sequence[int]) -> list[Sequence[int]]:
    return [seqs[at : at + _MANY] for at in range(0, len(seqs), _MANY)]


def _marks(seqs: Sequence[int]) -> str:
    return ", ".join("?" * len(seqs))
