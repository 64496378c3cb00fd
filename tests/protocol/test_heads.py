"""Fields and request heads as values (RFC 9110, section 5)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.heads import Fields, RequestHead

names = st.text("abcXYZ-", min_size=1, max_size=5)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=8)
lines = st.lists(st.tuples(names, values), max_size=8)


@given(lines)
def test_order_and_repetition_are_kept(pairs: list[tuple[str, str]]) -> None:
    """Lines come out as they went in, names in lower case."""
    fields = Fields(pairs)
    assert list(fields) == [(name.lower(), value) for name, value in pairs]
    assert len(fields) == len(pairs)
    assert [fields[index] for index in range(len(fields))] == list(fields)


@given(lines)
def test_wire_form_comes_back_equal(pairs: list[tuple[str, str]]) -> None:
    """Latin-1 maps every byte to a character and back."""
    fields = Fields(pairs)
    assert Fields.from_wire(fields.to_wire()) == fields


@given(st.binary(max_size=20))
def test_every_byte_survives(value: bytes) -> None:
    """Also those that are no text in any encoding."""
    fields = Fields.from_wire([(b"X-Bytes", value)])
    assert fields.to_wire() == [(b"X-Bytes", value)]


def test_names_have_no_case_and_values_of_one_name_are_joined() -> None:
    """RFC 9110, sections 5.1 and 5.3."""
    fields = Fields([("Accept", "a"), ("Other", "x"), ("ACCEPT", "b")])
    assert fields.get("accept") == "a, b"
    assert fields.get_all("Accept") == ["a", "b"]
    assert "aCCept" in fields
    assert "none" not in fields
    assert 5 not in fields
    assert fields.get("none") is None
    assert fields.get("none", "default") == "default"
    assert fields.get_all("none") == []


def test_empty_value_is_not_absence() -> None:
    """``Accept:`` says something, and its absence another thing."""
    fields = Fields([("Accept", "")])
    assert fields.get("accept", "default") == ""
    assert "accept" in fields


def test_copies_leave_the_original_alone() -> None:
    """Values are immutable; ``plus`` appends and does not replace."""
    fields = Fields({"A": "1", "B": "2"})
    assert list(fields.plus({"A": "3"})) == [("a", "1"), ("b", "2"), ("a", "3")]
    assert list(fields.without("a", "none")) == [("b", "2")]
    assert list(fields) == [("a", "1"), ("b", "2")]


def test_equal_fields_hash_alike() -> None:
    """From a mapping, from pairs, in any case of the names; order is part of it."""
    one, other = Fields({"A": "1", "B": "2"}), Fields([("a", "1"), ("b", "2")])
    assert one == other
    assert hash(one) == hash(other)
    assert one != Fields({"B": "2", "A": "1"})
    assert one != "something else"
    assert repr(one) == "Fields([('a', '1'), ('b', '2')])"


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a?b", "/a", "b"),
        ("/a?b?c", "/a", "b?c"),
        ("/a?", "/a", ""),
        ("/%3F", "/%3F", ""),
        ("*", "*", ""),
    ],
)
def test_target_is_split_at_the_first_question_mark(
    target: str, path: str, query: str
) -> None:
    """RFC 3986, section 3.4; nothing is decoded."""
    head = RequestHead(method="GET", target=target, fields=Fields(), http_version="1.1")
    assert (head.path, head.query) == (path, query)


@pytest.mark.parametrize(("length", "expected"), [(0, False), (1, True), (None, True)])
def test_chunked_content_counts_as_content(length: int | None, expected: bool) -> None:
    """It may prove empty, but that is not known from the head."""
    head = RequestHead(
        method="POST", target="/", fields=Fields(), http_version="1.1", length=length
    )
    assert head.has_content is expected
