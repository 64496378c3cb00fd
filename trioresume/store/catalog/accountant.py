"""Quick looks at the catalog, for the event loop: accounts, and whether the file is there.

They have a connection of their own, so that they never wait for a long list. A worker that
shares the store has such a connection as well, although the catalog is the keeper's: SQLite
lets other processes read, and they see what is committed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

from trioresume.errors import StorageError
from trioresume.store.catalog.schema import sqlite_error
from trioresume.store.port import Usage

__all__ = ["Accountant"]


class Accountant:
    """Looks at the catalog *path*. :meth:`close` closes *connection*."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = connection
        opened = os.stat(path)
        self._identity = (opened.st_dev, opened.st_ino)
        connection.execute("PRAGMA query_only = 1")
        connection.execute("PRAGMA cache_size = -64")

    @classmethod
    def beside_keeper(cls, path: str) -> Accountant:
        """Return one for a process that only looks. Raises :class:`StorageError`.

        The connection cannot write, so it makes no checkpoint when it is closed.
        """
        try:
            connection = sqlite3.connect(
                f"{Path(path).absolute().as_uri()}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            return cls(path, connection)
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc

    def usage(self, namespace: str) -> Usage:
        """Return the account of *namespace*; ``*`` is the account of all together."""
        try:
            with self._lock:
                row = self._connection.execute(
                    "SELECT bytes, open FROM accounts WHERE namespace = ?", (namespace,)
                ).fetchone()
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc
        return Usage() if row is None else Usage(*row)

    def check(self) -> None:
        """Raise :class:`StorageError` if the catalog's file was removed or replaced.

        SQLite keeps the old file open and would go on writing to it, although nobody
        could find those writes later.
        """
        try:
            found = os.stat(self._path)
        except OSError as exc:
            raise StorageError(
                f"the catalog's file was removed while it was in use: {exc}. Put it back, or"
                " stop the service"
            ) from exc
        if (found.st_dev, found.st_ino) != self._identity:
            raise StorageError(
                f"the catalog's file was replaced while it was in use ({self._path}). Start"
                " the service again"
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()
