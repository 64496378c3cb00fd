"""Templates for the names of files: ``{year}/{month}/{digest}{suffix}``.

A template is text with fields in braces. It is no format string of Python: a field has a
name and nothing else, and there is no way to write a brace.

What a client chooses, such as the name of its file, becomes a part of one segment, and never a
separator: only the template's own slashes make segments (G12 in
docs/supported-protocols.md). Each segment is then made safe as any suggested name is, and
does not begin with a dot, because programs that see it as a file might obey it
(``.htaccess``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trioresume.protocol.filenames import MAX_NAME_BYTES, safe_filename
from trioresume.text import CONTROLS

__all__ = [
    "FIELDS",
    "MAX_SEGMENTS",
    "NameTemplate",
    "numbered",
    "safe_name",
    "split_suffix",
]

FIELDS = (
    "year",
    "month",
    "day",
    "principal",
    "id",
    "digest",
    "name",
    "stem",
    "suffix",
    "random",
)
"""The fields of a template."""

MAX_SEGMENTS = 8
"""The most segments of a template. So a name has at most 8 x 255 bytes and 7 slashes."""

_PIECE = re.compile(r"\{([a-z]*)\}|([^{}/]+)|(/)")
_SEPARATING = re.compile(r"[/\\]")
_BAD_TEXT = re.compile(rf"[\\{CONTROLS}]")
_SUFFIX = re.compile(r"(?<=[^.])(?:\.tar)?\.[^.\x20]{1,16}\Z", re.IGNORECASE)


class NameTemplate:
    """A template for names. Raises :class:`ValueError` with the reason for a wrong one."""

    def __init__(self, text: str) -> None:
        segments: list[list[tuple[bool, str]]] = [[]]
        at = 0
        while at < len(text):
            match = _PIECE.match(text, at)
            if match is None:
                raise ValueError("a brace belongs to a field such as {name}")
            at = match.end()
            field, literal, slash = match.groups()
            if slash:
                segments.append([])
            elif literal is not None:
                if _BAD_TEXT.search(literal):
                    raise ValueError("a backslash or a control character in a name")
                segments[-1].append((False, literal))
            elif field in FIELDS:
                segments[-1].append((True, field))
            else:
                known = ", ".join(FIELDS)
                raise ValueError(f"there is no field {field!r}: the fields are {known}")
        if len(segments) > MAX_SEGMENTS:
            raise ValueError(f"more than {MAX_SEGMENTS} segments")
        for segment in segments:
            if not segment:
                raise ValueError("a segment is empty")
            fixed = all(not is_field for is_field, _ in segment)
            literal = "".join(part for _, part in segment)
            if fixed and _safe(literal) != literal:
                raise ValueError(f"no file can have the name {literal!r}")
        if all(not is_field for segment in segments for is_field, _ in segment):
            raise ValueError("without a field all files would have one name")
        self._segments = segments

    def render(self, values: Mapping[str, str]) -> str:
        """Return the name that *values*, one for each field, give."""
        return "/".join(
            _safe(
                "".join(
                    _SEPARATING.sub("_", values[part]) if is_field else part
                    for is_field, part in segment
                )
            )
            for segment in self._segments
        )


def safe_name(name: str) -> str:
    """Return a file's *name* with each segment as a template would make it."""
    return "/".join(_safe(segment) for segment in name.split("/"))


def _safe(segment: str) -> str:
    name = safe_filename(segment) or "_"
    return f"_{name[1:]}" if name.startswith(".") else name


def split_suffix(name: str) -> tuple[str, str]:
    """Return *name* without its suffix, and the suffix: ``.jpg``, ``.tar.gz`` or nothing."""
    match = _SUFFIX.search(name)
    if match is None:
        return name, ""
    return name[: match.start()], match[0]


def numbered(name: str, mark: str) -> str:
    """Return *name* with ``-`` and *mark* before the suffix of its last segment."""
    folder, slash, last = name.rpartition("/")
    stem, suffix = split_suffix(last)
    suffix = f"-{mark}{suffix}"
    room = MAX_NAME_BYTES - len(suffix.encode())
    stem = stem.encode()[:room].decode(errors="ignore")
    return f"{folder}{slash}{stem}{suffix}"
