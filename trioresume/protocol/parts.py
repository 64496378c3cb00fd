"""Byte-range patches: the events of all readers, and the rules for all parts.

A reader takes a patch's bytes as they arrive, cut anywhere, and gives::

    ( PartStart PartData* PartEnd )+  PatchEnd      the patch is whole
    ( PartStart PartData* PartEnd? )+ PatchCut      it ended early, or a part did

``PatchEnd`` comes from :meth:`PatchReader.end` alone, because only the end of the body
shows that no garbage follows. A consumer completes nothing before it. A malformed patch
raises :class:`PeerError`. The events before that stay valid, and the consumer decides
whether to keep their content (``PatchReader.atomic``: all or nothing, B8).

Content is not copied, except for tiny chunks (see ``bhttp``). A ``PartData`` is a slice
of the input; the consumer has to use it before it feeds more. A reader holds back at
most one part's header section (G3) or one boundary.

A reader is written as a generator, ``_parse``. It yields events, and ``None`` when it
has no input left. Then the input is replaced and the generator resumed. So the code of
a format reads like its grammar. The places where the bytes are cut cannot matter,
because the generator only stops at the input's end.

Statement numbers such as B8 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import parse_integer
from trioresume.protocol.framing import find_block_end, parse_field_block
from trioresume.protocol.heads import Fields
from trioresume.protocol.ranges import (
    ContentRange,
    format_part_range,
    parse_content_offset,
    parse_content_range,
)

__all__ = [
    "NO_FIELDS",
    "PartData",
    "PartEnd",
    "PartStart",
    "PatchCut",
    "PatchEnd",
    "PatchEvent",
    "PatchLimits",
    "PatchReader",
    "Steps",
    "as_patch_problem",
    "as_patch_problems",
    "bad_patch",
    "encode_part_header",
]


@dataclass(frozen=True, slots=True)
class PartStart:
    """A part begins. ``length`` is the most bytes of content that it will carry.

    None means that nobody knows before the content ends.
    """

    range: ContentRange
    fields: Fields
    length: int | None


@dataclass(frozen=True, slots=True)
class PartData:
    """Content of the current part, never empty. It is valid until the next feed."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The current part's content is whole."""


@dataclass(frozen=True, slots=True)
class PatchEnd:
    """The patch is whole."""


@dataclass(frozen=True, slots=True)
class PatchCut:
    """The patch ends before the length it announced (B5). More input is ignored."""


PatchEvent = PartStart | PartData | PartEnd | PatchEnd | PatchCut


@dataclass(frozen=True, slots=True)
class PatchLimits:
    """The limits of a patch.

    The first two are for each part's header section (G3). ``max_total`` is the largest
    total length that a part may declare, in bytes (B7); None means no limit.
    """

    max_header_size: int = 16 * 1024
    max_fields: int = 100
    max_parts: int = 1000
    max_total: int | None = None


NO_FIELDS = Fields()

_Result = TypeVar("_Result")
Steps = Generator[PatchEvent | None, None, _Result]
"""A step of a reader: yields events, yields None if no input is left, returns a result."""

_NOTHING = memoryview(b"")


class PatchReader(ABC):
    """Reads one patch. The module's docstring has the order of events."""

    atomic = False
    """Whether the patch applies as a whole or not at all (B8)."""

    range: ContentRange | None = None
    """The current part's range. It is known before any byte if the request's fields give it."""

    completes: bool | None = None
    """Whether the request says that it completes the upload (RUFH, C8); None if silent."""

    least_content: int = 0
    """Bytes of content that the request's head promises. There may be more."""

    plain: int | None = 0
    """How many of the next bytes are only content, which costs nothing to read; None: all."""

    def __init__(self, limits: PatchLimits, *, lenient_unit: bool = False) -> None:
        self._limits = limits
        self._lenient_unit = lenient_unit
        self._input = _NOTHING
        self._machine = self._parse()
        self._failure: PeerError | None = None
        self._cut = False
        self.work = 0
        """How much framing was read: the number of parts, fields, chunks and lines."""
        # The current part's counts in bytes: see _begin.
        self._parts = 0
        self._total: int | None = None
        self._received = 0
        self._expected: int | None = None
        self._room: int | None = None

    # ------------------------------------------------------------ for the consumer

    def feed(self, data: bytes | memoryview) -> Iterator[PatchEvent]:
        """Return the events that *data* completes. The caller must exhaust the iterator.

        Raises :class:`PeerError` while iterating, and again at every later call.
        """
        return self._guarded(self._advance(data))

    def end(self) -> Iterator[PatchEvent]:
        """Return the events that the end of the body completes. Call it once, at the end.

        Call it if the body was received whole, not if the connection broke. Raises
        :class:`PeerError`.
        """
        return self._guarded(self._finish())

    # ------------------------------------------------------------ for the formats

    @abstractmethod
    def _parse(self) -> Steps[None]:
        """Read the patch; return only after a :class:`PatchCut`."""

    @abstractmethod
    def _finish(self) -> Iterator[PatchEvent]:
        """Yield the events of the body's end."""

    def _available(self) -> Steps[memoryview]:
        """Wait for at least one byte of input, and take nothing."""
        while not self._input:
            self._input = _NOTHING  # release the buffer that was fed
            yield None
        return self._input

    def _some(self, most: int | None = None) -> Steps[memoryview]:
        """Take the input there is: at least one byte, at most *most* bytes."""
        available = yield from self._available()
        taken = available[:most]
        self._input = available[len(taken) :]
        return taken

    def _exactly(self, size: int) -> Steps[bytes]:
        """Take a copy of *size* bytes. The caller has bounded *size*."""
        taken = bytearray()
        while len(taken) < size:
            taken += yield from self._some(size - len(taken))
        return bytes(taken)

    def _header_section(self) -> Steps[tuple[Fields, int]]:
        """Take field lines and their blank line. Also return how many bytes they took."""
        # With a line end in front, a section without fields is found too.
        block = bytearray(b"\r\n")
        most = len(block) + self._limits.max_header_size
        while True:
            before = len(block)
            available = yield from self._available()
            # One byte beyond the limit shows that it is exceeded.
            block += available[: most + 1 - before]
            with as_patch_problems():
                end = find_block_end(block, max(0, before - 3))
            if end > most or (end < 0 and len(block) > most):
                raise self._header_too_large()
            taken = (len(block) if end < 0 else end) - before
            self._input = available[taken:]
            if end > 0:
                with as_patch_problems():
                    fields = parse_field_block(
                        bytes(block[2:end]), self._limits.max_fields
                    )
                self.work += len(fields)
                return fields, end - 2

    def _header_too_large(self) -> PeerError:
        return PeerError(
            ProblemCode.HEADER_TOO_LARGE,
            "a part's header section is larger than "
            f"{self._limits.max_header_size} bytes",
        )

    def _too_many_fields(self) -> PeerError:
        return PeerError(
            ProblemCode.HEADER_TOO_LARGE,
            f"a part has more than {self._limits.max_fields} fields",
        )

    def _begin(self, fields: Fields, available: int | None) -> PartStart:
        """Begin a part. *available* is the content's length by its framing, if known."""
        self._parts += 1
        self.work += 1
        if self._parts > self._limits.max_parts:
            raise bad_patch(f"there are more than {self._limits.max_parts} parts")
        range_ = self._part_range(fields)
        declared = _declared_length(fields, range_)
        return self._begin_range(range_, fields, declared, available)

    def _begin_range(
        self,
        range_: ContentRange,
        fields: Fields,
        declared: int | None,
        available: int | None,
    ) -> PartStart:
        """Begin a part whose fields state *range_* and a length of *declared* bytes, if any."""
        self._check_total(range_.total)
        self.range = range_
        self._received = 0
        self._expected = range_.length if declared is None else declared
        self._room = range_.room if self._expected is None else self._expected
        # Refuse as much as possible before a byte of content is read.
        if available is not None and self._room is not None and available > self._room:
            raise self._too_long()
        known = [size for size in (self._expected, available) if size is not None]
        return PartStart(range_, fields, min(known, default=None))

    def _part_range(self, fields: Fields) -> ContentRange:
        ranges = fields.get_all("content-range")
        offsets = fields.get_all("content-offset")
        if len(ranges) + len(offsets) != 1:
            raise PeerError(
                ProblemCode.BAD_CONTENT_RANGE,
                "a part needs either one Content-Range or one Content-Offset",
            )
        if offsets:
            return parse_content_offset(offsets[0])
        return parse_content_range(ranges[0], lenient_unit=self._lenient_unit)

    def _check_total(self, total: int | None) -> None:
        if total is None:
            return
        if self._limits.max_total is not None and total > self._limits.max_total:
            raise PeerError(  # 400, not 413: this patch itself is not too large
                ProblemCode.LENGTH_OVER_LIMIT,
                f"no more than {self._limits.max_total} bytes are accepted in all",
            )
        if self._total not in (None, total):
            raise PeerError(
                ProblemCode.INCONSISTENT_LENGTH,
                "two parts state different total lengths",
            )
        self._total = total

    def _content(self, piece: memoryview) -> Steps[None]:
        """Yield *piece* as content of the current part, as far as the range has room."""
        kept = piece
        if self._room is not None:
            kept = piece[: self._room - self._received]
        if kept:
            self._received += len(kept)
            yield PartData(kept)
        if len(kept) < len(piece):
            raise self._too_long()

    def _too_long(self) -> PeerError:
        return bad_patch("a part's content is longer than its range")

    def _is_short(self) -> bool:
        return self._expected is not None and self._received < self._expected

    # ------------------------------------------------------------ running

    def _advance(self, data: bytes | memoryview) -> Iterator[PatchEvent]:
        self._input = memoryview(data)
        for event in self._machine:
            if event is None:
                return
            yield event

    def _guarded(self, events: Iterator[PatchEvent]) -> Iterator[PatchEvent]:
        if self._failure is not None:
            raise self._failure
        if self._cut:
            return
        try:
            for event in events:
                self._cut = isinstance(event, PatchCut)
                yield event
        except PeerError as error:
            self._failure = error
            raise


def _declared_length(fields: Fields, range_: ContentRange) -> int | None:
    """Return a part's Content-Length, checked against its range (B4); None without one."""
    values = fields.get_all("content-length")
    if not values:
        return None
    if len(values) > 1:
        raise bad_patch("a part's Content-Length is repeated")
    declared = parse_integer(
        values[0], what="part's Content-Length", problem=ProblemCode.BAD_PATCH
    )
    if range_.length is None:
        fits = range_.room is None or declared <= range_.room
    else:
        fits = declared == range_.length
    if not fits:
        raise bad_patch("a part's Content-Length is not the length of its range")
    return declared


def encode_part_header(
    range_: ContentRange, fields: Fields = NO_FIELDS, *, ranges_only: bool = False
) -> bytes:
    """Encode a part's header section: its range, its length if known, then *fields*.

    That is also what stands before the content in a ``message/byterange`` document.
    :func:`format_part_range` explains *ranges_only*.
    """
    lines = [format_part_range(range_, ranges_only=ranges_only)]
    if range_.length is not None:
        lines.append(("Content-Length", str(range_.length)))
    lines += fields
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{text}\r\n".encode("latin-1")


def bad_patch(detail: str) -> PeerError:
    return PeerError(ProblemCode.BAD_PATCH, detail)


@contextmanager
def as_patch_problems() -> Iterator[None]:
    """Turn the errors of a part's header section into errors of the patch.

    They are no errors of the connection, which can go on.
    """
    try:
        yield
    except PeerError as error:
        raise as_patch_problem(error) from None


def as_patch_problem(error: PeerError) -> PeerError:
    """Return *error* of a part's header section as an error of the patch."""
    if error.problem is ProblemCode.HEADER_TOO_LARGE:
        return PeerError(error.problem, f"in a part: {error.detail}")
    return bad_patch(f"in a part: {error.detail}")
