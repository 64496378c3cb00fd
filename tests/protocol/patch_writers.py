"""Write patches of several parts, in the formats that this project itself only reads."""

from __future__ import annotations

from trioresume.protocol.heads import Fields
from trioresume.protocol.parts import NO_FIELDS, encode_part_header
from trioresume.protocol.ranges import ContentRange, format_part_range

KNOWN_LENGTH, INDETERMINATE_LENGTH = 8, 10
"""The framings of a message in RFC 9292."""


def encode_varint(value: int) -> bytes:
    """Encode *value* in the fewest bytes. Raises ValueError beyond 62 bits."""
    for exponent in range(4):
        bits = 8 * (1 << exponent) - 2
        if 0 <= value < 1 << bits:
            return (exponent << bits | value).to_bytes(1 << exponent, "big")
    raise ValueError("not a number that a variable-length integer can hold")


def encode_binary_part(
    range_: ContentRange, length: int | None, fields: Fields = NO_FIELDS
) -> bytes:
    """Encode what stands before a part's content of *length* bytes.

    With None the length is indeterminate. The content is then sent in chunks (see
    :func:`encode_binary_chunk`); an empty chunk ends it.
    """
    lines = Fields([format_part_range(range_)]).plus(fields)
    section = b"".join(
        encode_varint(len(text)) + text
        for line in lines
        for text in (line[0].encode("latin-1"), line[1].encode("latin-1"))
    )
    if length is None:
        return encode_varint(INDETERMINATE_LENGTH) + section + encode_varint(0)
    return b"".join(
        (
            encode_varint(KNOWN_LENGTH),
            encode_varint(len(section)),
            section,
            encode_varint(length),
        )
    )


def encode_binary_chunk(data: bytes) -> bytes:
    """Encode a chunk of indeterminate-length content. An empty chunk ends the content."""
    return encode_varint(len(data)) + data


def encode_multipart_part(
    boundary: str, range_: ContentRange, fields: Fields = NO_FIELDS
) -> bytes:
    """Encode what stands before a part's content."""
    return f"\r\n--{boundary}\r\n".encode("ascii") + encode_part_header(range_, fields)


def encode_multipart_end(boundary: str) -> bytes:
    """Encode what stands after the last part's content."""
    return f"\r\n--{boundary}--\r\n".encode("ascii")
