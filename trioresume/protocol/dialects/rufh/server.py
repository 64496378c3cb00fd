"""The server's side of *Resumable Uploads for HTTP*, section C.

A request begins an upload if it says whether its content is all there is
(``Upload-Complete``). The target's own response ends the upload, whichever request
completed it; ``?1`` marks this response. All other responses are the upload resource's:
``?0``.

The table of the drafts' differences is in
:mod:`trioresume.protocol.dialects.rufh.versions`. Two fields go out more often than the
newest draft asks, because existing clients look for them: ``Upload-Offset`` on each
answer that is not an error (required up to interop version 6, expected by
tus-js-client), and ``Location`` on each answer to the first request.

Statement numbers such as C3 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.byteranges import (
    ACCEPT_PATCH,
    BINARY,
    MESSAGE,
    MULTIPART,
    PARTIAL_UPLOAD,
    OffsetReader,
)
from trioresume.protocol.dialects.rufh.versions import (
    INTEROP_VERSION,
    UNVERSIONED,
    VERSIONS,
    Version,
)
from trioresume.protocol.dialects.server import (
    METHOD_OVERRIDE,
    PRIVATE,
    Append,
    AppendRules,
    Creation,
    Interim,
    Reply,
    ServerDialect,
    Upload,
    check_once,
    essence_of,
    shared_content_fields,
)
from trioresume.protocol.dialects.upload_limits import UploadLimits
from trioresume.protocol.digests import ContentDigest
from trioresume.protocol.heads import UPLOAD_RESUMPTION_SUPPORTED, Fields, RequestHead
from trioresume.protocol.structured import integer_item

__all__ = ["RufhServer", "recognise"]

_NAMES_RANGE = frozenset({BINARY, MESSAGE, MULTIPART})
_APPEND_FIELDS = ("upload-offset", "upload-complete", "upload-incomplete")
# "All methods are allowed with the exception of" these (draft -01, section 4); later
# drafts speak of methods that allow content.
_NEVER_CREATES = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})


def recognise(
    head: RequestHead, *, on_upload: bool, any_interop_version: bool
) -> RufhServer | None:
    """Return the dialect if the request is in one of RUFH's versions, else None."""
    fields = head.fields
    dialect: RufhServer | None = None
    if INTEROP_VERSION in fields:
        dialect = _VERSIONED.get(integer_item(fields, INTEROP_VERSION))
    if on_upload:
        if dialect is None and "content-type" in fields:
            appends = essence_of(fields) == PARTIAL_UPLOAD
            return _UNVERSIONED[any_interop_version] if appends else None
        return dialect
    if dialect is None:
        dialect = _UNVERSIONED[any_interop_version]
    version = dialect.version
    if head.method in _NEVER_CREATES or version.completeness_field not in fields:
        return None
    return None if version.completeness(fields) is None else dialect


class RufhServer(ServerDialect):
    """One version of RUFH. *interims* says whether 104s may be sent (C3)."""

    name: ClassVar[str] = "rufh"

    takes_over: ClassVar[bool] = True

    def __init__(self, version: Version, *, interims: bool) -> None:
        self.version = version
        self._interims = interims
        self.fields = version.fields
        self.shows_progress = interims and version.shows_progress

    def check(self, head: RequestHead) -> None:
        if head.method not in _NEVER_CREATES:
            check_once(head.fields)
            if self.version.contradicted(head.fields):
                raise PeerError(
                    ProblemCode.MALFORMED_REQUEST,
                    "Upload-Complete and Upload-Incomplete belong to different draft"
                    " versions, and one says that more content is to come",
                )
        if self.version.forbids_fields and head.method in ("HEAD", "DELETE"):
            # The Upload-Length of an offset retrieval is forbidden by -05 alone.
            for name in _APPEND_FIELDS:
                if name in head.fields:
                    raise PeerError(
                        ProblemCode.MALFORMED_REQUEST,
                        f"{name} does not belong to {head.method}",
                    )

    # Requests.

    def needs_upload(self, head: RequestHead) -> bool:
        stands_for_another = head.method == "POST" and METHOD_OVERRIDE in head.fields
        return stands_for_another or super().needs_upload(head)

    def creation(self, head: RequestHead, limits: UploadLimits) -> Creation:
        self._check_beginning(head.fields)
        completes = self.version.completeness(head.fields)
        length = integer_item(head.fields, "upload-length")
        if completes and head.length is not None:
            if length not in (None, head.length):
                raise PeerError(
                    ProblemCode.INCONSISTENT_LENGTH,
                    "Upload-Length is not the length of the content",
                )
            length = head.length
        elif length is not None and (head.length or 0) > length:
            raise PeerError(
                ProblemCode.INCONSISTENT_LENGTH,
                "the content is longer than Upload-Length",
            )
        self._check_size(head, limits, bool(completes))
        small = (
            completes
            and length is not None
            and limits.min_size is not None
            and length < limits.min_size
        )
        return Creation(
            length=length,
            completes=completes,
            explicit_completion=True,
            offers=not small,
            max_content=limits.max_append_size,
            check=ContentDigest.of(head.fields),
            fields=self._recorded_fields(head.fields),
        )

    def _recorded_fields(self, fields: Fields) -> Fields | None:
        """Drop a ``Content-Type`` that describes the request and not the content.

        tus-js-client sends it also with the request that begins an upload. Returns None
        if nothing has to be dropped.
        """
        if essence_of(fields) != PARTIAL_UPLOAD:
            return None
        return fields.without("content-type")

    def _check_beginning(self, fields: Fields) -> None:
        """Refuse content that does not begin an upload, and tus's partial uploads.

        ``Upload-Defer-Length`` is ignored, because tus-js-client sends it here too.
        """
        misplaced = "upload-concat" if "upload-concat" in fields else None
        if integer_item(fields, "upload-offset") not in (None, 0):
            misplaced = "upload-offset"
        if misplaced is not None:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST,
                f"{misplaced.title()} does not belong to a request that begins an"
                " upload",
            )

    def append(self, head: RequestHead, rules: AppendRules) -> Append:
        if self.version.needs_media_type:
            self._check_media_type(head)
        elif essence_of(head.fields) in _NAMES_RANGE:
            # This content is a document about the upload's content, not that content itself.
            raise self._wrong_media_type()
        completes = self.version.completeness(head.fields)
        if completes is None:
            if not self.version.defaults_to_complete:
                raise PeerError(
                    ProblemCode.MALFORMED_REQUEST,
                    "Upload-Complete is missing or malformed",
                )
            completes = True
        self._check_size(head, rules.limits, completes)
        reader = OffsetReader(
            head.fields,
            content_length=head.length,
            limits=rules.patch,
            completes=completes,
        )
        return Append(
            reader=reader,
            max_content=rules.limits.max_append_size,
            check=ContentDigest.of(head.fields),
        )

    def _check_media_type(self, head: RequestHead) -> None:
        if essence_of(head.fields) != PARTIAL_UPLOAD:
            raise self._wrong_media_type()

    def _wrong_media_type(self) -> PeerError:
        return PeerError(
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            f"an append has the media type {PARTIAL_UPLOAD}",
            fields=(("accept-patch", ACCEPT_PATCH),),
        )

    def _check_size(
        self, head: RequestHead, limits: UploadLimits, completes: bool
    ) -> None:
        """Check the request's size against the limits (C13), as far as the head tells it."""
        size = head.length
        if size is None:
            return
        if limits.max_append_size is not None and size > limits.max_append_size:
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                f"a request may have at most {limits.max_append_size} bytes of content",
            )
        least = limits.min_append_size
        if least is not None and 0 < size < least and not completes:
            raise PeerError(
                ProblemCode.APPEND_TOO_SMALL,
                f"a request that does not complete the upload needs at least {least} bytes",
            )

    # Answers.

    def announcement(self, upload: Upload) -> Interim | None:
        if not self._interims:
            return None
        fields = self.fields.plus({"location": upload.absolute_content})
        return Interim(UPLOAD_RESUMPTION_SUPPORTED, fields.plus(self._limit(upload)))

    def progress(self, offset: int) -> Interim:
        fields = self.fields.plus({"upload-offset": str(offset)})
        return Interim(UPLOAD_RESUMPTION_SUPPORTED, fields)

    def created(self, upload: Upload) -> Reply:
        fields = PRIVATE.plus(self._state(upload))
        fields = fields.plus({"location": upload.absolute_content})
        return Reply(201, fields.plus(self._limit(upload)))

    def offset(self, upload: Upload) -> Reply:
        fields = self.content_fields(upload)
        if self.version.head_status == 200:
            fields = fields.plus({"content-length": str(upload.offset)})
        return Reply(self.version.head_status, fields)

    def appended(self, upload: Upload) -> Reply:
        return Reply(self.version.partial_status, self.content_fields(upload))

    def completed(
        self, upload: Upload, recorded: Fields, *, created: bool
    ) -> Fields | Reply:
        fields = self._state(replace(upload, is_complete=True))
        # No PRIVATE here: the target's response says whether it may be cached.
        if created and "location" not in recorded:
            fields = fields.plus({"location": upload.absolute_content})
        return fields

    def problem(self, error: PeerError, limits: UploadLimits) -> PeerError:
        problem = error.problem
        if problem is ProblemCode.GONE and self.version.forgets:
            problem = ProblemCode.NOT_FOUND
        if (
            problem is ProblemCode.UPLOAD_COMPLETE
            and self.version.refuses_completed_with_400
        ):
            problem = ProblemCode.COMPLETED_UPLOAD
        fields = [
            (name, value)
            for name, value in error.fields
            if name.lower() != "upload-complete"
        ]
        fields.append(self.version.completeness_line(complete=False))
        if problem in (ProblemCode.CONTENT_TOO_LARGE, ProblemCode.APPEND_TOO_SMALL):
            fields.append(("upload-limit", limits.field()))
        return replace(error, problem=problem, fields=tuple(fields))

    @property
    def invalidated_by(self) -> frozenset[ProblemCode]:
        if self.version.invalidates:
            return frozenset({ProblemCode.EXCESS_CONTENT})
        return frozenset()

    def content_fields(self, upload: Upload) -> Fields:
        fields = shared_content_fields(upload).plus(self._state(upload))
        return fields.plus({"accept-patch": ACCEPT_PATCH}).plus(self._limit(upload))

    def _state(self, upload: Upload) -> Fields:
        return Fields(
            [
                ("upload-offset", str(upload.offset)),
                self.version.completeness_line(complete=upload.is_complete),
            ]
        )

    def _limit(self, upload: Upload) -> Fields:
        if not self.version.limits:
            return Fields()
        lifetime = (self.version.lifetime_limit, upload.lifetime)
        return Fields({"upload-limit": upload.limits.field(lifetime)})


_VERSIONED: dict[int | None, RufhServer] = {
    number: RufhServer(version, interims=True) for number, version in VERSIONS.items()
}
_UNVERSIONED = {
    may_interim: RufhServer(UNVERSIONED, interims=may_interim)
    for may_interim in (False, True)
}
