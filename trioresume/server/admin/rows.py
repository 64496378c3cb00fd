"""What the admin page's tables show, as values for JSON.

The id of an upload is a credential: who knows it can continue the upload. So it never leaves
the server here. A row has a number and a *seal* instead, which names the upload for a change.
The number alone would not do: the catalog may use it again for another upload.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from blake3 import blake3

from trioresume.protocol.filenames import parse_content_disposition_filename
from trioresume.protocol.operation import OperationState
from trioresume.store.keeper.listing import open_listing

if TYPE_CHECKING:
    import os

    from trioresume.store.port import (
        EventRecord,
        FileRecord,
        OperationId,
        OperationRecord,
    )

__all__ = ["PAGE", "Rows"]

PAGE = 50
"""Rows on a page."""
MOST_ERROR = 500
"""Characters of an error's text."""

_S = OperationState
_ENDED = (_S.DONE, _S.GONE)
_UNFINISHED = tuple(state for state in OperationState if state not in _ENDED)

Row = dict[str, Any]


class Rows:
    """Reads the pages of the tables in *data_dir*. Its methods block: call them in a thread.

    They raise :class:`~trioresume.StorageError`.
    """

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        self._data_dir = data_dir
        self._key = secrets.token_bytes(32)

    def seal(self, id: OperationId) -> str:
        """Return what stands for *id* outside of this process."""
        return blake3(id.encode(), key=self._key).hexdigest(length=12)

    def upload_id(self, number: int, seal: str) -> OperationId | None:
        """Return the id of the upload in a row, or None if the row has gone."""
        with open_listing(self._data_dir) as listing:
            upload = listing.upload_id(number)
        if upload is None or not secrets.compare_digest(self.seal(upload), seal):
            return None
        return upload

    def uploads(self, search: str, before: int | None, *, ended: bool) -> Row:
        """Return a page of uploads, the newest first; with *ended* also those that ended."""
        fits = _searching(search, _words_of_upload)
        states = tuple(OperationState) if ended else _UNFINISHED
        with open_listing(self._data_dir) as listing:
            page = listing.uploads(states, fits, PAGE, before)
            behind = listing.behind()
            offsets = listing.received([record for _, record in page.rows])
        rows = [
            self._upload(number, record, behind, offset)
            for (number, record), offset in zip(page.rows, offsets, strict=True)
        ]
        return {"rows": rows, "next": page.next}

    def _upload(
        self, number: int, record: OperationRecord, behind: float, received: int
    ) -> Row:
        response = record.response
        return {
            "number": number,
            "seal": self.seal(record.id),
            "state": str(record.state),
            "method": record.method,
            "path": record.target.partition("?")[0],
            "name": _name_of(record),
            "owner": record.principal,
            "created": record.created_at + behind,
            "expires": record.expires_at + behind,
            "received": received,
            "length": record.length,
            "status": None if response is None else response.status,
        }

    def files(self, search: str, before: int | None) -> Row:
        """Return a page of files, the newest first."""
        fits = _searching(search, _words_of_file)
        with open_listing(self._data_dir) as listing:
            page = listing.files(fits, PAGE, before)
            behind = listing.behind()
        rows = [
            {
                "number": number,
                "name": file.name,
                "filename": file.fields.get("filename"),
                "owner": file.owner,
                "length": file.content.length,
                "modified": file.modified_at,
                "expires": None
                if file.expires_at is None
                else file.expires_at + behind,
            }
            for number, file in page.rows
        ]
        return {"rows": rows, "next": page.next}

    def quotas(self, skip: int) -> Row:
        """Return a page of accounts, those that use most first."""
        with open_listing(self._data_dir) as listing:
            found = listing.accounts(PAGE + 1, skip)
        rows = [
            {
                "owner": account.principal,
                "bytes": account.bytes,
                "uploads": account.open_uploads,
            }
            for account in found[:PAGE]
        ]
        return {"rows": rows, "next": skip + PAGE if len(found) > PAGE else None}

    def events(self, after: int, *, dead: bool) -> Row:
        """Return a page of the events of hooks that wait, or of those that were given up."""
        with open_listing(self._data_dir) as listing:
            found = listing.events(dead=dead, after=after, limit=PAGE + 1)
            behind = listing.behind()
        rows = [self._event(event, behind, dead=dead) for event in found[:PAGE]]
        return {"rows": rows, "next": rows[-1]["number"] if len(found) > PAGE else None}

    def _event(self, event: EventRecord, behind: float, *, dead: bool) -> Row:
        waits = event.due_at > 0 and not dead
        return {
            "number": event.seq,
            "kind": event.kind,
            "upload": self.seal(event.operation)[:8],
            "recorded": event.dated,
            "next_try": event.due_at + behind if waits else None,
            "attempts": event.attempts,
            "error": event.error[:MOST_ERROR],
        }

    def dead_events(self) -> int:
        """Return how many events were given up."""
        with open_listing(self._data_dir) as listing:
            return listing.dead_events()


def _searching(search: str, words: Callable[[Any], list[str | None]]) -> Any:
    if not search:
        return None
    return partial(_fits, search.casefold(), words)


def _fits(
    wanted: str, words: Callable[[Any], list[str | None]], record: object
) -> bool:
    return any(word is not None and wanted in word.casefold() for word in words(record))


def _words_of_upload(record: OperationRecord) -> list[str | None]:
    return [_name_of(record), record.principal, record.target.partition("?")[0]]


def _words_of_file(file: FileRecord) -> list[str | None]:
    return [file.name, file.owner, file.fields.get("filename")]


def _name_of(record: OperationRecord) -> str | None:
    path = record.target.partition("?")[0]
    if record.method == "PUT" and not path.endswith("/"):
        return unquote(path.rpartition("/")[2])
    disposition = record.fields.get("content-disposition") or ""
    return parse_content_disposition_filename(disposition)
