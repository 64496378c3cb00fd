"""The catalog of a cluster, in PostgreSQL.

A commit and its outcome
========================

:meth:`PostgresCatalog.apply` sends all submissions of a batch in one statement, which is one
transaction: the function ``apply`` of the schema. It is tried as a whole first. Only when a
submission conflicts is it done again with a savepoint around each of them.

The connection may be lost while the server commits. Then nobody has said whether it did. The
transaction has written the batch's number into the node's row, so a look at this row tells. The
look also raises the row's *session*, under the row's lock: a statement that is still on its way
has the old session, and changes nothing any more. So after the look the answer stays true. If
the database cannot be asked in time, :class:`~trioresume.errors.OutcomeUnknown` is raised; what
the batch was about is read from the catalog again before anybody is told anything.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors as pg

from trioresume.errors import (
    OutcomeUnknown,
    StaleWriter,
    StorageConflict,
    StorageError,
    StorageUnavailable,
)
from trioresume.store.catalog.catalog import namespace_of
from trioresume.store.port import (
    ChunkObject,
    Collected,
    ContentKey,
    CreateOperation,
    ForgetOperation,
    Mutation,
    OperationId,
    TailPart,
    Usage,
    changed_operations,
    recipes,
)
from trioresume.store.port.recipes import Digest, Recipe
from trioresume.store.postgres.batch import (
    Plan,
    conflict_from,
    freezes_listed,
    recipe_json,
)
from trioresume.store.postgres.connections import (
    Bounds,
    Database,
    Link,
    is_transient,
    storage_error,
)
from trioresume.store.postgres.nodes import Membership
from trioresume.store.postgres.questions import Questions
from trioresume.store.postgres.schema import migrate
from trioresume.store.postgres.sharing import PostgresSharing

if TYPE_CHECKING:
    from trioresume.store.postgres.connections import Row

__all__ = ["PostgresCatalog"]

DEFAULT_CHUNK_SIZE = 8 * 1024 * 1024
LEASE = 10.0
"""Seconds without a sign of life after which a node is taken for dead."""
TAKEOVER_TIMEOUT = 2.0
"""Seconds until an owner that does not answer a claim loses the operation."""
MOST_AT_ONCE = 512
"""Submissions in one transaction: it holds locks of all their operations."""
_EVERYBODY = "*"
_MOST_KNOWN = 10_000
"""Principals whose usage is kept in memory."""
_AGAIN = (pg.SerializationFailure, pg.DeadlockDetected)


class PostgresCatalog(Questions):
    """The port's catalog, and :class:`trioresume.store.port.ObjectCatalog`, in PostgreSQL.

    *url* is what libpq takes: a URL or ``key=value`` pairs. *chunk_size* is that of content
    which is begun from now on. *lease* and *takeover_timeout* are in seconds.

    Raises :class:`StorageUnavailable` if the database cannot be reached in time,
    :class:`FormatVersionUnsupported`, and :class:`CallerError` for a malformed URL.
    """

    def __init__(
        self,
        url: str,
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        schema: str = "trioresume",
        bounds: Bounds | None = None,
        lease: float = LEASE,
        takeover_timeout: float = TAKEOVER_TIMEOUT,
        on_lost: Callable[[OperationId | None], None] | None = None,
    ) -> None:
        self.chunk_size = chunk_size
        self.on_lost = on_lost
        """Called when this process owns an operation no longer (None: any): its writers end."""
        database = Database(url, schema=schema, bounds=bounds)
        self._applying = threading.Lock()
        self._writer: Link | None = None
        self._number = 0
        self._in_doubt: int | None = None
        """The number of a batch whose outcome nobody knows yet."""
        self._known: dict[str, Usage] = {}
        self._pinning = threading.Lock()
        self._pins: Counter[Digest] = Counter()
        self._closed = False
        try:
            migrate(database)
            membership = Membership(database, lease)
            sharing = PostgresSharing(
                database,
                membership,
                lease=lease,
                takeover_timeout=takeover_timeout,
                on_lost=self._lose,
                on_beat=self._look_at_usage,
            )
        except BaseException:
            database.close()
            raise
        super().__init__(database, membership, sharing, chunk_size)

    @property
    def sharing(self) -> PostgresSharing:
        return self._sharing

    def owns(self, id: OperationId) -> bool:
        """Return whether this process owns the operation, as far as it knows."""
        return self._sharing.owns(id)

    @property
    def node(self) -> int:
        """The number of this process among the nodes."""
        return self._membership.number

    @property
    def schema(self) -> str:
        return self._database.schema

    def close(self) -> None:
        """Leave the cluster: what this process owns belongs to nobody. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._sharing.close()
        try:
            self._membership.leave()
        except StorageError:
            pass  # the lease ends it
        self._end()

    def abandon(self) -> None:
        """End as a process does that is killed: for tests."""
        self._closed = True
        self._database.close()
        self._sharing.close()
        self._end()

    def _end(self) -> None:
        self._database.close()
        with self._applying:
            if self._writer is not None:
                self._writer.close()

    def check(self) -> None:
        """Raise :class:`StorageUnavailable` if the database is not reached for a while now."""
        silence = time.monotonic() - self._sharing.last_beat
        if silence > self._database.bounds.patience + self._database.bounds.answer:
            raise StorageUnavailable(
                f"the catalog is not reached ({self._database.name})"
            )

    def take_room(self, size: int) -> None:
        """Nothing: the disk is the database's own."""

    def _lose(self, id: OperationId | None) -> None:
        if id is None:
            with self._pinning:
                self._pins.clear()  # they went with the node
        if self.on_lost is not None:
            self.on_lost(id)

    # Commits.

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        results: list[StorageConflict | None] = []
        with self._applying:
            for first in range(0, len(batch), MOST_AT_ONCE):
                results += self._apply(batch[first : first + MOST_AT_ONCE])
        return results

    def _apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        for submission in batch:
            for operation in changed_operations(submission):
                self._sharing.settle(operation)
        listed = {}
        for key in dict.fromkeys(freezes_listed(batch)):
            known = self.listed(key)
            if known is not None:
                listed[key] = known
        plan = Plan(batch, chunk_size=self.chunk_size, listed=listed)
        self._number += 1
        try:
            answer = self._commit(json.dumps(plan.json))
        except OutcomeUnknown:
            for submission in batch:
                for operation in changed_operations(submission):
                    self._lose(operation)
            raise
        results = [conflict_from(result) for result in answer["results"]]
        if not results:
            results = [None] * len(batch)  # the answer was lost, and had no conflict
        self._note_outcome(batch, results)
        for space, size, uploads in answer.get("usage", ()):
            self._know(space, Usage(int(size), int(uploads)))
        for key in answer.get("fold", ()):
            self._fold(ContentKey(key))
        return results

    def _note_outcome(
        self,
        batch: Sequence[Sequence[Mutation]],
        results: Sequence[StorageConflict | None],
    ) -> None:
        for submission, conflict in zip(batch, results, strict=True):
            if conflict is not None:
                continue
            for mutation in submission:
                match mutation:
                    case CreateOperation(record):
                        self._sharing.note_owned(record.id)
                    case ForgetOperation(id):
                        self._sharing.note_forgotten(id)

    def _commit(self, batch: str) -> dict[str, Any]:
        """Commit the batch of this number, and return the answer of ``apply``."""
        bounds = self._database.bounds
        deadline = time.monotonic() + bounds.patience
        careful, pause = False, 0.02
        while True:
            node = self._membership.node
            try:
                link = self._open_writer()
                if self._in_doubt is not None:
                    found = self._membership.look_up(link)
                    doubted, self._in_doubt = self._in_doubt, None
                    if found is None:
                        self._begin_anew(node)
                    elif found[0] == self._number == doubted:
                        answer = found[1]
                        return (
                            dict(answer)
                            if isinstance(answer, dict)
                            else {"results": []}
                        )
                    node = self._membership.node
                rows = link.ask(
                    "SELECT apply(%s, %s, %s, %s, %s)",
                    node.number,
                    node.session,
                    self._number,
                    batch,
                    careful,
                )
                return dict(rows[0][0])
            except psycopg.Error as exc:
                if exc.sqlstate in ("TR001", "TR002", "TR004") and not careful:
                    careful = True
                    continue
                if exc.sqlstate == "TR003":
                    self._begin_anew(node)
                if not (is_transient(exc) or isinstance(exc, _AGAIN)):
                    raise storage_error(exc) from exc
                link_lost = self._writer
                if link_lost is not None and (link_lost.closed or link_lost.broken):
                    self._writer = None
                    self._in_doubt = self._number
                if time.monotonic() + pause > deadline:
                    name = self._database.name
                    if self._in_doubt is not None:
                        raise OutcomeUnknown(
                            f"the catalog was lost during a commit ({name})"
                        ) from exc
                    raise StorageUnavailable(
                        f"the catalog is not reached ({name}): {exc}"
                    ) from exc
            time.sleep(pause)
            pause = min(0.5, pause * 2)

    def _begin_anew(self, node: Any) -> None:
        self._sharing.begin_anew(node)
        raise StorageUnavailable("this node was taken for dead, and has begun anew")

    def _open_writer(self) -> Link:
        if self._closed:
            raise StorageUnavailable("the catalog is closed")
        if self._writer is None or self._writer.closed:
            link: Link = self._database.open()
            self._writer = link
        return self._writer

    def _change(self, statement: str, *values: object) -> list[Row]:
        """Execute a statement that changes the same if it is executed twice."""
        node = self._membership.node
        try:
            return self._ask(statement, node.number, *values)
        except StorageError as exc:
            match getattr(exc.__cause__, "sqlstate", None):
                case "TR001":
                    raise StorageConflict(*exc.args) from exc
                case "TR002":
                    raise StaleWriter(*exc.args) from exc
                case "TR003":
                    self._begin_anew(node)
            raise

    def _fold(self, key: ContentKey) -> None:
        """Fold the pieces that make whole parts. If this fails, the next commit does it."""
        part = recipes.PART_CHUNKS
        try:
            while (listed := self.listed(key)) is not None:
                at = len(listed.parts)
                first = at * part
                pieces = [listed.pieces.get(first + i) for i in range(part)]
                digests = [piece[0] for piece in pieces if piece is not None]
                length = sum(piece[1] for piece in pieces if piece is not None)
                if len(digests) < part or length < part * listed.chunk_size:
                    return
                recipe = Recipe.build(listed.chunk_size, length, digests)
                rows = self._change(
                    "SELECT fold(%s, %s, %s, %s, %s)",
                    key,
                    at,
                    first,
                    json.dumps(recipe_json(recipe)),
                )
                if not rows[0][0]:
                    return
        except StorageError:
            pass

    def reopen(self, key: ContentKey, prefix: int, parts: tuple[TailPart, ...]) -> None:
        objects = [[part.name, part.offset, part.length] for part in parts]
        self._change(
            "SELECT reopen(%s, %s, %s, %s::jsonb)", key, prefix, json.dumps(objects)
        )

    def discard(self, key: ContentKey) -> None:
        self._change("SELECT discard(%s, %s)", key)

    # Usage. The server asks on its event loop, so the answers are those of the last commit
    # or the last sign of life; quotas are exact in the commit itself (LimitUsage).

    def usage(self, principal: str | None) -> Usage:
        return self._usage(namespace_of(principal))

    def total_usage(self) -> Usage:
        return self._usage(_EVERYBODY)

    def _usage(self, space: str) -> Usage:
        known = self._known.get(space)
        if known is None:
            if (
                time.monotonic() - self._sharing.last_beat
                > self._database.bounds.answer
            ):
                # Asking would hold up the event loop until the database is back.
                raise StorageUnavailable(
                    f"the catalog is not reached ({self._database.name})"
                )
            known = self._ask_usage([space]).get(space, Usage())
            self._know(space, known)
        return known

    def _ask_usage(self, spaces: list[str]) -> dict[str, Usage]:
        rows = self._ask(
            "SELECT namespace, sum(bytes)::bigint, sum(open)::bigint FROM accounts"
            " WHERE namespace = ANY (%s) GROUP BY namespace",
            spaces,
        )
        return {space: Usage(size, uploads) for space, size, uploads in rows}

    def _know(self, space: str, usage: Usage) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[space] = usage

    def _look_at_usage(self) -> None:
        spaces = list(self._known)
        if spaces:
            found = self._ask_usage(spaces)
            for space in spaces:
                self._know(space, found.get(space, Usage()))

    # Holds and pins.

    def hold(self, digests: Sequence[Digest]) -> list[ChunkObject]:
        rows = self._change("SELECT * FROM hold_chunks(%s, %s::bytea[])", list(digests))
        numbers = {Digest(name): number for name, number in rows}
        return [ChunkObject(digest, numbers[digest]) for digest in digests]

    def unhold(self, digests: Sequence[Digest]) -> None:
        self._change(
            "DELETE FROM holds WHERE node = %s AND digest = ANY (%s::bytea[])",
            list(digests),
        )

    def pin(self, digest: Digest) -> bool:
        with self._pinning:
            if not self._pins[digest]:
                rows = self._change("SELECT pin_recipe(%s, %s)", digest)
                if not rows[0][0]:
                    return False
            self._pins[digest] += 1
            return True

    def unpin(self, digest: Digest) -> None:
        with self._pinning:
            if digest not in self._pins:
                return
            self._pins[digest] -= 1
            if self._pins[digest]:
                return
            del self._pins[digest]
            try:
                self._change("DELETE FROM pins WHERE node = %s AND digest = %s", digest)
            except StorageError:
                pass  # it is dropped with the node

    # Collection.

    def release_rows(self, limit: int) -> Collected:
        rows = self._change("SELECT * FROM collect_rows(%s, %s)", limit)
        steps, gone = rows[0]
        return Collected(recipes=int(gone), steps=int(steps))

    def condemn(self, limit: int) -> list[tuple[ChunkObject, int]]:
        rows = self._change("SELECT * FROM condemn_chunks(%s, %s)", limit)
        return [(ChunkObject(Digest(name), n), int(size)) for name, n, size in rows]

    def forget(self, chunks: Sequence[ChunkObject]) -> None:
        self._change(
            "DELETE FROM condemned WHERE node = %s AND (digest, number) IN"
            " (SELECT * FROM unnest(%s::bytea[], %s::bigint[]))",
            [chunk.digest for chunk in chunks],
            [chunk.number for chunk in chunks],
        )

    def dropped_parts(self, limit: int) -> list[str]:
        rows = self._change("SELECT * FROM claim_dropped_parts(%s, %s)", limit)
        return [name for (name,) in rows]

    def forget_parts(self, names: Sequence[str]) -> None:
        self._change(
            "DELETE FROM dropped_parts WHERE %s > 0 AND name = ANY (%s)", list(names)
        )
