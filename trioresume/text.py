"""Text from outside: decoding it, and hiding characters that are dangerous to show.

The list of dangerous characters is fixed. It does not use Python's ``str.isprintable``: its
result changes with each version of Unicode, and it rejects a blank such as U+202F or the
joiner in an emoji. Characters that are not on the list are kept, even unassigned ones.

Files that people write are decoded as their editors and shells save them. Notepad puts a
byte order mark before UTF-8, and PowerShell's ``>`` writes UTF-16.
"""

from __future__ import annotations

import codecs
import re
import secrets

__all__ = [
    "CONTROLS",
    "OPEN",
    "OPEN_TWINS",
    "concealed",
    "decode_text",
    "new_name",
    "printable",
]

CONTROLS = (
    "\x00-\x1f"  # C0: line ends, tabs, and the escape that begins a terminal command
    "\x7f-\x9f"  # DEL and C1: some terminals treat them as escapes
    "\u202a-\u202e"  # embeddings and overrides of the writing direction
    "\u2066-\u2069"  # isolates of the writing direction
    "\ud800-\udfff"  # halves of a character, which no encoding can represent
)
"""Characters, for a set in a pattern, that control a terminal or reverse the shown text.

With a reversed direction ``evil\\u202egpj.exe`` is shown as ``evilexe.jpg``.
"""

_MARKS = (
    # UTF-32 comes first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# 22 letters of Base64 have room for four bits more than 16 bytes, which the last letter leaves
# at zero: it is one of A, Q, g, w.
OPEN_TWINS = {"A": "B", "Q": "R", "g": "h", "w": "x"}
"""For the last letter of a new name, the letter that stands for the same 16 bytes."""
OPEN = frozenset(OPEN_TWINS.values())
"""The last letters of the ids that are all the credential that their operation needs."""

_OPEN_ID = re.compile(
    rf"(?:(?<=/)|\A)([A-Za-z0-9_-]{{10}})[A-Za-z0-9_-]{{11}}[{''.join(sorted(OPEN))}](?=[/.]|\Z)"
)
_NOT_SHOWN = re.compile(f"[{CONTROLS}\u2028\u2029]")


def new_name() -> str:
    """Return a new unguessable name: 22 characters of URL-safe base64, with 128 random bits.

    It does not begin with a hyphen, because a command line would take it for an option.
    """
    while (name := secrets.token_urlsafe(16)).startswith("-"):
        pass
    return name


def concealed(text: str) -> str:
    """Return a path, a key or an id for a log: without half of an open operation's id.

    That id is all the credential that its operation needs.
    """
    return _OPEN_ID.sub(r"\1...", text)


def printable(text: str) -> str:
    """Return *text* for one line of a terminal, with dangerous characters as Python escapes."""
    return _NOT_SHOWN.sub(lambda match: ascii(match[0])[1:-1], text)


def decode_text(data: bytes) -> str:
    """Return the text of a file, without its byte order mark.

    The encoding is the one that the mark names, or UTF-8. A mark in front of a later line,
    which joining two files leaves there, is removed as well. Raises :class:`ValueError`
    for anything else, with a message for the author of the file.
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
