"""Patches with one range, and :func:`patch_reader`, which chooses a reader (R15).

``message/byterange`` is field lines, a blank line, and content. The media types of tus
and of RUFH carry content alone. Their range is in the request's own fields, so it is
known before the body is read.

    media type                        range from           all or nothing
    message/byterange                 the part's fields    no
    multipart/byteranges              each part's fields   yes (B8)
    application/byteranges            each part's fields   no
    application/partial-upload        Upload-Offset …      no (C8)
    application/offset+octet-stream   Upload-Offset        no (D5)

``application/byteranges`` is not all-or-nothing, although it can carry several parts,
as multipart can. It is a natural format for a single part, whose bytes should survive a
cut. And parts always append to one another here (R16).

Statement numbers such as R15 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.bhttp import BinaryReader
from trioresume.protocol.fields import parse_media_type, split_list
from trioresume.protocol.heads import Fields
from trioresume.protocol.multipart import MultipartReader
from trioresume.protocol.parts import (
    NO_FIELDS,
    PartEnd,
    PatchCut,
    PatchEnd,
    PatchEvent,
    PatchLimits,
    PatchReader,
    Steps,
    bad_patch,
)
from trioresume.protocol.ranges import ContentRange
from trioresume.protocol.structured import boolean_item, integer_item

__all__ = [
    "ACCEPT_PATCH",
    "BINARY",
    "MESSAGE",
    "MULTIPART",
    "OFFSET_STREAM",
    "PARTIAL_UPLOAD",
    "MessageReader",
    "OffsetReader",
    "patch_reader",
]

MESSAGE = "message/byterange"
MULTIPART = "multipart/byteranges"
BINARY = "application/byteranges"
PARTIAL_UPLOAD = "application/partial-upload"
OFFSET_STREAM = "application/offset+octet-stream"

ACCEPT_PATCH = f"{MESSAGE}, {MULTIPART}, {BINARY}, {PARTIAL_UPLOAD}, {OFFSET_STREAM}"
"""The value of ``Accept-Patch`` (RFC 5789, section 3.1)."""

_DEFAULT_LIMITS = PatchLimits()


def patch_reader(
    content_type: str | None,
    fields: Fields,
    *,
    content_length: int | None,
    limits: PatchLimits = _DEFAULT_LIMITS,
    lenient_unit: bool = False,
) -> PatchReader:
    """Return the reader for a PATCH whose ``Content-Type`` is *content_type*.

    *fields* are the request's fields. *content_length* is the body's length in bytes;
    None if the body is chunked. If it is known, many errors are found before any
    content is read. *lenient_unit* accepts ranges without a unit (B6). Raises
    :class:`PeerError`: 415 for any other media type, 400 for a request whose own fields
    make no sense.
    """
    media_type = None if content_type is None else parse_media_type(content_type)
    essence = None if media_type is None else media_type.essence
    if essence in (PARTIAL_UPLOAD, OFFSET_STREAM):
        return OffsetReader(
            fields,
            content_length=content_length,
            limits=limits,
            completes=_completeness(fields) if essence == PARTIAL_UPLOAD else None,
        )
    # A content coding would hide the patch itself, and this server undoes none (G16).
    # RFC 9110, section 12.5.3: the answer names the accepted codings.
    if split_list(fields.get("content-encoding") or ""):
        raise PeerError(
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            "a patch with a content coding is not supported",
            fields=(("Accept-Encoding", "identity"),),
        )
    if essence == MESSAGE:
        return MessageReader(limits, content_length, lenient_unit=lenient_unit)
    if essence == BINARY:
        return BinaryReader(limits, lenient_unit=lenient_unit)
    if essence == MULTIPART and media_type is not None:
        boundary = media_type.parameters.get("boundary")
        return MultipartReader(limits, boundary, lenient_unit=lenient_unit)
    raise PeerError(
        ProblemCode.UNSUPPORTED_MEDIA_TYPE,
        "the Content-Type is not one of the patch formats accepted",
        fields=(("Accept-Patch", ACCEPT_PATCH),),
    )


class _SingleReader(PatchReader):
    """The base of the formats with one range: content goes on to the body's end."""

    _started = False

    def _finish(self) -> Iterator[PatchEvent]:
        if not self._started:
            raise bad_patch("the patch ends within its header section")
        if self._is_short():
            yield PatchCut()
        else:
            yield PartEnd()
            yield PatchEnd()


class MessageReader(_SingleReader):
    """Reads ``message/byterange``. *content_length* is the whole body's length."""

    def __init__(
        self,
        limits: PatchLimits,
        content_length: int | None = None,
        *,
        lenient_unit: bool = False,
    ) -> None:
        super().__init__(limits, lenient_unit=lenient_unit)
        self._content_length = content_length
        if content_length is not None:
            # The header section takes no more than its limit.
            self.least_content = max(0, content_length - limits.max_header_size)

    def _parse(self) -> Steps[None]:
        fields, size = yield from self._header_section()
        available = None
        if self._content_length is not None:
            available = self._content_length - size
        yield self._begin(fields, available)
        self._started = True
        self.plain = None
        while True:
            yield from self._content((yield from self._some()))


class OffsetReader(_SingleReader):
    """Reads content alone. The request's fields say where it belongs.

    *completes* says whether the content's end is the upload's end. With None the length
    decides.
    """

    plain: int | None = None

    def __init__(
        self,
        fields: Fields,
        *,
        content_length: int | None,
        limits: PatchLimits,
        completes: bool | None,
    ) -> None:
        super().__init__(limits)
        offset = integer_item(fields, "upload-offset")
        if offset is None:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST, "Upload-Offset is missing or malformed"
            )
        self.completes = completes
        total = integer_item(fields, "upload-length")
        if self.completes and content_length is not None:
            ends_at = offset + content_length
            if total not in (None, ends_at):
                raise PeerError(
                    ProblemCode.INCONSISTENT_LENGTH,
                    "Upload-Length is not the end of the content",
                )
            total = ends_at
        if total is not None and offset > total:
            raise PeerError(
                ProblemCode.INCONSISTENT_LENGTH,
                "Upload-Offset lies beyond Upload-Length",
            )
        self.least_content = content_length or 0
        range_ = ContentRange(offset, None, total)
        self._start = self._begin_range(range_, NO_FIELDS, None, content_length)

    def _parse(self) -> Steps[None]:
        yield self._start
        self._started = True
        while True:
            yield from self._content((yield from self._some()))

    def _finish(self) -> Iterator[PatchEvent]:
        if not self._started:
            yield self._start
        self._started = True
        yield from super()._finish()

    def _too_long(self) -> PeerError:
        return PeerError(
            ProblemCode.EXCESS_CONTENT, "the content is longer than the stated length"
        )


def _completeness(fields: Fields) -> bool:
    completes = boolean_item(fields, "upload-complete")
    if completes is None:
        raise PeerError(
            ProblemCode.MALFORMED_REQUEST, "Upload-Complete is missing or malformed"
        )
    return completes
