"""Find the parts of a concatenation (D7; D and R are in docs/supported-protocols.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode
from trioresume.server.uploads.locations import Resource, locate_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trioresume.server.uploads.registry import Registry
    from trioresume.store.port import Content

__all__ = ["find_parts"]


async def find_parts(
    operations: Registry, references: Sequence[str], principal: str | None
) -> tuple[Content, ...]:
    """Return the contents of the partial uploads that *references* name, in their order.

    Raises :class:`PeerError`: 400 if a reference names anything but a partial upload of
    *principal*, without saying what it names (R35); 409 if a part is not finished.
    """
    found = {
        reference: await _find_part(operations, reference, principal)
        for reference in dict.fromkeys(references)
    }
    return tuple(part for reference in references for part in found[reference])


async def _find_part(
    operations: Registry, reference: str, principal: str | None
) -> tuple[Content, ...]:
    located = locate_reference(operations.config, reference)
    if located is None or located[1] is not Resource.CONTENT:
        raise _no_part()
    part = await operations.visit(located[0], principal)
    if part is None:
        raise _no_part()
    try:
        if not part.is_partial:
            raise _no_part()
        if part.is_whole:
            part.complete()
        if part.is_receiving:
            raise PeerError(
                ProblemCode.CONFLICT, "a partial upload is not complete yet"
            )
        await part.outcome()
        if part.record.content is None:
            raise _no_part()
        storage = operations.storage
        return await storage.run(storage.store.parts_of, part.record.content)
    finally:
        operations.leave(part)


def _no_part() -> PeerError:
    return PeerError(
        ProblemCode.MALFORMED_REQUEST,
        "Upload-Concat names a resource that is not a partial upload",
    )
