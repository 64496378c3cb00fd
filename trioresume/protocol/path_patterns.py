"""Patterns for paths, names and media types, as a rule has them.

A path is compared segment by segment, after percent-decoding. Decoding comes after the
split, so that an encoded slash never moves the border of a segment. A path that a server
and a backend could read in two ways is no path for a rule: see :func:`path_segments`.

=========  =============================================================
``*``      any characters within one segment, also none
``?``      one character
``**``     as a whole segment: any number of segments, also none
``/a/``    a pattern that ends with a slash: ``/a/**``
=========  =============================================================

Matching takes time proportional to the length of the pattern times that of the path, whatever
both are: patterns come from the administrator, but paths come from the network. A regular
expression with a ``.*`` for each star would not keep that promise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from trioresume.text import CONTROLS

__all__ = ["PathPattern", "TextPattern", "path_segments"]

_ANY: Final = "**"

# What another server may take for ``.`` or ``..``: some cut a segment at its semicolon.
_DOTS = re.compile(r"\.{1,2}(?:;|\Z)")
_WILD = re.compile(r"[*?]")
_UNSAFE = re.compile(rf"[/\\{CONTROLS}]")


def path_segments(path: str) -> tuple[str, ...] | None:
    """Return the decoded segments of *path*; None if it can be read in two ways.

    A slash at the end makes no difference. Refused are a path that is not UTF-8, an empty
    segment, ``.`` and ``..`` (also encoded, and before a semicolon), an encoded slash, a
    backslash, and control characters.
    """
    if not path.startswith("/"):
        return None
    segments = []
    for encoded in path[1:].removesuffix("/").split("/") if path != "/" else ():
        try:
            segment = unquote_to_bytes(encoded).decode()
        except UnicodeDecodeError:
            return None
        if not segment or _DOTS.match(segment) or _UNSAFE.search(segment):
            return None
        segments.append(segment)
    return tuple(segments)


class TextPattern:
    """A pattern with ``*`` and ``?`` for a text without structure, such as a name."""

    def __init__(self, pattern: str) -> None:
        self._parts = [
            re.compile(
                "".join("." if c == "?" else re.escape(c) for c in part), re.DOTALL
            )
            for part in pattern.split("*")
        ]
        ends = pattern.split("*")
        self._first, self._last = len(ends[0]), len(ends[-1])

    def matches(self, text: str) -> bool:
        """Return whether *text*, as a whole, fits the pattern."""
        first, *others = self._parts
        if not others:
            return first.fullmatch(text) is not None
        *middle, last = others
        at, end = self._first, len(text) - self._last
        if end < at or first.match(text) is None or last.match(text, end) is None:
            return False
        # The first place where a part fits is enough: what fits behind a later place fits
        # behind the first one, too, because a star is between them.
        for part in middle:
            match = part.search(text, at, end)
            if match is None:
                return False
            at = match.end()
        return True


class PathPattern:
    """A pattern for paths. Raises :class:`ValueError` for one that no path can match."""

    def __init__(self, pattern: str) -> None:
        if not pattern.startswith("/"):
            raise ValueError("a path begins with '/'")
        text = pattern + _ANY if pattern.endswith("/") else pattern
        self._segments: list[TextPattern | None] = []
        for segment in text[1:].split("/"):
            if segment == _ANY:
                self._segments.append(None)
                continue
            if _ANY in segment:
                raise ValueError("'**' stands alone between two slashes")
            if not segment or _DOTS.match(segment) or _UNSAFE.search(segment):
                raise ValueError(f"no path has the segment {segment!r}")
            self._segments.append(TextPattern(segment))
        # Most patterns differ from a path in one of these: one comparison tells.
        literal = text[1:].split("/")
        wild = [bool(_WILD.search(segment)) for segment in literal]
        self._start = tuple(literal[: (*wild, True).index(True)])
        self._segments = self._segments[len(self._start) :]

    def matches(self, segments: Sequence[str]) -> bool:
        """Return whether the path of these decoded *segments* fits the pattern."""
        if tuple(segments[: len(self._start)]) != self._start:
            return False
        segments = segments[len(self._start) :]
        wanted = self._segments
        at = here = 0
        # Where the latest ``**`` is, and how many segments it stands for so far. An earlier
        # one never has to be tried again: what follows it fits already.
        latest, taken = -1, 0
        while here < len(segments):
            if at < len(wanted) and wanted[at] is None:
                latest, taken = at, here
                at += 1
                continue
            pattern = wanted[at] if at < len(wanted) else None
            if pattern is not None and pattern.matches(segments[here]):
                at, here = at + 1, here + 1
                continue
            if latest < 0:
                return False
            taken += 1
            at, here = latest + 1, taken
        return all(pattern is None for pattern in wanted[at:])
