"""File names from peers: reads and writes ``Content-Disposition``, and makes names safe.

A peer's file name is only a suggestion for the program that saves the file. It is made safe
when it is read and when it is written (G4, G14).

A name never becomes a path on this server (G12). But a client may save a download under
it, and people read it. So this module removes what is dangerous, and nothing else. The
list does not depend on Python's version of Unicode:

* controls, and marks that reverse the writing direction (:data:`trioresume.text.CONTROLS`);
* everything up to the last path separator, ``/`` or ``\\``;
* dots and spaces at the end. Windows drops them, so the created name would differ from
  the checked one. This also leaves nothing of ``.`` and ``..``;
* the names of devices on Windows, with any suffix: ``CON``, ``nul.txt``. A ``_`` is put in
  front of them;
* bytes beyond :data:`MAX_NAME_BYTES`. They are cut out in front of the suffix, because the
  suffix says which program opens the file.

Statement numbers such as G12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trioresume.protocol.fields import (
    decode_ext_value,
    format_ext_value,
    parse_parameters,
    split_list,
)
from trioresume.text import CONTROLS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MAX_NAME_BYTES",
    "content_disposition_attachment",
    "name_fault",
    "parse_content_disposition_filename",
    "safe_filename",
    "suggested_filename",
]

MAX_NAME_BYTES = 255
"""The longest file name, in UTF-8 bytes: what common file systems take."""

_CONTROL = re.compile(f"[{CONTROLS}]")
_SEPARATOR = re.compile(r"[/\\]")

# Windows looks at the part before the first dot or colon, without the spaces at its end.
# The superscript digits count as digits there. ASCII: "K" is no KELVIN SIGN.
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|clock\$|(?:com|lpt)[0-9\xb9\xb2\xb3])"
    r"\x20*(?:[.:]|\Z)",
    re.ASCII | re.IGNORECASE,
)

# One to three suffixes, such as ``.gz`` or ``.tar.gz``. Longer text after a dot is no
# suffix. Text with a space is none either: the dot is a full stop.
_SUFFIX = re.compile(r"(?<=[^.])(?:\.[^.\x20]{1,16}){1,3}\Z")


def safe_filename(name: str) -> str | None:
    """Return *name* without what is dangerous in it; None if nothing is left."""
    name = _SEPARATOR.split(name)[-1]
    name = _CONTROL.sub("", name)
    name = _bounded(name, MAX_NAME_BYTES)
    if _DEVICE.match(name):
        name = "_" + _bounded(name, MAX_NAME_BYTES - 1)
    return name or None


def _bounded(name: str, most: int) -> str:
    """Shorten *name* to *most* bytes. Keep its suffix; drop dots and spaces at the end."""
    name = name.rstrip(" .")
    size = len(name.encode())
    if size <= most:
        return name
    match = _SUFFIX.search(name)
    suffix = "" if match is None else match[0]
    stem = name[: len(name) - len(suffix)]
    room = most - len(suffix.encode())
    # A cut in the middle of a character drops the whole character.
    return (stem.encode()[:room].decode(errors="ignore") + suffix).rstrip(" .")


def name_fault(name: str) -> str | None:
    """Return why *name* cannot be a file's name on this server; None if it can."""
    if _CONTROL.search(name):
        return "the name holds a control character or reverses the writing direction"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"the name is longer than {MAX_NAME_BYTES} bytes"
    return None


# Content-Disposition.


def content_disposition_attachment(filename: str | None) -> str:
    """Return ``attachment``, with *filename* as the name to save under if it is usable.

    RFC 6266, section 4.3 and appendix D: a plain ``filename`` for all clients, and a
    ``filename*`` (RFC 8187) if the plain one lost characters.
    """
    name = None if filename is None else safe_filename(filename)
    if name is None:
        return "attachment"
    # The per cent sign too, because some clients decode it here.
    plain = "".join(
        char if char.isascii() and char not in '"\\%' else "_" for char in name
    )
    value = f'attachment; filename="{plain}"'
    if plain != name:
        value += f"; filename*={format_ext_value(name)}"
    return value


def parse_content_disposition_filename(value: str) -> str | None:
    """Return the file name that *value* suggests, made safe; None without a usable one.

    ``filename*`` goes before ``filename`` (RFC 6266, section 4.3).
    """
    for name in _suggestions(value):
        safe = safe_filename(name)
        if safe is not None:
            return safe
    return None


def suggested_filename(value: str) -> str | None:
    """Return the file name that *value* suggests, unchanged; None without one.

    For a client that only passes on what its own caller wrote.
    """
    return next(filter(None, _suggestions(value)), None)


def _suggestions(value: str) -> Iterator[str]:
    parameters = parse_parameters(split_list(value, ";")[1:])
    if parameters is not None:
        yield decode_ext_value(parameters.get("filename*", "")) or ""
        yield _decode_plain(parameters.get("filename", ""))


def _decode_plain(value: str) -> str:
    """Decode a plain name: browsers send UTF-8, which ``Fields`` holds as latin-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
