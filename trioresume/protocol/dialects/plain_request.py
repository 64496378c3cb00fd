"""The fields of a complete upload as those of an ordinary request.

A client may have sent the content in pieces, over days. An application behind the server
must not notice: it gets one request whose ``Content-Length`` is known. The fields by which the
client and the server agreed on the pieces are between the two, and are left out.

Statement T1 is in docs/supported-protocols.md.
"""

from __future__ import annotations

from trioresume.protocol.fields import split_list
from trioresume.protocol.heads import Fields, end_to_end_fields

__all__ = ["UPLOAD_FIELDS", "plain_fields"]

UPLOAD_FIELDS = frozenset(
    {
        "tus-resumable",
        "upload-checksum",
        "upload-complete",
        "upload-concat",
        "upload-defer-length",
        "upload-draft-interop-version",
        "upload-incomplete",
        "upload-length",
        "upload-limit",
        "upload-metadata",
        "upload-offset",
    }
)
"""Fields of tus and of Resumable Uploads for HTTP."""

_OF_ONE_TRANSFER = ("content-length", "expect", "incremental")

_KEPT_PREFERENCES = frozenset({"handling", "return"})
"""Preferences of RFC 7240 that are for the application. The server acts on the others."""


def plain_fields(fields: Fields, length: int) -> Fields:
    """Return *fields* as they are for a request whose whole content has *length* bytes.

    The fields of a connection, ``Expect`` and the fields of the dialects are left out, and the
    preferences that the server has acted on. ``Content-Length`` is added if there is content.
    """
    kept = end_to_end_fields(fields)
    of_uploads = [name for name, _ in kept if name in UPLOAD_FIELDS]
    if of_uploads:
        # Content-Digest is about the content of one message (RFC 9530, section 2): a piece.
        kept = kept.without(*of_uploads, "content-digest")
    kept = kept.without(*_OF_ONE_TRANSFER)
    if "prefer" in kept:
        kept = _with_preferences(kept)
    stated = "content-length" in fields or "transfer-encoding" in fields
    if length or stated or of_uploads:
        kept = kept.plus({"content-length": str(length)})
    return kept


def _with_preferences(fields: Fields) -> Fields:
    members = split_list(fields.get("prefer") or "")
    kept = [m for m in members if _name(m) in _KEPT_PREFERENCES]
    rest = fields.without("prefer")
    return rest.plus({"prefer": ", ".join(kept)}) if kept else rest


def _name(preference: str) -> str:
    return preference.partition(";")[0].partition("=")[0].strip().lower()
