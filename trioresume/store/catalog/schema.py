"""The catalog's tables, their version, and how a connection is opened.

========== ==================================================================
operations one row per operation, tombstones included
contents   content under construction: one row per key; ``key`` is null once it
           is *detached*, that is finished or released, and waits to be cleared
pieces     the sealed chunks of a content, by index, except those in parts
parts      the recipes of a content's first chunks: see chunk_lists.py
chunks     every published chunk and how many pieces and recipes hold it;
           ``unsynced`` is the epoch of a chunk published without a sync
recipes    finished content and how many operations, files and recipes hold it
files      the file service's names
accounts   the bytes that each principal, and all together, use: see usage_triggers.py
kept       which finished contents a principal is charged for
events     events that wait to be told, and dead_events: see outbox.py
meta       named values of the service; ``store`` has those of the store itself
========== ==================================================================

The holds. A piece holds its chunk, and a part holds its recipe. A recipe holds each
chunk once for every time it lists it, except its first ``dismantled`` entries: a recipe
that nobody holds is dismantled in slices, and this number says how far that got. Freezing
moves the pieces' holds to the recipe: pieces below ``moved_below`` of a detached content
no longer hold their chunk. So freezing changes few rows, whether the recipe is new (all
holds move), known (none move) or half dismantled (those of its released entries move).

A joined recipe (``joined`` is 1) holds recipes instead of chunks, by the same rules: once
for every time it lists one, except its first ``dismantled`` entries. Its ``chunk_count``
counts them. The recipes that it holds are not joined themselves.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trioresume.errors import FormatVersionUnsupported, StorageError, StorageFull
from trioresume.store.catalog.outbox import EVENTS
from trioresume.store.catalog.read_only import connect_without_writing
from trioresume.store.catalog.usage_triggers import (
    ACCOUNTS,
    COUNT_RECORDS,
    COUNT_WAITING,
)
from trioresume.store.file_system.disk_io import FULL, Descriptor, owner_to_follow

if TYPE_CHECKING:
    from trioresume.store.file_system.disk_io import Disk

__all__ = [
    "connect",
    "connect_reading",
    "create",
    "migrate",
    "sqlite_error",
    "write_error",
]

_VERSION_1 = """
CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    fields BLOB NOT NULL,
    principal TEXT,
    keep_incomplete INTEGER NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    length INTEGER,
    content_length INTEGER,
    content_inline BLOB,
    content_digest BLOB,
    response_head BLOB,
    response_length INTEGER,
    response_inline BLOB,
    response_digest BLOB
);
CREATE INDEX operations_by_state ON operations (state, id);
CREATE INDEX operations_by_expiry ON operations (expires_at);

CREATE TABLE contents (
    cid INTEGER PRIMARY KEY,
    key TEXT UNIQUE,
    chunk_size INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    prefix INTEGER NOT NULL DEFAULT 0,
    prefix_bytes INTEGER NOT NULL DEFAULT 0,
    durable_offset INTEGER NOT NULL DEFAULT 0,
    moved_below INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX contents_detached ON contents (cid) WHERE key IS NULL;

CREATE TABLE pieces (
    cid INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    digest BLOB NOT NULL,
    length INTEGER NOT NULL,
    PRIMARY KEY (cid, idx)
) WITHOUT ROWID;

CREATE TABLE chunks (
    digest BLOB PRIMARY KEY,
    length INTEGER NOT NULL,
    refs INTEGER NOT NULL CHECK (refs >= 0)
) WITHOUT ROWID;
CREATE INDEX chunks_unheld ON chunks (digest) WHERE refs = 0;

CREATE TABLE recipes (
    digest BLOB PRIMARY KEY,
    length INTEGER NOT NULL,
    chunk_count INTEGER NOT NULL,
    refs INTEGER NOT NULL CHECK (refs >= 0),
    dismantled INTEGER NOT NULL DEFAULT 0,
    body BLOB NOT NULL
);
CREATE INDEX recipes_unheld ON recipes (digest) WHERE refs = 0;

CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    owner TEXT,
    fields BLOB NOT NULL,
    modified_at REAL NOT NULL,
    expires_at REAL,
    content_length INTEGER NOT NULL,
    content_inline BLOB,
    content_digest BLOB,
    UNIQUE (namespace, name)
);
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE store (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_VERSION_2 = """
ALTER TABLE recipes ADD COLUMN joined INTEGER NOT NULL DEFAULT 0;
"""

_VERSION_3 = """
ALTER TABLE operations ADD COLUMN explicit_completion INTEGER NOT NULL DEFAULT 0;
"""

_VERSION_5 = """
CREATE TABLE parts (
    cid INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (cid, idx)
) WITHOUT ROWID;
ALTER TABLE contents ADD COLUMN parts INTEGER NOT NULL DEFAULT 0;
"""

_VERSION_6 = """
ALTER TABLE chunks ADD COLUMN unsynced INTEGER NOT NULL DEFAULT 0;
CREATE INDEX chunks_unsynced ON chunks (unsynced) WHERE unsynced > 0;
UPDATE chunks
    SET unsynced = max(1, (SELECT CAST(value AS INTEGER) FROM store WHERE name = 'epoch'))
    WHERE (SELECT value FROM store WHERE name = 'durability') = 'process';
"""

# Entry n migrates a catalog from version n to version n + 1.
_MIGRATIONS = (
    _VERSION_1,
    _VERSION_2,
    _VERSION_3,
    ACCOUNTS,
    _VERSION_5,
    _VERSION_6,
    COUNT_RECORDS,
    EVENTS,
    COUNT_WAITING,
)

_BUSY_TIMEOUT = 10.0
"""Seconds to wait for another process, such as an administrator's command that reads."""

_CACHE_KIB = 512
"""Memory for pages of each connection. SQLite's default of 2 MiB fills up with the catalog
and is no faster: the system's page cache has the missing pages."""

_CANNOT_WRITE = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR}
)
"""SQLite's error codes where it cannot make the files that it needs to read a log."""

_WAL_LIMIT = 64 * 1024 * 1024
"""The write-ahead log is cut back to this many bytes after a burst."""


def connect(path: str, synchronous: str) -> sqlite3.Connection:
    """Return a connection in autocommit mode; one thread at a time may use it."""
    # SQLite would make the file readable for all. Its other files take the mode from it.
    with closing(Descriptor(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))) as file:
        owner = owner_to_follow(os.path.dirname(path))
        if owner is not None:
            os.chown(file.fileno(), *owner)
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA fullfsync = 1")  # macOS only: see disk_io.py
    connection.execute("PRAGMA checkpoint_fullfsync = 1")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


def create(path: str, disk: Disk) -> None:
    """Make an empty catalog *path* of the newest version, if there is none.

    The catalog is written under another name and renamed. Otherwise a power loss could keep
    the file's length and lose its bytes, and SQLite would not recognise the file. SQLite
    syncs its own files, but if it cannot sync the directory it still believes that the name
    of its log is on the disk. So the directory is synced here.
    """
    if os.path.exists(path):
        return
    aside = f"{path}.new"
    for name in ("", "-journal", "-wal", "-shm"):
        disk.unlink(aside + name)
    connection = connect(aside, disk.synchronous)
    try:
        migrate(connection)
    finally:
        connection.close()
    file = disk.open(aside, write=True)
    try:
        disk.sync_data(file)
    finally:
        file.close()
    disk.replace(aside, path)
    disk.sync_directory(os.path.dirname(path))


def connect_reading(path: str) -> sqlite3.Connection:
    """Return a connection that reads the catalog beside the process that serves it.

    Because the catalog has a write-ahead log, the connection neither waits for commits nor
    delays them. But during one of its transactions the log cannot be cut back, so they must
    be short. The directory need not be writable, and its disk may be full: see
    :mod:`.read_only`.

    Raises :class:`FormatVersionUnsupported` for any version but the newest, because only
    the service migrates a catalog, and :class:`StorageError` if the catalog cannot be read.
    """
    options: dict[str, Any] = {
        "timeout": _BUSY_TIMEOUT,
        "isolation_level": None,
        "check_same_thread": False,
    }
    uri = f"{Path(path).absolute().as_uri()}?mode=ro"
    try:
        try:
            return _checked(sqlite3.connect(uri, uri=True, **options))
        except sqlite3.Error as exc:
            if _primary_code(exc) not in _CANNOT_WRITE:
                raise
            return _checked(connect_without_writing(path, options))
    except sqlite3.Error as exc:
        raise sqlite_error(exc) from exc


def _checked(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Return *connection*, if its catalog can be read and has the newest version."""
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise FormatVersionUnsupported(
                f"the catalog has version {version}: it needs a newer trioresume"
            )
        if version < len(_MIGRATIONS):
            raise FormatVersionUnsupported(
                f"the catalog has version {version}, which the service brings to"
                f" {len(_MIGRATIONS)} when it is started next"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection) -> None:
    """Migrate the catalog to the newest version.

    Raises :class:`FormatVersionUnsupported` if it is from a later trioresume.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(_MIGRATIONS):
        raise FormatVersionUnsupported(
            f"the catalog has version {version}: it needs a newer trioresume"
        )
    for number, script in enumerate(_MIGRATIONS[version:], version + 1):
        connection.executescript(
            f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;"
        )


def sqlite_error(exc: sqlite3.Error) -> StorageError:
    """Return the storage error for *exc*."""
    code = getattr(exc, "sqlite_errorcode", None)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
        # SQLite reports the second code when its third file (-shm) has no room to grow.
        # SQLite's own text for it is "disk I/O error".
        return StorageFull(
            f"the disk is full: the catalog cannot grow ({os.strerror(errno.ENOSPC)})"
        )
    if _primary_code(exc) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StorageError(
            f"the catalog failed: {exc}. Stop the service and run trioresume verify; see"
            ' "A damaged catalog" in docs/howto/keep.md'
        )
    return StorageError(f"the catalog failed: {exc}")


_PROBE_SIZE = 64 * 1024


def write_error(exc: sqlite3.Error, path: str) -> StorageError:
    """Return the storage error for *exc*, which a change of the catalog *path* raised.

    SQLite distinguishes a full disk from other failures, but not a used-up quota (EDQUOT)
    or a limit of a file's size (EFBIG). So this writes to a file beside the catalog, at the
    position where the longest of the catalog's files ends, and looks at the error.
    """
    if _primary_code(exc) == sqlite3.SQLITE_IOERR:
        probe = f"{path}.probe"
        try:
            reached = max(
                os.path.getsize(name)
                for name in (path, f"{path}-wal")
                if os.path.exists(name)
            )
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.lseek(fd, reached, os.SEEK_SET)
                if os.write(fd, bytes(_PROBE_SIZE)) < _PROBE_SIZE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(fd)
                os.unlink(probe)
        except OSError as found:
            if found.errno in FULL:
                return StorageFull(
                    f"the disk is full: the catalog cannot grow ({found.strerror})"
                )
    return sqlite_error(exc)


def _primary_code(exc: sqlite3.Error) -> int | None:
    """Return the error code without the details in its higher bits."""
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
