"""Where content under construction ends: looking at it, changing nothing.

What a key holds is a row of *parts* without a gap: sealed chunks, which are durable,
and tails. The catalog gives the first, the directory the second. Both change while
one looks (a seal commits, then its tail is unlinked), so a look counts only if the
catalog said the same before and after it.

Unsynced bytes count only in the *epoch* they were written in, which is a number that
changes with the machine's boot. An epoch also ends when the names of tails could not be
synced: whose they were nobody can tell, so what was not recorded by then counts for
nobody, as after a power loss.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container
from dataclasses import dataclass

from trioresume.errors import ContentLost
from trioresume.store.catalog import CatalogReader
from trioresume.store.folding import ContentRow
from trioresume.store.port import ContentKey

__all__ = ["NO_EPOCH", "Epoch", "Extent", "Part", "Survey", "epoch_of"]


NO_EPOCH = -1
"""The epoch of content of which nothing counts that was not recorded."""


def epoch_of(catalog: CatalogReader, boot: str | None, *, durable: bool) -> int:
    """The epoch that a process is in that opens the store in this *boot*.

    Where the boot cannot be told, every start is a new one, except where nothing about
    power loss is promised (*durable* is false).
    """
    epoch = int(catalog.store_value("epoch") or 0)
    same = boot is not None and boot == catalog.store_value("boot")
    return epoch + (not same and (boot is not None or durable))


class Epoch:
    """The epoch that a store is in."""

    def __init__(self, number: int = 0) -> None:
        self.begin(number)

    def begin(self, number: int) -> None:
        self.number = number
        self._first = number

    def end(self) -> None:
        """What was not recorded until now does not count any more."""
        self.number += 1

    def note(self, connection: sqlite3.Connection) -> None:
        """Have the open transaction keep it for the next process, if it is a new one."""
        if self.number != self._first:
            value = str(self.number)
            connection.execute("REPLACE INTO store VALUES ('epoch', ?)", (value,))


@dataclass(frozen=True, slots=True)
class Part:
    index: int
    length: int
    sealed: bool


@dataclass(frozen=True, slots=True)
class Extent:
    """What one look found."""

    row: ContentRow
    parts: tuple[Part, ...]
    """What follows the row's prefix without a gap."""
    strays: bool
    """Whether there are sealed chunks past the last part."""
    trusted: bool

    @property
    def end(self) -> int:
        """All the bytes that are there."""
        if not self.parts:
            return self.row.prefix_bytes
        last = self.parts[-1]
        return last.index * self.row.chunk_size + last.length

    @property
    def kept(self) -> int:
        """The bytes that count."""
        if self.trusted:
            return self.end
        kept = self.row.prefix_bytes
        for part in self.parts:
            start = part.index * self.row.chunk_size
            if kept != start:
                break
            synced = part.length if part.sealed else max(0, self.row.durable - start)
            kept += min(part.length, synced)
        return kept

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
        """The bytes that count. Raises :class:`ContentLost` if durable ones are gone."""
        if self.end < self.row.durable:
            raise ContentLost(
                f"{self.row.durable} bytes were durable, {self.end} are left"
            )
        return self.kept


class Survey:
    """Looks at content under construction.

    *tail_length* gives the bytes in a tail, or None where there is none. Of *suspects*
    what is not recorded as synced does not count.
    """

    def __init__(
        self,
        catalog: CatalogReader,
        tail_length: Callable[[ContentKey, int], int | None],
        epoch: Epoch,
        suspects: Container[ContentKey] = (),
    ) -> None:
        self._catalog = catalog
        self._tail_length = tail_length
        self._epoch = epoch
        self._suspects = suspects

    def look(self, key: ContentKey) -> Extent | None:
        """What is there of *key*; None if the catalog does not speak of it."""
        before = self._catalog.known(key)
        while before is not None:
            extent = self._walk(key, *before)
            after = self._catalog.known(key)
            if after == before:
                return extent
            before = after
        return None

    def _walk(self, key: ContentKey, row: ContentRow, pieces: dict[int, int]) -> Extent:
        parts: list[Part] = []
        index = row.prefix
        length: int | None = 0 if row.short_end else row.chunk_size
        while length == row.chunk_size:
            sealed = index in pieces
            length = pieces[index] if sealed else self._tail_length(key, index)
            if length is not None:
                parts.append(Part(index, length, sealed))
                index += 1
        trusted = row.epoch == self._epoch.number and key not in self._suspects
        return Extent(row, tuple(parts), any(i >= index for i in pieces), trusted)
