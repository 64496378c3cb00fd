"""What the disk and the catalog say, looked up for those who watch.

A look may hang with the disk. Metrics and health checks must answer all the same, so a look
runs in a task of its own, one at a time, and who asks waits for it only so long.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from trioresume.errors import StorageError
from trioresume.server.uploads.expiry import clock_reading
from trioresume.store.file_system.free_space import LARGEST_SHARE

if TYPE_CHECKING:
    import os

    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.watch.tally import Tally
    from trioresume.store.port import OperationState, Usage

__all__ = ["USUAL_TIMES", "DiskSpace", "Facts", "LookTimes", "Lookup", "Stored"]

logger = logging.getLogger("trioresume.server")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LookTimes:
    """Times in seconds that nobody has to set; tests set them."""

    stored_age: float = 10.0
    """For how long the counts of the catalog are used again: a look reads a whole index."""
    ready_age: float = 1.0
    """For how long the result of a check is used again, however many ask."""
    commit_age: float = 5.0
    """How old a commit may be that shows that the catalog can be written."""
    patience: float = 3.0
    """How long an answer waits for the disk. A usual monitor waits for ten."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The disk of the data directory, in bytes."""

    free: int
    total: int
    kept: int
    """What uploads have to leave free."""

    @property
    def is_low(self) -> bool:
        return self.free < self.kept


@dataclass(frozen=True, slots=True)
class Stored:
    """What the catalog has."""

    uploads: Mapping[OperationState, int]
    usage: Usage
    events: int
    """The events of hooks that wait to be told."""


class Lookup(Generic[T]):
    """The latest result of *look*, which is at most *age* seconds old, if it can be had.

    The tasks run in *nursery*.
    """

    def __init__(
        self, look: Callable[[], Awaitable[T]], age: float, nursery: trio.Nursery
    ) -> None:
        self._look = look
        self._age = age
        self._nursery = nursery
        self._began = float("-inf")
        self._running: trio.Event | None = None
        self.result: T | None = None
        """What was found last; None if nothing was found yet, or the last look failed."""
        self.failure: str | None = None
        """Why the last look failed; None if it did not."""

    async def refresh(self, patience: float) -> bool:
        """Look again if the result is old. Returns False if that takes over *patience* seconds.

        The look goes on then, and the result stays what it was.
        """
        if self._running is None and trio.current_time() >= self._began + self._age:
            self._began = trio.current_time()
            self._running = trio.Event()
            self._nursery.start_soon(self._run, self._running)
        if self._running is None:
            return True
        with trio.move_on_after(patience) as scope:
            await self._running.wait()
        return not scope.cancelled_caught

    async def _run(self, ended: trio.Event) -> None:
        try:
            self.result = await self._look()
            self.failure = None
        except (StorageError, OSError) as exc:
            self.result, self.failure = None, str(exc)
        except Exception as exc:
            logger.exception("a look at the store failed")
            self.result, self.failure = None, type(exc).__name__
        finally:
            self._running = None
            ended.set()


USUAL_TIMES = LookTimes()


class Facts:
    """The looks. *data_dir* is None if the store is not on a disk of this machine."""

    def __init__(
        self,
        storage: Storage,
        clock: ServiceClock,
        tally: Tally,
        nursery: trio.Nursery,
        *,
        data_dir: str | os.PathLike[str] | None,
        min_free_space: int,
        times: LookTimes,
    ) -> None:
        self._commit_age = times.commit_age
        self.patience = times.patience
        self._storage = storage
        self._clock = clock
        self._tally = tally
        self._data_dir = data_dir
        self._min_free_space = min_free_space
        self.stored = Lookup(self._look_at_catalog, times.stored_age, nursery)
        self.space = Lookup(self._look_at_disk, times.ready_age, nursery)
        self.writable = Lookup(self._try_commit, times.ready_age, nursery)

    async def _look_at_catalog(self) -> Stored:
        return await self._storage.run(self._stored)

    def _stored(self) -> Stored:
        store = self._storage.store
        return Stored(
            store.count_operations(), store.total_usage(), store.event_count()
        )

    async def _look_at_disk(self) -> DiskSpace | None:
        return await trio.to_thread.run_sync(self._space, abandon_on_cancel=True)

    def _space(self) -> DiskSpace | None:
        if self._data_dir is None:
            return None
        disk = shutil.disk_usage(self._data_dir)
        kept = min(self._min_free_space, disk.total // LARGEST_SHARE)
        return DiskSpace(disk.free, disk.total, kept)

    async def _try_commit(self) -> bool:
        """Write something that is worth writing, unless others have just done so."""
        self._storage.store.check()
        if time.monotonic() >= self._tally.committed_at + self._commit_age:
            await self._storage.commit(clock_reading(self._clock))
        return True
