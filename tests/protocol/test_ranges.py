"""Range requests: wishes that are granted, ignored or impossible."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.protocol.patch_writers import encode_varint
from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.byteranges import patch_reader
from trioresume.protocol.heads import Fields
from trioresume.protocol.parts import PartData, PartStart, PatchEnd
from trioresume.protocol.ranges import ByteRange, multipart_ranges, parse_range


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-4", [(0, 4)]),
        ("BYTES=5-", [(5, 9)]),
        ("bytes=-3", [(7, 9)]),
        ("bytes=-30", [(0, 9)]),
        ("bytes=8-100", [(8, 9)]),
        ("bytes=8-999999999999999", [(8, 9)]),
        ("bytes=6-7, 0-1", [(6, 7), (0, 1)]),
        ("bytes=0-0,20-30,-1", [(0, 0), (9, 9)]),
        ("bytes=4-6,0-4", [(0, 6)]),
        ("bytes=0-1,2-3", [(0, 3)]),
        ("bytes=0-,0-,0-", [(0, 9)]),
    ],
)
def test_ranges_are_resolved_within_the_length(
    value: str, expected: list[tuple[int, int]]
) -> None:
    """RFC 9110, section 14.1.2; what overlaps or touches is joined (G16)."""
    assert parse_range(value, 10) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=4-2",
        "bytes=0-1;2-3",
        "bytes 0-1",
        "items=0-1",
        "bytes=0-1,x",
        "bytes=0-9999999999999999",
        "bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(17)),
    ],
)
def test_other_values_are_ignored(value: str | None) -> None:
    """G6, G16: the whole representation is the answer that costs least."""
    assert parse_range(value, 100) is None


@pytest.mark.parametrize(
    ("value", "length"),
    [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)],
)
def test_a_range_without_an_existing_byte_is_a_416(value: str, length: int) -> None:
    """R28: with the length there is."""
    with pytest.raises(PeerError) as caught:
        parse_range(value, length)
    assert caught.value.problem is ProblemCode.RANGE_NOT_SATISFIABLE
    assert caught.value.fields == (("Content-Range", f"bytes */{length}"),)


@given(st.text(alphabet="0123456789-, b", max_size=40), st.integers(0, 50))
def test_any_range_stays_within_the_length(text: str, length: int) -> None:
    """And no byte is sent twice."""
    try:
        ranges = parse_range(f"bytes={text}", length)
    except PeerError:
        return
    covered: list[int] = []
    for first, last in ranges or []:
        assert 0 <= first <= last < length
        covered.extend(range(first, last + 1))
    assert len(covered) == len(set(covered))


def test_a_multipart_answer_is_as_long_as_it_says_and_reads_back() -> None:
    """The server can send its Content-Length before it has read a part."""
    content = bytes(range(100))
    ranges = [ByteRange(90, 99), ByteRange(0, 9)]
    framing = multipart_ranges(ranges, 100, "text/plain", "b0undary")
    body = b"".join(
        head + content[range_.first : range_.last + 1] for head, range_ in framing.parts
    )
    body += framing.closing
    assert len(body) == framing.length
    assert b"Content-Type: text/plain\r\n" in body
    reader = patch_reader(framing.content_type, Fields(), content_length=len(body))
    events = [*reader.feed(body), *reader.end()]
    starts = [event.range for event in events if isinstance(event, PartStart)]
    assert [(range_.first, range_.last) for range_ in starts] == ranges
    data = b"".join(
        bytes(event.data) for event in events if isinstance(event, PartData)
    )
    assert data == content[90:] + content[:10]
    assert events[-1] == PatchEnd()


def test_a_content_type_that_is_unsafe_is_left_out_of_the_parts() -> None:
    """G4."""
    framing = multipart_ranges([ByteRange(0, 0)], 1, "a/b\r\nX: y", "b")
    assert b"X: y" not in framing.parts[0][0]


def test_a_number_that_no_framing_can_hold_is_the_callers_error() -> None:
    """RFC 9000, section 16: 62 bits."""
    assert encode_varint(2**62 - 1) == b"\xff" * 8
    for value in (-1, 2**62):
        with pytest.raises(ValueError):
            encode_varint(value)
