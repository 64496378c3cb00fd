"""Byte-range patches: the same events from any split, every rule, any bytes at all.

Every document below is fed whole, byte by byte and cut at random.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, strategies as st

from tests.protocol.patch_writers import (
    encode_binary_chunk,
    encode_binary_part,
    encode_multipart_end,
    encode_multipart_part,
    encode_varint,
)
from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.byteranges import ACCEPT_PATCH, patch_reader
from trioresume.protocol.heads import Fields
from trioresume.protocol.parts import (
    PartData,
    PartEnd,
    PartStart,
    PatchCut,
    PatchEnd,
    PatchEvent,
    PatchLimits,
    PatchReader,
    encode_part_header,
)
from trioresume.protocol.ranges import ContentRange

MESSAGE = "message/byterange"
MULTIPART = "multipart/byteranges; boundary=SEP"
BINARY = "application/byteranges"
OFFSET = "application/offset+octet-stream"
PARTIAL = "application/partial-upload"

Event = PatchEvent | bytes | ProblemCode


def make(
    content_type: str,
    *,
    fields: dict[str, str] | None = None,
    content_length: int | None = None,
    limits: PatchLimits | None = None,
    lenient_unit: bool = False,
) -> PatchReader:
    return patch_reader(
        content_type,
        Fields(fields or {}),
        content_length=content_length,
        limits=limits or PatchLimits(),
        lenient_unit=lenient_unit,
    )


def run(reader: PatchReader, pieces: Iterable[bytes]) -> list[Event]:
    """The events, neighbouring data joined; an error is the last item."""
    events: list[Event] = []

    def note(event: PatchEvent) -> None:
        if not isinstance(event, PartData):
            events.append(event)
            return
        assert event.data, "empty data is no event"
        before = events.pop() if events and isinstance(events[-1], bytes) else b""
        assert isinstance(before, bytes)
        events.append(before + bytes(event.data))

    try:
        for piece in pieces:
            # A buffer that is overwritten after each feed, as the server's is.
            buffer = bytearray(piece)
            for event in reader.feed(memoryview(buffer)):
                note(event)
            buffer[:] = b"\xee" * len(buffer)
        for event in reader.end():
            note(event)
    except PeerError as error:
        events.append(error.problem)
    return events


def pieces_of(document: bytes, size: int) -> list[bytes]:
    return [document[i : i + size] for i in range(0, len(document), size)]


def read(
    content_type: str,
    document: bytes,
    *,
    fields: dict[str, str] | None = None,
    content_length: int | None = None,
    limits: PatchLimits | None = None,
    lenient_unit: bool = False,
) -> list[Event]:
    """What the document gives, whole, byte by byte and in threes alike."""

    def fed(pieces: list[bytes]) -> list[Event]:
        reader = make(
            content_type,
            fields=fields,
            content_length=content_length,
            limits=limits,
            lenient_unit=lenient_unit,
        )
        return run(reader, pieces)

    whole = fed([document])
    assert fed(pieces_of(document, 1)) == whole
    assert fed(pieces_of(document, 3)) == whole
    return whole


def summary(events: list[Event]) -> list[object]:
    """Without the parts' fields, which few tests are about."""
    return [
        (event.range.first, event.range.last, event.range.total, event.length)
        if isinstance(event, PartStart)
        else event
        for event in events
    ]


def message(header: str, content: bytes = b"") -> bytes:
    return header.replace("\n", "\r\n").encode("latin-1") + content


# ---------------------------------------------------------------- message/byterange


def test_message_byterange_carries_one_range_and_its_fields() -> None:
    """Four bytes at offset 2 of 12; fields other than the range are kept but ignored (B6)."""
    document = message("Content-Range: bytes 2-5/12\nX-Other: text\n\n", b"wxyz")
    assert read(MESSAGE, document) == [
        PartStart(
            ContentRange(2, 5, 12),
            Fields({"content-range": "bytes 2-5/12", "x-other": "text"}),
            4,
        ),
        b"wxyz",
        PartEnd(),
        PatchEnd(),
    ]


@pytest.mark.parametrize(
    ("value", "content", "expected"),
    [
        ("bytes 0-3/*", b"abcd", (0, 3, None, 4)),
        ("bytes 5-/8", b"abc", (5, None, 8, None)),
        ("bytes 5-/*", b"abcdef", (5, None, None, None)),
        ("BYTES 0-0/1", b"a", (0, 0, 1, 1)),
    ],
)
def test_every_form_of_range_is_read(
    value: str, content: bytes, expected: tuple[int | None, ...]
) -> None:
    """B2 and B3: closed and open-ended ranges, with and without the total."""
    document = message(f"Content-Range: {value}\n\n", content)
    assert summary(read(MESSAGE, document)) == [
        expected,
        content,
        PartEnd(),
        PatchEnd(),
    ]


def test_an_unsatisfied_range_sets_a_length_and_carries_nothing() -> None:
    """B3: ``bytes */N`` has no content."""
    document = message("Content-Range: bytes */7\n\n")
    expected = [(None, None, 7, 0), PartEnd(), PatchEnd()]
    assert summary(read(MESSAGE, document)) == expected
    assert read(MESSAGE, document + b"x")[-1] is ProblemCode.BAD_PATCH


def test_an_open_ended_range_may_be_empty_at_the_very_end() -> None:
    """R24: a completing patch repeated without content is a valid document."""
    document = message("Content-Range: bytes 7-/7\n\n")
    expected = [(7, None, 7, None), PartEnd(), PatchEnd()]
    assert summary(read(MESSAGE, document)) == expected


def test_content_shorter_than_its_range_is_a_cut_at_the_shorter_length() -> None:
    """B5: what came counts, and nothing says that the part is whole."""
    document = message("Content-Range: bytes 0-9/10\n\n", b"abc")
    expected = [(0, 9, 10, 10), b"abc", PatchCut()]
    assert summary(read(MESSAGE, document)) == expected
    known = summary(read(MESSAGE, document, content_length=len(document)))
    assert known == [(0, 9, 10, 3), b"abc", PatchCut()]


def test_content_longer_than_its_range_is_refused() -> None:
    """B5: the excess is an error once it is seen, and is never given as content."""
    document = message("Content-Range: bytes 0-2/10\n\n", b"abcd")
    assert summary(read(MESSAGE, document)) == [
        (0, 2, 10, 3),
        b"abc",
        ProblemCode.BAD_PATCH,
    ]


def test_too_much_content_is_refused_before_any_of_it_when_the_length_is_known() -> (
    None
):
    """B5: with a Content-Length on the request, nothing needs to be read first."""
    closed = message("Content-Range: bytes 0-2/10\n\n", b"abcd")
    assert read(MESSAGE, closed, content_length=len(closed)) == [ProblemCode.BAD_PATCH]
    open_ended = message("Content-Range: bytes 8-/10\n\n", b"abc")
    refused = read(MESSAGE, open_ended, content_length=len(open_ended))
    assert refused == [ProblemCode.BAD_PATCH]


def test_the_length_of_open_ended_content_is_told_when_the_request_knows_it() -> None:
    """A server can refuse what would be too much before it reads it."""
    document = message("Content-Range: bytes 3-/*\n\n", b"abcd")
    events = summary(read(MESSAGE, document, content_length=len(document)))
    assert events[0] == (3, None, None, 4)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("\n", ProblemCode.BAD_CONTENT_RANGE),
        ("X: y\n\n", ProblemCode.BAD_CONTENT_RANGE),
        ("Content-Range: bytes 0-3/9\n" * 2 + "\n", ProblemCode.BAD_CONTENT_RANGE),
        ("Content-Range: bytes */*\n\n", ProblemCode.BAD_CONTENT_RANGE),
        ("Content-Range: 0-3/9\n\n", ProblemCode.BAD_CONTENT_RANGE),
        ("Content-Range: items 0-3/9\n\n", ProblemCode.BAD_CONTENT_RANGE),
        ("Content-Range: bytes 3-0/9\n\n", ProblemCode.BAD_CONTENT_RANGE),
        ("Content-Range: bytes 0-9/9\n\n", ProblemCode.BAD_CONTENT_RANGE),
        ("Content-Range: bytes -3/9\n\n", ProblemCode.BAD_CONTENT_RANGE),
        (
            "Content-Range: bytes 0-1000000000000000/*\n\n",
            ProblemCode.BAD_CONTENT_RANGE,
        ),
        ("Content-Range: bytes 0-3/9\nContent-Length: 5\n\n", ProblemCode.BAD_PATCH),
        ("Content-Range: bytes 0-3/9\nContent-Length: +4\n\n", ProblemCode.BAD_PATCH),
        (
            "Content-Range: bytes 0-3/9\n" + "Content-Length: 4\n" * 2 + "\n",
            ProblemCode.BAD_PATCH,
        ),
        ("Content-Range: bytes */9\nContent-Length: 1\n\n", ProblemCode.BAD_PATCH),
        ("Content-Range: bytes 4-/9\nContent-Length: 6\n\n", ProblemCode.BAD_PATCH),
        ("Content-Range: bytes 0-3/9\n folded\n\n", ProblemCode.BAD_PATCH),
        ("Content-Range : bytes 0-3/9\n\n", ProblemCode.BAD_PATCH),
        ("Content-Range: bytes 0-3/9\nX: \0\n\n", ProblemCode.BAD_PATCH),
        ("no colon\n\n", ProblemCode.BAD_PATCH),
        ("X: y\n" * 101 + "\n", ProblemCode.HEADER_TOO_LARGE),
        ("X: " + "y" * 17000 + "\n\n", ProblemCode.HEADER_TOO_LARGE),
        ("X: " + "y" * 17000, ProblemCode.HEADER_TOO_LARGE),
        ("Content-Range: bytes 0-3/9", ProblemCode.BAD_PATCH),
        ("", ProblemCode.BAD_PATCH),
    ],
)
def test_a_bad_part_header_is_refused(header: str, problem: ProblemCode) -> None:
    """B1, B4, B6, G3 and G6, one row each; no part begins."""
    assert read(MESSAGE, message(header, b"abcd" if "\n\n" in header else b"")) == [
        problem
    ]


def test_bare_line_feeds_in_a_part_header_are_refused() -> None:
    """G2 holds for nested header sections as well."""
    assert read(MESSAGE, b"Content-Range: bytes 0-3/9\n\nabcd") == [
        ProblemCode.BAD_PATCH
    ]


def test_a_header_section_at_the_limit_is_accepted() -> None:
    """G3: the limit counts the section's bytes, its blank line included."""
    fixed = len(message("Content-Range: bytes 0-3/9\nX: \n\n"))
    document = message(f"Content-Range: bytes 0-3/9\nX: {'y' * (16384 - fixed)}\n\n")
    assert len(document) == 16384
    assert isinstance(read(MESSAGE, document + b"abcd")[0], PartStart)
    longer = document.replace(b"X: ", b"X: y")
    assert read(MESSAGE, longer + b"abcd") == [ProblemCode.HEADER_TOO_LARGE]


def test_a_missing_unit_is_accepted_only_by_the_lenient_setting() -> None:
    """B6: the drafts' demonstration client leaves it out."""
    document = message("Content-Range: 3-9/10\n\n", b"abcdefg")
    assert read(MESSAGE, document) == [ProblemCode.BAD_CONTENT_RANGE]
    lenient = summary(read(MESSAGE, document, lenient_unit=True))
    assert lenient == [(3, 9, 10, 7), b"abcdefg", PartEnd(), PatchEnd()]


def test_a_declared_total_over_the_limit_is_a_400() -> None:
    """B7, and not a 413: smaller patches would not help."""
    limits = PatchLimits(max_total=100)
    document = message("Content-Range: bytes 0-3/101\n\n", b"abcd")
    assert read(MESSAGE, document, limits=limits) == [ProblemCode.LENGTH_OVER_LIMIT]
    within = message("Content-Range: bytes 0-3/100\n\n", b"abcd")
    assert read(MESSAGE, within, limits=limits)[-1] == PatchEnd()


# ---------------------------------------------------------------- multipart/byteranges


def part(range_: ContentRange, content: bytes) -> bytes:
    return encode_multipart_part("SEP", range_) + content


END = encode_multipart_end("SEP")


def test_multipart_gives_its_parts_in_order() -> None:
    """B8: and says that it is all or nothing."""
    document = (
        part(ContentRange(0, 3, 10), b"ab\r\n")
        + part(ContentRange(4, 9, 10), b"x--SEP")
        + END
    )
    assert make(MULTIPART).atomic
    assert summary(read(MULTIPART, document)) == [
        (0, 3, 10, 4),
        b"ab\r\n",
        PartEnd(),
        (4, 9, 10, 6),
        b"x--SEP",
        PartEnd(),
        PatchEnd(),
    ]


@pytest.mark.parametrize(
    "content", [b"", b"\r", b"\r\n", b"\r\n--SE", b"\r\r\n-", b"a\r\n--SEX"]
)
def test_the_beginning_of_a_boundary_is_content_when_it_does_not_go_on(
    content: bytes,
) -> None:
    """What was held back for the boundary is given in full."""
    document = part(ContentRange(0, None, None), content) + END
    given = [content] if content else []
    expected = [(0, None, None, None), *given, PartEnd(), PatchEnd()]
    assert summary(read(MULTIPART, document)) == expected


def test_the_first_boundary_needs_no_line_end_before_it() -> None:
    """RFC 2046's delimiter may be the body's first bytes, or follow empty lines."""
    document = part(ContentRange(0, 0, 1), b"x") + END
    for variant in (document[2:], document, b"\r\n" + document):
        assert read(MULTIPART, variant)[-1] == PatchEnd()


def test_a_boundary_may_be_padded_and_quoted() -> None:
    """RFC 2046: white space may follow it; parameters may be quoted strings."""
    document = b"--a b \t\r\nContent-Range: bytes 0-0/1\r\n\r\nx\r\n--a b--  \r\n"
    content_type = 'multipart/byteranges; boundary="a b"'
    assert read(content_type, document)[-1] == PatchEnd()


def test_a_part_without_content_may_lack_its_empty_line_end() -> None:
    """The header section's own line end then belongs to the delimiter."""
    document = b"--SEP\r\nContent-Range: bytes */5\r\n\r\n--SEP--"
    expected = [(None, None, 5, 0), PartEnd(), PatchEnd()]
    assert summary(read(MULTIPART, document)) == expected


def test_a_boundary_before_the_ranges_end_cuts_the_patch() -> None:
    """B5 within multipart: the rest, whatever it is, is ignored."""
    document = (
        part(ContentRange(0, 8, 9), b"abc") + part(ContentRange(3, 3, 9), b"d") + END
    )
    assert summary(read(MULTIPART, document)) == [(0, 8, 9, 9), b"abc", PatchCut()]


def test_a_multipart_that_lacks_its_end_is_cut() -> None:
    """B8: a consumer sees PatchCut instead of PatchEnd and applies nothing."""
    document = part(ContentRange(0, 2, 9), b"abc") + END
    for length in range(document.index(b"abc"), document.rindex(b"--")):
        assert read(MULTIPART, document[:length])[-1] == PatchCut()


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"--SEP--\r\n",
        b"preamble\r\n" + part(ContentRange(0, 0, 1), b"x") + END,
        b"\r\n" * 6 + part(ContentRange(0, 0, 1), b"x") + END,
        b"--SEPARATE\r\n",
        b"--SEP" + b" " * 200 + b"\r\n",
        b"--SEP\nContent-Range: bytes 0-0/1\r\n\r\n",
        part(ContentRange(0, 0, 1), b"x") + END + b"epilogue",
        part(ContentRange(0, 0, 1), b"x") + END + b"\r\n",
        part(ContentRange(0, 0, 1), b"xy") + END,
        b"--SEP\r\n",
    ],
)
def test_a_malformed_multipart_is_refused(document: bytes) -> None:
    """No preamble, no epilogue, no part without a range, no patch without a part (B8)."""
    assert read(MULTIPART, document)[-1] is ProblemCode.BAD_PATCH


def test_what_surrounds_the_parts_is_bounded_to_the_byte() -> None:
    """B8: padding and empty lines are read as far as the limit, and not held beyond it."""
    one = b"\r\nContent-Range: bytes 0-0/1\r\n\r\nx"
    for before, padding, after, last in (
        (b"\r\n" * 5, b"", b"", PatchEnd()),  # the last is the delimiter's own
        (b"\r\n" * 6, b"", b"", ProblemCode.BAD_PATCH),
        (b"", b" " * 127, b"", PatchEnd()),
        (b"", b" " * 128, b"", ProblemCode.BAD_PATCH),
        (b"", b"", b"\t" * 126 + b"\r\n", PatchEnd()),
        (b"", b"", b"\t" * 127 + b"\r\n", ProblemCode.BAD_PATCH),
        (b"", b"", b"\t" * 128, PatchEnd()),
        (b"", b"", b"\t" * 129, ProblemCode.BAD_PATCH),
    ):
        document = before + b"--SEP" + padding + one + b"\r\n--SEP--" + after
        assert read(MULTIPART, document)[-1] == last, (before, padding, after)


def test_parts_that_contradict_each_others_total_are_refused() -> None:
    """B2."""
    document = (
        part(ContentRange(0, 0, 5), b"x") + part(ContentRange(1, 1, 6), b"y") + END
    )
    assert read(MULTIPART, document)[-1] is ProblemCode.INCONSISTENT_LENGTH


@pytest.mark.parametrize("content_type", [MULTIPART, BINARY])
def test_the_number_of_parts_is_bounded(content_type: str) -> None:
    """B8: many empty parts must not keep a server busy."""
    range_ = ContentRange(0, None, None)
    if content_type == BINARY:
        document = encode_binary_part(range_, 0) * 4
    else:
        document = part(range_, b"") * 4 + END
    assert (
        read(content_type, document, limits=PatchLimits(max_parts=4))[-1] == PatchEnd()
    )
    refused = read(content_type, document, limits=PatchLimits(max_parts=3))
    assert refused[-1] is ProblemCode.BAD_PATCH


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/byteranges",
        "multipart/byteranges; boundary=",
        'multipart/byteranges; boundary=""',
        'multipart/byteranges; boundary="ends in space "',
        'multipart/byteranges; boundary="a\r\nb"',
        'multipart/byteranges; boundary="é"',
        f"multipart/byteranges; boundary={'a' * 71}",
        "multipart/byteranges; boundary=a; boundary=b",
    ],
)
def test_a_bad_boundary_is_refused_at_once(content_type: str) -> None:
    """B8: at most 70 characters of RFC 2046's set, and only one of them."""
    with pytest.raises(PeerError) as caught:
        make(content_type)
    assert caught.value.problem.status in (400, 415)


# ---------------------------------------------------------------- application/byteranges


def test_binary_parts_of_both_kinds_are_read() -> None:
    """B12: known and indeterminate lengths, one after the other."""
    document = (
        encode_binary_part(ContentRange(0, 3, 9), 4, Fields({"x-other": "y"}))
        + b"abcd"
        + encode_binary_part(ContentRange(4, None, 9), None)
        + encode_binary_chunk(b"ef")
        + encode_binary_chunk(b"g" * 3)
        + encode_binary_chunk(b"")
    )
    assert summary(read(BINARY, document)) == [
        (0, 3, 9, 4),
        b"abcd",
        PartEnd(),
        (4, None, 9, None),
        b"efggg",
        PartEnd(),
        PatchEnd(),
    ]


def test_a_binary_patch_ends_only_between_messages() -> None:
    """Each shorter document is a cut, or an error where no part had begun."""
    first = encode_binary_part(ContentRange(0, 1, 9), 2) + b"ab"
    document = first + encode_binary_part(ContentRange(2, 3, 9), None) + b"\x02cd\x00"
    for length in range(len(document)):
        last = read(BINARY, document[:length])[-1]
        if length == len(first):
            assert last == PatchEnd()
        elif length < len(first) - 2:
            assert last is ProblemCode.BAD_PATCH
        else:
            assert last == PatchCut()


def test_an_indeterminate_part_that_is_short_cuts_the_patch() -> None:
    """B5 in the binary format."""
    document = (
        encode_binary_part(ContentRange(0, 8, 9), None) + b"\x02ab\x00" + b"garbage"
    )
    assert summary(read(BINARY, document)) == [(0, 8, 9, 9), b"ab", PatchCut()]


@pytest.mark.parametrize("value", [0, 63, 64, 16383, 16384, 10**9, 2**30, 10**15 - 1])
def test_numbers_of_every_width_are_read(value: int) -> None:
    """RFC 9000, section 16; also in more bytes than they need."""
    encoded = [encode_varint(value)]
    if value < 2**30:
        encoded.append((0b11 << 62 | value).to_bytes(8, "big"))
    head = encode_binary_part(ContentRange(0, None, None), 0)[:-1]
    for number in encoded:
        events = read(BINARY, head + number)
        assert isinstance(events[0], PartStart)
        assert events[0].length == value


def field_section(*strings: bytes) -> bytes:
    return b"".join(encode_varint(len(string)) + string for string in strings)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", ProblemCode.BAD_PATCH),
        (b"\x00", ProblemCode.BAD_PATCH),
        (b"\x09", ProblemCode.BAD_PATCH),
        (b"\x08\x00\x00", ProblemCode.BAD_CONTENT_RANGE),
        (b"\x0a\x00", ProblemCode.BAD_CONTENT_RANGE),
        (b"\x08\x03\x05ab", ProblemCode.BAD_PATCH),
        (b"\x08\x02\x00\x00", ProblemCode.BAD_PATCH),
        # A byte too many in a section whose length is told: half a field.
        (b"\x08\x01\x00", ProblemCode.BAD_PATCH),
        (
            b"\x08"
            + encode_varint(len(field_section(b"content-range", b"bytes 0-0/1")) + 1)
            + field_section(b"content-range", b"bytes 0-0/1", b"")
            + b"\x01x",
            ProblemCode.BAD_PATCH,
        ),
        (b"\x08" + encode_varint(16385), ProblemCode.HEADER_TOO_LARGE),
        (b"\x0a" + encode_varint(16385), ProblemCode.HEADER_TOO_LARGE),
        (b"\x0a" + field_section(b"x", b"y") * 101, ProblemCode.HEADER_TOO_LARGE),
        (b"\x0a" + field_section(b"x y", b"z"), ProblemCode.BAD_PATCH),
        (b"\x0a" + field_section(b"x:y", b"z"), ProblemCode.BAD_PATCH),
        (b"\x0a" + field_section(b"x", b"a\r\nb: c"), ProblemCode.BAD_PATCH),
        (encode_binary_part(ContentRange(0, 3, 9), 3), ProblemCode.BAD_PATCH),
        (encode_binary_part(ContentRange(0, 3, 9), 5), ProblemCode.BAD_PATCH),
        (encode_binary_part(ContentRange(5, None, 9), 5), ProblemCode.BAD_PATCH),
        (encode_binary_part(ContentRange(None, None, 9), 1), ProblemCode.BAD_PATCH),
        (
            encode_binary_part(ContentRange(0, None, None), 10**15),
            ProblemCode.BAD_PATCH,
        ),
    ],
)
def test_a_malformed_binary_patch_is_refused_before_any_content(
    document: bytes, problem: ProblemCode
) -> None:
    """B4, B12, G3 and G6: every length is checked before it is believed."""
    assert read(BINARY, document) == [problem]


@pytest.mark.parametrize("garbage", [b"x", b"\x00", b"garbage", b"\xff"])
def test_garbage_after_the_last_binary_part_is_refused(garbage: bytes) -> None:
    """B12."""
    document = encode_binary_part(ContentRange(0, 1, 9), 2) + b"ab" + garbage
    assert read(BINARY, document)[-1] is ProblemCode.BAD_PATCH


def test_too_many_chunks_for_the_range_are_refused() -> None:
    """B5: also when they are so short that they are gathered."""
    document = encode_binary_part(ContentRange(0, 2, 9), None) + b"\x01a" * 4
    assert summary(read(BINARY, document)) == [
        (0, 2, 9, 3),
        b"aaa",
        ProblemCode.BAD_PATCH,
    ]


def test_tiny_chunks_are_gathered() -> None:
    """A patch of one-byte chunks costs few events."""
    reader = make(BINARY)
    list(reader.feed(encode_binary_part(ContentRange(0, None, None), None)))
    assert len(list(reader.feed(b"\x01a" * 100_000))) <= 3


# ---------------------------------------------------------------- content alone


def test_the_offset_formats_know_their_range_before_any_byte() -> None:
    """C8 and D5: the request's fields say where the body belongs."""
    reader = make(OFFSET, fields={"upload-offset": "5"}, content_length=3)
    assert reader.range == ContentRange(5, None, None)
    assert reader.completes is None
    assert summary(run(reader, [b"abc"])) == [
        (5, None, None, 3),
        b"abc",
        PartEnd(),
        PatchEnd(),
    ]


def test_an_offset_patch_may_be_empty() -> None:
    """It still has a part, so that consumers need no special case."""
    events = read(OFFSET, b"", fields={"upload-offset": "5"})
    assert summary(events) == [(5, None, None, None), PartEnd(), PatchEnd()]


def test_a_completing_partial_upload_fixes_the_length() -> None:
    """C8, C9: with ``?1``, the last content ends where the upload does."""
    fields = {"upload-offset": "5;x=1", "upload-complete": "?1"}
    reader = make(PARTIAL, fields=fields, content_length=3)
    assert reader.completes is True
    assert reader.range == ContentRange(5, None, 8)
    assert make(PARTIAL, fields=fields).range == ContentRange(5, None, None)
    fields["upload-complete"] = "?0"
    partial = make(PARTIAL, fields=fields, content_length=3)
    assert (partial.completes, partial.range) == (False, ContentRange(5, None, None))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"upload-complete": "?1"}, ProblemCode.MALFORMED_REQUEST),
        ({"upload-offset": "5"}, ProblemCode.MALFORMED_REQUEST),
        (
            {"upload-offset": "-5", "upload-complete": "?1"},
            ProblemCode.MALFORMED_REQUEST,
        ),
        ({"upload-offset": "5", "upload-complete": "1"}, ProblemCode.MALFORMED_REQUEST),
        (
            {"upload-offset": "5", "upload-complete": "?1", "upload-length": "9"},
            ProblemCode.INCONSISTENT_LENGTH,
        ),
        (
            {"upload-offset": "5", "upload-complete": "?0", "upload-length": "4"},
            ProblemCode.INCONSISTENT_LENGTH,
        ),
    ],
)
def test_a_partial_upload_whose_fields_make_no_sense_is_refused(
    fields: dict[str, str], problem: ProblemCode
) -> None:
    """C1, C8 and C9, before any byte is read."""
    with pytest.raises(PeerError) as caught:
        make(PARTIAL, fields=fields, content_length=3)
    assert caught.value.problem is problem


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "message/byterange/x", "x"]
)
def test_another_media_type_is_a_415_that_lists_what_is_accepted(
    content_type: str | None,
) -> None:
    """R15."""
    with pytest.raises(PeerError) as caught:
        patch_reader(content_type, Fields(), content_length=None)
    assert caught.value.problem is ProblemCode.UNSUPPORTED_MEDIA_TYPE
    assert caught.value.fields == (("Accept-Patch", ACCEPT_PATCH),)


def test_a_patch_document_with_a_content_coding_is_refused() -> None:
    """G16: codings are never undone, so the ranges could not be read."""
    with pytest.raises(PeerError) as caught:
        make(MESSAGE, fields={"content-encoding": "gzip"})
    assert caught.value.problem is ProblemCode.UNSUPPORTED_MEDIA_TYPE
    make(OFFSET, fields={"content-encoding": "gzip", "upload-offset": "0"})


def test_an_error_is_raised_again_by_every_later_call() -> None:
    """A reader that has failed cannot be fed on by mistake."""
    reader = make(MESSAGE)
    for _ in range(2):
        with pytest.raises(PeerError):
            list(reader.feed(b"no colon\r\n\r\n"))
    with pytest.raises(PeerError):
        list(reader.end())


@pytest.mark.parametrize(
    ("content_type", "prefix"),
    [
        (MESSAGE, encode_part_header(ContentRange(0, None, None))),
        (MULTIPART, encode_multipart_part("SEP", ContentRange(0, None, None))),
        (BINARY, encode_binary_part(ContentRange(0, None, None), 1000)),
    ],
)
def test_content_is_a_slice_of_what_was_fed(content_type: str, prefix: bytes) -> None:
    """The receive path writes from the buffer it read into."""
    reader = make(content_type)
    list(reader.feed(prefix))
    buffer = bytearray(b"x" * 1000)
    event, *_ = reader.feed(memoryview(buffer))
    assert isinstance(event, PartData)
    assert event.data.obj is buffer
    assert len(event.data) == 1000


ranges = st.one_of(
    st.builds(lambda first: (first, None, None), st.integers(0, 10**9)),
    st.builds(
        lambda first, extra: (first, None, extra),
        st.integers(0, 10**9),
        st.integers(0, 99),
    ),
    st.builds(
        lambda first, extra: (first, 0, extra),
        st.integers(0, 10**9),
        st.integers(0, 99),
    ),
)
# Bytes that look like framing are what a reader could trip over.
contents = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"-", b"--SEP", b"\r\n--SEP", b"\r\n--SE", b"S", b"x", b"\0"]
    ),
    max_size=12,
).map(b"".join)


def range_for(shape: tuple[int, int | None, int | None], length: int) -> ContentRange:
    """A range at the shape's offset that holds *length* bytes."""
    first, closed, extra = shape
    total = None if extra is None else first + length + extra
    last = None if closed is None or length == 0 else first + length - 1
    return ContentRange(first, last, total)


def splits(draw: st.DrawFn, document: bytes) -> list[bytes]:
    edges = draw(st.lists(st.integers(0, len(document)), max_size=8).map(sorted))
    return [
        document[a:b] for a, b in zip([0, *edges], [*edges, len(document)], strict=True)
    ]


@given(data=st.data(), content=contents, shape=ranges)
def test_message_byterange_round_trips_over_any_split(
    data: st.DataObject, content: bytes, shape: tuple[int, int | None, int | None]
) -> None:
    """What is written is read, wherever the bytes are cut."""
    range_ = range_for(shape, len(content))
    document = encode_part_header(range_) + content
    events = run(make(MESSAGE), data.draw(st.composite(splits)(document)))
    assert isinstance(events[0], PartStart)
    assert events[0].range == range_
    assert events[1:] == [*([content] if content else []), PartEnd(), PatchEnd()]


@given(data=st.data(), parts=st.lists(contents, min_size=1, max_size=4))
def test_multipart_round_trips_over_any_split(
    data: st.DataObject, parts: list[bytes]
) -> None:
    """Also content full of beginnings of boundaries."""
    parts = [b"." + content.replace(b"\r\n--SEP", b"") for content in parts]
    parts = [content for content in parts if b"\r\n--SEP" not in content]
    document = b"".join(part(ContentRange(0, None, None), content) for content in parts)
    events = run(make(MULTIPART), data.draw(st.composite(splits)(document + END)))
    if parts:
        assert [event for event in events if isinstance(event, bytes)] == parts
        assert events[-1] == PatchEnd()


@given(
    data=st.data(),
    parts=st.lists(
        st.lists(st.binary(min_size=1, max_size=100), max_size=5),
        min_size=1,
        max_size=3,
    ),
    known=st.booleans(),
)
def test_binary_parts_round_trip_over_any_split(
    data: st.DataObject, parts: list[list[bytes]], known: bool
) -> None:
    """Known and indeterminate lengths, chunks of any size."""
    document = bytearray()
    for chunks in parts:
        content = b"".join(chunks)
        if known:
            document += (
                encode_binary_part(ContentRange(0, None, None), len(content)) + content
            )
        else:
            document += encode_binary_part(ContentRange(0, None, None), None)
            document += b"".join(map(encode_binary_chunk, [*chunks, b""]))
    events = run(make(BINARY), data.draw(st.composite(splits)(bytes(document))))
    given_content = [event for event in events if isinstance(event, bytes)]
    assert given_content == [b"".join(chunks) for chunks in parts if chunks]
    assert events[-1] == PatchEnd()


PREFIXES = [
    b"",
    b"Content-Range: bytes 0-3/9\r\n",
    b"Content-Range: bytes 0-/*\r\n\r\n",
    b"--SEP\r\n",
    b"--SEP\r\nContent-Range: bytes 0-3/9\r\n\r\nabcd\r\n--SEP",
    b"\x08",
    b"\x0a",
    encode_binary_part(ContentRange(0, 3, 9), None),
    encode_binary_part(ContentRange(0, 3, 9), 4) + b"abcd",
]


@given(
    data=st.data(),
    content_type=st.sampled_from([MESSAGE, MULTIPART, BINARY]),
    prefix=st.sampled_from(PREFIXES),
    rest=st.one_of(st.binary(max_size=60), contents),
    known=st.booleans(),
)
def test_any_bytes_give_events_or_a_peer_error_alike_at_any_split(
    data: st.DataObject, content_type: str, prefix: bytes, rest: bytes, known: bool
) -> None:
    """Nothing else is ever raised, and splitting never changes the outcome."""
    document = prefix + rest
    content_length = len(document) if known else None
    whole = run(make(content_type, content_length=content_length), [document])
    pieces = data.draw(st.composite(splits)(document))
    assert run(make(content_type, content_length=content_length), pieces) == whole
    assert isinstance(whole[-1], PatchEnd | PatchCut | ProblemCode)
