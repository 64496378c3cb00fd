"""Structured fields and the digests written in them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, strategies as st

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.digests import ContentDigest, Hashes, ReprDigest, repr_digest
from trioresume.protocol.heads import Fields
from trioresume.protocol.structured import (
    MOST_CHARACTERS,
    boolean_item,
    byte_sequences,
    format_dictionary,
    integer_item,
    integer_members,
)


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("0", 0),
        ("007", 7),
        ("999999999999999", 999999999999999),
        (" 5 ", 5),
        ("5;a=1;b", 5),
        ("5 ;a", None),
        ("5;", None),
        ("5;a=(", None),
        ("5" + ";a" * 2000, None),
        ("1000000000000000", None),
        ("-5", None),
        ("+5", None),
        ("5.0", None),
        ("5, 6", None),
        ("\u0665", None),
        ("", None),
    ],
)
def test_integers(value: str, meaning: int | None) -> None:
    """C1, E8: non-negative and of at most fifteen digits; else as if absent."""
    assert integer_item(Fields({"a": value}), "a") == meaning


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("?0", False),
        ("?1", True),
        ("?1;a", True),
        ("1", None),
        ("?", None),
        ("", None),
        ("?1;", None),
    ],
)
def test_booleans(value: str, meaning: bool | None) -> None:
    """C1: two values, and nothing else."""
    assert boolean_item(Fields({"a": value}), "a") is meaning


def test_repeated_items_are_ignored() -> None:
    """C1: RFC 9651, section 4.2: two lines make a list, which is no Item."""
    assert integer_item(Fields([("a", "1"), ("a", "1")]), "a") is None
    assert boolean_item(Fields([("a", "?1"), ("a", "?1")]), "a") is None


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True), st.binary())
)
def test_byte_sequences_come_back(members: dict[str, bytes]) -> None:
    """What is formatted is read as it was."""
    value = format_dictionary(dict(members))
    assert byte_sequences(Fields({"a": value}), "a") == members


@given(st.text(alphabet=st.characters(codec="latin-1")))
def test_nothing_in_a_field_is_an_error(value: str) -> None:
    """C1: whatever it is, it is as if absent."""
    fields = Fields({"a": value})
    for read in (integer_item, boolean_item, integer_members, byte_sequences):
        read(fields, "a")


def test_members_of_another_type_are_passed_over() -> None:
    """The last of equal keys wins (RFC 9651, section 3.2); lines are joined."""
    fields = Fields([("a", "x=1, y=:AA==:, z, x=2"), ("a", "v=?1, w=-1, u=1.5")])
    assert integer_members(fields, "a") == {"x": 2}
    assert byte_sequences(fields, "a") == {"y": b"\0"}


@pytest.mark.parametrize("wrong", ["u=:", "x=", "x=1,", "X=1", "x=1 y=2", "\xe4=1"])
def test_field_that_does_not_parse_is_ignored_as_a_whole(wrong: str) -> None:
    """RFC 9651, section 4.2."""
    fields = Fields([("a", "x=1, y=:AA==:"), ("a", wrong)])
    assert integer_members(fields, "a") == {}
    assert byte_sequences(fields, "a") == {}


def test_field_that_is_too_long_is_not_read() -> None:
    """G3: the parser's work is bounded."""
    fits = ", ".join(f"k{n}=1" for n in range(200))
    assert len(integer_members(Fields({"a": fits}), "a")) == 200
    long = ", ".join(["x=1"] * (MOST_CHARACTERS // 4))
    assert integer_members(Fields({"a": long}), "a") == {}


def test_content_digest_judges_all_it_knows() -> None:
    """C15: one wrong digest is enough; unknown algorithms are none."""
    right = {"sha-256": hashlib.sha256(b"ab").digest(), "md5": b"?"}
    check = ContentDigest.of(Fields({"content-digest": format_dictionary({**right})}))
    assert check is not None
    check.update(memoryview(b"a"))
    check.update(memoryview(b"b"))
    check.verify(Fields())
    wrong = {**right, "sha-512": b"?" * 64}
    check = ContentDigest.of(Fields({"content-digest": format_dictionary({**wrong})}))
    assert check is not None
    check.update(memoryview(b"ab"))
    with pytest.raises(PeerError) as caught:
        check.verify(Fields())
    assert caught.value.problem is ProblemCode.DIGEST_MISMATCH
    assert ContentDigest.of(Fields({"content-digest": "md5=:AA==:"})) is None
    assert ContentDigest.of(Fields({"content-digest": "sha-256=abc"})) is None


def test_repr_digest_computes_what_is_announced_or_wanted() -> None:
    """C15: and tells what is wanted."""
    fields = Fields(
        {
            "repr-digest": format_dictionary(
                {"sha-256": hashlib.sha256(b"a").digest()}
            ),
            "want-repr-digest": "sha-512=10, sha-256=0",
        }
    )
    asked = ReprDigest(fields)
    hashes = Hashes(asked.expected | asked.wanted)
    hashes.update(b"a")
    told = asked.verify(hashes.digests())
    assert told == {"sha-512": hashlib.sha512(b"a").digest()}
    assert repr_digest(told).startswith("sha-512=:")
    nothing = ReprDigest(Fields())
    assert nothing.expected == nothing.wanted == set()
