"""``collect``: release what nothing refers to, wherever the data directory is open."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trioresume.errors import StorageError, StoreLocked
from trioresume.server.control import ask_to_collect
from trioresume.store.disk import open_store
from trioresume.store.port import Collected
from trioresume.store.reserve import RESERVE_SIZE

if TYPE_CHECKING:
    from trioresume.store.port import Store

__all__ = ["collect"]

STEP = 1000
"""Rows released in one transaction; see also the service's own collector."""
PATIENCE = 10.0
"""Seconds to wait for whoever holds the lock to listen: a service that just starts or
stops does so for a moment."""
RETRY_DELAY = 0.2


async def collect(
    data_dir: str | os.PathLike[str],
    on_progress: Callable[[Collected], None] | None = None,
) -> Collected:
    """Release the bytes in *data_dir* that nothing refers to any more; what that was.

    A running service does the same by itself, a second after something was released.
    This also looks at every file for what a crash may have left, and returns when
    nothing is left to do. A service that runs is asked to do it, beside its uploads and
    downloads. Where none runs, the directory is locked meanwhile, and a service that is
    started then fails with :class:`~trioresume.StoreLocked`.

    *on_progress* is called after each step with the sum so far. Steps are transactions:
    when this is cancelled or killed, what was done is done and the rest is found again.
    What has expired is not ended here: that is up to the service, whose clock it is.

    Raises :class:`~trioresume.StoreLocked` if the process that has it open cannot be
    asked, :class:`~trioresume.CollectionCut` if it ended meanwhile, and another
    :class:`~trioresume.StorageError` if there is no data directory or the disk failed.
    """
    total = Collected()

    def add(done: Collected) -> None:
        nonlocal total
        total = Collected(
            recipes=total.recipes + done.recipes,
            chunks=total.chunks + done.chunks,
            bytes=total.bytes + done.bytes,
            steps=total.steps + done.steps,
        )
        if on_progress is not None:
            on_progress(total)

    if not (Path(data_dir) / "format").exists():
        raise StorageError(f"{os.fspath(data_dir)} is no data directory of trioresume")
    # On a full disk, too: it is what makes space.
    opened = partial(open_store, data_dir, reserve=RESERVE_SIZE)
    deadline = trio.current_time() + PATIENCE
    while True:
        try:
            store = await trio.to_thread.run_sync(opened)
        except StoreLocked as locked:
            try:
                await ask_to_collect(data_dir, add)
                return total
            except OSError as exc:
                if trio.current_time() > deadline:
                    raise locked from exc
        else:
            try:
                await _collect_alone(store, add)
            finally:
                store.close()
            return total
        await trio.sleep(RETRY_DELAY)


async def _collect_alone(store: Store, on_step: Callable[[Collected], None]) -> None:
    store.sweep()
    while (done := await trio.to_thread.run_sync(store.collect, STEP)) != Collected():
        on_step(done)
