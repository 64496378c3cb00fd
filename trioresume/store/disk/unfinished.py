"""Finding where content under construction ends, without changing anything.

A key's content is a row of *parts* without a gap: sealed chunks, which are durable, and
tails. The catalog lists the sealed chunks; the directory holds the tails. Both can change
during a look (a seal commits, then its tail is unlinked). So a look counts only if the
catalog said the same before and after it.

Unsynced bytes are believed only in the *epoch* in which they were written. Every start of a
store begins a new epoch. Bytes written before it may have been lost, by a power loss or by
a file system that was shut down or mounted again. Two kinds of older bytes count:

* bytes that were recorded as synced,
* and bytes that are proven (see :mod:`trioresume.store.disk.tail_files`).

An epoch also ends when the names of tails could not be synced. Nobody can tell which names
the sync was for. So of the bytes written until then only recorded ones count, not proven
ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trioresume.errors import ContentLost
from trioresume.store.catalog.catalog import CatalogReader
from trioresume.store.catalog.chunk_lists import ContentRow
from trioresume.store.catalog.epochs import NO_EPOCH, Epoch
from trioresume.store.port import ContentKey

__all__ = ["Extent", "Part", "Standing", "Survey"]


class Standing:
    """Exceptions to the rule of the epochs: contents that this process believes or doubts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._adopted: set[ContentKey] = set()
        self._suspects: set[ContentKey] = set()

    def adopt(self, key: ContentKey) -> None:
        """Believe all bytes of *key* from now on: each of them was recorded or proven."""
        with self._lock:
            self._adopted.add(key)

    def suspect(self, keys: Iterable[ContentKey]) -> None:
        """Count only the recorded bytes of *keys*."""
        with self._lock:
            self._suspects.update(keys)

    def suspect_adopted(self) -> None:
        """Withdraw every :meth:`adopt`: older contents keep only their recorded bytes."""
        with self._lock:
            self._adopted.clear()

    def acquit(self, key: ContentKey) -> None:
        """End the suspicion of *key*: its bytes that did not count were cut off."""
        with self._lock:
            self._suspects.discard(key)

    def forget(self, key: ContentKey) -> None:
        """Forget *key*, which is no longer under construction."""
        if self._adopted or self._suspects:
            with self._lock:
                self._adopted.discard(key)
                self._suspects.discard(key)

    def is_adopted(self, key: ContentKey) -> bool:
        return key in self._adopted

    def is_suspect(self, key: ContentKey) -> bool:
        return key in self._suspects


@dataclass(frozen=True, slots=True)
class Part:
    index: int
    length: int
    sealed: bool
    proven: int = 0
    """How many bytes of a tail are proven. It is looked up only where it matters."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The result of one look."""

    row: ContentRow
    parts: tuple[Part, ...]
    """The parts that follow the row's prefix without a gap."""
    strays: bool
    """Whether there are sealed chunks past the last part."""
    trusted: bool
    """Whether all bytes that are there count."""
    provable: bool
    """If they do not all count: whether proven bytes count."""

    @property
    def end(self) -> int:
        """The number of bytes that are there."""
        if not self.parts:
            return self.row.prefix_bytes
        last = self.parts[-1]
        return last.index * self.row.chunk_size + last.length

    @property
    def kept(self) -> int:
        """The number of bytes that count."""
        return self.end if self.trusted else self._count(proofs=True)

    @property
    def recorded(self) -> int:
        """The number of bytes that count and are durable already."""
        return self._count(proofs=False)

    def _count(self, *, proofs: bool) -> int:
        count = self.row.prefix_bytes
        for part in self.parts:
            start = part.index * self.row.chunk_size
            if count != start:
                break
            sure = part.length if part.sealed else max(0, self.row.durable - start)
            count += min(part.length, max(sure, part.proven if proofs else 0))
        return count

    @property
    def short(self) -> int | None:
        """The index of the short sealed chunk at the end, if there is one."""
        if self.row.short_end:
            return self.row.prefix - 1
        last = self.parts[-1] if self.parts else None
        if last is not None and last.sealed and last.length < self.row.chunk_size:
            return last.index
        return None

    def checked(self) -> int:
        """Return how many bytes count. Raises :class:`ContentLost` if durable ones are gone."""
        if self.end < self.row.durable:
            raise ContentLost(
                f"{self.row.durable} bytes were durable, {self.end} are left"
            )
        return self.kept


class Survey:
    """Looks at content under construction.

    *tail_length* returns the number of bytes in a tail, or None if there is no tail.
    *proven* returns how many of them are proven.
    """

    def __init__(
        self,
        catalog: CatalogReader,
        tail_length: Callable[[ContentKey, int], int | None],
        proven: Callable[[ContentKey, int], int],
        epoch: Epoch,
        standing: Standing | None = None,
    ) -> None:
        self._catalog = catalog
        self._tail_length = tail_length
        self._proven = proven
        self._epoch = epoch
        self._standing = standing or Standing()

    def look(self, key: ContentKey, *, proofs: bool = True) -> Extent | None:
        """Return the extent of *key*; None if it is not under construction in the catalog.

        Without *proofs* no tail is read, and unsynced bytes of older epochs do not count.
        """
        before = self._catalog.known(key)
        while before is not None:
            extent = self._walk(key, *before, proofs=proofs)
            after = self._catalog.known(key)
            if after == before:
                return extent
            before = after
        return None

    def _walk(
        self, key: ContentKey, row: ContentRow, pieces: dict[int, int], *, proofs: bool
    ) -> Extent:
        trusted, provable = self._judge(key, row)
        looks = provable and proofs
        parts: list[Part] = []
        index = row.prefix
        length: int | None = 0 if row.short_end else row.chunk_size
        while length == row.chunk_size:
            sealed = index in pieces
            length = pieces[index] if sealed else self._tail_length(key, index)
            if length is not None:
                proven = self._proven(key, index) if looks and not sealed else 0
                parts.append(Part(index, length, sealed, proven))
                # Bytes after a gap in the proofs never count, so their proofs do not matter.
                looks = looks and (sealed or proven == length)
                index += 1
        strays = any(i >= index for i in pieces)
        return Extent(row, tuple(parts), strays, trusted, provable)

    def _judge(self, key: ContentKey, row: ContentRow) -> tuple[bool, bool]:
        """Return whether all unsynced bytes of *key* count, and whether proven ones count."""
        if row.epoch == NO_EPOCH or self._standing.is_suspect(key):
            return False, False
        if row.epoch == self._epoch.number or self._standing.is_adopted(key):
            return True, False
        return False, row.epoch >= self._epoch.provable
