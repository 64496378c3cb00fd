"""Parts that do what the usual ones do, and measure how long it takes.

``serving`` puts them in place of the usual ones if the service is watched. They run in worker
threads, except :class:`Rounds`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio
from blake3 import blake3

from trioresume.store.file_system.disk_io import Descriptor, Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trioresume.server.async_store.storage import BatchObserver
    from trioresume.server.watch.tally import Histogram, Tally
    from trioresume.store.port import Mutation

__all__ = ["Rounds", "TimedCommits", "TimedDisk", "TimedHasher"]


class TimedDisk(Disk):
    """The disk, with the times of writes and syncs."""

    def __init__(self, tally: Tally, *, durable: bool) -> None:
        super().__init__(durable=durable)
        self._writes = tally.write_seconds
        self._syncs = tally.sync_seconds

    def write_some(self, file: Descriptor, view: memoryview, position: int) -> int:
        began = time.monotonic()
        try:
            return super().write_some(file, view, position)
        finally:
            self._writes.note(time.monotonic() - began)

    def sync_data(self, file: Descriptor) -> None:
        if self.durable:
            began = time.monotonic()
            super().sync_data(file)
            self._syncs.note(time.monotonic() - began)

    def sync_directory(self, path: str) -> None:
        if self.durable:
            began = time.monotonic()
            super().sync_directory(path)
            self._syncs.note(time.monotonic() - began)


class TimedHasher:
    """blake3, with the time of each piece of content."""

    __slots__ = ("_hasher", "_times", "digest")

    def __init__(self, times: Histogram) -> None:
        self._times = times
        self._hasher = blake3()
        self.digest: Callable[[], bytes] = self._hasher.digest

    def update(self, data: memoryview, /) -> None:
        began = time.monotonic()
        self._hasher.update(data)
        self._times.note(time.monotonic() - began)


class TimedCommits:
    """Measures each batch of commits, and lets *inner* look at it, too.

    The time of a batch begins in the event loop and ends in the thread of the commits.
    """

    def __init__(self, tally: Tally, inner: BatchObserver | None) -> None:
        self._tally = tally
        self._inner = inner
        self._size = 0

    def observe(self, mutations: Sequence[Mutation]) -> None:
        """Count a submission that was applied."""
        self._size += 1

    def before_batch(self) -> Callable[[], Callable[[], None]]:
        began = time.monotonic()
        self._size = 0
        look = None if self._inner is None else self._inner.before_batch()

        def after() -> Callable[[], None]:
            take_over = None if look is None else look()

            def count() -> None:
                self._tally.note_commit(began, self._size)
                if take_over is not None:
                    take_over()

            return count

        return after


class Rounds(trio.abc.Instrument):
    """Measures the rounds of the event loop: how long it did not look at the network.

    In a round all tasks that can run take a step. Measuring each step would cost more than
    some of the steps, and a client waits for the whole round.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._began = time.monotonic()

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.monotonic()

    def before_io_wait(self, timeout: float) -> None:
        # There are thousands of rounds a second: no call that is not needed.
        tally = self._tally
        now = time.monotonic()
        took = now - self._began
        tally.rounds += 1
        tally.busy_seconds += took
        if took > tally.longest_round.now or now >= tally.longest_round.until:
            tally.longest_round.note(took, now)
