"""Digests and recipes: the names of content.

A *digest* is a multihash: two bytes that say "BLAKE3, 32 bytes" (0x1e 0x20) and
then the hash. So the algorithm is part of the name and can change one day.
A chunk's digest is the digest of its bytes. A *recipe* lists the chunks of finished
content. The digest of the recipe's serialised form names the content. Equal
content that is cut at the same chunk size has the same recipe, so the digest serves
as a strong validator (RFC 9110, section 8.8.1).

Serialised form, msgpack, keys in this order::

    {"v": 1, "chunk": chunk size, "len": length, "chunks": concatenated digests}

Content that was joined from other contents (concatenation in tus) has a *joined
recipe*, which lists their recipes instead of chunks. So the cost of joining depends on
the number of the parts and not on their size::

    {"v": 2, "len": length, "lens": lengths of the parts, "parts": concatenated digests}

Parts are never joined recipes themselves, so a reader looks up at most two recipes. The
positions of the cuts between the parts are part of the name. So equal bytes that were
joined differently have different digests. Equal digests always mean equal bytes.

Content of more than :data:`PART_CHUNKS` chunks is named by a joined recipe as well. Each
of its parts is the recipe of that many chunks, in order; the last part has the rest.
The parts are made while the content arrives. So the work at its end hardly depends on its
size: a tebibyte has 256 parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NewType

import msgpack
from blake3 import blake3

from trioresume.errors import FormatVersionUnsupported

__all__ = [
    "DIGEST_LENGTH",
    "PART_CHUNKS",
    "AnyRecipe",
    "Digest",
    "JoinedRecipe",
    "Recipe",
    "cut",
    "digest_of",
    "join",
    "parse_recipe",
    "wrap_hash",
]

Digest = NewType("Digest", bytes)
"""A multihash of :data:`DIGEST_LENGTH` bytes."""

_MULTIHASH_BLAKE3_256 = b"\x1e\x20"
DIGEST_LENGTH = 34
RECIPE_VERSION = 1
JOINED_VERSION = 2

PART_CHUNKS = 1024
"""The most chunks in a recipe. In larger content each part but the last has exactly this many.

This number is part of the format, because equal content must have one name."""


def wrap_hash(raw: bytes) -> Digest:
    """Return a BLAKE3-256 hash as a multihash."""
    return Digest(_MULTIHASH_BLAKE3_256 + raw)


def digest_of(data: bytes | memoryview) -> Digest:
    """Return the digest of *data*."""
    return wrap_hash(blake3(data).digest())


@dataclass(frozen=True)
class Recipe:
    """The chunks of finished content. All but the last have *chunk_size* bytes."""

    chunk_size: int
    length: int
    chunks: bytes
    """The concatenated digests: 34 bytes a chunk, 34 KiB at most."""

    @classmethod
    def build(cls, chunk_size: int, length: int, digests: Iterable[Digest]) -> Recipe:
        recipe = cls(chunk_size, length, b"".join(digests))
        if recipe.chunk_count != -(-length // chunk_size):
            raise ValueError("the chunks do not add up to the length")
        return recipe

    @classmethod
    def from_bytes(cls, data: bytes) -> Recipe:
        """Parse *data*. Raises :class:`FormatVersionUnsupported` for an unknown version."""
        fields = msgpack.unpackb(data)
        if fields["v"] != RECIPE_VERSION:
            raise FormatVersionUnsupported(
                f"a recipe has version {fields['v']!r}: it needs a newer trioresume"
            )
        return cls(fields["chunk"], fields["len"], fields["chunks"])

    @cached_property
    def serialised(self) -> bytes:
        packed: bytes = msgpack.packb(
            {
                "v": RECIPE_VERSION,
                "chunk": self.chunk_size,
                "len": self.length,
                "chunks": self.chunks,
            }
        )
        return packed

    @cached_property
    def digest(self) -> Digest:
        return digest_of(self.serialised)

    @property
    def chunk_count(self) -> int:
        return len(self.chunks) // DIGEST_LENGTH

    def chunk(self, index: int) -> Digest:
        return Digest(self.chunks[index * DIGEST_LENGTH : (index + 1) * DIGEST_LENGTH])


@dataclass(frozen=True)
class JoinedRecipe:
    """Finished content that consists of other finished contents, one after the other.

    *parts* are the digests of their recipes, which are not joined. *lengths* are their
    lengths in bytes, which are not 0.
    """

    parts: tuple[Digest, ...]
    lengths: tuple[int, ...]

    @classmethod
    def from_bytes(cls, data: bytes) -> JoinedRecipe:
        """Parse *data*. Raises :class:`FormatVersionUnsupported` for an unknown version."""
        fields = msgpack.unpackb(data)
        if fields["v"] != JOINED_VERSION:
            raise FormatVersionUnsupported(
                f"a recipe has version {fields['v']!r}: it needs a newer trioresume"
            )
        listed = fields["parts"]
        starts = range(0, len(listed), DIGEST_LENGTH)
        parts = tuple(Digest(listed[at : at + DIGEST_LENGTH]) for at in starts)
        return cls(parts, tuple(fields["lens"]))

    @cached_property
    def serialised(self) -> bytes:
        packed: bytes = msgpack.packb(
            {
                "v": JOINED_VERSION,
                "len": self.length,
                "lens": self.lengths,
                "parts": b"".join(self.parts),
            }
        )
        return packed

    @cached_property
    def digest(self) -> Digest:
        return digest_of(self.serialised)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The offset in the whole at which each part ends."""
        return tuple(accumulate(self.lengths))

    @property
    def length(self) -> int:
        return self.ends[-1] if self.ends else 0

    def locate(self, offset: int) -> tuple[int, int]:
        """Return the index of the part that has byte *offset*, and the position in that part."""
        index = bisect_right(self.ends, offset)
        return index, offset - (self.ends[index] - self.lengths[index])


AnyRecipe = Recipe | JoinedRecipe


def cut(chunk_size: int, length: int, chunks: Sequence[Digest]) -> list[Recipe]:
    """Return the recipes, at least one, of content (or the end of it) with these *chunks*.

    Raises :class:`ValueError` if the chunks cannot have *length* bytes together.
    """
    most = PART_CHUNKS * chunk_size
    return [
        Recipe.build(
            chunk_size,
            min(most, length - at * chunk_size),
            chunks[at : at + PART_CHUNKS],
        )
        for at in range(0, max(1, len(chunks)), PART_CHUNKS)
    ]


def join(chunk_size: int, length: int, parts: Sequence[Digest]) -> JoinedRecipe | None:
    """Return the recipe that joins *parts*; None if there is only one part."""
    if len(parts) == 1:
        return None
    most = PART_CHUNKS * chunk_size
    rest = length - (len(parts) - 1) * most
    return JoinedRecipe(tuple(parts), (most,) * (len(parts) - 1) + (rest,))


def parse_recipe(data: bytes) -> AnyRecipe:
    """Parse a recipe of either kind.

    Raises :class:`FormatVersionUnsupported` for an unknown version.
    """
    joined = msgpack.unpackb(data)["v"] == JOINED_VERSION
    return JoinedRecipe.from_bytes(data) if joined else Recipe.from_bytes(data)
