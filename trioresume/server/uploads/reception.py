"""Receive content: of the request that begins an operation, and of those that continue it.

Both kinds move content from an exchange into an operation, inside the writer's turn. They
differ only in the sink: the first request's content is the content itself; a PATCH's content
is a patch document that says where its bytes belong. The request's dialect has read from the
head what to do, as a :class:`~trioresume.protocol.dialects.Creation` or an
:class:`~trioresume.protocol.dialects.Append`.

The numbered statements (B9, C12, R30) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    nullcontext,
)
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.protocol.appending import check_part
from trioresume.protocol.dialects.seed.preferences import Transaction
from trioresume.protocol.dialects.seed.server import acknowledgement
from trioresume.protocol.parts import (
    PatchLimits,
)
from trioresume.server.event_loop.background import beside
from trioresume.server.http.exchange import ContentCut
from trioresume.server.uploads.sinks import (
    JudgedPatchSink,
    OperationSink,
    PatchSink,
    bounded,
    progress_of,
)

if TYPE_CHECKING:
    from trioresume.protocol.dialects import Append, Creation
    from trioresume.server.api.config import Config
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.uploads.incoming import Incoming
    from trioresume.server.uploads.operation import Operation

__all__ = ["Acknowledger", "patch_limits", "receive_content", "receive_patch"]

logger = logging.getLogger("trioresume.connection")


def patch_limits(config: Config) -> PatchLimits:
    """Return the bounds of the parsers, from the settings."""
    return PatchLimits(
        max_header_size=config.max_header_size,
        max_fields=config.max_header_fields,
        max_total=config.max_upload_size,
    )


_NOTHING = nullcontext()
"""One object for all uploads, to save memory: a silent upload would hold its own."""


class Acknowledger:
    """Tells the client now and then how much is durable, while a request is receiving.

    It sends ``Acknowledge`` in a 100 (R30), the dialect's own interim response (C12), or both.
    It syncs the received bytes and tells their count. It never waits for the peer. If the
    store fails, the upload itself reports the error.
    """

    def __init__(self, nursery: trio.Nursery, interval: float) -> None:
        self._nursery = nursery
        self._interval = interval

    def during(
        self, exchange: Exchange, operation: Operation
    ) -> AbstractAsyncContextManager[None]:
        """Tell while the block runs, if the client can be told.

        The client asks for the ``Acknowledge`` of R30; the dialect decides about the rest.
        """
        dialect, wanted = exchange.dialect, exchange.preferences.acknowledge
        if not ((wanted or dialect.shows_progress) and exchange.can_interim):
            return _NOTHING
        return beside(self._nursery, self._run, exchange, operation, wanted)

    async def _run(
        self, exchange: Exchange, operation: Operation, acknowledges: bool
    ) -> None:
        last = 0
        while True:
            await trio.sleep(self._interval)
            try:
                offset = await operation.make_durable()
            except StorageError as exc:
                logger.warning("nothing to acknowledge: %s", exc)
                return
            if offset > last:
                last = offset
                if acknowledges:
                    exchange.offer_interim(acknowledgement(offset))
                if exchange.dialect.shows_progress:
                    exchange.offer_interim(exchange.dialect.progress(offset))


async def receive_content(
    exchange: Exchange,
    operation: Operation,
    creation: Creation,
    acknowledger: Acknowledger,
    config: Config,
) -> None:
    """Receive the first request's content; complete the operation if that was all.

    Raises the reason of an early end: :class:`ContentCut`, :class:`PeerError`,
    :class:`StorageError`. The received content is kept if the operation keeps it.
    """
    check = creation.check
    sink = OperationSink(operation, config.max_upload_size, check)
    async with operation.incoming.writing(await operation.incoming.end_writer()):
        async with acknowledger.during(exchange, operation):
            await exchange.body.receive(bounded(sink, creation.max_content))
            await operation.incoming.written()
        if check is not None:
            check.verify(exchange.body.trailers)
        _end_content(operation, creation.completes)


async def receive_patch(
    exchange: Exchange,
    operation: Operation,
    place: int,
    append: Append,
    acknowledger: Acknowledger,
    config: Config,
) -> Transaction | None:
    """Receive a PATCH of the content; complete the operation if that was the rest.

    *place* comes from ``end_writer``, called when the request arrived.

    On return the operation is complete or has a new offset, not yet durable. Returns the
    transaction that the client wished for, if the patch was applied that way (B9).
    """
    reader = append.reader
    wished = exchange.preferences.transaction
    atomic = reader.atomic if wished is None else wished is Transaction.ATOMIC
    async with operation.incoming.writing(place):
        if reader.range is not None:
            # The request's own fields name the range: refuse before asking for content.
            progress = progress_of(operation, config.max_upload_size)
            check_part(progress, reader.range, exchange.head.length)
        await exchange.send_continue()
        async with acknowledger.during(exchange, operation):
            judged = atomic or append.check is not None
            if judged:
                whole = await _receive_judged(
                    exchange, operation, append, config, atomic=atomic
                )
            else:
                sink = PatchSink(operation, reader, config.max_upload_size)
                await exchange.body.receive(bounded(sink, append.max_content))
                sink.end()
                await operation.incoming.written()
                whole = sink.whole
        _end_content(operation, reader.completes if whole else None)
    return wished if judged == atomic else None


def _end_content(operation: Operation, completes: bool | None) -> None:
    """Handle the end of a request's content. *completes* is what the request says about it."""
    offset, length = operation.incoming.offset, operation.record.length
    if completes:
        if length is not None and length != offset:
            raise PeerError(
                ProblemCode.INCONSISTENT_LENGTH,
                f"the content ends at {offset}, the length was stated as {length}",
            )
        operation.learn_length(offset)
        operation.complete()
    elif completes is None and offset == length:
        operation.complete()


async def _receive_judged(
    exchange: Exchange,
    operation: Operation,
    append: Append,
    config: Config,
    *,
    atomic: bool,
) -> bool:
    """Receive a patch that is judged as a whole; return whether it came to its end."""
    check = append.check
    incoming = operation.incoming
    sink = JudgedPatchSink(operation, append.reader, config.max_upload_size, check)
    async with _holding_back(incoming, exchange.head.has_content) as holds:

        async def believe() -> None:
            # Shielded, so that a newcomer does not cut the patch in two.
            with trio.move_on_after(config.body_timeout, shield=True) as scope:
                await incoming.written()
                operation.learn_length(sink.length)
                if holds:
                    await incoming.let_count(at_once=atomic)
            if scope.cancelled_caught:
                raise StorageError("the disk did not take the patch in time")

        try:
            await exchange.body.receive(bounded(sink, append.max_content))
        except (ContentCut, trio.Cancelled):
            if check is not None and check.keeps_prefix and not atomic:
                await believe()
            raise
        sink.end()
        if atomic and not sink.whole:
            raise PeerError(
                ProblemCode.BAD_PATCH, "the patch ends within its last part"
            )
        await incoming.written()
        if check is not None:
            check.verify(exchange.body.trailers)
        await believe()
        return sink.whole


@asynccontextmanager
async def _holding_back(incoming: Incoming, has_content: bool) -> AsyncIterator[bool]:
    """Hold back content appended in the block, and give it up unless the block let it count.

    Yields whether content is held back: a request without content has none.
    """
    if has_content:
        await incoming.hold_back()
    try:
        yield has_content
    finally:
        incoming.end_hold()
