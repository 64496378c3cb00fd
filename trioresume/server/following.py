"""Whoever waits for the target is told how far it is: ``102 Processing`` (B10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.protocol.dialects import Interim
from trioresume.protocol.heads import Fields
from trioresume.protocol.preferences import parse_preferences
from trioresume.protocol.progress import format_progress
from trioresume.server.beside import beside

if TYPE_CHECKING:
    from trioresume.server.exchange import Exchange
    from trioresume.server.messages import Progress
    from trioresume.server.operation import Operation

__all__ = ["Follower", "processing"]


def processing(progress: Progress | None, message: str | None = None) -> Interim:
    """The 102 that tells *progress*; the first one has the URI of the *message*.

    The draft would have it in ``Location``, with SHOULD. But the final response often has
    another one, and libcurl takes the two for an error (C19). So it is in the seed's field
    for the same resource.
    """
    told = format_progress(0)
    if progress is not None:
        told = format_progress(progress.done, progress.total, progress.remark)
    fields = Fields({"progress": told})
    where = {"response-message-location": message} if message else {}
    return Interim(102, fields.plus(where))


class Follower:
    """Sends each progress of an operation to an exchange that waits for its outcome.

    At most one in *interval* seconds, and then the latest; it never waits for the peer.
    *nursery* is the server's, so that its tasks are no concern of those who wait.
    """

    def __init__(self, nursery: trio.Nursery, interval: float) -> None:
        self._nursery = nursery
        self._interval = interval

    @asynccontextmanager
    async def during(
        self, exchange: Exchange, operation: Operation, told: Progress | None = None
    ) -> AsyncIterator[None]:
        """Tell while the block runs, if the client asked for it; *told* it knows."""
        wanted = parse_preferences(exchange.head.fields).processing
        if not (wanted and exchange.can_interim):
            yield
            return
        async with beside(self._nursery, self._run, exchange, operation, told):
            yield

    async def _run(
        self, exchange: Exchange, operation: Operation, told: Progress | None
    ) -> None:
        while True:
            if operation.progress == told:
                await operation.wait_change()
            else:
                told = operation.progress
                exchange.offer_interim(processing(told))
                await trio.sleep(self._interval)
