"""Pages of a data directory's rows, the newest first, for somebody who looks at a screen.

An :class:`~trioresume.Inventory` goes through everything in order; this answers with few rows
from any place, however many there are. It reads beside the process that serves the directory.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from trioresume.errors import ContentLost
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog.catalog import (
    FILE_COLUMNS,
    OPERATION_COLUMNS,
    CatalogReader,
    file_from,
    operation_from,
)
from trioresume.store.catalog.schema import connect_reading, sqlite_error
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.disk.unfinished import Epoch, Survey
from trioresume.store.file_system.disk_io import Disk
from trioresume.store.port import (
    SERVICE_CLOCK,
    EventRecord,
    FileRecord,
    OperationId,
    OperationRecord,
    request_key,
)

__all__ = ["MOST_SEARCHED", "Account", "Listing", "Page", "open_listing"]

_BATCH = 500
MOST_SEARCHED = 10_000
"""Rows that one search looks at; the answer says where the next one goes on."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """Some rows, each with its number, and where the next page begins."""

    rows: list[tuple[int, _T]]
    next: int | None
    """The ``before`` of the next page; None if there is nothing more."""


@dataclass(frozen=True, slots=True)
class Account:
    """What one principal uses."""

    principal: str | None
    """None is for senders without credentials."""
    bytes: int
    open_uploads: int


class Listing:
    """Reads pages; see :func:`open_listing`. One thread at a time may use it.

    Every method raises :class:`~trioresume.StorageError` if the catalog cannot be read.
    """

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._catalog = CatalogReader(connection)
        self._tails = TailFiles(
            os.path.join(path, "tails"), Disk(durable=False), Epoch()
        )

    def behind(self) -> float:
        """Return the seconds by which service time is behind the date, as last recorded."""
        reading = self._catalog.meta(SERVICE_CLOCK)
        if reading is None:
            return 0.0
        now, date = map(float, reading.split())
        return date - now

    def uploads(
        self,
        states: Sequence[OperationState],
        fits: Callable[[OperationRecord], bool] | None,
        limit: int,
        before: int | None,
    ) -> Page[OperationRecord]:
        """Return at most *limit* operations in *states* for which *fits*, the newest first."""
        # The plus keeps SQLite from the index of states: it would sort all rows of the states
        # for each page.
        marks = ", ".join("?" * len(states))
        columns = ", ".join(
            f"o.{name.strip()}" for name in OPERATION_COLUMNS.split(",")
        )
        sql = (
            f"SELECT o.rowid, {columns},"
            " ifnull(max(c.durable_offset, c.prefix_bytes), 0)"
            " FROM operations o LEFT JOIN contents c ON c.key = o.id"
            f" WHERE +o.state IN ({marks}) AND o.rowid < ? ORDER BY o.rowid DESC LIMIT ?"
        )
        return self._page(sql, tuple(states), operation_from, fits, limit, before)

    def received(self, records: Sequence[OperationRecord]) -> list[int]:
        """Return how many bytes of each upload have arrived, durable or not.

        For an upload that is lost these are the bytes that the catalog knows.
        """
        epoch = Epoch.kept_in(self._catalog)
        survey = Survey(self._catalog, self._tails.length, self._tails.claimed, epoch)
        return [_received(record, survey) for record in records]

    def upload_id(self, number: int) -> OperationId | None:
        """Return the id of the operation with this number, or None."""
        rows = self._rows("SELECT id FROM operations WHERE rowid = ?", number)
        return OperationId(rows[0][0]) if rows else None

    def files(
        self, fits: Callable[[FileRecord], bool] | None, limit: int, before: int | None
    ) -> Page[FileRecord]:
        """Return at most *limit* files for which *fits*, the newest first."""
        sql = f"SELECT id, {FILE_COLUMNS} FROM files WHERE id < ? ORDER BY id DESC LIMIT ?"
        return self._page(sql, (), file_from, fits, limit, before)

    def accounts(self, limit: int, skip: int) -> list[Account]:
        """Return at most *limit* accounts, those that use most first, without *skip* ones."""
        rows = self._rows(
            "SELECT namespace, bytes, open FROM accounts WHERE namespace != '*'"
            " ORDER BY bytes DESC, namespace LIMIT ? OFFSET ?",
            limit,
            skip,
        )
        return [
            Account(namespace[1:] if namespace else None, size, uploads)
            for namespace, size, uploads in rows
        ]

    def events(self, *, dead: bool, after: int, limit: int) -> list[EventRecord]:
        """Return at most *limit* events with numbers above *after*: waiting ones, or dead."""
        return self._catalog.events(dead=dead, after=after, limit=limit)

    def dead_events(self) -> int:
        """Return how many dead events there are."""
        return int(self._rows("SELECT count(*) FROM dead_events")[0][0])

    def _page(
        self,
        sql: str,
        values: tuple[object, ...],
        make: Callable[[tuple[Any, ...]], _T],
        fits: Callable[[_T], bool] | None,
        limit: int,
        before: int | None,
    ) -> Page[_T]:
        found: list[tuple[int, _T]] = []
        place = before if before is not None else 2**63 - 1
        searched = 0
        while searched < MOST_SEARCHED:
            batch = limit + 1 - len(found) if fits is None else _BATCH
            rows = self._rows(sql, *values, place, batch)
            for row in rows:
                record = make(row[1:])
                if fits is None or fits(record):
                    if len(found) == limit:
                        return Page(found, place)
                    found.append((row[0], record))
                place = row[0]
            searched += len(rows)
            if len(rows) < batch:
                return Page(found, None)
        return Page(found, place)

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc


def _received(record: OperationRecord, survey: Survey) -> int:
    if record.content is not None:
        return record.content.length
    if record.state is not OperationState.RECEIVING:
        return record.durable_offset
    try:
        extent = survey.look(request_key(record.id))
        return record.durable_offset if extent is None else extent.checked()
    except ContentLost:
        return record.durable_offset


@contextmanager
def open_listing(data_dir: str | os.PathLike[str]) -> Iterator[Listing]:
    """Read *data_dir* while the block runs.

    Raises :class:`~trioresume.StorageError` if its catalog cannot be read.
    """
    connection = connect_reading(os.path.join(data_dir, "catalog.sqlite3"))
    try:
        yield Listing(connection, os.fspath(data_dir))
    finally:
        connection.close()
