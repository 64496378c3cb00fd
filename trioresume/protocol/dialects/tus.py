"""tus 1.0.0, core protocol and extensions: https://tus.io/protocols/resumable-upload.

An upload is made by a POST that says how long it will be, and only then filled, by
PATCH requests. It is complete when it is as long as was said. What is particular:

* A response to a PATCH is a 204 and never the target's own, which is found at
  ``Response-Message-Location`` (D8). So the client need not wait for the target
  either: it has its answer as soon as the content is frozen.
* What the content is called and what it is stands in ``Upload-Metadata``. The target
  finds it where HTTP has it, in ``Content-Type`` and ``Content-Disposition``; the
  metadata stays beside them as it came.
* *Partial* uploads are parts of a later one. Nobody but that one ever gets them: no
  target is called for them. A *final* upload shares the content of its parts.
* A checksum is verified before a byte of what it is about counts.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.byteranges import OFFSET_STREAM
from trioresume.protocol.dialects.base import (
    METHOD_OVERRIDE,
    PRIVATE,
    Append,
    AppendRules,
    Creation,
    Dialect,
    Reply,
    Upload,
    UploadLimits,
)
from trioresume.protocol.dialects.tus_fields import (
    CHECKSUM_ALGORITHMS,
    Checksum,
    is_partial,
    joined_references,
    parse_metadata,
    representation_fields,
    stated_length,
    tus_integer,
)
from trioresume.protocol.fields import (
    format_http_date,
    parse_media_type,
)
from trioresume.protocol.heads import Fields, RequestHead

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "EXTENSIONS",
    "TUS",
    "VERSION",
    "Tus",
    "recognise",
    "shows_mark",
    "tus_discovery",
]

VERSION = "1.0.0"
EXTENSIONS = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "checksum-trailer",
    "termination",
    "concatenation",
)

_MARK = "tus-resumable"

_MARKED_LINE = re.compile(rb"^tus-resumable[ \t]*:", re.IGNORECASE | re.MULTILINE)

_WORDS: Mapping[ProblemCode, ProblemCode] = {
    ProblemCode.EXCESS_CONTENT: ProblemCode.CONTENT_TOO_LARGE,
    ProblemCode.LENGTH_OVER_LIMIT: ProblemCode.CONTENT_TOO_LARGE,
}
"""Faults for which tus has another status (section E, "too long")."""


def recognise(
    head: RequestHead, *, on_upload: bool, strict_metadata: bool = False
) -> Dialect | None:
    """The dialect of a request that is marked as tus, else None.

    tus defines one request to a target: the POST that begins an upload. Any other request
    there gets the plain answer, see :class:`MarkedOnly`.

    OPTIONS is nobody's: it carries no version (D1), and its answer tells of all. A
    PATCH with tus's media type alone is not tus, whose requests are all marked (D1): it
    is one of the union's formats (R15), and gets the target's response (R17).
    """
    if _MARK not in head.fields or head.method == "OPTIONS":
        return None
    begins = head.method == "POST" and METHOD_OVERRIDE not in head.fields
    if not (on_upload or begins):
        return MARKED_ONLY
    return _STRICT_TUS if strict_metadata else TUS


def shows_mark(head: bytes) -> bool:
    """Whether a head that cannot be read as a request has the line that marks tus (D1)."""
    return _MARKED_LINE.search(head) is not None


def tus_discovery(limits: UploadLimits) -> Fields:
    """What an answer to OPTIONS tells of tus (D2)."""
    fields = Fields(
        {
            "tus-version": VERSION,
            "tus-extension": ",".join(EXTENSIONS),
            "tus-checksum-algorithm": ",".join(CHECKSUM_ALGORITHMS),
        }
    )
    if limits.max_size is None:
        return fields
    return fields.plus({"tus-max-size": str(limits.max_size)})


class Tus(Dialect):
    """tus 1.0.0. *strict_metadata*: whether metadata that is not Base64 is refused."""

    awaits_target: ClassVar[bool] = False

    def __init__(self, *, strict_metadata: bool = False) -> None:
        self._strict_metadata = strict_metadata

    @property
    def fields(self) -> Fields:
        return Fields({_MARK: VERSION})

    def check(self, head: RequestHead) -> None:
        """D1: of another version nothing is processed."""
        if head.fields.get(_MARK, VERSION) != VERSION:
            raise PeerError(
                ProblemCode.TUS_VERSION_NOT_SUPPORTED,
                f"tus is spoken in version {VERSION}",
                fields=(("tus-version", VERSION),),
            )

    def check_upload(self, head: RequestHead, began: RequestHead) -> None:
        """D7: nothing is added to what was put together from parts."""
        is_final = _MARK in began.fields and bool(joined_references(began.fields))
        if is_final and self.method(head) == "PATCH":
            raise PeerError(ProblemCode.FORBIDDEN, "a final upload takes no content")

    # Requests.

    def creation(self, head: RequestHead, limits: UploadLimits) -> Creation:
        references = joined_references(head.fields)
        recorded = _recorded_fields(head.fields, strict=self._strict_metadata)
        if references is not None:
            return self._final(head, references, recorded)
        length = stated_length(head.fields)
        if limits.max_size is not None and (length or 0) > limits.max_size:
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                f"at most {limits.max_size} bytes are taken",
            )
        if head.has_content:
            _check_media_type(head)
        if length is not None and (head.length or 0) > length:
            raise PeerError(
                ProblemCode.EXCESS_CONTENT, "the content goes beyond Upload-Length"
            )
        return Creation(
            length=length,
            completes=None,
            offers=True,
            check=Checksum.of(head.fields),
            fields=recorded,
        )

    def _final(
        self, head: RequestHead, references: tuple[str, ...], recorded: Fields
    ) -> Creation:
        if "upload-length" in head.fields or "upload-defer-length" in head.fields:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST,
                "the length of a final upload is that of its parts",
            )
        if head.has_content:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST, "a final upload takes no content"
            )
        return Creation(
            length=None,
            completes=None,
            offers=True,
            fields=recorded,
            joins=references,
        )

    def append(self, head: RequestHead, rules: AppendRules) -> Append:
        _check_media_type(head)
        for name in ("upload-offset", "upload-length"):
            value = head.fields.get(name)
            if value is not None:
                tus_integer(value, what=name.title())
        check = Checksum.of(head.fields)
        return replace(super().append(head, rules), check=check)

    # Answers.

    def created(self, upload: Upload) -> Reply:
        # R4: absolute, because aiotus does not resolve references.
        location = {"location": upload.absolute_content}
        return Reply(201, self._state(upload).plus(location))

    def offset(self, upload: Upload) -> Reply:
        """D4, as for everyone else with what tus adds to it."""
        return Reply(
            200,
            self.content_fields(upload).plus({"content-length": str(upload.offset)}),
        )

    def appended(self, upload: Upload) -> Reply:
        return Reply(204, self._state(upload))

    def completed(
        self, upload: Upload, recorded: Fields, *, created: bool
    ) -> Fields | Reply:
        return self.created(upload) if created else self.appended(upload)

    def problem(self, error: PeerError, limits: UploadLimits) -> PeerError:
        problem = _WORDS.get(error.problem, error.problem)
        unsaid = ("upload-complete", "upload-limit", "accept-patch")
        fields = [line for line in error.fields if line[0].lower() not in unsaid]
        if problem is ProblemCode.UNSUPPORTED_MEDIA_TYPE:
            fields.append(("accept-patch", OFFSET_STREAM))
        if problem is ProblemCode.CONTENT_TOO_LARGE and limits.max_size is not None:
            fields.append(("tus-max-size", str(limits.max_size)))
        return replace(error, problem=problem, fields=tuple(fields))

    def content_fields(self, upload: Upload) -> Fields:
        fields = super().content_fields(upload)
        fields = fields.without("upload-complete", "upload-limit", "accept-patch")
        fields = fields.without("upload-offset").plus(self._about(upload))
        if upload.length is None:
            fields = fields.plus({"upload-defer-length": "1"})
        if _MARK not in upload.request.fields:
            return fields
        echoed = ("upload-metadata", "upload-concat")
        said = {name: upload.request.fields.get(name) for name in echoed}
        return fields.plus({n: value for n, value in said.items() if value is not None})

    def _state(self, upload: Upload) -> Fields:
        return PRIVATE.plus(self._about(upload))

    def _about(self, upload: Upload) -> Fields:
        fields = Fields(
            {
                "upload-offset": str(upload.offset),
                "response-message-location": upload.message,
            }
        )
        # What is complete was handed to its target; a part waits here to be used.
        if not upload.is_complete or is_partial(upload.request.fields):
            expires = format_http_date(upload.expires_at)
            fields = fields.plus({"upload-expires": expires})
        return fields


def _recorded_fields(fields: Fields, *, strict: bool) -> Fields:
    """What the target gets to see: tus's fields as they came, and what HTTP has for them.

    The POST's own ``Content-Type`` is that of a piece of the upload, not of the whole.
    """
    metadata = parse_metadata(fields.get("upload-metadata") or "", strict=strict)
    about_the_whole = representation_fields(metadata)
    about_the_post = ("content-type", "content-disposition", "upload-checksum")
    return fields.without(*about_the_post).plus(about_the_whole)


def _check_media_type(head: RequestHead) -> None:
    media_type = parse_media_type(head.fields.get("content-type") or "")
    if media_type is None or media_type.essence != OFFSET_STREAM:
        raise PeerError(
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            f"content comes as {OFFSET_STREAM}",
            fields=(("accept-patch", OFFSET_STREAM),),
        )


TUS = Tus()
"""The dialect, which takes metadata as it comes."""

_STRICT_TUS = Tus(strict_metadata=True)


class MarkedOnly(Dialect):
    """A request to a target that says that it is tus, and is none that tus defines.

    It is a plain request, and its answer has tus's version (D1), and tus's words where it
    is refused. A PATCH, and a POST that stands for another method, are meant for an upload.
    """

    @property
    def fields(self) -> Fields:
        return TUS.fields

    def check(self, head: RequestHead) -> None:
        TUS.check(head)

    def needs_upload(self, head: RequestHead) -> bool:
        stands_for_another = head.method == "POST" and METHOD_OVERRIDE in head.fields
        return stands_for_another or head.method == "PATCH"

    def problem(self, error: PeerError, limits: UploadLimits) -> PeerError:
        return TUS.problem(error, limits)


MARKED_ONLY = MarkedOnly()
"""The only one: it has no state."""
