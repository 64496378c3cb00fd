"""Send ``102 Processing`` with the target's progress to a client that waits for it (B10).

The numbered statements (B10, C19) are in docs/supported-protocols.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.protocol.dialects import Interim
from trioresume.protocol.heads import Fields
from trioresume.protocol.progress import format_progress
from trioresume.server.event_loop.background import in_background

if TYPE_CHECKING:
    from trioresume.server.api.handler import Progress
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.uploads.operation import Operation

__all__ = ["Follower", "processing"]


def processing(progress: Progress | None, message: str | None = None) -> Interim:
    """Return the 102 that tells *progress*. The first 102 also gives the URI *message*.

    The draft says that this URI SHOULD be in ``Location``. But the final response often has
    another ``Location``, and libcurl takes the difference for an error (C19). So the URI is
    in ``Response-Message-Location``, the field for the same resource in resumable requests.
    """
    told = format_progress(0)
    if progress is not None:
        told = format_progress(progress.done, progress.total, progress.remark)
    fields = Fields({"progress": told})
    where = {"response-message-location": message} if message else {}
    return Interim(102, fields.plus(where))


class Follower:
    """Sends the progress of an operation to an exchange that waits for its outcome.

    It sends at most one 102 in *interval* seconds, with the latest progress, and never waits
    for the peer. *nursery* is the server's: an error in a task there does not reach the
    exchange.
    """

    def __init__(self, nursery: trio.Nursery, interval: float) -> None:
        self._nursery = nursery
        self._interval = interval

    @asynccontextmanager
    async def during(
        self, exchange: Exchange, operation: Operation, told: Progress | None = None
    ) -> AsyncIterator[None]:
        """Send progress while the block runs, if the client wants it; it knows *told*."""
        if not (exchange.preferences.processing and exchange.can_interim):
            yield
            return
        async with in_background(self._nursery, self._run, exchange, operation, told):
            yield

    async def _run(
        self, exchange: Exchange, operation: Operation, told: Progress | None
    ) -> None:
        while True:
            if operation.progress == told:
                await operation.changed.wait()
            else:
                told = operation.progress
                exchange.offer_interim(processing(told))
                await trio.sleep(self._interval)
