"""Deleting objects that nothing needs: in two phases, and by a sweep.

Collection condemns a chunk in the catalog, deletes its object, and then forgets it. A node that
dies in between leaves a condemned chunk, which the next collection deletes again.
:mod:`trioresume.store.port.objects` says why this takes no chunk that a node needs.

The *sweep* looks at every object, and deletes those that no row can ever name. A chunk is in the
catalog before its object is put, and its number is used once, so a chunk object that the
catalog does not know was given up. A part of a tail is put before it is recorded. It can
be recorded only while its content is under construction, by an owner of its generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from trioresume.store.objects.bucket import (
    CHUNKS,
    TAILS,
    Bucket,
    ListedObject,
    chunk_name,
    chunk_of,
    key_and_generation,
)
from trioresume.store.port import Collected, ObjectCatalog

__all__ = ["Sweep", "collect_objects"]

_MOST_AT_ONCE = 1000
"""S3 deletes so many objects with one request."""
_YOUNG = 3600.0
"""Seconds: a part whose operation does not exist may be older than the operation by less."""


def collect_objects(catalog: ObjectCatalog, bucket: Bucket, limit: int) -> Collected:
    """Release up to *limit* rows and objects."""
    limit = min(limit, _MOST_AT_ONCE)
    rows = catalog.release_rows(limit)
    left = limit - rows.steps - rows.recipes
    condemned = catalog.condemn(left) if left > 0 else []
    if condemned:
        bucket.delete([chunk_name(chunk) for chunk, _ in condemned])
        catalog.forget([chunk for chunk, _ in condemned])
    left -= len(condemned)
    names = catalog.dropped_parts(left) if left > 0 else []
    if names:
        bucket.delete(names)
        catalog.forget_parts(names)
    return Collected(
        rows.recipes,
        len(condemned),
        sum(length for _, length in condemned),
        rows.steps + len(condemned) + len(names),
    )


class Sweep:
    """Walks once through all objects, in steps."""

    def __init__(
        self,
        catalog: ObjectCatalog,
        bucket: Bucket,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._bucket = bucket
        self._now = now
        self._left = [CHUNKS, TAILS]
        self._after = ""

    def advance(self, limit: int) -> Collected:
        """Look at up to *limit* objects; all zero when no object is left."""
        while self._left:
            found = self._bucket.list(
                self._left[0], self._after, min(limit, _MOST_AT_ONCE)
            )
            if not found:
                del self._left[0]
                self._after = ""
                continue
            self._after = found[-1].name
            gone = (
                self._unknown_chunks(found)
                if self._left[0] == CHUNKS
                else self._unknown_parts(found)
            )
            if gone:
                self._bucket.delete([each.name for each in gone])
            return Collected(bytes=sum(each.size for each in gone), steps=len(found))
        return Collected()

    def _unknown_chunks(self, found: list[ListedObject]) -> list[ListedObject]:
        chunks = {each.name: chunk_of(each.name) for each in found}
        known = self._catalog.known_objects(
            [chunk for chunk in chunks.values() if chunk is not None]
        )
        # Objects with other names are not ours.
        return [
            each
            for each in found
            if (chunk := chunks[each.name]) is not None and chunk not in known
        ]

    def _unknown_parts(self, found: list[ListedObject]) -> list[ListedObject]:
        known = self._catalog.known_parts([each.name for each in found])
        return [
            each for each in found if each.name not in known and self._is_left(each)
        ]

    def _is_left(self, part: ListedObject) -> bool:
        """Return whether nobody can record *part* any more."""
        named = key_and_generation(part.name)
        if named is None:
            return False  # not ours
        key, generation = named
        state = self._catalog.content(key)
        if state is not None:
            return generation < state.generation
        return part.modified_at < self._now() - _YOUNG
