"""Readers of finished content and of content under construction."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from trioresume.errors import ChunkCorrupt, ContentLost
from trioresume.store.catalog.unreferenced import Pins
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.file_system.disk_io import Descriptor, Disk
from trioresume.store.port import (
    Content,
    ContentKey,
    ContentReader,
    FileExtent,
    OperationId,
    OperationRecord,
    operation_of,
)
from trioresume.store.port.recipes import AnyRecipe, Digest, JoinedRecipe, Recipe

__all__ = [
    "FirstBytes",
    "InlineReader",
    "PrefixReader",
    "ReadingCatalog",
    "RecipeReader",
    "pinned_recipe",
    "recipe_reader",
]

_LOOKS = 3
"""A chunk moves at most twice while a reader looks for it: from tail to piece to recipe."""


class ReadingCatalog(Protocol):
    """What readers ask the catalog, from any thread."""

    def operation(self, id: OperationId) -> OperationRecord | None: ...

    def piece(self, key: ContentKey, index: int) -> Digest | None:
        """Return the digest of a chunk of content under construction, if it is sealed."""
        ...

    def recipe(self, digest: Digest) -> AnyRecipe | None: ...


class InlineReader:
    """Content that is kept in the catalog's row."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def extent(self, offset: int, size: int) -> None:
        """Return None: the bytes lie in no file."""

    def close(self) -> None:
        pass  # this reader holds nothing


class _ChunksReader(ABC):
    """A reader of chunks of one size; the file of the chunk used last stays open."""

    def __init__(self, length: int, chunk_size: int, disk: Disk) -> None:
        self.length = length
        self._chunk_size = chunk_size
        self._disk = disk
        self._index = -1
        self._file: Descriptor | None = None
        self._position = 0

    @abstractmethod
    def _open(self, index: int) -> Descriptor:
        """Open the file of chunk *index*.

        Raises :class:`ChunkCorrupt` or :class:`ContentLost`.
        """

    @abstractmethod
    def _name(self, index: int) -> str:
        """Return the name of chunk *index* for error messages."""

    @property
    def _is_settled(self) -> bool:
        """Whether the open file can no longer change."""
        return True

    def read(self, offset: int, size: int) -> bytes:
        index, at, size = self._locate(offset, size)
        if size <= 0:
            return b""
        try:
            data = self._read(self._descriptor(index), at, size)
        except OSError as exc:
            raise self._unreadable(index, exc) from exc
        if len(data) != size:
            raise self._too_short(index)
        return data

    def extent(self, offset: int, size: int) -> FileExtent | None:
        index, at, size = self._locate(offset, size)
        if size <= 0:
            return None
        try:
            descriptor = self._descriptor(index)
            end = os.fstat(descriptor).st_size
        except OSError as exc:
            raise self._unreadable(index, exc) from exc
        if end < at + size:
            raise self._too_short(index)
        return FileExtent(descriptor, at, size) if self._is_settled else None

    def _locate(self, offset: int, size: int) -> tuple[int, int, int]:
        """Return the chunk of *offset*, the position in it, and how much of *size* it has."""
        index, at = divmod(offset, self._chunk_size)
        return index, at, min(size, self._chunk_size - at, self.length - offset)

    def _descriptor(self, index: int) -> int:
        if self._file is None or self._index != index:
            self._close_file()
            self._file = self._open(index)
            self._index = index
            self._position = 0
        return self._file.fileno()

    def _read(self, descriptor: int, at: int, size: int) -> bytes:
        """Return *size* bytes at position *at*, fewer only at the file's end."""
        # Seek only where needed: os.pread does not exist everywhere.
        if self._position != at:
            os.lseek(descriptor, at, os.SEEK_SET)
        self._position = at
        data = self._disk.read(descriptor, size)
        self._position += len(data)
        if len(data) == size or not data:
            return data
        return data + self._read(descriptor, at + len(data), size - len(data))

    def _unreadable(self, index: int, exc: OSError) -> ChunkCorrupt:
        return ChunkCorrupt(
            f"{self._name(index)} cannot be read: {exc.strerror or exc}"
        )

    def _too_short(self, index: int) -> ChunkCorrupt:
        return ChunkCorrupt(f"{self._name(index)} is too short")

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._close_file()


class RecipeReader(_ChunksReader):
    """A reader of a recipe's bytes; ``on_close`` releases its pin."""

    def __init__(
        self, recipe: Recipe, chunks: ChunkFiles, on_close: Callable[[], None]
    ) -> None:
        super().__init__(recipe.length, recipe.chunk_size, chunks.disk)
        self._recipe = recipe
        self._chunks = chunks
        self._on_close: Callable[[], None] | None = on_close

    def _open(self, index: int) -> Descriptor:
        try:
            return self._chunks.open(self._recipe.chunk(index))
        except FileNotFoundError as exc:
            raise ChunkCorrupt(f"{self._name(index)} is missing") from exc

    def _name(self, index: int) -> str:
        return f"chunk {self._recipe.chunk(index).hex()}"

    def close(self) -> None:
        super().close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


class JoinedReader:
    """A reader of a joined recipe's bytes, part by part; ``on_close`` releases its pin.

    The joined recipe holds its parts, and is not dismantled while it is pinned, so the
    parts need no pins. One part is open at a time.
    """

    def __init__(
        self,
        recipe: JoinedRecipe,
        catalog: ReadingCatalog,
        chunks: ChunkFiles,
        on_close: Callable[[], None],
    ) -> None:
        self.length = recipe.length
        self._recipe = recipe
        self._catalog = catalog
        self._chunks = chunks
        self._index = -1
        self._part: RecipeReader | None = None
        self._on_close: Callable[[], None] | None = on_close

    def read(self, offset: int, size: int) -> bytes:
        if size <= 0 or offset >= self.length:
            return b""
        part, at = self._locate(offset)
        return part.read(at, size)

    def extent(self, offset: int, size: int) -> FileExtent | None:
        if size <= 0 or offset >= self.length:
            return None
        part, at = self._locate(offset)
        return part.extent(at, size)

    def _locate(self, offset: int) -> tuple[RecipeReader, int]:
        """Return a reader of the part of *offset*, and the position in the part."""
        index, at = self._recipe.locate(offset)
        part = self._part
        if part is None or index != self._index:
            part = self._open(index)
        return part, at

    def _open(self, index: int) -> RecipeReader:
        if self._part is not None:
            self._part.close()
            self._part = None
        digest = self._recipe.parts[index]
        recipe = self._catalog.recipe(digest)
        if not isinstance(recipe, Recipe):
            raise ContentLost(f"the part {digest.hex()} is missing")
        self._part = RecipeReader(recipe, self._chunks, _nothing_held)
        self._index = index
        return self._part

    def close(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


def _nothing_held() -> None:
    """Do nothing: a part's reader has no pin."""


def pinned_recipe(catalog: ReadingCatalog, pins: Pins, digest: Digest) -> AnyRecipe:
    """Pin the recipe *digest* and return it. Raises :class:`ContentLost`; then it has no pin."""
    if not pins.pin(digest):
        raise ContentLost("the content was released")
    try:
        recipe = catalog.recipe(digest)
        if recipe is None:
            raise ContentLost("the content was released")
    except BaseException:
        pins.unpin(digest)
        raise
    return recipe


def recipe_reader(
    recipe: AnyRecipe,
    catalog: ReadingCatalog,
    chunks: ChunkFiles,
    unpin: Callable[[], None],
) -> RecipeReader | JoinedReader:
    """Return a reader of *recipe*, which is pinned; closing the reader calls *unpin*."""
    if isinstance(recipe, JoinedRecipe):
        return JoinedReader(recipe, catalog, chunks, unpin)
    return RecipeReader(recipe, chunks, unpin)


class PrefixReader(_ChunksReader):
    """A reader of content under construction, which looks for each chunk when it is needed.

    A chunk may be a tail, a published chunk, or, once the content is frozen, a chunk that
    only the recipe names. It moves in this order, and only in this order. A writer may
    still append to a tail. So this reader reads a tail's bytes and gives out no extent
    of the file.
    """

    def __init__(
        self,
        key: ContentKey,
        length: int,
        chunk_size: int,
        *,
        catalog: ReadingCatalog,
        chunks: ChunkFiles,
        tails: TailFiles,
    ) -> None:
        super().__init__(length, chunk_size, chunks.disk)
        self._key = key
        self._catalog = catalog
        self._chunks = chunks
        self._tails = tails
        self._in_tail = False

    @property
    def _is_settled(self) -> bool:
        return not self._in_tail

    def _name(self, index: int) -> str:
        return f"chunk {index} of content under construction"

    def _open(self, index: int) -> Descriptor:
        for _ in range(_LOOKS):
            try:
                digest = self._catalog.piece(self._key, index)
                self._in_tail = digest is None
                if digest is None:
                    return self._tails.open(self._key, index)
                return self._chunks.open(digest)
            except FileNotFoundError:
                continue  # the chunk moved between the look and the open
        self._in_tail = False
        return self._open_frozen(index)

    def _open_frozen(self, index: int) -> Descriptor:
        record = self._catalog.operation(operation_of(self._key))
        content: Content | None = None if record is None else record.content
        recipe = None
        if content is not None and content.digest is not None:
            recipe = self._catalog.recipe(content.digest)
        if isinstance(recipe, JoinedRecipe):
            part, at = recipe.locate(index * self._chunk_size)
            recipe = self._catalog.recipe(recipe.parts[part])
            index = at // self._chunk_size
        if not isinstance(recipe, Recipe) or index >= recipe.chunk_count:
            raise ContentLost("the content was released")
        try:
            return self._chunks.open(recipe.chunk(index))
        except FileNotFoundError as exc:
            raise ChunkCorrupt(f"chunk {recipe.chunk(index).hex()} is missing") from exc


@dataclass(frozen=True, slots=True)
class FirstBytes:
    """The first *length* bytes of *reader*'s content."""

    reader: ContentReader
    length: int

    def read(self, offset: int, size: int) -> bytes:
        return self.reader.read(offset, self._within(offset, size))

    def extent(self, offset: int, size: int) -> FileExtent | None:
        return self.reader.extent(offset, self._within(offset, size))

    def _within(self, offset: int, size: int) -> int:
        return max(0, min(size, self.length - offset))

    def close(self) -> None:
        self.reader.close()
