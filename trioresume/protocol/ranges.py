"""Range requests and the framing of their answers (RFC 9110, section 14).

``Range`` is a wish. It is ignored if it is malformed, names another unit or asks for
too much. The answer is then the whole representation, which costs no more than a
request without the field. Many small or overlapping ranges would cost more (section
17.15, G16). Ranges that overlap or touch are joined, so no byte is sent twice.

Statement numbers such as G16 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import (
    ContentRange,
    format_content_range,
    header_safe,
    split_list,
)

__all__ = [
    "ByteRange",
    "MultipartRanges",
    "multipart_ranges",
    "parse_range",
    "range_not_satisfiable",
]


class ByteRange(NamedTuple):
    """A range of bytes. ``last`` is inclusive."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


_RANGES = re.compile(r"bytes=(.*)", re.IGNORECASE | re.DOTALL)
_SPEC = re.compile(r"([0-9]{1,15})-([0-9]{1,15})?|-([0-9]{1,15})")


def parse_range(
    value: str | None, length: int, *, max_ranges: int = 16
) -> list[ByteRange] | None:
    """Return the ranges that *value* asks for, in a representation of *length* bytes.

    None means: ignore the field and send everything. The field is then absent or
    malformed, or has more than *max_ranges* ranges. Ranges beyond the end are left out.
    Raises :class:`PeerError` (416) if none is left.
    """
    match = None if value is None else _RANGES.fullmatch(value)
    if match is None:
        return None
    specs = split_list(match[1])
    if not 0 < len(specs) <= max_ranges:
        return None
    asked: list[ByteRange] = []
    for spec in specs:
        parts = _SPEC.fullmatch(spec)
        if parts is None or (parts[2] and int(parts[2]) < int(parts[1])):
            return None
        resolved = _resolve(parts, length)
        if resolved is not None:
            asked.append(resolved)
    if not asked:
        raise range_not_satisfiable(length)
    return _joined(asked)


def _resolve(parts: re.Match[str], length: int) -> ByteRange | None:
    """Return one range within *length* bytes; None if none of its bytes exists."""
    if parts[3] is not None:  # the last N bytes, or all if there are fewer
        first, last = max(0, length - int(parts[3])), length - 1
    else:
        first = int(parts[1])
        last = length - 1 if parts[2] is None else min(int(parts[2]), length - 1)
    return ByteRange(first, last) if first <= last else None


def _joined(ranges: list[ByteRange]) -> list[ByteRange]:
    """Join ranges that overlap or touch. If there are none, keep the order as asked."""
    joined: list[ByteRange] = []
    for range_ in sorted(ranges):
        if joined and range_.first <= joined[-1].last + 1:
            before = joined.pop()
            range_ = ByteRange(before.first, max(before.last, range_.last))
        joined.append(range_)
    return ranges if len(joined) == len(ranges) else joined


def range_not_satisfiable(length: int) -> PeerError:
    """Return the 416 for a representation of *length* bytes (section 15.5.17)."""
    return PeerError(
        ProblemCode.RANGE_NOT_SATISFIABLE,
        fields=(("Content-Range", f"bytes */{length}"),),
    )


@dataclass(frozen=True, slots=True)
class MultipartRanges:
    """The framing of a ``multipart/byteranges`` response (section 14.6).

    The content is the head and the bytes of the range of each part, and then
    ``closing``. In all these are ``length`` bytes.
    """

    content_type: str
    parts: tuple[tuple[bytes, ByteRange], ...]
    closing: bytes

    @property
    def length(self) -> int:
        framing = sum(len(head) + range_.length for head, range_ in self.parts)
        return framing + len(self.closing)


def multipart_ranges(
    ranges: Sequence[ByteRange], total: int, part_type: str | None, boundary: str
) -> MultipartRanges:
    """Frame *ranges* of a representation of *total* bytes whose type is *part_type*.

    *boundary* has at most 70 letters and digits. It must be so random that it does not
    occur in the content, because nobody searches the content for it. An uploader that
    could guess it could forge parts.
    """
    type_line = ""
    if part_type is not None and header_safe(part_type):
        type_line = f"Content-Type: {part_type}\r\n"
    parts = tuple(
        (
            (
                f"\r\n--{boundary}\r\n{type_line}Content-Range: "
                f"{format_content_range(ContentRange(first, last, total))}\r\n\r\n"
            ).encode("latin-1"),
            ByteRange(first, last),
        )
        for first, last in ranges
    )
    return MultipartRanges(
        content_type=f"multipart/byteranges; boundary={boundary}",
        parts=parts,
        closing=f"\r\n--{boundary}--\r\n".encode("latin-1"),
    )
