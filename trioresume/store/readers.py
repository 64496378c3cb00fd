"""Readers of finished content and of content under construction."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable

from trioresume.errors import ChunkCorrupt, ContentLost
from trioresume.store.catalog import Catalog
from trioresume.store.chunks import ChunkFiles
from trioresume.store.disk_io import Descriptor, translated
from trioresume.store.port import Content, ContentKey, operation_of
from trioresume.store.recipe import Digest, Recipe
from trioresume.store.tails import TailFiles

__all__ = ["InlineReader", "Pins", "PrefixReader", "RecipeReader", "open_recipe"]

_LOOKS = 3
"""A chunk moves twice at most while one looks for it: from tail to piece to recipe."""


class Pins:
    """Which recipes are being read, so that collection spares them.

    The order that matters: a reader pins first and looks at the catalog then; the
    collector condemns first, which fails for a pinned recipe, and commits then. So
    either the collector sees the pin, or the reader sees the recipe condemned, or
    it sees what the commit left.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pinned: Counter[Digest] = Counter()
        self._condemned: set[Digest] = set()

    def pin(self, digest: Digest) -> bool:
        """Whether *digest* could be pinned."""
        with self._lock:
            if digest in self._condemned:
                return False
            self._pinned[digest] += 1
            return True

    def unpin(self, digest: Digest) -> None:
        with self._lock:
            self._pinned[digest] -= 1
            if not self._pinned[digest]:
                del self._pinned[digest]

    def count(self) -> int:
        return len(self._pinned)

    def condemn(self, digest: Digest) -> bool:
        """Whether *digest* may be taken; no reader can pin it until :meth:`acquit`."""
        with self._lock:
            if digest in self._pinned:
                return False
            self._condemned.add(digest)
            return True

    def acquit(self) -> None:
        """The collector's commit is done or undone: the catalog says what is left."""
        with self._lock:
            self._condemned.clear()


class InlineReader:
    """Content that is kept in the catalog's row."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self) -> None:
        pass  # nothing is held


class _OneFile:
    """The file of the chunk that was read last, kept open for the next read."""

    def __init__(self) -> None:
        self._index = -1
        self._file: Descriptor | None = None
        self._position = 0

    def read(
        self, index: int, open_: Callable[[int], Descriptor], at: int, size: int
    ) -> bytes:
        """Up to *size* bytes at *at* of chunk *index*; fewer only at the file's end."""
        if self._file is None or self._index != index:
            self.close()
            self._file = open_(index)
            self._index = index
            self._position = 0
        fd = self._file.fileno()
        # A seek only where needed: os.pread does not exist everywhere.
        if self._position != at:
            os.lseek(fd, at, os.SEEK_SET)
        self._position = at
        data = os.read(fd, size)
        self._position += len(data)
        if len(data) == size or not data:
            return data
        return data + self.read(index, open_, at + len(data), size - len(data))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class RecipeReader:
    """The bytes of a recipe; ``on_close`` lets its pin go."""

    def __init__(
        self, recipe: Recipe, chunks: ChunkFiles, on_close: Callable[[], None]
    ) -> None:
        self.length = recipe.length
        self._recipe = recipe
        self._chunks = chunks
        self._file = _OneFile()
        self._on_close: Callable[[], None] | None = on_close

    def read(self, offset: int, size: int) -> bytes:
        index, at = divmod(offset, self._recipe.chunk_size)
        size = min(size, self._recipe.chunk_size - at, self.length - offset)
        if size <= 0:
            return b""
        with translated("reading a chunk"):
            data = self._file.read(index, self._open, at, size)
        if len(data) != size:
            raise ChunkCorrupt(f"chunk {self._recipe.chunk(index).hex()} is too short")
        return data

    def _open(self, index: int) -> Descriptor:
        digest = self._recipe.chunk(index)
        try:
            return self._chunks.open(digest)
        except FileNotFoundError as exc:
            raise ChunkCorrupt(f"chunk {digest.hex()} is missing") from exc

    def close(self) -> None:
        self._file.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


def open_recipe(
    catalog: Catalog, chunks: ChunkFiles, pins: Pins, digest: Digest
) -> RecipeReader:
    """A reader of the recipe called *digest*. Raises :class:`ContentLost`."""
    if not pins.pin(digest):
        raise ContentLost("the content was released")
    try:
        recipe = catalog.recipe(digest)
        if recipe is None:
            raise ContentLost("the content was released")
    except BaseException:
        pins.unpin(digest)
        raise
    return RecipeReader(recipe, chunks, lambda: pins.unpin(digest))


class PrefixReader:
    """Content under construction: each chunk is where it is found just now.

    It may be a tail, a published chunk, or, once the content is frozen, a chunk that
    only the recipe names. It moves in that order, and only in that order.
    """

    def __init__(
        self,
        key: ContentKey,
        length: int,
        chunk_size: int,
        *,
        catalog: Catalog,
        chunks: ChunkFiles,
        tails: TailFiles,
    ) -> None:
        self.length = length
        self._key = key
        self._chunk_size = chunk_size
        self._catalog = catalog
        self._chunks = chunks
        self._tails = tails
        self._file = _OneFile()

    def read(self, offset: int, size: int) -> bytes:
        index, at = divmod(offset, self._chunk_size)
        size = min(size, self._chunk_size - at, self.length - offset)
        if size <= 0:
            return b""
        with translated("reading content under construction"):
            data = self._file.read(index, self._open, at, size)
        if len(data) != size:
            raise ChunkCorrupt(
                f"chunk {index} of content under construction is too short"
            )
        return data

    def _open(self, index: int) -> Descriptor:
        for _ in range(_LOOKS):
            try:
                digest = self._catalog.piece(self._key, index)
                if digest is None:
                    return self._tails.open(self._key, index)
                return self._chunks.open(digest)
            except FileNotFoundError:
                continue  # it moved on between the look and the grasp
        return self._open_frozen(index)

    def _open_frozen(self, index: int) -> Descriptor:
        record = self._catalog.operation(operation_of(self._key))
        content: Content | None = None if record is None else record.content
        recipe = None
        if content is not None and content.digest is not None:
            recipe = self._catalog.recipe(content.digest)
        if recipe is None or index >= recipe.chunk_count:
            raise ContentLost("the content was released")
        try:
            return self._chunks.open(recipe.chunk(index))
        except FileNotFoundError as exc:
            raise ChunkCorrupt(f"chunk {recipe.chunk(index).hex()} is missing") from exc

    def close(self) -> None:
        self._file.close()
