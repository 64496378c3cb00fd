"""Receive a PATCH: a document that says where its bytes belong.

The request's dialect has read from the head what to do, as an
:class:`~trioresume.protocol.dialects.Append`.

The numbered statements (B8, B9, C15, R24) are in docs/supported-protocols.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.protocol.appending import (
    UploadProgress,
    check_part,
    excess_content,
)
from trioresume.protocol.dialects.seed.server import Transaction
from trioresume.protocol.parts import (
    PartData,
    PartStart,
    PatchCut,
    PatchEnd,
    PatchLimits,
)
from trioresume.server.api.authentication import ask_again
from trioresume.server.http.exchange import ContentCut
from trioresume.server.uploads.receive import (
    OperationSink,
    end_content,
    would_complete,
)

if TYPE_CHECKING:
    from trioresume.protocol.dialects import Append
    from trioresume.protocol.parts import PatchEvent, PatchReader
    from trioresume.protocol.ranges import ContentRange
    from trioresume.server.api.config import Config
    from trioresume.server.async_store.receive_memory import Piece
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.uploads.incoming_content import IncomingContent
    from trioresume.server.uploads.operation import Operation
    from trioresume.server.uploads.receive import InterimSender

__all__ = ["RefusedContent", "patch_limits", "receive_patch"]

LARGEST_COPY = 16 * 1024
"""Adjacent pieces of content are copied into one only up to this many bytes each."""


def patch_limits(config: Config) -> PatchLimits:
    """Return the bounds of the parsers, from the settings."""
    return PatchLimits(
        max_header_size=config.max_header_size,
        max_fields=config.max_header_fields,
        max_total=config.max_upload_size,
    )


async def receive_patch(
    exchange: Exchange,
    operation: Operation,
    place: int,
    append: Append,
    interim_sender: InterimSender,
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
            progress = progress_of(operation, operation.max_size)
            check_part(progress, reader.range, exchange.head.length)
        await exchange.send_continue()
        async with interim_sender.acknowledging(exchange, operation):
            judged = atomic or append.check is not None
            if judged:
                whole = await _receive_judged(
                    exchange, operation, append, config, atomic=atomic
                )
            else:
                sink = PatchSink(operation, append, operation.max_size)
                await exchange.body.receive(sink)
                sink.end()
                await operation.incoming.written()
                whole = sink.whole
        completes = reader.completes if whole else None
        if config.authenticate is not None and would_complete(operation, completes):
            owner = operation.record.principal
            await ask_again(config, exchange.head, exchange.sender, owner)
        end_content(operation, completes)
    return wished if judged == atomic else None


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
    sink = JudgedPatchSink(operation, append, operation.max_size)
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
            await exchange.body.receive(sink)
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
async def _holding_back(
    incoming: IncomingContent, has_content: bool
) -> AsyncIterator[bool]:
    """Hold back content appended in the block, and give it up unless the block let it count.

    Yields whether content is held back: a request without content has none.
    """
    if has_content:
        await incoming.hold_back()
    try:
        yield has_content
    finally:
        incoming.end_hold()


class PatchSink(OperationSink):
    """Appends a patch's parts as they come, and checks each part before its bytes.

    Adjacent pieces of content are joined before they are appended, across the borders of
    chunks and of parts. Each append is a job for a worker thread, and a patch may consist of
    a million pieces of one byte.
    """

    def __init__(
        self, operation: Operation, append: Append, max_size: int | None
    ) -> None:
        super().__init__(operation, max_size, append.max_content)
        self._reader = append.reader
        self._gathered = _Adjacent()
        self.whole = False
        """Whether the patch has come to its proper end."""

    @property
    def plain(self) -> int | None:  # type: ignore[override]  # it changes here
        return self._reader.plain

    @property
    def work(self) -> int:  # type: ignore[override]  # it grows here
        return self._reader.work

    def _take(self, data: memoryview, piece: Piece | None) -> None:
        self._apply_all(self._reader.feed(data), piece)

    def end(self) -> None:
        """Apply the end of the request's content to the patch."""
        self._apply_all(self._reader.end(), None)

    def _apply_all(self, events: Iterable[PatchEvent], piece: Piece | None) -> None:
        """Apply *events*. If one fails, the content before it has been appended."""
        try:
            for event in events:
                self._apply(event, piece)
        finally:
            self._hand_on(piece)

    def _apply(self, event: PatchEvent, piece: Piece | None) -> None:
        if isinstance(event, PartData):
            if not self._gathered.add(event.data):
                self._hand_on(piece)
                self._gathered.add(event.data)
        elif isinstance(event, PartStart):
            self._start_part(event)
        elif isinstance(event, PatchEnd):
            self.whole = True
        elif isinstance(event, PatchCut):
            self.whole = False

    def _hand_on(self, piece: Piece | None) -> None:
        """Append the gathered content. It lies in *piece*, unless it was copied."""
        data, is_copy = self._gathered.take()
        if data:
            self._add(data, None if is_copy else piece)

    def _add(self, data: memoryview, piece: Piece | None) -> None:
        super()._take(data, piece)

    def _start_part(self, part: PartStart) -> None:
        operation = self._operation
        progress = progress_of(operation, self._max_size, self._gathered.size)
        operation.learn_length(check_part(progress, part.range, part.length))


class JudgedPatchSink(PatchSink):
    """A patch that counts only after all of it was judged, for B8 or because of a check.

    Its content is appended like any other, but held back meanwhile (see
    :meth:`IncomingContent.hold_back`). So a patch takes no memory or space beyond that of the
    upload itself. The length that it states is believed only at the end, see :attr:`length`.
    """

    def __init__(
        self,
        operation: Operation,
        append: Append,
        max_size: int | None,
    ) -> None:
        super().__init__(operation, append, max_size)
        self._patch_check = append.check
        self.length = operation.record.length
        """The upload's length if the patch is believed; None if no request stated it."""

    def _take(self, data: memoryview, piece: Piece | None) -> None:
        if self._patch_check is not None:
            self._operation.incoming.show(data, piece, self._patch_check)
        super()._take(data, piece)

    def _add(self, data: memoryview, piece: Piece | None) -> None:
        incoming = self._operation.incoming
        limit = self._max_size if self.length is None else self.length
        end = incoming.offset + len(data)
        if limit is not None and end > limit:
            raise excess_content(limit)
        self._operation.reserve(end)
        incoming.append(data, piece)

    def _start_part(self, part: PartStart) -> None:
        offset = self.offset + self._gathered.size
        progress = UploadProgress(offset, self.length, self._max_size)
        self.length = check_part(progress, part.range, part.length)


def progress_of(
    operation: Operation, max_size: int | None, gathered: int = 0
) -> UploadProgress:
    """Return the upload's progress, including *gathered* bytes that are appended next."""
    offset = operation.incoming.offset + gathered
    return UploadProgress(offset, operation.record.length, max_size)


class _Adjacent:
    """Adjacent pieces of content, joined into one: a copy if there are several."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[memoryview] = []

    def add(self, data: memoryview) -> bool:
        """Add *data*. Returns False if it is too large to be copied and has to wait."""
        if self._pieces and len(data) > LARGEST_COPY:
            return False
        if self._pieces and len(self._pieces[-1]) > LARGEST_COPY:
            return False
        self._pieces.append(data)
        self.size += len(data)
        return True

    def take(self) -> tuple[memoryview, bool]:
        """Return the content, and whether it is a copy; empty this object."""
        pieces, self._pieces, self.size = self._pieces, [], 0
        if len(pieces) == 1:
            return pieces[0], False
        return memoryview(b"".join(pieces)), True


class RefusedContent:
    """A sink for a PATCH of complete content: it refuses every byte of content (R24).

    Only an empty patch at the end is right. Any other one is refused as soon as it shows
    itself, because its sender may be silent from then on.
    """

    offset = 0
    has_room = True
    taken = 0
    plain: int | None = 0

    @property
    def work(self) -> int:
        return self._reader.work

    def __init__(self, reader: PatchReader, length: int | None) -> None:
        self._reader = reader
        self._length = length

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        self._judge(self._reader.feed(data))

    def end(self) -> None:
        self._judge(self._reader.end())
        if self._reader.completes is False:
            raise self.problem()  # the patch says that the upload goes on

    def check_head(self) -> None:
        """Refuse a patch that the head of its request shows to be wrong."""
        reader = self._reader
        if reader.least_content or reader.completes is False:
            raise self.problem()
        if reader.range is not None:
            self._check_range(reader.range)

    def _judge(self, events: Iterable[PatchEvent]) -> None:
        for event in events:
            if isinstance(event, PartData):
                raise self.problem()
            if isinstance(event, PartStart):
                self._check_range(event.range)
                if event.length not in (0, None):
                    raise self.problem()

    def _check_range(self, range_: ContentRange) -> None:
        """Refuse a part that begins elsewhere, or is one of content of another length."""
        start = range_.total if range_.first is None else range_.first
        if start != self._length or range_.total not in (None, self._length):
            raise self.problem()

    def problem(self) -> PeerError:
        """What such a patch is refused with."""
        return PeerError(
            ProblemCode.UPLOAD_COMPLETE,
            f"all {self._length} bytes have already been received",
            fields=(("upload-offset", str(self._length)), ("upload-complete", "?1")),
            close=True,
        )

    def relax(self) -> None:
        return

    async def room(self) -> None:
        return
