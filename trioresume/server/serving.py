"""``serve``: run the service, from opening its store to closing it, as nested lifetimes.

::

    store open
      commits          everything below may commit
        target         an application's lifespan, if it has one
          background   seals, handlers, expiry, collection
            connections  one task each
              listeners

Shutdown goes from the inside to the outside. First the listeners close. Then the running
requests have ``grace_timeout`` seconds, and the handlers have the rest of that time. The last
commits come at the end. An upload that is still running then is kept like any cut upload, and
its request is answered with 503.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio
from blake3 import blake3

from trioresume.errors import CallerError
from trioresume.protocol.clock import Schedule, ServiceClock
from trioresume.server.api.config import Config
from trioresume.server.api.handler import (
    LastingTarget,
    Services,
    StoreTarget,
    as_target,
)
from trioresume.server.api.rulebook import Rulebook
from trioresume.server.async_store.storage import Storage
from trioresume.server.async_store.threads import Threads
from trioresume.server.doorman import Doorman
from trioresume.server.http.listeners import open_listeners
from trioresume.server.http.tls.contexts import ServerContexts
from trioresume.server.keeper.changes import changing
from trioresume.server.keeper.control_socket import (
    CLIENT_TIMEOUT,
    collecting,
    retrying,
    serve_control,
)
from trioresume.server.keeper.hold import holding_for_others
from trioresume.server.keeper.intake import importing
from trioresume.server.keeper.outbox import changing_events
from trioresume.server.keeper.retries import Retries
from trioresume.server.parts import WHOLE, Leading, Part
from trioresume.server.routes.router import Service
from trioresume.server.routes.upload_page import UploadPage
from trioresume.server.shared.operations import (
    ASK_TIMEOUT,
    NoticeQueue,
    SharedOperations,
)
from trioresume.server.uploads.expiry import (
    COLLECT_DELAY,
    LAST_SEEN,
    RELEASING,
    SHARED_LOAD_EVERY,
    WINDOW,
    Collector,
    Expiry,
    clock_reading,
)
from trioresume.server.uploads.operation import Operation
from trioresume.server.uploads.quotas import Quotas
from trioresume.server.uploads.registry import MOST_RESTING, Registry
from trioresume.server.watch.facts import USUAL_TIMES, LookTimes
from trioresume.store.disk_store import open_store
from trioresume.store.file_system.free_space import RESERVE_SIZE
from trioresume.store.port import SERVICE_CLOCK, SetState

if TYPE_CHECKING:
    from trioresume.server.admin.recent import RecentErrors
    from trioresume.server.admin.site import AdminSite
    from trioresume.server.api.handler import AnyTarget, Handler
    from trioresume.server.api.rules import Rule
    from trioresume.server.http.connection_counts import SharedCounts
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.watch.view import Others, View
    from trioresume.server.watch.watch import Watch
    from trioresume.store.port import OperationId, Store

__all__ = ["Server", "serve"]

logger = logging.getLogger("trioresume.server")

PROTOCOLS = ("h2", "http/1.1")
"""The application protocols that a handshake offers (ALPN), the best one first."""

TARGET_LAST_SECONDS = 1.0
"""Seconds after the grace period in which a target may end what runs beside its calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Figures of a service that nobody has to set, so they are no settings; tests set them.

    Each default is explained at the name that it has in its module.
    """

    most_resting: int = MOST_RESTING
    collect_delay: float = COLLECT_DELAY
    keeper_timeout: float = CLIENT_TIMEOUT
    look_times: LookTimes = USUAL_TIMES
    ask_timeout: float = ASK_TIMEOUT
    shared_load_every: float = SHARED_LOAD_EVERY
    make_schedule: Callable[[], Schedule] = lambda: Schedule(WINDOW)


UNTUNED = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkShare:
    """What this process does of a service's work, and how it reaches the other processes."""

    part: Part = WHOLE
    counts: SharedCounts | None = None
    """The connections of all processes."""
    leading: Leading | None = None
    """Tells a process that serves when to do what only one of them should do."""
    retry: Callable[[OperationId], Awaitable[int | None]] | None = None
    """Has another process do what :meth:`Retries.retry` does here."""
    others: Others | None = None
    """The other processes, for the metrics."""


ALONE = WorkShare()
"""The usual case: there is no other process."""


@dataclass(eq=False)
class Server:
    """A running service, as :func:`serve` reports it."""

    urls: Sequence[str]
    """The addresses it listens on, as ``http://HOST:PORT`` or ``https://HOST:PORT``."""
    _stop: trio.Event
    _recovered: trio.Event
    _contexts: ServerContexts | None = None
    _rulebook: Rulebook | None = None

    def shutdown(self) -> None:
        """Ask the service to end: no new requests, a grace period for the running ones.

        Returns at once; :func:`serve` returns when the service has ended.
        """
        self._stop.set()

    async def wait_recovered(self) -> None:
        """Wait until requests that an earlier run left unprocessed are taken up again.

        The service answers before that, too. It does not wait for a catalog that cannot be
        read: that is tried again later.
        """
        await self._recovered.wait()

    async def reload_certificates(self) -> None:
        """Read the files of ``Config.ssl`` again, for the connections that come from now on.

        Raises :class:`~trioresume.errors.CallerError` if a file cannot be used; the service
        goes on with the certificates that it has. Does nothing without TLS, or for an
        :class:`ssl.SSLContext`: the program itself loads certificates into that.
        """
        if self._contexts is not None:
            await trio.to_thread.run_sync(self._contexts.reload)

    def replace_rules(self, rules: Sequence[Rule]) -> None:
        """Let *rules* be in force from now on, instead of those of ``Config.rules``.

        They hold for every request that begins later, and for an upload that began before
        when it is complete: an upload that they refuse then is answered with the refusal.
        What an upload was promised stays: its bytes are kept, and not shorter than it was told.

        Raises :class:`~trioresume.errors.CallerError` for rules that contradict the settings,
        and if the service was begun without rules; then nothing changes.
        """
        if self._rulebook is None:
            raise CallerError("the service was begun without rules")
        self._rulebook.replace(rules)


async def serve(
    handler: Handler | AnyTarget,
    config: Config | None = None,
    *,
    store: Store | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a service until :meth:`Server.shutdown` or cancellation.

    Start it with ``nursery.start``: it reports a :class:`Server` once it listens.
    *handler* is called with each complete request, or is a :class:`Target` such as
    :class:`trioresume.FileService`. *store* replaces the one on disk in
    ``config.data_dir``; it is closed in the end.

    Everything happens in this process, on one event loop, so it uses one processor and a few
    threads for the disk. It cannot start further processes, and cannot replace its own
    program while it runs.

    Raises :class:`~trioresume.errors.CallerError` for an address that cannot be parsed, and
    if ``config.ui`` asks for a page that was not built; :class:`OSError` for an address that
    cannot be bound; :class:`~trioresume.errors.StoreLocked` if another process serves the
    directory. When cancelled, running requests are cut at once; their uploads are kept.
    """
    await serve_tuned(
        UNTUNED, handler, config or Config(), store=store, task_status=task_status
    )


async def serve_tuned(
    tuning: Tuning,
    handler: Handler | AnyTarget,
    config: Config,
    *,
    store: Store | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Do what :func:`serve` does, with the figures of *tuning*."""
    target = as_target(handler)
    page = None if config.ui is None else UploadPage(config)
    contexts = None
    if config.ssl is not None:
        protocols = PROTOCOLS if config.http2 else PROTOCOLS[1:]
        contexts = await trio.to_thread.run_sync(ServerContexts, config.ssl, protocols)
    # Before anything else starts: an address in use is an error at once.
    async with (
        open_listeners(config) as listeners,
        running_engine(
            target, config, store=store, page=page, contexts=contexts, tuning=tuning
        ) as doorman,
    ):
        urls = [listener.url for listener in listeners]
        server = Server(
            urls,
            doorman.stopping,
            doorman.recovered,
            doorman.contexts,
            doorman.rulebook,
        )
        await doorman.run(listeners, partial(task_status.started, server))


@asynccontextmanager
async def running_engine(
    target: AnyTarget,
    config: Config,
    *,
    store: Store | None = None,
    page: UploadPage | None = None,
    contexts: ServerContexts | None = None,
    tuning: Tuning = UNTUNED,
) -> AsyncIterator[Doorman]:
    """Run everything but the listeners while the block runs, with a store that is closed.

    Raises as :func:`serve`.
    """
    async with watching(config, tuning) as watch:
        async with _running_engine(
            target, config, store, page, contexts, watch, tuning
        ) as doorman:
            yield doorman


@asynccontextmanager
async def watching(
    config: Config, tuning: Tuning, part: Part = WHOLE
) -> AsyncIterator[Watch | None]:
    """Open the second listener, if there is one; yield what watches the service."""
    settings = config.watch
    if settings.admin_bind and part.keeps:
        # Imported only here: a service that is not watched needs nothing of it.
        from trioresume.server.watch.admin import open_admin_listeners
        from trioresume.server.watch.watch import Watch

        async with open_admin_listeners(config) as listeners:
            for listener in listeners:
                logger.info("metrics and health checks at %s", listener.url)
                if settings.admin_page != "off":
                    mode = "read-only"
                    if settings.admin_page == "change":
                        mode = "which may change everything, without credentials"
                    logger.info("admin page at %s/admin/, %s", listener.url, mode)
            yield Watch(config, listeners, tuning.look_times, part)
    elif (
        settings.access_log is not None
        or settings.tracing is not False
        or settings.admin_bind
    ):
        from trioresume.server.watch.watch import Watch

        yield Watch(config, [], tuning.look_times, part)
    else:
        yield None


@asynccontextmanager
async def _running_engine(
    target: AnyTarget,
    config: Config,
    store: Store | None,
    page: UploadPage | None,
    contexts: ServerContexts | None,
    watch: Watch | None,
    tuning: Tuning,
) -> AsyncIterator[Doorman]:
    # A cluster has no directory whose keeper could be asked.
    control = store is None and config.catalog is None
    if store is None:
        store = await trio.to_thread.run_sync(open_store_of, config, watch)
    try:
        async with running_storage(store, config) as storage:
            last_seen = await storage.run(last_seen_of, store)
            clock = ServiceClock(time.time, time.monotonic, last_seen)
            try:
                async with running_service(
                    target,
                    config,
                    storage,
                    clock,
                    control=control,
                    page=page,
                    contexts=contexts,
                    watch=watch,
                    tuning=tuning,
                ) as doorman:
                    yield doorman
            finally:
                storage.submit(clock_reading(clock))
    finally:
        store.close()


def open_store_of(config: Config, watch: Watch | None) -> Store:
    """Open the store that *config* names, with what *watch* counts. Blocks."""
    if config.catalog is not None and config.objects is not None:
        # Imported only here: most services need neither database nor object store.
        from trioresume.store.open_cluster import open_cluster_store

        return open_cluster_store(
            config.catalog,
            config.objects,
            chunk_size=config.chunk_size,
            scratch=os.path.join(config.data_dir, "scratch"),
        )
    disk = None if watch is None else watch.disk()
    new_hasher = None if watch is None else watch.new_hasher
    return open_store(
        config.data_dir,
        chunk_size=config.chunk_size,
        durability=config.durability,
        min_free_space=config.min_free_space,
        reserve=RESERVE_SIZE,
        disk=disk,
        new_hasher=new_hasher or blake3,
    )


@asynccontextmanager
async def running_storage(
    store: Store, config: Config, workers: Callable[[int], Threads] = Threads
) -> AsyncIterator[Storage]:
    """Run the store for async callers; on exit everything submitted is applied.

    *workers* is passed to :class:`~trioresume.server.async_store.storage.Storage`.
    """
    storage = Storage(store, threads=config.storage_threads, workers=workers)
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        try:
            with storage.running():
                yield storage
        finally:
            storage.stop()


def last_seen_of(store: Store) -> float | None:
    """Return the service clock's last reading; None in a new data directory."""
    reading = store.meta(SERVICE_CLOCK)
    if reading is not None:
        return float(reading.split()[0])
    # Earlier versions followed the wall clock, and noted it now and then.
    noted = store.meta(LAST_SEEN)
    return None if noted is None else max(time.time(), float(noted))


@asynccontextmanager
async def running_service(
    target: AnyTarget,
    config: Config,
    storage: Storage,
    clock: ServiceClock,
    *,
    control: bool = False,
    page: UploadPage | None = None,
    contexts: ServerContexts | None = None,
    watch: Watch | None = None,
    tuning: Tuning = UNTUNED,
    share: WorkShare = ALONE,
) -> AsyncIterator[Doorman]:
    """Run everything between the commits and the listeners while the block runs.

    *share* says what this process does of it, and *control* that the store is the one in ``config.data_dir``, so that ``trioresume gc``
    may ask for a collection (see :mod:`trioresume.server.keeper.control_socket`).
    """
    rulebook = None
    if config.rules:
        rulebook = Rulebook(config, serves_files=isinstance(target, StoreTarget))
    part = share.part
    if isinstance(target, StoreTarget):
        target.attach(Services(storage, clock, config, rulebook, part))
    expiry = Expiry(
        storage,
        clock,
        tuning.make_schedule(),
        load_every=tuning.shared_load_every,
    )
    collector = Collector(storage, delay=tuning.collect_delay)
    quotas = Quotas(storage.store, config, rulebook)
    if part.keeps:
        storage.add_observer(expiry.observe)
        storage.add_observer(collector.note_released, *RELEASING)
    storage.add_observer(quotas.observe)
    storage.batch_observer = quotas
    if watch is not None:
        watch.observe(storage)
    make_registry: Callable[..., Registry] = Registry
    make_service: Callable[..., Service] = Service
    hooks = None
    if config.hooks is not None:
        hooks = config.hooks.attach(Services(storage, clock, config, part=part))
        make_registry, make_service = hooks.registry, hooks.service
    async with (
        nullcontext() if watch is None else watch.running(),
        _noting_errors(config) as errors,
        _running(config.authenticate if part.serves else None, config),
        # The target that keeps its own things in the store also has tasks for the keeper.
        _running(
            target if part.serves or isinstance(target, StoreTarget) else None, config
        ) as lasting,
        nullcontext() if hooks is None else hooks.running(),
        NoticeQueue() as notices,
        trio.open_nursery() as background,
    ):
        if rulebook is not None:
            config = rulebook.with_public_downloads(config)
        operations = make_registry(
            storage,
            target,
            config,
            clock,
            background,
            quotas,
            rulebook,
            most_resting=tuning.most_resting,
            new_operation=Operation if watch is None else watch.new_operation,
        )
        sharing = storage.store.sharing
        shared = None
        if sharing is not None:
            shared = SharedOperations(
                operations,
                sharing,
                quotas,
                background,
                ask_timeout=tuning.ask_timeout,
                calls_targets=part.serves,
            )
            notices.listen(sharing, shared.take)
        retries = Retries(operations, config.retry_interval)
        storage.add_observer(retries.observe, SetState)
        service = make_service(operations, config, background, page)
        chores = trio.CancelScope()
        handle: Callable[[Exchange], Awaitable[None]] = service.handle
        if config.watch.public_health:
            from trioresume.server.watch.health import with_health

            handle = with_health(handle)
        doorman = Doorman(handle, config, clock, contexts, rulebook, share.counts)
        doorman.retry = retries.retry
        tasks: list[Callable[[], Awaitable[None]]] = [
            doorman.front.memory.watch.run,
            doorman.front.memory.busy.run,
            doorman.front.admission.starts.run,
        ]
        if part.keeps:
            tasks += [partial(expiry.run, operations), collector.run]
        if share.leading is not None:
            recover = partial(operations.recover, doorman.recovered)
            tasks += [partial(share.leading.run, do) for do in (retries.run, recover)]
        elif part.serves:
            tasks.append(retries.run)
            background.start_soon(operations.recover, doorman.recovered)
        if shared is not None:
            tasks.append(shared.run)
        if hooks is not None:
            tasks.append(hooks.run)
        if control:
            commands = {
                "collect": collecting(collector),
                "retry": retrying(share.retry or retries.retry),
                "hold": holding_for_others(collector),
                "change": changing(operations),
                "import": importing(operations),
                "events": changing_events(operations),
            }
            timeout = tuning.keeper_timeout
            tasks.append(partial(serve_control, config.data_dir, commands, timeout))
        if watch is not None:
            make_site = None
            if errors is not None:
                retry = share.retry or retries.retry
                make_site = partial(
                    _admin_site, config, operations, retry, errors, control
                )
            add = watch.admin_task(
                doorman,
                storage,
                clock,
                background,
                has_disk=control,
                others=share.others,
                make_site=make_site,
            )
            tasks += [] if add is None else [add]
        background.start_soon(_run_all, tasks, chores)
        yield doorman
        chores.cancel()
        background.cancel_scope.deadline = doorman.deadline
        lasting.deadline = doorman.deadline + TARGET_LAST_SECONDS


@asynccontextmanager
async def _noting_errors(config: Config) -> AsyncIterator[RecentErrors | None]:
    """Keep the latest errors of the log for the admin page, if there is one."""
    if config.watch.admin_page == "off":
        yield None
        return
    from trioresume.server.admin.recent import RecentErrors

    errors = RecentErrors()
    log = logging.getLogger("trioresume")
    log.addHandler(errors)
    try:
        yield errors
    finally:
        log.removeHandler(errors)


def _admin_site(
    config: Config,
    operations: Registry,
    retry: Callable[[OperationId], Awaitable[int | None]],
    errors: RecentErrors,
    has_disk: bool,
    view: View,
) -> AdminSite:
    # Imported only here: a service without the admin page needs nothing of it.
    from trioresume.server.admin.changes import Changes
    from trioresume.server.admin.rows import Rows
    from trioresume.server.admin.site import AdminSite

    rows = Rows(config.data_dir) if has_disk else None
    changes = None
    if config.watch.admin_page == "change" and rows is not None:
        changes = Changes(operations, retry, rows)
    return AdminSite(view, errors, rows, changes, config.watch.admin_names)


@asynccontextmanager
async def _running(part: object, config: Config) -> AsyncIterator[trio.CancelScope]:
    """Run what *part* runs beside its calls; yield the scope that can cancel that."""
    with trio.CancelScope() as scope:
        if isinstance(part, LastingTarget):
            async with part.running(config):
                yield scope
        else:
            yield scope


async def _run_all(
    tasks: Sequence[Callable[[], Awaitable[None]]], scope: trio.CancelScope
) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
