"""Receiving: what begins an operation, and what continues one.

Both move content from an exchange into an operation inside the writer's turn, and
differ only in the sink between them: the first request's content is the content
itself, a PATCH's content is a patch document that says where its bytes belong.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.protocol.appending import UploadProgress, check_part
from trioresume.protocol.byteranges import patch_reader
from trioresume.protocol.fields import ContentRange
from trioresume.protocol.parts import (
    PartData,
    PartStart,
    PatchCut,
    PatchEnd,
    PatchLimits,
)
from trioresume.server.messages import BLOCK_SIZE
from trioresume.store.disk_io import translated

if TYPE_CHECKING:
    from trioresume.protocol.parts import PatchEvent, PatchReader
    from trioresume.protocol.preferences import Preferences
    from trioresume.server.config import Config
    from trioresume.server.exchange import Exchange
    from trioresume.server.operation import Operation

__all__ = ["Acknowledger", "patch_limits", "receive_content", "receive_patch"]

logger = logging.getLogger("trioresume.connection")

SPOOL_IN_MEMORY = 1024 * 1024
"""An atomic patch is kept in memory up to this size, then in an unnamed file."""


class _OperationSink:
    """Content goes to the operation as it comes."""

    def __init__(self, operation: Operation, max_size: int | None) -> None:
        self._operation = operation
        self._max_size = max_size

    @property
    def has_room(self) -> bool:
        return self._operation.incoming.has_room

    async def room(self) -> None:
        await self._operation.incoming.room()

    def append(self, data: memoryview) -> None:
        operation = self._operation
        if (
            self._max_size is not None
            and operation.incoming.offset + len(data) > self._max_size
        ):
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                f"at most {self._max_size} bytes are taken",
                close=True,
            )
        operation.incoming.append(data)


class _PatchSink(_OperationSink):
    """A patch's parts go to the operation as they come, each checked before its bytes."""

    def __init__(
        self, operation: Operation, reader: PatchReader, max_size: int | None
    ) -> None:
        super().__init__(operation, max_size)
        self._reader = reader
        self.whole = False
        """Whether the patch came to its proper end."""

    def append(self, data: memoryview) -> None:
        for event in self._reader.feed(data):
            self.apply(event)

    def end(self) -> None:
        """The request's content is over: what that means for the patch."""
        for event in self._reader.end():
            self.apply(event)

    def apply(self, event: PatchEvent) -> None:
        if isinstance(event, PartData):
            super().append(event.data)
        elif isinstance(event, PartStart):
            self.start_part(event.range)
        elif isinstance(event, PatchEnd):
            self.whole = True
        elif isinstance(event, PatchCut):
            self.whole = False

    def start_part(self, range_: ContentRange) -> None:
        operation = self._operation
        operation.learn_length(check_part(_progress(operation, self._max_size), range_))


class _AtomicPatchSink(_PatchSink):
    """A patch of several parts is applied when all of it is there, or not at all (B8).

    Its parts must follow each other from the current offset: writes append (R16).
    """

    def __init__(
        self, operation: Operation, reader: PatchReader, config: Config
    ) -> None:
        super().__init__(operation, reader, config.max_upload_size)
        # A store that is not on disk has no directory: then it is the system's own.
        directory = str(config.data_dir) if os.path.isdir(config.data_dir) else None
        self._spool = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed in close()
            max_size=SPOOL_IN_MEMORY, dir=directory
        )
        self._progress = _progress(operation, config.max_upload_size)

    def apply(self, event: PatchEvent) -> None:
        if isinstance(event, PartData):
            size = len(event.data)
            progress = self._progress
            limit = progress.length if progress.length is not None else self._max_size
            if limit is not None and progress.offset + size > limit:
                raise PeerError(
                    ProblemCode.INCONSISTENT_LENGTH,
                    f"the patch goes beyond {limit} bytes",
                    close=True,
                )
            with translated("the patch could not be spooled"):
                self._spool.write(event.data)
            self._progress = UploadProgress(
                progress.offset + size, progress.length, progress.max_length
            )
        else:
            super().apply(event)

    def start_part(self, range_: ContentRange) -> None:
        progress = self._progress
        length = check_part(progress, range_)
        self._progress = UploadProgress(progress.offset, length, progress.max_length)

    async def apply_all(self, seconds: float) -> None:
        """The patch is whole: append it within *seconds*; no newcomer cuts it in two.

        A crash may still do so. What it leaves is a prefix of the patch at its right
        place, as after any cut; only the client's wish for all or nothing is missed.
        """
        operation = self._operation
        operation.learn_length(self._progress.length)
        self._spool.seek(0)
        with trio.move_on_after(seconds, shield=True) as scope:
            while block := self._read_spool():
                await operation.incoming.room()
                operation.incoming.append(memoryview(block))
        if scope.cancelled_caught:
            raise StorageError("the disk did not take the patch in time")

    def _read_spool(self) -> bytes:
        with translated("the spooled patch could not be read"):
            return self._spool.read(BLOCK_SIZE)

    def close(self) -> None:
        self._spool.close()


def _progress(operation: Operation, max_size: int | None) -> UploadProgress:
    return UploadProgress(operation.incoming.offset, operation.record.length, max_size)


def patch_limits(config: Config) -> PatchLimits:
    """The parsers' bounds, from the settings."""
    return PatchLimits(
        max_header_size=config.max_header_size,
        max_fields=config.max_header_fields,
        max_total=config.max_upload_size,
    )


class Acknowledger:
    """Sends ``Acknowledge`` now and then, beside a receiving request (R30).

    It syncs what arrived and tells the count; it never waits for the peer, and a
    store that fails is reported by the upload itself.
    """

    def __init__(self, nursery: trio.Nursery, interval: float) -> None:
        self._nursery = nursery
        self._interval = interval

    @asynccontextmanager
    async def during(
        self, exchange: Exchange, operation: Operation, wanted: bool
    ) -> AsyncIterator[None]:
        """Acknowledge while the block runs, if the client wants it and can be told."""
        if not (wanted and exchange.can_interim):
            yield
            return
        scope = trio.CancelScope()
        self._nursery.start_soon(self._run, exchange, operation, scope)
        try:
            yield
        finally:
            scope.cancel()

    async def _run(
        self, exchange: Exchange, operation: Operation, scope: trio.CancelScope
    ) -> None:
        last = 0
        with scope:
            while True:
                await trio.sleep(self._interval)
                try:
                    offset = await operation.make_durable()
                    if offset > last:
                        last = offset
                        exchange.acknowledge(offset)
                except StorageError as exc:
                    logger.warning("nothing to acknowledge: %s", exc)
                    return
                except Exception:
                    # A bug here must not end the server, whose nursery this is in.
                    logger.exception("acknowledging %s failed", operation.id)
                    return


async def receive_content(
    exchange: Exchange,
    operation: Operation,
    preferences: Preferences,
    acknowledger: Acknowledger,
    config: Config,
) -> None:
    """Receive the first request's content and, at its end, complete the operation.

    Raises what ended it: :class:`ContentCut`, :class:`PeerError`,
    :class:`StorageError`; what was received is kept if it is to be kept.
    """
    sink = _OperationSink(operation, config.max_upload_size)
    async with operation.incoming.writing(await operation.incoming.end_writer()):
        async with acknowledger.during(exchange, operation, preferences.acknowledge):
            await exchange.body.receive(sink)
        operation.learn_length(operation.incoming.offset)
        operation.complete()


async def receive_patch(
    exchange: Exchange,
    operation: Operation,
    place: int,
    preferences: Preferences,
    acknowledger: Acknowledger,
    config: Config,
) -> None:
    """Receive a PATCH of the content; complete the operation if that was the rest.

    *place* is what ``end_writer`` gave when the request arrived.

    On return the operation is complete or has a new offset, not yet durable.
    """
    head = exchange.head
    reader = patch_reader(
        head.fields.get("content-type"),
        head.fields,
        content_length=head.length,
        limits=patch_limits(config),
        lenient_unit=config.lenient_range_unit,
    )
    async with operation.incoming.writing(place):
        if reader.range is not None:
            # The request's own fields name the range: refuse before asking for content.
            check_part(_progress(operation, config.max_upload_size), reader.range)
        await exchange.send_continue()
        async with acknowledger.during(exchange, operation, preferences.acknowledge):
            if reader.atomic:
                await _receive_atomic(exchange, operation, reader, config)
            else:
                sink = _PatchSink(operation, reader, config.max_upload_size)
                await exchange.body.receive(sink)
                sink.end()
                if reader.completes and sink.whole:
                    operation.learn_length(operation.incoming.offset)
        if operation.incoming.offset == operation.record.length:
            operation.complete()


async def _receive_atomic(
    exchange: Exchange, operation: Operation, reader: PatchReader, config: Config
) -> None:
    sink = _AtomicPatchSink(operation, reader, config)
    try:
        await exchange.body.receive(sink)
        sink.end()
        if not sink.whole:
            raise PeerError(
                ProblemCode.BAD_PATCH, "the patch ends before its last part does"
            )
        await sink.apply_all(config.body_timeout)
    finally:
        sink.close()
