"""Content under construction in memory: tails, seals and writers.

This is one half of :class:`~trioresume.testing.MemoryStore`. It replaces the directory
of tails, and the state that the disk store keeps in its process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from trioresume.errors import (
    CallerError,
    ContentLost,
    StaleWriter,
    StorageConflict,
    StorageError,
    StorageFull,
)
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    Content,
    ContentKey,
    ContentWriter,
    Flush,
    OperationId,
    OperationRecord,
    RecordOffset,
    Seal,
    SealChunk,
    Sharing,
    check_key,
    is_response_key,
    operation_of,
)
from trioresume.store.port.recipes import AnyRecipe, Digest, cut, digest_of, join

__all__ = ["Building", "MemoryContents"]


@dataclass(frozen=True, slots=True)
class Building:
    """Content under construction, as the disk store's catalog would know it."""

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

    def recipes(self, seals: Sequence[SealChunk] = ()) -> list[AnyRecipe]:
        """Return the recipes of the sealed content's parts, and last the one of all of it."""
        pieces = {seal.index: seal for seal in seals} | self.pieces
        sealed = replace(self, pieces=pieces)
        chunks = [pieces[index].digest for index in range(sealed.prefix)]
        parts = cut(self.chunk_size, sealed.prefix_bytes, chunks)
        digests = [part.digest for part in parts]
        joined = join(self.chunk_size, sealed.prefix_bytes, digests)
        return [*parts, *([] if joined is None else [joined])]

    def content(self, seals: Sequence[SealChunk] = ()) -> Content:
        """Return the sealed chunks as finished content."""
        whole = self.recipes(seals)[-1]
        return Content(whole.length, None, whole.digest)


class MemoryContents:
    """Builds content. The subclass keeps the finished content."""

    def __init__(self, *, chunk_size: int = 4 * 1024 * 1024) -> None:
        self._chunk_size = chunk_size
        self.full_after: int | None = None
        """The most bytes of content that the store takes; None means no limit."""
        self.fail_next_sync = False
        """Whether the next seal or flush fails, as on a disk that breaks."""
        # The disk store has these in its catalog.
        self._operations: dict[OperationId, OperationRecord] = {}
        self._building: dict[ContentKey, Building] = {}
        self._chunks: dict[Digest, bytes] = {}
        # The disk store has these in files, and in memory.
        self._tails: dict[tuple[ContentKey, int], bytearray] = {}
        self._seals: list[_MemorySeal] = []
        self._suspects: set[ContentKey] = set()
        self._writers: dict[ContentKey, _MemoryWriter] = {}

    @property
    def blocking(self) -> bool:
        return False

    @property
    def durable_at_once(self) -> bool:
        return False

    @property
    def chunk_size(self) -> int:
        return self._chunk_size

    @property
    def sharing(self) -> Sharing | None:
        return None

    @property
    def stored_bytes(self) -> int:
        """The number of bytes in all chunks and tails."""
        return sum(
            len(data) for data in [*self._chunks.values(), *self._tails.values()]
        )

    def close(self) -> None:
        for key in list(self._writers):
            self._end_writer(key)

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

    def _checked_end(self, key: ContentKey, building: Building) -> int:
        """Return the end of the bytes that count. Raises :class:`ContentLost`."""
        whole = self._end_of(key, building, trusted=True)
        if whole < building.durable:
            raise ContentLost(
                f"{building.durable} bytes were durable, {whole} are left"
            )
        return self._end_of(key, building, trusted=key not in self._suspects)

    def _end_of(self, key: ContentKey, building: Building, *, trusted: bool) -> int:
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

    def new_writer(self, key: ContentKey) -> ContentWriter:
        check_key(key)
        writer = _MemoryWriter(self, key, self._chunk_size, 0, [])
        self._writers[key] = writer
        return writer

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
        if record is not None and record.state is OperationState.GONE:
            raise StorageConflict("the operation has ended")
        if is_response_key(key):
            if record is not None and record.state is OperationState.DONE:
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

    def _unseal_short(self, key: ContentKey, building: Building, end: int) -> Building:
        """Turn a short last chunk into a tail: the content was finished but not frozen."""
        last = building.pieces.get(end // building.chunk_size)
        if last is None:
            return building
        self._tails[key, last.index] = bytearray(self._chunks[last.digest])
        pieces = {i: piece for i, piece in building.pieces.items() if i != last.index}
        durable = building.durable
        building = replace(building, pieces=pieces, durable_offset=durable)
        self._building[key] = building
        return building

    def _cut(self, key: ContentKey, end: int, building: Building | None = None) -> None:
        """Remove *key*'s tails, sealings and stray chunks from *end* on."""
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
        """Add as much of *data* to a tail as there is space for; return the number of bytes."""
        room = len(data)
        if self.full_after is not None:
            room = min(room, max(0, self.full_after - self.stored_bytes))
        if room:
            self._tails.setdefault((key, index), bytearray()).extend(data[:room])
        return room

    def sync(self, key: ContentKey) -> None:
        """Raise :class:`StorageError` if ``fail_next_sync`` asks for it."""
        if self.fail_next_sync:
            self.fail_next_sync = False
            self._suspects.add(key)
            writer = self._writers.get(key)
            if writer is not None:
                writer.is_broken = True
            raise StorageError("the sync failed, as it was told to")

    def issue_seal(self, key: ContentKey, index: int, length: int) -> _MemorySeal:
        """Return a seal that :meth:`apply` will accept, unless the tail is cut before."""
        seal = _MemorySeal(self, key, index, length)
        self._seals.append(seal)
        return seal

    def name(self, key: ContentKey, index: int, length: int) -> SealChunk:
        """Name a tail's bytes, or the bytes of the chunk that it became already."""
        building = self._building.get(key)
        if building is not None and index in building.pieces:
            return building.pieces[index]
        data = bytes(self._tails.get((key, index), b"")[:length])
        return SealChunk(key, index, digest_of(data), length)

    def release(self, writer: _MemoryWriter) -> None:
        """Forget *writer*, which was closed."""
        if self._writers.get(writer.key) is writer:
            del self._writers[writer.key]


class _MemorySeal:
    def __init__(
        self, store: MemoryContents, key: ContentKey, index: int, length: int
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
    def __init__(self, store: MemoryContents, writer: _MemoryWriter) -> None:
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
        store: MemoryContents,
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
        """Return a newer writer that continues exactly where this one is."""
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
        """Return whether a newer writer may continue exactly where this one is."""
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

    def relax(self) -> None:
        """Do nothing: this writer has no memory besides the stored bytes."""

    def close(self) -> None:
        self.make_stale()
        self._store.release(self)
