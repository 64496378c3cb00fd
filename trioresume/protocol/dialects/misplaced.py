"""Upload fields on a request for which their protocol defines nothing (E10).

Such a request is refused, or it gets the plain answer. It never begins an upload. It
never changes a target with content that is only a part for its sender. So a plain
request's content counts as the whole only if nothing in the head contradicts that::

    Upload-Offset, Upload-Defer-Length, Upload-Concat     the content is a part
    Upload-Complete: ?0, Upload-Incomplete: ?1            more is to come
    Upload-Length, other than the content's               more is to come, or something is wrong
    a media type of patches                               the content is not the representation

If such a field is repeated, it says nothing certain, and the request is refused.
A ``Content-Range`` is HTTP's own field; the target judges it (RFC 9110, section 14.5).

Statement numbers such as E10 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.byteranges import (
    BINARY,
    MESSAGE,
    MULTIPART,
    OFFSET_STREAM,
    PARTIAL_UPLOAD,
)
from trioresume.protocol.fields import parse_media_type
from trioresume.protocol.structured import boolean_item, integer_item

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields, RequestHead

__all__ = [
    "check_once",
    "check_whole",
    "essence_of",
    "is_append",
    "is_patch_of_bytes",
    "whole_length",
]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_OF_UPLOADS = frozenset({OFFSET_STREAM, PARTIAL_UPLOAD})
_OF_PATCHES = frozenset({BINARY, MESSAGE, MULTIPART}) | _OF_UPLOADS
_MAY_BE_OF_PATCHES = re.compile(
    r"byterange|partial-upload|offset\+octet", re.IGNORECASE
)
# A repeated field is refused for any value of these, and for "more is to come" of those.
_NUMBERS = ("upload-offset", "upload-length")
_SAYS_MORE = (("upload-complete", "?0"), ("upload-incomplete", "?1"))
_SAYS_PART = ("upload-offset", "upload-defer-length", "upload-concat")


def essence_of(fields: Fields) -> str | None:
    """``type/subtype`` of ``Content-Type``; None if it is missing or malformed."""
    media_type = parse_media_type(fields.get("content-type") or "")
    return None if media_type is None else media_type.essence


def is_append(head: RequestHead) -> bool:
    """Whether *head* is a PATCH that only makes sense on an upload."""
    if head.method != "PATCH":
        return False
    marked = "upload-offset" in head.fields or "tus-resumable" in head.fields
    return marked or essence_of(head.fields) in _OF_UPLOADS


def is_patch_of_bytes(head: RequestHead) -> bool:
    """Whether *head* is a PATCH in a form that continues uploads in some dialect."""
    if head.method != "PATCH":
        return False
    return is_append(head) or essence_of(head.fields) in _OF_PATCHES


def whole_length(head: RequestHead) -> int | None:
    """Return the length of a plain request's content; None if nothing states it."""
    return (
        integer_item(head.fields, "upload-length")
        if head.length is None
        else head.length
    )


def _of_patches(fields: Fields) -> bool:
    """Whether the media type is that of a patch."""
    value = fields.get("content-type")
    # Most are not, and parsing one costs a dozen calls.
    if value is None or _MAY_BE_OF_PATCHES.search(value) is None:
        return False
    return essence_of(fields) in _OF_PATCHES


def check_once(fields: Fields) -> None:
    """Refuse a repeated field that may say that the content is a part.

    RFC 9651, section 4.2, lets a receiver ignore such a field, or refuse the message. To
    ignore ``Upload-Complete: ?0`` because it came twice would take a part for the whole.
    Raises :class:`PeerError` (400).
    """
    repeated = [name for name in _NUMBERS if "," in (fields.get(name) or "")]
    for name, more in _SAYS_MORE:
        value = fields.get(name) or ""
        if "," in value and more in value:
            repeated.append(name)
    if repeated:
        raise PeerError(
            ProblemCode.MALFORMED_REQUEST,
            f"{repeated[0].title()} has more than one value",
        )


def check_whole(head: RequestHead) -> None:
    """Refuse a plain request whose content is only a part.

    Raises :class:`PeerError`: 400, or 415 for a media type of patches. A method that
    changes nothing passes, and so does a DELETE without content.
    """
    if head.method in _SAFE or (head.method == "DELETE" and not head.has_content):
        return
    fields = head.fields
    if head.method != "PATCH" and _of_patches(fields):
        raise PeerError(
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            f"content of this type is sent with PATCH, and not with {head.method}",
        )
    for name, _ in fields:
        if name.startswith("upload-"):
            break
    else:
        return  # the usual case: a plain client's plain request
    check_once(fields)
    for name in _SAYS_PART:
        if name in fields:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST,
                f"{name.title()} is not understood in this request",
            )
    unfinished = boolean_item(fields, "upload-complete") is False
    if unfinished or boolean_item(fields, "upload-incomplete") is True:
        raise PeerError(
            ProblemCode.MALFORMED_REQUEST,
            "the request says that more content follows, with a field that its draft"
            " version does not define",
        )
    stated = integer_item(fields, "upload-length")
    if stated is not None and head.length not in (None, stated):
        raise PeerError(
            ProblemCode.INCONSISTENT_LENGTH,
            f"the content is {head.length} bytes long, and Upload-Length is {stated}",
        )
