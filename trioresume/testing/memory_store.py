"""A store in memory, for tests: the port without disk, threads or waiting.

It keeps the same contract as the store on disk, proven by the same tests, and shares
none of its code: where the disk store counts references, this one looks who still
refers, and where the disk store relies on SQLite, this one undoes step by step.

Faults are switches: see :attr:`MemoryStore.full_after` and
:attr:`MemoryStore.fail_next_sync`. A crash is :meth:`MemoryStore.crash`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from trioresume.errors import (
    CallerError,
    ChunkCorrupt,
    ContentLost,
    StaleWriter,
    StorageConflict,
    StorageError,
    StorageFull,
)
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    Collected,
    Content,
    ContentKey,
    ContentReader,
    ContentWriter,
    CreateOperation,
    EndOperation,
    FileRecord,
    Flush,
    ForgetOperation,
    FreezeContent,
    Mutation,
    OperationId,
    OperationRecord,
    PublishFile,
    RecordOffset,
    RecordResponse,
    RemoveFile,
    Seal,
    SealChunk,
    SetExpiry,
    SetFileExpiry,
    SetLength,
    SetMeta,
    SetState,
    check_key,
    is_response_key,
    operation_of,
    request_key,
    response_key,
)
from trioresume.store.recipe import Digest, Recipe, digest_of

__all__ = ["MemoryStore"]

_S = OperationState
_FileKey = tuple[str | None, str]
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class _Building:
    """What the catalog would know of content under construction."""

    chunk_size: int
    durable_offset: int = 0
    pieces: dict[int, SealChunk] = field(default_factory=dict)

    @property
    def prefix(self) -> int:
        index = 0
        while index in self.pieces:
            index += 1
        return index

    @property
    def prefix_bytes(self) -> int:
        return sum(self.pieces[index].length for index in range(self.prefix))

    @property
    def durable(self) -> int:
        return max(self.durable_offset, self.prefix_bytes)


class MemoryStore:
    """See :class:`trioresume.store.port.Store`."""

    def __init__(self, *, chunk_size: int = 4 * 1024 * 1024) -> None:
        self._chunk_size = chunk_size
        self.full_after: int | None = None
        """How many bytes of content the store holds at most; None is no limit."""
        self.fail_next_sync = False
        """Whether the next seal or flush fails, as a disk does that breaks."""
        self._operations: dict[OperationId, OperationRecord] = {}
        self._building: dict[ContentKey, _Building] = {}
        self._recipes: dict[Digest, Recipe] = {}
        self._chunks: dict[Digest, bytes] = {}
        self._files: dict[_FileKey, FileRecord] = {}
        self._file_ids: dict[_FileKey, int] = {}
        self._meta: dict[str, str] = {}
        # What the disk store has in files and in memory, not in the catalog.
        self._tails: dict[tuple[ContentKey, int], bytearray] = {}
        self._seals: list[_MemorySeal] = []
        self._suspects: set[ContentKey] = set()
        self._writers: dict[ContentKey, _MemoryWriter] = {}
        self._readers: Counter[Digest] = Counter()
        self._undo: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []

    @property
    def blocking(self) -> bool:
        return False

    @property
    def chunk_size(self) -> int:
        return self._chunk_size

    @property
    def stored_bytes(self) -> int:
        """The bytes of all chunks and tails."""
        return sum(map(len, self._chunks.values())) + sum(
            map(len, self._tails.values())
        )

    def crash(self, *, power_loss: bool, chunk_size: int | None = None) -> MemoryStore:
        """The store as a process finds it that starts after this one was killed.

        With *power_loss* the machine went down as well: of the tails only what was
        recorded as synced is believed. This store must not be used any more.
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
        after._tails = {at: bytearray(data) for at, data in self._tails.items()}
        after._suspects = set(self._building) if power_loss else set(self._suspects)
        return after

    def close(self) -> None:
        for key in list(self._writers):
            self._end_writer(key)

    # Changing, with a way back.

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
            case SetLength(id, length):
                self._set(id, length=length)
            case SetExpiry(id, expires_at):
                self._set(id, expires_at=expires_at)
            case SetState(id, state):
                self._set(id, state=state)
            case FreezeContent(key, recipe):
                self._freeze(key, recipe)
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
            self._put(self._building, key, _Building(self._chunk_size))
        self._put(self._operations, record.id, replace(record, durable_offset=0))

    def _seal(self, seal: SealChunk) -> None:
        building = self._building.get(seal.key)
        if building is None and self._may_respond(seal.key):
            building = _Building(self._chunk_size)
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

    def _freeze(self, key: ContentKey, recipe: Recipe) -> None:
        building = self._building.get(key)
        if building is None:
            if recipe.length or not self._may_respond(key):
                return
            building = _Building(self._chunk_size)
        pieces = [building.pieces[index].digest for index in range(building.prefix)]
        if recipe != Recipe(
            building.chunk_size, building.prefix_bytes, b"".join(pieces)
        ):
            raise StorageConflict(
                "the recipe does not list the chunks that were sealed"
            )
        self._put(self._recipes, recipe.digest, recipe)
        self._drop(self._building, key)
        self._after.append(lambda: self._end_sealings(key))
        if not is_response_key(key):
            self._set(
                operation_of(key), content=Content(recipe.length, None, recipe.digest)
            )

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
            raise StorageConflict("the content was released meanwhile")

    # Reading.

    def operation(self, id: OperationId) -> OperationRecord | None:
        record = self._operations.get(id)
        if record is None:
            return None
        if record.content is not None:
            return replace(record, durable_offset=record.content.length)
        building = self._building.get(request_key(id))
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

    def meta(self, name: str) -> str | None:
        return self._meta.get(name)

    def chunk_digests(self, key: ContentKey) -> list[Digest]:
        building = self._building.get(key)
        if building is None:
            return []
        return [building.pieces[index].digest for index in range(building.prefix)]

    # Content under construction.

    def offset(self, key: ContentKey) -> int:
        writer = self._writers.get(key)
        if writer is not None and not (writer.is_stale or writer.is_broken):
            return writer.offset
        record = self._operations.get(operation_of(key))
        if is_response_key(key):
            return 0
        if record is not None and record.content is not None:
            return record.content.length
        building = self._building.get(key)
        return 0 if building is None else self._checked_end(key, building)

    def _checked_end(self, key: ContentKey, building: _Building) -> int:
        """Where the bytes that count end. Raises :class:`ContentLost`."""
        whole = self._end_of(key, building, trusted=True)
        if whole < building.durable:
            raise ContentLost(
                f"{building.durable} bytes were durable, {whole} are left"
            )
        return self._end_of(key, building, trusted=key not in self._suspects)

    def _end_of(self, key: ContentKey, building: _Building, *, trusted: bool) -> int:
        size, end, index = building.chunk_size, 0, 0
        while end == index * size:
            piece = building.pieces.get(index)
            tail = self._tails.get((key, index))
            if piece is not None:
                end += piece.length
            elif tail is not None:
                synced = max(0, building.durable_offset - end)
                end += len(tail) if trusted else min(len(tail), synced)
            else:
                break
            index += 1
        return end

    def open_writer(self, key: ContentKey) -> ContentWriter:
        check_key(key)
        older = self._writers.get(key)
        if older is not None and older.can_hand_over:
            older.make_stale()
            writer = older.successor()
        else:
            self._end_writer(key)
            writer = self._recover(key)
        self._writers[key] = writer
        return writer

    def _recover(self, key: ContentKey) -> _MemoryWriter:
        record = self._operations.get(operation_of(key))
        if record is not None and record.state is _S.GONE:
            raise StorageConflict("the operation has ended")
        if is_response_key(key):
            if record is not None and record.state is _S.DONE:
                raise StorageConflict("the response is recorded")
            self._building.pop(key, None)
        building = self._building.get(key)
        if building is None:
            if record is not None and not is_response_key(key):
                raise StorageConflict("the content is frozen")
            self._cut(key, 0)
            return _MemoryWriter(self, key, self._chunk_size, 0, [])
        end = self._checked_end(key, building)
        building = self._unseal_short(key, building, end)
        self._cut(key, end, building)
        self._suspects.discard(key)
        size = building.chunk_size
        waiting = [
            self.issue_seal(key, index, size)
            for index in range(building.prefix, end // size)
        ]
        return _MemoryWriter(self, key, size, end, waiting, synced=building.durable)

    def _unseal_short(
        self, key: ContentKey, building: _Building, end: int
    ) -> _Building:
        """Turn the short chunk that content ended in, but was not frozen with, into a tail."""
        last = building.pieces.get(end // building.chunk_size)
        if last is None:
            return building
        self._tails[key, last.index] = bytearray(self._chunks[last.digest])
        pieces = {i: piece for i, piece in building.pieces.items() if i != last.index}
        durable = building.durable
        building = replace(building, pieces=pieces, durable_offset=durable)
        self._building[key] = building
        return building

    def _cut(
        self, key: ContentKey, end: int, building: _Building | None = None
    ) -> None:
        """Remove what *key* holds from *end* on: tails, sealings and strayed chunks."""
        size = self._chunk_size if building is None else building.chunk_size
        for at in [at for at in self._tails if at[0] == key]:
            del self._tails[at][max(0, end - at[1] * size) :]
            if not self._tails[at]:
                del self._tails[at]
        self._seals = [
            seal
            for seal in self._seals
            if seal.key != key
            or (seal.length == size and (seal.index + 1) * size <= end)
        ]
        if building is not None:
            for index in [i for i in building.pieces if i * size >= end]:
                del building.pieces[index]

    def _end_sealings(self, key: ContentKey) -> None:
        self._seals = [seal for seal in self._seals if seal.key != key]

    def _end_writer(self, key: ContentKey) -> None:
        writer = self._writers.pop(key, None)
        if writer is not None:
            writer.make_stale()

    # For writers, seals and flushes.

    def write(self, key: ContentKey, index: int, data: memoryview) -> int:
        """Add to a tail as much of *data* as there is space for; that many bytes."""
        room = len(data)
        if self.full_after is not None:
            room = min(room, max(0, self.full_after - self.stored_bytes))
        if room:
            self._tails.setdefault((key, index), bytearray()).extend(data[:room])
        return room

    def sync(self, key: ContentKey) -> None:
        """Fail if that was asked for."""
        if self.fail_next_sync:
            self.fail_next_sync = False
            self._suspects.add(key)
            writer = self._writers.get(key)
            if writer is not None:
                writer.is_broken = True
            raise StorageError("the sync failed, as it was told to")

    def issue_seal(self, key: ContentKey, index: int, length: int) -> _MemorySeal:
        """A seal that :meth:`apply` will know again, unless the tail is cut before."""
        seal = _MemorySeal(self, key, index, length)
        self._seals.append(seal)
        return seal

    def name(self, key: ContentKey, index: int, length: int) -> SealChunk:
        """Name a tail's bytes, or those of the chunk that it became already."""
        building = self._building.get(key)
        if building is not None and index in building.pieces:
            return building.pieces[index]
        data = bytes(self._tails.get((key, index), b"")[:length])
        return SealChunk(key, index, digest_of(data), length)

    def release(self, writer: _MemoryWriter) -> None:
        """The writer was closed."""
        if self._writers.get(writer.key) is writer:
            del self._writers[writer.key]

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
            index, at = divmod(offset, recipe.chunk_size)
            name = recipe.chunk(index)
            chunk = self._chunks.get(name)
            if chunk is None or len(chunk) <= at:
                raise ChunkCorrupt(f"chunk {name.hex()} is missing or too short")
            return chunk[at : at + size]

        def unpin() -> None:
            self._readers[digest] -= 1

        return _MemoryReader(recipe.length, read, unpin)

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

    def collect(self, limit: int) -> Collected:
        contents = [record.content for record in self._operations.values()]
        contents += [r.response.body for r in self._operations.values() if r.response]
        contents += [file.content for file in self._files.values()]
        held = {content.digest for content in contents if content is not None}
        held |= {digest for digest, count in self._readers.items() if count}
        recipes = [digest for digest in self._recipes if digest not in held][:limit]
        for digest in recipes:
            del self._recipes[digest]
        named = {
            recipe.chunk(index)
            for recipe in self._recipes.values()
            for index in range(recipe.chunk_count)
        } | {
            piece.digest
            for building in self._building.values()
            for piece in building.pieces.values()
        }
        chunks = [digest for digest in self._chunks if digest not in named]
        chunks = chunks[: limit - len(recipes)]
        released = sum(len(self._chunks.pop(digest)) for digest in chunks)
        return Collected(len(recipes), len(chunks), released)


def _slice(content: Content, at: int, size: int) -> bytes:
    return (content.inline or b"")[at : at + size]


class _MemorySeal:
    def __init__(
        self, store: MemoryStore, key: ContentKey, index: int, length: int
    ) -> None:
        self.key = key
        self.index = index
        self.length = length
        self.result: SealChunk | None = None
        self._store = store

    def run(self) -> SealChunk:
        self._store.sync(self.key)
        self.result = self._store.name(self.key, self.index, self.length)
        return self.result


class _MemoryFlush:
    def __init__(self, store: MemoryStore, writer: _MemoryWriter) -> None:
        self.offset = writer.offset
        self._store = store
        self._writer = writer

    def run(self) -> RecordOffset:
        self._store.sync(self._writer.key)
        self._writer.synced = max(self._writer.synced, self.offset)
        return RecordOffset(self._writer.key, self.offset)


class _MemoryWriter:
    def __init__(
        self,
        store: MemoryStore,
        key: ContentKey,
        chunk_size: int,
        offset: int,
        waiting: list[_MemorySeal],
        *,
        synced: int = 0,
    ) -> None:
        self.key = key
        self.chunk_size = chunk_size
        self.offset = offset
        self.synced = synced
        self.is_stale = False
        self.is_broken = False
        self._waiting = waiting
        self._finished = False
        self._store = store

    def successor(self) -> _MemoryWriter:
        """A newer writer that goes on exactly where this one is."""
        return _MemoryWriter(
            self._store,
            self.key,
            self.chunk_size,
            self.offset,
            self._waiting,
            synced=self.synced,
        )

    @property
    def can_hand_over(self) -> bool:
        """Whether a newer writer may go on exactly where this one is."""
        spent = self.is_stale or self.is_broken or self._finished
        return not spent and not is_response_key(self.key)

    def make_stale(self) -> None:
        self.is_stale = True

    def _check(self) -> None:
        if self.is_stale:
            raise StaleWriter("a newer writer took over, or the operation ended")

    def append(self, data: bytes | bytearray | memoryview) -> list[Seal]:
        self._check_open()
        view = memoryview(data)
        while view:
            index, at = divmod(self.offset, self.chunk_size)
            part = view[: self.chunk_size - at]
            written = self._store.write(self.key, index, part)
            self.offset += written
            if at + written == self.chunk_size:
                self._waiting.append(
                    self._store.issue_seal(self.key, index, self.chunk_size)
                )
            if written < len(part):
                raise StorageFull("the store is as full as it was told to be")
            view = view[written:]
        return self._take()

    def _check_open(self) -> None:
        self._check()
        if self.is_broken:
            raise StorageError("a sync of this content failed; open a new writer")
        if self._finished:
            raise CallerError("the content was finished")

    def _take(self) -> list[Seal]:
        seals: list[Seal] = list(self._waiting)
        self._waiting = []
        return seals

    def flush(self) -> Flush | None:
        self._check()
        if self.offset <= self.synced:
            return None
        return _MemoryFlush(self._store, self)

    def finish(self) -> list[Seal]:
        self._check_open()
        self._finished = True
        index, at = divmod(self.offset, self.chunk_size)
        if at:
            self._waiting.append(self._store.issue_seal(self.key, index, at))
        return self._take()

    def close(self) -> None:
        self.make_stale()
        self._store.release(self)


class _MemoryReader:
    """Reads from a chunk at a time; ``on_close`` is called once."""

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

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
