"""Where a request's content goes, and what is refused of it on the way.

A sink is given pieces of a shared buffer and consumes them before it returns; see
:mod:`trioresume.server.receive`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.protocol.appending import (
    UploadProgress,
    check_part,
    excess_content,
)
from trioresume.protocol.parts import PartData, PartStart, PatchCut, PatchEnd
from trioresume.server.incoming import MOST_PIECES, kept
from trioresume.server.messages import BLOCK_SIZE
from trioresume.store.disk_io import translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.protocol.digests import ContentCheck
    from trioresume.protocol.parts import PatchEvent, PatchReader
    from trioresume.server.config import Config
    from trioresume.server.memory import Piece
    from trioresume.server.operation import Operation
    from trioresume.server.receive import Sink

__all__ = [
    "AtomicPatchSink",
    "OperationSink",
    "PatchSink",
    "RefusedContent",
    "bounded",
    "progress_of",
]

SPOOL_IN_MEMORY = 1024 * 1024
"""An atomic patch is kept in memory up to this size, then in an unnamed file."""


class OperationSink:
    """Content goes to the operation as it comes; *check* sees it first."""

    def __init__(
        self,
        operation: Operation,
        max_size: int | None,
        check: ContentCheck | None = None,
    ) -> None:
        self._operation = operation
        self._max_size = max_size
        self._check = check

    @property
    def has_room(self) -> bool:
        return self._operation.incoming.has_room

    async def room(self) -> None:
        await self._operation.incoming.room()

    @property
    def offset(self) -> int:
        return self._operation.incoming.offset

    def relax(self) -> None:
        self._operation.incoming.relax()

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        self._add(data, piece)

    def _add(self, data: memoryview, piece: Piece | None) -> None:
        operation = self._operation
        end = operation.incoming.offset + len(data)
        if self._max_size is not None and end > self._max_size:
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                f"at most {self._max_size} bytes are taken",
                close=True,
            )
        length = operation.record.length
        if length is not None and end > length:
            # What is within the length belongs to the content, as after a cut.
            if end - length < len(data):
                data = data[: len(data) - (end - length)]
                operation.incoming.append(data, piece, self._check)
            raise excess_content(length)
        operation.incoming.append(data, piece, self._check)


class PatchSink(OperationSink):
    """A patch's parts go to the operation as they come, each checked before its bytes."""

    def __init__(
        self, operation: Operation, reader: PatchReader, max_size: int | None
    ) -> None:
        super().__init__(operation, max_size)
        self._reader = reader
        self.whole = False
        """Whether the patch came to its proper end."""

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        for event in self._reader.feed(data):
            self.apply(event, piece)

    def end(self) -> None:
        """The request's content is over: what that means for the patch."""
        for event in self._reader.end():
            self.apply(event)

    def apply(self, event: PatchEvent, piece: Piece | None = None) -> None:
        if isinstance(event, PartData):
            self._add(event.data, piece)
        elif isinstance(event, PartStart):
            self.start_part(event)
        elif isinstance(event, PatchEnd):
            self.whole = True
        elif isinstance(event, PatchCut):
            self.whole = False

    def start_part(self, part: PartStart) -> None:
        operation = self._operation
        progress = progress_of(operation, self._max_size)
        operation.learn_length(check_part(progress, part.range, part.length))


class AtomicPatchSink(PatchSink):
    """A patch is applied when all of it is there, or not at all: B8, or to be checked.

    Its parts must follow each other from the current offset: writes append (R16). They
    are checked and spooled in worker threads, in their order.
    """

    def __init__(
        self,
        operation: Operation,
        reader: PatchReader,
        check: ContentCheck | None,
        config: Config,
    ) -> None:
        super().__init__(operation, reader, config.max_upload_size)
        self._check = check
        self._lane = operation.incoming.new_lane()
        self._failure: Exception | None = None
        # A store that is not on disk has no directory: then it is the system's own.
        directory = str(config.data_dir) if os.path.isdir(config.data_dir) else None
        self._spool = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed in close()
            max_size=SPOOL_IN_MEMORY, dir=directory
        )
        self._progress = progress_of(operation, config.max_upload_size)

    @property
    def has_room(self) -> bool:
        return self._lane.pending < MOST_PIECES and self._failure is None

    async def room(self) -> None:
        await self._lane.until(MOST_PIECES - 1)
        if self._failure is not None:
            raise self._failure

    async def spooled(self) -> None:
        """Wait for what was appended. Raises :class:`StorageError`."""
        await self._lane.until(0)
        if self._failure is not None:
            raise self._failure

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        if self._check is not None:
            data = kept(data, piece)
            self._put(partial(self._check.update, data), piece)
        super().append(data, piece)

    def apply(self, event: PatchEvent, piece: Piece | None = None) -> None:
        if isinstance(event, PartData):
            size = len(event.data)
            progress = self._progress
            limit = progress.length if progress.length is not None else self._max_size
            if limit is not None and progress.offset + size > limit:
                raise excess_content(limit)
            self._operation.reserve(progress.offset + size)  # spooling takes space
            self._put(partial(self._write, kept(event.data, piece)), piece)
            self._progress = UploadProgress(
                progress.offset + size, progress.length, progress.max_length
            )
        else:
            super().apply(event)

    def _put(self, job: Callable[[], object], piece: Piece | None) -> None:
        self._lane.put(job, partial(self._done, piece))

    def _done(
        self, piece: Piece | None, result: object, error: Exception | None
    ) -> None:
        if piece is not None:
            piece.release()
        self._failure = self._failure or error

    def _write(self, data: memoryview) -> None:
        """Called in a worker thread."""
        if self._failure is None:
            with translated("the patch could not be spooled"):
                self._spool.write(data)

    def start_part(self, part: PartStart) -> None:
        progress = self._progress
        length = check_part(progress, part.range, part.length)
        self._progress = UploadProgress(progress.offset, length, progress.max_length)

    async def apply_all(self, seconds: float, *, atomic: bool) -> None:
        """The patch is there: append it within *seconds*; no newcomer cuts it in two.

        If it is *atomic*, nothing else does so either, be it a full disk or a crash.
        """
        operation = self._operation
        with trio.move_on_after(seconds, shield=True) as scope:
            await self.spooled()
            operation.learn_length(self._progress.length)
            size = await self._lane.call(self._rewind)
            whole = atomic and size > 0
            async with operation.incoming.whole() if whole else nullcontext():
                while block := await self._lane.call(self._read):
                    await operation.incoming.room()
                    operation.incoming.append(memoryview(block))
        if scope.cancelled_caught:
            raise StorageError("the disk did not take the patch in time")

    def _rewind(self) -> int:
        """Begin to read; how much there is. Called in a worker thread."""
        with translated("the patch could not be spooled"):
            size = self._spool.tell()
            self._spool.seek(0)  # which writes the last of it
        return size

    def _read(self) -> bytes:
        """Called in a worker thread."""
        with translated("the spooled patch could not be read"):
            return self._spool.read(BLOCK_SIZE)

    def close(self) -> None:
        """Give up what is spooled, soon."""
        self._put(self._spool.close, None)


class _BoundedSink:
    """Refuses more content than one request may carry (C13)."""

    def __init__(self, sink: Sink, most: int) -> None:
        self._sink = sink
        self._most = most
        self._left = most

    @property
    def has_room(self) -> bool:
        return self._sink.has_room

    async def room(self) -> None:
        await self._sink.room()

    @property
    def offset(self) -> int:
        return self._sink.offset

    def relax(self) -> None:
        self._sink.relax()

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        self._sink.append(data[: self._left], piece)
        self._left -= len(data)
        if self._left < 0:
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                f"a request may carry {self._most} bytes",
                close=True,
            )


def bounded(sink: Sink, most: int | None) -> Sink:
    return sink if most is None else _BoundedSink(sink, most)


def progress_of(operation: Operation, max_size: int | None) -> UploadProgress:
    return UploadProgress(operation.incoming.offset, operation.record.length, max_size)


class RefusedContent:
    """A sink for a patch of complete content: any byte is one too many."""

    offset = 0
    has_room = True

    def __init__(self, reader: PatchReader, length: int | None) -> None:
        self._reader = reader
        self._length = length

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        self._judge(self._reader.feed(data))

    def end(self) -> None:
        self._judge(self._reader.end())
        if self._reader.completes is False:
            raise self._complete()  # it wants the upload to go on

    def _judge(self, events: Iterable[PatchEvent]) -> None:
        for event in events:
            if isinstance(event, PartData):
                raise self._complete()
            if isinstance(event, PartStart):
                range_ = event.range
                start = range_.total if range_.first is None else range_.first
                if start != self._length or event.length not in (0, None):
                    raise self._complete()

    def _complete(self) -> PeerError:
        return PeerError(
            ProblemCode.UPLOAD_COMPLETE,
            f"all {self._length} bytes were received already",
            fields=(("upload-offset", str(self._length)), ("upload-complete", "?1")),
            close=True,
        )

    def relax(self) -> None:
        return

    async def room(self) -> None:
        return
