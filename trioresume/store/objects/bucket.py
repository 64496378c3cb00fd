"""The port of an object store, and the names of the objects in it.

The names, below the prefix that a service is given::

    chunks/xx/<digest>.<number>     finished chunks; xx is the first byte of the hash
    tails/<key>/<generation>-<random>   bytes that are no chunk yet, but were announced

Both are hexadecimal where they can be. An object never changes, and a name is used once: see
:mod:`trioresume.store.port.objects`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trioresume.errors import ChunkCorrupt
from trioresume.store.port import ChunkObject, ContentKey
from trioresume.store.port.recipes import DIGEST_LENGTH, Digest

__all__ = [
    "CHUNKS",
    "TAILS",
    "Bucket",
    "ListedObject",
    "chunk_name",
    "chunk_of",
    "get_whole",
    "key_and_generation",
    "new_tail_name",
]

CHUNKS = "chunks/"
TAILS = "tails/"

_CHUNK = re.compile(rf"chunks/[0-9a-f]{{2}}/([0-9a-f]{{{2 * DIGEST_LENGTH}}})\.(\d+)")
_TAIL = re.compile(r"tails/([A-Za-z0-9_-]{1,128}(?:\.r)?)/(\d+)-[0-9a-f]{16}")


def chunk_name(chunk: ChunkObject) -> str:
    """Return the name of the chunk's object."""
    return f"{CHUNKS}{chunk.digest[2:3].hex()}/{chunk.digest.hex()}.{chunk.number}"


def chunk_of(name: str) -> ChunkObject | None:
    """Return the chunk whose object has *name*; None if it is no chunk's name."""
    found = _CHUNK.fullmatch(name)
    if found is None:
        return None
    chunk = ChunkObject(Digest(bytes.fromhex(found[1])), int(found[2]))
    return chunk if chunk_name(chunk) == name else None


def new_tail_name(key: ContentKey, generation: int) -> str:
    """Return a name for an object with bytes of *key*, which nobody has used."""
    return f"{TAILS}{key}/{generation}-{secrets.token_hex(8)}"


def key_and_generation(name: str) -> tuple[ContentKey, int] | None:
    """Return what the name of a tail's object tells; None if it is no such name."""
    found = _TAIL.fullmatch(name)
    return None if found is None else (ContentKey(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True)
class ListedObject:
    name: str
    size: int
    modified_at: float
    """Unix seconds, by the clock of the object store."""


class Bucket(Protocol):
    """Objects by name, below the service's prefix.

    All methods block. They try again when the object store is busy or cannot be reached, for
    a bounded time, and then raise :class:`StorageUnavailable`. What cannot succeed raises
    another :class:`StorageError` at once. Threads: any.
    """

    def put_absent(self, name: str, data: memoryview | bytes) -> bool:
        """Put an object unless one has that name; return whether it was put.

        On return an object with that name is durable.
        """
        ...

    def put(self, name: str, data: memoryview | bytes) -> None:
        """Put an object, which is durable on return."""
        ...

    def get(self, name: str, start: int, length: int) -> bytes | None:
        """Return *length* bytes from *start* on, fewer at the object's end; None if missing."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects. It is no error if one does not exist."""
        ...

    def list(self, prefix: str, after: str, limit: int) -> list[ListedObject]:
        """Return up to *limit* objects below *prefix* with names after *after*, in order.

        Objects that were put or deleted moments ago may be missing or listed still.
        """
        ...

    def close(self) -> None: ...


def get_whole(bucket: Bucket, name: str, start: int, length: int, what: str) -> bytes:
    """Return exactly *length* bytes. Raises :class:`ChunkCorrupt`, which names *what*."""
    data = bucket.get(name, start, length)
    if data is None:
        raise ChunkCorrupt(f"{what} is missing: there is no object {name}")
    if len(data) != length:
        raise ChunkCorrupt(f"{what} is too short: see the object {name}")
    return data
