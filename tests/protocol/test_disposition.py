"""File names: harmless in, harmless out."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.disposition import (
    MAX_NAME_BYTES,
    content_disposition_attachment,
    parse_content_disposition_filename,
    safe_filename,
)
from trioresume.protocol.fields import header_safe


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("../..", None),
        (".bashrc", "bashrc"),
        ("a\r\nSet-Cookie: b", "aSet-Cookie: b"),
        ("a\0b", "ab"),
        ("cod\u202egpj.exe", "codgpj.exe"),
        ("name. . ", "name"),
        ("", None),
        ("a\ud800b", "ab"),
        ("é" * 200, "é" * 127),
    ],
)
def test_names_are_made_harmless(name: str, safe: str | None) -> None:
    """G12, G14: one component, no controls, no reversal, bounded."""
    assert safe_filename(name) == safe


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


@given(st.text())
def test_any_name_gives_a_field_that_reads_back(name: str) -> None:
    """G4: whatever was uploaded, the response's field stays one line."""
    value = content_disposition_attachment(name)
    assert header_safe(value)
    safe = safe_filename(name)
    assert parse_content_disposition_filename(value) == safe
    if safe is not None:
        assert safe_filename(safe) == safe
        assert len(safe.encode()) <= MAX_NAME_BYTES
        assert not set(safe) & set("/\\\r\n\0")


@given(st.text(max_size=60))
def test_any_disposition_is_read(value: str) -> None:
    """Never an error."""
    parse_content_disposition_filename(f"attachment; {value}")
    parse_content_disposition_filename(f"attachment; filename*={value}")
