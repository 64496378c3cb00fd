"""Preferences: wishes that are understood or passed over."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.dialects.seed.server import (
    Preferences,
    ResumeMode,
    Transaction,
    parse_preferences,
    preference_applied,
)
from trioresume.protocol.heads import Fields


def of(*lines: str) -> Preferences:
    return parse_preferences(Fields(("Prefer", line) for line in lines))


def test_nothing_preferred_is_nothing() -> None:
    """The default of each."""
    assert of() == Preferences()


@pytest.mark.parametrize(
    "value", ["resume", "RESUME", 'resume=""', "resume ;a=b", "resume=save-incomplete"]
)
def test_bare_resume_saves_what_is_incomplete(value: str) -> None:
    """R2, and RFC 7240: an empty value is none."""
    assert of(value).resume is ResumeMode.SAVE_INCOMPLETE


def test_resume_can_be_told_to_ignore_what_is_incomplete() -> None:
    """R23; also quoted and with spaces about the equals sign."""
    for value in ("resume=ignore-incomplete", 'resume = "ignore-incomplete"'):
        assert of(value).resume is ResumeMode.IGNORE_INCOMPLETE


@pytest.mark.parametrize(
    "value", ["resume=x", "resume=SAVE-INCOMPLETE", "resumes", "resume x", "resume="]
)
def test_an_unknown_value_counts_as_absent(value: str) -> None:
    """R11."""
    assert of(value).resume is None


def test_the_first_of_duplicates_wins() -> None:
    """R11, RFC 7240: within a line and over lines, known value or not."""
    assert of("wait=1, wait=2").wait == 1
    assert of("wait=3", "wait=2").wait == 3
    assert of("resume=x, resume").resume is None


def test_all_preferences_are_read_from_one_line() -> None:
    """A malformed neighbour spoils nothing."""
    value = 'acknowledge, wait=10;x, =, "q", transaction=persist, respond-async, processing, a=b'
    assert of(value) == Preferences(
        wait=10,
        acknowledge=True,
        transaction=Transaction.PERSIST,
        processing=True,
        respond_async=True,
    )


@pytest.mark.parametrize(
    "value", ["wait", "wait=-1", "wait=1.5", "wait=1000000000000000"]
)
def test_a_wait_that_is_no_number_counts_as_absent(value: str) -> None:
    """G6 holds, but a preference is never an error."""
    assert of(value).wait is None


def test_a_quoted_string_that_never_ends_spoils_its_line_only() -> None:
    """The next line is read as if nothing were wrong."""
    assert of('a="b, wait=1', "wait=2").wait == 2


@given(
    st.builds(
        Preferences,
        resume=st.none() | st.sampled_from(ResumeMode),
        wait=st.none() | st.integers(0, 10**9),
        acknowledge=st.booleans(),
        transaction=st.none() | st.sampled_from(Transaction),
        processing=st.booleans(),
        respond_async=st.booleans(),
    )
)
def test_what_is_said_to_be_applied_reads_as_the_preference(
    applied: Preferences,
) -> None:
    """R11: Preference-Applied has the syntax of Prefer."""
    text = preference_applied(applied)
    assert (text is None) == (applied == Preferences())
    assert of(text or "") == applied


@given(st.text(max_size=50) | st.text(alphabet='resum=",; wait1\\', max_size=50))
def test_no_preference_is_ever_an_error(value: str) -> None:
    """Whatever the text."""
    of(value)
