"""Digests and recipes: how content is named.

A *digest* is a multihash: two bytes that say "BLAKE3, 32 bytes" (0x1e 0x20) and
then the hash, so that the algorithm is part of the name and can change one day.
A chunk's digest is over its bytes. A *recipe* lists the chunks of finished
content; its own digest, over its serialised form, names the content. Equal
content cut at the same chunk size has the same recipe, so the digest serves as
a strong validator (RFC 9110, section 8.8.1).

Serialised form, msgpack, keys in this order::

    {"v": 1, "chunk": chunk size, "len": length, "chunks": concatenated digests}

Content that was put together from other contents (tus's concatenation) has a *joined
recipe*, which lists their recipes instead of chunks, so that making it costs the
number of parts and not their size::

    {"v": 2, "len": length, "lens": lengths of the parts, "parts": concatenated digests}

Parts are never joined recipes themselves: whoever reads looks twice at most. Where
the cuts between the parts lie is part of the name, so equal bytes put together
otherwise have another digest; equal digests always mean equal bytes.

Content of more than :data:`PART_CHUNKS` chunks is named by a joined recipe as well: its
parts are the recipes of so many chunks each, in order, the last of those that are left.
They are made while the content arrives, so that what is to be read, written or hashed
at its end does not depend on how much there is: a tebibyte has 256 parts.
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
"""The most chunks in a recipe, and how many each part but the last of larger content has.

It is part of the format: equal content is to have one name."""


def wrap_hash(raw: bytes) -> Digest:
    """A BLAKE3-256 hash as a multihash."""
    return Digest(_MULTIHASH_BLAKE3_256 + raw)


def digest_of(data: bytes | memoryview) -> Digest:
    """The digest of *data*."""
    return wrap_hash(blake3(data).digest())


@dataclass(frozen=True)
class Recipe:
    """The chunks of finished content. All are *chunk_size* long but the last."""

    chunk_size: int
    length: int
    chunks: bytes
    """The digests, concatenated: 34 bytes a chunk, 34 KiB at most."""

    @classmethod
    def build(cls, chunk_size: int, length: int, digests: Iterable[Digest]) -> Recipe:
        recipe = cls(chunk_size, length, b"".join(digests))
        if recipe.chunk_count != -(-length // chunk_size):
            raise ValueError("the chunks do not add up to the length")
        return recipe

    @classmethod
    def from_bytes(cls, data: bytes) -> Recipe:
        """Raises :class:`FormatVersionUnsupported` for a version not known."""
        fields = msgpack.unpackb(data)
        if fields["v"] != RECIPE_VERSION:
            raise FormatVersionUnsupported(f"recipe version {fields['v']!r}")
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
    """Finished content made of other finished contents, one after the other.

    *parts* are the digests of their recipes, none of them joined, and *lengths* their
    bytes, none of them 0.
    """

    parts: tuple[Digest, ...]
    lengths: tuple[int, ...]

    @classmethod
    def from_bytes(cls, data: bytes) -> JoinedRecipe:
        """Raises :class:`FormatVersionUnsupported` for a version not known."""
        fields = msgpack.unpackb(data)
        if fields["v"] != JOINED_VERSION:
            raise FormatVersionUnsupported(f"recipe version {fields['v']!r}")
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
        """Where each part ends in the whole."""
        return tuple(accumulate(self.lengths))

    @property
    def length(self) -> int:
        return self.ends[-1] if self.ends else 0

    def locate(self, offset: int) -> tuple[int, int]:
        """The part that byte *offset* is in, and where in the part it is."""
        index = bisect_right(self.ends, offset)
        return index, offset - (self.ends[index] - self.lengths[index])


AnyRecipe = Recipe | JoinedRecipe


def cut(chunk_size: int, length: int, chunks: Sequence[Digest]) -> list[Recipe]:
    """The recipes of content, or of the end of some, that has these *chunks*: at least one.

    Raises :class:`ValueError` if they do not add up to *length* bytes.
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
    """What names content that was cut into *parts*; None if a single one has all of it."""
    if len(parts) == 1:
        return None
    most = PART_CHUNKS * chunk_size
    rest = length - (len(parts) - 1) * most
    return JoinedRecipe(tuple(parts), (most,) * (len(parts) - 1) + (rest,))


def parse_recipe(data: bytes) -> AnyRecipe:
    """Either kind. Raises :class:`FormatVersionUnsupported` for a version not known."""
    joined = msgpack.unpackb(data)["v"] == JOINED_VERSION
    return JoinedRecipe.from_bytes(data) if joined else Recipe.from_bytes(data)
