"""``post-receive``: tells how much of each upload is durable, while it arrives.

This is not in the outbox. What it tells is old as soon as the next one is sent, so it may be
lost. An upload is told of once it has another chunk's worth of bytes, which are made durable
first. So small uploads are never told of, and the others cost one more sync for each chunk at
most. An upload has one call at a time. If the receiver is slower than the uploads, they take
turns.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import trio

from trioresume.errors import StorageError
from trioresume.hooks.answers import HookAnswer, HookFailed

if TYPE_CHECKING:
    from trioresume.hooks.operations import ToldOperation

__all__ = ["ProgressTeller"]

logger = logging.getLogger("trioresume.hooks")


class ProgressTeller:
    """Tells of *receiving()*, the uploads that are being received, by *tell*."""

    def __init__(
        self,
        receiving: Callable[[], Iterable[ToldOperation]],
        tell: Callable[[ToldOperation], Awaitable[HookAnswer]],
        interval: float,
        step: int,
        most: int,
    ) -> None:
        self._receiving = receiving
        self._tell = tell
        self._interval = interval
        self._step = step
        self._most = most
        self._running: set[ToldOperation] = set()

    async def run(self) -> None:
        """Tell until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._interval)
                news = [
                    operation
                    for operation in self._receiving()
                    if operation.incoming.offset - operation.told_offset >= self._step
                    and operation not in self._running
                ]
                news.sort(key=lambda operation: operation.told_at)
                for operation in news[: self._most - len(self._running)]:
                    self._running.add(operation)
                    nursery.start_soon(self._tell_one, operation)

    async def _tell_one(self, operation: ToldOperation) -> None:
        operation.users += 1  # it stays in memory
        operation.told_at = trio.current_time()
        try:
            offset = await operation.make_durable()
            if offset > operation.told_offset and operation.is_receiving:
                operation.told_offset = offset
                answer = await self._tell(operation)
                if answer.rejects:
                    await operation.stop(answer.response)
        except (HookFailed, StorageError) as exc:
            logger.warning("post-receive of %s…: %s", operation.id[:6], exc)
        finally:
            self._running.discard(operation)
            operation.let_go()
