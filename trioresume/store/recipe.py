"""Digests and recipes: how content is named.

A *digest* is a multihash: two bytes that say "BLAKE3, 32 bytes" (0x1e 0x20) and
then the hash, so that the algorithm is part of the name and can change one day.
A chunk's digest is over its bytes. A *recipe* lists the chunks of finished
content; its own digest, over its serialised form, names the content. Equal
content cut at the same chunk size has the same recipe, so the digest serves as
a strong validator (RFC 9110, section 8.8.1).

Serialised form, msgpack, keys in this order::

    {"v": 1, "chunk": chunk size, "len": length, "chunks": concatenated digests}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NewType

import msgpack
from blake3 import blake3

from trioresume.errors import FormatVersionUnsupported

__all__ = ["DIGEST_LENGTH", "Digest", "Recipe", "digest_of", "wrap_hash"]

Digest = NewType("Digest", bytes)
"""A multihash of :data:`DIGEST_LENGTH` bytes."""

_MULTIHASH_BLAKE3_256 = b"\x1e\x20"
DIGEST_LENGTH = 34
RECIPE_VERSION = 1


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
    """The digests, concatenated: 34 bytes a chunk, 8.5 MiB for 1 TiB."""

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
