"""A reader of content under construction, wherever each of its bytes is at the moment."""

from __future__ import annotations

from collections.abc import Callable

from trioresume.errors import ChunkCorrupt, ContentLost
from trioresume.store.objects.bucket import Bucket, chunk_name
from trioresume.store.objects.tails import Tail
from trioresume.store.port import (
    Content,
    ContentKey,
    ContentReader,
    ObjectCatalog,
    is_response_key,
    operation_of,
)

__all__ = ["PrefixReader"]

_LOOKS = 3
"""Bytes move at most twice while a reader looks: from a part to a chunk to a recipe."""


class PrefixReader:
    """Looks for each chunk when it is needed.

    Its bytes may be on this node, in an announced part of the tail, in a sealed chunk, or, once
    the content is frozen, in a chunk that only the recipe names. They move in this order.
    """

    def __init__(
        self,
        key: ContentKey,
        length: int,
        chunk_size: int,
        *,
        tail: Callable[[ContentKey], Tail | None],
        catalog: ObjectCatalog,
        bucket: Bucket,
        open_reader: Callable[[Content], ContentReader],
    ) -> None:
        self.length = length
        self._key = key
        self._chunk_size = chunk_size
        self._tail = tail
        self._catalog = catalog
        self._bucket = bucket
        self._open_reader = open_reader
        self._frozen: ContentReader | None = None

    def read(self, offset: int, size: int) -> bytes:
        index, at = divmod(offset, self._chunk_size)
        size = min(size, self._chunk_size - at, self.length - offset)
        if size <= 0:
            return b""
        if self._frozen is not None:
            return self._frozen.read(offset, size)
        for _ in range(_LOOKS):
            data = self._find(index, at, size)
            if data:
                return data
        return self._read_frozen(offset, size)

    def _find(self, index: int, at: int, size: int) -> bytes | None:
        tail = self._tail(self._key)
        data = b"" if tail is None else tail.read(index, at, at + size)
        if len(data) == size:
            return data
        chunk = self._catalog.piece(self._key, index)
        if chunk is not None:
            return self._bucket.get(chunk_name(chunk), at, size)
        state = self._catalog.content(self._key)
        offset = index * self._chunk_size + at
        for part in () if state is None else state.parts:
            if part.offset <= offset < part.end:
                start = offset - part.offset
                return self._bucket.get(
                    part.name, start, min(size, part.length - start)
                )
        return None

    def _read_frozen(self, offset: int, size: int) -> bytes:
        record = self._catalog.operation(operation_of(self._key))
        content = None if record is None else record.content
        if is_response_key(self._key):
            response = None if record is None else record.response
            content = None if response is None else response.body
        if content is not None:
            self._frozen = self._open_reader(content)
            return self._frozen.read(offset, size)
        if self._catalog.content(self._key) is None:
            raise ContentLost("the content was released")
        raise ChunkCorrupt(f"announced bytes of {self._key} are missing")

    def extent(self, offset: int, size: int) -> None:
        """Return None: the bytes lie in no file that does not change."""

    def close(self) -> None:
        frozen, self._frozen = self._frozen, None
        if frozen is not None:
            frozen.close()
