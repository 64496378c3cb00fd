"""``Content-Disposition``: reads file names from requests, writes them to responses.

A peer's file name is only a suggestion for the program that saves the file. It never
becomes a path here (G12). :mod:`trioresume.protocol.filenames` makes it safe, both when
it is read and when it is written (G4, G14).

Statement numbers such as G12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from trioresume.protocol.fields import format_ext_value, parse_parameters, split_list
from trioresume.protocol.filenames import safe_filename

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "content_disposition_attachment",
    "parse_content_disposition_filename",
    "suggested_filename",
]


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
        yield _decode_extended(parameters.get("filename*", "")) or ""
        yield _decode_plain(parameters.get("filename", ""))


def _decode_extended(value: str) -> str | None:
    """Decode an ext-value (RFC 8187, section 3.2): ``charset'language'percent-encoded``."""
    charset, _, rest = value.partition("'")
    encoded = rest.partition("'")[2]
    if charset.lower() not in ("utf-8", "iso-8859-1"):
        return None
    try:
        return unquote_to_bytes(encoded).decode(charset)
    except UnicodeDecodeError:
        return None


def _decode_plain(value: str) -> str:
    """Decode a plain name: browsers send UTF-8, which ``Fields`` holds as latin-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
