"""The sweep: removing the files that the catalog does not know."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial

from trioresume.store.catalog.catalog import Catalog
from trioresume.store.disk.chunks import SHARDS, ChunkFiles
from trioresume.store.disk.tail_files import FRESH, TailFiles
from trioresume.store.disk.tails import Writers
from trioresume.store.port import Collected, ContentKey
from trioresume.store.port.recipes import Digest

__all__ = ["Sweep"]


class Sweep:
    """One walk over the files that removes those which the catalog does not name.

    The caller serialises :meth:`advance` with everything that publishes chunks.
    """

    def __init__(
        self,
        catalog: Catalog,
        chunks: ChunkFiles,
        tails: TailFiles,
        writers: Writers,
        holds_tail: Callable[[ContentKey, int], bool],
        passed_over: dict[ContentKey, set[int]],
    ) -> None:
        self._catalog = catalog
        self._chunks = chunks
        self._tails = tails
        self._writers = writers
        self._holds_tail = holds_tail
        self._passed_over = passed_over
        """Unknown tails of contents that have a writer: removed when the content ends."""
        self._looks: Iterator[Callable[[], int | None]] = self._walk()

    def advance(self, limit: int) -> Collected:
        """Look at up to *limit* files, or at none when the walk is over."""
        looked = chunks = size = 0
        for look in self._looks:
            looked += 1
            freed = look()
            if freed is not None:
                chunks += 1
                size += freed
            if looked >= limit:
                break
        return Collected(chunks=chunks, bytes=size, steps=looked)

    def _walk(self) -> Iterator[Callable[[], int | None]]:
        for path, key, index in self._tails.names():
            yield partial(self._look_at_tail, path, key, index)
        for shard in SHARDS:
            for path, digest in self._chunks.names(shard):
                yield partial(self._look_at_chunk, path, digest)

    # Each look returns the size in bytes of the chunk that it removed, or None.

    def _look_at_tail(self, path: str, key: ContentKey, index: int) -> None:
        if path.endswith(FRESH):
            self._tails.disk.unlink(path)  # nobody makes a copy while this look goes on
            return

        def remove() -> None:
            # Look once more: a writer may have been here since.
            if not self._holds_tail(key, index):
                self._tails.disk.unlink(path)

        def pass_over() -> None:
            self._passed_over.setdefault(key, set()).add(index)

        if not self._holds_tail(key, index):
            self._writers.unless_open(key, remove, pass_over)

    def _look_at_chunk(self, path: str, digest: Digest | None) -> int | None:
        if digest is not None and self._catalog.has_chunk(digest):
            return None
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None  # it was the temporary file of a repair
        if stat.S_ISDIR(status.st_mode):
            return None  # no store makes a directory here: leave it to its owner
        self._chunks.remove_file(path)
        return None if digest is None else status.st_size
