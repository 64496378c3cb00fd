"""Makes file names from peers safe for the programs that save a file.

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

from trioresume.text import CONTROLS

__all__ = ["MAX_NAME_BYTES", "name_fault", "safe_filename"]

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
