"""A watched service: the parts that ``serving`` puts in place of the usual ones."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import CallerError
from trioresume.server.parts import WHOLE, Part
from trioresume.server.uploads.operation import Operation
from trioresume.server.watch.facts import Facts, LookTimes
from trioresume.server.watch.operations import CountedOperation, count_created
from trioresume.server.watch.requests import Requests
from trioresume.server.watch.tally import Tally
from trioresume.server.watch.timed import Rounds, TimedCommits, TimedDisk, TimedHasher
from trioresume.server.watch.view import View
from trioresume.store.port import CreateOperation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from opentelemetry.trace import TracerProvider

    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.api.config import Config
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.doorman import Doorman
    from trioresume.server.http.listeners import Listener
    from trioresume.server.uploads.loaded_operation import Surroundings
    from trioresume.server.watch.admin import Site
    from trioresume.server.watch.merging import Report
    from trioresume.server.watch.spans import Spans
    from trioresume.server.watch.view import Others
    from trioresume.store.port import OperationId

__all__ = ["Watch"]


class Watch:
    """Watches one service, for the listeners *admin* and for its access log."""

    def __init__(
        self,
        config: Config,
        admin: list[Listener],
        times: LookTimes,
        part: Part = WHOLE,
    ) -> None:
        self._config = config
        self._part = part
        self._admin = admin
        self._times = times
        self._view: View | None = None
        # A worker has no second listener: it reports its metrics to its parent.
        self._counts = bool(config.watch.admin_bind)
        """Whether anything but requests is counted: only the metrics tell it."""
        self._tally = Tally()
        spans = None
        if config.watch.tracing is not False:
            spans = _spans(config.watch.tracing)
        log = config.watch.access_log
        self._requests = Requests(self._tally, config, log, spans)

    def disk(self) -> TimedDisk | None:
        """Return the disk for the store; None for the usual one."""
        if not self._counts:
            return None
        return TimedDisk(self._tally, durable=self._config.durability == "disk")

    @property
    def new_hasher(self) -> Callable[[], TimedHasher] | None:
        """What makes the store's hashers; None for the usual one."""
        return partial(TimedHasher, self._tally.hash_seconds) if self._counts else None

    @property
    def new_operation(self) -> Callable[[OperationId, Surroundings], Operation]:
        """What makes the operations."""
        return partial(CountedOperation, self._tally) if self._counts else Operation

    def observe(self, storage: Storage) -> None:
        """Count the commits of *storage*, whose other observers are known by now."""
        if self._counts:
            commits = TimedCommits(self._tally, storage.batch_observer)
            storage.batch_observer = commits
            storage.add_observer(commits.observe)
            if self._part.serves:  # a process that only keeps sees those of the others
                count = partial(count_created, self._tally)
                storage.add_observer(count, CreateOperation)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch while the block runs, and end the access log after it."""
        async with AsyncExitStack() as stack:
            if self._config.watch.access_log is not None:
                await stack.enter_async_context(self._config.watch.access_log.running())
            if self._counts:
                rounds = Rounds(self._tally)
                trio.lowlevel.add_instrument(rounds)
                stack.callback(trio.lowlevel.remove_instrument, rounds)
            yield

    def admin_task(
        self,
        doorman: Doorman,
        storage: Storage,
        clock: ServiceClock,
        nursery: trio.Nursery,
        *,
        has_disk: bool,
        others: Others | None = None,
        make_site: Callable[[View], Site] | None = None,
    ) -> Callable[[], Awaitable[None]] | None:
        """Watch the requests of *doorman*; return what serves the second listener, if any.

        What is looked up of the disk, if the store *has_disk*, runs in *nursery*. The metrics
        are those of this process and of *others*. *make_site* makes what else the listener
        has: the admin page.
        """
        self._requests.attach(doorman.front)
        if not self._counts:
            return None
        # Only here: a service without metrics need not load prometheus-client.
        from trioresume.server.watch.admin import AdminPages, admin_doorman

        config = self._config
        facts = Facts(
            storage,
            clock,
            self._tally,
            nursery,
            data_dir=config.data_dir if has_disk else None,
            min_free_space=config.min_free_space,
            times=self._times,
        )
        view = self._view = View(
            config, self._tally, self._requests, storage, doorman, facts, others
        )
        if not self._admin:
            return None
        site = None if make_site is None else make_site(view)
        own = admin_doorman(AdminPages(view, site), config, clock)
        return partial(own.run, self._admin, _ignore)

    def report(self) -> Report:
        """Return the metrics of this process for another one, which adds them up.

        Empty unless metrics are wanted.
        """
        if self._view is None:
            return []
        from trioresume.server.watch.exposition import report

        return report(self._view)


def _spans(tracing: TracerProvider | bool) -> Spans:
    try:
        from trioresume.server.watch.spans import Spans
    except ImportError as exc:
        raise CallerError(
            "tracing needs OpenTelemetry: pip install 'trioresume[tracing]'"
        ) from exc
    return Spans(None if isinstance(tracing, bool) else tracing)


def _ignore() -> None:
    """Do nothing: the listeners queue connections since they were opened."""
