"""Reading the catalog where nothing may or can be written.

To read a catalog with a write-ahead log, SQLite needs a third file, ``-shm``, and makes it
if it is missing. But an administrator may look at a directory that is not writable, such as
a snapshot that is mounted read-only, or at one on a full disk. If the third file exists,
SQLite uses it. It exists beside a service that runs or was killed. If it does not exist,
there are two cases:

* Without a log, the catalog is the only file, and it does not change. It is opened as
  *immutable*. If a service begins to change it all the same, the next statement notices.
* With a log, for example in a backup that left the third file out, both files are copied to
  the directory for temporary files, and read there.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from trioresume.errors import StorageError
from trioresume.store.file_system.disk_io import translated

__all__ = ["connect_without_writing"]

_COPY_ATTEMPTS = 3

_State = tuple[int, int, int]


def connect_without_writing(path: str, options: dict[str, Any]) -> sqlite3.Connection:
    """Return a connection to the catalog *path* that makes no file beside it.

    *options* are those of :func:`sqlite3.connect`. Raises :class:`sqlite3.Error`,
    :class:`StorageFull` if there is no room for a copy, and :class:`StorageError`.
    """
    with translated(f"reading {path}"):
        state = _state(path)
    if state[0] > 0:
        return _connect_to_copy(path, options)
    connection = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1",
        uri=True,
        factory=_Immutable,
        **options,
    )
    assert isinstance(connection, _Immutable)
    connection.path, connection.state = path, state
    return connection


def _state(path: str) -> _State:
    """Return values that change when anybody writes: log size, catalog size and time."""
    try:
        log = os.stat(f"{path}-wal").st_size
    except FileNotFoundError:
        log = 0
    status = os.stat(path)
    return log, status.st_size, status.st_mtime_ns


class _Immutable(sqlite3.Connection):
    """A connection to a catalog that should not change meanwhile."""

    path: str | None = None
    state: _State = (0, 0, 0)

    def execute(self, *args: Any) -> sqlite3.Cursor:
        """Execute a statement; raise :class:`sqlite3.OperationalError` if somebody has written."""
        if self.path is not None and _state(self.path) != self.state:
            raise sqlite3.OperationalError(
                "a service has begun to change it: run the command again"
            )
        return super().execute(*args)


class _Copied(sqlite3.Connection):
    """A connection to a copy of the catalog, which :meth:`close` removes."""

    directory: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        super().close()
        if self.directory is not None:
            self.directory.cleanup()


def _connect_to_copy(path: str, options: dict[str, Any]) -> sqlite3.Connection:
    directory = tempfile.TemporaryDirectory(prefix="trioresume-")
    copy = os.path.join(directory.name, "catalog.sqlite3")
    with translated(f"copying {path} to read it"):
        for _ in range(_COPY_ATTEMPTS):
            before = _state(path)
            for suffix in ("", "-wal"):
                shutil.copyfile(path + suffix, copy + suffix)
            if _state(path) == before:
                break
        else:
            raise StorageError(
                f"{path} was changed each time that it was copied to be read; try again"
            )
    connection = sqlite3.connect(copy, factory=_Copied, **options)
    assert isinstance(connection, _Copied)
    connection.directory = directory
    return connection
