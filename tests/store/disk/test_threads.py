"""The disk store as the server uses it: many threads at once."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.store.helpers import FaultyDisk, collect_all, do, read_content, record
from trioresume.errors import StaleWriter, StorageConflict
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.port import (
    Collected,
    Content,
    CreateOperation,
    EndOperation,
    FreezeContent,
    Mutation,
    OperationId,
    RecordOffset,
    SealChunk,
    request_key,
)

CHUNK = 64


class Committer:
    """Applies submissions from one thread, in batches, as the server does."""

    def __init__(self, store: DiskStore) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[
            tuple[Sequence[Mutation], Future[StorageConflict | None]] | None
        ] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def commit(self, *mutations: Mutation) -> Future[StorageConflict | None]:
        future: Future[StorageConflict | None] = Future()
        self._queue.put((mutations, future))
        return future

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            batch = [item]
            while not self._queue.empty() and len(batch) < 20:
                item = self._queue.get()
                if item is None:
                    self._queue.put(None)
                    break
                batch.append(item)
            results = self._store.apply([mutations for mutations, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()


def content_of(number: int) -> bytes:
    """Few different contents with equal prefixes, so that chunks are shared."""
    return random.Random(1).randbytes(3000) + random.Random(number % 3).randbytes(500)


class Upload:
    """One upload, taken over again and again; seals go their own way."""

    def __init__(
        self, store: DiskStore, committer: Committer, pool: ThreadPoolExecutor, at: int
    ) -> None:
        self.id = OperationId(f"upload{at}")
        self.data = content_of(at)
        self._store = store
        self._committer = committer
        self._pool = pool
        self._random = random.Random(at)
        self._pending: list[Future[None]] = []

    def _later(self, run: Callable[[], SealChunk | RecordOffset]) -> None:
        def run_and_commit() -> None:
            assert self._committer.commit(run()).result() is None

        self._pending.append(self._pool.submit(run_and_commit))

    def run(self) -> Content:
        key = request_key(self.id)
        assert self._committer.commit(CreateOperation(record(self.id))).result() is None
        writer = self._store.open_writer(key)
        while writer.offset < len(self.data):
            choice = self._random.random()
            if choice < 0.1:
                old, writer = writer, self._store.open_writer(key)
                assert writer.offset == old.offset
                with pytest.raises(StaleWriter):
                    old.append(b"late")
            elif choice < 0.2:
                writer.close()
                writer = self._store.open_writer(key)
            elif choice < 0.3 and (flush := writer.flush()) is not None:
                self._settle()
                self._later(flush.run)
            at = writer.offset
            for seal in writer.append(
                self.data[at : at + self._random.randint(1, 200)]
            ):
                self._later(seal.run)
            reader = self._store.open_prefix(key, writer.offset)
            at = self._random.randrange(writer.offset)
            assert self.data[at:].startswith(reader.read(at, 100))
            reader.close()
        return self._finish()

    def _settle(self) -> None:
        for future in self._pending:
            future.result()
        self._pending = []

    def _finish(self) -> Content:
        key = request_key(self.id)
        writer = self._store.open_writer(key)
        self._settle()
        last = [seal.run() for seal in writer.finish()]
        content = self._store.sealed_content(key, last)
        frozen = self._committer.commit(*last, FreezeContent(key, content))
        assert frozen.result() is None
        writer.close()
        return content


def test_uploads_takeovers_and_collection_at_once(tmp_path: Path) -> None:
    """Whatever runs beside what, every content is right and nothing is left over."""
    store = open_store(tmp_path / "data", chunk_size=CHUNK, disk=FaultyDisk())
    committer = Committer(store)
    over = threading.Event()

    def keep_collecting() -> None:
        while not over.is_set():
            if store.collect(7) == Collected():
                over.wait(0.001)

    def use(pool: ThreadPoolExecutor, number: int) -> None:
        content = Upload(store, committer, pool, number).run()
        assert read_content(store, content) == content_of(number)
        if number % 2:
            committer.commit(EndOperation(OperationId(f"upload{number}"), 1.0)).result()

    with ThreadPoolExecutor(4) as seals, ThreadPoolExecutor(6) as uploads:
        collector = uploads.submit(keep_collecting)
        futures = [uploads.submit(use, seals, number) for number in range(20)]
        try:
            for future in futures:
                future.result(timeout=60)
        finally:
            over.set()
        collector.result()
    committer.stop()
    for number in range(0, 20, 2):
        found = store.operation(OperationId(f"upload{number}"))
        assert found is not None
        assert found.content is not None
        assert read_content(store, found.content) == content_of(number)
        do(store, EndOperation(found.id, 1.0))
    collect_all(store)
    left = [p for p in (tmp_path / "data" / "chunks").rglob("*") if p.is_file()]
    left += (tmp_path / "data" / "tails").iterdir()
    assert left == []
    store.close()


def test_newest_of_many_racing_writers_is_the_only_one(tmp_path: Path) -> None:
    """Of writers opened at the same time exactly one can write (R21)."""
    store = open_store(tmp_path / "data", chunk_size=CHUNK, disk=FaultyDisk())
    do(store, CreateOperation(record("op")))
    key = request_key(OperationId("op"))
    with ThreadPoolExecutor(8) as pool:
        for expected in range(1, 30):
            writers = list(pool.map(lambda _: store.open_writer(key), range(8)))
            successes = 0
            for writer in writers:
                try:
                    writer.append(b"x")
                except StaleWriter:
                    continue
                successes += 1
            assert successes == 1
            assert store.offset(key) == expected
    store.close()
