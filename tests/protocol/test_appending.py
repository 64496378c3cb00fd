"""Whether a patch may be applied: R16, R20, B2, B3, B7."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.appending import UploadProgress, check_part, length_after
from trioresume.protocol.conditional import content_etag
from trioresume.protocol.ranges import ContentRange

P = ProblemCode
numbers = st.integers(0, 40)
maybe = st.none() | numbers


def _refused(progress: UploadProgress, part: ContentRange) -> PeerError:
    with pytest.raises(PeerError) as caught:
        check_part(progress, part)
    return caught.value


@pytest.mark.parametrize("first", [0, 9, 11, 99])
def test_range_elsewhere_is_a_409_that_tells_the_offset(first: int) -> None:
    """R16, C8: in a field and in the document's members."""
    error = _refused(UploadProgress(10, 100), ContentRange(first, 99, 100))
    assert error.problem is P.OFFSET_MISMATCH
    assert dict(error.fields) == {"upload-offset": "10", "upload-complete": "?0"}
    assert error.members == {"expected-offset": 10, "provided-offset": first}
    assert not error.close


@pytest.mark.parametrize(
    ("length", "part", "expected"),
    [
        (None, ContentRange(10, 19, None), None),
        (None, ContentRange(10, 19, 20), 20),
        (100, ContentRange(10, 19, None), 100),
        (100, ContentRange(10, 19, 100), 100),
        (None, ContentRange(10, None, None), None),
        (None, ContentRange(10, None, 30), 30),
        (None, ContentRange(None, None, 10), 10),
        (None, ContentRange(None, None, 30), 30),
        (10, ContentRange(None, None, 10), 10),
    ],
)
def test_accepted_part_gives_the_length(
    length: int | None, part: ContentRange, expected: int | None
) -> None:
    """B2, B3: a total is recorded; without one nothing changes."""
    assert check_part(UploadProgress(10, length), part) == expected


@pytest.mark.parametrize(
    ("progress", "part", "problem"),
    [
        (UploadProgress(10, 100), ContentRange(10, 19, 99), P.INCONSISTENT_LENGTH),
        (UploadProgress(10, 100), ContentRange(10, 100, None), P.RANGE_BEYOND_LENGTH),
        (UploadProgress(10, None), ContentRange(None, None, 9), P.INCONSISTENT_LENGTH),
        (UploadProgress(10, None, 50), ContentRange(10, 19, 51), P.LENGTH_OVER_LIMIT),
        (UploadProgress(10, None, 50), ContentRange(10, 50, None), P.LENGTH_OVER_LIMIT),
        # The offset is told before a limit that the right range might keep to.
        (UploadProgress(10, None, 50), ContentRange(11, 60, None), P.OFFSET_MISMATCH),
        # And a contradiction before the offset: no range of this total is right.
        (UploadProgress(10, 100), ContentRange(11, 19, 99), P.INCONSISTENT_LENGTH),
    ],
)
def test_contradiction_is_refused(
    progress: UploadProgress, part: ContentRange, problem: ProblemCode
) -> None:
    """B2, B3, B7, B13, and section E: too long is a 400 or 422, never a 413."""
    error = _refused(progress, part)
    assert error.problem is problem
    assert error.problem.status in (400, 409, 422)


@given(
    offset=numbers, length=maybe, limit=maybe, first=numbers, size=numbers, total=maybe
)
def test_what_is_accepted_appends_within_every_bound(
    offset: int,
    length: int | None,
    limit: int | None,
    first: int,
    size: int,
    total: int | None,
) -> None:
    """R16: whatever is claimed, an accepted range starts here and ends inside."""
    progress = UploadProgress(offset, length, limit)
    part = ContentRange(first, first + size, total)
    try:
        after = check_part(progress, part)
    except PeerError:
        return
    assert first == offset
    for bound in (length, limit, total):
        assert bound is None or first + size < bound or (bound is limit and length)
    assert after == (length if total is None else total)
    assert after == length_after(progress, part)


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_validator_is_strong_and_changes_with_the_offset(one: int, other: int) -> None:
    """R20: quoted, and equal for equal offsets only."""
    assert content_etag(one).startswith('"')
    assert (content_etag(one) == content_etag(other)) == (one == other)


def test_whole_is_when_the_length_is_reached() -> None:
    """Section E: for tus and the seed, offset = length is completion."""
    assert UploadProgress(10, 10).is_whole
    assert not UploadProgress(10, None).is_whole
    assert not UploadProgress(9, 10).is_whole
