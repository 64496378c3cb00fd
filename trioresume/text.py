"""Text from outside: how it is read, and which characters of it are dangerous to show.

The list of dangerous characters is fixed. It does not ask Python which characters are
printable: that answer changes with each version of Unicode, and it calls a blank such as
U+202F or a joiner of an emoji unprintable. What is not listed here is kept, also if it is
not assigned yet.

Files that people write are read as their editors and shells save them. Notepad puts a byte
order mark before UTF-8, and PowerShell's ``>`` writes UTF-16.
"""

from __future__ import annotations

import codecs
import re

__all__ = ["CONTROLS", "decode_text", "printable"]

CONTROLS = (
    "\x00-\x1f"  # C0: line ends, tabs, the escape that commands a terminal
    "\x7f-\x9f"  # DEL and C1: some terminals take them for escapes
    "\u202a-\u202e"  # embeddings and overrides of the writing direction
    "\u2066-\u2069"  # isolates of the writing direction
    "\ud800-\udfff"  # half of a character, which no encoding can carry
)
"""A set of characters for a pattern: they command a terminal, or reverse what is shown.

With a reversed direction ``evil\\u202egpj.exe`` is shown as ``evilexe.jpg``.
"""

_MARKS = (
    # UTF-32 first: its little-endian mark begins with the one of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_NOT_SHOWN = re.compile(f"[{CONTROLS}\u2028\u2029]")


def printable(text: str) -> str:
    """*text* for one line of a terminal; each dangerous character as its Python escape."""
    return _NOT_SHOWN.sub(lambda match: ascii(match[0])[1:-1], text)


def decode_text(data: bytes) -> str:
    """The text of a file: UTF-8, or what its byte order mark says; without that mark.

    A mark in front of a later line, which joining two files leaves there, goes as well.
    Raises :class:`ValueError`, with words for whoever wrote the file, for anything else.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        raise ValueError(
            "it has NUL bytes: if it is UTF-16, save it as UTF-8, or with a byte order mark"
        )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ValueError(
            f"line {line} is not {encoding.removesuffix('-sig').upper()}: save it as UTF-8"
        ) from exc
    return text.replace("\n\ufeff", "\n").removeprefix("\ufeff")
