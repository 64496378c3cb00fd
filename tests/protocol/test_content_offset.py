"""``Content-Offset``: a part of a patch whose end is not known (Byte Range PATCH, -05)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.protocol.patch_writers import (
    encode_binary_chunk,
    encode_binary_part,
    encode_multipart_end,
    encode_multipart_part,
)
from tests.protocol.test_patches import MESSAGE, message, read, summary
from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.parts import PartEnd, PatchEnd, encode_part_header
from trioresume.protocol.ranges import (
    ContentRange,
    format_part_range,
    parse_content_offset,
    parse_content_range,
)

BAD = ProblemCode.BAD_CONTENT_RANGE
MULTIPART = "multipart/byteranges; boundary=x"
BINARY = "application/byteranges"


@pytest.mark.parametrize(
    ("value", "first", "total"),
    [
        ("0", 0, None),
        ("7", 7, None),
        ("7;complete-length=10", 7, 10),
        ("7; complete-length=10", 7, 10),
        ("7;unit=bytes;complete-length=10", 7, 10),
        ("7;complete-length=10;unit=bytes", 7, 10),
        ('7;unit="bytes"', 7, None),
        ("7;unit=BYTES", 7, None),
        ("7;complete-length=7", 7, 7),
        ("7;complete-length=9;complete-length=8", 7, 8),
        ("7;other=1.5;x", 7, None),
        ("999999999999999", 999999999999999, None),
        ("007", 7, None),
    ],
)
def test_offset_and_parameters_are_read(
    value: str, first: int, total: int | None
) -> None:
    """B13: a structured Item; unknown parameters are passed over (RFC 9651)."""
    assert parse_content_offset(value) == ContentRange(first, None, total)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "1.0",
        "?1",
        "x",
        '"1"',
        "1, 2",
        "1-5",
        "bytes 1-5/9",
        "bytes=1",
        "1;",
        "1;unit=items",
        "1;unit=1",
        "1;unit",
        "1;complete-length",
        "1;complete-length=-9",
        "1;complete-length=9.0",
        '1;complete-length="9"',
        "1;complete-length=*",
        "9;complete-length=8",
        "1234567890123456",
        "1;complete-length=1234567890123456",
        "1" + ";a=1" * 1000,
        "1;unit=b\xe9",
    ],
)
def test_malformed_offset_is_refused(value: str) -> None:
    """B13, G6: 400 with the code of a range that cannot be used."""
    with pytest.raises(PeerError) as caught:
        parse_content_offset(value)
    assert caught.value.problem is BAD
    assert BAD.status == 400


@pytest.mark.parametrize(
    ("value", "range_"),
    [("5", (5, None, None, None)), ("5;complete-length=8", (5, None, 8, None))],
)
def test_message_part_has_it_instead_of_a_range(
    value: str, range_: tuple[int | None, ...]
) -> None:
    """B3, B13: both forms mean the same."""
    document = message(f"Content-Offset: {value}\n\n", b"abc")
    older = "5-/*" if value == "5" else "5-/8"
    with_range = message(f"Content-Range: bytes {older}\n\n", b"abc")
    expected = [range_, b"abc", PartEnd(), PatchEnd()]
    assert summary(read(MESSAGE, document)) == expected
    assert summary(read(MESSAGE, with_range)) == expected


def test_length_bounds_the_content() -> None:
    """B5: beyond it is too much."""
    document = message("Content-Offset: 5;complete-length=8\n\n", b"abcd")
    assert summary(read(MESSAGE, document))[-1] is ProblemCode.BAD_PATCH


def test_multipart_and_binary_parts_have_it_too() -> None:
    """B13: whatever the format is."""
    first, second = ContentRange(0, 2, 8), ContentRange(3, None, 8)
    multipart = b"".join(
        (
            encode_multipart_part("x", first),
            b"abc",
            encode_multipart_part("x", second),
            b"defgh",
            encode_multipart_end("x"),
        )
    )
    binary = b"".join(
        (
            encode_binary_part(first, 3),
            b"abc",
            encode_binary_part(second, None),
            encode_binary_chunk(b"defgh"),
            encode_binary_chunk(b""),
        )
    )
    for media_type, document in ((MULTIPART, multipart), (BINARY, binary)):
        assert b"ontent-" in document
        assert b"3;complete-length=8" in document
        assert summary(read(media_type, document)) == [
            (0, 2, 8, 3),
            b"abc",
            PartEnd(),
            (3, None, 8, None),
            b"defgh",
            PartEnd(),
            PatchEnd(),
        ]


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Offset: 0\nContent-Range: bytes 0-/*\n",
        "Content-Offset: 0\nContent-Range: bytes 0-2/3\n",
        "Content-Offset: 0\nContent-Offset: 0\n",
        "Content-Offset: \n",
        "Content-Offset: 0;unit=lines\n",
    ],
)
def test_part_says_once_where_it_belongs(lines: str) -> None:
    """B1, B13: two fields could mean two things."""
    assert read(MESSAGE, message(lines + "\n", b"abc")) == [BAD]


@pytest.mark.parametrize(
    ("range_", "newer", "older"),
    [
        (ContentRange(5, None, None), ("Content-Offset", "5"), "bytes 5-/*"),
        (
            ContentRange(5, None, 8),
            ("Content-Offset", "5;complete-length=8"),
            "bytes 5-/8",
        ),
        (ContentRange(5, 6, 8), ("Content-Range", "bytes 5-6/8"), "bytes 5-6/8"),
        (ContentRange(None, None, 8), ("Content-Range", "bytes */8"), "bytes */8"),
    ],
)
def test_newer_form_is_written_where_the_end_is_not_known(
    range_: ContentRange, newer: tuple[str, str], older: str
) -> None:
    """B13: and the older one for servers that know no other."""
    assert format_part_range(range_) == newer
    assert format_part_range(range_, ranges_only=True) == ("Content-Range", older)
    line = f"{newer[0]}: {newer[1]}\r\n".encode()
    assert encode_part_header(range_).startswith(line)
    line = f"Content-Range: {older}\r\n".encode()
    assert encode_part_header(range_, ranges_only=True).startswith(line)


numbers = st.integers(0, 10**15 - 1)


@given(numbers, st.none() | numbers)
def test_what_is_written_reads_back(first: int, total: int | None) -> None:
    """Both forms."""
    if total is not None and total < first:
        first, total = total, first
    range_ = ContentRange(first, None, total)
    assert parse_content_offset(format_part_range(range_)[1]) == range_
    older = format_part_range(range_, ranges_only=True)[1]
    assert parse_content_range(older) == range_
