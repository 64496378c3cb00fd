"""The parent of the workers: keeps the catalog, and has the listeners opened once.

::

    listeners opened
      store open           with its lock, which the workers hold, too
        commits            of all workers together
          keeping          expiry, collection, events, tasks, the control socket, metrics
            keeper         answers what the workers ask
              supervisor   the worker processes

Shutdown goes from the inside to the outside: the keeper answers until the last worker has ended.
The parent accepts no connection, and no content passes through it.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import trio
from blake3 import blake3

from trioresume.errors import CallerError, StorageError
from trioresume.protocol.clock import ServiceClock
from trioresume.server.api.handler import as_target
from trioresume.server.http.connection_counts import SharedCounts, make_counts_file
from trioresume.server.http.listeners import Listener, open_listeners
from trioresume.server.parts import KEEPING
from trioresume.server.serving import (
    UNTUNED,
    Server,
    WorkShare,
    last_seen_of,
    running_service,
    running_storage,
    watching,
)
from trioresume.server.uploads.expiry import clock_reading
from trioresume.server.workers.keeper import Keeper
from trioresume.server.workers.seat import Seat
from trioresume.server.workers.supervisor import Supervisor, SupervisorTimes, Worker
from trioresume.store.file_system.data_dir import is_served
from trioresume.store.file_system.free_space import RESERVE_SIZE
from trioresume.store.shared_disk_store import open_shared_store

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import AnyTarget, Handler
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.doorman import Doorman
    from trioresume.server.watch.merging import Report
    from trioresume.server.watch.watch import Watch
    from trioresume.store.port import OperationId
    from trioresume.store.shared_disk_store import SharedDiskStore

__all__ = ["MOST_WORKERS", "Workforce", "serve_workers"]

logger = logging.getLogger("trioresume.workers")

MOST_WORKERS = 64
RETRY_PATIENCE = 3600.0
"""Seconds for a target that is called again by an administrator."""
LAST_SECONDS = 1.0
"""Seconds for what runs beside the requests, when the last worker has ended."""
LOCK_PAUSE = 0.05
LOCK_PATIENCE = 5.0
"""Seconds for workers of a parent that was killed to end: they hold the directory's lock."""


@dataclass(eq=False)
class Workforce(Server):
    """A running service with workers, as :func:`serve_workers` reports it.

    The workers read certificates and rules by themselves, when they start: replace them.
    """

    _supervisor: Supervisor | None = None

    async def replace_workers(self) -> None:
        """Start new workers, and have the present ones end when their requests have ended.

        The new ones have the program, the configuration and the certificates of now. No
        connection is refused meanwhile. Raises :class:`~trioresume.errors.WorkersFailed` if one
        of the new ones does not start; then the present ones go on.
        """
        assert self._supervisor is not None
        await self._supervisor.replace_workers()


async def serve_workers(
    handler: Handler | AnyTarget,
    config: Config,
    *,
    count: int,
    command: Callable[[int], Sequence[str]],
    task_status: trio.TaskStatus[Workforce] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a service with *count* worker processes until it is shut down or cancelled.

    *command* makes the command line that starts a worker, from the number of a descriptor that
    the worker inherits. The worker passes this number to :func:`trioresume.take_seat`, and its
    seat to :func:`trioresume.serve_worker`, with a handler and settings like these. Start this
    with ``nursery.start`` in the main thread: it reports a :class:`Workforce` once all workers
    listen. The handler is called in the workers; this process needs it only for the tasks of
    :class:`trioresume.FileService`.

    Raises what :func:`trioresume.serve` raises, and :class:`~trioresume.errors.WorkersFailed` if
    the workers cannot start, or end again and again. When cancelled, all workers end at once.
    """
    if not 1 <= count <= MOST_WORKERS:
        raise CallerError(f"there can be 1 to {MOST_WORKERS} workers")
    if not hasattr(socket, "AF_UNIX") or os.name == "nt":
        raise CallerError("workers need Unix sockets, which this system does not have")
    target = as_target(handler)
    # Nothing arrives here: there are neither connections nor memory for content.
    config = replace(config, ui=None, receive_memory=1, max_connections=1)
    await trio.to_thread.run_sync(_await_end_of_earlier, os.fspath(config.data_dir))
    async with (
        open_listeners(config) as listeners,
        watching(config, UNTUNED, KEEPING) as watch,
    ):
        store = await _open_store(config, watch)
        try:
            async with running_storage(store, config) as storage:

                async def end_process(pid: int) -> None:
                    await supervisor.end_process(pid)

                keeper = Keeper(storage, store, end_process=end_process)
                async with trio.open_nursery() as nursery:
                    await nursery.start(keeper.run)
                    with _counts() as (counts_file, counts):
                        parent = _Parent(config, listeners, store, counts_file)
                        supervisor = Supervisor(
                            count=count,
                            command=command,
                            make_seat=partial(parent.seat, count),
                            descriptors=parent.descriptors,
                            counts=counts,
                            serve_catalog=partial(_serve_catalog, keeper),
                            times=SupervisorTimes(grace=config.grace_timeout),
                        )
                        urls = [listener.url for listener in listeners]
                        await _keep(
                            target,
                            config,
                            storage,
                            watch,
                            supervisor,
                            urls,
                            task_status,
                        )
                    nursery.cancel_scope.cancel()
        finally:
            store.close()


async def _keep(
    target: AnyTarget,
    config: Config,
    storage: Storage,
    watch: Watch | None,
    supervisor: Supervisor,
    urls: Sequence[str],
    task_status: trio.TaskStatus[Workforce],
) -> None:
    """Do what only one process does, and run the workers."""
    crew = _Crew(supervisor)
    last_seen = await storage.run(last_seen_of, storage.store)
    clock = ServiceClock(time.time, time.monotonic, last_seen)
    share = WorkShare(part=KEEPING, retry=crew.retry, others=crew)
    try:
        async with running_service(
            target, config, storage, clock, control=True, watch=watch, share=share
        ) as doorman:
            workforce = Workforce(
                urls,
                supervisor.stopping,
                supervisor.recovered,
                _rulebook=doorman.rulebook,
                _supervisor=supervisor,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_note_shutdown, supervisor, doorman)
                await supervisor.run(partial(task_status.started, workforce))
                nursery.cancel_scope.cancel()
            # Nothing is left to do here but what runs beside the requests.
            doorman.deadline = trio.current_time() + LAST_SECONDS
    finally:
        storage.submit(clock_reading(clock))


async def _note_shutdown(supervisor: Supervisor, doorman: Doorman) -> None:
    """Have the second listener say that the service is not ready."""
    await supervisor.stopping.wait()
    doorman.stopping.set()


def _await_end_of_earlier(path: str) -> None:
    """Wait, in a thread, for the workers of a parent that was killed to end.

    They have its sockets and its lock. If another service has the directory *path*, the error
    comes when the store is opened.
    """
    if not os.path.exists(os.path.join(path, "lock")):
        return
    deadline = time.monotonic() + LOCK_PATIENCE
    while is_served(path) and time.monotonic() < deadline:
        time.sleep(LOCK_PAUSE)


async def _open_store(config: Config, watch: Watch | None) -> SharedDiskStore:
    new_hasher = None if watch is None else watch.new_hasher
    opening = partial(
        open_shared_store,
        config.data_dir,
        chunk_size=config.chunk_size,
        durability=config.durability,
        min_free_space=config.min_free_space,
        reserve=RESERVE_SIZE,
        disk=None if watch is None else watch.disk(),
        new_hasher=new_hasher or blake3,
    )
    return await trio.to_thread.run_sync(opening)


@contextmanager
def _counts() -> Iterator[tuple[int, SharedCounts]]:
    """Make the counts of connections for the block; yield their descriptor, and a look."""
    file = make_counts_file()
    counts = SharedCounts(file, None)
    try:
        yield file, counts
    finally:
        counts.close()
        os.close(file)


async def _serve_catalog(keeper: Keeper, sock: socket.socket, pid: int) -> None:
    """Serve a worker once it begins to talk: its program takes a while to start."""
    try:
        await trio.lowlevel.wait_readable(sock)
    except BaseException:
        sock.close()
        raise
    await keeper.serve(sock, pid)


class _Parent:
    """What each worker inherits, and is told about it."""

    def __init__(
        self,
        config: Config,
        listeners: Sequence[Listener],
        store: SharedDiskStore,
        counts: int,
    ) -> None:
        self._config = config
        self._bind = [
            f"{'https' if each.is_secure else 'http'}://fd:{each.listener.socket.fileno()}"
            for each in listeners
        ]
        self._counts = counts
        self._lock = store.lock
        self.descriptors = [
            counts,
            store.lock,
            *(each.listener.socket.fileno() for each in listeners),
        ]

    def seat(self, count: int, number: int, slot: int, catalog: int) -> Seat:
        return Seat(
            number=number,
            workers=count,
            bind=self._bind,
            slot=slot,
            counts=self._counts,
            catalog=catalog,
            lock=self._lock,
            data_dir=os.path.abspath(self._config.data_dir),
            durability=self._config.durability,
            parent=os.getpid(),
        )


class _Crew:
    """The workers, as metrics and commands see them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._ended = 0
        self._retired: Report = []
        supervisor.retire = self._retire

    def _retire(self, worker: Worker) -> None:
        self._ended += 1
        if worker.report:
            from trioresume.server.watch.merging import merge, packed, retired

            left = [self._retired, retired(worker.report)]
            self._retired = packed(merge(left))

    async def reports(self, patience: float) -> list[Report]:
        """Return what each worker counts, and what those have counted that have ended."""
        await self._supervisor.gather(patience)
        present = [each.report for each in self._supervisor.workers]
        return [self._retired, *(report for report in present if report)]

    def metrics(self) -> Iterator[Metric]:
        """Yield metrics about the workers themselves."""
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        yield GaugeMetricFamily(
            "trioresume_workers",
            "Worker processes that listen, or end what they have begun.",
            len(self._supervisor.workers),
        )
        yield CounterMetricFamily(
            "trioresume_workers_ended",
            "Worker processes that have ended, for whatever reason.",
            self._ended,
        )

    async def retry(self, id: OperationId) -> int | None:
        """Have a worker process the request again. Raises :class:`StorageError`."""
        answer = await self._supervisor.ask({"do": "retry", "id": id}, RETRY_PATIENCE)
        if "error" in answer:
            raise StorageError(str(answer["error"]))
        status = answer.get("status")
        return status if isinstance(status, int) else None
