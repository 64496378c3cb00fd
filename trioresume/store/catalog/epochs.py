"""Epochs: the time in which a store's unsynced bytes are believed.

Every start of a store begins a new epoch. Bytes written before it may have been lost, by a
power loss or by a file system that was shut down or mounted again.
"""

from __future__ import annotations

import sqlite3

from trioresume.store.catalog.catalog import CatalogReader

__all__ = ["NO_EPOCH", "Epoch"]

NO_EPOCH = -1
"""The epoch of content whose unrecorded bytes never count."""


class Epoch:
    """The epoch that a store is in.

    Unsynced bytes of the epochs from *provable* on count if they are proven. Unsynced bytes
    of earlier epochs never count.
    """

    def __init__(self, number: int = 0, provable: int = 0) -> None:
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
        """End the epoch: bytes that are not recorded until now no longer count."""
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
