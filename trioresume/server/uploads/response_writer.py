"""Write the content of a response that is too large for the catalog.

G8 is in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import StorageFull
from trioresume.server.api.handler import BLOCK_SIZE, closing_iterator
from trioresume.server.async_store.threads import Lane
from trioresume.server.uploads.incoming_content import run_seals
from trioresume.store.port import response_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from trioresume.errors import StorageError
    from trioresume.server.async_store.storage import Storage
    from trioresume.store.port import Content, ContentWriter, Mutation, OperationId

__all__ = ["Patience", "ResponseWriter"]

logger = logging.getLogger("trioresume.operations")

LONGEST_RETRY = 60.0


class Patience:
    """Waits for a store that is full, longer each time (G8)."""

    def __init__(self, id: OperationId) -> None:
        self._id = id
        self._delay = 1.0

    async def wait(self, exc: StorageError) -> None:
        logger.error("the response of %s cannot be recorded yet: %s", self._id, exc)
        await trio.sleep(self._delay)
        self._delay = min(2 * self._delay, LONGEST_RETRY)


class ResponseWriter:
    """Writes the content of an operation's response into chunks.

    Like request content it goes through a lane: worker threads write, hash and sync it.
    """

    def __init__(self, id: OperationId, storage: Storage) -> None:
        self._id = id
        self._key = response_key(id)
        self._storage = storage
        self._lane = Lane(storage.workers)

    async def write(
        self, body: bytes | AsyncIterable[bytes]
    ) -> tuple[Content, list[Mutation]]:
        """Store *body*; return its content, and the mutations that keep it.

        Waits while the disk is full. Raises :class:`StorageError`, and what *body* raises.
        """
        writer = await self._storage.run(self._storage.store.open_writer, self._key)
        try:
            if isinstance(body, bytes):
                await self._append(writer, body)
            else:
                await self._append_blocks(writer, body)
            seals = await self._lane.call(lambda: run_seals(writer.finish()))
            return await self._storage.finish_content(writer, self._key, [], seals)
        finally:
            # A shield: one job at most is still at work with the writer's files.
            with trio.CancelScope(shield=True):
                await self._lane.until(0)
            writer.close()

    async def _append_blocks(
        self, writer: ContentWriter, blocks: AsyncIterable[bytes]
    ) -> None:
        """Append *blocks*, small ones together: each append is a job for a thread."""
        gathered: list[bytes] = []
        size = 0
        async with closing_iterator(blocks) as iterator:
            async for block in iterator:
                gathered.append(block)
                size += len(block)
                if size >= BLOCK_SIZE:
                    await self._append(writer, b"".join(gathered))
                    gathered, size = [], 0
        await self._append(writer, b"".join(gathered))

    async def _append(self, writer: ContentWriter, block: bytes) -> None:
        """Append *block*, waiting for space: the target's call is not repeated."""
        patience = Patience(self._id)
        end = writer.offset + len(block)
        while writer.offset < end:
            rest = memoryview(block)[len(block) - (end - writer.offset) :]
            try:
                seals = await self._lane.call(partial(writer.append, rest))
            except StorageFull as exc:
                await patience.wait(exc)
                continue
            if seals:
                # Not in the same job: after a sync that failed, no patience helps.
                run = partial(run_seals, seals)
                await self._storage.commit(*await self._lane.call(run))
