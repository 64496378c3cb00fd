"""Text that others wrote, on a terminal."""

from __future__ import annotations

import pytest

from trioresume.text import new_name, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é \u202f \u200d \u0378 \U0001f600", None),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\r\n\tb", "a\\r\\n\\tb"),
        ("a\x9b\x7f", "a\\x9b\\x7f"),
        ("cod\u202egpj.exe", "cod\\u202egpj.exe"),
        ("a\u2066b\u2069", "a\\u2066b\\u2069"),
        ("one\u2028line", "one\\u2028line"),
        ("not UTF-8 \udcff", "not UTF-8 \\udcff"),
    ],
)
def test_what_commands_a_terminal_is_written_out(text: str, shown: str | None) -> None:
    """Also what reverses the text, and what no encoding can carry; nothing else."""
    assert printable(text) == (text if shown is None else shown)
    printable(text).encode()


def test_a_new_name_does_not_begin_with_a_hyphen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = iter(["-AAA", "--AA", "_AAA"])
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: next(drawn))
    assert new_name() == "_AAA"
