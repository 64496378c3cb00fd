"""One operation of a store that several processes share: see :mod:`trioresume.store.port.sharing`.

While an operation is in memory, this process *owns* it and may change it, or it *views* it. A
view is made of the catalog's record and of what the owner tells. Both kinds are the same object
and change into each other in place, so that requests which wait for the outcome go on waiting.

===================  ===================================================================
a request creates    this process owns what it creates
HEAD                 a view: the owner ends its writer, makes durable what has arrived,
                     and tells the offset; if it does not in time, what is recorded holds
GET                  a view, kept up to date while a request waits
PATCH, DELETE        claimed; if the owner processes it: a view, or cancelled there
nobody owns it       claimed, unless it has ended
===================  ===================================================================

The newest request wins wherever it arrives: a claim ends the owner's writer like a newer request
does, and the end of a claim is the beginning of the next one. All of this is in one task at a
time for each operation (``_turn``).

A view never writes: its turns are surrendered, and every change checks ``is_held``. An owner that
was fenced off learns it from its next commit (:meth:`OwnShare.lose`), or when a writer turns out
to be stale. The store does not rely on that.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from trioresume.errors import (
    ContentLost,
    StaleWriter,
    StorageError,
    StorageUnavailable,
)
from trioresume.protocol.operation import OperationState
from trioresume.server.event_loop import Signal
from trioresume.server.shared.told import Interim, Position, decode, encode
from trioresume.server.uploads.locations import concealed
from trioresume.server.uploads.registry import CALLING
from trioresume.server.uploads.share import Wish
from trioresume.store.port import request_key

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields
    from trioresume.server.api.handler import Progress
    from trioresume.server.shared.operations import SharedOperations
    from trioresume.server.shared.told import Message
    from trioresume.server.uploads.operation import Operation
    from trioresume.store.port import OperationId, OperationRecord

__all__ = ["OwnShare"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState
_WORKING = (_S.COMPLETE, _S.PROCESSING)
_UNENDED = (_S.RECEIVING, _S.COMPLETE, _S.PROCESSING, _S.WAITING)

MOST_TRIES = 4
"""How often a visitor finds that the owner has just changed, before it takes what is recorded."""
PROGRESS_INTERVAL = 0.2
"""Seconds between two messages of progress. The last one is always told."""


class OwnShare:
    """How one operation is shared: see :class:`~trioresume.server.uploads.share.Share`."""

    __slots__ = (
        "_answers",
        "_follows",
        "_heard",
        "_is_watched",
        "_operation",
        "_progress_due",
        "_shares",
        "_told_state",
        "_turn",
        "changes",
        "is_claiming",
        "is_looking",
        "is_owned",
    )

    def __init__(
        self, shares: SharedOperations, operation: Operation, *, is_owned: bool
    ) -> None:
        self._shares = shares
        self._operation = operation
        self.is_owned = is_owned
        self.is_claiming = False
        """Whether a claim is on its way."""
        self.is_looking = False
        """Whether a task is taking over the latest record."""
        self.changes = 0
        """How many notices of changes have come."""
        self._turn = trio.Lock()
        """Held while the owner changes."""
        self._heard = Signal()
        """Fired when the owner has told something, and when a new record was read."""
        self._answers = 0
        """How often the owner has told its position."""
        self._follows = False
        self._told_state: _S | None = None
        """The last state that the owner told, as long as there is an owner elsewhere."""
        self._is_watched = False
        """Whether a process has asked this one, the owner, for its position."""
        self._progress_due: float | None = None

    def owns(self) -> bool:
        """Return :attr:`is_owned`, which may have changed since it was looked at."""
        return self.is_owned

    def _is_viewing(self) -> bool:
        return not self.is_owned and self._operation.record.is_elsewhere

    # Becoming the owner.

    async def admit(self, wish: Wish, *, is_new: bool) -> bool:
        if await self._owns_for_good() and await self._still_owns():
            return True
        operation = self._operation
        follows = wish is not Wish.SPARE
        await self._see_latest(follows=follows, is_new=is_new)
        for _ in range(MOST_TRIES):
            if operation.is_forgotten:
                return False
            if wish is not Wish.CHANGE and self._has_ended():
                claims = wish is Wish.SPARE and not operation.record.is_elsewhere
                if not claims or await self.bring():
                    break
            claims = wish in (Wish.WRITE, Wish.CHANGE)
            if (claims or not operation.record.is_elsewhere) and await self.bring():
                break
            if wish is Wish.SPARE or await self._ask(ends=wish is Wish.OFFSET):
                break
            await self._see_latest(follows=follows)
        return not operation.is_forgotten

    async def _still_owns(self) -> bool:
        """Whether no other process has taken it while this one was stopped or cut off.

        Such a process would tell an offset that another one has passed already.
        """
        storage = self._shares.registry.storage
        record = await storage.run(storage.store.operation, self._operation.id)
        if record is not None and record.is_elsewhere:
            self.lose()
        return self.owns()

    def _has_ended(self) -> bool:
        """Whether nothing more can be done for a client but to tell it what came of it."""
        record = self._operation.record
        dropped = record.state is _S.ABANDONED and record.is_elsewhere
        return dropped or record.state in (_S.DONE, _S.GONE)

    async def _owns_for_good(self) -> bool:
        """Whether this process owns it, and is not about to hand it over to another one."""
        if not self._is_mine():
            async with self._turn:
                pass
        return self.is_owned

    def _is_mine(self) -> bool:
        """Whether its owner does not change now, or the present task changes it."""
        holder = self._turn.statistics().owner
        return holder is None or holder is trio.lowlevel.current_task()

    async def bring(self, *, ends: bool = False) -> bool:
        if self.is_owned and self._is_mine():
            return True
        if not self._shares.calls_targets and self._operation.state in CALLING:
            return False
        async with self._turn:
            if self.is_owned:
                return True
            # A claim that was granted must be noted, or nobody would release it.
            with trio.CancelScope(shield=True):
                self.is_claiming = True
                try:
                    granted = await self._shares.claim(self._operation.id, ends=ends)
                    if granted:
                        await self._take_over()
                finally:
                    self.is_claiming = False
            return granted

    async def _take_over(self) -> None:
        """Load the operation anew as its owner."""
        operation, shares = self._operation, self._shares
        try:
            record, offset = await shares.registry.storage.run(
                _look, shares, operation.id
            )
        except BaseException:
            shares.sharing.release(operation.id)
            raise
        if record is None:
            shares.sharing.release(operation.id)
            self._see(None)
            return
        self._unfollow()
        self._told_state = None
        self._is_watched = False
        self.is_owned = True
        earlier = operation.incoming.turns
        operation.incoming.close()
        operation.progress = None
        operation.readmits = True
        shares.registry.take(operation, record, offset)
        operation.incoming.turns.follow(earlier)
        operation.changed.fire()

    # Viewing.

    async def _see_latest(self, *, follows: bool = True, is_new: bool = False) -> None:
        """Look at the catalog, unless its record *is_new*; follow what another process owns."""
        operation = self._operation
        if not is_new:
            await self.look()
        record = operation.record
        if (
            follows
            and record.is_elsewhere
            and record.state in _UNENDED
            and not self._follows
        ):
            self._follows = True
            self._shares.sharing.follow(operation.id)
            await self.look()

    async def look(self) -> None:
        if self.owns():
            return
        storage = self._shares.registry.storage
        record, offset = await storage.run(_look, self._shares, self._operation.id)
        if self.owns():
            return  # claimed meanwhile: this is out of date
        self._see(record, offset)

    def _see(self, record: OperationRecord | None, offset: int | None = None) -> None:
        """Take over the catalog's *record* of an operation that this process does not own."""
        operation = self._operation
        if record is None:
            operation.is_forgotten = True
            record = replace(
                operation.record,
                state=_S.GONE,
                content=None,
                response=None,
                is_elsewhere=False,
            )
        if not record.is_elsewhere:
            self._told_state = None
        elif record.state is _S.RECEIVING and self._told_state in _WORKING:
            # The owner has changed the state, and it will be in the catalog with the rest.
            record = replace(record, state=self._told_state)
        if operation.state in _WORKING and record.state is _S.RECEIVING:
            # Whoever waits for the outcome has to ask for the offset and go on.
            operation.incoming.failure = (
                StaleWriter("another process has taken the upload over")
                if record.is_elsewhere
                else StorageUnavailable("the process that completed it has ended")
            )
        durable = record.durable_offset
        store = self._shares.registry.storage.store
        if offset is not None and store.durable_at_once:
            durable = max(durable, offset)
        self._take_view(record, durable)

    def _take_view(self, record: OperationRecord, durable: int) -> None:
        operation = self._operation
        operation.record = record
        incoming = operation.incoming
        incoming.durable_offset = max(incoming.durable_offset, durable)
        incoming.turns.ended = record.state is not _S.RECEIVING
        operation.changed.fire()
        self._heard.fire()

    async def _ask(self, *, ends: bool) -> bool:
        """Ask the owner for its position; wait for the answer, for a bounded time.

        Returns False if there is no owner any more.
        """
        answers, operation = self._answers, self._operation.id
        if not self._is_viewing():
            return self.is_owned
        with trio.move_on_after(self._shares.ask_timeout) as waited:
            self._shares.sharing.want(operation, ends=ends)
            while self._answers == answers:
                await self._heard.wait()
                if not self._is_viewing():
                    return self.owns()
        if waited.cancelled_caught:
            logger.warning(
                "the process that owns %s does not answer; what it has recorded is told",
                concealed(operation),
            )
        if waited.cancelled_caught or self._told_state is None:
            await self.look()  # the owner says nothing, or that it has ended
        return True

    def hear(self, data: bytes) -> None:
        """Take over what the owner has told."""
        operation = self._operation
        message = decode(data)
        if self.is_owned or message is None or not operation.is_loaded:
            return
        if isinstance(message, Interim):
            operation.show_interim(message.status, message.fields)
        elif isinstance(message, Position):
            if message.progress is not None:
                operation.progress = message.progress
            self._hear_position(message)
        else:
            operation.progress = message.following(operation.progress)
            operation.changed.fire()

    def _hear_position(self, position: Position) -> None:
        self._answers += position.is_answer
        record = self._operation.record
        self._told_state = None
        if position.state in _UNENDED and record.state in _UNENDED:
            self._told_state = position.state
            if record.state in _WORKING and position.state is _S.RECEIVING:
                self._operation.incoming.failure = StorageError(
                    "the content could not be completed"
                )
            length = record.length if position.length is None else position.length
            record = replace(record, state=position.state, length=length)
        self._take_view(record, position.offset)

    def _unfollow(self) -> None:
        if self._follows:
            self._follows = False
            self._shares.sharing.unfollow(self._operation.id)

    async def keep_looking(self) -> None:
        """Take over the latest record, until no notice of a change is newer."""
        operation = self._operation
        if self.is_looking:
            return
        self.is_looking = True
        try:
            seen = -1
            while seen != self.changes and not self.is_owned:
                seen = self.changes
                await self.look()
                if operation.record.is_elsewhere and operation.state in _WORKING:
                    # The owner may be another one, to which this process is a stranger.
                    self._shares.sharing.want(operation.id)
        except StorageError as exc:
            logger.error("%s cannot be looked at now: %s", concealed(operation.id), exc)
        finally:
            self.is_looking = False

    # Being the owner.

    async def answer(self, *, ends: bool) -> None:
        """Tell the position, because another process asks for it."""
        operation = self._operation
        if not await self._owns_for_good():
            await self._release_unused()
            return
        self._is_watched = True
        operation.was_visited = True
        try:
            if ends and operation.is_receiving:
                await operation.incoming.turns.end_writer()
                operation.readmits = True
            if operation.is_receiving:
                await operation.make_durable()
            if operation.is_whole:
                operation.complete()
            elif operation.state is _S.WAITING:
                operation.retry()
        except ContentLost as exc:
            logger.error("%s is given up: %s", concealed(operation.id), exc)
            if operation.is_receiving:
                await operation.cancel()
        except StorageError as exc:
            logger.warning(
                "%s is told without a sync: %s", concealed(operation.id), exc
            )
        self._tell_position(is_answer=True)

    async def give(self, *, ends: bool) -> None:
        """Answer a claim: end the operation here and release it, or refuse while it is processed."""
        operation, shares = self._operation, self._shares
        async with self._turn:
            if not self.is_owned:
                await self._release_unused()
                return
            if self._is_busy():
                await self._refuse(ends=ends)
                return
            incoming = operation.incoming
            is_written = incoming.turns.has_writer
            incoming.turns.surrender()
            await incoming.turns.left()
            if self._is_busy():  # the writer had just ended the content
                incoming.turns.take_back()
                await self._refuse(ends=ends)
                return
            try:
                if is_written and not operation.record.keep_incomplete:
                    await operation.cut()
                operation.renew_for_owner()
                # Nothing changes it from here on. What was submitted is applied yet.
                self.is_owned = False
                if operation.is_receiving:
                    await incoming.make_durable()
            except StorageError as exc:
                logger.warning(
                    "%s is handed over without a sync: %s", concealed(operation.id), exc
                )
            self.is_owned = False
            incoming.close()
            await shares.registry.storage.settle()
            self._leave()
            if operation.visitors:
                self._follows = True
                shares.sharing.follow(operation.id)
            shares.sharing.release(operation.id)

    async def _release_unused(self) -> None:
        """Release what the store says that this process owns, and what it only views."""
        await self._shares.registry.storage.settle()
        if not self.owns():
            self._shares.sharing.release(self._operation.id)

    def _is_busy(self) -> bool:
        """Whether the target is being called, or about to be."""
        operation = self._operation
        return operation.is_working or operation.state is _S.ABANDONED

    async def _refuse(self, *, ends: bool) -> None:
        operation = self._operation
        try:
            if ends:
                await operation.cancel()
        except StorageError as exc:
            logger.error("%s cannot be cancelled: %s", concealed(operation.id), exc)
        self._shares.sharing.refuse(operation.id)

    def _leave(self) -> None:
        """Note that another process may own it from now on."""
        operation = self._operation
        self._shares.forget_reservation(operation.id)
        operation.record = replace(operation.record, is_elsewhere=True)
        operation.changed.fire()

    def lose(self) -> None:
        if not self.is_owned:
            return
        operation = self._operation
        self.is_owned = False
        logger.warning("%s was taken over by another process", concealed(operation.id))
        if self._shares.registry.loaded.get(operation.id) is operation:
            operation.incoming.turns.surrender()
            self._leave()
            self._shares.registry.start(operation, self._look_after_loss)

    async def _look_after_loss(self) -> None:
        self._operation.incoming.close()
        try:
            await self._see_latest()
            if not self._operation.record.is_elsewhere:
                await self._release_unused()
        except StorageError as exc:
            logger.error(
                "%s cannot be looked at now: %s", concealed(self._operation.id), exc
            )

    def let_go(self) -> None:
        """Note that the operation leaves memory."""
        self._unfollow()

    # Telling.

    def note_state(self) -> None:
        if self._is_watched:
            self._tell_position(is_answer=False)

    def _tell_position(self, *, is_answer: bool) -> None:
        operation = self._operation
        if self.is_owned:
            record = operation.record
            self._tell(
                Position(
                    record.state,
                    operation.durable_offset,
                    record.length,
                    operation.progress,
                    is_answer,
                )
            )

    def note_progress(self) -> None:
        if not self.is_owned or self._operation.progress is None:
            return
        now = trio.current_time()
        if self._progress_due is None or now >= self._progress_due:
            self._progress_due = now + PROGRESS_INTERVAL
            self._tell(self._operation.progress)
            self._shares.registry.start(self._operation, self._tell_last, now)

    async def _tell_last(self, told_at: float) -> None:
        """Tell the progress that came too soon after the one that was told."""
        progress = self._operation.progress
        await trio.sleep(PROGRESS_INTERVAL)
        if progress != self._operation.progress:
            self._progress_due = None
            self.note_progress()

    def note_interim(self, status: int, fields: Fields) -> None:
        if self.is_owned:
            self._tell(Interim(status, fields))

    def _tell(self, message: Message | Progress) -> None:
        data = encode(message)
        if data is None:
            logger.warning(
                "an interim response for %s is too long to be told to other processes",
                concealed(self._operation.id),
            )
        else:
            self._shares.sharing.tell(self._operation.id, data)

    def renew_later(self) -> None:
        self._shares.renew(self._operation.id)


def _look(
    shares: SharedOperations, id: OperationId
) -> tuple[OperationRecord | None, int | None]:
    """Look at the record and at the stored offset, in a worker thread."""
    store = shares.registry.storage.store
    record = store.operation(id)
    if record is None or record.state is not _S.RECEIVING:
        return record, None
    if record.is_elsewhere and not store.durable_at_once:
        return record, None
    try:
        return record, store.offset(request_key(id))
    except StorageError:
        return record, None  # it will fail again in a place that handles the error
