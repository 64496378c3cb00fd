"""What a store whose content lies in an object store asks of its catalog.

The catalog of a cluster answers the same questions as :class:`~.contract.Store`, among them
``sealed_content`` and ``parts_of``. These are the further ones, about objects that any node may
read, write and delete.

Which object has a chunk
========================

A chunk's object is named by the chunk's digest and a *number*, so a name is used once: when a
chunk was deleted and comes back, its object gets a new number. Without this, a request to
delete the old object that was delayed somewhere could delete the new one.

A node may put a chunk, or find that its object exists, only while it *holds* the chunk::

    hold ──► put the object, if it is absent ──► apply(SealChunk): drops the hold

and a collector deletes an object only after the chunk was *condemned*::

    condemn ──► delete the object ──► forget

Both begin with a commit of the catalog, and these exclude each other:

* :meth:`ObjectCatalog.condemn` takes no chunk that is named, and none that is held.
* :meth:`ObjectCatalog.hold` of a condemned chunk makes a new number.
* :class:`~.values.SealChunk` is a conflict unless the chunk is named already, or this node
  holds it still. The catalog drops the holds of a node that is gone, so such a node cannot
  name a chunk when it comes back.

So while a chunk is named, nobody has ever asked for its object to be deleted. No clock is part
of this argument: a lease only decides how long a dead node's chunks stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trioresume.store.port.recipes import AnyRecipe, Digest
from trioresume.store.port.values import (
    Collected,
    ContentKey,
    OperationId,
    OperationRecord,
    SealChunk,
    TailPart,
)

__all__ = ["ChunkObject", "ContentState", "ObjectCatalog"]


@dataclass(frozen=True, slots=True)
class ChunkObject:
    """The object of one chunk, for as long as the chunk is known."""

    digest: Digest
    number: int


@dataclass(frozen=True, slots=True)
class ContentState:
    """Content under construction, as the catalog has it."""

    chunk_size: int
    generation: int
    """The generation of the operation's owner: see :mod:`.sharing`. The first one is 1."""
    prefix: int
    """How many chunks are sealed without a gap; ``prefix_bytes`` is the sum of their bytes."""
    prefix_bytes: int
    durable_offset: int
    """The recorded offset: at least ``prefix_bytes``."""
    beyond: tuple[int, ...] = ()
    """The indexes of the chunks that were sealed after a gap."""
    parts: tuple[TailPart, ...] = ()
    """Where the bytes from ``prefix_bytes`` to ``durable_offset`` lie."""

    @property
    def has_short_end(self) -> bool:
        """Whether the last sealed chunk is short: the content was finished, but not frozen."""
        return self.prefix_bytes < self.prefix * self.chunk_size


class ObjectCatalog(Protocol):
    """The questions and commits of a catalog about objects.

    All methods block, and raise :class:`StorageError` if the catalog cannot be reached in
    time. A commit that raised may have happened.
    """

    def operation(self, id: OperationId) -> OperationRecord | None: ...

    def content(self, key: ContentKey) -> ContentState | None:
        """Return the content of *key* if it is under construction."""
        ...

    def generation(self, id: OperationId) -> int:
        """Return the generation of the operation's owner; 0 if there is no operation."""
        ...

    def reopen(self, key: ContentKey, prefix: int, parts: tuple[TailPart, ...]) -> None:
        """Keep the first *prefix* chunks of *key*, which are sealed, and let go of the others.

        *parts* are the tail from then on, up to the recorded offset. This owner only; raises
        :class:`StaleWriter`.
        """
        ...

    def discard(self, key: ContentKey) -> None:
        """Drop the content of response *key*, which is under construction: it begins anew."""
        ...

    def piece(self, key: ContentKey, index: int) -> ChunkObject | None:
        """Return the object of chunk *index* of content under construction, if it is sealed."""
        ...

    def recipe(self, digest: Digest) -> AnyRecipe | None: ...

    def objects(self, digests: Sequence[Digest]) -> Mapping[Digest, ChunkObject]:
        """Return the objects of named chunks. A chunk that nothing names may be missing."""
        ...

    def hold(self, digests: Sequence[Digest]) -> list[ChunkObject]:
        """Hold the chunks, which are distinct, for this node, and return their objects.

        The hold lasts until a commit of :class:`SealChunk` that names the chunk, until
        :meth:`unhold`, or until this node is taken for dead. It need not survive a crash of
        the catalog, so the commit need not wait for the disk.
        """
        ...

    def unhold(self, digests: Sequence[Digest]) -> None:
        """Hold the chunks no longer, which were not named after all."""
        ...

    def knows_seal(self, seal: SealChunk) -> bool:
        """Return whether applying *seal* would change nothing, because that chunk is sealed.

        Also true if the content is under construction no longer.
        """
        ...

    def pin(self, digest: Digest) -> bool:
        """Spare the recipe from collection while it is read; False if it is being collected.

        Pins are counted, and end with the node at the latest.
        """
        ...

    def unpin(self, digest: Digest) -> None: ...

    def release_rows(self, limit: int) -> Collected:
        """Release up to *limit* rows that nothing refers to; ``chunks`` and ``bytes`` are 0."""
        ...

    def condemn(self, limit: int) -> list[tuple[ChunkObject, int]]:
        """Return up to *limit* chunks to delete, with their lengths in bytes.

        These are chunks that nothing names or holds, now condemned by this commit, and chunks
        that were condemned before by a node that may have died since.
        """
        ...

    def forget(self, chunks: Sequence[ChunkObject]) -> None:
        """Forget condemned chunks, whose objects are deleted."""
        ...

    def dropped_parts(self, limit: int) -> list[str]:
        """Return up to *limit* names of tail objects to delete."""
        ...

    def forget_parts(self, names: Sequence[str]) -> None:
        """Forget names of tail objects, which are deleted."""
        ...

    def known_objects(self, chunks: Sequence[ChunkObject]) -> set[ChunkObject]:
        """Return those that the catalog knows: named, held or condemned. For the sweep."""
        ...

    def known_parts(self, names: Sequence[str]) -> set[str]:
        """Return the names of tail objects that are recorded or are to be deleted."""
        ...
