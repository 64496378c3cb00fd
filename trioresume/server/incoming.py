"""Content on its way in: the writer's turn, seals, durability.

The writer's turn (R21, promise 3)
==================================

At most one request writes. Its receive loop runs inside the cancel scope of its
*turn*. A newcomer takes a place, cancels the scope and waits until the old writer has
left it; since the loop's only checkpoints are waits for the network or for room, that
takes microseconds even if the old connection is silent and open. Of several newcomers
the last one gets the turn. Bytes are appended without a checkpoint between reading and
writing, so a cancelled writer has either written what it read, or not read it: nothing
of it arrives later. (The store's own generations guard the same from below.)

Durability (promises 1 and 2)
=============================

Full chunks are sealed in the background while the upload goes on: synced in a thread,
then named in the catalog. :meth:`Incoming.make_durable` waits for the seals issued so
far, syncs the tail and records the offset; only what it returns may be announced.

After a failed sync the page cache proves nothing: the writer is given up, and the next
one starts from what was recorded. Beside a running writer that must not happen, so
whoever meets the failure there gets it raised, and the writer's own end clears it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.server.storage import Storage
    from trioresume.store.port import ContentKey, ContentWriter, Flush, Mutation, Seal
    from trioresume.store.recipe import Recipe

__all__ = ["Incoming"]

logger = logging.getLogger("trioresume.operations")


class _Turn:
    """A writer's right to write: its place, its scope, and when it has left it."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.scope = trio.CancelScope()
        self.left = trio.Event()


class Incoming:
    """The request content of one operation, while it is under construction.

    *start* runs a function in the server's nursery, keeping the operation in use.
    """

    def __init__(
        self,
        key: ContentKey,
        durable_offset: int,
        storage: Storage,
        most_unsealed: int,
        start: Callable[..., None],
    ) -> None:
        self.key = key
        self.durable_offset = durable_offset
        """Bytes that are known to be durable; never falls."""
        self.ended = False
        """Whether nothing more is to come: nobody gets the turn any more."""
        self.failure: StorageError | None = None
        """Why the last writer cannot go on."""
        self._storage = storage
        self._most_unsealed = most_unsealed
        self._start = start
        self._writer: ContentWriter | None = None
        self._opening = trio.Lock()
        self._turn: _Turn | None = None
        self._places = 0
        self._unsynced: set[int] = set()
        """Full chunks whose bytes are on their way to the disk."""
        self._unsealed: set[int] = set()
        """Those and the ones that the catalog does not name yet."""
        self._seal_moved = trio.Event()

    def begin(self) -> None:
        """The operation is new: its first writer needs no look at the disk."""
        self._writer = self._storage.store.new_writer(self.key)

    # The writer's turn.

    @property
    def has_writer(self) -> bool:
        """Whether a request holds the turn."""
        return self._turn is not None

    async def end_writer(self) -> int:
        """End a running writer; on return it has left and writes no more (R21).

        What is returned is the caller's place among the newcomers, for :meth:`writing`.
        """
        self._places += 1
        place = self._places
        # Woken together, a newer request may have the turn before an older one looks.
        while self._turn is not None and self._turn.place < place:
            self._turn.scope.cancel()
            await self._turn.left.wait()
        return place

    @asynccontextmanager
    async def writing(self, place: int) -> AsyncIterator[None]:
        """Hold the writer's turn, which *place* is a claim to.

        Raises :class:`PeerError` SUPERSEDED as soon as a newer request wants it.
        """
        if self._turn is not None or self.ended or self._is_stale(place):
            raise _superseded()
        turn = self._turn = _Turn(place)
        try:
            with turn.scope:
                await self._open_writer()
                yield
            if turn.scope.cancelled_caught or self._is_stale(place):
                raise _superseded()
        finally:
            self._turn = None
            turn.left.set()
            if self._unsealed:
                self._storage.hurry()  # nothing of it is to come any more

    def _is_stale(self, place: int) -> bool:
        """Whether a newer request wants the turn; after the end it is not needed."""
        return self._places != place and not self.ended

    async def _open_writer(self) -> ContentWriter:
        # One opens: a second writer would make the first one stale.
        async with self._opening:
            if self.failure is not None:
                # After a failed sync only what was recorded counts: look again.
                await self._settle()
                self.failure = None
                self.close()
            if self._writer is None:
                self._writer = await self._storage.run(
                    self._storage.store.open_writer, self.key
                )
            return self._writer

    def close(self) -> None:
        """Let go of the writer; bytes stay. Idempotent."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # Receiving.

    @property
    def offset(self) -> int:
        """Bytes accepted. Known only within the turn; may be ahead of what is durable."""
        assert self._writer is not None
        return self._writer.offset

    def append(self, data: memoryview) -> None:
        """Write *data* at the offset, without a checkpoint. Only within the turn."""
        assert self._writer is not None
        for seal in self._writer.append(data):
            self._unsynced.add(seal.index)
            self._unsealed.add(seal.index)
            self._start(self._seal, seal)

    @property
    def has_room(self) -> bool:
        """False while :meth:`room` would wait or raise."""
        return len(self._unsynced) < self._most_unsealed and self.failure is None

    async def room(self) -> None:
        """Wait until few enough chunks are on their way to the disk.

        This is what bounds dirty memory and pushes back into the peer's TCP window.
        Raises :class:`StorageError` if one of them did not get there.
        """
        while len(self._unsynced) >= self._most_unsealed:
            await self._seal_moved.wait()
        if self.failure is not None:
            raise self.failure

    async def _seal(self, seal: Seal) -> None:
        try:
            sealed = await self._storage.run(seal.run)
            self._unsynced.discard(seal.index)
            self._note_seal()
            if self._turn is None:
                await self._storage.commit(sealed)
            else:
                # Its bytes are safe in the tail: the name can wait for company.
                await self._storage.submit_later(sealed).wait()
        except StorageError as exc:
            if not self.ended:  # the end of an operation takes its seals along
                logger.error(
                    "chunk %d of %s was not sealed: %s", seal.index, self.key, exc
                )
            self.failure = exc
        finally:
            self._unsynced.discard(seal.index)
            self._unsealed.discard(seal.index)
            self._note_seal()

    def _note_seal(self) -> None:
        self._seal_moved.set()
        self._seal_moved = trio.Event()

    async def _settle(self) -> None:
        """Wait for the seals issued so far."""
        waited = set(self._unsealed)
        while waited & self._unsealed:
            self._storage.hurry()
            await self._seal_moved.wait()

    # Durability.

    async def make_durable(self) -> int:
        """Make all that was accepted so far durable; the offset that may be announced.

        Works beside a running writer. Raises :class:`StorageError`.
        """
        if self.failure is not None and self._turn is not None:
            # The running writer has yet to learn of it; only its end may reopen.
            raise self.failure
        if self._writer is None:
            offset = await self._storage.run(self._storage.store.offset, self.key)
            if offset == self.durable_offset:
                return offset
        writer = await self._open_writer()
        flush = writer.flush()
        offset = writer.offset
        await self._settle()
        if self.failure is not None:
            raise self.failure
        if flush is not None:
            await self._flush(flush)
        self.durable_offset = max(self.durable_offset, offset)
        return self.durable_offset

    async def _flush(self, flush: Flush) -> None:
        try:
            await self._storage.commit(await self._storage.run(flush.run))
        except StorageError as exc:
            # The writer is broken now, or might be: the next one opens another.
            self.failure = exc
            raise

    async def finish(self) -> tuple[Recipe, list[Mutation]]:
        """Seal the rest: the recipe, and the mutations that freeze the content.

        They are not committed yet. Raises :class:`StorageError`; then the content can
        be finished later, by a new writer.
        """
        writer = await self._open_writer()
        await self._settle()
        if self.failure is not None:
            raise self.failure
        return await self._storage.finish_content(writer, self.key)


def _superseded() -> PeerError:
    return PeerError(
        ProblemCode.SUPERSEDED, "a newer request for this upload arrived", close=True
    )
