"""The inventory of a data directory, read for its administrator beside a running service.

Nothing here takes the directory's lock. Only :meth:`Inventory.verify` writes: it writes its
report, and the chunks that it repairs. The catalog is read by a separate connection, page
by page, and each page is a short transaction. So memory does not grow with the number of
rows, and the service can cut its log back in between. A long listing is therefore no
snapshot; each row was true when it was read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from trioresume.errors import ContentLost, FormatVersionUnsupported, StorageError
from trioresume.protocol.filenames import parse_content_disposition_filename
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog.catalog import FILE_COLUMNS, CatalogReader, file_from
from trioresume.store.catalog.schema import connect_reading, sqlite_error
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.disk.unfinished import Epoch, Survey
from trioresume.store.file_system.data_dir import FORMAT, is_served
from trioresume.store.file_system.disk_io import Disk
from trioresume.store.keeper.backup_directory import generation_at
from trioresume.store.keeper.export import Export, Metadata
from trioresume.store.keeper.pending import pending_actions
from trioresume.store.keeper.verification import Verification
from trioresume.store.port import (
    SERVICE_CLOCK,
    ContentKey,
    FileRecord,
    OperationId,
    OperationRecord,
    request_key,
)

__all__ = ["Inventory", "StoredEvent", "StoredFile", "StoredUpload", "Totals"]

_PAGE = 500
"""Rows read at a time."""

_UNFINISHED = (
    OperationState.RECEIVING,
    OperationState.COMPLETE,
    OperationState.PROCESSING,
    OperationState.WAITING,
    OperationState.ABANDONED,
)
_SECRETS = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event that hooks are to be told of. Times are Unix seconds."""

    number: int
    """Names the event for :func:`trioresume.change_events`."""
    id: str
    """Names the event for its receiver: ``webhook-id``."""
    upload: str
    kind: str
    recorded_at: float
    next_at: float | None
    """When it is sent again; None if no attempt has failed, or it is dead."""
    attempts: int
    """How many attempts have failed."""
    error: str
    """Why the last attempt failed."""
    dead: bool
    """Whether the server has given it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredUpload:
    """One operation. Times are Unix seconds, sizes bytes.

    The service counts only the time in which it runs. The dates here are computed from
    that count, so an expiry moves on while the service is down.
    """

    id: str
    """Anybody who knows it can continue the upload: treat it like a password."""
    state: str
    """``receiving``, ``complete``, ``processing``, ``waiting``, ``done``, ``abandoned`` or
    ``gone``."""
    method: str
    target: str
    name: str | None
    """The name that its file will have, or else the name that the client calls its content."""
    principal: str | None
    created_at: float
    expires_at: float
    received: int
    """The offset that a client gets when it asks, or less.

    A list reads no tails. If no service runs, a list shows the offset that a client would
    get if no unsynced bytes were lost.
    """
    durable: int
    """How many of these bytes are known to survive power loss."""
    length: int | None
    digest: str | None
    """The content's digest, in hexadecimal, once the content is whole."""
    status: int | None
    """The status of the recorded response."""
    fields: Fields
    """The request's header fields; the values of secret ones are left out."""
    lost: bool
    """Whether durable bytes are gone, so that the upload cannot go on (see ``verify``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of the file service. Times are Unix seconds, sizes bytes."""

    name: str
    filename: str | None
    """The name that the client gave its content, if it is another one."""
    owner: str | None
    length: int
    digest: str | None
    """The content's digest, in hexadecimal; None for content kept in the catalog itself."""
    modified_at: float
    expires_at: float | None
    pending: str | None
    """What the service still has to do for it (``serve --on-success``), and why it failed."""
    fields: Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The numbers and sizes of everything in a data directory."""

    files: int
    file_bytes: int
    """The sum of the lengths of all files; shared chunks count once for each file."""
    uploads: dict[str, int]
    """Operations by their state."""
    chunks: int
    chunk_bytes: int
    """The size of the chunks on disk; shared chunks count once."""
    unheld_chunks: int
    unheld_bytes: int
    """The size of chunks that nothing refers to any more; collection will remove them."""


class Inventory:
    """Reads the data directory *data_dir*, with or without a running service.

    *data_dir* may also be a backup, or a directory of backups: then this reads the newest.

    Its methods block on the disk. One thread at a time may use an inventory and its
    iterators. Use it in a ``with`` statement, or :meth:`close` it.

    Raises :class:`~trioresume.StorageError` if the data directory does not exist, has
    another version, or may not be read.
    """

    def __init__(
        self, data_dir: str | os.PathLike[str], *, disk: Disk | None = None
    ) -> None:
        backup = generation_at(os.path.abspath(data_dir))
        if backup is None:
            self.path = chunks = os.path.abspath(data_dir)
            _check_format(Path(self.path))
        else:
            self.path, chunks = backup.path, os.path.dirname(backup.path)
        self._chunks_at = os.path.join(chunks, "chunks")
        self._disk = disk or Disk(durable=False)
        self._connection = connect_reading(os.path.join(self.path, "catalog.sqlite3"))
        self._catalog = CatalogReader(self._connection)
        self._chunks = ChunkFiles(self._chunks_at, self._disk)
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
        """Close the catalog. Idempotent."""
        self._catalog.close()

    # Uploads.

    def uploads(self, *, ended: bool = False) -> Iterator[StoredUpload]:
        """Yield the uploads that are not done, ordered by id; with *ended* the others too.

        An upload has ended if its response is kept to be replayed, or if it was cancelled
        or has expired and still answers 410.
        """
        states = tuple(OperationState) if ended else _UNFINISHED
        survey = self._survey(self._tails.claimed)  # a list must not read every tail
        behind = self._behind()
        after: OperationId | None = None
        while page := self._catalog.operations_in(states, _PAGE, after):
            for record in page:
                yield self._upload(record, survey, behind)
            after = page[-1].id

    def upload(self, id: str) -> StoredUpload | None:
        """Return the upload with this *id*, or None."""
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
            name=_name_of(record),
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
            # Judge the bytes that an earlier process left as the next process will do.
            epoch.begin(epoch.number + 1, epoch.provable)
        return Survey(self._catalog, self._tails.length, proven, epoch)

    def _behind(self) -> float:
        """Return the seconds by which service time is behind the date, as last recorded."""
        reading = self._catalog.meta(SERVICE_CLOCK)
        if reading is None:
            return 0.0
        now, date = map(float, reading.split())
        return date - now

    # Files.

    def events(self, *, dead: bool = False) -> Iterator[StoredEvent]:
        """Yield the events that wait to be delivered, in their order; with *dead* the dead ones."""
        after = 0
        while page := self._catalog.events(dead=dead, after=after, limit=_PAGE):
            behind = self._behind()
            for event in page:
                postponed = event.due_at > 0 and not dead
                yield StoredEvent(
                    number=event.seq,
                    id=event.id,
                    upload=event.operation,
                    kind=event.kind,
                    recorded_at=event.dated,
                    next_at=event.due_at + behind if postponed else None,
                    attempts=event.attempts,
                    error=event.error,
                    dead=dead,
                )
            after = page[-1].seq

    def files(self) -> Iterator[StoredFile]:
        """Yield the file service's files; the name that was created first comes first."""
        behind, pending = self._behind(), pending_actions(self._rows)
        for record in self._records():
            yield _stored_file(record, behind, pending)

    def _records(self) -> Iterator[FileRecord]:
        after = 0
        while page := self._rows(
            f"SELECT id, {FILE_COLUMNS} FROM files WHERE id > ? ORDER BY id LIMIT ?",
            after,
            _PAGE,
        ):
            for row in page:
                yield file_from(row[1:])
            after = page[-1][0]

    def files_called(self, name: str) -> list[StoredFile]:
        """Return the files that have this name: at most one for each owner."""
        if not _is_text(name):
            return []
        rows = self._rows(f"SELECT {FILE_COLUMNS} FROM files WHERE name = ?", name)
        behind, pending = self._behind(), pending_actions(self._rows)
        return [_stored_file(file_from(row), behind, pending) for row in rows]

    def export(
        self,
        directory: str | os.PathLike[str],
        *,
        patterns: Sequence[str] = (),
        metadata: Metadata = Metadata.XATTR,
    ) -> Export:
        """Return an export of the files to *directory*, by their names; see :class:`Export`.

        With *patterns* it takes only files with a name, or a name that the client gave, that
        fits one of them.
        """
        return Export(
            self._catalog,
            self._chunks,
            self._records(),
            directory,
            patterns,
            metadata,
        )

    # Both.

    def search(
        self, what: str, *, glob: bool = False, ended: bool = False
    ) -> Iterator[StoredFile | StoredUpload]:
        """Yield the files and the unfinished uploads that are called *what*.

        *what* is a file's name, an upload's id, or a name that a client gave. With *glob* it
        is a pattern with ``*``, ``?`` and ``[…]``, and all that match are found. With *ended*
        uploads that are done or gone are found, too, by their names; by its id every upload
        is found. A name that is found at once is not looked for among those that clients
        gave, because that reads all rows.
        """
        if not glob:
            found: list[StoredFile | StoredUpload] = [*self.files_called(what)]
            upload = self.upload(what)
            found += [] if upload is None else [upload]
            if found:
                yield from found
                return

        def fits(*names: str | None) -> bool:
            given = filter(None, names)
            if glob:
                return any(fnmatchcase(name, what) for name in given)
            return what in given

        for file in self.files():
            if fits(file.name, file.filename):
                yield file
        for each in self.uploads(ended=ended):
            if fits(each.id, each.name):
                yield each

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

    def verify(
        self, *, repair_from: Iterable[str | os.PathLike[str]] = ()
    ) -> Verification:
        """Return a verification, which reads everything again; see :class:`Verification`.

        It repairs damaged chunks with bytes from *repair_from*: files, and directories with
        all files below them.
        """
        # Repaired chunks and the report must be durable, even if the service syncs nothing.
        disk = Disk(durable=True) if type(self._disk) is Disk else self._disk
        return Verification(
            self._connection,
            self._catalog,
            self._chunks,
            self._tails,
            self._survey(self._tails.proven),
            self.path,
            repair_from,
            ChunkFiles(self._chunks_at, disk),
        )

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise sqlite_error(exc) from exc


def _check_format(path: Path) -> None:
    try:
        found = (path / "format").read_bytes()
    except FileNotFoundError as exc:
        raise StorageError(f"{path} is no data directory of trioresume") from exc
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}") from exc
    if found != FORMAT:
        raise FormatVersionUnsupported(
            f"{path / 'format'} names a format that this trioresume does not know:"
            f" {found[:80]!r}"
        )


def _name_of(record: OperationRecord) -> str | None:
    """Return the name in the target of a PUT, or else the name that the client gave."""
    path = record.target.partition("?")[0]
    if record.method == "PUT" and not path.endswith("/"):
        return unquote(path.rpartition("/")[2])
    disposition = record.fields.get("content-disposition") or ""
    return parse_content_disposition_filename(disposition)


def _stored_file(
    record: FileRecord, behind: float, pending: Mapping[tuple[str | None, str], str]
) -> StoredFile:
    filename = record.fields.get("filename")
    return StoredFile(
        name=record.name,
        filename=None if filename == record.name else filename,
        owner=record.owner,
        length=record.content.length,
        digest=_hex(record.content.digest),
        modified_at=record.modified_at,
        expires_at=None if record.expires_at is None else record.expires_at + behind,
        pending=pending.get((record.owner, record.name)),
        fields=record.fields,
    )


def _is_text(name: str) -> bool:
    """Return whether *name* can be in the catalog; a command line can pass any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()
