"""Stands with a keeper and workers: real sockets, and processes that are threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import trio
from blake3 import blake3

from tests.store.helpers import CHUNK, DiskStand, FaultyDisk
from tests.store.shared import TAKEOVER_TIMEOUT
from trioresume.protocol.operation import OperationState
from trioresume.server.async_store.storage import Storage
from trioresume.server.workers.keeper import Keeper
from trioresume.store.port import Notice, Store
from trioresume.store.remote.worker_store import WorkerStore
from trioresume.store.shared_disk_store import SharedDiskStore, open_shared_store

PATIENCE = 20.0

Between = Callable[[socket.socket], socket.socket]
"""Puts something between a worker and the socket that it would have."""


class RunningKeeper:
    """A keeper with an event loop in a thread of its own."""

    def __init__(
        self,
        store: SharedDiskStore,
        *,
        takeover_timeout: float = TAKEOVER_TIMEOUT,
        end_process: Callable[[int], None] | None,
    ) -> None:
        self.store = store
        self._timeout = takeover_timeout
        self._end = end_process
        self._started: SimpleQueue[BaseException | None] = SimpleQueue()
        self._scope = trio.CancelScope()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()
        error = self._started.get(timeout=PATIENCE)
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as exc:
            self._started.put(exc)
            raise

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        storage = Storage(self.store, threads=4)
        self.keeper = Keeper(
            storage,
            self.store,
            takeover_timeout=self._timeout,
            end_process=None if self._end is None else self._end_process,
        )
        with self._scope:
            async with trio.open_nursery() as outer:
                await outer.start(storage.run_commits)
                try:
                    with storage.running():
                        async with trio.open_nursery() as self._nursery:
                            await self._nursery.start(self.keeper.run)
                            self._started.put(None)
                finally:
                    storage.stop()

    async def _end_process(self, pid: int) -> None:
        assert self._end is not None
        await trio.to_thread.run_sync(self._end, pid)

    def connect(self, pid: int | None = None) -> socket.socket:
        """Return a socket to the keeper, for the process *pid* or the one that greets."""
        ours, theirs = socket.socketpair()
        serve = partial(self.keeper.serve, ours, pid)
        trio.from_thread.run_sync(
            self._nursery.start_soon, serve, trio_token=self._token
        )
        return theirs

    def stop(self) -> None:
        """End the keeper, and close its store."""
        try:
            trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        except trio.RunFinishedError:
            pass
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the keeper does not end"
        if not self._is_closed:
            self._is_closed = True
            self.store.close()


class KeeperStand:
    """A keeper, and any number of workers in this process, for the contract of sharing."""

    def __init__(
        self,
        path: Path,
        between: Between | None = None,
        *,
        takeover_timeout: float = TAKEOVER_TIMEOUT,
    ) -> None:
        self.data_dir = path / "shared"
        self.disk = FaultyDisk()
        self._between = between or (lambda sock: sock)
        self._pids = count(1)
        self._workers: dict[int, PlayedWorker] = {}
        store = open_shared_store(self.data_dir, chunk_size=CHUNK, disk=self.disk)
        self.running = RunningKeeper(
            store, end_process=self._end_process, takeover_timeout=takeover_timeout
        )

    def _end_process(self, pid: int) -> None:
        if pid in self._workers:
            self._workers[pid].die()

    def join(self, between: Between | None = None) -> PlayedWorker:
        pid = next(self._pids)
        sock = (between or self._between)(self.running.connect(pid))
        worker = self._workers[pid] = PlayedWorker(sock, self.data_dir, self.disk, pid)
        return worker

    def stop(self, store: Store) -> None:
        assert isinstance(store, PlayedWorker)
        store.goes_on.clear()

    def go_on(self, store: Store) -> None:
        assert isinstance(store, PlayedWorker)
        store.goes_on.set()

    def kill(self, store: Store) -> None:
        assert isinstance(store, PlayedWorker)
        pid = store.pid
        store.die()
        # What follows from it has happened once the keeper has forgotten the process.
        while pid in self.running.keeper.workers:
            threading.Event().wait(0.001)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.die()
        self.running.stop()


class PlayedWorker(WorkerStore):
    """A worker's store, whose process can be stopped and killed."""

    def __init__(
        self, sock: socket.socket, data_dir: Path, disk: FaultyDisk, pid: int
    ) -> None:
        self.pid = pid
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.was_lost = threading.Event()
        super().__init__(
            sock,
            str(data_dir),
            on_lost=self.was_lost.set,
            make_disk=lambda durable: disk,
            new_hasher=blake3,
            pid=pid,
        )
        sharing = self.sharing
        assert sharing is not None
        self._listen = sharing.listen
        sharing.listen = self._listen_while_going  # type: ignore[method-assign]

    def _listen_while_going(self, take: Callable[[Notice], None]) -> None:
        def take_later(notice: Notice) -> None:
            self.goes_on.wait()
            take(notice)

        self._listen(take_later)

    def die(self) -> None:
        """End as a process does that is killed."""
        self.was_lost.set()
        self.goes_on.set()
        self.cut()


class LoneWorker(WorkerStore):
    """The only worker of a keeper, which ends with it."""

    running: RunningKeeper

    def close(self) -> None:
        super().close()
        self.running.stop()


class RemoteStand(DiskStand):
    """A worker's store, for the contract of all stores."""

    def __init__(self, path: Path, between: Between) -> None:
        self._between = between
        super().__init__(path)

    def open(self, chunk_size: int = CHUNK) -> LoneWorker:  # type: ignore[override]
        running = RunningKeeper(
            open_shared_store(self.data_dir, chunk_size=chunk_size, disk=self.disk),
            end_process=lambda pid: None,
        )
        sock = self._between(running.connect(1))
        worker = LoneWorker(
            sock,
            str(self.data_dir),
            on_lost=lambda: None,
            make_disk=lambda durable: self.disk,
            new_hasher=blake3,
            pid=1,
        )
        worker.running = running
        for found in worker.operations_in(list(OperationState), 1000, None):
            assert worker.sharing is not None
            assert worker.sharing.claim(found.id)
        return worker
