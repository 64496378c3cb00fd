"""The catalog of a cluster, in memory, and its bucket: for tests.

:class:`MemoryCatalog` is what the nodes share, and :meth:`MemoryCatalog.join` returns one node's
view of it. Both keep the contract of :mod:`trioresume.store.port.objects`. One lock makes every
call a whole step. A node that died is :meth:`MemoryCatalogNode.die`.

:class:`MemoryBucket` is an object store. It can be full, and its next call can fail.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import ParamSpec, TypeVar

from trioresume.errors import StorageConflict, StorageError, StorageUnavailable
from trioresume.store.objects.bucket import ListedObject
from trioresume.store.port import (
    ChunkObject,
    Collected,
    ContentKey,
    ContentState,
    Mutation,
    OperationId,
    RecordOffset,
    RecordTail,
    SealChunk,
    TailPart,
    is_response_key,
)
from trioresume.store.port.recipes import AnyRecipe, Digest
from trioresume.testing.memory_content import Building
from trioresume.testing.memory_store import MemoryStore

__all__ = ["MemoryBucket", "MemoryCatalog", "MemoryCatalogNode"]

P = ParamSpec("P")
T = TypeVar("T")


class MemoryCatalog(MemoryStore):
    """Rows without bytes: what a chunk's object is, who holds it, what a tail consists of."""

    def __init__(self, *, chunk_size: int = 8 * 1024 * 1024) -> None:
        super().__init__(chunk_size=chunk_size)
        self.lock = threading.RLock()
        self._objects: dict[Digest, ChunkObject] = {}
        """The present object of each chunk that is named or held, or was once."""
        self._lengths: dict[Digest, int] = {}
        self._condemned: dict[ChunkObject, int] = {}
        self._holds: dict[tuple[MemoryCatalogNode, Digest], ChunkObject] = {}
        self._parts: dict[ContentKey, tuple[TailPart, ...]] = {}
        self._dropped: dict[str, None] = {}
        self._last_number = 0
        self._applying: MemoryCatalogNode | None = None
        self.generations: Counter[OperationId] = Counter()

    def join(self) -> MemoryCatalogNode:
        """Return another node's view."""
        return MemoryCatalogNode(self)

    # Submissions.

    def apply_as(
        self, node: MemoryCatalogNode, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        with self.lock:
            self._applying = node
            results = []
            for submission in batch:
                results.append(conflict := self._submit(submission))
                if conflict is None:
                    self._settle(node, submission)
            return results

    def _settle(self, node: MemoryCatalogNode, submission: Sequence[Mutation]) -> None:
        for mutation in submission:
            if isinstance(mutation, SealChunk):
                self._holds.pop((node, mutation.digest), None)
            elif isinstance(mutation, RecordTail):
                recorded = self._parts.get(mutation.key, ())
                self.drop(set(mutation.parts) - set(recorded))
        for key, parts in list(self._parts.items()):
            building = self._building.get(key)
            end = float("inf") if building is None else building.prefix_bytes
            self._parts[key] = tuple(part for part in parts if part.end > end)
            self.drop(set(parts) - set(self._parts[key]))
            if building is None:
                del self._parts[key]

    def drop(self, parts: set[TailPart]) -> None:
        recorded = {part.name for kept in self._parts.values() for part in kept}
        self._dropped |= dict.fromkeys({part.name for part in parts} - recorded)

    def _perform(self, mutation: Mutation) -> None:
        if isinstance(mutation, RecordTail) and not is_response_key(mutation.key):
            building = self._building.get(mutation.key)
            if building is not None and mutation.offset > building.durable_offset:
                old = self._parts.get(mutation.key, ())
                self._put(self._parts, mutation.key, mutation.parts)
                kept = {part.name for part in mutation.parts}
                gone = {part for part in old if part.name not in kept}
                self._after.append(lambda: self.drop(gone))
            mutation = RecordOffset(mutation.key, mutation.offset)
        super()._perform(mutation)

    def _seal(self, seal: SealChunk) -> None:
        building = self._building.get(seal.key)
        if building is None and self._may_respond(seal.key):
            building = Building(self._chunk_size)
        if building is None or seal.index in building.pieces:
            return
        assert self._applying is not None
        is_held = (self._applying, seal.digest) in self._holds
        if not is_held and seal.digest not in self.named_chunks():
            raise StorageConflict(
                f"chunk {seal.index} is not held by the node that seals it"
            )
        self._put(self._lengths, seal.digest, seal.length)
        pieces = {**building.pieces, seal.index: seal}
        self._put(self._building, seal.key, replace(building, pieces=pieces))

    # Objects.

    def content(self, key: ContentKey) -> ContentState | None:
        with self.lock:
            building = self._building.get(key)
            if building is None:
                return None
            prefix = building.prefix
            return ContentState(
                chunk_size=building.chunk_size,
                generation=max(1, self.generations[OperationId(key)]),
                prefix=prefix,
                prefix_bytes=building.prefix_bytes,
                durable_offset=building.durable,
                beyond=tuple(sorted(at for at in building.pieces if at > prefix)),
                parts=self._parts.get(key, ()),
            )

    def reopen(self, key: ContentKey, prefix: int, parts: tuple[TailPart, ...]) -> None:
        with self.lock:
            building = self._building[key]
            pieces = {at: p for at, p in building.pieces.items() if at < prefix}
            self._building[key] = replace(
                building, pieces=pieces, durable_offset=building.durable
            )
            old, self._parts[key] = self._parts.get(key, ()), parts
            self.drop(set(old) - set(parts))

    def discard(self, key: ContentKey) -> None:
        with self.lock:
            self._building.pop(key, None)

    def piece(self, key: ContentKey, index: int) -> ChunkObject | None:
        with self.lock:
            building = self._building.get(key)
            piece = None if building is None else building.pieces.get(index)
            return None if piece is None else self._objects[piece.digest]

    def recipe(self, digest: Digest) -> AnyRecipe | None:
        return self._recipes.get(digest)

    def objects(self, digests: Sequence[Digest]) -> Mapping[Digest, ChunkObject]:
        with self.lock:
            return {d: self._objects[d] for d in digests if d in self._objects}

    def hold_as(
        self, node: MemoryCatalogNode, digests: Sequence[Digest]
    ) -> list[ChunkObject]:
        with self.lock:
            held = []
            for digest in digests:
                chunk = self._objects.get(digest)
                if chunk is None:
                    self._last_number += 1
                    chunk = ChunkObject(digest, self._last_number)
                    self._objects[digest] = chunk
                self._holds[node, digest] = chunk
                held.append(chunk)
            return held

    def unhold_as(self, node: MemoryCatalogNode, digests: Sequence[Digest]) -> None:
        with self.lock:
            for digest in digests:
                self._holds.pop((node, digest), None)

    def end_holds(self, node: MemoryCatalogNode) -> None:
        with self.lock:
            self._holds = {at: c for at, c in self._holds.items() if at[0] is not node}

    def knows_seal(self, seal: SealChunk) -> bool:
        with self.lock:
            building = self._building.get(seal.key)
            if building is None:
                return not self._may_begin(seal.key)
            return seal.index in building.pieces

    def _may_begin(self, key: ContentKey) -> bool:
        return is_response_key(key) and self._may_respond(key)

    def pin(self, digest: Digest) -> bool:
        with self.lock:
            if digest not in self._recipes:
                return False
            self._readers[digest] += 1
            return True

    def unpin(self, digest: Digest) -> None:
        with self.lock:
            self._readers[digest] -= 1

    def release_rows(self, limit: int) -> Collected:
        with self.lock:
            return Collected(recipes=self.release_recipes(limit))

    def condemn(self, limit: int) -> list[tuple[ChunkObject, int]]:
        with self.lock:
            named = self.named_chunks() | {digest for _, digest in self._holds}
            for digest in [each for each in self._objects if each not in named][:limit]:
                chunk = self._objects.pop(digest)
                self._condemned[chunk] = self._lengths.pop(digest, 0)
            return list(self._condemned.items())[:limit]

    def forget(self, chunks: Sequence[ChunkObject]) -> None:
        with self.lock:
            for chunk in chunks:
                self._condemned.pop(chunk, None)

    def dropped_parts(self, limit: int) -> list[str]:
        with self.lock:
            return list(self._dropped)[:limit]

    def forget_parts(self, names: Sequence[str]) -> None:
        with self.lock:
            for name in names:
                self._dropped.pop(name, None)

    def known_objects(self, chunks: Sequence[ChunkObject]) -> set[ChunkObject]:
        with self.lock:
            return {
                chunk
                for chunk in chunks
                if self._objects.get(chunk.digest) == chunk or chunk in self._condemned
            }

    def known_parts(self, names: Sequence[str]) -> set[str]:
        with self.lock:
            known = {part.name for parts in self._parts.values() for part in parts}
            return set(names) & (known | self._dropped.keys())


def _whole(catalog: MemoryCatalog, call: Callable[P, T]) -> Callable[P, T]:
    """Return *call* as a whole step."""

    @wraps(call)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with catalog.lock:
            return call(*args, **kwargs)

    return locked


class MemoryCatalogNode:
    """What one node sees and does. See :class:`trioresume.store.port.ObjectCatalog`."""

    sharing = None
    on_lost: Callable[[OperationId | None], None] | None = None

    def __init__(self, catalog: MemoryCatalog) -> None:
        self.catalog = catalog
        self.is_dead = False
        whole = catalog
        self.check = _whole(whole, catalog.check)
        self.operation = _whole(whole, catalog.operation)
        self.operation_owned_by = _whole(whole, catalog.operation_owned_by)
        self.operations_in = _whole(whole, catalog.operations_in)
        self.count_operations = _whole(whole, catalog.count_operations)
        self.expiring = _whole(whole, catalog.expiring)
        self.expire_file = _whole(whole, catalog.expire_file)
        self.file = _whole(whole, catalog.file)
        self.meta = _whole(whole, catalog.meta)
        self.due_events = _whole(whole, catalog.due_events)
        self.events = _whole(whole, catalog.events)
        self.event_count = _whole(whole, catalog.event_count)
        self.usage = _whole(whole, catalog.usage)
        self.total_usage = _whole(whole, catalog.total_usage)
        self.take_room = _whole(whole, catalog.take_room)
        self.sealed_content = _whole(whole, catalog.sealed_content)
        self.parts_of = _whole(whole, catalog.parts_of)
        self.content = catalog.content
        self.reopen = catalog.reopen
        self.discard = catalog.discard
        self.piece = catalog.piece
        self.recipe = catalog.recipe
        self.objects = catalog.objects
        self.knows_seal = catalog.knows_seal
        self.pin = catalog.pin
        self.unpin = catalog.unpin
        self.release_rows = catalog.release_rows
        self.condemn = catalog.condemn
        self.forget = catalog.forget
        self.dropped_parts = catalog.dropped_parts
        self.forget_parts = catalog.forget_parts
        self.known_objects = catalog.known_objects
        self.known_parts = catalog.known_parts

    def owns(self, id: OperationId) -> bool:
        return not self.is_dead

    def generation(self, id: OperationId) -> int:
        return max(1, self.catalog.generations[id])

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        if self.is_dead:
            raise StorageError("this node was taken for dead")
        return self.catalog.apply_as(self, batch)

    def hold(self, digests: Sequence[Digest]) -> list[ChunkObject]:
        if self.is_dead:
            raise StorageError("this node was taken for dead")
        return self.catalog.hold_as(self, digests)

    def unhold(self, digests: Sequence[Digest]) -> None:
        self.catalog.unhold_as(self, digests)

    def die(self) -> None:
        """End what the node holds, as the end of its lease does. It can write no more."""
        self.is_dead = True
        self.catalog.end_holds(self)

    def close(self) -> None:
        self.die()


class MemoryBucket:
    """See :class:`trioresume.store.objects.bucket.Bucket`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.objects: dict[str, bytes] = {}
        self.fail_next_put = False
        self.puts = self.bytes_put = self.gets = 0

    def put_absent(self, name: str, data: memoryview | bytes) -> bool:
        self._check()
        with self._lock:
            self.puts += 1
            if name in self.objects:
                return False
            self.objects[name] = bytes(data)
            self.bytes_put += len(data)
            return True

    def put(self, name: str, data: memoryview | bytes) -> None:
        self._check()
        with self._lock:
            self.puts += 1
            self.bytes_put += len(data)
            self.objects[name] = bytes(data)

    def _check(self) -> None:
        if self.fail_next_put:
            self.fail_next_put = False
            raise StorageUnavailable("the put failed, as it was told to")

    def get(self, name: str, start: int, length: int) -> bytes | None:
        with self._lock:
            self.gets += 1
            data = self.objects.get(name)
            return None if data is None else data[start : start + length]

    def delete(self, names: Sequence[str]) -> None:
        with self._lock:
            for name in names:
                self.objects.pop(name, None)

    def list(self, prefix: str, after: str, limit: int) -> list[ListedObject]:
        with self._lock:
            names = sorted(name for name in self.objects if name.startswith(prefix))
            names = names[bisect_right(names, after) :][:limit]
            return [ListedObject(name, len(self.objects[name]), 0.0) for name in names]

    def close(self) -> None:
        """Do nothing: memory needs no closing."""
