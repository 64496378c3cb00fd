"""``application/byteranges``: parts in the binary framing of RFC 9292 (B12).

A patch is one or more messages, one after the other, each with a range. Integers
(i) are QUIC's variable-length ones (RFC 9000, section 16): the first byte's two high
bits say whether 1, 2, 4 or 8 bytes make up the number::

    known length                        indeterminate length
    ------------                        --------------------
    8 (i)                               10 (i)
    length of the field section (i)
    { name length (i), name, value length (i), value } …
                                        0 (i)
    length of the content (i)           { length of a chunk (i), chunk } …
    content                             0 (i)

Every length is checked before anything of that length is awaited: sections and
names against the limits of G3, contents against their range.
"""

from __future__ import annotations

from collections.abc import Iterator

from trioresume.protocol.fields import MAX_DIGITS, ContentRange, format_content_range
from trioresume.protocol.framing import check_field
from trioresume.protocol.heads import Fields
from trioresume.protocol.parts import (
    NO_FIELDS,
    PartEnd,
    PatchCut,
    PatchEnd,
    PatchEvent,
    PatchReader,
    Steps,
    as_patch_problems,
    bad_patch,
)

__all__ = [
    "BinaryReader",
    "encode_binary_chunk",
    "encode_binary_part",
    "encode_varint",
]

_KNOWN_LENGTH = 8
_INDETERMINATE_LENGTH = 10
_LARGEST = 10**MAX_DIGITS - 1
# The most content of short chunks that is gathered into one event.
_MAX_GATHERED = 64 * 1024


class BinaryReader(PatchReader):
    """Reads the messages of a patch in the binary format."""

    _between = False
    """Whether a message has just ended, so that the patch may end as well."""
    _in_message = False
    """Whether a message's framing indicator was read, and its end was not."""

    def _parse(self) -> Steps[None]:
        while True:
            yield from self._available()
            self._between = False
            indicator, _ = yield from self._varint()
            self._in_message = True
            if indicator == _KNOWN_LENGTH:
                yield from self._known_message()
            elif indicator == _INDETERMINATE_LENGTH:
                yield from self._indeterminate_message()
            else:
                raise bad_patch("a message begins with an unknown framing indicator")
            if self._is_short():
                yield PatchCut()
                return
            yield PartEnd()
            self._between, self._in_message = True, False

    def _finish(self) -> Iterator[PatchEvent]:
        if self._between:
            yield PatchEnd()
        elif self._in_message and self._parts:
            yield PatchCut()
        else:  # before the first part, or within a byte or two of garbage at the end
            raise bad_patch("the patch ends where no message has begun")

    def _known_message(self) -> Steps[None]:
        size, _ = yield from self._varint()
        if size > self._limits.max_header_size:
            raise self._header_too_large()
        fields = yield from self._field_section(size)
        length, _ = yield from self._varint()
        start = self._begin(fields, length)
        # The framing says before any byte what a Content-Length would say, so it is
        # held to the same rule (B4).
        if self._expected not in (None, length):
            raise bad_patch("a message's content is not as long as its range")
        yield start
        yield from self._content_of(length)

    def _indeterminate_message(self) -> Steps[None]:
        fields = yield from self._field_section(None)
        yield self._begin(fields, None)
        while True:
            small = self._small_chunks()
            if small:
                yield from self._content(memoryview(small))
                continue
            size, _ = yield from self._varint()
            if size == 0:
                return
            yield from self._content_of(size)

    def _content_of(self, size: int) -> Steps[None]:
        while size:
            piece = yield from self._some(size)
            size -= len(piece)
            yield from self._content(piece)

    def _small_chunks(self) -> bytes:
        """The content of the short chunks that the input holds whole, next to come.

        Without this shortcut, a hostile patch of one-byte chunks would cost an event,
        and so a write, for each byte. Short is what a one-byte number can say.
        """
        gathered = bytearray()
        view, position = self._input, 0
        while position < len(view) and len(gathered) < _MAX_GATHERED:
            end = position + 1 + view[position]
            if not 0 < view[position] < 64 or end > len(view):
                break
            gathered += view[position + 1 : end]
            position = end
        self._input = view[position:]
        return bytes(gathered)

    # ------------------------------------------------------------ fields and numbers

    def _field_section(self, size: int | None) -> Steps[Fields]:
        """The field lines of a section of *size* bytes, or up to its terminator."""
        lines: list[tuple[bytes, bytes]] = []
        known = size is not None
        left = self._limits.max_header_size if size is None else size
        while left > 0 or not known:
            name, left = yield from self._string(left, known=known)
            if not name and not known:
                break
            value, left = yield from self._string(left, known=known)
            if len(lines) == self._limits.max_fields:
                raise self._too_many_fields()
            with as_patch_problems():
                lines.append(check_field(name, value))
        return Fields.from_wire(lines)

    def _string(self, left: int, *, known: bool) -> Steps[tuple[bytes, int]]:
        """A string of at most *left* bytes, its length included; what is left then."""
        size, width = yield from self._varint()
        left -= width + size
        if left < 0 and known:
            raise bad_patch("a field goes beyond the end of its section")
        if left < 0:
            raise self._header_too_large()
        string = yield from self._exactly(size)
        return string, left

    def _varint(self) -> Steps[tuple[int, int]]:
        """A number, and how many bytes it took."""
        first = yield from self._exactly(1)
        width = 1 << (first[0] >> 6)
        rest = yield from self._exactly(width - 1)
        value = int.from_bytes(first + rest, "big") & ((1 << (8 * width - 2)) - 1)
        if value > _LARGEST:
            raise bad_patch(f"a length has more than {MAX_DIGITS} digits")
        return value, width


# ---------------------------------------------------------------- writing


def encode_varint(value: int) -> bytes:
    """*value* in the fewest bytes; ValueError beyond 62 bits."""
    for exponent in range(4):
        bits = 8 * (1 << exponent) - 2
        if 0 <= value < 1 << bits:
            return (exponent << bits | value).to_bytes(1 << exponent, "big")
    raise ValueError("not a number that a variable-length integer can hold")


def encode_binary_part(
    range_: ContentRange, length: int | None, fields: Fields = NO_FIELDS
) -> bytes:
    """What stands before a part's content of *length* bytes.

    None makes the length indeterminate: the content is then sent in chunks (see
    :func:`encode_binary_chunk`) and ends with an empty one.
    """
    lines = Fields({"content-range": format_content_range(range_)}).plus(fields)
    section = b"".join(
        encode_varint(len(text)) + text
        for line in lines
        for text in (line[0].encode("latin-1"), line[1].encode("latin-1"))
    )
    if length is None:
        return encode_varint(_INDETERMINATE_LENGTH) + section + encode_varint(0)
    return b"".join(
        (
            encode_varint(_KNOWN_LENGTH),
            encode_varint(len(section)),
            section,
            encode_varint(length),
        )
    )


def encode_binary_chunk(data: bytes) -> bytes:
    """A chunk of indeterminate-length content; an empty one ends the content."""
    return encode_varint(len(data)) + data
