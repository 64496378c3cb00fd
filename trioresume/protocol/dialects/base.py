"""What the server asks of a dialect, answered as for a client without a marker."""

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
"""Uploads and their responses are their owner's alone (R36)."""


METHOD_OVERRIDE = "x-http-method-override"
# A browser's or a proxy's POST can stand for any of these, and for nothing else.
_OVERRIDDEN = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH"})

_LIMITS = ("max_size", "min_size", "max_append_size", "min_append_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """The server's limits, in bytes and seconds; None for none (C13)."""

    max_size: int | None = None
    min_size: int | None = None
    """Shorter content that is sent whole gets no upload resource."""
    max_append_size: int | None = None
    min_append_size: int | None = None

    @classmethod
    def parse(cls, fields: Fields) -> UploadLimits:
        """What an ``Upload-Limit`` says; a member that is malformed sets no limit."""
        members = integer_members(fields, "upload-limit")
        return cls(**{name: members.get(name.replace("_", "-")) for name in _LIMITS})

    def field(self, lifetime: tuple[str, int] | None = None) -> str:
        """The value of ``Upload-Limit``; *lifetime* is the member for it, and seconds."""
        members: dict[str, int | bytes] = {}
        for name in _LIMITS:
            value: int | None = getattr(self, name)
            if value is not None:
                members[name.replace("_", "-")] = value
        if lifetime is not None:
            members[lifetime[0]] = lifetime[1]
        # An empty Dictionary cannot be sent; this is what stands for "no limits".
        return format_dictionary(members or {"min-size": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload as a dialect may speak of it. What is in it may be announced."""

    content: str
    """A URI reference of the upload (RCL): path-absolute unless configured otherwise."""
    absolute_content: str
    """The same as an absolute URI, as far as the server can tell it."""
    message: str
    """A URI reference of the response message (RML)."""
    offset: int
    """Durable bytes."""
    length: int | None
    is_complete: bool
    """Whether the content has ended; the target may still be at work."""
    lifetime: int
    """Seconds for which the upload is kept at least, without a further request."""
    expires_at: float
    """The Unix second until when that is."""
    limits: UploadLimits
    request: RequestHead
    """The head of the request that began it, in whatever dialect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """What a request to a target begins."""

    length: int | None
    """Bytes of the whole, as stated; None if not."""
    completes: bool | None = True
    """Whether the end of the request's content ends the upload; None: at the length."""
    explicit_completion: bool = False
    """Whether reaching the length is not enough."""
    offers: bool = False
    """Whether the dialect itself makes it resumable, without ``Prefer: resume``."""
    max_content: int | None = None
    """Most bytes that this request may carry."""
    check: ContentCheck | None = None
    fields: Fields | None = None
    """What is recorded, and shown to the target, in the place of the request's fields."""
    joins: tuple[str, ...] | None = None
    """The URI references of uploads whose content, in this order, is this one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendRules:
    """The settings that reading a PATCH depends on."""

    patch: PatchLimits
    lenient_unit: bool
    limits: UploadLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """What a PATCH of an upload's content adds; ``reader.completes`` says how it ends."""

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
    """A final response of the protocol's own, as opposed to the target's."""

    status: int
    fields: Fields
    body: bytes = b""


class Dialect:
    """The union: what is said to, and understood of, a client without a marker."""

    takes_over: ClassVar[bool] = False
    """Whether a GET of the content ends a running writer, as HEAD does anyway."""
    awaits_target: ClassVar[bool] = True
    """Whether the request that completes an upload waits for the target's response.

    If not, it is answered as soon as the content is frozen.
    """

    @property
    def fields(self) -> Fields:
        """What every final response to a request of this dialect carries."""
        return Fields()

    @property
    def invalidated_by(self) -> frozenset[ProblemCode]:
        """Problems of an append after which the upload cannot go on at all."""
        return frozenset()

    def method(self, head: RequestHead) -> str:
        """The method that is meant by a request on an operation's resources.

        There a POST may stand for another method (D3), in every dialect: clients of
        Resumable Uploads for HTTP use the field as well. Raises :class:`PeerError` (400).
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
        """Whether a request to a target makes sense on an upload's own URL only."""
        return is_append(head)

    def check(self, head: RequestHead) -> None:
        """Judge a request before anything else is done for it. Raises :class:`PeerError`.

        Called for requests on an upload's content and for those to a target.
        """

    def check_upload(self, head: RequestHead, began: RequestHead) -> None:
        """Judge a request on the content of an upload that *began* was the first of.

        Raises :class:`PeerError`.
        """

    # Requests.

    def creation(self, head: RequestHead, limits: UploadLimits) -> Creation:
        """What *head* begins, on a target. Raises :class:`PeerError`."""
        check_whole(head)
        # In a record this mark says that tus began the upload: see is_partial.
        marked = "tus-resumable" in head.fields
        plain = head.fields.without("tus-resumable") if marked else None
        return Creation(length=whole_length(head), fields=plain)

    def append(self, head: RequestHead, rules: AppendRules) -> Append:
        """What a PATCH with *head* adds. Raises :class:`PeerError`."""
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
        """Tell at once where the upload is, if the dialect has words for it."""
        return None

    @property
    def shows_progress(self) -> bool:
        """Whether :meth:`progress` is to be sent while content arrives."""
        return False

    def progress(self, offset: int) -> Interim:
        """Tell that *offset* bytes are durable. Of dialects with :attr:`shows_progress`.

        Nothing is missing here: to ask another dialect would be a bug, and raises.
        """
        raise NotImplementedError("only a dialect with a word for it is asked")

    def created(self, upload: Upload) -> Reply:
        """The first request's content is over, and the upload is not complete.

        Of dialects whose :meth:`creation` can say that more is to come. Without a marker
        the content's end is the upload's, whatever the request: nothing is missing here,
        to ask such a dialect would be a bug, and raises.
        """
        raise NotImplementedError("without a marker the content's end is the upload's")

    def offset(self, upload: Upload) -> Reply:
        """R12: how much arrived, as ``Content-Length`` and as ``Upload-Offset``."""
        fields = self.content_fields(upload)
        return Reply(200, fields.plus({"content-length": str(upload.offset)}))

    def appended(self, upload: Upload) -> Reply:
        """R17: a PATCH is over, and the upload is not complete."""
        return Reply(204, self.content_fields(upload))

    def completed(
        self, upload: Upload, recorded: Fields, *, created: bool
    ) -> Fields | Reply:
        """The target has answered with *recorded*: further fields, or another answer.

        *created* tells the first request's answer from a PATCH's.
        """
        return Fields()

    def cancelled(self) -> Reply:
        """R25: the upload is gone."""
        return Reply(204, PRIVATE)

    def problem(self, error: PeerError, limits: UploadLimits) -> PeerError:
        """*error* in the dialect's words."""
        return error

    def content_fields(self, upload: Upload) -> Fields:
        """What every answer about the content has in common."""
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
