"""The values of tus's fields: lengths, metadata, checksums, parts of a concatenation.

The modules beside this one say what they mean for an upload. Where tus
leaves the form of a value open, this module takes the stricter reading. Numbers are
bounded like all others (G6).

Statement numbers such as G6 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import (
    header_safe,
    parse_integer,
    parse_media_type,
    split_list,
)
from trioresume.protocol.filenames import (
    content_disposition_attachment,
    safe_filename,
    suggested_filename,
)
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "CHECKSUM_ALGORITHMS",
    "MARK",
    "PARTIAL",
    "VERSION",
    "Checksum",
    "format_metadata",
    "joined_references",
    "metadata_of",
    "parse_metadata",
    "representation_fields",
    "stated_length",
    "tus_integer",
]

VERSION = "1.0.0"

MARK = Fields({"tus-resumable": VERSION})
"""The field of every message of tus (D1)."""

CHECKSUM_ALGORITHMS = ("sha1", "sha256", "sha512", "md5")
"""In the order of ``Tus-Checksum-Algorithm``. tus requires sha1 (D7)."""

PARTIAL = "partial"
"""The value of ``Upload-Concat`` for a part of a later upload."""

_FINAL = re.compile(r"final[ \t]*;[ \t]*([^ \t].*)", re.DOTALL)
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]++")
_INTEGER = re.compile(r"0|[1-9][0-9]*")
_CHECKSUM = re.compile(r"([^ ]+) +([^ ]+)")


def _malformed(detail: str) -> PeerError:
    return PeerError(ProblemCode.MALFORMED_REQUEST, detail)


# ---------------------------------------------------------------- lengths


def stated_length(fields: Fields) -> int | None:
    """Return the length of the whole; None if it is deferred (D6).

    Raises :class:`PeerError` (400) unless exactly one of ``Upload-Length`` and
    ``Upload-Defer-Length: 1`` is there.
    """
    length, deferred = fields.get("upload-length"), fields.get("upload-defer-length")
    if deferred not in (None, "1"):
        raise _malformed("Upload-Defer-Length can only be 1")
    if (length is None) == (deferred is None):
        raise _malformed("one of Upload-Length and Upload-Defer-Length is needed")
    if length is None:
        return None
    return tus_integer(length, what="Upload-Length")


def tus_integer(text: str, *, what: str) -> int:
    """Read a number as tus writes it: without leading zeros.

    Raises :class:`PeerError` (400).
    """
    if _INTEGER.fullmatch(text) is None:
        raise _malformed(f"{what} is not a whole number, or begins with zeros")
    return parse_integer(text, what=what)


# ---------------------------------------------------------------- metadata


def parse_metadata(value: str, *, strict: bool = False) -> dict[str, bytes]:
    """Read ``Upload-Metadata``: keys and their decoded Base64 values (D6).

    Members without a value, empty members and an empty field are accepted, because
    existing clients send them. A value that is not Base64 is left out, because its
    meaning is unknown; with *strict* it is refused. Raises :class:`PeerError` (400) for
    that, and for a key that repeats or is not printable ASCII.
    """
    metadata: dict[str, bytes] = {}
    keys: set[str] = set()
    for member in value.split(","):
        key, _, encoded = member.strip(" \t").partition(" ")
        if not key and not encoded:
            continue
        if _KEY.fullmatch(key) is None or key in keys:
            raise _malformed("a key of Upload-Metadata is not ASCII, or it repeats")
        keys.add(key)
        try:
            metadata[key] = _base64(encoded.strip(" \t"), "a value of Upload-Metadata")
        except PeerError:
            if strict:
                raise
    return metadata


def format_metadata(metadata: Mapping[str, bytes]) -> str:
    """The inverse of :func:`parse_metadata`."""
    members = (
        f"{key} {base64.b64encode(value).decode('ascii')}".rstrip(" ")
        for key, value in metadata.items()
    )
    return ",".join(members)


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text.encode("latin-1"), validate=True)
    except binascii.Error:
        raise _malformed(f"{what} is not Base64") from None


def representation_fields(metadata: Mapping[str, bytes]) -> dict[str, str]:
    """Return the HTTP fields for common metadata about the content (G14).

    ``filename`` or ``name`` becomes a ``Content-Disposition``, ``filetype`` or ``type``
    a ``Content-Type``; both names of each are in use. An unusable name or media type is
    left out. It is only a suggestion, and the metadata still has it.
    """
    fields: dict[str, str] = {}
    for name in _texts(metadata, "filename", "name"):
        if safe_filename(name) is not None:
            fields["content-disposition"] = content_disposition_attachment(name)
            break
    for media_type in _texts(metadata, "filetype", "type"):
        if header_safe(media_type) and parse_media_type(media_type) is not None:
            fields["content-type"] = media_type
            break
    return fields


def metadata_of(fields: Fields) -> dict[str, bytes]:
    """Return the metadata for HTTP's fields: the inverse of :func:`representation_fields`.

    A client calls this. It sends the name as its caller wrote it; the server makes the
    name safe.
    """
    metadata: dict[str, bytes] = {}
    name = suggested_filename(fields.get("content-disposition") or "")
    if name is not None:
        metadata["filename"] = name.encode()
    media_type = fields.get("content-type")
    if media_type:
        metadata["filetype"] = media_type.encode("latin-1")
    return metadata


def _texts(metadata: Mapping[str, bytes], *keys: str) -> Iterator[str]:
    """Yield the values of *keys* that are UTF-8, in that order."""
    for key in keys:
        try:
            yield metadata.get(key, b"").decode()
        except UnicodeDecodeError:
            continue


# ---------------------------------------------------------------- concatenation


def joined_references(fields: Fields) -> tuple[str, ...] | None:
    """Return the URI references of a *final* upload's parts, in order (D7).

    Returns None for a partial upload and without ``Upload-Concat``. Raises
    :class:`PeerError` (400) for any other value. The size of a head bounds their
    number.
    """
    value = fields.get("upload-concat")
    if value is None or value.strip(" \t") == PARTIAL:
        return None
    match = _FINAL.fullmatch(value.strip(" \t"))
    if match is None:
        raise _malformed("Upload-Concat is neither partial nor final;URL URL")
    return tuple(match[1].split())


# ---------------------------------------------------------------- checksums


class Checksum:
    """The check of content that came with ``Upload-Checksum`` (D7).

    Nothing of the content counts until the checksum is verified. Content that is cut is
    dropped, because its checksum would never be verified. A checksum in a trailer names
    its algorithm only there, so all algorithms are computed until then.
    """

    keeps_prefix = False

    def __init__(self, algorithm: str | None, digest: bytes = b"") -> None:
        self._algorithm = algorithm
        self._digest = digest
        names = CHECKSUM_ALGORITHMS if algorithm is None else (algorithm,)
        self._hashes = {
            name: hashlib.new(name, usedforsecurity=False) for name in names
        }

    @classmethod
    def of(cls, fields: Fields) -> Checksum | None:
        """Return the check that *fields* ask for; None if none. Raises :class:`PeerError` (400)."""
        announced = split_list((fields.get("trailer") or "").lower())
        value = fields.get("upload-checksum")
        if "upload-checksum" in announced:
            if value is not None:
                raise _malformed("Upload-Checksum stands before and after the content")
            return cls(None)
        return None if value is None else cls(*_parse_checksum(value))

    def update(self, data: memoryview) -> None:
        """Take the next bytes of the content."""
        for hash_ in self._hashes.values():
            hash_.update(data)

    def verify(self, trailers: Fields) -> None:
        """Judge the whole content. Raises :class:`PeerError`: 460, or 400 for a bad trailer."""
        algorithm, digest = self._algorithm, self._digest
        if algorithm is None:
            value = trailers.get("upload-checksum")
            if value is None:
                raise _malformed("the Upload-Checksum that was announced did not come")
            algorithm, digest = _parse_checksum(value)
        if not hmac.compare_digest(self._hashes[algorithm].digest(), digest):
            raise PeerError(
                ProblemCode.CHECKSUM_MISMATCH,
                f"the content has another {algorithm} than stated; nothing was kept",
            )


def _parse_checksum(value: str) -> tuple[str, bytes]:
    """Read ``algorithm base64``. Raises :class:`PeerError` (400), also for an unknown algorithm."""
    match = _CHECKSUM.fullmatch(value.strip(" \t"))
    if match is None:
        raise _malformed("Upload-Checksum is not an algorithm and a Base64 value")
    if match[1] not in CHECKSUM_ALGORITHMS:
        raise _malformed(
            f"Upload-Checksum names none of {', '.join(CHECKSUM_ALGORITHMS)}"
        )
    return match[1], _base64(match[2], "Upload-Checksum")
