"""The server's side of tus 1.0.0, core and extensions: https://tus.io/protocols/resumable-upload.

A POST makes an upload and says how long it will be. PATCH requests then fill it. It is
complete when it has that length. Particular to tus are:

* The response to a PATCH is a 204, never the target's own. That one is at
  ``Response-Message-Location`` (D8). So the client does not wait for the target: it
  gets its answer as soon as the content is frozen.
* ``Upload-Metadata`` has the content's name and type. The target finds them in HTTP's
  own fields, ``Content-Type`` and ``Content-Disposition``, with the metadata unchanged
  beside them.
* *Partial* uploads are parts of a later upload. Only that upload uses them; no target
  is called for them. A *final* upload shares the content of its parts.
* Content with a checksum counts only after the checksum was verified.

Statement numbers such as D8 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.byteranges import OFFSET_STREAM, OffsetReader
from trioresume.protocol.dialects.seed.server import SeedServer
from trioresume.protocol.dialects.server import (
    METHOD_OVERRIDE,
    PRIVATE,
    Append,
    AppendRules,
    Creation,
    Reply,
    ServerDialect,
    Upload,
    shared_content_fields,
)
from trioresume.protocol.dialects.tus.fields import (
    CHECKSUM_ALGORITHMS,
    MARK,
    PARTIAL,
    VERSION,
    Checksum,
    joined_references,
    parse_metadata,
    representation_fields,
    stated_length,
    tus_integer,
)
from trioresume.protocol.dialects.upload_limits import UploadLimits
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
    "TusServer",
    "at_target",
    "is_partial",
    "shows_mark",
    "tus_discovery",
]

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
"""Faults for which tus has another status (E6)."""


def at_target(head: RequestHead, strict_metadata: bool) -> ServerDialect:
    """Return the dialect of a marked request to a target.

    tus defines one request to a target: the POST that begins an upload. Any other request
    there gets the plain answer: see :class:`MarkedOnly`.
    """
    if head.method != "POST" or METHOD_OVERRIDE in head.fields:
        return MARKED_ONLY
    return _STRICT_TUS if strict_metadata else TUS


def shows_mark(head: bytes) -> bool:
    """Whether a head that is no valid request has the line that marks tus (D1)."""
    return _MARKED_LINE.search(head) is not None


def tus_discovery(limits: UploadLimits) -> Fields:
    """Return what the answer to OPTIONS says about tus (D2)."""
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


class TusServer(ServerDialect):
    """tus 1.0.0. With *strict_metadata*, metadata that is not Base64 is refused."""

    name: ClassVar[str] = "tus"

    awaits_target: ClassVar[bool] = False

    def __init__(self, *, strict_metadata: bool = False) -> None:
        self._strict_metadata = strict_metadata

    fields = MARK

    def check(self, head: RequestHead) -> None:
        """Refuse another version of tus (D1)."""
        if head.fields.get(_MARK, VERSION) != VERSION:
            raise PeerError(
                ProblemCode.TUS_VERSION_NOT_SUPPORTED,
                f"this server supports only version {VERSION} of tus",
                fields=(("tus-version", VERSION),),
            )

    def check_upload(self, head: RequestHead, began: Fields) -> None:
        """Refuse to append to an upload that was made from parts (D7)."""
        is_final = _MARK in began and bool(joined_references(began))
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
                f"at most {limits.max_size} bytes are accepted",
            )
        if head.has_content:
            _check_media_type(head)
        if length is not None and (head.length or 0) > length:
            raise PeerError(
                ProblemCode.EXCESS_CONTENT, "the content is longer than Upload-Length"
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
                "a final upload takes its length from its parts, not from a field",
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
        reader = OffsetReader(
            head.fields,
            content_length=head.length,
            limits=rules.patch,
            completes=None,
        )
        return Append(reader=reader, check=Checksum.of(head.fields))

    # Answers.

    def created(self, upload: Upload) -> Reply:
        # R4: absolute, because aiotus does not resolve references.
        location = {"location": upload.absolute_content}
        return Reply(201, self._state(upload).plus(location))

    def offset(self, upload: Upload) -> Reply:
        """Return the seed's answer with the fields that tus adds (D4)."""
        fields = self.content_fields(upload)
        return Reply(200, fields.plus({"content-length": str(upload.offset)}))

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
        fields = shared_content_fields(upload).plus(self._about(upload))
        if upload.length is None:
            fields = fields.plus({"upload-defer-length": "1"})
        if _MARK not in upload.fields:
            return fields
        echoed = ("upload-metadata", "upload-concat")
        said = {name: upload.fields.get(name) for name in echoed}
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
        # A complete upload was handed to its target. A partial one waits for its use.
        if not upload.is_complete or is_partial(upload.fields):
            expires = format_http_date(int(upload.expires_at))
            fields = fields.plus({"upload-expires": expires})
        return fields


def _recorded_fields(fields: Fields, *, strict: bool) -> Fields:
    """Return the fields for the target: tus's own, and the HTTP fields they stand for.

    The POST's own ``Content-Type`` describes a piece of the upload, not the whole.
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
            f"the content of a tus PATCH has the media type {OFFSET_STREAM}",
            fields=(("accept-patch", OFFSET_STREAM),),
        )


TUS = TusServer()
"""The dialect that accepts any metadata."""

_STRICT_TUS = TusServer(strict_metadata=True)


class MarkedOnly(SeedServer):
    """A request to a target that has tus's mark, but is no request that tus defines.

    It is a plain request. Its answer has tus's version (D1), and a refusal is in tus's
    words. A PATCH, and a POST that stands for another method, are meant for an upload.
    """

    fields = MARK

    def check(self, head: RequestHead) -> None:
        TUS.check(head)

    def needs_upload(self, head: RequestHead) -> bool:
        stands_for_another = head.method == "POST" and METHOD_OVERRIDE in head.fields
        return stands_for_another or head.method == "PATCH"

    def problem(self, error: PeerError, limits: UploadLimits) -> PeerError:
        return TUS.problem(error, limits)


MARKED_ONLY = MarkedOnly()
"""The only instance, since it has no state."""


def is_partial(fields: Fields) -> bool:
    """Whether the request with *fields* began a partial upload (D7)."""
    if "tus-resumable" not in fields:
        return False
    return (fields.get("upload-concat") or "").strip(" \t") == PARTIAL
