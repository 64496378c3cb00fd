"""Field values: what they mean, and what is refused or ignored."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import (
    EntityTag,
    MediaType,
    format_http_date,
    header_safe,
    parse_entity_tag,
    parse_entity_tags,
    parse_http_date,
    parse_integer,
    parse_media_type,
    split_list,
)
from trioresume.protocol.ranges import (
    ContentRange,
    format_content_range,
    parse_content_range,
)

numbers = st.integers(0, 10**15 - 1)


@given(numbers)
def test_numbers_of_15_digits_are_read(number: int) -> None:
    """G6: everything up to the limit."""
    assert parse_integer(str(number)) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", " 1", "1 ", "1_0", "٣", "²", "1.0", "0x1", "1" * 16]
)
def test_what_is_not_a_plain_number_is_refused(text: str) -> None:
    """G6: ``int()`` would take several of these."""
    with pytest.raises(PeerError) as caught:
        parse_integer(text, problem=ProblemCode.BAD_PATCH)
    assert caught.value.problem is ProblemCode.BAD_PATCH


@pytest.mark.parametrize(
    "value", ["a\r\nb", "\n", "\0", "\x1b[2J", "\x7f", "€", "\u2028"]
)
def test_what_could_leave_its_line_is_not_header_safe(value: str) -> None:
    """G4."""
    assert not header_safe(value)


def test_ordinary_text_is_header_safe() -> None:
    """Tabs and latin-1 included."""
    assert header_safe("a\tb é~")
    assert header_safe("")


def test_separators_within_quotes_do_not_separate() -> None:
    """RFC 9110, section 5.6.1; empty members are dropped."""
    assert split_list(' a , "b,\\"c" ,, d="e,f"') == ["a", '"b,\\"c"', 'd="e,f"']
    assert split_list("a;b=';';c", ";") == ["a", "b='", "'", "c"]
    assert split_list('a, "b, c') == ["a", '"b, c']
    assert split_list("") == split_list(" , ") == []


@given(st.text(alphabet='",;\\ a=\t'), st.sampled_from([",", ";"]))
@example('"' * 5000, ",")
@example('\\"' * 5000, ",")
@example('"\\', ",")
def test_splitting_loses_nothing_but_separators_and_space(
    value: str, separator: str
) -> None:
    """Whatever the quotes do."""
    members = split_list(value, separator)  # type: ignore[arg-type]
    removed = str.maketrans("", "", f"{separator} \t")
    joined = "".join(members).translate(removed)
    assert joined == value.translate(removed)


# ---------------------------------------------------------------- Content-Range


@given(numbers, numbers, numbers)
def test_content_ranges_round_trip(a: int, b: int, c: int) -> None:
    """B2, B3: all five forms."""
    first, last, total = sorted((a, b, c))
    for range_ in (
        ContentRange(first, last, None),
        ContentRange(first, None, total),
        ContentRange(first, None, None),
        ContentRange(None, None, total),
        *([ContentRange(first, last, total)] if last < total else []),
    ):
        assert parse_content_range(format_content_range(range_)) == range_


def test_a_range_knows_its_length_and_its_room() -> None:
    """What an announced range and a known total allow."""
    closed = ContentRange(2, 5, 12)
    assert (closed.length, closed.room) == (4, 4)
    open_ended = ContentRange(2, None, 12)
    assert (open_ended.length, open_ended.room) == (None, 10)
    endless = ContentRange(2, None, None)
    assert (endless.length, endless.room) == (None, None)
    unsatisfied = ContentRange(None, None, 12)
    assert (unsatisfied.length, unsatisfied.room) == (0, 0)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes 0-1",
        "bytes */*",
        "bytes 1-0/5",
        "bytes 0-5/5",
        "bytes 6-/5",
        "bytes 0-0/0",
        "bytes -5/10",
        "bytes 0--1/10",
        "bytes=0-1/10",
        "bytes  0-1/10",
        "bytes 0 - 1/10",
        "bytes 0-1/10 ",
        "bytes 0-1,2-3/10",
        "bytes +0-1/10",
        "items 0-1/10",
        "0-1/10",
        "bytes 0-1000000000000000/*",
        "bytes 0-1/1000000000000000",
        "bytes \u0660-\u0661/*",
    ],
)
def test_a_bad_content_range_is_refused(value: str) -> None:
    """B1, B6, G6."""
    with pytest.raises(PeerError) as caught:
        parse_content_range(value)
    assert caught.value.problem is ProblemCode.BAD_CONTENT_RANGE
    assert caught.value.problem.status == 400


def test_a_missing_unit_passes_only_when_lenient() -> None:
    """B6; another unit never does."""
    assert parse_content_range("3-9/10", lenient_unit=True) == ContentRange(3, 9, 10)
    assert parse_content_range("*/10", lenient_unit=True) == ContentRange(
        None, None, 10
    )
    with pytest.raises(PeerError):
        parse_content_range("items 3-9/10", lenient_unit=True)


@given(
    st.text(max_size=30) | st.text(alphabet="bytes 0123-/*", max_size=30), st.booleans()
)
def test_any_content_range_is_read_or_refused(value: str, lenient: bool) -> None:
    """No other exception."""
    try:
        range_ = parse_content_range(value, lenient_unit=lenient)
    except PeerError:
        return
    assert parse_content_range(format_content_range(range_)) == range_


# ---------------------------------------------------------------- entity tags


def test_entity_tags_may_hold_commas_and_backslashes() -> None:
    """RFC 9110, section 8.8.3: a tag is not a quoted string."""
    assert parse_entity_tags('"a,b", W/"c\\" ,,"", "é"') == (
        EntityTag("a,b"),
        EntityTag("c\\", weak=True),
        EntityTag(""),
        EntityTag("é"),
    )
    assert parse_entity_tags(" * ") == "*"


@pytest.mark.parametrize(
    "value", ["", "a", '"a" "b"', '"a', "*, *", 'w/"a"', '"a b"', '"a"x']
)
def test_a_bad_list_of_tags_is_refused(value: str) -> None:
    """A precondition that is not understood cannot be taken to hold."""
    with pytest.raises(PeerError) as caught:
        parse_entity_tags(value)
    assert caught.value.problem is ProblemCode.MALFORMED_REQUEST


def test_weak_tags_match_only_weakly() -> None:
    """The table of RFC 9110, section 8.8.3.2."""
    strong, weak, other = EntityTag("1"), EntityTag("1", weak=True), EntityTag("2")
    assert strong.matches_strongly(strong)
    assert not strong.matches_strongly(weak)
    assert not weak.matches_strongly(weak)
    assert weak.matches_weakly(strong)
    assert not strong.matches_weakly(other)


@given(st.text(alphabet='"W/, \\a*', max_size=30))
@example('"' + ", " * 5000 + "x")
def test_any_list_of_tags_is_read_or_refused(value: str) -> None:
    """No other exception, and what is read is written back alike."""
    try:
        tags = parse_entity_tags(value)
    except PeerError:
        return
    if tags != "*":
        assert [parse_entity_tag(str(tag)) for tag in tags] == list(tags)
        assert parse_entity_tags(", ".join(map(str, tags))) == tags


# ---------------------------------------------------------------- media types, dates


def test_media_types_are_compared_in_lower_case() -> None:
    """RFC 9110, section 8.3.1; the parameter's value keeps its case."""
    parsed = parse_media_type('Multipart/ByteRanges ; Boundary="A\\"b;c" ; x=y')
    assert parsed == MediaType(
        "multipart", "byteranges", {"boundary": 'A"b;c', "x": "y"}
    )
    assert parsed.essence == "multipart/byteranges"


@pytest.mark.parametrize(
    "value", ["", ";", "text", "text/", "a/b/c", "a/b; c", "a/b; c=", "a/b;c=d;C=e"]
)
def test_a_bad_media_type_is_none(value: str) -> None:
    """A repeated parameter could be read in two ways."""
    assert parse_media_type(value) is None


@pytest.mark.parametrize(
    "value",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ],
)
def test_all_three_forms_of_date_are_read(value: str) -> None:
    """RFC 9110, section 5.6.7."""
    assert parse_http_date(value) == 784111777


@given(st.integers(0, 253402300799))
def test_dates_round_trip(seconds: int) -> None:
    """Up to the last second of the year 9999."""
    assert parse_http_date(format_http_date(seconds)) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "Sun, 32 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Xyz 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 +0100",
        "Sun, 06 Nov 1994 08:49:37",
    ],
)
def test_a_bad_date_is_none(value: str) -> None:
    """Its fields then count as absent."""
    assert parse_http_date(value) is None


@given(st.text(max_size=40))
def test_any_text_is_a_date_or_is_not(value: str) -> None:
    """email.utils alone raises on some."""
    assert isinstance(parse_http_date(value), int | None)
    assert isinstance(parse_media_type(value), MediaType | None)
    assert isinstance(parse_entity_tag(value), EntityTag | None)
