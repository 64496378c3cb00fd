"""``collect``: release bytes that nothing refers to, whether or not a service is running."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trioresume.errors import StorageError, StoreLocked
from trioresume.server.keeper.control_socket import ask_to_collect
from trioresume.store.disk_store import open_store
from trioresume.store.file_system.free_space import RESERVE_SIZE
from trioresume.store.port import Collected

if TYPE_CHECKING:
    from trioresume.store.port import Store

__all__ = ["collect"]

STEP = 1000
"""Rows released in one transaction. The service's own collector takes smaller steps."""
PATIENCE = 10.0
"""Seconds to wait until the process that holds the lock listens on its control socket. A
service that is starting or stopping holds the lock for a moment without listening."""
RETRY_DELAY = 0.2


async def collect(
    data_dir: str | os.PathLike[str],
    on_progress: Callable[[Collected], None] | None = None,
    *,
    patience: float = PATIENCE,
) -> Collected:
    """Release the bytes in *data_dir* that nothing refers to any more; return the totals.

    A running service does the same by itself, a second after a release. This also looks at
    every file for what a crash may have left, and returns when nothing is left to do. If a
    service is running, this asks the service to do it, beside its uploads and downloads. If
    none is running, this locks the directory meanwhile, and a service that starts then fails
    with :class:`~trioresume.StoreLocked`.

    *on_progress* is called after each step with the sum so far. Each step is a transaction:
    if this is cancelled or killed, the finished steps remain, and the next call finds the
    rest. *patience* is for how many seconds this asks a process that holds the lock and does
    not listen. This does not end expired uploads: only the service does, by its own clock.

    Raises :class:`~trioresume.StoreLocked` if another process has the directory open and
    cannot be asked, :class:`~trioresume.CollectionCut` if that process ended meanwhile, and
    another :class:`~trioresume.StorageError` if there is no data directory or the disk failed.
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
    # The reserve is space for this on a full disk: collecting must work there, too.
    opened = partial(open_store, data_dir, reserve=RESERVE_SIZE)
    deadline = trio.current_time() + patience
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
