"""Readers of content in objects: ranges, read ahead in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable

from trioresume.errors import ChunkCorrupt, ContentLost
from trioresume.store.objects.bucket import Bucket, chunk_name, get_whole
from trioresume.store.port import (
    ChunkObject,
    ContentReader,
    ObjectCatalog,
)
from trioresume.store.port.recipes import Digest, JoinedRecipe, Recipe

__all__ = ["Ahead", "FirstBytes", "InlineReader", "RangeReader", "open_recipe"]

_FIRST_WINDOW = 256 * 1024
_LARGEST_WINDOW = 4 * 1024 * 1024
"""Bytes that a request asks for at least, when a reader goes on where it was: first and last."""
_LOOK_UP = 64
"""Chunks whose objects are looked up at once."""


class Ahead:
    """The memory for bytes that were read ahead, of all readers together.

    A reader that gets no memory asks the object store for what it needs and no more.
    """

    def __init__(self, memory: int) -> None:
        self._free = memory
        self._lock = threading.Lock()

    def take(self, size: int) -> int:
        """Take up to *size* bytes of memory; return how many."""
        with self._lock:
            taken = min(size, self._free)
            self._free -= taken
            return taken

    def give_back(self, size: int) -> None:
        with self._lock:
            self._free += size


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


class FirstBytes:
    """The first *length* bytes of *reader*'s content."""

    def __init__(self, reader: ContentReader, length: int) -> None:
        self._reader = reader
        self.length = length

    def read(self, offset: int, size: int) -> bytes:
        return self._reader.read(offset, max(0, min(size, self.length - offset)))

    def extent(self, offset: int, size: int) -> None:
        """Return None: the bytes lie in no file."""

    def close(self) -> None:
        self._reader.close()


class RangeReader:
    """Reads a content of chunks; ``fetch`` gets bytes of one chunk.

    The bytes that were read ahead are those of one window, within one chunk.
    """

    def __init__(
        self,
        length: int,
        chunk_size: int,
        ahead: Ahead,
        fetch: Callable[[int, int, int], bytes],
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.length = length
        self._chunk_size = chunk_size
        self._ahead = ahead
        self._fetch = fetch
        """Returns bytes of a chunk: its index, the position in it, and how many at most."""
        self._on_close = on_close
        self._window = b""
        self._window_at = 0
        self._taken = 0
        self._next = 0
        """Where the last read ended."""
        self._size = _FIRST_WINDOW

    def read(self, offset: int, size: int) -> bytes:
        index, at = divmod(offset, self._chunk_size)
        size = min(size, self._chunk_size - at, self.length - offset)
        if size <= 0:
            return b""
        start = offset - self._window_at
        if not (start >= 0 and start + size <= len(self._window)):
            self._load(index, at, size, offset)
            start = 0
        self._next = offset + size
        if start == 0 and size == len(self._window):
            return self._window
        return self._window[start : start + size]

    def _load(self, index: int, at: int, size: int, offset: int) -> None:
        goes_on = offset == self._next and offset > 0
        self._size = min(2 * self._size, _LARGEST_WINDOW) if goes_on else _FIRST_WINDOW
        rest = min(self._chunk_size - at, self.length - offset)
        self._window = b""
        self._ahead.give_back(self._taken)
        self._taken = self._ahead.take(max(0, min(self._size, rest) - size))
        wanted = size + self._taken
        data = self._fetch(index, at, wanted)
        if len(data) < size:
            raise ChunkCorrupt(f"chunk {index} of the content is too short")
        self._window, self._window_at = data, offset

    def extent(self, offset: int, size: int) -> None:
        """Return None: the bytes lie in no file."""

    def close(self) -> None:
        self._window = b""
        self._ahead.give_back(self._taken)
        self._taken = 0
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


class _Chunks:
    """The objects of a recipe's chunks, looked up when they are needed."""

    def __init__(self, catalog: ObjectCatalog, bucket: Bucket, recipe: Recipe) -> None:
        self._catalog = catalog
        self._bucket = bucket
        self._recipe = recipe
        self._objects: dict[Digest, ChunkObject] = {}

    def fetch(self, index: int, at: int, size: int) -> bytes:
        digest = self._recipe.chunk(index)
        what = f"chunk {digest.hex()}"
        chunk = self._objects.get(digest) or self._look_up(index).get(digest)
        if chunk is None:
            raise ChunkCorrupt(f"{what} is missing: the catalog has no object of it")
        rest = min(
            self._recipe.chunk_size,
            self._recipe.length - index * self._recipe.chunk_size,
        )
        return get_whole(
            self._bucket, chunk_name(chunk), at, min(size, rest - at), what
        )

    def _look_up(self, index: int) -> dict[Digest, ChunkObject]:
        end = min(self._recipe.chunk_count, index + _LOOK_UP)
        digests = list(
            dict.fromkeys(self._recipe.chunk(at) for at in range(index, end))
        )
        self._objects = dict(self._catalog.objects(digests))
        return self._objects


class JoinedReader:
    """A reader of a joined recipe's bytes, part by part; one part is open at a time."""

    def __init__(
        self,
        recipe: JoinedRecipe,
        open_part: Callable[[Digest], ContentReader],
        on_close: Callable[[], None],
    ) -> None:
        self.length = recipe.length
        self._recipe = recipe
        self._open_part = open_part
        self._index = -1
        self._part: ContentReader | None = None
        self._on_close: Callable[[], None] | None = on_close

    def read(self, offset: int, size: int) -> bytes:
        if size <= 0 or offset >= self.length:
            return b""
        index, at = self._recipe.locate(offset)
        part = self._part
        if part is None or index != self._index:
            self._close_part()
            part = self._part = self._open_part(self._recipe.parts[index])
            self._index = index
        return part.read(at, size)

    def extent(self, offset: int, size: int) -> None:
        """Return None: the bytes lie in no file."""

    def _close_part(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.close()

    def close(self) -> None:
        self._close_part()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


def open_recipe(
    catalog: ObjectCatalog, bucket: Bucket, ahead: Ahead, digest: Digest
) -> ContentReader:
    """Return a reader of the recipe *digest*, which is pinned until the reader is closed.

    Raises :class:`ContentLost`.
    """
    if not catalog.pin(digest):
        raise ContentLost("the content was released")

    def unpin() -> None:
        catalog.unpin(digest)

    def open_part(part: Digest) -> ContentReader:
        found = catalog.recipe(part)
        if not isinstance(found, Recipe):
            raise ContentLost(f"the part {part.hex()} is missing")
        return _reader_of(found, lambda: None)

    def _reader_of(recipe: Recipe, on_close: Callable[[], None]) -> ContentReader:
        chunks = _Chunks(catalog, bucket, recipe)
        return RangeReader(
            recipe.length, recipe.chunk_size, ahead, chunks.fetch, on_close
        )

    try:
        recipe = catalog.recipe(digest)
        if recipe is None:
            raise ContentLost("the content was released")
        if isinstance(recipe, JoinedRecipe):
            return JoinedReader(recipe, open_part, unpin)
        return _reader_of(recipe, unpin)
    except BaseException:
        unpin()
        raise
