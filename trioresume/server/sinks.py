"""Where a request's content goes, and what is refused of it on the way.

A sink is given pieces of a shared buffer and consumes them before it returns; see
:mod:`trioresume.server.receive`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.appending import (
    UploadProgress,
    check_part,
    excess_content,
)
from trioresume.protocol.parts import PartData, PartStart, PatchCut, PatchEnd

if TYPE_CHECKING:
    from trioresume.protocol.digests import ContentCheck
    from trioresume.protocol.parts import PatchEvent, PatchReader
    from trioresume.server.memory import Piece
    from trioresume.server.operation import Operation
    from trioresume.server.receive import Sink

__all__ = [
    "JudgedPatchSink",
    "OperationSink",
    "PatchSink",
    "RefusedContent",
    "bounded",
    "progress_of",
]


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


class JudgedPatchSink(PatchSink):
    """A patch that counts when all of it was judged: B8, or because of *check*.

    Its content is appended as any other, but held back meanwhile (see
    :meth:`Incoming.hold_back <trioresume.server.incoming.Incoming.hold_back>`): a patch
    takes no memory or space but that of the upload itself. What it says of the upload's
    length is believed in the end only, see :attr:`length`.
    """

    def __init__(
        self,
        operation: Operation,
        reader: PatchReader,
        max_size: int | None,
        check: ContentCheck | None,
    ) -> None:
        super().__init__(operation, reader, max_size)
        self._content_check = check
        self.length = operation.record.length
        """The upload's length if the patch is believed; None if nobody stated it."""

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        if self._content_check is not None:
            self._operation.incoming.show(data, piece, self._content_check)
        super().append(data, piece)

    def apply(self, event: PatchEvent, piece: Piece | None = None) -> None:
        if isinstance(event, PartData):
            incoming = self._operation.incoming
            limit = self._max_size if self.length is None else self.length
            if limit is not None and incoming.offset + len(event.data) > limit:
                raise excess_content(limit)
            incoming.append(event.data, piece)
        else:
            super().apply(event)

    def start_part(self, part: PartStart) -> None:
        progress = UploadProgress(self.offset, self.length, self._max_size)
        self.length = check_part(progress, part.range, part.length)


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
