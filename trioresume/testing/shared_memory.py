"""One store in memory for several processes, which are only played: for tests of sharing.

:class:`SharedMemory` is what the processes share. Each :meth:`SharedMemory.join` is a process:
a :class:`~trioresume.store.port.Store` with its own :class:`~trioresume.store.port.Sharing`.
It can be stopped (:attr:`SharedMemoryStore.is_stopped`), so that it takes no notice, and killed
(:meth:`SharedMemoryStore.kill`), so that it owns nothing and can write no more.

Claims block, so the calls of these stores are made in worker threads, as those of a store on
disk. One lock makes every call a whole step.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from trioresume.errors import CallerError, StaleWriter, StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    MOST_TOLD,
    Abandoned,
    Changed,
    Claimed,
    CreateOperation,
    ForgetOperation,
    Missed,
    Mutation,
    Notice,
    OperationId,
    Told,
    Wanted,
    changed_operations,
    operation_of,
)
from trioresume.testing.memory_store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trioresume.errors import StorageConflict
    from trioresume.store.port import (
        Collected,
        Content,
        ContentKey,
        ContentReader,
        ContentWriter,
        EventRecord,
        FileRecord,
        Flush,
        OperationRecord,
        RecordOffset,
        Seal,
        SealChunk,
        Usage,
    )

__all__ = ["SharedMemory", "SharedMemoryStore"]

T = TypeVar("T")

TAKEOVER_TIMEOUT = 1.0
"""Seconds until an owner that does not answer a claim loses the operation."""

_CALLING = (
    OperationState.COMPLETE,
    OperationState.PROCESSING,
    OperationState.ABANDONED,
)


@dataclass(eq=False, slots=True)
class _Owned:
    """Who owns an operation."""

    owner: SharedMemoryStore | None = None
    generation: int = 0
    refused: int = 0
    """How many claims owners have refused."""


@dataclass(eq=False)
class _World:
    """Everything that the processes share. Used under the lock."""

    store: MemoryStore
    timeout: float
    lock: threading.RLock = field(default_factory=threading.RLock)
    owned: dict[OperationId, _Owned] = field(default_factory=dict)
    processes: list[SharedMemoryStore] = field(default_factory=list)
    abandoned: dict[OperationId, SharedMemoryStore] = field(default_factory=dict)
    """Calls that nobody has taken up yet, and who was told to do it."""
    changed: threading.Condition = field(init=False)
    """Notified at each change of an owner, and each refusal."""

    def __post_init__(self) -> None:
        self.changed = threading.Condition(self.lock)

    def owner(self, id: OperationId) -> SharedMemoryStore | None:
        known = self.owned.get(id)
        return None if known is None else known.owner

    def give(self, id: OperationId, owner: SharedMemoryStore | None) -> None:
        """Make *owner* the owner. Nobody else can write the operation from now on."""
        known = self.owned.setdefault(id, _Owned())
        if known.owner is owner:
            return
        if known.owner is not None:
            known.owner.lose(id)
        known.owner = owner
        known.generation += owner is not None
        self.changed.notify_all()
        self.tell_followers(id)

    def tell_followers(self, id: OperationId, notice: Notice | None = None) -> None:
        for process in self.processes:
            if process.followed[id]:
                process.notify(notice or Changed(id))


class SharedMemory:
    """What several processes share: a store in memory, and who owns its operations.

    An owner that does not answer a claim within *takeover_timeout* seconds is fenced off: its
    writers are stale, and its changes are refused.
    """

    def __init__(
        self,
        *,
        chunk_size: int = 4 * 1024 * 1024,
        takeover_timeout: float = TAKEOVER_TIMEOUT,
    ) -> None:
        self._world = _World(MemoryStore(chunk_size=chunk_size), takeover_timeout)

    @property
    def store(self) -> MemoryStore:
        """The store itself, which knows no owners. Use it while no process calls."""
        return self._world.store

    def join(self) -> SharedMemoryStore:
        """Return the store of one more process."""
        process = SharedMemoryStore(self._world)
        with self._world.lock:
            self._world.processes.append(process)
        return process

    def owner(self, id: OperationId) -> SharedMemoryStore | None:
        """Return the process that owns the operation."""
        with self._world.lock:
            return self._world.owner(id)

    def close(self) -> None:
        """Close every process."""
        for process in list(self._world.processes):
            process.close()


class SharedMemoryStore:
    """The store of one process, and its :class:`~trioresume.store.port.Sharing`."""

    blocking = True
    durable_at_once = False

    def __init__(self, world: _World) -> None:
        self._world = world
        self._notices: SimpleQueue[Notice | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._resumed = threading.Event()
        self._resumed.set()
        self._writers: list[_SharedWriter] = []
        self.followed: Counter[OperationId] = Counter()
        self.is_dead = False

    @property
    def sharing(self) -> SharedMemoryStore:
        return self

    # Faults.

    @property
    def is_stopped(self) -> bool:
        """Whether notices wait, as in a process that was stopped. Its calls still work."""
        return not self._resumed.is_set()

    @is_stopped.setter
    def is_stopped(self, stopped: bool) -> None:
        if stopped:
            self._resumed.clear()
        else:
            self._resumed.set()

    def miss(self) -> None:
        """Lose the notices that wait, and say so."""
        while not self._notices.empty():
            self._notices.get()
        self._notices.put(Missed())

    def kill(self) -> None:
        """End the process: it owns nothing, and each of its calls raises from now on."""
        world = self._world
        with world.lock:
            if self.is_dead:
                return
            self.is_dead = True
            world.processes.remove(self)
            owned = [o for o, known in world.owned.items() if known.owner is self]
            for operation in owned:
                world.give(operation, None)
            told = [o for o, to in world.abandoned.items() if to is self]
            for operation in [*owned, *told]:
                self._abandon(operation)
            for writer in self._writers:
                writer.end()
            world.changed.notify_all()
        self._resumed.set()
        self._notices.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _abandon(self, id: OperationId) -> None:
        """Have one other process take up a target's call."""
        world = self._world
        world.abandoned.pop(id, None)
        record = world.store.operation(id)
        others = [process for process in world.processes if process._thread is not None]
        if record is not None and record.state in _CALLING and others:
            world.abandoned[id] = others[0]
            others[0].notify(Abandoned(id))

    def close(self) -> None:
        """End the process in order: what it owns belongs to nobody then."""
        self.kill()

    def notify(self, notice: Notice) -> None:
        """Have *notice* delivered."""
        if self._thread is not None:
            self._notices.put(notice)

    def lose(self, id: OperationId) -> None:
        """Make the writers of an operation stale that another process owns from now on."""
        for writer in list(self._writers):
            if operation_of(writer.key) == id:
                writer.end()

    def _deliver(self, take: Callable[[Notice], None]) -> None:
        while True:
            notice = self._notices.get()
            self._resumed.wait()
            if notice is None:
                return
            take(notice)

    # Sharing.

    def listen(self, take: Callable[[Notice], None]) -> None:
        if self._thread is not None:
            raise CallerError("this process listens already")
        self._thread = threading.Thread(
            target=self._deliver, args=(take,), name="notices", daemon=True
        )
        self._thread.start()

    def claim(self, id: OperationId, *, ends: bool = False) -> bool:
        world = self._world
        deadline = time.monotonic() + world.timeout
        with world.lock:
            while True:
                self._check_alive()
                owner = world.owner(id)
                if owner is None or owner is self or owner._thread is None:
                    break
                owner.notify(Claimed(id, ends))
                refused = world.owned[id].refused
                while world.owner(id) is owner and world.owned[id].refused == refused:
                    if not world.changed.wait(deadline - time.monotonic()):
                        world.give(id, self)  # whatever the owner does, it is too late
                        return True
                    self._check_alive()
                if world.owner(id) is owner:
                    return False
                # A claim that was made at the same time was granted first: ask its process.
            world.give(id, self)
            world.abandoned.pop(id, None)
            return True

    def release(self, id: OperationId) -> None:
        with self._world.lock:
            if not self.is_dead and self._world.owner(id) is self:
                self._world.give(id, None)

    def refuse(self, id: OperationId) -> None:
        world = self._world
        with world.lock:
            if not self.is_dead and world.owner(id) is self:
                world.owned[id].refused += 1
                world.changed.notify_all()

    def want(self, id: OperationId, *, ends: bool = False) -> None:
        with self._world.lock:
            owner = self._world.owner(id)
            if owner is not None and not self.is_dead:
                owner.notify(Wanted(id, ends))

    def follow(self, id: OperationId) -> None:
        with self._world.lock:
            self.followed[id] = 1

    def unfollow(self, id: OperationId) -> None:
        with self._world.lock:
            del self.followed[id]

    def tell(self, id: OperationId, message: bytes) -> None:
        if len(message) > MOST_TOLD:
            raise CallerError(f"a message has at most {MOST_TOLD} bytes")
        with self._world.lock:
            if not self.is_dead and self._world.owner(id) is self:
                self._world.tell_followers(id, Told(id, message))

    # The catalog.

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        with self._world.lock:
            self._check_alive()
            return [self._submit(submission) for submission in batch]

    def _submit(self, submission: Sequence[Mutation]) -> StorageConflict | None:
        world = self._world
        changed = changed_operations(submission)
        for operation in changed:
            if world.owner(operation) is not self and (
                world.owner(operation) is not None
                or world.store.operation(operation) is not None
            ):
                return StaleWriter("another process owns the operation, or none does")
        (conflict,) = world.store.apply([submission])
        if conflict is None:
            for mutation in submission:
                if isinstance(mutation, CreateOperation):
                    world.give(mutation.record.id, self)
                elif isinstance(mutation, ForgetOperation):
                    world.give(mutation.operation, None)
            for operation in changed:
                world.tell_followers(operation)
        return conflict

    def _check_alive(self) -> None:
        if self.is_dead:
            raise StorageError("this process is dead")

    def _call(self, function: Callable[..., T], *args: object, **options: object) -> T:
        with self._world.lock:
            self._check_alive()
            return function(*args, **options)

    def _seen(self, record: OperationRecord | None) -> OperationRecord | None:
        if record is None:
            return None
        owner = self._world.owner(record.id)
        return replace(record, is_elsewhere=owner not in (None, self))

    @property
    def chunk_size(self) -> int:
        return self._world.store.chunk_size

    def check(self) -> None:
        self._call(self._world.store.check)

    def operation(self, id: OperationId) -> OperationRecord | None:
        return self._call(lambda: self._seen(self._world.store.operation(id)))

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None:
        store = self._world.store
        return self._call(lambda: self._seen(store.operation_owned_by(id, principal)))

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        def look() -> list[OperationRecord]:
            found = self._world.store.operations_in(states, limit, after)
            seen = [self._seen(record) for record in found]
            return [record for record in seen if record is not None]

        return self._call(look)

    def count_operations(self) -> Mapping[OperationState, int]:
        return self._call(self._world.store.count_operations)

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        return self._call(self._world.store.expiring, limit)

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]:
        return self._call(self._world.store.expire_file, token, now)

    def file(self, owner: str | None, name: str) -> FileRecord | None:
        return self._call(self._world.store.file, owner, name)

    def meta(self, name: str) -> str | None:
        return self._call(self._world.store.meta, name)

    def due_events(
        self, now: float, limit: int, *, tasks: bool = False
    ) -> tuple[list[EventRecord], float | None]:
        return self._call(self._world.store.due_events, now, limit, tasks=tasks)

    def events(
        self, *, dead: bool, after: int, limit: int, tasks: bool = False
    ) -> list[EventRecord]:
        events = self._world.store.events
        return self._call(events, dead=dead, after=after, limit=limit, tasks=tasks)

    def event_count(self) -> int:
        return self._call(self._world.store.event_count)

    def usage(self, principal: str | None) -> Usage:
        return self._call(self._world.store.usage, principal)

    def total_usage(self) -> Usage:
        return self._call(self._world.store.total_usage)

    def take_room(self, size: int) -> None:
        self._call(self._world.store.take_room, size)

    # The content.

    def new_writer(self, key: ContentKey) -> ContentWriter:
        return self._call(lambda: self._writer(self._world.store.new_writer(key), key))

    def open_writer(self, key: ContentKey) -> ContentWriter:
        """Open a writer. Only the owner may write, unless nobody knows the operation yet."""

        def begin() -> ContentWriter:
            operation = operation_of(key)
            store, owner = self._world.store, self._world.owner(operation)
            if owner is not self and (
                owner is not None or store.operation(operation) is not None
            ):
                raise StaleWriter("another process owns the operation, or none does")
            return self._writer(store.open_writer(key), key)

        return self._call(begin)

    def _writer(self, writer: ContentWriter, key: ContentKey) -> _SharedWriter:
        self._writers = [each for each in self._writers if not each.is_closed]
        shared = _SharedWriter(self, self._world, writer, key)
        self._writers.append(shared)
        return shared

    def offset(self, key: ContentKey) -> int:
        return self._call(self._world.store.offset, key)

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk] = ()
    ) -> Content:
        return self._call(self._world.store.sealed_content, key, seals)

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        return self._call(self._world.store.parts_of, content)

    def open_reader(self, content: Content) -> ContentReader:
        reader = self._call(self._world.store.open_reader, content)
        return _SharedReader(self._world, reader)

    def open_prefix(self, key: ContentKey, length: int) -> ContentReader:
        reader = self._call(self._world.store.open_prefix, key, length)
        return _SharedReader(self._world, reader)

    def collect(self, limit: int) -> Collected:
        return self._call(self._world.store.collect, limit)

    def sweep(self) -> None:
        self._call(self._world.store.sweep)


class _SharedWriter:
    """A writer whose calls, and those of its seals and flushes, hold the lock."""

    def __init__(
        self,
        process: SharedMemoryStore,
        world: _World,
        writer: ContentWriter,
        key: ContentKey,
    ) -> None:
        self.key = key
        self.is_closed = False
        self._process = process
        self._world = world
        self._inner = writer

    def end(self) -> None:
        """Make it stale, because its process owns the operation no longer."""
        self._inner.close()

    @property
    def chunk_size(self) -> int:
        return self._inner.chunk_size

    @property
    def offset(self) -> int:
        return self._inner.offset

    def append(self, data: bytes | bytearray | memoryview) -> list[Seal]:
        with self._world.lock:
            seals = self._inner.append(data)
        return [_SharedSeal(self._world, seal) for seal in seals]

    def flush(self) -> Flush | None:
        with self._world.lock:
            flush = self._inner.flush()
        return None if flush is None else _SharedFlush(self._world, flush)

    def finish(self) -> list[Seal]:
        with self._world.lock:
            seals = self._inner.finish()
        return [_SharedSeal(self._world, seal) for seal in seals]

    def relax(self) -> None:
        with self._world.lock:
            self._inner.relax()

    def close(self) -> None:
        with self._world.lock:
            self.is_closed = True
            self._inner.close()


class _SharedSeal:
    def __init__(self, world: _World, seal: Seal) -> None:
        self.index = seal.index
        self._world = world
        self._inner = seal

    def run(self) -> SealChunk:
        with self._world.lock:
            return self._inner.run()


class _SharedFlush:
    def __init__(self, world: _World, flush: Flush) -> None:
        self.offset = flush.offset
        self._world = world
        self._inner = flush

    def run(self) -> RecordOffset:
        with self._world.lock:
            return self._inner.run()


class _SharedReader:
    def __init__(self, world: _World, reader: ContentReader) -> None:
        self.length = reader.length
        self._world = world
        self._inner = reader

    def read(self, offset: int, size: int) -> bytes:
        with self._world.lock:
            return self._inner.read(offset, size)

    def extent(self, offset: int, size: int) -> None:
        """Return None: the bytes lie in no file and must be read."""

    def close(self) -> None:
        with self._world.lock:
            self._inner.close()
