"""Group commit: order, isolation, cancellation and the end (server/async_store/storage.py)."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import pytest
import trio
import trio.testing

from trioresume.errors import PeerError, StorageConflict, StorageError, StorageFull
from trioresume.server.async_store.storage import LONGEST_DELAY, Storage
from trioresume.server.async_store.threads import Lane
from trioresume.server.uploads.incoming_content import IncomingContent
from trioresume.store.port import (
    ContentKey,
    ContentWriter,
    Mutation,
    OperationId,
    Seal,
    SetMeta,
    Store,
    request_key,
)
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock


class _Recording:
    """As much of a store as group commit sees."""

    def __init__(self, *, blocking: bool = False) -> None:
        self.blocking = blocking
        self.batches: list[list[str]] = []
        self.applied: list[str] = []
        self.failing: set[str] = set()
        self.conflicting: set[str] = set()
        self.gate: threading.Event | None = None

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        if self.gate is not None:
            assert self.gate.wait(5)
        names = [cast("SetMeta", mutations[0]).name for mutations in batch]
        self.batches.append(names)
        if self.failing & set(names):
            raise StorageFull("no room")
        self.applied += [name for name in names if name not in self.conflicting]
        return [
            StorageConflict("not what was expected") if n in self.conflicting else None
            for n in names
        ]


def _storage(store: _Recording) -> Storage:
    return Storage(cast("Store", store), threads=2)


def _meta(name: str) -> SetMeta:
    return SetMeta(name, "")


async def _commit_all(storage: Storage, names: Sequence[str]) -> dict[str, str]:
    """Commit each in a task of its own, in order; what became of it."""
    outcomes: dict[str, str] = {}

    async def commit(name: str) -> None:
        try:
            await storage.commit(_meta(name))
            outcomes[name] = "done"
        except StorageError as exc:
            outcomes[name] = type(exc).__name__

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(commit, name)
    return outcomes


async def test_submissions_made_together_share_a_commit(autojump_clock: Clock) -> None:
    """A thousand uploads share one sync of the disk."""
    storage = _storage(store := _Recording())
    for number in range(100):
        storage.submit(_meta(str(number)))
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        await storage.commit(_meta("last"))
        storage.stop()
    assert store.applied == [*map(str, range(100)), "last"]
    assert len(store.batches) <= 2


async def test_order_is_that_of_the_calls(autojump_clock: Clock) -> None:
    """Over batches as within one."""
    storage = _storage(store := _Recording())
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        for number in range(50):
            storage.submit(_meta(f"{number}a"))
            storage.submit(_meta(f"{number}b"))
            if number % 3 == 0:
                await trio.testing.wait_all_tasks_blocked()
        storage.stop()
    assert store.applied == [f"{n}{c}" for n in range(50) for c in "ab"]
    assert len(store.batches) > 10


async def test_failing_submission_does_not_hurt_the_others(
    autojump_clock: Clock,
) -> None:
    """Promise 10: the batch is tried again one by one, in order."""
    storage = _storage(store := _Recording())
    store.failing = {"3"}
    store.conflicting = {"5"}
    names = [str(number) for number in range(8)]
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        outcomes = await _commit_all(storage, names)
        storage.stop()
    assert outcomes.pop("3") == "StorageFull"
    assert outcomes.pop("5") == "StorageConflict"
    assert set(outcomes.values()) == {"done"}
    assert sorted(store.applied) == ["0", "1", "2", "4", "6", "7"]


async def test_observer_is_told_of_what_was_applied_only(autojump_clock: Clock) -> None:
    """Expiry and collection look into the catalog when they hear of something."""
    storage = _storage(store := _Recording())
    store.conflicting = {"no"}
    seen: list[str] = []
    storage.add_observer(
        lambda mutations: seen.extend(
            cast("SetMeta", mutation).name for mutation in mutations
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        await _commit_all(storage, ["yes", "no"])
        storage.stop()
    assert seen == ["yes"]


async def test_cancelled_waiter_does_not_take_its_submission_back() -> None:
    """What was submitted happens; also when the disk is slow."""
    storage = _storage(store := _Recording(blocking=True))
    store.gate = threading.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        with trio.move_on_after(0.05) as scope:
            await storage.commit(_meta("a"))
        assert scope.cancelled_caught
        with trio.move_on_after(0.05):
            await storage.commit(_meta("b"))
        store.gate.set()
        storage.stop()
    assert store.applied == ["a", "b"]


async def test_stop_applies_what_was_submitted(autojump_clock: Clock) -> None:
    """The last commits of a shutdown are not lost."""
    storage = _storage(store := _Recording())
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        storage.submit(_meta("a"))
        storage.stop()
        storage.submit(_meta("b"))
    assert store.applied == ["a", "b"]


async def test_commits_go_on_while_the_service_is_cancelled(
    autojump_clock: Clock,
) -> None:
    """Tasks that are being cancelled still submit; that happens."""
    storage = _storage(store := _Recording())

    async def last_words() -> None:
        try:
            await trio.sleep_forever()
        finally:
            storage.submit(_meta("last"))
            storage.stop()

    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        nursery.start_soon(last_words)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert store.applied == ["last"]


async def test_store_that_may_block_is_called_in_a_thread() -> None:
    """Rule 1 of the port: and one that cannot is called at once, after a checkpoint."""
    for blocking in (True, False):
        storage = _storage(_Recording(blocking=blocking))
        with storage.running():
            thread = await storage.run(threading.get_ident)
        assert (thread != threading.get_ident()) == blocking


async def test_call_in_a_thread_is_one_whole_step() -> None:
    """Cancellation waits for it; then its result is there, and the next await ends."""
    storage = _storage(_Recording(blocking=True))
    begun, may_end = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert may_end.wait(5)
        return "done"

    results = []
    scope = trio.CancelScope()

    async def call() -> None:
        with scope:
            results.append(await storage.run(work))
            await trio.sleep_forever()

    with storage.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.to_thread.run_sync(begun.wait)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert results == []
            may_end.set()
        with pytest.raises(StorageFull, match="no room"):
            await storage.run(_raise_full)
    assert results == ["done"]
    assert scope.cancelled_caught


def _raise_full() -> None:
    raise StorageFull("no room")


async def test_each_waiter_gets_an_error_of_its_own(autojump_clock: Clock) -> None:
    """One exception raised in two tasks would mix up their tracebacks."""
    storage = _storage(store := _Recording())
    store.failing = {"a"}
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        with pytest.raises(StorageFull, match="no room") as caught:
            await storage.commit(_meta("a"))
        assert isinstance(caught.value.__cause__, StorageFull)
        storage.stop()


async def test_bug_in_a_commit_is_no_success(autojump_clock: Clock) -> None:
    """Promise 1: it ends the service, and its waiters hear of it before that."""
    storage = _storage(store := _Recording())
    outcomes: dict[str, str] = {}

    async def wait() -> None:
        with trio.CancelScope(shield=True):
            outcomes.update(await _commit_all(storage, ["a", "b"]))

    def broken(batch: Sequence[Sequence[Mutation]]) -> list[StorageConflict | None]:
        raise ZeroDivisionError

    store.apply = broken  # type: ignore[method-assign]
    with pytest.RaisesGroup(ZeroDivisionError):
        async with trio.open_nursery() as nursery:
            await nursery.start(storage.run_commits)
            nursery.start_soon(wait)
    assert outcomes == {"a": "StorageError", "b": "StorageError"}


class _Steps(trio.abc.Instrument):
    """How often the committing task was resumed."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "run_commits" in task.name


async def test_what_can_wait_wakes_nobody(autojump_clock: Clock) -> None:
    """It is committed with what cannot, or when it has waited for long enough."""
    storage = _storage(store := _Recording())
    trio.lowlevel.add_instrument(steps := _Steps())
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        storage.submit_later(_meta("0"))
        await trio.testing.wait_all_tasks_blocked()
        before = steps.count
        for number in range(1, 20):
            storage.submit_later(_meta(str(number)))
            await trio.testing.wait_all_tasks_blocked()
        assert steps.count == before > 0
        assert store.batches == []
        await trio.sleep(LONGEST_DELAY + 0.01)
        assert store.batches == [[str(number) for number in range(20)]]
        storage.submit_later(_meta("later"))
        await storage.commit(_meta("now"))
        assert store.batches[1:] == [["later", "now"]]
        storage.stop()
    trio.lowlevel.remove_instrument(steps)


class _Owner:
    """Whose content it is: notes what is to be run, and refuses nothing."""

    def __init__(self) -> None:
        self.started: list[Callable[..., Awaitable[None]]] = []

    def start(self, function: Callable[..., object], *args: object) -> None:
        self.started.append(cast("Callable[..., Awaitable[None]]", function))

    def reserve(self, end: int) -> None:
        pass


async def test_one_task_names_all_chunks_of_an_upload(autojump_clock: Clock) -> None:
    """While they have no names nothing is announced; what ends it ends nobody's wait.

    Whoever waited starts over then, from what the store has.
    """
    store = MemoryStore(chunk_size=64)
    storage = Storage(store, threads=1)  # which nobody commits for
    owner = _Owner()
    key = request_key(OperationId("A" * 22))
    incoming = IncomingContent(key, 0, storage, owner)
    incoming.begin()
    async with incoming.writing(await incoming.turns.end_writer()):
        for _ in range(3):
            incoming.append(memoryview(bytes(64)))
    (naming,) = owner.started
    with trio.move_on_after(1) as waiting:
        await incoming.make_durable()
    assert waiting.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(naming)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    failure = incoming.failure
    assert isinstance(failure, StorageError)
    with trio.fail_after(1):
        await incoming.make_durable()
    assert incoming.failure is None


class _FullOnce(MemoryStore):
    """A store whose writers meet a full disk once, and then not any more."""

    blocking = True

    def new_writer(self, key: ContentKey) -> ContentWriter:
        writer = super().new_writer(key)
        append, gate = writer.append, self.gate

        def full(data: bytes | bytearray | memoryview) -> Sequence[Seal]:
            vars(writer)["append"] = append
            assert gate.wait(5)
            raise StorageFull("no room")

        vars(writer)["append"] = full
        return writer

    gate = threading.Event()


async def test_nothing_follows_what_was_not_written() -> None:
    """The next write is called before the event loop learns of the one that failed."""
    store = _FullOnce(chunk_size=64)
    storage = Storage(store, threads=1)
    key = request_key(OperationId("A" * 22))
    with storage.running():
        incoming = IncomingContent(key, 0, storage, _Owner())
        incoming.begin()
        with pytest.raises(StorageFull):
            async with incoming.writing(await incoming.turns.end_writer()):
                incoming.append(memoryview(b"first"))
                incoming.append(memoryview(b"second"))
                store.gate.set()
                await incoming.written()
        assert store.offset(key) == 0
        assert await incoming.make_durable() == 0


class _Blocking(MemoryStore):
    """A store that is called in threads."""

    blocking = True


async def test_an_upload_that_is_taken_over_is_written_before_others() -> None:
    """What its newcomer waits for does not stand behind what others have to write."""
    store = _Blocking(chunk_size=64)
    storage = Storage(store, threads=1)
    key = request_key(OperationId("A" * 22))
    offsets: list[int] = []
    started, gate = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert gate.wait(5)

    async def write() -> None:
        with pytest.raises(PeerError):
            async with incoming.writing(await incoming.turns.end_writer()):
                incoming.append(memoryview(b"content"))
                await trio.sleep_forever()

    async def take_over() -> None:
        await incoming.turns.end_writer()

    with storage.running():
        incoming = IncomingContent(key, 0, storage, _Owner())
        incoming.begin()
        busy, other = Lane(storage.workers), Lane(storage.workers)
        busy.put(hold, lambda result, error: None)
        assert started.wait(5)
        other.put(lambda: offsets.append(store.offset(key)), lambda result, error: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(take_over)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        await other.until(0)
        incoming.close()
    assert offsets == [len(b"content")]
