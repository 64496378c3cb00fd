"""``application/byteranges``: parts in the binary framing of RFC 9292 (B12).

A patch is a sequence of messages, each with a range. Integers (i) are QUIC's
variable-length integers (RFC 9000, section 16): the two high bits of the first byte say
whether the number has 1, 2, 4 or 8 bytes::

    known length                        indeterminate length
    ------------                        --------------------
    8 (i)                               10 (i)
    length of the field section (i)
    { name length (i), name, value length (i), value } …
                                        0 (i)
    length of the content (i)           { length of a chunk (i), chunk } …
    content                             0 (i)

The reader checks every length before it waits for that many bytes: sections and names
against the limits of G3, content against its range.

Statement numbers such as B12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from trioresume.errors import PeerError
from trioresume.protocol.fields import MAX_DIGITS
from trioresume.protocol.framing import check_field
from trioresume.protocol.heads import Fields
from trioresume.protocol.parts import (
    PartEnd,
    PatchCut,
    PatchEnd,
    PatchEvent,
    PatchReader,
    Steps,
    as_patch_problem,
    bad_patch,
)

__all__ = ["BinaryReader"]

_KNOWN_LENGTH = 8
_INDETERMINATE_LENGTH = 10
_LARGEST = 10**MAX_DIGITS - 1
# How much input is searched for short chunks at a time. Their content is one event.
_MAX_GATHERED = 128 * 1024
# A longer chunk is an event of its own, because copying it would cost more.
_LONGEST_GATHERED = 4096


class BinaryReader(PatchReader):
    """Reads the messages of a patch in the binary format."""

    _between = False
    """Whether a message has just ended, so that the patch may end here."""
    _in_message = False
    """Whether the reader is between a message's framing indicator and its end."""

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
        else:  # before the first part, or after a byte or two of garbage
            raise bad_patch("the patch has no message")

    def _known_message(self) -> Steps[None]:
        size, _ = yield from self._varint()
        if size > self._limits.max_header_size:
            raise self._header_too_large()
        fields = yield from self._field_section(size)
        length, _ = yield from self._varint()
        start = self._begin(fields, length)
        # The framing states the length as a Content-Length would: the same rule holds
        # (B4).
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
            self.work += 1
            if size == 0:
                return
            yield from self._content_of(size)

    def _content_of(self, size: int) -> Steps[None]:
        while size:
            self.plain = size
            piece = yield from self._some(size)
            size -= len(piece)
            yield from self._content(piece)
        self.plain = 0

    def _small_chunks(self) -> bytes:
        """Take the next short chunks that are whole in the input; return their content.

        Without this shortcut, a hostile patch of one-byte chunks would cost one event
        for each byte.
        """
        # Look at the first chunk alone: if it is long, nothing is copied.
        size, start = _varint_at(self._input[:8], 0)
        if not 0 < size <= _LONGEST_GATHERED or start + size > len(self._input):
            return b""
        raw = bytes(self._input[:_MAX_GATHERED])
        chunks: list[bytes] = []
        position = 0
        while position < len(raw):
            size = raw[position]
            start = position + 1
            if size > 63:
                size, start = _varint_at(raw, position)
            end = start + size
            if not 0 < size <= _LONGEST_GATHERED or end > len(raw):
                break
            chunks.append(raw[start:end])
            position = end
        self._input = self._input[position:]
        self.work += len(chunks)
        return b"".join(chunks)

    # ------------------------------------------------------------ fields and numbers

    def _field_section(self, size: int | None) -> Steps[Fields]:
        """Read the field lines of a section of *size* bytes; None: up to its terminator."""
        if size is not None:
            section = yield from self._exactly(size)
            lines, end = self._field_lines(section, 0)
            if end < size:
                raise bad_patch("a field goes beyond the end of its section")
            return Fields.from_wire(lines)
        lines = []
        left = self._limits.max_header_size
        while True:
            # Lines that are whole are read at once, the others step by step.
            known = bytes(self._input[:left])
            more, end = self._field_lines(known, len(lines))
            lines += more
            left -= end
            self._input = self._input[end:]
            name, left = yield from self._string(left)
            if not name:
                return Fields.from_wire(lines)
            value, left = yield from self._string(left)
            lines.append(self._field_line(name, value, len(lines)))

    def _field_lines(
        self, raw: bytes, count: int
    ) -> tuple[list[tuple[bytes, bytes]], int]:
        """Return the field lines at the beginning of *raw*, and where they end.

        The lines end before a terminator, and before a line that is not whole in *raw*.
        *count* is how many lines were read before.
        """
        lines: list[tuple[bytes, bytes]] = []
        position = 0
        while position < len(raw):
            size, start = _varint_at(raw, position)
            value_at = start + size
            size, value_start = _varint_at(raw, value_at)
            end = value_start + size
            if value_at == start or end > len(raw):
                break
            name, value = raw[start:value_at], raw[value_start:end]
            lines.append(self._field_line(name, value, count + len(lines)))
            position = end
        return lines, position

    def _field_line(self, name: bytes, value: bytes, count: int) -> tuple[bytes, bytes]:
        if count == self._limits.max_fields:
            raise self._too_many_fields()
        self.work += 1
        try:
            return check_field(name, value)
        except PeerError as error:
            raise as_patch_problem(error) from None

    def _string(self, left: int) -> Steps[tuple[bytes, int]]:
        """Read a string, with its length at most *left* bytes. Also return the rest of *left*."""
        size, width = yield from self._varint()
        left -= width + size
        if left < 0:
            raise self._header_too_large()
        string = yield from self._exactly(size)
        return string, left

    def _varint(self) -> Steps[tuple[int, int]]:
        """Read a number. Also return how many bytes it took."""
        first = yield from self._exactly(1)
        width = 1 << (first[0] >> 6)
        rest = yield from self._exactly(width - 1)
        value = int.from_bytes(first + rest, "big") & ((1 << (8 * width - 2)) - 1)
        if value > _LARGEST:
            raise bad_patch(f"a length has more than {MAX_DIGITS} digits")
        return value, width


def _varint_at(raw: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return the number at *position*, and where it ends: beyond *raw* if it is cut."""
    if position >= len(raw):
        return 0, len(raw) + 1
    width = 1 << (raw[position] >> 6)
    end = position + width
    return int.from_bytes(raw[position:end], "big") & _MASKS[width], end


_MASKS = {width: (1 << (8 * width - 2)) - 1 for width in (1, 2, 4, 8)}
