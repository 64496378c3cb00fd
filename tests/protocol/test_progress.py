"""The ``Progress`` field (B10)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.fields import header_safe
from trioresume.protocol.progress import (
    ProcessingProgress,
    format_progress,
    parse_progress,
)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((0, None, ""), "0/"),
        ((66, None, "tries"), '66/ "tries"'),
        ((1, 3, ""), "1/3"),
        (
            (3, 20, "POST http://example.com/item/3"),
            '3/20 "POST http://example.com/item/3"',
        ),
        ((0, 1, 'a "b" \\ c'), '0/1 "a \\"b\\" \\\\ c"'),
        ((2, 3, "grüßen"), "2/3 UTF-8''gr%C3%BC%C3%9Fen"),
        ((2, 3, "one\r\nSet-Cookie: a=b"), "2/3 UTF-8''one%0D%0ASet-Cookie%3A%20a%3Db"),
        ((0, None, "x" * 1000), f'0/ "{"x" * 200}"'),
    ],
)
def test_progress_is_a_fraction_and_a_remark(
    told: tuple[int, int | None, str], expected: str
) -> None:
    """B10, G4: quoted if it is ASCII, else as RFC 8187 has it; bounded."""
    assert format_progress(*told) == expected


@given(st.text())
def test_any_remark_can_be_sent(remark: str) -> None:
    """G4: nothing of it ends the field."""
    told = format_progress(1, 2, remark)
    assert header_safe(told)
    assert told.isascii()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0/", ProcessingProgress(0, None)),
        ('66/ "tries"', ProcessingProgress(66, None, "tries")),
        ("1/3", ProcessingProgress(1, 3)),
        ('1/3 \t"a \\"b\\""  ', ProcessingProgress(1, 3, 'a "b"')),
        ("2/3 UTF-8''gr%C3%BC%C3%9Fen", ProcessingProgress(2, 3, "grüßen")),
        ('2/3 "one" "two"', ProcessingProgress(2, 3, "one")),
        ("2/3 utf-16''%00", ProcessingProgress(2, 3)),
        (f'0/ "{"x" * 1000}"', ProcessingProgress(0, None, "x" * 200)),
        *(
            (bad, None)
            for bad in (
                None,
                "",
                "1",
                "/3",
                "-1/3",
                "4/3",
                "1/3remark",
                '1/3 "open',
                "1 / 3",
                f"{'9' * 16}/",
                "\u0661/3",
            )
        ),
    ],
)
def test_progress_is_read_or_ignored(
    value: str | None, expected: ProcessingProgress | None
) -> None:
    """B10, G6: it is only shown, so what is malformed counts as absent."""
    assert parse_progress(value) == expected


@given(
    st.integers(0, 10**15 - 1),
    st.none() | st.integers(0, 10**15 - 1),
    st.text(max_size=200),
)
def test_what_is_written_is_read(done: int, more: int | None, remark: str) -> None:
    """B10: whatever a handler reports reaches the client as it was."""
    total = None if more is None else min(done + more, 10**15 - 1)
    assert parse_progress(format_progress(done, total, remark)) == (
        ProcessingProgress(done, total, remark)
    )
