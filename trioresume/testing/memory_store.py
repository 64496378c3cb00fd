"""A store in memory, for tests: it implements the port without disk, threads or waiting.

It keeps the same contract as the store on disk, and the same tests prove it, but it shares
none of its code. The disk store counts references; this store searches for them. The disk
store relies on SQLite to undo changes; this store undoes them step by step.

Faults are switches: see :attr:`MemoryStore.full_after` and
:attr:`MemoryStore.fail_next_sync`. A crash is :meth:`MemoryStore.crash`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from trioresume.errors import (
    CallerError,
    ChunkCorrupt,
    ContentLost,
    StorageConflict,
)
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog.catalog import pack_fields, response_columns
from trioresume.store.port import (
    FREE_HEAD,
    MOST_DEAD_EVENTS,
    RECORD_SIZE,
    BuryEvent,
    Collected,
    Content,
    ContentKey,
    ContentReader,
    CreateOperation,
    DropEvents,
    EndOperation,
    EventRecord,
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
    OperationRecord,
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
from trioresume.store.port.recipes import AnyRecipe, Digest, JoinedRecipe, Recipe
from trioresume.testing.memory_content import Building, MemoryContents

__all__ = ["MemoryStore"]

_S = OperationState


def _extra(record: OperationRecord) -> int:
    """Return the bytes charged for *record*'s head and response, if they are long."""
    head, _, inline, _ = response_columns(record.response)
    size = len(record.target.encode()) + len(pack_fields(record.fields))
    return max(0, size + len(head or b"") + len(inline or b"") - FREE_HEAD)


def _file_extra(file: FileRecord) -> int:
    size = len(file.name.encode()) + len(pack_fields(file.fields))
    return max(0, size + len(file.content.inline or b"") - FREE_HEAD)


_FileKey = tuple[str | None, str]
_K = TypeVar("_K")
_V = TypeVar("_V")


class MemoryStore(MemoryContents):
    """See :class:`trioresume.store.port.Store`."""

    def __init__(self, *, chunk_size: int = 4 * 1024 * 1024) -> None:
        super().__init__(chunk_size=chunk_size)
        self._recipes: dict[Digest, AnyRecipe] = {}
        self._files: dict[_FileKey, FileRecord] = {}
        self._file_ids: dict[_FileKey, int] = {}
        self._meta: dict[str, str] = {}
        self._events: dict[int, EventRecord] = {}
        self._dead_events: dict[int, EventRecord] = {}
        self._last_event = 0
        self._readers: Counter[Digest] = Counter()
        self._undo: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []

    def crash(self, *, power_loss: bool, chunk_size: int | None = None) -> MemoryStore:
        """Return the store that a new process would find after this one was killed.

        With *power_loss* the machine went down as well: of the tails, only bytes that were
        recorded as synced are believed. This store must not be used any more.
        """
        for key in list(self._writers):
            self._end_writer(key)
        after = MemoryStore(chunk_size=chunk_size or self._chunk_size)
        after._operations = dict(self._operations)
        after._building = {
            key: replace(building, pieces=dict(building.pieces))
            for key, building in self._building.items()
        }
        after._recipes = dict(self._recipes)
        after._chunks = dict(self._chunks)
        after._files = dict(self._files)
        after._file_ids = dict(self._file_ids)
        after._meta = dict(self._meta)
        after._events = dict(self._events)
        after._dead_events = dict(self._dead_events)
        after._last_event = self._last_event
        after._tails = {at: bytearray(data) for at, data in self._tails.items()}
        after._suspects = set(self._building) if power_loss else set(self._suspects)
        return after

    # Changes that can be undone.

    def _put(self, table: dict[_K, _V], key: _K, value: _V) -> None:
        self._remember(table, key)
        table[key] = value

    def _drop(self, table: dict[_K, _V], key: _K) -> None:
        if key in table:
            self._remember(table, key)
            del table[key]

    def _remember(self, table: dict[_K, Any], key: _K) -> None:
        if key in table:
            old = table[key]
            self._undo.append(lambda: table.__setitem__(key, old))
        else:
            self._undo.append(lambda: table.__delitem__(key))

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        return [self._submit(submission) for submission in batch]

    def _submit(self, submission: Sequence[Mutation]) -> StorageConflict | None:
        self._undo = []
        self._after = []
        try:
            for mutation in submission:
                self._perform(mutation)
        except BaseException as exc:
            for undo in reversed(self._undo):
                undo()
            if isinstance(exc, StorageConflict):
                return exc
            raise
        for act in self._after:
            act()
        return None

    def _perform(self, mutation: Mutation) -> None:
        match mutation:
            case CreateOperation(record):
                self._create(record)
            case SealChunk():
                self._seal(mutation)
            case RecordOffset(key, offset):
                building = self._building.get(key)
                if building is not None and not is_response_key(key):
                    offset = max(offset, building.durable_offset)
                    self._put(
                        self._building, key, replace(building, durable_offset=offset)
                    )
            case HoldBack(key, offset):
                self._perform(RecordOffset(key, offset))
                self._after.append(lambda: self._suspects.add(key))
            case LetCount(key):
                self._after.append(lambda: self._suspects.discard(key))
            case SetLength(id, length):
                self._set(id, length=length)
            case SetReserved(id, reserved):
                self._set(id, reserved=reserved)
            case LimitUsage(principal):
                mutation.check(self.usage(principal), self.total_usage().bytes)
            case MoveOperation(id, principal, target):
                self._set(id, principal=principal, target=target)
            case SetExpiry(id, expires_at):
                self._set(id, expires_at=expires_at)
            case SetState(id, state):
                self._set(id, state=state)
            case FreezeContent(key, content):
                self._freeze(key, content)
            case JoinContents():
                self._join(mutation)
            case RecordResponse():
                self._record_response(mutation)
            case EndOperation(id, expires_at):
                self._end(id, expires_at)
            case ForgetOperation(id):
                self._drop_building(request_key(id))
                self._drop_building(response_key(id))
                self._drop(self._operations, id)
            case PublishFile(file, expected):
                self._publish_file(file, expected)
            case RemoveFile(owner, name, expected):
                self._expect(owner, name, expected)
                self._drop(self._files, (owner, name))
            case SetFileExpiry(owner, name, file_expires_at):
                found = self._files.get((owner, name))
                if found is not None:
                    found = replace(found, expires_at=file_expires_at)
                    self._put(self._files, (owner, name), found)
            case SetMeta(name, value):
                self._put(self._meta, name, value)
            case RecordEvent(event):
                self._last_event += 1
                event = replace(event, seq=self._last_event)
                self._put(self._events, event.seq, event)
            case DropEvents(seqs, dead):
                for seq in seqs:
                    self._drop(self._dead_events if dead else self._events, seq)
            case PostponeEvent(seq, due_at, error):
                self._postpone(seq, due_at, error)
            case BuryEvent(seq, error):
                self._bury(seq, error)
            case ReviveEvents(seqs, now):
                for seq in seqs:
                    self._revive(seq, now)

    def _postpone(self, seq: int, due_at: float, error: str) -> None:
        event = self._events.get(seq)
        if event is not None:
            attempts = event.attempts + 1
            event = replace(event, due_at=due_at, attempts=attempts, error=error)
            self._put(self._events, seq, event)

    def _bury(self, seq: int, error: str) -> None:
        event = self._events.get(seq)
        if event is not None:
            self._drop(self._events, seq)
            event = replace(event, attempts=event.attempts + 1, error=error)
            self._put(self._dead_events, seq, event)
        for oldest in sorted(self._dead_events)[:-MOST_DEAD_EVENTS]:
            self._drop(self._dead_events, oldest)

    def _revive(self, seq: int, now: float) -> None:
        event = self._events.get(seq)
        if event is not None:
            event = replace(event, due_at=0.0, recorded_at=now)
            self._put(self._events, seq, event)
        event = self._dead_events.get(seq)
        if event is not None:
            self._drop(self._dead_events, seq)
            event = replace(event, due_at=0.0, recorded_at=now, attempts=0)
            self._put(self._events, seq, event)

    def _alive(self, id: OperationId) -> OperationRecord | None:
        record = self._operations.get(id)
        return None if record is None or record.state is _S.GONE else record

    def _set(self, id: OperationId, **changes: Any) -> None:
        record = self._alive(id)
        if record is not None:
            self._put(self._operations, id, replace(record, **changes))

    def _create(self, record: OperationRecord) -> None:
        key = request_key(record.id)
        check_key(key)
        if record.id in self._operations:
            raise StorageConflict("the operation exists already")
        self._require(record.content)
        self._require(None if record.response is None else record.response.body)
        if record.content is None and record.state is not _S.GONE:
            self._put(self._building, key, Building(self._chunk_size))
        self._put(self._operations, record.id, replace(record, durable_offset=0))

    def _seal(self, seal: SealChunk) -> None:
        building = self._building.get(seal.key)
        if building is None and self._may_respond(seal.key):
            building = Building(self._chunk_size)
        self._after.append(lambda: self._end_sealing(seal))
        if building is None or seal.index in building.pieces:
            return
        data = self._tails.get((seal.key, seal.index))
        is_sealed = any(issued.result == seal for issued in self._seals)
        if data is None or not is_sealed:
            raise StorageConflict(
                f"chunk {seal.index} was discarded before it was sealed"
            )
        self._put(self._chunks, seal.digest, bytes(data))
        pieces = {**building.pieces, seal.index: seal}
        self._put(self._building, seal.key, replace(building, pieces=pieces))

    def _end_sealing(self, seal: SealChunk) -> None:
        self._seals = [
            issued
            for issued in self._seals
            if (issued.key, issued.index) != (seal.key, seal.index)
        ]
        self._tails.pop((seal.key, seal.index), None)

    def _may_respond(self, key: ContentKey) -> bool:
        record = self._alive(operation_of(key))
        return (
            is_response_key(key) and record is not None and record.state is not _S.DONE
        )

    def _freeze(self, key: ContentKey, content: Content) -> None:
        building = self._building.get(key)
        if building is None:
            if content.length or not self._may_respond(key):
                return
            building = Building(self._chunk_size)
        if content != building.content():
            raise StorageConflict(
                "the content's chunks changed before it was frozen; finish it again"
            )
        for recipe in building.recipes():
            self._put(self._recipes, recipe.digest, recipe)
        self._drop(self._building, key)
        self._after.append(lambda: self._end_sealings(key))
        if not is_response_key(key):
            self._set(operation_of(key), content=content)

    def _join(self, join: JoinContents) -> None:
        key = request_key(join.operation)
        if key not in self._building:
            return
        self._drop_building(key)
        several = join.recipe is not None
        for part in join.parts:
            self._require(part)
            assert part.digest is not None
            joined = isinstance(self._recipes[part.digest], JoinedRecipe)
            if several and part.length and joined:
                raise StorageConflict("a part is made of parts itself")
        if join.recipe is not None:
            self._put(self._recipes, join.recipe.digest, join.recipe)
        self._set(join.operation, content=join.content)

    def _drop_building(self, key: ContentKey) -> None:
        self._drop(self._building, key)
        self._after.append(lambda: self._end_writer(key))
        self._after.append(lambda: self._cut(key, 0))

    def _record_response(self, mutation: RecordResponse) -> None:
        operation = mutation.operation
        if self._alive(operation) is None:
            return
        self._require(mutation.response.body)
        self._set(
            operation,
            state=_S.DONE,
            response=mutation.response,
            expires_at=mutation.expires_at,
        )
        self._drop_building(response_key(operation))
        if not mutation.keep_content:
            self._set(operation, content=None)
            self._drop_building(request_key(operation))

    def _end(self, id: OperationId, expires_at: float) -> None:
        if self._alive(id) is not None:
            self._drop_building(request_key(id))
            self._drop_building(response_key(id))
            self._set(
                id,
                state=_S.GONE,
                expires_at=expires_at,
                fields=Fields(),
                content=None,
                response=None,
            )

    def _publish_file(self, file: FileRecord, expected: Content | str | None) -> None:
        at = (file.owner, file.name)
        self._expect(*at, expected)
        self._require(file.content)
        self._put(self._files, at, file)
        self._file_ids.setdefault(at, len(self._file_ids) + 1)

    def _expect(
        self, owner: str | None, name: str, expected: Content | str | None
    ) -> None:
        file = self._files.get((owner, name))
        if expected == "anything":
            return
        if isinstance(expected, str):
            raise CallerError(
                f"expected is a Content, None or 'anything', not {expected!r}"
            )
        if (None if file is None else file.content) != expected:
            raise StorageConflict("the file is not the one expected")

    def _require(self, content: Content | None) -> None:
        digest = None if content is None else content.digest
        if digest is not None and digest not in self._recipes:
            raise StorageConflict("the content was deleted meanwhile")

    # Reading.

    def operation(self, id: OperationId) -> OperationRecord | None:
        return self._with_offset(self._operations.get(id))

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None:
        record = self._operations.get(id)
        is_owned = record is not None and record.principal == principal
        return self._with_offset(record) if is_owned else None

    def _with_offset(self, record: OperationRecord | None) -> OperationRecord | None:
        if record is None:
            return None
        if record.content is not None:
            return replace(record, durable_offset=record.content.length)
        building = self._building.get(request_key(record.id))
        return replace(
            record, durable_offset=0 if building is None else building.durable
        )

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        known = sorted(self._operations.values(), key=lambda record: record.id)
        found = [r.id for r in known if r.state in states and r.id > (after or "")]
        records = [self.operation(operation) for operation in found[:limit]]
        return [record for record in records if record is not None]

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        entries = [(r.expires_at, f"o:{r.id}") for r in self._operations.values()]
        entries += [
            (file.expires_at, f"f:{self._file_ids[at]}")
            for at, file in self._files.items()
            if file.expires_at is not None
        ]
        return sorted(entries)[:limit]

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]:
        wanted = int(token.removeprefix("f:"))
        return [
            RemoveFile(file.owner, file.name, file.content)
            for at, file in self._files.items()
            if self._file_ids[at] == wanted
            and file.expires_at is not None
            and file.expires_at <= now
        ]

    def file(self, owner: str | None, name: str) -> FileRecord | None:
        return self._files.get((owner, name))

    def count_operations(self) -> Mapping[OperationState, int]:
        return Counter(record.state for record in self._operations.values())

    def meta(self, name: str) -> str | None:
        return self._meta.get(name)

    def due_events(
        self, now: float, limit: int, *, tasks: bool = False
    ) -> tuple[list[EventRecord], float | None]:
        due: list[EventRecord] = []
        waiting: set[OperationId] = set()
        events = [e for _, e in sorted(self._events.items()) if e.is_task is tasks]
        for event in events:
            if event.due_at > now:
                waiting.add(event.operation)
            if event.operation not in waiting:
                due.append(event)
        later = [event.due_at for event in events if event.due_at > now]
        return due[:limit], min(later, default=None)

    def events(
        self, *, dead: bool, after: int, limit: int, tasks: bool = False
    ) -> list[EventRecord]:
        table = self._dead_events if dead else self._events
        known = [e for _, e in sorted(table.items()) if e.is_task is tasks]
        return [event for event in known if event.seq > after][:limit]

    def event_count(self) -> int:
        return sum(not event.is_task for event in self._events.values())

    def usage(self, principal: str | None) -> Usage:
        known = [r for r in self._operations.values() if r.principal == principal]
        operations = [record for record in known if record.state is not _S.GONE]
        files = [file for file in self._files.values() if file.owner == principal]
        receiving = [r for r in operations if r.state is _S.RECEIVING]
        waiting = [r for r in operations if r.state is _S.WAITING]
        contents = [record.content for record in operations]
        contents += [record.response.body for record in operations if record.response]
        contents += [file.content for file in files]
        kept = {c.digest: c.length for c in contents if c is not None and c.digest}
        size = RECORD_SIZE * (len(operations) + len(files))
        size += sum(map(_extra, known)) + sum(map(_file_extra, files))
        size += sum(record.reserved for record in receiving) + sum(kept.values())
        return Usage(size, len(receiving) + len(waiting))

    def total_usage(self) -> Usage:
        principals = {record.principal for record in self._operations.values()}
        principals |= {file.owner for file in self._files.values()}
        usages = [self.usage(principal) for principal in principals]
        return Usage(
            sum(usage.bytes for usage in usages),
            sum(usage.open_uploads for usage in usages),
        )

    def take_room(self, size: int) -> None:
        """Do nothing: there is always room for a record."""

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk] = ()
    ) -> Content:
        building = self._building.get(key, Building(self._chunk_size))
        return building.content(seals)

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        recipe = None if content.digest is None else self._recipes.get(content.digest)
        if not isinstance(recipe, JoinedRecipe):
            return (content,)
        return tuple(
            Content(length, None, part)
            for part, length in zip(recipe.parts, recipe.lengths, strict=True)
        )

    # Readers and collection.

    def open_reader(self, content: Content) -> ContentReader:
        if content.digest is None:
            return _MemoryReader(
                content.length, lambda at, size: _slice(content, at, size)
            )
        recipe = self._recipes.get(content.digest)
        if recipe is None:
            raise ContentLost("the content was released")
        digest = recipe.digest
        self._readers[digest] += 1

        def read(offset: int, size: int) -> bytes:
            return self._read_recipe(recipe, offset, size)

        def unpin() -> None:
            self._readers[digest] -= 1

        return _MemoryReader(recipe.length, read, unpin)

    def _read_recipe(self, recipe: AnyRecipe, offset: int, size: int) -> bytes:
        if isinstance(recipe, JoinedRecipe):
            index, at = recipe.locate(offset)
            part = self._recipes[recipe.parts[index]]
            size = min(size, recipe.lengths[index] - at)
            return self._read_recipe(part, at, size)
        index, at = divmod(offset, recipe.chunk_size)
        name = recipe.chunk(index)
        chunk = self._chunks.get(name)
        if chunk is None or len(chunk) <= at:
            raise ChunkCorrupt(f"chunk {name.hex()} is missing or too short")
        return chunk[at : at + size]

    def open_prefix(self, key: ContentKey, length: int) -> ContentReader:
        known = self._building.get(key)
        chunk_size = self._chunk_size if known is None else known.chunk_size

        def read(offset: int, size: int) -> bytes:
            index, at = divmod(offset, chunk_size)
            building = self._building.get(key)
            if building is not None and index in building.pieces:
                chunk = self._chunks[building.pieces[index].digest]
                return chunk[at : at + size]
            if (key, index) in self._tails:
                return bytes(self._tails[key, index][at : at + size])
            record = self._operations.get(operation_of(key))
            if record is None or record.content is None:
                raise ContentLost("the content was released")
            reader = self.open_reader(record.content)
            try:
                return reader.read(offset, size)
            finally:
                reader.close()

        return _MemoryReader(length, read)

    def check(self) -> None:
        """Do nothing: memory cannot be removed."""

    def sweep(self) -> None:
        """Do nothing: there are no files that nothing refers to."""

    def collect(self, limit: int) -> Collected:
        recipes = self.release_recipes(limit)
        named = self.named_chunks()
        chunks = [digest for digest in self._chunks if digest not in named]
        chunks = chunks[: limit - recipes]
        released = sum(len(self._chunks.pop(digest)) for digest in chunks)
        return Collected(recipes, len(chunks), released)

    def release_recipes(self, limit: int) -> int:
        """Remove up to *limit* recipes that nothing holds; return how many."""
        contents = [record.content for record in self._operations.values()]
        contents += [r.response.body for r in self._operations.values() if r.response]
        contents += [file.content for file in self._files.values()]
        held = {content.digest for content in contents if content is not None}
        held |= {digest for digest, count in self._readers.items() if count}
        # A joined recipe holds its parts as long as it exists.
        held |= {
            part
            for recipe in self._recipes.values()
            if isinstance(recipe, JoinedRecipe)
            for part in recipe.parts
        }
        recipes = [digest for digest in self._recipes if digest not in held][:limit]
        for digest in recipes:
            del self._recipes[digest]
        return len(recipes)

    def named_chunks(self) -> set[Digest]:
        """Return the chunks that recipes and contents under construction name."""
        return {
            recipe.chunk(index)
            for recipe in self._recipes.values()
            if isinstance(recipe, Recipe)
            for index in range(recipe.chunk_count)
        } | {
            piece.digest
            for building in self._building.values()
            for piece in building.pieces.values()
        }


def _slice(content: Content, at: int, size: int) -> bytes:
    return (content.inline or b"")[at : at + size]


class _MemoryReader:
    """Reads one chunk at a time. ``on_close`` is called once."""

    def __init__(
        self,
        length: int,
        read: Callable[[int, int], bytes],
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.length = length
        self._read = read
        self._on_close = on_close

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.length - offset)
        return self._read(offset, size) if size > 0 else b""

    def extent(self, offset: int, size: int) -> None:
        """Return None: the bytes lie in no file and must be read."""

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
