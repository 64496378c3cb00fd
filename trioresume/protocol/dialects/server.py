"""The server's side of a dialect: its interface, and the values that it reads and returns.

Upload fields on a request for which their protocol defines nothing (E10)
=========================================================================

Such a request is refused, or it gets the plain answer. It never begins an upload. It
never changes a target with content that is only a part for its sender. So a plain
request's content counts as the whole only if nothing in the head contradicts that
(:func:`check_whole`)::

    Upload-Offset, Upload-Defer-Length, Upload-Concat     the content is a part
    Upload-Complete: ?0, Upload-Incomplete: ?1            more is to come
    Upload-Length, other than the content's               more is to come, or something is wrong
    a media type of patches                               the content is not the representation

If such a field is repeated, it says nothing certain, and the request is refused.
A ``Content-Range`` is HTTP's own field; the target judges it (RFC 9110, section 14.5).

Statement numbers such as R36 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.byteranges import (
    BINARY,
    MESSAGE,
    MULTIPART,
    OFFSET_STREAM,
    PARTIAL_UPLOAD,
)
from trioresume.protocol.conditional import content_etag
from trioresume.protocol.dialects.upload_limits import UploadLimits
from trioresume.protocol.fields import parse_media_type
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.structured import boolean_item, integer_item

if TYPE_CHECKING:
    from trioresume.protocol.digests import ContentCheck
    from trioresume.protocol.parts import PatchLimits, PatchReader

__all__ = [
    "METHOD_OVERRIDE",
    "PRIVATE",
    "Append",
    "AppendRules",
    "Creation",
    "Interim",
    "Reply",
    "ServerDialect",
    "Upload",
    "check_once",
    "check_whole",
    "essence_of",
    "is_append",
    "is_patch_of_bytes",
    "shared_content_fields",
]

PRIVATE = Fields({"cache-control": "no-store", "vary": "Authorization"})
"""Uploads and their responses belong to their owner alone (R36)."""


METHOD_OVERRIDE = "x-http-method-override"
# A POST can stand for one of these methods, and for no other.
_OVERRIDDEN = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload as a dialect sees it. Every value in it may be announced."""

    content: str
    """A URI reference to the upload (RCL): path-absolute unless configured otherwise."""
    absolute_content: str
    """The same as an absolute URI, if the server can tell it."""
    message: str
    """A URI reference to the response message (RML)."""
    offset: int
    """How many bytes are durable."""
    length: int | None
    is_complete: bool
    """Whether the content has ended. The target may still be at work."""
    lifetime: int
    """For at least this many seconds the upload is kept without a further request."""
    expires_at: float
    """The Unix time in seconds at which this lifetime ends."""
    limits: UploadLimits
    fields: Fields
    """The fields of the request that began it, in any dialect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """The upload that a request to a target begins."""

    length: int | None
    """The stated length of the whole in bytes; None if it is not stated."""
    completes: bool | None = True
    """Whether the end of the request's content ends the upload; None: the length decides."""
    explicit_completion: bool = False
    """Whether the end must be said: reaching the length is not enough."""
    offers: bool = False
    """Whether the dialect makes the upload resumable without ``Prefer: resume``."""
    max_content: int | None = None
    """The most bytes that this request may carry."""
    check: ContentCheck | None = None
    fields: Fields | None = None
    """The fields to record and to show to the target instead of the request's fields."""
    joins: tuple[str, ...] | None = None
    """URI references of the uploads that make up this one's content, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendRules:
    """The settings that reading a PATCH depends on."""

    patch: PatchLimits
    lenient_unit: bool
    limits: UploadLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """What a PATCH adds to an upload. ``reader.completes`` says whether it completes it."""

    reader: PatchReader
    max_content: int | None = None
    check: ContentCheck | None = None


@dataclass(frozen=True, slots=True)
class Interim:
    """An interim response."""

    status: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class Reply:
    """A final response that the protocol makes itself; it is not the target's."""

    status: int
    fields: Fields
    body: bytes = b""


class ServerDialect(ABC):
    """How the server reads the requests of one protocol, and words its answers.

    The package's docstring explains it.
    """

    name: ClassVar[str]
    """What metrics and logs call the protocol."""
    takes_over: ClassVar[bool] = False
    """Whether a GET of the content ends a running writer. A HEAD always does."""
    awaits_target: ClassVar[bool] = True
    """Whether the request that completes an upload waits for the target's response.

    If not, the answer goes out as soon as the content is frozen.
    """

    adds_to_outcome: ClassVar[bool] = True
    """Whether :meth:`completed` may add to the target's response, or replace it."""
    fields: Fields = Fields()
    """The fields of every final response to a request of this dialect."""
    shows_progress: bool = False
    """Whether the server sends :meth:`progress` while content arrives."""

    @property
    def invalidated_by(self) -> frozenset[ProblemCode]:
        """The problems of an append after which the upload cannot go on."""
        return frozenset()

    def method(self, head: RequestHead) -> str:
        """Return the method that a request to an operation's resources means.

        A POST may stand for another method there (D3). This holds in every dialect,
        because clients of Resumable Uploads for HTTP use the field too. Raises
        :class:`PeerError` (400).
        """
        override = head.fields.get(METHOD_OVERRIDE)
        if override is None or head.method != "POST":
            return head.method
        if override.upper() not in _OVERRIDDEN:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST,
                "X-HTTP-Method-Override has a method that a POST cannot replace",
            )
        return override.upper()

    def needs_upload(self, head: RequestHead) -> bool:
        """Return whether a request to a target makes sense only on an upload's own URL."""
        return is_append(head)

    def check(self, head: RequestHead) -> None:
        """Judge a request before anything else happens. Raises :class:`PeerError`.

        The server calls it for requests to an upload's content and to a target.
        """
        return

    def check_upload(self, head: RequestHead, began: Fields) -> None:
        """Judge a request to the content of an upload; *began* are its first request's fields.

        Raises :class:`PeerError`.
        """
        return

    # Requests.

    @abstractmethod
    def creation(self, head: RequestHead, limits: UploadLimits) -> Creation:
        """Return what *head* begins on a target. Raises :class:`PeerError`."""

    @abstractmethod
    def append(self, head: RequestHead, rules: AppendRules) -> Append:
        """Return what a PATCH with *head* adds. Raises :class:`PeerError`."""

    # Answers.

    def announcement(self, upload: Upload) -> Interim | None:
        """Return the interim response that says where the upload is; None if there is none."""
        return None

    def progress(self, offset: int) -> Interim:
        """Return the interim response that says that *offset* bytes are durable.

        Only dialects with :attr:`shows_progress` have it. Calling it on another one is
        a bug, so this method raises.
        """
        raise NotImplementedError("only a dialect with a word for it is asked")

    @abstractmethod
    def created(self, upload: Upload) -> Reply:
        """Return the answer to a first request that leaves the upload incomplete."""

    @abstractmethod
    def offset(self, upload: Upload) -> Reply:
        """Return the answer to HEAD (R12)."""

    @abstractmethod
    def appended(self, upload: Upload) -> Reply:
        """Return the answer to a PATCH that leaves the upload incomplete (R17)."""

    def completed(
        self, upload: Upload, recorded: Fields, *, created: bool
    ) -> Fields | Reply:
        """Return fields to add to the target's answer *recorded*, or another answer.

        *created* says that this answers the upload's first request, not a PATCH. It is not
        called if :attr:`adds_to_outcome` is false.
        """
        return Fields()

    def cancelled(self) -> Reply:
        """Return the answer to a DELETE (R25)."""
        return Reply(204, PRIVATE)

    def problem(self, error: PeerError, limits: UploadLimits) -> PeerError:
        """Return *error* as the dialect reports it."""
        return error

    @abstractmethod
    def content_fields(self, upload: Upload) -> Fields:
        """Return the fields that all answers about the content share."""


def shared_content_fields(upload: Upload) -> Fields:
    """Return the fields about the content that have the same form in every dialect."""
    fields = PRIVATE.plus({"etag": content_etag(upload.offset)})
    if upload.length is None:
        return fields
    return fields.plus({"upload-length": str(upload.length)})


# Upload fields on a request for which their protocol defines nothing.

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
    media_type = fields.get("content-type")
    if (
        media_type is not None
        and head.method != "PATCH"
        # Most are not, and parsing one costs a dozen calls.
        and _MAY_BE_OF_PATCHES.search(media_type) is not None
        and essence_of(fields) in _OF_PATCHES
    ):
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
