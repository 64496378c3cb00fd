"""Answers the questions of one worker. Its methods block: they are called in threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from trioresume.errors import StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog.chunk_lists import ContentRow
from trioresume.store.disk.opening import Opening
from trioresume.store.port import (
    Collected,
    Content,
    ContentKey,
    EventRecord,
    FileRecord,
    Mutation,
    OperationId,
    OperationRecord,
    SealChunk,
    Usage,
)
from trioresume.store.port.recipes import AnyRecipe, Digest
from trioresume.store.remote.wire import Questions
from trioresume.store.shared_disk_store import SharedDiskStore

__all__ = ["Desk"]


class Desk(Questions):
    """The questions of the worker *number*, answered by *store*.

    Each question without an answer of its own is one of the store's methods of the same name.
    """

    def __init__(self, store: SharedDiskStore, number: int) -> None:
        self._store = store
        self._number = number
        self._lock = threading.Lock()
        self._pins: Counter[Digest] = Counter()
        self._is_closed = False

    def operation(self, id: OperationId) -> OperationRecord | None:
        return self._store.operation(id, number=self._number)

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None:
        return self._store.operation_owned_by(id, principal, number=self._number)

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        return self._store.operations_in(states, limit, after, number=self._number)

    def count_operations(self) -> Mapping[OperationState, int]:
        return self._store.count_operations()

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        return self._store.expiring(limit)

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]:
        return self._store.expire_file(token, now)

    def file(self, owner: str | None, name: str) -> FileRecord | None:
        return self._store.file(owner, name)

    def meta(self, name: str) -> str | None:
        return self._store.meta(name)

    def due_events(
        self, now: float, limit: int, tasks: bool
    ) -> tuple[list[EventRecord], float | None]:
        return self._store.due_events(now, limit, tasks=tasks)

    def events(
        self, dead: bool, after: int, limit: int, tasks: bool
    ) -> list[EventRecord]:
        return self._store.events(dead=dead, after=after, limit=limit, tasks=tasks)

    def event_count(self) -> int:
        return self._store.event_count()

    def usage(self, principal: str | None) -> Usage:
        return self._store.usage(principal)

    def total_usage(self) -> Usage:
        return self._store.total_usage()

    def sealed_content(self, key: ContentKey, seals: Sequence[SealChunk]) -> Content:
        return self._store.sealed_content(key, seals)

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        return self._store.parts_of(content)

    def collect(self, limit: int) -> Collected:
        return self._store.collect(limit)

    def sweep(self) -> None:
        self._store.sweep()

    def offset(self, key: ContentKey) -> int:
        return self._store.offset(key)

    def opening(self, key: ContentKey) -> Opening:
        return self._store.opening(self._number, key)

    def content(self, key: ContentKey) -> ContentRow | None:
        return self._store.content(key)

    def piece(self, key: ContentKey, index: int) -> Digest | None:
        return self._store.piece(key, index)

    def recipe(self, digest: Digest) -> AnyRecipe | None:
        return self._store.recipe(digest)

    def pinned_recipe(self, digest: Digest) -> AnyRecipe:
        recipe = self._store.pinned_recipe(digest)
        with self._lock:
            if not self._is_closed:
                self._pins[digest] += 1
                return recipe
        self._store.unpin(digest)
        raise StorageError("the process that asked has ended")

    def unpin(self, digest: Digest) -> None:
        """Take back a pin of :meth:`pinned_recipe`; ignored if there is none. Never blocks."""
        with self._lock:
            if not self._pins[digest]:
                del self._pins[digest]
                return
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]
        self._store.unpin(digest)

    def has_unsynced_before(self, epoch: int) -> bool:
        return self._store.has_unsynced_before(epoch)

    def is_unsynced_before(self, digest: Digest, epoch: int) -> bool:
        return self._store.is_unsynced_before(digest, epoch)

    def sync_names(self) -> int:
        return self._store.sync_names()

    def distrust(self, key: ContentKey) -> None:
        self._store.distrust(key)

    def restore_space(self) -> bool:
        return self._store.restore_space()

    def claim(self, id: OperationId, ends: bool) -> bool:
        raise NotImplementedError("the keeper answers this itself: it takes time")

    def close(self) -> None:
        """Take back every pin: the worker is gone."""
        with self._lock:
            self._is_closed = True
            pins, self._pins = self._pins, Counter()
        for digest in pins.elements():
            self._store.unpin(digest)
