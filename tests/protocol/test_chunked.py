"""The chunked transfer coding: any split gives the same, and nothing loose passes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st

from trioresume.errors import ProblemCode
from trioresume.protocol.chunked import EXTENSIONS, LONGEST_LINE, ChunkedReader
from trioresume.protocol.framing import HeadLimits


def read(data: bytes, step: int | None = None) -> tuple[ChunkedReader, bytes]:
    """What a reader makes of *data*, given *step* bytes at a time."""
    reader = ChunkedReader(HeadLimits())
    content = b""
    for at in range(0, len(data), step or len(data) or 1):
        piece = data[at : at + (step or len(data))]
        if reader.finished:
            reader.excess += piece
        else:
            content += reader.feed(memoryview(piece))
        if reader.fault is not None:
            break
    return reader, content


GOOD = {
    b"0\r\n\r\n": b"",
    b"000\r\n\r\n": b"",
    b"3\r\nabc\r\n0\r\n\r\n": b"abc",
    b'3;a=b;c\r\nabc\r\n2 ; d="e f"\r\nde\r\n0;x\r\n\r\n': b"abcde",
    b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n": b"0123456789" * 2,
    b"000000000000003\r\nabc\r\n0\r\n\r\n": b"abc",
    b"4\r\n\r\n\r\n\r\n0\r\n\r\n": b"\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("data", GOOD)
@pytest.mark.parametrize("step", [1, 2, 3, 7, None])
def test_content_is_the_same_however_it_arrives(data: bytes, step: int | None) -> None:
    """R19: and what follows the body is left for the next request."""
    reader, content = read(data + b"GET /", step)
    assert (content, reader.finished, reader.fault) == (GOOD[data], True, None)
    assert reader.excess == b"GET /"


@pytest.mark.parametrize("step", [1, 5, None])
def test_trailers_are_fields_of_their_own(step: int | None) -> None:
    """RFC 9110, section 6.5.1: they are not merged into the head's."""
    data = b"1\r\nx\r\n0\r\nDigest: a\r\nX-B:  c \r\n\r\nnext"
    reader, content = read(data, step)
    assert content == b"x"
    assert reader.trailers.get("digest") == "a"
    assert reader.trailers.get("x-b") == "c"
    assert reader.excess == b"next"


BAD = {
    "no digit": b"x\r\n",
    "empty size": b"\r\n",
    "sign": b"-1\r\nx\r\n",
    "plus": b"+1\r\nx\r\n",
    "prefix": b"0x1\r\nx\r\n",
    "underscore": b"1_0\r\nx",
    "space before": b" 1\r\nx\r\n",
    "space after": b"1 \r\nx\r\n",
    "16 digits": b"0000000000000001\r\nx\r\n",
    "17 digits": b"f" * 17 + b"\r\nx",
    "20 digits": b"f" * 20 + b"\r\nx",
    "21 digits": b"f" * 21 + b"\r\nx",
    "more than 15 decimal digits": b"38d7ea4c68000\r\nx",
    "bare LF after the size": b"1\nx\r\n0\r\n\r\n",
    "bare CR after the size": b"1\rx\r\n0\r\n\r\n",
    "bare LF in an extension": b"1;a\nb\r\nx\r\n0\r\n\r\n",
    "NUL in an extension": b"1;a\0b\r\nx\r\n0\r\n\r\n",
    "extension without semicolon": b"1 a\r\nx\r\n0\r\n\r\n",
    "content too long": b"1\r\nxy\r\n0\r\n\r\n",
    "bare LF after the content": b"1\r\nx\n0\r\n\r\n",
    "bare CR after the content": b"1\r\nx\r0\r\n\r\n",
    "endless size": b"1" * (LONGEST_LINE + 1),
    "endless extension": b"1;" + b"a" * LONGEST_LINE,
    "bare LF in the trailers": b"0\r\nA: b\n\r\n",
    "folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "space before a trailer's colon": b"0\r\nA : b\r\n\r\n",
    "trailer that is none": b"0\r\nGET / HTTP/1.1\r\n\r\n",
    "NUL in a trailer": b"0\r\nA: \0\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("step", [1, None])
def test_malformed_body_is_a_fault_after_what_was_good(
    case: str, step: int | None
) -> None:
    """G1, G2, G6: 400 and close; the content before the fault is not lost."""
    reader, content = read(b"3\r\nabc\r\n" + BAD[case], step)
    assert reader.fault is not None
    assert reader.fault.problem is ProblemCode.MALFORMED_REQUEST
    assert reader.fault.close
    assert content in (b"abc", b"abcx")
    assert not reader.finished


@pytest.mark.parametrize(
    "trailers", [b"A: b\r\n" * 101, b"A: " + b"b" * 17_000, b"A: b\r\n" * 100_000]
)
@pytest.mark.parametrize("step", [7, None])
def test_trailers_are_bounded_like_a_head(trailers: bytes, step: int | None) -> None:
    """G3: 431, at once and not at their end."""
    reader, _ = read(b"0\r\n" + trailers + b"\r\n\r\n", step)
    assert reader.fault is not None
    assert reader.fault.problem is ProblemCode.HEADER_TOO_LARGE
    assert len(reader._partial) <= 16 * 1024 + 2 + 7 or step is None


def test_largest_number_of_bytes_in_a_chunk_is_taken() -> None:
    """G6: fifteen decimal digits; nothing is allocated for them."""
    reader, content = read(b"38d7ea4c67fff\r\nx")
    assert (content, reader.fault) == (b"x", None)
    assert reader._left == 10**15 - 2


def test_extensions_are_bounded_in_all() -> None:
    """One byte of content cannot cost thousands on the wire, again and again."""
    chunk = b"1;" + b"a" * 1000 + b"\r\nx\r\n"
    reader, content = read(chunk * 20)
    assert reader.fault is not None
    assert len(content) == EXTENSIONS // 1000
    # A large chunk may be signed, say, in its extension.
    reader, content = read(
        (b"1000;" + b"a" * 100 + b"\r\n" + bytes(4096) + b"\r\n") * 300
    )
    assert reader.fault is None


@pytest.mark.parametrize(("more", "refused"), [(0, False), (1, True)])
@pytest.mark.parametrize("step", [1, 1000, None])
def test_limits_are_met_to_the_byte(more: int, refused: bool, step: int | None) -> None:
    """G3: as much as the limit is taken, in any split, and one byte more is not."""
    line = b"0;" + b"a" * (LONGEST_LINE - 4 + more) + b"\r\n"
    extended = (b"1;" + b"a" * 3999 + b"\r\nx\r\n") * 4  # four bytes of content
    left = EXTENSIONS + 4 - 4 * 4000 + more
    extended += b"0;" + b"a" * (left - 1) + b"\r\n"
    most = HeadLimits().max_size
    value = b"a" * (most - len(b"A: \r\n\r\n") + more)
    many = b"".join(b"A: b\r\n" for _ in range(HeadLimits().max_fields + more))
    for data in (
        line + b"\r\n",
        extended + b"\r\n",
        b"0\r\nA: " + value + b"\r\n\r\n",
        b"0\r\n" + many + b"\r\n",
    ):
        reader, _ = read(data, step)
        assert (reader.fault is not None) == refused, data[:20]
        assert reader.finished != refused


def test_content_gives_extensions_room() -> None:
    """Each byte of it, in whatever way it came, allows for one of extensions."""
    for step in (1, 7, None):
        allowed = EXTENSIONS + 5000
        body = b"1388\r\n" + b"x" * 5000 + b"\r\n"
        lines = [b"1;" + b"a" * 999 + b"\r\ny\r\n"] * (allowed // 999)
        assert read(body + b"".join(lines), step)[0].fault is None
        more = b"1;" + b"a" * 999 + b"\r\ny\r\n"
        assert read(body + b"".join(lines) + more, step)[0].fault is not None


def test_large_chunks_are_not_copied() -> None:
    """What lies within one chunk is handed on as it is."""
    reader = ChunkedReader(HeadLimits())
    reader.feed(memoryview(b"10000\r\n"))
    data = memoryview(bytearray(4096))
    assert reader.feed(data) is data


@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=8),
    st.integers(1, 40),
    st.binary(max_size=10),
)
def test_what_was_chunked_comes_out(
    pieces: list[bytes], step: int, after: bytes
) -> None:
    """Whatever the chunks and whatever the reads."""
    data = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    reader, content = read(data + after, step)
    assert (content, reader.excess) == (b"".join(pieces), after)


@given(st.binary(max_size=60), st.integers(1, 9))
@example(b"1\r\nx\r\n0\r\n\r\n", 1)
@example(b"0\r\na:b\r\n\r\nz", 2)
def test_any_bytes_are_read_alike_in_any_split(data: bytes, step: int) -> None:
    """The same content, the same end or the same fault."""
    whole, content = read(data)
    split, other = read(data, step)
    assert content == other
    assert whole.finished == split.finished
    assert (whole.fault is None) == (split.fault is None)
    assert whole.excess == split.excess
