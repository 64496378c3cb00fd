"""The ledger: it performs each mutation on the catalog, inside one transaction.

A :class:`Ledger` lives for one batch. It changes the catalog at once, in the
transaction. Changes of files that must wait for the commit are collected in
:class:`FileChanges`. Publishing a chunk is the exception: it must come before the commit
that makes the catalog name the chunk, so the ledger calls its :class:`Publisher`
at once. If the transaction then fails, the published chunk does no harm: the catalog
does not name it, and the next sweep removes it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from trioresume.errors import CallerError, StorageConflict
from trioresume.store.catalog.catalog import (
    OPERATION_COLUMNS,
    content_columns,
    content_from,
    namespace_of,
    pack_fields,
    response_columns,
)
from trioresume.store.catalog.chunk_lists import (
    NO_EPOCH,
    ContentRow,
    detach,
    fold,
    freeze,
    freeze_at_once,
    is_whole,
    keep_recipe,
)
from trioresume.store.catalog.outbox import change_outbox
from trioresume.store.catalog.usage_triggers import MOVE_OPERATION
from trioresume.store.port import (
    BuryEvent,
    Content,
    ContentKey,
    CreateOperation,
    DropEvents,
    EndOperation,
    FileRecord,
    ForgetOperation,
    FreezeContent,
    HoldBack,
    JoinContents,
    LetCount,
    LimitUsage,
    MoveOperation,
    Mutation,
    OperationId,
    OperationState,
    PostponeEvent,
    PublishFile,
    RecordEvent,
    RecordOffset,
    RecordResponse,
    RemoveFile,
    ReviveEvents,
    SealChunk,
    SetExpiry,
    SetFileExpiry,
    SetLength,
    SetMeta,
    SetReserved,
    SetState,
    Usage,
    check_key,
    is_response_key,
    operation_of,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import JoinedRecipe

__all__ = [
    "Dropped",
    "FileChanges",
    "Ledger",
    "Publisher",
]

_EVERYBODY = "*"
"""The account of all principals together."""

_ENDED = (OperationState.GONE, OperationState.DONE)


class Publisher(Protocol):
    """Gives tails their chunk names."""

    def publish(self, seal: SealChunk, *, known: bool) -> bool:
        """Make the tail a chunk; *known* says that the catalog names that chunk already.

        Returns whether the chunk is the tail now, and not a file that was there before.
        Raises :class:`StorageConflict` if the tail of *seal* is not there or was not made
        durable.
        """
        ...


@dataclass(frozen=True, slots=True)
class Dropped:
    """Content that was released: its tails have the indexes from *first* on."""

    key: ContentKey
    first: int = 0
    last_sealed: int = -1
    """The highest index of a sealed chunk, which has no tail any more."""


@dataclass(slots=True)
class FileChanges:
    """The changes of files to make once the catalog has committed."""

    sealed: list[SealChunk] = field(default_factory=list)
    frozen: list[ContentKey] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


class Ledger:
    """Performs the mutations of one batch; see the module docstring."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        publisher: Publisher,
        *,
        chunk_size: int,
        epoch: int,
        durable: bool = True,
    ) -> None:
        self._execute = connection.execute
        self._connection = connection
        self._publisher = publisher
        self._chunk_size = chunk_size
        self._epoch = epoch
        self._unsynced = 0 if durable else epoch
        """The value of ``unsynced`` for a chunk that is published now."""
        self._file_changes = FileChanges()

    def _add_to(self, file_changes: FileChanges) -> None:
        file_changes.sealed += self._file_changes.sealed
        file_changes.frozen += self._file_changes.frozen
        file_changes.dropped += self._file_changes.dropped

    def submit(
        self, submission: Sequence[Mutation], file_changes: FileChanges
    ) -> StorageConflict | None:
        """Perform all of *submission* or nothing; add the changes of files to *file_changes*.

        Returns None, or the conflict that left the submission undone.
        """
        self._file_changes = FileChanges()
        self._execute("SAVEPOINT submission")
        try:
            for mutation in islice(submission, self._freeze_at_once(submission), None):
                self._perform(mutation)
        except StorageConflict as conflict:
            self._execute("ROLLBACK TO submission")
            self._execute("RELEASE submission")
            return conflict
        self._execute("RELEASE submission")
        self._add_to(file_changes)
        return None

    def _freeze_at_once(self, submission: Sequence[Mutation]) -> int:
        """Perform the first mutations at once, if they seal all of a content and freeze it.

        Returns how many mutations that were. This saves statements: most content is small,
        ends before any of it was sealed, and never has pieces. Each statement costs its
        work, and also a switch of threads while the event loop is busy.
        """
        chunks: list[SealChunk] = []
        frozen: Mutation | None = None
        for mutation in submission:
            if not isinstance(mutation, SealChunk):
                frozen = mutation
                break
            chunks.append(mutation)
        if not chunks or chunks[0].index or not isinstance(frozen, FreezeContent):
            return 0
        key = frozen.key
        if is_response_key(key):
            return 0
        row = self._execute(
            f"SELECT EXISTS (SELECT 1 FROM pieces WHERE pieces.cid = contents.cid),"
            f" {ContentRow.COLUMNS} FROM contents WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None or row[0]:
            return 0
        content = ContentRow(*row[1:])
        if not is_whole(key, content, chunks):
            return 0
        for seal in chunks:
            self._file_changes.sealed.append(seal)
            self._take(seal)
        made = freeze_at_once(self._connection, content, chunks)
        if frozen.content != made:
            raise StorageConflict(
                "the content's chunks changed before it was frozen; finish it again"
            )
        self._file_changes.frozen.append(key)
        self._note_content(operation_of(key), made)
        return len(chunks) + 1

    def _perform(self, mutation: Mutation) -> None:
        match mutation:
            case SealChunk():
                self._seal(mutation)
            case RecordOffset(key, offset):
                self._execute(
                    "UPDATE contents SET durable_offset = max(durable_offset, ?) WHERE key = ?",
                    (offset, None if is_response_key(key) else key),
                )
            case HoldBack(key, offset):
                self._execute(
                    "UPDATE contents SET durable_offset = max(durable_offset, ?),"
                    " epoch = ? WHERE key = ?",
                    (offset, NO_EPOCH, key),
                )
            case LetCount(key):
                self._execute(
                    "UPDATE contents SET epoch = ? WHERE key = ?", (self._epoch, key)
                )
            case CreateOperation():
                self._create(mutation)
            case SetLength(id, length):
                self._set(id, "length", length)
            case SetReserved(id, reserved):
                self._set(id, "reserved", reserved)
            case LimitUsage():
                self._limit_usage(mutation)
            case MoveOperation():
                self._move(mutation)
            case SetExpiry(id, expires_at):
                self._set(id, "expires_at", expires_at)
            case SetState(id, state):
                self._set(id, "state", state)
            case FreezeContent(key, content):
                self._freeze(key, content)
            case JoinContents():
                self._join(mutation)
            case RecordResponse():
                self._record_response(mutation)
            case EndOperation(id, expires_at):
                self._end(id, expires_at)
            case ForgetOperation(id):
                self._forget(id)
            case PublishFile():
                self._publish_file(mutation)
            case RemoveFile():
                self._remove_file(mutation)
            case SetFileExpiry(owner, name, expires_at):
                self._execute(
                    "UPDATE files SET expires_at = ? WHERE namespace = ? AND name = ?",
                    (expires_at, namespace_of(owner), name),
                )
            case SetMeta(name, value):
                self._execute(
                    "REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value)
                )
            case (
                RecordEvent()
                | DropEvents()
                | PostponeEvent()
                | BuryEvent()
                | ReviveEvents()
            ):
                change_outbox(self._execute, mutation)

    # Content under construction.

    def _content(self, key: ContentKey) -> ContentRow | None:
        row = self._execute(
            f"SELECT {ContentRow.COLUMNS} FROM contents WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else ContentRow(*row)

    def _begin_content(self, key: ContentKey) -> None:
        self._execute(
            "INSERT INTO contents (key, chunk_size, epoch) VALUES (?, ?, ?)",
            (key, self._chunk_size, self._epoch),
        )

    def _seal(self, seal: SealChunk) -> None:
        content = self._content(seal.key)
        if content is None and self._may_respond(seal.key):
            self._begin_content(seal.key)
            content = self._content(seal.key)
        self._file_changes.sealed.append(seal)
        if content is None:
            return  # the content was ended or frozen meanwhile: only remove the tail
        at = (content.cid, seal.index)
        # Nothing to do if the chunk is sealed already: it is in the prefix, or a piece
        # after a gap. Most chunks are sealed in order and need no look for a piece.
        if seal.index < content.prefix or (
            seal.index > content.prefix
            and self._execute(
                "SELECT 1 FROM pieces WHERE cid = ? AND idx = ?", at
            ).fetchone()
        ):
            return
        self._take(seal)
        self._execute(
            "INSERT INTO pieces VALUES (?, ?, ?, ?)", (*at, seal.digest, seal.length)
        )
        if seal.index == content.prefix:
            self._advance(content, seal.length)

    def _take(self, seal: SealChunk) -> None:
        """Publish the tail as a chunk, and add one hold on the chunk."""
        is_new = self._execute(
            "INSERT INTO chunks (digest, length, refs, unsynced) VALUES (?, ?, 1, ?)"
            " ON CONFLICT (digest) DO NOTHING",
            (seal.digest, seal.length, self._unsynced),
        ).rowcount
        replaced = self._publisher.publish(seal, known=not is_new)
        if not is_new:
            self._execute(
                "UPDATE chunks SET refs = refs + 1,"
                " unsynced = CASE WHEN ? THEN ? ELSE unsynced END WHERE digest = ?",
                (replaced, self._unsynced, seal.digest),
            )

    def _may_respond(self, key: ContentKey) -> bool:
        """Return whether the first seal of *key* may begin content: a response's does."""
        if not is_response_key(key):
            return False
        state = self._state(operation_of(key))
        return state is not None and state not in _ENDED

    def _advance(self, content: ContentRow, length: int) -> None:
        """Extend the prefix by its next chunk, of *length* bytes, and on to the next gap."""
        prefix, prefix_bytes = content.prefix + 1, content.prefix_bytes + length
        while row := self._execute(
            "SELECT length FROM pieces WHERE cid = ? AND idx = ?", (content.cid, prefix)
        ).fetchone():
            prefix += 1
            prefix_bytes += row[0]
        self._execute(
            "UPDATE contents SET prefix = ?, prefix_bytes = ? WHERE cid = ?",
            (prefix, prefix_bytes, content.cid),
        )
        fold(
            self._connection,
            replace(content, prefix=prefix, prefix_bytes=prefix_bytes),
        )

    def _freeze(self, key: ContentKey, content: Content) -> None:
        row = self._content(key)
        if row is None and content.length == 0 and self._may_respond(key):
            self._begin_content(
                key
            )  # an empty response has no seal that would begin its content
            row = self._content(key)
        if row is None:
            return  # the operation has ended meanwhile
        digest = freeze(self._connection, row)
        if content != Content(row.prefix_bytes, None, digest):
            raise StorageConflict(
                "the content's chunks changed before it was frozen; finish it again"
            )
        self._file_changes.frozen.append(key)
        if not is_response_key(key):
            self._hold(content)
            self._note_content(operation_of(key), content)

    def _note_content(self, id: OperationId, content: Content) -> None:
        self._execute(
            "UPDATE operations SET content_length = ?, content_inline = ?,"
            " content_digest = ? WHERE id = ?",
            (*content_columns(content), id),
        )

    def _join(self, join: JoinContents) -> None:
        key = request_key(join.operation)
        if self._content(key) is None:
            return  # the content was ended or frozen meanwhile
        self.drop(key)
        if join.recipe is not None:
            self._keep_joined(join.recipe)
        self._hold(join.content)
        self._note_content(join.operation, join.content)

    def _keep_joined(self, recipe: JoinedRecipe) -> None:
        lacking = keep_recipe(self._connection, recipe)
        for digest in recipe.parts[:lacking]:
            held = self._execute(
                "UPDATE recipes SET refs = refs + 1"
                " WHERE digest = ? AND dismantled = 0 AND joined = 0",
                (digest,),
            )
            if not held.rowcount:
                raise StorageConflict(
                    "a part was deleted meanwhile, or is made of parts itself"
                )

    def drop(self, key: ContentKey) -> None:
        """Release the content under construction of *key*."""
        content = self._content(key)
        if content is None:
            self._file_changes.dropped.append(Dropped(key))
            return
        (last,) = self._execute(
            "SELECT ifnull(max(idx), -1) FROM pieces WHERE cid = ?", (content.cid,)
        ).fetchone()
        last = max(last, content.prefix - 1)  # the table has no folded pieces
        self._file_changes.dropped.append(Dropped(key, content.prefix, last))
        detach(self._connection, content.cid, 0)

    # Finished content.

    def _hold(self, content: Content) -> None:
        if content.digest is None:
            return
        held = self._execute(
            "UPDATE recipes SET refs = refs + 1 WHERE digest = ? AND dismantled = 0",
            (content.digest,),
        )
        if not held.rowcount:
            raise StorageConflict("the content was deleted meanwhile")

    def _release(self, digest: bytes | None) -> None:
        if digest is not None:
            self._execute(
                "UPDATE recipes SET refs = refs - 1 WHERE digest = ?", (digest,)
            )

    # Operations.

    def _state(self, id: OperationId) -> OperationState | None:
        row = self._execute(
            "SELECT state FROM operations WHERE id = ?", (id,)
        ).fetchone()
        return None if row is None else OperationState(row[0])

    def _set(self, id: OperationId, column: str, value: object) -> None:
        self._execute(
            f"UPDATE operations SET {column} = ? WHERE id = ? AND state != 'gone'",
            (value, id),
        )

    def _move(self, mutation: MoveOperation) -> None:
        state = self._state(mutation.operation)
        if state is None or state is OperationState.GONE:
            return
        values = {
            "id": mutation.operation,
            "principal": mutation.principal,
            "target": mutation.target,
        }
        for sql, sign in MOVE_OPERATION:
            self._execute(sql, values | {"sign": sign})

    def _limit_usage(self, limit: LimitUsage) -> None:
        own = namespace_of(limit.principal)
        found = {own: (0, 0), _EVERYBODY: (0, 0)}
        for namespace, size, uploads in self._execute(
            "SELECT namespace, bytes, open FROM accounts WHERE namespace IN (?, ?)",
            (own, _EVERYBODY),
        ):
            found[namespace] = size, uploads
        limit.check(Usage(*found[own]), found[_EVERYBODY][0])

    def _create(self, mutation: CreateOperation) -> None:
        record = mutation.record
        check_key(request_key(record.id))
        if record.content is not None:
            self._hold(record.content)
        if record.response is not None:
            self._hold(record.response.body)
        is_new = self._execute(
            f"INSERT INTO operations ({OPERATION_COLUMNS}) VALUES ({', '.join('?' * 19)})"
            " ON CONFLICT (id) DO NOTHING",
            (
                record.id,
                record.state,
                record.method,
                record.target,
                pack_fields(record.fields),
                record.principal,
                record.keep_incomplete,
                record.created_at,
                record.expires_at,
                record.length,
                *content_columns(record.content),
                *response_columns(record.response),
                record.explicit_completion,
                record.reserved,
            ),
        ).rowcount
        if not is_new:
            raise StorageConflict("the operation exists already")
        if record.content is None and record.state is not OperationState.GONE:
            self._begin_content(request_key(record.id))

    def _holdings(self, id: OperationId) -> tuple[Any, ...] | None:
        """Return the operation's state and the two digests that it holds."""
        row: tuple[Any, ...] | None = self._execute(
            "SELECT state, content_digest, response_digest FROM operations WHERE id = ?",
            (id,),
        ).fetchone()
        return row

    def _record_response(self, mutation: RecordResponse) -> None:
        operation, response = mutation.operation, mutation.response
        key = response_key(operation)
        holdings = self._execute(
            "SELECT state, content_digest, response_digest,"
            " EXISTS (SELECT 1 FROM contents WHERE key = ?) FROM operations WHERE id = ?",
            (key, operation),
        ).fetchone()
        if holdings is None or holdings[0] == OperationState.GONE:
            return
        self._hold(response.body)
        self._release(holdings[2])
        self._execute(
            "UPDATE operations SET state = ?, expires_at = ?, response_head = ?,"
            " response_length = ?, response_inline = ?, response_digest = ? WHERE id = ?",
            (
                OperationState.DONE,
                mutation.expires_at,
                *response_columns(response),
                operation,
            ),
        )
        if holdings[3]:
            self.drop(key)
        else:
            self._file_changes.dropped.append(Dropped(key))
        if not mutation.keep_content:
            self._release(holdings[1])
            self._execute(
                "UPDATE operations SET content_length = NULL, content_inline = NULL,"
                " content_digest = NULL WHERE id = ?",
                (operation,),
            )
            self.drop(request_key(operation))

    def _end(self, id: OperationId, expires_at: float) -> None:
        holdings = self._holdings(id)
        if holdings is None or holdings[0] == OperationState.GONE:
            return
        self._release_all(id, holdings)
        nothing = b"\x90"  # msgpack: an empty list of fields
        self._execute(
            "UPDATE operations SET state = ?, expires_at = ?, fields = ?, content_length = NULL,"
            " content_inline = NULL, content_digest = NULL, response_head = NULL,"
            " response_length = NULL, response_inline = NULL, response_digest = NULL WHERE id = ?",
            (OperationState.GONE, expires_at, nothing, id),
        )

    def _forget(self, id: OperationId) -> None:
        holdings = self._holdings(id)
        if holdings is not None:
            if holdings[0] != OperationState.GONE:
                self._release_all(id, holdings)
            self._execute("DELETE FROM operations WHERE id = ?", (id,))

    def _release_all(self, id: OperationId, holdings: tuple[Any, ...]) -> None:
        self._release(holdings[1])
        self._release(holdings[2])
        self.drop(request_key(id))
        self.drop(response_key(id))

    # Files.

    def _file_content(self, owner: str | None, name: str) -> Content | None:
        row = self._execute(
            "SELECT content_length, content_inline, content_digest FROM files"
            " WHERE namespace = ? AND name = ?",
            (namespace_of(owner), name),
        ).fetchone()
        return None if row is None else content_from(*row)

    def _publish_file(self, mutation: PublishFile) -> None:
        file: FileRecord = mutation.file
        current = self._file_content(file.owner, file.name)
        _expect(current, mutation.expected)
        self._hold(file.content)
        if current is not None:
            self._release(current.digest)
        self._write_file(file)

    def _write_file(self, file: FileRecord) -> None:
        self._execute(
            "INSERT INTO files (namespace, name, owner, fields, modified_at, expires_at,"
            " content_length, content_inline, content_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (namespace, name) DO UPDATE SET fields = excluded.fields,"
            " modified_at = excluded.modified_at, expires_at = excluded.expires_at,"
            " content_length = excluded.content_length,"
            " content_inline = excluded.content_inline, content_digest = excluded.content_digest",
            (
                namespace_of(file.owner),
                file.name,
                file.owner,
                pack_fields(file.fields),
                file.modified_at,
                file.expires_at,
                *content_columns(file.content),
            ),
        )

    def _remove_file(self, mutation: RemoveFile) -> None:
        current = self._file_content(mutation.owner, mutation.name)
        _expect(current, mutation.expected)
        if current is not None:
            self._release(current.digest)
            self._execute(
                "DELETE FROM files WHERE namespace = ? AND name = ?",
                (namespace_of(mutation.owner), mutation.name),
            )


def _expect(current: Content | None, expected: Content | str | None) -> None:
    if expected == "anything":
        return
    if isinstance(expected, str):
        raise CallerError(
            f"expected is a Content, None or 'anything', not {expected!r}"
        )
    if current != expected:
        raise StorageConflict("the file is not the one expected")
