"""Decide whether a patch may be applied to an upload. Nothing is done here.

Writes append (R16): a range must start where the content ends now. All statements about
the length must agree (B2, C9), also across several requests.

Statement numbers such as R16 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.ranges import ContentRange

__all__ = [
    "UploadProgress",
    "check_part",
    "excess_content",
    "length_after",
]


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """What is known about an upload's content. Sizes are in bytes.

    ``length`` is None until a request states it. ``max_length`` is the server's limit;
    None means no limit.
    """

    offset: int
    length: int | None
    max_length: int | None = None

    @property
    def is_whole(self) -> bool:
        return self.offset == self.length


def length_after(progress: UploadProgress, part: ContentRange) -> int | None:
    """Return the upload's length, with what *part* states.

    Raises :class:`PeerError` if two statements contradict each other (B2, B3, B7).
    """
    total = part.total
    if total is None:
        return progress.length
    if progress.length is not None and total != progress.length:
        raise PeerError(
            ProblemCode.INCONSISTENT_LENGTH,
            f"the length was stated as {progress.length} before, and now as {total}",
        )
    if progress.max_length is not None and total > progress.max_length:
        # B7: a 413 would say that a smaller patch could succeed.
        raise PeerError(
            ProblemCode.LENGTH_OVER_LIMIT,
            f"at most {progress.max_length} bytes are accepted",
        )
    if total < progress.offset:
        raise PeerError(
            ProblemCode.INCONSISTENT_LENGTH,
            f"more than {total} bytes have already been received",
        )
    return total


def check_part(
    progress: UploadProgress, part: ContentRange, size: int | None = None
) -> int | None:
    """Return the upload's length if *part* may be appended now.

    *size* is how many bytes will come, if that is known in advance. Raises
    :class:`PeerError`: 409 with the right offset if the range starts elsewhere (R16),
    422 if it goes beyond the length (B13).
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
                ProblemCode.LENGTH_OVER_LIMIT, f"at most {bound} bytes are accepted"
            )
        # B13: the range is well-formed, but the upload's present state does not allow
        # it.
        raise PeerError(
            ProblemCode.RANGE_BEYOND_LENGTH,
            f"the range ends at {part.last}, beyond the length of {length}",
        )
    if size is not None and length is not None and part.first + size > length:
        raise excess_content(length)
    return length


def excess_content(length: int) -> PeerError:
    """Return the 400 of C10: the content is longer than *length* bytes."""
    return PeerError(
        ProblemCode.EXCESS_CONTENT,
        f"the content goes beyond {length} bytes",
        close=True,
    )


def offset_mismatch(expected: int, provided: int) -> PeerError:
    """Return the 409 of R16 and C8. It tells the client where to go on."""
    return PeerError(
        ProblemCode.OFFSET_MISMATCH,
        f"the content ends at {expected}, the range starts at {provided}",
        fields=(("upload-offset", str(expected)), ("upload-complete", "?0")),
        members={"expected-offset": expected, "provided-offset": provided},
    )
