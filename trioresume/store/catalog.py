"""The catalog: one SQLite connection that writes, one that reads.

Readers see committed transactions only. With ``synchronous = FULL`` SQLite syncs
its log before a commit becomes visible to another connection, so what
:class:`Catalog` returns is durable and may be announced (promise 1).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any

from trioresume.store.disk_io import Disk
from trioresume.store.port import (
    ContentKey,
    FileRecord,
    OperationId,
    OperationRecord,
    OperationState,
)
from trioresume.store.recipe import Digest, Recipe
from trioresume.store.rows import (
    FILE_COLUMNS,
    OPERATION_COLUMNS,
    file_from,
    namespace_of,
    operation_from,
)
from trioresume.store.schema import connect, migrate, sqlite_error

__all__ = ["Catalog", "ContentRow"]

_OPERATION = (
    f"SELECT {', '.join('o.' + c.strip() for c in OPERATION_COLUMNS.split(','))},"
    " ifnull(max(c.durable_offset, c.prefix_bytes), 0)"
    " FROM operations o LEFT JOIN contents c ON c.key = o.id"
)
_PAGE = 4096
"""Rows fetched at a time from long lists, so that other readers get their turn."""


@dataclass(frozen=True, slots=True)
class ContentRow:
    """Content under construction: its contiguous sealed prefix and what is durable."""

    cid: int
    chunk_size: int
    epoch: int
    prefix: int
    """How many chunks are sealed without a gap, and next: their bytes."""
    prefix_bytes: int
    durable_offset: int

    COLUMNS = "cid, chunk_size, epoch, prefix, prefix_bytes, durable_offset"

    @property
    def durable(self) -> int:
        """Every byte below it survives power loss."""
        return max(self.durable_offset, self.prefix_bytes)

    @property
    def short_end(self) -> bool:
        """Whether the prefix ends in the short chunk of content that was finished."""
        return self.prefix_bytes < self.prefix * self.chunk_size


class Catalog:
    """Reads from any thread; :meth:`transaction` from one at a time."""

    def __init__(self, path: str, disk: Disk) -> None:
        self._disk = disk
        self._reading = threading.Lock()
        try:
            self._writer = connect(path, disk.synchronous)
            try:
                migrate(self._writer)
                self._reader = connect(path, disk.synchronous)
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc
        self._reader.execute("PRAGMA query_only = 1")

    def close(self) -> None:
        with self._reading:
            self._reader.close()
        self._writer.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's changes, or none. Raises :class:`StorageError`."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._disk.commit(self._writer)
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc

    # Reading.

    def _all(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with self._reading:
                return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc

    def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        rows = self._all(sql, *values)
        return rows[0] if rows else None

    def operation(self, id: OperationId) -> OperationRecord | None:
        row = self._one(f"{_OPERATION} WHERE o.id = ?", id)
        return None if row is None else operation_from(row)

    def state_of(self, id: OperationId) -> OperationState | None:
        row = self._one("SELECT state FROM operations WHERE id = ?", id)
        return None if row is None else OperationState(row[0])

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        # One ordered walk of the index (state, id) per state, merged: SQLite itself
        # would sort all rows of the states for an IN.
        walks = [
            self._all(
                f"{_OPERATION} WHERE o.state = ? AND o.id > ? ORDER BY o.id LIMIT ?",
                state,
                after or "",
                limit,
            )
            for state in dict.fromkeys(states)
        ]
        rows = islice(merge(*walks, key=lambda row: str(row[0])), limit)
        return [operation_from(row) for row in rows]

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        operations = self._all(
            "SELECT expires_at, 'o:' || id FROM operations ORDER BY expires_at LIMIT ?",
            limit,
        )
        files = self._all(
            "SELECT expires_at, 'f:' || id FROM files WHERE expires_at IS NOT NULL"
            " ORDER BY expires_at LIMIT ?",
            limit,
        )
        return [(row[0], row[1]) for row in sorted(operations + files)[:limit]]

    def file(self, owner: str | None, name: str) -> FileRecord | None:
        row = self._one(
            f"SELECT {FILE_COLUMNS} FROM files WHERE namespace = ? AND name = ?",
            namespace_of(owner),
            name,
        )
        return None if row is None else file_from(row)

    def file_by_id(self, id: int) -> FileRecord | None:
        row = self._one(f"SELECT {FILE_COLUMNS} FROM files WHERE id = ?", id)
        return None if row is None else file_from(row)

    def meta(self, name: str) -> str | None:
        row = self._one("SELECT value FROM meta WHERE name = ?", name)
        return None if row is None else str(row[0])

    def store_value(self, name: str) -> str | None:
        """A value the store keeps for itself."""
        row = self._one("SELECT value FROM store WHERE name = ?", name)
        return None if row is None else str(row[0])

    def content(self, key: ContentKey) -> ContentRow | None:
        row = self._one(f"SELECT {ContentRow.COLUMNS} FROM contents WHERE key = ?", key)
        return None if row is None else ContentRow(*row)

    def pieces_from(self, cid: int, index: int) -> dict[int, int]:
        """Index and length of the sealed chunks from *index* on: those past a gap."""
        return dict(
            self._all(
                "SELECT idx, length FROM pieces WHERE cid = ? AND idx >= ?", cid, index
            )
        )

    def piece(self, key: ContentKey, index: int) -> Digest | None:
        row = self._one(
            "SELECT p.digest FROM contents c JOIN pieces p ON p.cid = c.cid AND p.idx = ?"
            " WHERE c.key = ?",
            index,
            key,
        )
        return None if row is None else Digest(row[0])

    def prefix_digests(self, row: ContentRow) -> list[Digest]:
        digests: list[Digest] = []
        while len(digests) < row.prefix:
            page = self._all(
                "SELECT digest FROM pieces WHERE cid = ? AND idx >= ? AND idx < ? ORDER BY idx",
                row.cid,
                len(digests),
                min(row.prefix, len(digests) + _PAGE),
            )
            if not page:
                break  # released meanwhile
            digests += [Digest(digest) for (digest,) in page]
        return digests

    def recipe(self, digest: Digest) -> Recipe | None:
        """The recipe, unless it is gone or half dismantled."""
        row = self._one(
            "SELECT body FROM recipes WHERE digest = ? AND dismantled = 0", digest
        )
        return None if row is None else Recipe.from_bytes(row[0])

    def has_chunk(self, digest: Digest) -> bool:
        return self._one("SELECT 1 FROM chunks WHERE digest = ?", digest) is not None
