"""The sinks of a request's content, and the content that they refuse.

A sink is given pieces of a shared buffer and consumes them before it returns; see
:mod:`trioresume.server.http.exchange`. B8 and C13 are in docs/supported-protocols.md.
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
    from trioresume.server.async_store.receive_memory import Piece
    from trioresume.server.http.exchange import Sink
    from trioresume.server.uploads.operation import Operation

__all__ = [
    "JudgedPatchSink",
    "OperationSink",
    "PatchSink",
    "RefusedContent",
    "bounded",
    "progress_of",
]

LARGEST_COPY = 16 * 1024
"""Adjacent pieces of content are copied into one only up to this many bytes each."""


class OperationSink:
    """Appends content to the operation as it comes; *check* sees it first."""

    plain: int | None = None
    work = 0

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

    @property
    def taken(self) -> int:
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
        operation.reserve(end)
        operation.incoming.append(data, piece, self._check)


class PatchSink(OperationSink):
    """Appends a patch's parts as they come, and checks each part before its bytes.

    Adjacent pieces of content are joined before they are appended, across the borders of
    chunks and of parts. Each append is a job for a worker thread, and a patch may consist of
    a million pieces of one byte.
    """

    def __init__(
        self, operation: Operation, reader: PatchReader, max_size: int | None
    ) -> None:
        super().__init__(operation, max_size)
        self._reader = reader
        self._gathered = _Adjacent()
        self.whole = False
        """Whether the patch has come to its proper end."""

    @property
    def plain(self) -> int | None:  # type: ignore[override]  # it changes here
        return self._reader.plain

    @property
    def work(self) -> int:  # type: ignore[override]  # it grows here
        return self._reader.work

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
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

    def _start_part(self, part: PartStart) -> None:
        operation = self._operation
        progress = progress_of(operation, self._max_size, self._gathered.size)
        operation.learn_length(check_part(progress, part.range, part.length))


class JudgedPatchSink(PatchSink):
    """A patch that counts only after all of it was judged, for B8 or because of *check*.

    Its content is appended like any other, but held back meanwhile (see
    :meth:`Incoming.hold_back <trioresume.server.uploads.incoming.Incoming.hold_back>`). So a patch
    takes no memory or space beyond that of the upload itself. The length that it states is
    believed only at the end, see :attr:`length`.
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
        """The upload's length if the patch is believed; None if no request stated it."""

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        if self._content_check is not None:
            self._operation.incoming.show(data, piece, self._content_check)
        super().append(data, piece)

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


class _BoundedSink:
    """Refuses content beyond the limit of one request (C13)."""

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

    @property
    def plain(self) -> int | None:
        return self._sink.plain

    @property
    def work(self) -> int:
        return self._sink.work

    @property
    def taken(self) -> int:
        return self._sink.taken

    def relax(self) -> None:
        self._sink.relax()

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        self._sink.append(data[: self._left], piece)
        self._left -= len(data)
        if self._left < 0:
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                f"a request may have at most {self._most} bytes of content",
                close=True,
            )


def bounded(sink: Sink, most: int | None) -> Sink:
    return sink if most is None else _BoundedSink(sink, most)


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
    """A sink for a PATCH of complete content: it refuses every byte."""

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

    def _judge(self, events: Iterable[PatchEvent]) -> None:
        for event in events:
            if isinstance(event, PartData):
                raise self.problem()
            if isinstance(event, PartStart):
                range_ = event.range
                start = range_.total if range_.first is None else range_.first
                if start != self._length or event.length not in (0, None):
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
