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

import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trioresume.errors import ContentLost
from trioresume.store.catalog.catalog import CatalogReader
from trioresume.store.catalog.chunk_lists import NO_EPOCH, ContentRow
from trioresume.store.port import ContentKey

__all__ = ["Epoch", "Extent", "Part", "Survey"]


class Epoch:
    """The epoch that a store is in, and the contents that are exceptions from its rule.

    Unsynced bytes of the epochs from *provable* on count if they are proven. Unsynced bytes
    of earlier epochs never count. This process believes all bytes of *adopted* contents, and
    only the recorded bytes of *suspect* ones. Of *orphans*, whose writer was in a process that
    died, it believes the unsynced bytes that are proven, as if the epoch were over.
    """

    def __init__(self, number: int = 0, provable: int = 0) -> None:
        self._lock = threading.Lock()
        self._adopted: set[ContentKey] = set()
        self._suspects: set[ContentKey] = set()
        self._orphans: set[ContentKey] = set()
        self.begin(number, provable)

    @classmethod
    def kept_in(cls, catalog: CatalogReader) -> Epoch:
        """Return the epoch of the process that opened the store last."""
        number, provable = map(catalog.store_value, ("epoch", "provable"))
        return cls(int(number or 0), int(provable or 0))

    def begin(self, number: int, provable: int) -> None:
        self.number = number
        self.provable = provable
        self._first = number

    def end(self) -> None:
        """End the epoch: bytes that are not recorded until now no longer count.

        Then call :meth:`suspect_open`.
        """
        self.number += 1
        self.provable = self.number

    def note(self, connection: sqlite3.Connection) -> None:
        """Write the epoch in the open transaction, for the next process, if it has changed."""
        if self.number != self._first:
            connection.executemany(
                "REPLACE INTO store VALUES (?, ?)", self.values().items()
            )

    def values(self) -> dict[str, str]:
        """Return the values that the catalog keeps, by name."""
        return {"epoch": str(self.number), "provable": str(self.provable)}

    # The exceptions.

    def adopt(self, key: ContentKey) -> None:
        """Believe all bytes of *key* from now on: each of them was recorded or proven."""
        with self._lock:
            self._adopted.add(key)
            self._orphans.discard(key)

    def orphan(self, keys: Iterable[ContentKey]) -> None:
        """Count only proven bytes of *keys*, and recorded ones: their writer's process died."""
        with self._lock:
            self._orphans.update(keys)
            self._adopted.difference_update(keys)

    def suspect(self, keys: Iterable[ContentKey]) -> None:
        """Count only the recorded bytes of *keys*."""
        with self._lock:
            self._suspects.update(keys)

    def suspect_open(self, keys: Iterable[ContentKey]) -> None:
        """Count only the recorded bytes of *keys* and of adopted contents: the epoch has ended.

        *keys* have writers. The catalog may not know them yet.
        """
        with self._lock:
            self._suspects.update(keys)
            self._adopted.clear()

    def acquit(self, key: ContentKey) -> None:
        """End the suspicion of *key*: its bytes that did not count were cut off."""
        with self._lock:
            self._suspects.discard(key)
            self._orphans.discard(key)

    def forget(self, key: ContentKey) -> None:
        """Forget *key*, which is no longer under construction."""
        if self._adopted or self._suspects or self._orphans:
            with self._lock:
                self._adopted.discard(key)
                self._suspects.discard(key)
                self._orphans.discard(key)

    def judge(self, key: ContentKey, epoch: int) -> tuple[bool, bool]:
        """Judge the unsynced bytes of *key*, whose content was begun or opened in *epoch*.

        Returns whether all of them count, and whether those that are proven count.
        """
        if epoch == NO_EPOCH or key in self._suspects:
            return False, False
        if key in self._orphans:
            return False, epoch >= self.provable
        if epoch == self.number or key in self._adopted:
            return True, False
        return False, epoch >= self.provable


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
    ) -> None:
        self._catalog = catalog
        self._tail_length = tail_length
        self._proven = proven
        self._epoch = epoch

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
        trusted, provable = self._epoch.judge(key, row.epoch)
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
