"""A worker: the process that has connections, for a service whose parent keeps the catalog.

It is the same service as one that is alone, with three differences. Its store asks the parent
for everything but content. It does only its part of the work (:mod:`trioresume.server.parts`).
And it does what the parent says on the channel. If the channel closes, or the connection to
the keeper, the worker ends at once: what it owned is another's then.

Limits that hold for the whole service are either counted by all processes together (the
connections, the quotas), or each worker has its share of them (the memory for content, the
handshakes that run at once, the digests that clients ask for).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio
from blake3 import blake3

from trioresume.errors import CallerError, StorageError
from trioresume.protocol.clock import ServiceClock
from trioresume.server.api.handler import as_target
from trioresume.server.async_store.receive_memory import PIECE_SIZE
from trioresume.server.http.connection_counts import SharedCounts
from trioresume.server.http.listeners import open_listeners
from trioresume.server.http.tls.contexts import ServerContexts
from trioresume.server.parts import SERVING, Leading
from trioresume.server.routes.upload_page import UploadPage
from trioresume.server.serving import (
    PROTOCOLS,
    UNTUNED,
    Server,
    WorkShare,
    last_seen_of,
    running_service,
    running_storage,
    watching,
)
from trioresume.server.workers.channel import Channel
from trioresume.store.port import OperationId
from trioresume.store.remote.worker_store import connect_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import AnyTarget, Handler
    from trioresume.server.doorman import Doorman
    from trioresume.server.keeper.conversation import Message
    from trioresume.server.watch.watch import Watch
    from trioresume.server.workers.seat import Seat
    from trioresume.store.port import Store

__all__ = ["serve_worker"]

logger = logging.getLogger("trioresume.workers")

LEAST_MEMORY = 2 * PIECE_SIZE
"""Bytes of memory for content that a worker has at least: one upload alone uses two pieces."""
PATIENCE = 30.0
"""Seconds for which the parent may take no line."""
_PR_SET_PDEATHSIG = 1


async def serve_worker(
    handler: Handler | AnyTarget,
    config: Config,
    seat: Seat,
    *,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve as the worker that has *seat*, until the parent ends it or is gone.

    The parent process runs :func:`trioresume.serve_workers`, and *seat* comes from
    :func:`trioresume.take_seat`. *handler* and *config* are as for :func:`trioresume.serve`;
    ``config.bind`` does not matter, because the parent has opened the listeners.

    Raises what :func:`trioresume.serve` raises, and
    :class:`~trioresume.errors.CallerError` if the parent keeps another data directory.
    """
    end_with_parent(seat)
    config = _own_config(config, seat)
    if config.watch.access_log is not None:
        config.watch.access_log.worker = seat.number
    target = as_target(handler)
    page = None if config.ui is None else UploadPage(config)
    contexts = None
    if config.ssl is not None:
        protocols = PROTOCOLS if config.http2 else PROTOCOLS[1:]
        contexts = await trio.to_thread.run_sync(ServerContexts, config.ssl, protocols)
    channel = Channel(socket.socket(fileno=os.dup(seat.channel)), PATIENCE)
    async with channel.talk, open_listeners(config) as listeners:
        async with watching(config, UNTUNED, SERVING) as watch:
            lost = trio.Event()
            tell = trio.lowlevel.current_trio_token().run_sync_soon
            connect = partial(_connect, config, seat, partial(tell, lost.set), watch)
            store = await trio.to_thread.run_sync(connect)
            try:
                async with running_storage(store, config) as storage:
                    last_seen = await storage.run(last_seen_of, store)
                    clock = ServiceClock(time.time, time.monotonic, last_seen)
                    leading = Leading()
                    counts = SharedCounts(seat.counts, seat.slot)
                    share = WorkShare(part=SERVING, counts=counts, leading=leading)
                    async with running_service(
                        target,
                        config,
                        storage,
                        clock,
                        page=page,
                        contexts=contexts,
                        watch=watch,
                        share=share,
                    ) as doorman:
                        urls = [listener.url for listener in listeners]
                        server = Server(
                            urls,
                            doorman.stopping,
                            doorman.recovered,
                            doorman.contexts,
                            doorman.rulebook,
                        )
                        worker = _Worker(channel, doorman, leading, watch)
                        async with trio.open_nursery() as nursery:
                            scope = nursery.cancel_scope
                            nursery.start_soon(worker.obey, scope)
                            nursery.start_soon(_end_when, lost, scope)
                            nursery.start_soon(worker.tell_recovered)

                            def begin() -> None:
                                nursery.start_soon(worker.say_ready)
                                task_status.started(server)

                            await doorman.run(listeners, begin)
                            await worker.say_last()
                            scope.cancel()
            finally:
                store.close()


def _own_config(config: Config, seat: Seat) -> Config:
    """Return the settings with this worker's share. Raises :class:`CallerError`."""
    if os.path.realpath(config.data_dir) != os.path.realpath(seat.data_dir):
        raise CallerError(
            f"the service uses {seat.data_dir}: another data directory needs a restart"
        )
    if config.durability != seat.durability:
        raise CallerError(
            f"the service has durability={seat.durability}: another one needs a restart"
        )
    if any(bind.startswith("https:") for bind in seat.bind) and config.ssl is None:
        raise CallerError("a listener speaks TLS, and there is no certificate any more")
    return replace(
        config,
        bind=tuple(seat.bind),
        receive_memory=max(LEAST_MEMORY, config.receive_memory // seat.workers),
        digest_budget=-(-config.digest_budget // seat.workers),
    )


def end_with_parent(seat: Seat) -> None:
    """Have the system end this process when the parent ends, if it can (Linux).

    A worker that is stopped then cannot wake up beside the worker of another service. (A
    program may do this itself, as early as it can.) Raises
    :class:`CallerError` if the parent has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != seat.parent:
        raise CallerError("the parent process has ended")


def _connect(
    config: Config, seat: Seat, on_lost: Callable[[], None], watch: Watch | None
) -> Store:
    """Connect to the keeper, in a thread."""
    new_hasher = None if watch is None else watch.new_hasher
    disk = None if watch is None else watch.disk()
    return connect_store(
        socket.socket(fileno=seat.catalog),
        config.data_dir,
        on_lost=on_lost,
        disk=None if disk is None else lambda durable: disk,
        new_hasher=new_hasher or blake3,
    )


async def _end_when(lost: trio.Event, scope: trio.CancelScope) -> None:
    await lost.wait()
    logger.error("the connection to the parent process is lost: this worker ends")
    scope.cancel()


class _Worker:
    """Does what the parent says."""

    def __init__(
        self,
        channel: Channel,
        doorman: Doorman,
        leading: Leading,
        watch: Watch | None,
    ) -> None:
        self._channel = channel
        self._doorman = doorman
        self._leading = leading
        self._watch = watch

    async def say_ready(self) -> None:
        await self._channel.say({"ready": True, "pid": os.getpid()})

    async def say_last(self) -> None:
        """Tell what was counted until now, as the last line."""
        with trio.move_on_after(1.0):
            await self._channel.say({"report": self._report()})

    async def tell_recovered(self) -> None:
        """Say once that what an earlier process left was taken up again."""
        await self._doorman.recovered.wait()
        await self._channel.say({"recovered": True})

    async def obey(self, scope: trio.CancelScope) -> None:
        """Do what the parent says until it is gone; then cancel *scope*."""
        async with trio.open_nursery() as nursery:
            async for message in self._channel.lines():
                match message.get("do"):
                    case "lead":
                        self._leading.begin()
                    case "follow":
                        self._leading.end()
                    case "stop" | "drain":
                        self._leading.end()
                        self._doorman.end_within(float(message["seconds"]))
                    case "end":
                        scope.cancel()
                    case "ping":
                        await self._answer(message)
                    case "report":
                        await self._answer(message, report=self._report())
                    case "retry":
                        nursery.start_soon(self._retry, message)
            logger.error("the parent process is gone: this worker ends")
            scope.cancel()

    async def _answer(self, message: Message, **answer: object) -> None:
        await self._channel.say({"answers": message.get("n"), **answer})

    def _report(self) -> list[object]:
        return [] if self._watch is None else self._watch.report()

    async def _retry(self, message: Message) -> None:
        assert self._doorman.retry is not None
        try:
            status = await self._doorman.retry(OperationId(str(message.get("id"))))
        except (CallerError, StorageError) as exc:
            await self._answer(message, error=str(exc))
        else:
            await self._answer(message, status=status)
