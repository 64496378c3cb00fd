"""The catalog: one SQLite connection that writes, one that reads.

Readers see committed transactions only. With ``synchronous = FULL`` SQLite syncs
its log before a commit becomes visible to another connection. So every row that
:class:`Catalog` returns is durable and may be announced (see "The promises" in
docs/durability.md).

At the end are the conversions between the catalog's rows and the port's values.

The administrator's commands use a :class:`CatalogReader` alone. It reads beside the
process that serves the directory; that process neither waits for it nor notices it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from heapq import merge
from itertools import islice
from typing import Any

import msgpack

from trioresume.protocol.heads import Fields
from trioresume.store.catalog.accountant import Accountant
from trioresume.store.catalog.chunk_lists import ContentRow, part_digests, piece_digests
from trioresume.store.catalog.log_check import refuse_lost_commits
from trioresume.store.catalog.outbox import NO_TASKS, due_events, listed_events
from trioresume.store.catalog.schema import (
    connect,
    create,
    migrate,
    sqlite_error,
    write_error,
)
from trioresume.store.file_system.disk_io import Disk
from trioresume.store.port import (
    Content,
    ContentKey,
    EventRecord,
    FileRecord,
    OperationId,
    OperationRecord,
    OperationState,
    StoredResponse,
)
from trioresume.store.port.recipes import (
    DIGEST_LENGTH,
    PART_CHUNKS,
    AnyRecipe,
    Digest,
    Recipe,
    parse_recipe,
)

__all__ = [
    "FILE_COLUMNS",
    "OPERATION_COLUMNS",
    "Catalog",
    "CatalogReader",
    "content_columns",
    "content_from",
    "file_from",
    "namespace_of",
    "operation_from",
    "pack_fields",
    "response_columns",
]

Row = tuple[Any, ...]

OPERATION_COLUMNS = (
    "id, state, method, target, fields, principal, keep_incomplete, created_at, expires_at,"
    " length, content_length, content_inline, content_digest, response_head,"
    " response_length, response_inline, response_digest, explicit_completion, reserved"
)

FILE_COLUMNS = "owner, name, fields, modified_at, expires_at, content_length, content_inline, content_digest"

_USUAL_LOG = 1000
"""Pages after which SQLite starts its log from the beginning again: SQLite's default."""
_SCARCE_LOG = 100


def _of(alias: str, columns: str) -> str:
    return ", ".join(f"{alias}.{column.strip()}" for column in columns.split(","))


_OPERATION = (
    f"SELECT {_of('o', OPERATION_COLUMNS)},"
    " ifnull(max(c.durable_offset, c.prefix_bytes), 0)"
    " FROM operations o LEFT JOIN contents c ON c.key = o.id"
)

_KNOWN = (
    f"SELECT {_of('c', ContentRow.COLUMNS)},"
    " p.idx, p.length FROM contents c"
    " LEFT JOIN pieces p ON p.cid = c.cid AND p.idx >= c.prefix WHERE c.key = ?"
)


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Have everything that the block reads come from one instant."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


class CatalogReader:
    """Reads the catalog from any thread. :meth:`close` closes the connection *reader*."""

    def __init__(self, reader: sqlite3.Connection) -> None:
        self._reading = threading.Lock()
        self._reader = reader

    def close(self) -> None:
        with self._reading:
            self._reader.close()

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

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None:
        # SQLite leaves the row of somebody else as soon as it has seen whose it is.
        row = self._one(
            f"{_OPERATION} WHERE o.id = ? AND o.principal IS ?", id, principal
        )
        return None if row is None else operation_from(row)

    def knows_chunks(self) -> bool:
        """Whether the catalog has any chunk."""
        return self._one("SELECT 1 FROM chunks LIMIT 1") is not None

    def state_of(self, id: OperationId) -> OperationState | None:
        row = self._one("SELECT state FROM operations WHERE id = ?", id)
        return None if row is None else OperationState(row[0])

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        # Walk the index (state, id) once per state, in order, and merge the walks. For an
        # IN, SQLite would sort all rows of the states.
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

    def count_operations(self) -> dict[OperationState, int]:
        """Return how many operations are in each state."""
        rows = self._all("SELECT state, count(*) FROM operations GROUP BY state")
        return {OperationState(state): count for state, count in rows}

    def meta(self, name: str) -> str | None:
        row = self._one("SELECT value FROM meta WHERE name = ?", name)
        return None if row is None else str(row[0])

    def due_events(
        self, now: float, limit: int, *, tasks: bool = False
    ) -> tuple[list[EventRecord], float | None]:
        try:
            with self._reading, _snapshot(self._reader):
                return due_events(self._reader.execute, now, limit, tasks=tasks)
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc

    def events(
        self, *, dead: bool, after: int, limit: int, tasks: bool = False
    ) -> list[EventRecord]:
        try:
            with self._reading:
                return listed_events(
                    self._reader.execute,
                    dead=dead,
                    after=after,
                    limit=limit,
                    tasks=tasks,
                )
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc

    def event_count(self) -> int:
        row = self._one(f"SELECT count(*) FROM events WHERE {NO_TASKS}")
        return 0 if row is None else int(row[0])

    def store_value(self, name: str) -> str | None:
        """Return a value that the store keeps for itself."""
        row = self._one("SELECT value FROM store WHERE name = ?", name)
        return None if row is None else str(row[0])

    def content(self, key: ContentKey) -> ContentRow | None:
        row = self._one(f"SELECT {ContentRow.COLUMNS} FROM contents WHERE key = ?", key)
        return None if row is None else ContentRow(*row)

    def known(self, key: ContentKey) -> tuple[ContentRow, dict[int, int]] | None:
        """Return the row of *key*, and the lengths by index of sealed chunks after its prefix.

        Those chunks come after a gap. Returns None if *key* is not under construction.
        """
        rows = self._all(_KNOWN, key)
        if not rows:
            return None
        return ContentRow(*rows[0][:-2]), {
            index: length for *_, index, length in rows if index is not None
        }

    def piece(self, key: ContentKey, index: int) -> Digest | None:
        """Return the digest of chunk *index* of content under construction, if it is sealed."""
        row = self._one(
            "SELECT p.digest FROM contents c JOIN pieces p ON p.cid = c.cid AND p.idx = ?"
            " WHERE c.key = ?",
            index,
            key,
        ) or self._one(
            # The digests are the end of the serialised recipe. Pieces are folded, and
            # never unfolded, so the chunk cannot go back to the table just searched.
            "SELECT substr(r.body, ?, ?) FROM contents c"
            " JOIN parts p ON p.cid = c.cid AND p.idx = ?"
            " JOIN recipes r ON r.digest = p.digest WHERE c.key = ?",
            (index % PART_CHUNKS - PART_CHUNKS) * DIGEST_LENGTH,
            DIGEST_LENGTH,
            index // PART_CHUNKS,
            key,
        )
        return None if row is None else Digest(row[0])

    def listed(
        self, key: ContentKey
    ) -> tuple[ContentRow, list[Digest], list[Digest]] | None:
        """Return the row, the parts and the chunks after the parts of *key*'s content.

        The chunks end at the first gap. Returns None if *key* is not under construction.
        """
        try:
            with self._reading, _snapshot(self._reader):
                row = self._reader.execute(
                    f"SELECT {ContentRow.COLUMNS} FROM contents WHERE key = ?", (key,)
                ).fetchone()
                if row is None:
                    return None
                content = ContentRow(*row)
                return (
                    content,
                    part_digests(self._reader, content),
                    piece_digests(self._reader, content),
                )
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc

    def sealed(self, key: ContentKey) -> Iterator[Digest]:
        """Yield the sealed chunks of content under construction, including those past a gap."""
        parts = self._all(
            "SELECT p.digest FROM parts p JOIN contents c ON p.cid = c.cid"
            " WHERE c.key = ? ORDER BY p.idx",
            key,
        )
        for (part,) in parts:
            recipe = self.recipe(Digest(part))
            if isinstance(recipe, Recipe):
                yield from map(recipe.chunk, range(recipe.chunk_count))
        for (digest,) in self._all(
            "SELECT p.digest FROM pieces p JOIN contents c ON p.cid = c.cid"
            " WHERE c.key = ? ORDER BY p.idx",
            key,
        ):
            yield Digest(digest)

    def recipe(self, digest: Digest) -> AnyRecipe | None:
        """Return the recipe, or None if it is gone or half dismantled."""
        row = self._one(
            "SELECT body FROM recipes WHERE digest = ? AND dismantled = 0", digest
        )
        return None if row is None else parse_recipe(row[0])

    def has_chunk(self, digest: Digest) -> bool:
        return self._one("SELECT 1 FROM chunks WHERE digest = ?", digest) is not None

    def has_unsynced_before(self, epoch: int) -> bool:
        """Return whether any chunk was published without a sync before *epoch*."""
        return (
            self._one(
                "SELECT 1 FROM chunks WHERE unsynced > 0 AND unsynced < ? LIMIT 1",
                epoch,
            )
            is not None
        )

    def is_unsynced_before(self, digest: Digest, epoch: int) -> bool:
        """Return whether chunk *digest* was published without a sync before *epoch*."""
        row = self._one("SELECT unsynced FROM chunks WHERE digest = ?", digest)
        return row is not None and 0 < row[0] < epoch


class Catalog(CatalogReader):
    """Reads from any thread. One thread at a time may have a :meth:`transaction`."""

    def __init__(self, path: str, disk: Disk) -> None:
        self._disk = disk
        self._path = path
        refuse_lost_commits(path)
        try:
            create(path, disk)
            self._writer = connect(path, disk.synchronous)
            try:
                migrate(self._writer)
                # Savepoints and triggers keep copies of the changed pages, 50 per upload.
                # By default SQLite writes more than 16 of them to a file, one call a page.
                self._writer.execute("PRAGMA temp_store = MEMORY")
                super().__init__(connect(path, disk.synchronous))
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc
        self._reader.execute("PRAGMA query_only = 1")
        try:
            accountant = Accountant(path, connect(path, disk.synchronous))
        except sqlite3.Error as exc:
            self._reader.close()
            self._writer.close()
            raise sqlite_error(exc) from exc
        self._accountant = accountant
        # Each request asks these, so they are the accountant's own methods.
        self.usage = accountant.usage
        self.check = accountant.check

    def close(self) -> None:
        super().close()
        self._accountant.close()
        self._writer.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit all of the block's changes, or none. Raises :class:`StorageError`."""
        self.check()
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
            raise write_error(exc, self._path) from exc

    def hasten_checkpoints(self, hastened: bool) -> None:
        """Have SQLite reuse the log's space much earlier, because the disk is nearly full.

        With *hastened* the log is also emptied at once, except for the part that somebody
        still reads. Without it SQLite's usual setting comes back.
        """
        pages = _SCARCE_LOG if hastened else _USUAL_LOG
        try:
            self._writer.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            if hastened:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error:
            pass  # a full disk may refuse this as well; the log stays as it was


def pack_fields(fields: Fields) -> bytes:
    packed: bytes = msgpack.packb(list(fields))
    return packed


def content_columns(content: Content | None) -> Row:
    """Return ``length, inline, digest``; all are None when there is no content."""
    if content is None:
        return (None, None, None)
    return (content.length, content.inline, content.digest)


def content_from(
    length: int | None, inline: bytes | None, digest: bytes | None
) -> Content | None:
    if length is None:
        return None
    return Content(length, inline, None if digest is None else Digest(digest))


def response_columns(response: StoredResponse | None) -> Row:
    """Return ``head, length, inline, digest``; all are None when there is no response."""
    if response is None:
        return (None, None, None, None)
    head: bytes = msgpack.packb([response.status, list(response.fields)])
    return (head, *content_columns(response.body))


def operation_from(row: Row) -> OperationRecord:
    """Make a record from the :data:`OPERATION_COLUMNS` and the durable offset after them."""
    content = content_from(*row[10:13])
    response = None
    body = content_from(*row[14:17])
    if body is not None:
        status, lines = msgpack.unpackb(row[13])
        response = StoredResponse(status=status, fields=Fields(lines), body=body)
    return OperationRecord(
        id=OperationId(row[0]),
        state=OperationState(row[1]),
        method=row[2],
        target=row[3],
        fields=Fields(msgpack.unpackb(row[4])),
        principal=row[5],
        keep_incomplete=bool(row[6]),
        created_at=row[7],
        expires_at=row[8],
        length=row[9],
        content=content,
        response=response,
        explicit_completion=bool(row[17]),
        reserved=row[18],
        durable_offset=row[19] if content is None else content.length,
    )


def file_from(row: Row) -> FileRecord:
    """Make a record from the :data:`FILE_COLUMNS`."""
    owner, name, fields, modified_at, expires_at, length, inline, digest = row
    return FileRecord(
        owner=owner,
        name=name,
        fields=Fields(msgpack.unpackb(fields)),
        modified_at=modified_at,
        expires_at=expires_at,
        content=Content(length, inline, None if digest is None else Digest(digest)),
    )


def namespace_of(owner: str | None) -> str:
    """Return *owner* as a key. No owner gets a value too, because SQL's nulls are distinct."""
    return "" if owner is None else f"={owner}"
