"""What tus's fields say: lengths, metadata, checksums, parts of a concatenation.

Values only; what they mean for an upload is in :mod:`trioresume.protocol.dialects.tus`.
Where tus leaves the form of a value open the stricter reading is taken, and every
number has the bound that all numbers have (G6).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.disposition import (
    content_disposition_attachment,
    suggested_filename,
)
from trioresume.protocol.fields import (
    header_safe,
    parse_integer,
    parse_media_type,
    split_list,
)
from trioresume.protocol.filenames import safe_filename

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trioresume.protocol.heads import Fields

__all__ = [
    "CHECKSUM_ALGORITHMS",
    "PARTIAL",
    "Checksum",
    "format_metadata",
    "is_partial",
    "joined_references",
    "metadata_of",
    "parse_metadata",
    "representation_fields",
    "stated_length",
    "tus_integer",
]

CHECKSUM_ALGORITHMS = ("sha1", "sha256", "sha512", "md5")
"""In the order of ``Tus-Checksum-Algorithm``: sha1 is the one that tus demands (D7)."""

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
    """The whole's length, None if it is deferred (D6).

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
    """A number as tus writes it: without leading zeros.

    Raises :class:`PeerError` (400).
    """
    if _INTEGER.fullmatch(text) is None:
        raise _malformed(f"{what} is not a whole number, or begins with zeros")
    return parse_integer(text, what=what)


# ---------------------------------------------------------------- metadata


def parse_metadata(value: str, *, strict: bool = False) -> dict[str, bytes]:
    """``Upload-Metadata``: keys and what their Base64 stands for (D6).

    Members without a value, empty members and an empty whole are accepted, as clients
    in the wild send them. A value that is not Base64 is left out, since nobody can tell
    what it stands for; with *strict* it is refused. Raises :class:`PeerError` (400) for
    that, and for a key that repeats or is not of printing ASCII.
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
    """The fields that HTTP has for what common metadata says of the content (G14).

    ``filename`` or ``name`` becomes a ``Content-Disposition``, ``filetype`` or ``type``
    a ``Content-Type``; both names of each are in use. What is no usable name or no
    media type is left out: it is only a client's opinion, and still in the metadata.
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
    """The metadata that says what HTTP's fields say: :func:`representation_fields` back.

    A client calls this. The name goes as its caller wrote it; the server makes it safe.
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
    """The values of *keys* that are UTF-8, in that order."""
    for key in keys:
        try:
            yield metadata.get(key, b"").decode()
        except UnicodeDecodeError:
            continue


# ---------------------------------------------------------------- concatenation


def is_partial(fields: Fields) -> bool:
    """Whether the request with *fields* began a part of a later upload (D7)."""
    if "tus-resumable" not in fields:
        return False
    return (fields.get("upload-concat") or "").strip(" \t") == PARTIAL


def joined_references(fields: Fields) -> tuple[str, ...] | None:
    """The URI references that a *final* upload is made of, in their order (D7).

    None if it is none: a partial upload, or one without ``Upload-Concat``. Raises
    :class:`PeerError` (400) for any other value. There are no more of them than fit
    into a head.
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

    Until it is verified nothing of the content counts, so what is cut is dropped: its
    checksum would never be seen. A checksum that is announced as a trailer names its
    algorithm only then, so that all of them are computed meanwhile.
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
        """The check that *fields* ask for; None if none. Raises :class:`PeerError` (400)."""
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
        """The content is over. Raises :class:`PeerError`: 460, or 400 for a bad trailer."""
        algorithm, digest = self._algorithm, self._digest
        if algorithm is None:
            value = trailers.get("upload-checksum")
            if value is None:
                raise _malformed("the Upload-Checksum that was announced did not come")
            algorithm, digest = _parse_checksum(value)
        if not hmac.compare_digest(self._hashes[algorithm].digest(), digest):
            raise PeerError(
                ProblemCode.CHECKSUM_MISMATCH,
                f"the {algorithm} of what arrived is another one; nothing was kept",
            )


def _parse_checksum(value: str) -> tuple[str, bytes]:
    """``algorithm base64``. Raises :class:`PeerError` (400), also for other algorithms."""
    match = _CHECKSUM.fullmatch(value.strip(" \t"))
    if match is None:
        raise _malformed("Upload-Checksum is not an algorithm and a Base64 value")
    if match[1] not in CHECKSUM_ALGORITHMS:
        raise _malformed(
            f"Upload-Checksum names none of {', '.join(CHECKSUM_ALGORITHMS)}"
        )
    return match[1], _base64(match[2], "Upload-Checksum")
