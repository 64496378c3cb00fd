"""The interface of a dialect, implemented for clients without a marker.

Statement numbers such as R36 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.appending import content_etag
from trioresume.protocol.byteranges import ACCEPT_PATCH, patch_reader
from trioresume.protocol.dialects.misplaced import (
    check_whole,
    is_append,
    whole_length,
)
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.structured import format_dictionary, integer_members

if TYPE_CHECKING:
    from trioresume.protocol.digests import ContentCheck
    from trioresume.protocol.parts import PatchLimits, PatchReader

__all__ = [
    "METHOD_OVERRIDE",
    "PRIVATE",
    "Append",
    "AppendRules",
    "Creation",
    "Dialect",
    "Interim",
    "Reply",
    "Upload",
    "UploadLimits",
]

PRIVATE = Fields({"cache-control": "no-store", "vary": "Authorization"})
"""Uploads and their responses belong to their owner alone (R36)."""


METHOD_OVERRIDE = "x-http-method-override"
# A POST can stand for one of these methods, and for no other.
_OVERRIDDEN = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH"})

_LIMITS = ("max_size", "min_size", "max_append_size", "min_append_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """The server's limits in bytes (C13). None means no limit."""

    max_size: int | None = None
    min_size: int | None = None
    """Content that is shorter and is sent whole gets no upload resource."""
    max_append_size: int | None = None
    min_append_size: int | None = None

    @classmethod
    def parse(cls, fields: Fields) -> UploadLimits:
        """Read ``Upload-Limit``. A malformed member sets no limit."""
        members = integer_members(fields, "upload-limit")
        return cls(**{name: members.get(name.replace("_", "-")) for name in _LIMITS})

    def field(self, lifetime: tuple[str, int] | None = None) -> str:
        """Return the value of ``Upload-Limit``.

        *lifetime* is the name of the member for the lifetime, and the seconds.
        """
        members: dict[str, int | bytes] = {}
        for name in _LIMITS:
            value: int | None = getattr(self, name)
            if value is not None:
                members[name.replace("_", "-")] = value
        if lifetime is not None:
            members[lifetime[0]] = lifetime[1]
        # An empty Dictionary cannot be sent. This member stands for "no limits".
        return format_dictionary(members or {"min-size": 0})


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
    request: RequestHead
    """The head of the request that began it, in any dialect."""


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


class Dialect:
    """The union: the dialect for a client without a marker."""

    takes_over: ClassVar[bool] = False
    """Whether a GET of the content ends a running writer. A HEAD always does."""
    awaits_target: ClassVar[bool] = True
    """Whether the request that completes an upload waits for the target's response.

    If not, the answer goes out as soon as the content is frozen.
    """

    @property
    def fields(self) -> Fields:
        """The fields of every final response to a request of this dialect."""
        return Fields()

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
                "X-HTTP-Method-Override names no method that a POST may stand for",
            )
        return override.upper()

    def needs_upload(self, head: RequestHead) -> bool:
        """Return whether a request to a target makes sense only on an upload's own URL."""
        return is_append(head)

    def check(self, head: RequestHead) -> None:
        """Judge a request before anything else happens. Raises :class:`PeerError`.

        The server calls it for requests to an upload's content and to a target.
        """

    def check_upload(self, head: RequestHead, began: RequestHead) -> None:
        """Judge a request to the content of an upload whose first request was *began*.

        Raises :class:`PeerError`.
        """

    # Requests.

    def creation(self, head: RequestHead, limits: UploadLimits) -> Creation:
        """Return what *head* begins on a target. Raises :class:`PeerError`."""
        check_whole(head)
        # In an upload's record this field would say that tus began it: see is_partial.
        marked = "tus-resumable" in head.fields
        plain = head.fields.without("tus-resumable") if marked else None
        return Creation(length=whole_length(head), fields=plain)

    def append(self, head: RequestHead, rules: AppendRules) -> Append:
        """Return what a PATCH with *head* adds. Raises :class:`PeerError`."""
        reader = patch_reader(
            head.fields.get("content-type"),
            head.fields,
            content_length=head.length,
            limits=rules.patch,
            lenient_unit=rules.lenient_unit,
        )
        return Append(reader=reader)

    # Answers.

    def announcement(self, upload: Upload) -> Interim | None:
        """Return the interim response that says where the upload is; None if there is none."""
        return None

    @property
    def shows_progress(self) -> bool:
        """Whether the server sends :meth:`progress` while content arrives."""
        return False

    def progress(self, offset: int) -> Interim:
        """Return the interim response that says that *offset* bytes are durable.

        Only dialects with :attr:`shows_progress` have it. Calling it on another one is
        a bug, so this method raises.
        """
        raise NotImplementedError("only a dialect with a word for it is asked")

    def created(self, upload: Upload) -> Reply:
        """Return the answer to a first request that leaves the upload incomplete.

        Only dialects whose :meth:`creation` can say that more will come have it.
        Without a marker the content's end is always the upload's end. Calling it on
        such a dialect is a bug, so this method raises.
        """
        raise NotImplementedError("without a marker the content's end is the upload's")

    def offset(self, upload: Upload) -> Reply:
        """Return the answer to HEAD (R12): ``Content-Length`` and ``Upload-Offset``
        tell how much arrived.
        """
        fields = self.content_fields(upload)
        return Reply(200, fields.plus({"content-length": str(upload.offset)}))

    def appended(self, upload: Upload) -> Reply:
        """Return the answer to a PATCH that leaves the upload incomplete (R17)."""
        return Reply(204, self.content_fields(upload))

    def completed(
        self, upload: Upload, recorded: Fields, *, created: bool
    ) -> Fields | Reply:
        """Return fields to add to the target's answer *recorded*, or another answer.

        *created* says that this answers the upload's first request, not a PATCH.
        """
        return Fields()

    def cancelled(self) -> Reply:
        """Return the answer to a DELETE (R25)."""
        return Reply(204, PRIVATE)

    def problem(self, error: PeerError, limits: UploadLimits) -> PeerError:
        """Return *error* as the dialect reports it."""
        return error

    def content_fields(self, upload: Upload) -> Fields:
        """Return the fields that all answers about the content share."""
        fields = {
            "etag": content_etag(upload.offset),
            "upload-offset": str(upload.offset),
            "upload-complete": "?1" if upload.is_complete else "?0",
            "upload-limit": upload.limits.field(("max-age", upload.lifetime)),
            "accept-patch": ACCEPT_PATCH,
        }
        if upload.length is not None:
            fields["upload-length"] = str(upload.length)
        return PRIVATE.plus(fields)
