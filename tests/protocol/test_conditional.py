"""Preconditions, in the order of RFC 9110, section 13.2.2."""

from __future__ import annotations

import pytest

from trioresume.errors import PeerError
from trioresume.protocol.conditional import Outcome, evaluate, range_applies
from trioresume.protocol.fields import format_http_date
from trioresume.protocol.heads import Fields

MODIFIED = 784111777.9
EARLIER, SAME, LATER = (format_http_date(MODIFIED + shift) for shift in (-10, 0, 10))
PROCEED, NOT_MODIFIED, FAILED = Outcome.PROCEED, Outcome.NOT_MODIFIED, Outcome.FAILED


@pytest.mark.parametrize(
    ("fields", "on_get", "on_put"),
    [
        ({}, PROCEED, PROCEED),
        ({"if-match": '"a"'}, PROCEED, PROCEED),
        ({"if-match": '"b", "a"'}, PROCEED, PROCEED),
        ({"if-match": "*"}, PROCEED, PROCEED),
        ({"if-match": '"b"'}, FAILED, FAILED),
        ({"if-match": 'W/"a"'}, FAILED, FAILED),
        ({"if-none-match": '"a"'}, NOT_MODIFIED, FAILED),
        ({"if-none-match": 'W/"a"'}, NOT_MODIFIED, FAILED),
        ({"if-none-match": "*"}, NOT_MODIFIED, FAILED),
        ({"if-none-match": '"b"'}, PROCEED, PROCEED),
        ({"if-unmodified-since": SAME}, PROCEED, PROCEED),
        ({"if-unmodified-since": LATER}, PROCEED, PROCEED),
        ({"if-unmodified-since": EARLIER}, FAILED, FAILED),
        ({"if-unmodified-since": "yesterday"}, PROCEED, PROCEED),
        ({"if-modified-since": SAME}, NOT_MODIFIED, PROCEED),
        ({"if-modified-since": LATER}, NOT_MODIFIED, PROCEED),
        ({"if-modified-since": EARLIER}, PROCEED, PROCEED),
        ({"if-modified-since": "yesterday"}, PROCEED, PROCEED),
        # The tag outweighs the date, in both pairs.
        ({"if-match": '"a"', "if-unmodified-since": EARLIER}, PROCEED, PROCEED),
        ({"if-none-match": '"b"', "if-modified-since": LATER}, PROCEED, PROCEED),
        # The first pair goes before the second.
        ({"if-match": '"b"', "if-none-match": '"a"'}, FAILED, FAILED),
        ({"if-match": '"a"', "if-none-match": '"a"'}, NOT_MODIFIED, FAILED),
        ({"if-unmodified-since": EARLIER, "if-none-match": '"a"'}, FAILED, FAILED),
    ],
)
def test_preconditions_on_what_exists(
    fields: dict[str, str], on_get: Outcome, on_put: Outcome
) -> None:
    """One row for each step and for each precedence."""
    for method, expected in (("GET", on_get), ("HEAD", on_get), ("PUT", on_put)):
        outcome = evaluate(method, Fields(fields), etag='"a"', last_modified=MODIFIED)
        assert outcome is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"if-match": "*"}, FAILED),
        ({"if-match": '"a"'}, FAILED),
        ({"if-none-match": "*"}, PROCEED),
        ({"if-none-match": '"a"'}, PROCEED),
        ({"if-unmodified-since": EARLIER}, PROCEED),
    ],
)
def test_preconditions_on_what_does_not_exist(
    fields: dict[str, str], expected: Outcome
) -> None:
    """``If-None-Match: *`` is how a file is created and not replaced."""
    outcome = evaluate(
        "PUT", Fields(fields), etag='"a"', last_modified=MODIFIED, exists=False
    )
    assert outcome is expected


def test_a_representation_without_validators_matches_only_the_asterisk() -> None:
    """There is nothing to compare with."""
    for fields, expected in (
        ({"if-match": '"a"'}, FAILED),
        ({"if-match": "*"}, PROCEED),
        ({"if-none-match": '"a"'}, PROCEED),
        ({"if-modified-since": LATER}, PROCEED),
    ):
        assert evaluate("GET", Fields(fields), etag=None) is expected


def test_repeated_lines_are_one_list() -> None:
    """RFC 9110, section 5.3."""
    fields = Fields([("If-Match", '"b"'), ("If-Match", '"a"')])
    assert evaluate("PUT", fields, etag='"a"') is PROCEED


def test_a_malformed_precondition_is_refused() -> None:
    """It neither holds nor fails."""
    with pytest.raises(PeerError):
        evaluate("PUT", Fields({"if-match": "a"}), etag='"a"')


@pytest.mark.parametrize(
    ("value", "applies"),
    [
        (None, True),
        ('"a"', True),
        ('W/"a"', False),
        ('"b"', False),
        ("a", False),
        ("", False),
        (SAME, False),
    ],
)
def test_a_range_applies_only_to_what_strongly_matches(
    value: str | None, applies: bool
) -> None:
    """R28: on a mismatch the whole is sent; dates are too coarse to match."""
    fields = Fields({} if value is None else {"if-range": value})
    assert range_applies(fields, etag='"a"') is applies
    assert range_applies(fields, etag=None) is (value is None)
