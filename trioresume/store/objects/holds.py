"""The chunks that this node holds: see :mod:`trioresume.store.port.objects`.

Several uploads of one node may seal equal chunks at the same time. The catalog knows one hold
of the node for all of them, and drops it with the first commit that names the chunk. Until the
others are named as well, the chunk is held again after each such commit.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from trioresume.errors import StorageError
from trioresume.store.port import ChunkObject, ObjectCatalog
from trioresume.store.port.recipes import Digest

__all__ = ["Holds"]

_STRIPES = 64


class Holds:
    """Counts what is held. Calls for one chunk happen one after the other."""

    def __init__(self, catalog: ObjectCatalog) -> None:
        self._catalog = catalog
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]
        self._lock = threading.Lock()
        self._count: Counter[Digest] = Counter()
        self._objects: dict[Digest, ChunkObject] = {}
        self._owed: set[Digest] = set()
        """Chunks that are held no longer here, which the catalog was not told yet."""

    def _stripe(self, digest: Digest) -> threading.Lock:
        return self._stripes[digest[-1] % _STRIPES]

    def take(self, digest: Digest) -> ChunkObject:
        """Hold the chunk once more, and return its object. Raises :class:`StorageError`."""
        with self._stripe(digest):
            (chunk,) = self._catalog.hold([digest])
            with self._lock:
                known = self._objects.get(digest)
                if known is not None and known != chunk and self._count[digest]:
                    # The hold was lost, and the chunk collected: the other seals' object is
                    # gone. Nothing of this node may name the chunk as it was.
                    raise StorageError("this node was taken for dead; upload again")
                self._objects[digest] = chunk
                self._count[digest] += 1
            return chunk

    def give_up(self, digest: Digest) -> None:
        """Hold the chunk once less, which was not named. Never blocks for long."""
        if self._drop(digest):
            with self._lock:
                self._owed.add(digest)

    def settle(self) -> None:
        """Tell the catalog what was given up.

        If the catalog cannot be told, the hold ends with this node. That costs space only.
        """
        with self._lock:
            owed, self._owed = self._owed, set()
        for digest in owed:
            with self._stripe(digest):
                with self._lock:
                    is_held = self._count[digest] > 0
                if not is_held:
                    with suppress(StorageError):
                        self._catalog.unhold([digest])

    def named(self, digests: Iterable[Digest]) -> list[Digest]:
        """Note that commits have named the chunks, once each, and dropped the holds.

        Returns the chunks that are held by others here no longer, although they should be.
        """
        left = {digest for digest in digests if not self._drop(digest)}
        lost = []
        for digest in left:
            with self._stripe(digest):
                with self._lock:
                    known = self._objects.get(digest)
                if known is None:
                    continue  # given up meanwhile
                try:
                    (chunk,) = self._catalog.hold([digest])
                except StorageError:
                    lost.append(digest)
                else:
                    if chunk != known:
                        lost.append(digest)
        return lost

    def _drop(self, digest: Digest) -> bool:
        """Count one less; return whether that was the last."""
        with self._lock:
            self._count[digest] -= 1
            if self._count[digest] > 0:
                return False
            del self._count[digest]
            self._objects.pop(digest, None)
            return True
