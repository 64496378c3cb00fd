"""Contents in a directory, as one process writes and reads them.

The catalog may be in this process, as in :class:`~trioresume.store.disk_store.DiskStore`, or in
another one: see ``store/remote``. This code is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Protocol

from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.opening import Opening, open_tail
from trioresume.store.disk.readers import (
    FirstBytes,
    InlineReader,
    PrefixReader,
    ReadingCatalog,
    recipe_reader,
)
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.disk.tails import Tail, Writers
from trioresume.store.port import (
    Content,
    ContentKey,
    ContentReader,
    ContentWriter,
    check_key,
    is_response_key,
    operation_of,
)
from trioresume.store.port.recipes import AnyRecipe, Digest

__all__ = ["ContentRow", "ContentsCatalog", "DiskContents"]


class ContentRow(Protocol):
    """What the catalog knows of content under construction."""

    @property
    def chunk_size(self) -> int: ...


class ContentsCatalog(ReadingCatalog, Protocol):
    """What the contents need of the catalog."""

    def content(self, key: ContentKey) -> ContentRow | None: ...


class DiskContents(ABC):
    """The port's Contents as far as they are the same wherever the catalog is."""

    chunk_size: int
    _contents_catalog: ContentsCatalog
    _chunks: ChunkFiles
    _tails: TailFiles
    _writers: Writers

    @abstractmethod
    def _find_opening(self, key: ContentKey) -> Opening:
        """Repair the content of *key*, and return how to open its tail."""

    @abstractmethod
    def _offset_without_writer(self, key: ContentKey) -> int:
        """Return where a writer would start; *key* is of a request and has no writer here."""

    @abstractmethod
    def _pin(self, digest: Digest) -> AnyRecipe:
        """Pin the recipe and return it. Raises :class:`ContentLost`."""

    @abstractmethod
    def _unpin(self, digest: Digest) -> None:
        """Take back one :meth:`_pin`. Never blocks."""

    def new_writer(self, key: ContentKey) -> ContentWriter:
        check_key(key)
        return self._writers.open(
            key, lambda key, _: Tail(self._tails, key, self.chunk_size)
        )

    def open_writer(self, key: ContentKey) -> ContentWriter:
        check_key(key)
        return self._writers.open(key, self._reopen)

    def _reopen(self, key: ContentKey, old: Tail | None) -> Tail:
        return open_tail(self._tails, key, old, self._find_opening)

    def offset(self, key: ContentKey) -> int:
        tail = self._writers.tail(key)
        if tail is not None and not tail.broken:
            return tail.offset
        if is_response_key(key):
            return 0  # a new writer of a response begins at its start
        return self._offset_without_writer(key)

    def open_reader(self, content: Content) -> ContentReader:
        digest = content.digest
        if digest is None:
            return InlineReader(content.inline or b"")
        recipe = self._pin(digest)
        unpin = partial(self._unpin, digest)
        return recipe_reader(recipe, self._contents_catalog, self._chunks, unpin)

    def open_prefix(self, key: ContentKey, length: int) -> ContentReader:
        record = self._contents_catalog.operation(operation_of(key))
        if (
            record is not None
            and record.content is not None
            and not is_response_key(key)
        ):
            return FirstBytes(self.open_reader(record.content), length)
        row = self._contents_catalog.content(key)
        return PrefixReader(
            key,
            length,
            self.chunk_size if row is None else row.chunk_size,
            catalog=self._contents_catalog,
            chunks=self._chunks,
            tails=self._tails,
        )
