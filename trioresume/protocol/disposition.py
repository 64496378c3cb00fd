"""``Content-Disposition``: file names out of requests and into responses.

A name that came from a peer is only ever shown or suggested to whoever saves the
file; it never becomes a path here (G12). It may still reach a careless client's
path, a terminal or a field of a response, so it is made harmless in both
directions: the last component only, no control or formatting characters (they
could reverse the text and hide an extension), bounded in length (G4, G14).
"""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote_to_bytes

from trioresume.protocol.fields import format_ext_value, parse_parameters, split_list

__all__ = [
    "MAX_NAME_BYTES",
    "content_disposition_attachment",
    "parse_content_disposition_filename",
    "safe_filename",
]

MAX_NAME_BYTES = 255
"""The longest file name, in UTF-8 bytes: what common file systems take."""


def safe_filename(name: str) -> str | None:
    """*name* made harmless; None if nothing of it is left."""
    name = name.replace("\\", "/").rpartition("/")[2]
    # The categories C*: controls, formatting (such as U+202E), surrogates, private
    # and unassigned ones. Z* but the space: line separators and odd blanks.
    kept = "".join(
        char
        for char in name
        if char == " " or unicodedata.category(char)[0] not in "CZ"
    )
    # Leading dots would hide the file or climb; Windows drops trailing ones, so that
    # the name checked would not be the name created.
    kept = kept.strip(" .")
    bounded = kept.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .")
    return bounded or None


def content_disposition_attachment(filename: str | None) -> str:
    """``attachment``, with *filename* as the name to save under, if it is a usable one.

    RFC 6266, section 4.3 and appendix D: a plain ``filename`` for everyone, and a
    ``filename*`` (RFC 8187) when the plain one had to lose something.
    """
    name = None if filename is None else safe_filename(filename)
    if name is None:
        return "attachment"
    # Not only quote and backslash: some agents decode a per cent sign here.
    plain = "".join(
        char if char.isascii() and char not in '"\\%' else "_" for char in name
    )
    value = f'attachment; filename="{plain}"'
    if plain != name:
        value += f"; filename*={format_ext_value(name)}"
    return value


def parse_content_disposition_filename(value: str) -> str | None:
    """The file name that *value* suggests, made harmless; None without a usable one.

    ``filename*`` goes before ``filename`` (RFC 6266, section 4.3).
    """
    parameters = parse_parameters(split_list(value, ";")[1:])
    if parameters is None:
        return None
    extended = _decode_extended(parameters.get("filename*", ""))
    return safe_filename(extended or _decode_plain(parameters.get("filename", "")))


def _decode_extended(value: str) -> str | None:
    """An ext-value (RFC 8187, section 3.2): ``charset'language'percent-encoded``."""
    charset, _, rest = value.partition("'")
    encoded = rest.partition("'")[2]
    if charset.lower() not in ("utf-8", "iso-8859-1"):
        return None
    try:
        return unquote_to_bytes(encoded).decode(charset)
    except UnicodeDecodeError:
        return None


def _decode_plain(value: str) -> str:
    """Browsers send UTF-8 here, which reached us as latin-1 (see ``Fields``)."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
