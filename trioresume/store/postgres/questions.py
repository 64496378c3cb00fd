"""The questions of the port, and those of a store of objects, as statements of SQL.

A question is one statement where its answer must be of one instant, and then has no need of a
transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trioresume.store.catalog.catalog import (
    FILE_COLUMNS,
    OPERATION_COLUMNS,
    file_from,
    namespace_of,
    operation_from,
)
from trioresume.store.port import (
    SERVICE_CLOCK,
    ChunkObject,
    Content,
    ContentKey,
    ContentState,
    EventRecord,
    FileRecord,
    Mutation,
    OperationId,
    OperationRecord,
    OperationState,
    RemoveFile,
    SealChunk,
    TailPart,
    is_response_key,
    operation_of,
    recipes,
)
from trioresume.store.port.recipes import (
    AnyRecipe,
    Digest,
    JoinedRecipe,
    cut,
    join,
    parse_recipe,
)
from trioresume.store.postgres.batch import Listed

if TYPE_CHECKING:
    from trioresume.store.postgres.connections import Database, Row
    from trioresume.store.postgres.nodes import Membership
    from trioresume.store.postgres.sharing import PostgresSharing

__all__ = ["Questions"]


def _of(alias: str, columns: str) -> str:
    return ", ".join(f"{alias}.{column.strip()}" for column in columns.split(","))


_OPERATION = (
    f"SELECT {_of('o', OPERATION_COLUMNS)},"
    " coalesce(greatest(c.durable_offset, c.prefix_bytes), 0),"
    " o.owner IS NOT NULL AND o.owner <> %s AND is_alive(o.owner)"
    " FROM operations o LEFT JOIN contents c ON c.key = o.id"
)
_EVENT_COLUMNS = (
    "seq, id, operation, kind, recorded_at, dated, payload, due_at, attempts, error"
)
_IS_TASK = "(left(kind, 5) = 'task.')"

STAGGER = 2.0
"""Seconds after which the next node expires what the first one should have expired. All nodes
know each deadline; without this all of them would do the same work at the same moment."""
OTHERS_DELAY = 5.0
"""Seconds until a node looks again at the events that another node sends."""


class Questions:
    """Asks the catalog, from any thread. See :class:`trioresume.store.port.Store`."""

    def __init__(
        self,
        database: Database,
        membership: Membership,
        sharing: PostgresSharing,
        chunk_size: int,
    ) -> None:
        self._database = database
        self._membership = membership
        self._sharing = sharing
        self._chunk_size = chunk_size
        self._ask = database.ask
        self._one = database.one

    def operation(self, id: OperationId) -> OperationRecord | None:
        if _is_impossible(id):
            return None
        self._sharing.settle(id)
        row = self._one(f"{_OPERATION} WHERE o.id = %s", self._membership.number, id)
        return None if row is None else _operation(row)

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None:
        if _is_impossible(id):
            return None
        self._sharing.settle(id)
        row = self._one(
            f"{_OPERATION} WHERE o.id = %s AND o.principal IS NOT DISTINCT FROM %s",
            self._membership.number,
            id,
            principal,
        )
        return None if row is None else _operation(row)

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        # Walk the index (state, id) once per state, in order, and merge the walks.
        walk = f"({_OPERATION} WHERE o.state = %s AND o.id > %s ORDER BY o.id LIMIT %s)"
        wanted = list(dict.fromkeys(states))
        if not wanted:
            return []
        values: list[object] = []
        for state in wanted:
            values += [self._membership.number, state, after or "", limit]
        rows = self._ask(
            f"SELECT * FROM ({' UNION ALL '.join([walk] * len(wanted))}) found"
            " ORDER BY id LIMIT %s",
            *values,
            limit,
        )
        return [_operation(row) for row in rows]

    def count_operations(self) -> dict[OperationState, int]:
        rows = self._ask("SELECT state, count(*) FROM operations GROUP BY state")
        return {OperationState(state): count for state, count in rows}

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        rows = self._ask(
            "WITH alive AS (SELECT node, row_number() OVER (ORDER BY node) - 1 AS rank,"
            " count(*) OVER () AS n FROM nodes WHERE NOT ended),"
            " mine AS (SELECT rank, n FROM alive WHERE node = %s UNION ALL SELECT 0, 1"
            " WHERE NOT EXISTS (SELECT 1 FROM alive WHERE node = %s)),"
            " soonest AS ((SELECT expires_at, 'o:' || id AS token, owner FROM operations"
            " ORDER BY expires_at LIMIT %s) UNION ALL (SELECT expires_at, 'f:' || id, NULL"
            " FROM files WHERE expires_at IS NOT NULL ORDER BY expires_at LIMIT %s))"
            " SELECT expires_at + %s * CASE WHEN owner = %s THEN 0 ELSE"
            " (rank + (hashtext(token) & 1023)) %% n END AS at, token"
            " FROM soonest, mine ORDER BY at, token LIMIT %s",
            self._membership.number,
            self._membership.number,
            limit,
            limit,
            STAGGER,
            self._membership.number,
            limit,
        )
        return [(float(at), token) for at, token in rows]

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]:
        row = self._one(
            f"SELECT {FILE_COLUMNS} FROM files WHERE id = %s AND expires_at <= %s",
            int(token.removeprefix("f:")),
            now,
        )
        if row is None:
            return []
        file = file_from(row)
        return [RemoveFile(file.owner, file.name, file.content)]

    def file(self, owner: str | None, name: str) -> FileRecord | None:
        if _is_impossible(name):
            return None
        row = self._one(
            f"SELECT {FILE_COLUMNS} FROM files WHERE namespace = %s AND name = %s",
            namespace_of(owner),
            name,
        )
        return None if row is None else file_from(row)

    def meta(self, name: str) -> str | None:
        if name == SERVICE_CLOCK:
            # The service went on since the reading, wherever it runs.
            row = self._one("SELECT service_clock(%s)", name)
        else:
            row = self._one("SELECT value FROM meta WHERE name = %s", name)
        return None if row is None or row[0] is None else str(row[0])

    # The outbox.

    def due_events(
        self, now: float, limit: int, *, tasks: bool = False
    ) -> tuple[list[EventRecord], float | None]:
        """Claim the first events that may be sent. Other nodes do not send these."""
        me = self._membership.number
        rows = self._ask(
            "SELECT * FROM claim_events(%s, %s, %s, %s)", me, now, limit, tasks
        )
        later = self._one(
            f"SELECT min(due_at) FILTER (WHERE due_at > %s),"
            f" bool_or(claimed_by <> %s) FROM events WHERE {_IS_TASK} = %s",
            now,
            me,
            tasks,
        )
        soonest, has_others = later or (None, None)
        if has_others:
            # Another node sends these. If it dies, somebody has to look again.
            soonest = min(now + OTHERS_DELAY, soonest or now + OTHERS_DELAY)
        return [_event(row) for row in rows], soonest

    def events(
        self, *, dead: bool, after: int, limit: int, tasks: bool = False
    ) -> list[EventRecord]:
        table = "dead_events" if dead else "events"
        rows = self._ask(
            f"SELECT {_EVENT_COLUMNS} FROM {table} WHERE seq > %s AND {_IS_TASK} = %s"
            " ORDER BY seq LIMIT %s",
            after,
            tasks,
            limit,
        )
        return [_event(row) for row in rows]

    def event_count(self) -> int:
        row = self._one(f"SELECT count(*) FROM events WHERE NOT {_IS_TASK}")
        return 0 if row is None else int(row[0])

    # Content.

    def content(self, key: ContentKey) -> ContentState | None:
        if _is_impossible(key):
            return None
        row = self._one(
            "SELECT c.chunk_size, coalesce(o.gen, 0), c.prefix, c.prefix_bytes,"
            " greatest(c.durable_offset, c.prefix_bytes), c.tail,"
            " ARRAY(SELECT p.idx FROM pieces p WHERE p.cid = c.cid AND p.idx > c.prefix"
            " ORDER BY p.idx) FROM contents c LEFT JOIN operations o ON o.id = %s"
            " WHERE c.key = %s",
            operation_of(key),
            key,
        )
        if row is None:
            return None
        size, generation, prefix, prefix_bytes, offset, tail, beyond = row
        return ContentState(
            size,
            generation,
            prefix,
            prefix_bytes,
            offset,
            tuple(beyond),
            tuple(TailPart(*part) for part in tail),
        )

    def generation(self, id: OperationId) -> int:
        row = self._one("SELECT gen FROM operations WHERE id = %s", id)
        return 0 if row is None else int(row[0])

    def piece(self, key: ContentKey, index: int) -> ChunkObject | None:
        row = self._one(
            "SELECT x.digest, x.number FROM contents c JOIN pieces p"
            " ON p.cid = c.cid AND p.idx = %s JOIN chunks x ON x.digest = p.digest"
            " WHERE c.key = %s"
            # The digests are the end of the serialised recipe. Pieces are folded, and
            # never unfolded; the statement sees one instant.
            " UNION ALL SELECT x.digest, x.number FROM contents c JOIN parts p"
            " ON p.cid = c.cid AND p.idx = %s JOIN recipes r ON r.digest = p.digest"
            " JOIN chunks x ON x.digest = substring(r.body FROM octet_length(r.body)"
            " - 34 * (%s - %s)::int + 1 FOR 34) WHERE c.key = %s LIMIT 1",
            index,
            key,
            index // _part_chunks(),
            _part_chunks(),
            index % _part_chunks(),
            key,
        )
        return None if row is None else ChunkObject(Digest(row[0]), int(row[1]))

    def listed(self, key: ContentKey) -> Listed | None:
        """Return the sealed chunks of content under construction, those after a gap too."""
        row = self._one(
            "SELECT chunk_size,"
            " ARRAY(SELECT digest FROM parts p WHERE p.cid = c.cid ORDER BY idx),"
            " ARRAY(SELECT idx FROM pieces p WHERE p.cid = c.cid ORDER BY idx),"
            " ARRAY(SELECT digest FROM pieces p WHERE p.cid = c.cid ORDER BY idx),"
            " ARRAY(SELECT length FROM pieces p WHERE p.cid = c.cid ORDER BY idx)"
            " FROM contents c WHERE key = %s",
            key,
        )
        if row is None:
            return None
        size, parts, indexes, digests, lengths = row
        pieces = zip(indexes, digests, lengths, strict=True)
        return Listed(
            size,
            [Digest(part) for part in parts],
            {index: (Digest(name), length) for index, name, length in pieces},
        )

    def sealed_chunks(self, key: ContentKey) -> tuple[list[Digest], list[Digest]]:
        listed = self.listed(key)
        if listed is None:
            return [], []
        chunks: list[Digest] = []
        index = len(listed.parts) * _part_chunks()
        while index in listed.pieces:
            chunks.append(listed.pieces[index][0])
            index += 1
        return listed.parts, chunks

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk] = ()
    ) -> Content:
        listed = self.listed(key) or Listed(self._chunk_size)
        for seal in seals:
            listed.pieces.setdefault(seal.index, (seal.digest, seal.length))
        size = listed.chunk_size
        at = first = len(listed.parts) * _part_chunks()
        length = first * size
        digests: list[Digest] = []
        while at in listed.pieces:
            digests.append(listed.pieces[at][0])
            length += listed.pieces[at][1]
            at += 1
        names = list(listed.parts)
        if digests or not names:
            rest = cut(size, length - first * size, digests)
            names += [recipe.digest for recipe in rest]
        joined = join(size, length, names)
        return Content(length, None, names[0] if joined is None else joined.digest)

    def knows_seal(self, seal: SealChunk) -> bool:
        row = self._one(
            "SELECT %s < c.prefix OR EXISTS (SELECT 1 FROM pieces p"
            " WHERE p.cid = c.cid AND p.idx = %s) FROM contents c WHERE key = %s",
            seal.index,
            seal.index,
            seal.key,
        )
        if row is not None:
            return bool(row[0])
        if not is_response_key(seal.key):
            return True
        state = self._one(
            "SELECT state FROM operations WHERE id = %s", operation_of(seal.key)
        )
        # The first seal of a response begins its content.
        return state is None or state[0] in ("gone", "done")

    def recipe(self, digest: Digest) -> AnyRecipe | None:
        row = self._one(
            "SELECT body FROM recipes WHERE digest = %s AND dismantled = 0", digest
        )
        return None if row is None else parse_recipe(row[0])

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        recipe = None if content.digest is None else self.recipe(content.digest)
        if not isinstance(recipe, JoinedRecipe):
            return (content,)
        return tuple(
            Content(length, None, part)
            for part, length in zip(recipe.parts, recipe.lengths, strict=True)
        )

    def objects(self, digests: Sequence[Digest]) -> Mapping[Digest, ChunkObject]:
        rows = self._ask(
            "SELECT digest, number FROM chunks WHERE digest = ANY (%s::bytea[])",
            list(digests),
        )
        return {
            Digest(name): ChunkObject(Digest(name), number) for name, number in rows
        }

    def known_objects(self, chunks: Sequence[ChunkObject]) -> set[ChunkObject]:
        rows = self._ask(
            "SELECT x.digest, x.number FROM unnest(%s::bytea[], %s::bigint[])"
            " AS x(digest, number) WHERE EXISTS (SELECT 1 FROM chunks c"
            " WHERE c.digest = x.digest AND c.number = x.number) OR EXISTS (SELECT 1 FROM"
            " condemned c WHERE c.digest = x.digest AND c.number = x.number)",
            [chunk.digest for chunk in chunks],
            [chunk.number for chunk in chunks],
        )
        return {ChunkObject(Digest(name), number) for name, number in rows}

    def known_parts(self, names: Sequence[str]) -> set[str]:
        rows = self._ask(
            "SELECT part->>0 FROM contents c, jsonb_array_elements(c.tail) part"
            " WHERE c.tail <> '[]' AND part->>0 = ANY (%s)"
            " UNION SELECT name FROM dropped_parts WHERE name = ANY (%s)",
            list(names),
            list(names),
        )
        return {name for (name,) in rows}


def _is_impossible(name: str) -> bool:
    """Return whether PostgreSQL cannot hold *name*, so that nothing can have it."""
    return "\0" in name


def _part_chunks() -> int:
    return recipes.PART_CHUNKS  # tests make it small


def _operation(row: Row) -> OperationRecord:
    record = operation_from(row[:-1])
    return replace(record, is_elsewhere=True) if row[-1] else record


def _event(row: Row) -> EventRecord:
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
