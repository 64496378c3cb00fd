"""Characters that are dangerous to show, and text without them.

The list is fixed. It does not ask Python which characters are printable: that answer
changes with each version of Unicode, and it calls a blank such as U+202F or a joiner of
an emoji unprintable. What is not listed here is kept, also if it is not assigned yet.
"""

from __future__ import annotations

import re

__all__ = ["CONTROLS", "printable"]

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

_NOT_SHOWN = re.compile(f"[{CONTROLS}\u2028\u2029]")


def printable(text: str) -> str:
    """*text* for one line of a terminal; each dangerous character as its Python escape."""
    return _NOT_SHOWN.sub(lambda match: ascii(match[0])[1:-1], text)
