"""File names: harmless in, harmless out."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.fields import format_ext_value, header_safe
from trioresume.protocol.filenames import (
    content_disposition_attachment,
    parse_content_disposition_filename,
    safe_filename,
    suggested_filename,
)


def test_attachments_name_the_file_for_old_and_new_agents() -> None:
    """RFC 6266, appendix D."""
    assert content_disposition_attachment("a b.txt") == 'attachment; filename="a b.txt"'
    assert content_disposition_attachment('n"ï%.txt') == (
        "attachment; filename=\"n___.txt\"; filename*=UTF-8''n%22%C3%AF%25.txt"
    )
    assert content_disposition_attachment(None) == "attachment"
    assert content_disposition_attachment("..") == "attachment"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('form-data; name="f"; filename="a;b.txt"', "a;b.txt"),
        ("attachment; filename=a.txt", "a.txt"),
        ("attachment; filename=\"x\"; filename*=UTF-8'en'%e2%82%ac", "€"),
        ("attachment; filename*=iso-8859-1''%e9", "é"),
        ("attachment; filename=\"x\"; filename*=UTF-8''%ff", "x"),
        ("attachment; filename=\"x\"; filename*=utf-7''a", "x"),
        ("attachment; filename=\"x\"; filename*=UTF-8''", "x"),
        ("attachment; filename=\"x\"; filename*=UTF-8''%2E%2E", "x"),
        ("attachment; filename*=UTF-8''a%E2%80%AFb.png", "a\u202fb.png"),
        ("attachment; filename*=UTF-8''.env", ".env"),
        ('attachment; filename="Ã©.txt"', "é.txt"),
        ('attachment; filename="\xe9.txt"', "é.txt"),
        ('attachment; filename="../a"', "a"),
        ("attachment", None),
        ("attachment; filename=", None),
        ("attachment; filename=a; filename=b", None),
        ("", None),
    ],
)
def test_suggested_names_are_read_and_made_harmless(
    value: str, name: str | None
) -> None:
    """RFC 6266, section 4.3: the extended form goes first, where it can be decoded."""
    assert parse_content_disposition_filename(value) == name


KEPT = [
    "Screenshot 2026-11-29 at 9.41.00\u202fAM.png",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467.jpg",
    "\u0646\u0627\u0645\u0647\u200c\u0647\u0627.txt",
    "a\u3000b\u00a0c\u2003d.txt",
    "\u05d0\u200f\u05d1.pdf",
    "unassigned \u0378 \U000e0fff.bin",
    "\ue000 private.txt",
    '100 % "quoted"; filename=x.txt',
    ".gitignore",
    " leading space",
    "10:30 <notes>|?*.txt",
]


@pytest.mark.parametrize("name", KEPT)
def test_downloads_offer_the_name_as_it_was_sent(name: str) -> None:
    """RFC 8187: exactly; and an ASCII fallback for agents that do not know it."""
    value = content_disposition_attachment(name)
    assert header_safe(value)
    assert value.isascii()
    assert parse_content_disposition_filename(value) == name
    assert value.startswith('attachment; filename="')


def test_suggestion_is_read_as_it_was_written() -> None:
    """A client passes on what its caller wrote; the server makes it safe."""
    for name in ("aux.c", "a/b.txt", "trailing. ", "\u202e.txt"):
        value = f"attachment; filename*={format_ext_value(name)}"
        assert suggested_filename(value) == name
    assert suggested_filename("attachment; filename=\"x\"; filename*=UTF-8''%ff") == "x"
    assert suggested_filename("attachment") is None


@given(st.text())
def test_any_name_gives_a_field_that_reads_back(name: str) -> None:
    """G4: whatever was uploaded, the response's field stays one line."""
    value = content_disposition_attachment(name)
    assert header_safe(value)
    assert parse_content_disposition_filename(value) == safe_filename(name)


@given(st.text(max_size=60))
def test_any_disposition_is_read(value: str) -> None:
    """Never an error."""
    parse_content_disposition_filename(f"attachment; {value}")
    parse_content_disposition_filename(f"attachment; filename*={value}")
