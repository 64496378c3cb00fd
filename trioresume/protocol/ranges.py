"""``Content-Range``; range requests and the framing of their answers (RFC 9110, section 14).

``Range`` is a wish. It is ignored if it is malformed, names another unit or asks for
too much. The answer is then the whole representation, which costs no more than a
request without the field. Many small or overlapping ranges would cost more (section
17.15, G16). Ranges that overlap or touch are joined, so no byte is sent twice.

Statement numbers such as B1 and G16 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import TOKEN, header_safe, split_list
from trioresume.protocol.structured import is_natural, parameterised_integer

__all__ = [
    "ByteRange",
    "ContentRange",
    "MultipartRanges",
    "format_content_range",
    "format_part_range",
    "multipart_ranges",
    "parse_content_offset",
    "parse_content_range",
    "parse_range",
    "range_not_satisfiable",
]


# ---------------------------------------------------------------- Content-Range


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Where content belongs in the whole, in bytes; ``last`` is inclusive.

    A range is closed (*first* and *last*), open-ended (only *first*: the end of the
    content is not known) or unsatisfied (neither: ``*/N`` sets the length and carries
    no content, B3). ``total`` is the length of the whole; None if it is not known.
    """

    first: int | None
    last: int | None
    total: int | None

    @property
    def start(self) -> int:
        """Where the content begins, or would begin if there were any."""
        start = self.total if self.first is None else self.first
        assert start is not None
        return start

    @property
    def length(self) -> int | None:
        """The number of content bytes that the range announces; None if it is open-ended."""
        if self.first is None:
            return 0
        return None if self.last is None else self.last - self.first + 1

    @property
    def room(self) -> int | None:
        """The most content bytes that may come; None if nothing limits them."""
        if self.first is None or self.last is not None or self.total is None:
            return self.length
        return self.total - self.first


_CONTENT_RANGE = re.compile(
    rf"(?:(?P<unit>{TOKEN})(?P<space>\x20)(?=[0-9*]))?"
    r"(?:(?P<first>[0-9]{1,15})-(?P<last>[0-9]{1,15})?|(?P<unsatisfied>\*))"
    r"/(?:(?P<total>[0-9]{1,15})|\*)"
)


def parse_content_range(value: str, *, lenient_unit: bool = False) -> ContentRange:
    """Read ``bytes a-b/total``, ``a-b/*``, ``a-/total``, ``a-/*`` or ``*/total``.

    *lenient_unit* accepts a missing unit, as the drafts' own demonstration client
    sends it (B6). Raises :class:`PeerError` (400): B1, B2, B6, G6.
    """
    match = _CONTENT_RANGE.fullmatch(value)
    if match is None:
        raise _bad_range("Content-Range names no known, contiguous range")
    unit: str | None = match["unit"]
    if unit is None and not lenient_unit:
        raise _bad_range("Content-Range lacks its unit")
    # Range units are compared without case (RFC 9110, section 14.1).
    if unit is not None and unit.lower() != "bytes":
        raise _bad_range("the only supported range unit is bytes")
    first, last, total = (
        None if match[part] is None else int(match[part])
        for part in ("first", "last", "total")
    )
    content_range = ContentRange(first, last, total)
    _check_order(content_range)
    return content_range


def parse_content_offset(value: str) -> ContentRange:
    """Read ``N`` or ``N;complete-length=M``: a range with an unknown end (B13).

    *Byte Range PATCH* (draft -05) defines it for a part that begins before its length
    is known. ``Content-Range`` has no standard form for that. Raises :class:`PeerError`
    (400).
    """
    item = parameterised_integer(value)
    if item is None:
        raise _bad_range("Content-Offset is not a whole number")
    first, parameters = item
    unit = parameters.get("unit", "bytes")
    if not isinstance(unit, str) or unit.lower() != "bytes":
        raise _bad_range("the only supported range unit is bytes")
    total = parameters.get("complete-length")
    if total is not None and not is_natural(total):
        raise _bad_range("complete-length is not a whole number")
    content_range = ContentRange(first, None, total)
    _check_order(content_range)
    return content_range


def format_part_range(
    range_: ContentRange, *, ranges_only: bool = False
) -> tuple[str, str]:
    """Return the name and value of the field that says where a part belongs.

    That is ``Content-Offset`` if the end is not known, else ``Content-Range``. With
    *ranges_only* it is ``Content-Range`` in any case, as before draft -05.
    """
    if ranges_only or range_.first is None or range_.last is not None:
        return "Content-Range", format_content_range(range_)
    if range_.total is None:
        return "Content-Offset", str(range_.first)
    return "Content-Offset", f"{range_.first};complete-length={range_.total}"


def _check_order(range_: ContentRange) -> None:
    if range_.first is None:
        if range_.total is None:
            raise _bad_range("Content-Range says neither a range nor a length")
        return
    if range_.last is not None and range_.first > range_.last:
        raise _bad_range("the range ends before it begins")
    if range_.total is None:
        return
    if range_.last is not None and range_.last >= range_.total:
        raise _bad_range("the range goes beyond the length it states")
    # An open-ended range may begin at the very end, without content. A client repeats a
    # completing patch in this form (R24).
    if range_.first > range_.total:
        raise _bad_range("the range begins beyond the length it states")


def format_content_range(range_: ContentRange) -> str:
    """Return the field's value: the inverse of :func:`parse_content_range`."""
    total = "*" if range_.total is None else str(range_.total)
    if range_.first is None:
        return f"bytes */{total}"
    last = "" if range_.last is None else str(range_.last)
    return f"bytes {range_.first}-{last}/{total}"


def _bad_range(detail: str) -> PeerError:
    return PeerError(ProblemCode.BAD_CONTENT_RANGE, detail)


# ---------------------------------------------------------------- Range


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
