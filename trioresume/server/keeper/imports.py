"""``import_directory``: a directory of files, or of tusd's uploads, becomes stored files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

import trio

from trioresume.errors import StorageError
from trioresume.server.keeper.intake import (
    FileToImport,
    Importer,
    UploadToImport,
    open_importer,
)
from trioresume.store.keeper.foreign import (
    ForeignFile,
    ForeignUpload,
    Skipped,
    files_in,
    tusd_uploads_in,
)

__all__ = ["ImportSource", "ImportState", "Imported", "import_directory"]


class ImportSource(StrEnum):
    """What a directory holds."""

    FILES = "files"
    """Plain files, or what ``trioresume export`` has written."""
    TUSD = "tusd"
    """The data directory of a tusd that keeps uploads in files."""


class ImportState(StrEnum):
    """What was done with a file."""

    STORED = "stored"
    PRESENT = "present"
    """It was stored already, with the same length and date."""
    SKIPPED = "skipped"
    """It is nothing that can be stored."""
    REFUSED = "refused"
    """It could not be stored; the other files were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One file, and what was done with it."""

    path: str
    state: ImportState
    name: str | None = None
    """The name of the stored file."""
    upload: str | None = None
    """The id of the unfinished upload."""
    owner: str | None = None
    problem: str | None = None


async def import_directory(
    data_dir: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    on_done: Callable[[Imported], None],
    *,
    source: ImportSource = ImportSource.FILES,
    owner: str | None = None,
    patterns: Sequence[str] = (),
    replace: bool = False,
    named_by_client: bool = False,
    guesses_types: bool = True,
    on_progress: Callable[[int], None] = lambda stored: None,
) -> None:
    """Store the files in *directory*, whether or not a service is running on *data_dir*.

    *on_done* is called after each file. What is stored already is not read again, and a
    file in the middle of which this was cancelled or killed is gone on with. *owner* becomes
    the owner where the directory does not say whose a file is; only files with a name that
    fits one of *patterns* are taken. With *replace* another file of the same name is
    replaced. *named_by_client* and *guesses_types* are for tusd's uploads and for plain files.
    *on_progress* is called with the stored bytes of the present file.

    Quotas do not apply, but what is stored counts. Raises :class:`~trioresume.StoreLocked` if
    a process has *data_dir* and cannot be asked, and :class:`~trioresume.StorageError` if the
    directory cannot be read.
    """
    if source is ImportSource.TUSD:
        found: Iterator[ForeignFile | ForeignUpload | Skipped] = tusd_uploads_in(
            directory, named_by_client=named_by_client
        )
    else:
        found = files_in(directory, guesses_types=guesses_types)
    async with open_importer(data_dir) as importer:
        while True:
            item = await trio.to_thread.run_sync(next, found, None)
            if item is None:
                return
            if isinstance(item, Skipped):
                on_done(
                    Imported(
                        path=item.path,
                        state=ImportState.SKIPPED,
                        problem=item.reason,
                    )
                )
            elif _is_wanted(item, patterns):
                on_done(await _take(importer, item, owner, replace, on_progress))


def _is_wanted(item: ForeignFile | ForeignUpload, patterns: Sequence[str]) -> bool:
    name = item.name if isinstance(item, ForeignFile) else item.id
    names = (name, os.path.basename(item.path))
    return not patterns or any(
        fnmatchcase(each, pattern) for pattern in patterns for each in names
    )


async def _take(
    importer: Importer,
    item: ForeignFile | ForeignUpload,
    owner: str | None,
    replace: bool,
    on_progress: Callable[[int], None],
) -> Imported:
    name = upload = problem = None
    if isinstance(item, ForeignFile):
        name, owner = item.name, item.owner or owner
        what: FileToImport | UploadToImport = FileToImport(
            name=name, owner=owner, fields=item.fields, replace=replace
        )
    else:
        upload = item.id
        what = UploadToImport(
            id=upload, owner=owner, fields=item.fields, length=item.length
        )
    try:
        is_new = await importer.add(item.path, what, on_progress)
        state = ImportState.STORED if is_new else ImportState.PRESENT
    except OSError as exc:
        state, problem = ImportState.REFUSED, exc.strerror or str(exc)
    except StorageError as exc:
        state, problem = ImportState.REFUSED, str(exc)
    return Imported(
        path=item.path,
        state=state,
        name=name,
        upload=upload,
        owner=owner,
        problem=problem,
    )
