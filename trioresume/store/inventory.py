"""What a data directory holds, for its keeper: read beside whoever serves it.

Nothing here takes the directory's lock or writes to it. The catalog is read by a
connection of its own, in pages, each a transaction as short as its page: memory does
not grow with the number of rows, and the service's log is not kept from being cut
back. So a long listing is no snapshot; each row was true when it was read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trioresume.errors import ContentLost, FormatVersionUnsupported, StorageError
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog import CatalogReader
from trioresume.store.chunks import ChunkFiles
from trioresume.store.data_dir import FORMAT, is_served
from trioresume.store.disk_io import Disk
from trioresume.store.extent import Epoch, Survey
from trioresume.store.port import (
    SERVICE_CLOCK,
    ContentKey,
    FileRecord,
    OperationId,
    OperationRecord,
    request_key,
)
from trioresume.store.rows import FILE_COLUMNS, file_from
from trioresume.store.schema import connect_reading, sqlite_error
from trioresume.store.tails import TailFiles
from trioresume.store.verification import Verification

__all__ = ["Inventory", "StoredFile", "StoredUpload", "Totals"]

_PAGE = 500
"""Rows read at a time."""

_UNFINISHED = (
    OperationState.RECEIVING,
    OperationState.COMPLETE,
    OperationState.PROCESSING,
    OperationState.ABANDONED,
)
_SECRETS = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredUpload:
    """One operation. Times are Unix seconds, sizes bytes.

    The service counts the time in which it was there to serve. Times are dates made of
    that: an expiry moves on while the service is down.
    """

    id: str
    """Whoever knows it can go on with the upload: as good as a password."""
    state: str
    """``receiving``, ``complete``, ``processing``, ``done``, ``abandoned`` or ``gone``."""
    method: str
    target: str
    principal: str | None
    created_at: float
    expires_at: float
    received: int
    """What a client that asks is told, at least."""
    durable: int
    """How much of it is known to survive power loss."""
    length: int | None
    digest: str | None
    """The content's name, in hexadecimal, once it is whole."""
    status: int | None
    """Of the recorded response."""
    fields: Fields
    """The request's header fields; the values of those that hold secrets are left out."""
    lost: bool
    """Whether bytes that were durable are gone: it cannot go on (see ``verify``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of the file service. Times are Unix seconds, sizes bytes."""

    name: str
    owner: str | None
    length: int
    digest: str | None
    """The content's name, in hexadecimal; None for what is kept in the catalog itself."""
    modified_at: float
    expires_at: float | None
    fields: Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What there is, counted."""

    files: int
    file_bytes: int
    """The lengths of all files together; what they share is counted each time."""
    uploads: dict[str, int]
    """Operations by their state."""
    chunks: int
    chunk_bytes: int
    """What the chunks take on disk: what is shared is counted once."""
    unheld_chunks: int
    unheld_bytes: int
    """Chunks that nothing refers to any more; collection is about to take them."""


class Inventory:
    """Reads the data directory *data_dir*, beside a running service or without one.

    Its methods block, on the disk. One thread at a time may use an inventory, and its
    iterators. Use it in a ``with`` statement, or :meth:`close` it.

    Raises :class:`~trioresume.StorageError` if there is no data directory, or one of
    another version, or if it may not be read.
    """

    def __init__(
        self, data_dir: str | os.PathLike[str], *, disk: Disk | None = None
    ) -> None:
        self.path = os.path.abspath(data_dir)
        _check_format(Path(self.path))
        self._disk = disk or Disk(durable=False)
        self._connection = connect_reading(os.path.join(self.path, "catalog.sqlite3"))
        self._catalog = CatalogReader(self._connection)
        self._chunks = ChunkFiles(os.path.join(self.path, "chunks"), self._disk)
        self._tails = TailFiles(os.path.join(self.path, "tails"), self._disk, Epoch())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the catalog go. Idempotent."""
        self._catalog.close()

    # Uploads.

    def uploads(self, *, ended: bool = False) -> Iterator[StoredUpload]:
        """The uploads that are not done, by their ids; with *ended* also those that are.

        Ended are those whose response is kept to be replayed, and what was cancelled
        or has expired and still answers 410.
        """
        states = tuple(OperationState) if ended else _UNFINISHED
        survey = self._survey(_nothing_proven)  # a list must not read every tail
        behind = self._behind()
        after: OperationId | None = None
        while page := self._catalog.operations_in(states, _PAGE, after):
            for record in page:
                yield self._upload(record, survey, behind)
            after = page[-1].id

    def upload(self, id: str) -> StoredUpload | None:
        """The upload called *id*."""
        if not _is_text(id):
            return None
        record = self._catalog.operation(OperationId(id))
        survey = self._survey(self._tails.proven)
        if record is None:
            return None
        return self._upload(record, survey, self._behind())

    def _upload(
        self, record: OperationRecord, survey: Survey, behind: float
    ) -> StoredUpload:
        received, lost = record.durable_offset, False
        if record.content is None and record.state in _UNFINISHED:
            try:
                extent = survey.look(request_key(record.id))
                received = received if extent is None else extent.checked()
            except ContentLost:
                lost = True
        content = record.content
        return StoredUpload(
            id=record.id,
            state=str(record.state),
            method=record.method,
            target=record.target,
            principal=record.principal,
            created_at=record.created_at + behind,
            expires_at=record.expires_at + behind,
            received=received,
            durable=record.durable_offset,
            length=record.length,
            digest=_hex(None if content is None else content.digest),
            status=None if record.response is None else record.response.status,
            fields=Fields((n, "…" if n in _SECRETS else v) for n, v in record.fields),
            lost=lost,
        )

    def _survey(self, proven: Callable[[ContentKey, int], int]) -> Survey:
        epoch = Epoch.kept_in(self._catalog)
        if not is_served(self.path):
            # What a process left behind is looked at as the next one will do it.
            epoch.begin(epoch.number + 1, epoch.provable)
        return Survey(self._catalog, self._tails.length, proven, epoch)

    def _behind(self) -> float:
        """By how many seconds service time is behind the date, as far as was noted."""
        reading = self._catalog.meta(SERVICE_CLOCK)
        if reading is None:
            return 0.0
        now, date = map(float, reading.split())
        return date - now

    # Files.

    def files(self) -> Iterator[StoredFile]:
        """The file service's files, oldest name first."""
        after, behind = 0, self._behind()
        while page := self._rows(
            f"SELECT id, {FILE_COLUMNS} FROM files WHERE id > ? ORDER BY id LIMIT ?",
            after,
            _PAGE,
        ):
            for row in page:
                yield _stored_file(file_from(row[1:]), behind)
            after = page[-1][0]

    def files_called(self, name: str) -> list[StoredFile]:
        """The files that have this name, one for each owner that has one."""
        if not _is_text(name):
            return []
        rows = self._rows(f"SELECT {FILE_COLUMNS} FROM files WHERE name = ?", name)
        behind = self._behind()
        return [_stored_file(file_from(row), behind) for row in rows]

    # The whole.

    def totals(self) -> Totals:
        """Count everything: about a second for a million files."""
        [(files, file_bytes)] = self._rows(
            "SELECT count(*), ifnull(sum(content_length), 0) FROM files"
        )
        [(chunks, chunk_bytes)] = self._rows(
            "SELECT count(*), ifnull(sum(length), 0) FROM chunks"
        )
        [(unheld, unheld_bytes)] = self._rows(
            "SELECT count(*), ifnull(sum(length), 0) FROM chunks WHERE refs = 0"
        )
        states = self._rows("SELECT state, count(*) FROM operations GROUP BY state")
        return Totals(
            files=files,
            file_bytes=file_bytes,
            uploads=dict(states),
            chunks=chunks,
            chunk_bytes=chunk_bytes,
            unheld_chunks=unheld,
            unheld_bytes=unheld_bytes,
        )

    def verify(self) -> Verification:
        """Re-read everything; see :class:`Verification`."""
        return Verification(
            self._connection,
            self._catalog,
            self._chunks,
            self._tails,
            self._survey(self._tails.proven),
        )

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc


def _nothing_proven(key: ContentKey, index: int) -> int:
    """Proofs are not looked at: what is not recorded does not count."""
    return 0


def _check_format(path: Path) -> None:
    try:
        found = (path / "format").read_bytes()
    except FileNotFoundError as exc:
        raise StorageError(f"{path} is no data directory of trioresume") from exc
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}") from exc
    if found != FORMAT:
        raise FormatVersionUnsupported(f"{path / 'format'} says {found[:80]!r}")


def _stored_file(record: FileRecord, behind: float) -> StoredFile:
    return StoredFile(
        name=record.name,
        owner=record.owner,
        length=record.content.length,
        digest=_hex(record.content.digest),
        modified_at=record.modified_at,
        expires_at=None if record.expires_at is None else record.expires_at + behind,
        fields=record.fields,
    )


def _is_text(name: str) -> bool:
    """Whether *name* can be in the catalog; from a command line it may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()
