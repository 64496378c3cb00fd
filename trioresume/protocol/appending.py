"""Whether a patch may be applied to an upload: decided from values, nothing done.

Writes append (R16): a range is accepted only where the content ends now. The
statements about the length must agree with each other (B2, C9), however many
requests they are spread over.
"""

from __future__ import annotations

from dataclasses import dataclass

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import ContentRange

__all__ = [
    "UploadProgress",
    "check_part",
    "content_etag",
    "excess_content",
    "length_after",
]


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """What is known of an upload's content. Sizes are in bytes.

    ``length`` is None until somebody states it. ``max_length`` is the server's
    limit, None for none.
    """

    offset: int
    length: int | None
    max_length: int | None = None

    @property
    def is_whole(self) -> bool:
        return self.offset == self.length


def content_etag(offset: int) -> str:
    """The strong validator of the received prefix: it changes with the offset (R20)."""
    return f'"{offset}"'


def length_after(progress: UploadProgress, part: ContentRange) -> int | None:
    """The length once *part* was believed. Raises when statements contradict (B2, B3, B7)."""
    total = part.total
    if total is None:
        return progress.length
    if progress.length is not None and total != progress.length:
        raise PeerError(
            ProblemCode.INCONSISTENT_LENGTH,
            f"the length was stated as {progress.length} before, and now as {total}",
        )
    if progress.max_length is not None and total > progress.max_length:
        # B7: 413 would say that this patch is too large and a smaller one might do.
        raise PeerError(
            ProblemCode.LENGTH_OVER_LIMIT,
            f"at most {progress.max_length} bytes are taken",
        )
    if total < progress.offset:
        raise PeerError(
            ProblemCode.INCONSISTENT_LENGTH,
            f"more than {total} bytes were received already",
        )
    return total


def check_part(
    progress: UploadProgress, part: ContentRange, size: int | None = None
) -> int | None:
    """The upload's length if *part* may be appended now; raises :class:`PeerError` if not.

    *size* is how many bytes will come, where that is known before they do. A range that starts elsewhere than the current offset is a 409 that tells the
    right one (R16); one that goes beyond the length is a 422 (B13).
    """
    length = length_after(progress, part)
    if part.first is None:
        return length
    if part.first != progress.offset:
        raise offset_mismatch(progress.offset, part.first)
    bound = length if length is not None else progress.max_length
    if part.last is not None and bound is not None and part.last >= bound:
        if length is None:
            raise PeerError(
                ProblemCode.LENGTH_OVER_LIMIT, f"at most {bound} bytes are taken"
            )
        # B13: well-formed, but not to be met in the state that the upload is in.
        raise PeerError(
            ProblemCode.RANGE_BEYOND_LENGTH,
            f"the range ends at {part.last}, beyond the length of {length}",
        )
    if size is not None and length is not None and part.first + size > length:
        raise excess_content(length)
    return length


def excess_content(length: int) -> PeerError:
    """The 400 of C10: more content than the upload's length, in bytes."""
    return PeerError(
        ProblemCode.EXCESS_CONTENT,
        f"the content goes beyond {length} bytes",
        close=True,
    )


def offset_mismatch(expected: int, provided: int) -> PeerError:
    """The 409 of R16 and C8, which tells where to go on."""
    return PeerError(
        ProblemCode.OFFSET_MISMATCH,
        f"the content ends at {expected}, the range starts at {provided}",
        fields=(("upload-offset", str(expected)), ("upload-complete", "?0")),
        members={"expected-offset": expected, "provided-offset": provided},
    )
