"""Receive the content of the request that begins an operation, and tell its client how it goes.

Content moves from an exchange into an operation, inside the writer's turn. The request's
dialect has read from the head what to do, as a
:class:`~trioresume.protocol.dialects.Creation`. How a PATCH is received is in
:mod:`trioresume.server.uploads.receive_patch`.

A sink is given pieces of a shared buffer and consumes them before it returns; see
:mod:`trioresume.server.http.exchange`.

The numbered statements (B10, C12, C13, C19, R30) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.protocol.appending import excess_content
from trioresume.protocol.dialects import Interim
from trioresume.protocol.dialects.seed.server import acknowledgement
from trioresume.protocol.heads import Fields
from trioresume.protocol.progress import format_progress
from trioresume.server.api.authentication import ask_again
from trioresume.server.event_loop import in_background

if TYPE_CHECKING:
    from trioresume.protocol.dialects import Creation
    from trioresume.protocol.digests import ContentCheck
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import Progress
    from trioresume.server.async_store.receive_memory import Piece
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.uploads.operation import Operation

__all__ = [
    "InterimSender",
    "OperationSink",
    "end_content",
    "processing",
    "receive_content",
    "would_complete",
]

logger = logging.getLogger("trioresume.connection")


async def receive_content(
    exchange: Exchange,
    operation: Operation,
    creation: Creation,
    interim_sender: InterimSender,
    config: Config,
) -> None:
    """Receive the first request's content; complete the operation if that was all.

    Raises the reason of an early end: :class:`ContentCut`, :class:`PeerError`,
    :class:`StorageError`. The received content is kept if the operation keeps it.
    """
    check = creation.check
    sink = OperationSink(operation, operation.max_size, creation.max_content, check)
    sink.finishes = check is None and creation.completes is not False
    async with operation.incoming.writing(await operation.incoming.turns.end_writer()):
        async with interim_sender.acknowledging(exchange, operation):
            await exchange.body.receive(sink)
            await operation.incoming.written()
        if check is not None:
            check.verify(exchange.body.trailers)
        if config.authenticate is not None and would_complete(
            operation, creation.completes
        ):
            owner = operation.record.principal
            await ask_again(config, exchange.head, exchange.sender, owner)
        end_content(operation, creation.completes)


def would_complete(operation: Operation, completes: bool | None) -> bool:
    """Whether the end of a request's content is the end of the upload's content."""
    at_end = operation.incoming.offset == operation.record.length
    return bool(completes) or (completes is None and at_end)


def end_content(operation: Operation, completes: bool | None) -> None:
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


class OperationSink:
    """Appends content to the operation as it comes; *check* sees it first.

    The whole upload may have *max_size* bytes, and one request *max_content* (C13).
    """

    plain: int | None = None
    work = 0

    def __init__(
        self,
        operation: Operation,
        max_size: int | None,
        max_content: int | None,
        check: ContentCheck | None = None,
    ) -> None:
        self._operation = operation
        self._max_size = max_size
        self._max_content = self._left = max_content
        self._check = check
        self.finishes = False
        """Whether content that reaches the upload's length ends it, if nothing checks it."""

    @property
    def has_room(self) -> bool:
        return self._operation.incoming.has_room

    async def room(self) -> None:
        await self._operation.incoming.room()

    @property
    def offset(self) -> int:
        return self._operation.incoming.offset

    @property
    def taken(self) -> int:
        return self._operation.incoming.offset

    def relax(self) -> None:
        self._operation.incoming.relax()

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        left = self._left
        self._take(data[:left], piece)
        if left is not None:
            self._left = left - len(data)
            if self._left < 0:
                raise PeerError(
                    ProblemCode.CONTENT_TOO_LARGE,
                    f"a request may have at most {self._max_content} bytes of content",
                    close=True,
                )

    def _take(self, data: memoryview, piece: Piece | None) -> None:
        operation = self._operation
        end = operation.incoming.offset + len(data)
        if self._max_size is not None and end > self._max_size:
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                f"at most {self._max_size} bytes are accepted",
                close=True,
            )
        length = operation.record.length
        if length is not None and end > length:
            # The bytes within the length belong to the content, as after a cut.
            if end - length < len(data):
                data = data[: len(data) - (end - length)]
                operation.reserve(length)
                operation.incoming.append(data, piece, self._check)
            raise excess_content(length)
        if end > operation.record.reserved:  # asked here to save a call for each piece
            operation.reserve(end)
        if self.finishes and end == length:
            operation.incoming.append_last(data, piece)
        else:
            operation.incoming.append(data, piece, self._check)


_NOTHING = nullcontext()
"""One object for all uploads, to save memory: a silent upload would hold its own."""


class InterimSender:
    """Tells a client that waits, now and then, how much is durable or how far the target is.

    It sends at most one interim response in *interval* seconds and never waits for the peer.
    *nursery* is the server's: an error in a task there does not reach the exchange.
    """

    def __init__(self, nursery: trio.Nursery, interval: float) -> None:
        self._nursery = nursery
        self._interval = interval

    def acknowledging(
        self, exchange: Exchange, operation: Operation
    ) -> AbstractAsyncContextManager[None]:
        """Make content durable and tell the offset while the block runs, if the client can be told.

        It is told in the ``Acknowledge`` of R30 if it asks for that, and in the dialect's own
        interim response (C12). If the store fails, the upload itself reports the error.
        """
        dialect, wanted = exchange.dialect, exchange.preferences.acknowledge
        if not ((wanted or dialect.shows_progress) and exchange.can_interim):
            return _NOTHING
        return in_background(
            self._nursery, self._acknowledge, exchange, operation, wanted
        )

    async def _acknowledge(
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

    def following(
        self, exchange: Exchange, operation: Operation, told: Progress | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Send the target's progress while the block runs, if the client wants it (B10).

        The client knows *told* already. It always gets the latest progress.
        """
        if not exchange.can_interim:
            return _NOTHING
        if not exchange.preferences.processing:
            return _passing_on(exchange, operation)
        return self._following(exchange, operation, told)

    @asynccontextmanager
    async def _following(
        self, exchange: Exchange, operation: Operation, told: Progress | None
    ) -> AsyncIterator[None]:
        async with (
            _passing_on(exchange, operation),
            in_background(self._nursery, self._follow, exchange, operation, told),
        ):
            yield

    async def _follow(
        self, exchange: Exchange, operation: Operation, told: Progress | None
    ) -> None:
        while True:
            if operation.progress == told:
                await operation.changed.wait()
            else:
                told = operation.progress
                exchange.offer_interim(processing(told))
                await trio.sleep(self._interval)


@asynccontextmanager
async def _passing_on(exchange: Exchange, operation: Operation) -> AsyncIterator[None]:
    """Pass the target's interim responses to a client that waits (RFC 9110, section 15.2)."""
    if operation.followers is None:
        operation.followers = set()
    pass_on = exchange.offer_interim
    operation.followers.add(pass_on)
    try:
        yield
    finally:
        operation.followers.discard(pass_on)


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
