"""Content on its way in: the writer's turn, seals, durability.

The writer's turn (R21, promise 3)
==================================

At most one request writes. Its receive loop runs inside the cancel scope of its
*turn*. A newcomer takes a place, cancels the scope and waits until the old writer has
left it; since the loop's only checkpoints are waits for the network or for room, it
does so at once even if the old connection is silent and open, and then at most two
pieces are still being written. Of several newcomers the last one gets the turn. Bytes
are handed on without a checkpoint after reading, and the turn is left when they are
written, so a cancelled writer has either written what it read, or not read it: nothing
of it arrives later. (The store's own generations guard the same from below.)

Writing
=======

Writes are jobs of the upload's lane: worker threads hash and write in their order, and
:attr:`Incoming.offset` counts them in already. When one fails, those behind it are
dropped, and the offset is what the next writer finds. The event loop itself touches no
file: even a write of a few bytes waits for the disk now and then, and all others with it.

Durability (promises 1 and 2)
=============================

Full chunks are sealed while the upload goes on: synced in the lane, where they became
full, then named in the catalog. :meth:`Incoming.make_durable` asks the writer for a
flush, in the lane too, so that all the chunks before it are synced; waits until they are
named, syncs the tail and records the offset; only what it returns may be announced.

After a failed sync the page cache proves nothing: the writer is given up, and the next
one starts from what was recorded. Beside a running writer that must not happen, so
whoever meets the failure there gets it raised, and the writer's own end clears it.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.server.signals import Holding, Signal
from trioresume.server.workers import Lane
from trioresume.store.port import HoldBack, LetCount

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from trioresume.protocol.digests import ContentCheck
    from trioresume.server.memory import Piece
    from trioresume.server.storage import Storage, Submission
    from trioresume.store.port import (
        Content,
        ContentKey,
        ContentWriter,
        Flush,
        Mutation,
        Seal,
        SealChunk,
    )

__all__ = ["MOST_PIECES", "Incoming", "kept"]

MOST_REMEMBERED = 16
"""Chunks of an upload that are remembered, so that its end need not look them up."""
MOST_PIECES = 2
"""Pieces of an upload on their way: one is written while the next one is received."""
MOST_AT_ONCE = 64
"""Chunks named in one commit where they need not all be: others wait for it."""

logger = logging.getLogger("trioresume.operations")


class _Turn:
    """A writer's right to write, held in the block: its place, and when it has left it.

    (A class, not a generator: those of all silent uploads are in memory.)
    """

    __slots__ = ("_incoming", "_scope", "left", "place")

    def __init__(self, incoming: Incoming, place: int) -> None:
        self.place = place
        self.left = Signal()
        self._incoming = incoming
        self._scope = trio.CancelScope()

    def end(self) -> None:
        """A newer request wants it."""
        self._scope.cancel()

    async def __aenter__(self) -> None:
        self._incoming.begin_turn(self)
        self._scope.__enter__()
        try:
            await self._incoming.open_writer()
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        try:
            caught = self._scope.__exit__(kind, error, trace)
            if (caught or error is None) and (
                self._scope.cancelled_caught or self._incoming.is_stale(self)
            ):
                raise self._incoming.refusal()
            return caught
        finally:
            await self._incoming.end_turn(self)


class Owner(Protocol):
    """Whose content it is."""

    def start(self, function: Callable[..., object], *args: object) -> None:
        """Run *function* in the server's nursery, keeping the operation in use."""
        ...

    def reserve(self, end: int) -> None:
        """The content will reach as far as *end*; may refuse it."""
        ...


class Incoming:
    """The request content of one operation, while it is under construction.

    *found* is where a writer would begin, if that was looked up just now.
    It holds until one is opened: nobody else writes.
    """

    __slots__ = (
        "_cuts_back",
        "_failed",
        "_found",
        "_held",
        "_lane",
        "_named",
        "_naming",
        "_offset",
        "_opening",
        "_owner",
        "_places",
        "_sealed",
        "_storage",
        "_turn",
        "_unnamed",
        "_writer",
        "creation",
        "durable_offset",
        "ended",
        "failure",
        "key",
    )

    def __init__(
        self,
        key: ContentKey,
        durable_offset: int,
        storage: Storage,
        owner: Owner,
        found: int | None = None,
    ) -> None:
        self.key = key
        self.durable_offset = durable_offset
        """Bytes that are known to be durable; never falls."""
        self.ended = False
        """Whether nothing more is to come: nobody gets the turn any more."""
        self.failure: StorageError | None = None
        """Why the last writer cannot go on."""
        self.creation: Submission | None = None
        """The operation's record on its way into the catalog, if nobody waited for it."""
        self._storage = storage
        self._owner = owner
        self._found = found
        self._writer: ContentWriter | None = None
        self._failed: ContentWriter | None = None
        """A writer that did not write something: nothing may follow by it."""
        self._offset = 0
        """The writer's, and what its lane is about to add."""
        self._lane = Lane(storage.workers)
        self._opening: trio.Lock | None = None
        self._turn: _Turn | None = None
        self._places = 0
        self._unnamed: list[tuple[int, Submission]] = []
        """Full chunks that the catalog does not name yet, in the order of submission."""
        self._held: list[SealChunk] | None = None
        """Chunks whose names wait for the end of what is to count as a whole."""
        self._cuts_back = False
        """Whether the disk has content that was held back and given up."""
        self._named = 0
        """How many chunks it names by now, or has refused to."""
        self._naming = Signal()
        self._sealed: list[SealChunk] | None = None
        """All chunks so far, in order, as long as they are few and all are known."""

    def new_lane(self) -> Lane:
        """For what else is to be done with the content, in worker threads."""
        return Lane(self._storage.workers)

    def begin(self) -> None:
        """The operation is new: its first writer needs no look at the disk."""
        self._writer = self._storage.store.new_writer(self.key)
        self._sealed = []

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
            self._turn.end()
            self._lane.hasten()  # behind hundreds of others it might take that long
            await self._turn.left.wait()
        return place

    async def end_writers(self) -> None:
        """Nothing more is to come (:attr:`ended`): end whoever writes, however new it is.

        On return nobody writes, and nobody will.
        """
        while self._turn is not None:
            self._turn.end()
            self._lane.hasten()
            await self._turn.left.wait()

    def refusal(self) -> PeerError:
        """Why a request does not have the turn any more, or does not get it."""
        if self.ended:
            return PeerError(ProblemCode.GONE, close=True)
        return PeerError(
            ProblemCode.SUPERSEDED,
            "a newer request for this upload arrived",
            close=True,
        )

    def writing(self, place: int) -> AbstractAsyncContextManager[None]:
        """Hold the writer's turn in the block; *place* is a claim to it.

        Raises :class:`PeerError` SUPERSEDED as soon as a newer request wants it, and GONE
        as soon as the upload is ended.
        """
        return _Turn(self, place)

    def begin_turn(self, turn: _Turn) -> None:
        if self._turn is not None or self.ended or self.is_stale(turn):
            raise self.refusal()
        self._turn = turn

    async def end_turn(self, turn: _Turn) -> None:
        if self._lane.pending:
            with trio.CancelScope(shield=True):
                await self._lane.until(0)
        self._turn = None
        turn.left.fire()
        if self._unnamed:
            self._storage.hurry()  # nothing of it is to come any more

    def is_stale(self, turn: _Turn) -> bool:
        """Whether a newer request wants the turn; after the end it is not needed."""
        return self._places != turn.place and not self.ended

    async def open_writer(self) -> ContentWriter:
        if self._writer is not None and self.failure is None:
            return self._writer
        # One opens: a second writer would make the first one stale.
        if self._opening is None:
            self._opening = trio.Lock()
        async with Holding(self._opening):
            if self.failure is not None:
                # After a failed sync only what was recorded counts: look again.
                await self._settle()
                self.failure = None
                self._cuts_back = False
                self.close()
            if self._writer is None:
                self._found = None
                self._writer = await self._storage.run(
                    self._storage.store.open_writer, self.key
                )
                self._offset = self._writer.offset
            return self._writer

    def rest(self) -> None:
        """Let go of the writer, but remember where the next one will begin."""
        if self._writer is not None:
            self._found = self._writer.offset
        self.close()

    def close(self) -> None:
        """Let go of the writer; bytes stay. Idempotent."""
        self._sealed = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # Receiving.

    @property
    def offset(self) -> int:
        """Bytes accepted. Known only within the turn; may be ahead of what is durable."""
        return self._offset

    def append(
        self,
        data: memoryview,
        piece: Piece | None = None,
        check: ContentCheck | None = None,
    ) -> None:
        """Write *data* at the offset, soon; no checkpoint. Only within the turn.

        It lies in *piece*, which is held until it is written, or is copied if it could
        change; *check* sees it first. Errors are raised by :meth:`room` and
        :meth:`written`.
        """
        writer = self._writer
        assert writer is not None
        self._owner.reserve(self._offset + len(data))
        data = kept(data, piece)
        self._offset += len(data)
        self._lane.put(
            partial(self._write, writer, data, check), partial(self._written, piece)
        )

    def show(self, data: memoryview, piece: Piece | None, check: ContentCheck) -> None:
        """Have *check* see *data*, after what was appended or shown before; as ``append``.

        For bytes that frame content and are none.
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
        """Called in a worker thread."""
        self._check_gap(writer)
        try:
            if check is not None:
                check.update(data)
            return _run(writer.append(data))
        except BaseException:
            self._failed = writer  # now: what comes behind does not wait for the loop
            raise

    def _check_gap(self, writer: ContentWriter) -> None:
        """Raise if bytes before those that are to follow were not written."""
        if self._failed is writer:
            raise StorageError("what came before was not written")

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
                # Its bytes are safe in the tail: the name can wait for company.
                self._unnamed.append((chunk.index, self._storage.submit_later(chunk)))
                if len(self._unnamed) == 1:
                    self._owner.start(self._name)
        elif self.failure is None:
            if not isinstance(error, StorageError):
                logger.error("a bug in writing %s", self.key, exc_info=error)
                error = StorageError("the content was not written")
            elif not self.ended:  # the end of an operation takes its chunks along
                logger.error("%s could not be written: %s", self.key, error)
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
        """Nothing comes for a while: hold less memory."""
        if self._writer is not None and not self._lane.pending:
            self._writer.relax()

    async def room(self) -> None:
        """Wait until few enough pieces are on their way to the disk.

        This is what bounds dirty memory and pushes back into the peer's TCP window.
        Raises :class:`StorageError` if one of them did not get there.
        """
        await self._lane.until(MOST_PIECES - 1)
        if self.failure is not None:
            raise self.failure

    async def _name(self) -> None:
        """Wait until the catalog names the chunks; one task does that for all of them."""
        try:
            while self._unnamed:
                index, submission = self._unnamed[0]
                try:
                    await submission.wait()
                except StorageError as exc:
                    if not self.ended:
                        logger.error(
                            "chunk %d of %s was not named: %s", index, self.key, exc
                        )
                    self.failure = exc
                del self._unnamed[0]
                self._named += 1
                self._naming.fire()
        finally:
            if self._unnamed:  # cancelled: nobody may wait for them, or count on them
                self.failure = self.failure or StorageError("the service was ended")
                self._named += len(self._unnamed)
                self._unnamed.clear()
                self._naming.fire()

    async def _settle(self) -> None:
        """Wait until the catalog names the chunks that were sealed so far."""
        target = self._named + len(self._unnamed)
        while self._named < target:
            self._storage.hurry()
            await self._naming.wait()

    # Durability.

    async def make_durable(self) -> int:
        """Make all that was accepted so far durable; the offset that may be announced.

        Works beside a running writer. Raises :class:`StorageError`.
        """
        if self._held is not None:
            return self.durable_offset  # what is being appended does not count yet
        if self.failure is not None and self._turn is not None:
            # The running writer has yet to learn of it; only its end may reopen.
            raise self.failure
        if self._writer is None:
            offset = self._found
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
            if not self.ended:
                self.failure = exc
            raise
        await self._settle()
        if self.failure is not None:
            raise self.failure
        if flush is not None:
            await self._flush(flush)
        self.durable_offset = max(self.durable_offset, offset)
        return self.durable_offset

    async def _begin_flush(self, writer: ContentWriter) -> tuple[Flush | None, int]:
        """The flush of all that is accepted now, and the offset that it makes durable.

        What is accepted later has no part in it: the seals of its chunks may not even
        be known here.
        """
        if not self._lane.pending:
            return writer.flush(), writer.offset
        return await self._lane.call(lambda: (writer.flush(), writer.offset))

    async def _flush(self, flush: Flush) -> None:
        try:
            await self._storage.commit(await self._storage.run(flush.run))
        except StorageError as exc:
            # The writer is broken now, or might be: the next one opens another.
            self.failure = exc
            raise

    # What is to be judged before it counts (B8, D7, C15).

    async def hold_back(self) -> None:
        """From now on what is appended does not count, until :meth:`let_count`.

        A crash, a full disk or :meth:`end_hold` takes all of it away. It lies on the disk
        like any content in the meantime, so that memory, free space and quotas hold for
        it. Only within the turn. Raises :class:`StorageError`.
        """
        await self.make_durable()
        await self.open_writer()
        await self._storage.commit(HoldBack(self.key, self.durable_offset))
        self._held = []

    async def let_count(self, *, at_once: bool) -> None:
        """What was held back counts, and is durable on return.

        With *at_once* a crash leaves all of it or nothing. Otherwise it may leave a part,
        and other commits pass between. Raises :class:`StorageError`.
        """
        held = self._held
        assert held is not None
        await self.written()
        flush, offset = await self._begin_flush(await self.open_writer())
        recorded = [] if flush is None else [await self._storage.run(flush.run)]
        # If this were given up, it might be done after the next writer has looked.
        with trio.CancelScope(shield=True):
            while not at_once and len(held) > MOST_AT_ONCE:
                await self._storage.commit(*held[:MOST_AT_ONCE])
                del held[:MOST_AT_ONCE]
            await self._storage.commit(*held, *recorded, LetCount(self.key))
        self.durable_offset = max(self.durable_offset, offset)
        self._held = None

    def end_hold(self) -> None:
        """Give up what is still held back. The next writer starts where the hold began."""
        if self._held is not None:
            self._held = None
            self._cuts_back = True
            if self.failure is None:
                self.failure = StorageError("the patch was not applied as a whole")

    async def cut_back(self) -> None:
        """Free the space of what was given up, unless somebody went on meanwhile.

        Otherwise it would lie there until somebody asks for the upload, or it expires.
        """
        if self._cuts_back and self._turn is None and not self.ended:
            try:
                await self.open_writer()
            except StorageError as exc:
                if not self.ended:
                    logger.warning("%s was not cut back: %s", self.key, exc)

    async def finish(self) -> tuple[Content, list[Mutation]]:
        """Seal the rest: the content, and the mutations that freeze it.

        They are not committed yet. Raises :class:`StorageError`; then the content can
        be finished later, by a new writer.
        """
        writer = await self.open_writer()
        seals = await self._lane.call(partial(self._finish, writer))
        await self._settle()
        if self.failure is not None:
            raise self.failure
        self.check_created()
        earlier = [] if self._sealed is None else self._sealed
        return await self._storage.finish_content(writer, self.key, earlier, seals)

    def check_created(self) -> None:
        """Raise the :class:`StorageError` because of which there is no operation.

        To be called after a later commit. Without a record most changes are dropped
        silently, and others conflict: neither says what is wrong.
        """
        error = None if self.creation is None else self.creation.error
        if error is not None:
            raise type(error)(*error.args) from error

    def _finish(self, writer: ContentWriter) -> list[SealChunk]:
        """Called in a worker thread, after what was appended."""
        if self.failure is not None:
            raise self.failure
        self._check_gap(writer)
        return _run(writer.finish())


def kept(data: memoryview, piece: Piece | None) -> memoryview:
    """*data* as it may be read later: its *piece* is held, what could change is copied."""
    if piece is not None:
        piece.hold()
    elif not data.readonly:
        data = memoryview(bytes(data))
    return data


def _run(seals: Sequence[Seal]) -> list[SealChunk]:
    return [seal.run() for seal in seals]
