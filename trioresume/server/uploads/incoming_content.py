"""The content of an upload on its way in: one writer, jobs in order, durable offsets.

The numbered statements (R21, B8 …) are in docs/supported-protocols.md. docs/durability.md
says which announced offsets survive.

Offsets
=======

An offset is a number of bytes from the start of the content. There are three:

* The *accepted* offset: the bytes that the lane was given (:attr:`IncomingContent.offset`).
* The *stored* offset: the bytes that lie in the store's files. A new writer begins there
  (``ContentWriter.offset``, ``Store.offset``).
* The *durable* offset: the bytes that no crash takes away, and so may be announced
  (:attr:`IncomingContent.durable_offset`, and in the catalog ``OperationRecord.durable_offset``).

None is above the one before it in this list.

Writing
=======

Writes are jobs in the upload's lane: worker threads hash and write in order.
:attr:`IncomingContent.offset` includes the jobs that are still waiting. If one fails, those behind
it are dropped, and the next writer finds the offset on the disk. The event loop itself
touches no file: even a write of a few bytes waits for the disk now and then, and all other
connections would wait with it.

Durability
==========

Full chunks are sealed while the upload goes on: the lane syncs each one when it is full,
then the catalog names it. :meth:`IncomingContent.make_durable` asks the writer for a flush, in the
lane too, so that all the chunks before it are synced. Then it waits until the catalog names
them, syncs the tail and records the offset. Only the offset that it returns may be announced.

After a failed sync the page cache proves nothing: the writer is given up, and the next one
starts from the recorded offset. That must not happen beside a running writer. So a caller of
:meth:`IncomingContent.make_durable` that meets the failure then gets it raised. The writer's own
end clears the failure.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import trio

from trioresume.errors import StaleWriter, StorageError
from trioresume.server.async_store.threads import Lane
from trioresume.server.event_loop import Signal
from trioresume.server.uploads.locations import concealed
from trioresume.server.uploads.turns import Turn, Turns
from trioresume.store.port import HoldBack, LetCount

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from trioresume.protocol.digests import ContentCheck
    from trioresume.server.async_store.receive_memory import Piece
    from trioresume.server.async_store.storage import Storage, Submission
    from trioresume.store.port import (
        Content,
        ContentKey,
        ContentWriter,
        Flush,
        Mutation,
        Seal,
        SealChunk,
    )

    _Ends = tuple[list[SealChunk], list[SealChunk]]
    """The chunks that an append has filled, and those that the end has sealed."""

__all__ = ["IncomingContent", "run_seals"]

MOST_REMEMBERED = 16
"""Chunks of an upload that are remembered, so that its end need not look them up."""
MOST_PIECES = 2
"""Pieces of an upload in the lane: one is written while the next one is received."""
MOST_AT_ONCE = 64
"""Chunks named in one commit if not all must be: other commits wait for it."""

logger = logging.getLogger("trioresume.operations")


class Owner(Protocol):
    """The operation that the content belongs to."""

    def start(self, function: Callable[..., object], *args: object) -> None:
        """Run *function* in the server's nursery; the operation is in use meanwhile."""
        ...


class IncomingContent:
    """The request content of one operation, while it is being received.

    *stored* is the stored offset, if it was looked up just now. It holds until a
    writer is opened, because nobody else writes.
    """

    __slots__ = (
        "_cuts_back",
        "_failed",
        "_finished",
        "_held",
        "_lane",
        "_named",
        "_naming",
        "_opening",
        "_owner",
        "_recorded",
        "_sealed",
        "_storage",
        "_stored",
        "_unnamed",
        "_writer",
        "creation",
        "durable_offset",
        "failure",
        "key",
        "offset",
        "turns",
    )

    def __init__(
        self,
        key: ContentKey,
        durable_offset: int,
        storage: Storage,
        owner: Owner,
        stored: int | None = None,
    ) -> None:
        self.key = key
        self.durable_offset = durable_offset
        """The durable offset, as far as it is known. Never falls."""
        self.failure: StorageError | None = None
        """The failure because of which the last writer cannot go on."""
        self.creation: Submission | None = None
        """The operation's record on its way into the catalog, if nobody waited for it."""
        self._storage = storage
        self._owner = owner
        self._stored = stored
        self._writer: ContentWriter | None = None
        self._failed: ContentWriter | None = None
        """A writer that has missed a write: nothing more may be written through it."""
        self.offset = 0
        """The accepted offset. Known only within the turn."""
        self._lane = Lane(storage.workers)
        self.turns = Turns(self._lane)
        self._opening: Signal | None = None
        """Fired when the task that opens a writer has ended; None while no task does."""
        self._unnamed: list[tuple[SealChunk, Submission]] = []
        """Full chunks that the catalog does not name yet, in the order of submission."""
        self._finished: tuple[ContentWriter, list[SealChunk]] | None = None
        """The writer that :meth:`append_last` has finished, and its last chunks."""
        self._held: list[SealChunk] | None = None
        """Chunks that are named only when the content that is held back counts."""
        self._cuts_back = False
        """Whether the disk has content that was held back and then given up."""
        self._named = 0
        """How many chunks the catalog has named by now, or has refused to name."""
        self._naming = Signal()
        self._recorded: Submission | None = None
        """The latest recording of an offset by this writer."""
        self._sealed: list[SealChunk] | None = None
        """All chunks so far, in order; None if they are too many or not all are known."""

    def begin(self) -> None:
        """Open the first writer of a new operation, without looking at the disk."""
        self._writer = self._storage.store.new_writer(self.key)
        self._sealed = []

    def writing(self, place: int) -> AbstractAsyncContextManager[None]:
        """Hold the writer's turn in the block; *place* comes from :meth:`Turns.end_writer`.

        Raises :class:`PeerError` SUPERSEDED as soon as a newer request wants the turn, and
        GONE as soon as the upload is ended.
        """
        return Turn(self, place)

    def hurry(self) -> None:
        """Have the chunks named now: no more of them will come to share the commit.

        At the end of the content they are named with the commit that freezes it.
        """
        if self._unnamed and not self.turns.ended:
            self._storage.hurry()

    async def open_writer(self) -> ContentWriter:
        if self._writer is not None and self.failure is None:
            return self._writer
        # Only one task opens: a second writer would make the first one stale.
        while self._opening is not None:
            await self._opening.wait()
        opening = self._opening = Signal()
        try:
            if self.failure is not None:
                # After a failed sync only the recorded bytes count: look again.
                await self._settle()
                self.failure = None
                self._recorded = None
                self._cuts_back = False
                self.close()
            if self._writer is None:
                self._stored = None
                self._writer = await self._storage.run(
                    self._storage.store.open_writer, self.key
                )
                self.offset = self._writer.offset
            return self._writer
        finally:
            self._opening = None
            opening.fire()

    def rest(self) -> None:
        """Close the writer, but remember where the next one will begin."""
        if self._writer is not None:
            self._stored = self._writer.offset
        self.close()

    def close(self) -> None:
        """Close the writer; its bytes stay. Idempotent."""
        self._sealed = self._finished = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # Receiving.

    def append(
        self,
        data: memoryview,
        piece: Piece | None = None,
        check: ContentCheck | None = None,
    ) -> None:
        """Write *data* at the accepted offset, soon. Not a checkpoint. Only within the turn.

        *data* lies in *piece*, which is held until the write is done. Without a piece, *data*
        is copied if it could change. *check* sees the data first. :meth:`room` and
        :meth:`written` raise the errors.
        """
        writer = self._held_writer()
        data = kept(data, piece)
        self.offset += len(data)
        self._lane.put(
            partial(self._write, writer, data, check), partial(self._written, piece)
        )

    def _held_writer(self) -> ContentWriter:
        """Return the writer of the turn.

        Raises :class:`StaleWriter` if another process has taken the upload over. That closes
        the writer, and a request that was receiving at this moment may still have its turn.
        """
        if self._writer is None:
            raise StaleWriter("another process has taken the upload over")
        return self._writer

    def append_last(self, data: memoryview, piece: Piece | None = None) -> None:
        """Append *data*, with which the content ends, and seal the rest in the same job.

        :meth:`finish` then needs no job of its own. If the request does not complete the
        upload after all, a later one can: the content is whole.
        """
        writer = self._held_writer()
        data = kept(data, piece)
        self.offset += len(data)
        self._lane.put(
            partial(self._write_last, writer, data),
            partial(self._written_last, writer, piece),
        )

    def _write_last(self, writer: ContentWriter, data: memoryview) -> _Ends:
        """Write and finish in a worker thread."""
        chunks = self._write(writer, data, None)
        try:
            return chunks, run_seals(writer.finish())
        except BaseException:
            self._failed = writer
            raise

    def _written_last(
        self,
        writer: ContentWriter,
        piece: Piece | None,
        ends: object,
        error: Exception | None,
    ) -> None:
        chunks: list[SealChunk] = []
        if error is None:
            chunks, last = cast("_Ends", ends)
            self._finished = writer, last
        self._written(piece, chunks, error)

    def show(self, data: memoryview, piece: Piece | None, check: ContentCheck) -> None:
        """Let *check* see *data*, after everything that was appended or shown before.

        This is for bytes that frame content, and are no content. *piece* is as in ``append``.
        """
        self._lane.put(
            partial(check.update, kept(data, piece)), partial(self._shown, piece)
        )

    def _shown(
        self, piece: Piece | None, result: object, error: Exception | None
    ) -> None:
        self._written(piece, [], error)

    def _write(
        self, writer: ContentWriter, data: memoryview, check: ContentCheck | None
    ) -> list[SealChunk]:
        """Write in a worker thread."""
        self._check_gap(writer)
        try:
            if check is not None:
                check.update(data)
            return run_seals(writer.append(data))
        except BaseException:
            self._failed = writer  # at once: the next job starts without the loop
            raise

    def _check_gap(self, writer: ContentWriter) -> None:
        """Raise if the bytes just before the next ones were not written."""
        if self._failed is writer:
            raise StorageError(
                "the bytes before these were not written; go on at the stored offset"
            )

    def _written(
        self, piece: Piece | None, sealed: object, error: Exception | None
    ) -> None:
        if piece is not None:
            piece.release()
        if error is None:
            chunks = cast("list[SealChunk]", sealed)
            if self._sealed is not None:
                self._sealed += chunks
                if len(self._sealed) > MOST_REMEMBERED:
                    self._sealed = None
            for chunk in chunks:
                if self._held is not None:
                    self._held.append(chunk)
                    continue
                # Its bytes are safe in the tail, so its name can share a later commit.
                self._unnamed.append((chunk, self._storage.submit_later(chunk)))
                if len(self._unnamed) == 1:
                    self._owner.start(self._name)
        elif self.failure is None:
            if not isinstance(error, StorageError):
                logger.error("a bug in writing %s", concealed(self.key), exc_info=error)
                error = StorageError("a bug kept the content from being written")
            elif not self.turns.ended:  # the end of an operation removes its chunks
                logger.error("%s could not be written: %s", concealed(self.key), error)
            self.failure = error

    @property
    def has_room(self) -> bool:
        """False while :meth:`room` would wait or raise."""
        return self._lane.pending < MOST_PIECES and self.failure is None

    async def written(self) -> None:
        """Wait until everything appended is written. Raises :class:`StorageError`."""
        await self._lane.until(0)
        if self.failure is not None:
            raise self.failure

    def relax(self) -> None:
        """Hold less memory, because no data comes for a while."""
        if self._writer is not None and not self._lane.pending:
            self._writer.relax()

    async def room(self) -> None:
        """Wait until only a few pieces are on their way to the disk.

        This bounds dirty memory and pushes back into the peer's TCP window. Raises
        :class:`StorageError` if a piece could not be written.
        """
        await self._lane.until(MOST_PIECES - 1)
        if self.failure is not None:
            raise self.failure

    async def _name(self) -> None:
        """Wait until the catalog names the chunks. One task does this for all of them."""
        try:
            while self._unnamed:
                chunk, submission = self._unnamed[0]
                try:
                    await submission.wait()
                except StorageError as exc:
                    if not self.turns.ended:
                        logger.error(
                            "chunk %d of %s was not named: %s",
                            chunk.index,
                            concealed(self.key),
                            exc,
                        )
                    self.failure = exc
                del self._unnamed[0]
                self._named += 1
                self._naming.fire()
        finally:
            if self._unnamed:  # cancelled: no task may wait for these or rely on them
                self.failure = self.failure or StorageError("the service was ended")
                self._named += len(self._unnamed)
                self._unnamed.clear()
                self._naming.fire()

    async def _settle(self) -> None:
        """Wait until the catalog names the chunks that are sealed now."""
        target = self._named + len(self._unnamed)
        while self._named < target:
            self._storage.hurry()
            await self._naming.wait()

    # Durability.

    async def make_durable(self) -> int:
        """Make all accepted bytes durable; return the durable offset.

        Works beside a running writer. Raises :class:`StorageError`.
        """
        if self._held is not None:
            return self.durable_offset  # content that is held back does not count yet
        if self.failure is not None and self.turns.has_writer:
            # The running writer has not seen the failure yet; only its end may reopen.
            raise self.failure
        if self._writer is None:
            offset = self._stored
            if offset is None:
                offset = await self._storage.run(self._storage.store.offset, self.key)
            if self._storage.store.durable_at_once:
                self.durable_offset = max(self.durable_offset, offset)
            if offset == self.durable_offset:
                return offset
        writer = await self.open_writer()
        try:
            flush, offset = await self._begin_flush(writer)
        except StorageError as exc:
            if not self.turns.ended:
                self.failure = exc
            raise
        await self._settle()
        if self.failure is not None:
            raise self.failure
        try:
            if flush is not None:
                recorded = await self._storage.run(flush.run)
                self._recorded = self._storage.submit(recorded)
            if self._recorded is not None:
                # Another task may have synced these bytes. They count once they are recorded.
                await self._recorded.wait()
        except StorageError as exc:
            # The writer may be broken now: open another one next time.
            self.failure = exc
            raise
        self.durable_offset = max(self.durable_offset, offset)
        return self.durable_offset

    async def _begin_flush(self, writer: ContentWriter) -> tuple[Flush | None, int]:
        """Return the flush of all bytes accepted now, and the offset that it makes durable.

        Bytes accepted later do not belong to it: the seals of their chunks may not even be
        known here.
        """
        if not self._lane.pending:
            return writer.flush(), writer.offset
        return await self._lane.call(lambda: (writer.flush(), writer.offset))

    # Content that is held back until it is judged as a whole (B8, D7, C15).

    async def hold_back(self) -> None:
        """Hold back everything that is appended from now on, until :meth:`let_count`.

        A crash, a full disk or :meth:`end_hold` removes all of it. Meanwhile it lies on the
        disk like any content, so that the limits of memory, free space and quotas apply to
        it. Only within the turn. Raises :class:`StorageError`.
        """
        await self.make_durable()
        await self.open_writer()
        await self._storage.commit(HoldBack(self.key, self.durable_offset))
        self._held = []

    async def let_count(self, *, at_once: bool) -> None:
        """Let the content count that was held back; it is durable on return.

        With *at_once* a crash leaves all of it or nothing. Without it a crash may leave a
        part, and other commits may come in between. Raises :class:`StorageError`.
        """
        held = self._held
        assert held is not None
        await self.written()
        flush, offset = await self._begin_flush(await self.open_writer())
        recorded = [] if flush is None else [await self._storage.run(flush.run)]
        # A shield: a cancelled commit might still take effect after the next writer's look.
        with trio.CancelScope(shield=True):
            while not at_once and len(held) > MOST_AT_ONCE:
                await self._storage.commit(*held[:MOST_AT_ONCE])
                del held[:MOST_AT_ONCE]
            await self._storage.commit(*held, *recorded, LetCount(self.key))
        self.durable_offset = max(self.durable_offset, offset)
        self._held = None

    def end_hold(self) -> None:
        """Give up the content that is still held back. The next writer starts before it."""
        if self._held is not None:
            self._held = None
            self._cuts_back = True
            if self.failure is None:
                self.failure = StorageError("the patch was not applied as a whole")

    async def cut_back(self) -> None:
        """Free the space of content that was given up, unless another writer has begun.

        Otherwise it would stay there until a request for the upload comes, or it expires.
        """
        if self._cuts_back and not self.turns.has_writer and not self.turns.ended:
            try:
                await self.open_writer()
            except StorageError as exc:
                if not self.turns.ended:
                    logger.warning("%s was not cut back: %s", concealed(self.key), exc)

    async def finish(self) -> tuple[Content, list[Mutation]]:
        """Seal the rest; return the content, and the mutations that freeze it.

        The mutations are not committed yet. They also name the chunks that the catalog does
        not name yet, so that nothing waits for another commit first; naming a chunk twice
        does nothing. Raises :class:`StorageError`; then a new writer can finish the content
        later.
        """
        writer = await self.open_writer()
        if self._finished is not None and self._finished[0] is writer:
            seals = self._finished[1]
        else:
            seals = await self._lane.call(partial(self._finish, writer))
        if self.failure is not None:
            raise self.failure
        self.check_created()
        unnamed = [chunk for chunk, _ in self._unnamed]  # the last ones of all
        sealed = self._sealed or []
        named = sealed[: max(0, len(sealed) - len(unnamed))]
        return await self._storage.finish_content(
            writer, self.key, named, [*unnamed, *seals]
        )

    def check_created(self) -> None:
        """Raise the :class:`StorageError` that kept the operation from being created.

        Call this after a later commit. Without the operation's record most changes are
        dropped silently, and others conflict: neither shows the cause.
        """
        error = None if self.creation is None else self.creation.error
        if error is not None:
            raise type(error)(*error.args) from error

    def _finish(self, writer: ContentWriter) -> list[SealChunk]:
        """Finish in a worker thread, after everything appended."""
        if self.failure is not None:
            raise self.failure
        self._check_gap(writer)
        return run_seals(writer.finish())


def kept(data: memoryview, piece: Piece | None) -> memoryview:
    """Return *data* in a form that can be read later: hold its *piece*, or copy it."""
    if piece is not None:
        piece.hold()
    elif not data.readonly:
        data = memoryview(bytes(data))
    return data


def run_seals(seals: Sequence[Seal]) -> list[SealChunk]:
    """Sync what *seals* cover, in a worker thread. Raises :class:`StorageError`."""
    return [seal.run() for seal in seals]
