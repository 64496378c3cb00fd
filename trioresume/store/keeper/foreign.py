"""What a directory holds that is to be imported: plain files, an export, or tusd's uploads.

Nothing here changes the directory. Each item says which file it is, and what it is to become.
"""

from __future__ import annotations

import json
import mimetypes
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from trioresume.errors import PeerError, StorageError
from trioresume.protocol.dialects.tus.fields import (
    format_metadata,
    parse_metadata,
    representation_fields,
)
from trioresume.protocol.filenames import parse_content_disposition_filename
from trioresume.protocol.heads import Fields
from trioresume.store.keeper.export import DESCRIPTION, read_description

__all__ = ["ForeignFile", "ForeignUpload", "Skipped", "files_in", "tusd_uploads_in"]

_TUSD_ID = re.compile(r"[A-Za-z0-9_-]{22,128}")
ID_LENGTH = 22
"""An upload's id here has the first characters of tusd's: 88 random bits of 128."""
_MOST_INFO = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFile:
    """A file to import. *owner* is None if the directory does not say whose it is."""

    path: str
    name: str
    owner: str | None
    fields: Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignUpload:
    """An unfinished upload to import."""

    path: str
    id: str
    fields: Fields
    length: int | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that is not imported, and why."""

    path: str
    reason: str


def files_in(
    directory: str | os.PathLike[str], *, guesses_types: bool = True
) -> Iterator[ForeignFile | Skipped]:
    """Yield the regular files in *directory*, and in its folders ``@OWNER``.

    A file that ``trioresume export`` wrote has its name, owner and type in its description.
    For other files the type follows from the suffix if *guesses_types*.
    """
    for path in _entries(directory):
        name = os.path.basename(path)
        if not os.path.isdir(path):
            yield from _file(path, None, guesses_types)
        elif name.startswith("@") and len(name) > 1:
            for each in _entries(path):
                yield from _file(each, unquote(name[1:]), guesses_types)
        else:
            yield Skipped(path, "a stored file has no folder")


def _entries(directory: str | os.PathLike[str]) -> list[str]:
    try:
        return sorted(os.path.join(directory, name) for name in os.listdir(directory))
    except OSError as exc:
        raise StorageError(
            f"{os.fspath(directory)} cannot be read: {exc.strerror}"
        ) from exc


def _file(
    path: str, owner: str | None, guesses_types: bool
) -> Iterator[ForeignFile | Skipped]:
    name = os.path.basename(path)
    if not os.path.isfile(path):
        yield Skipped(path, "it is no regular file")
    elif not _is_unicode(name):
        yield Skipped(ascii(path), "its name is not UTF-8")
    elif name.endswith(DESCRIPTION) and os.path.exists(path.removesuffix(DESCRIPTION)):
        return  # it describes the file beside it
    elif name.startswith(".trioresume-"):
        return  # an export that was killed left it
    else:
        described = read_description(path)
        if described is None:
            yield ForeignFile(
                path=path,
                name=name,
                owner=owner,
                fields=_guessed(name) if guesses_types else Fields(),
            )
            return
        found = described.get("name")
        known = described.get("owner")
        yield ForeignFile(
            path=path,
            name=found if isinstance(found, str) else name,
            owner=known if isinstance(known, str) else owner,
            fields=_lines(described.get("fields")),
        )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _guessed(name: str) -> Fields:
    media_type, encoding = mimetypes.guess_type(name)
    if media_type is None or encoding is not None:
        return Fields()
    return Fields([("content-type", media_type)])


def _lines(value: object) -> Fields:
    lines = value if isinstance(value, list) else []
    return Fields(
        (line[0], line[1])
        for line in lines
        if isinstance(line, list)
        and len(line) == 2
        and all(isinstance(text, str) for text in line)
    )


def tusd_uploads_in(
    directory: str | os.PathLike[str], *, named_by_client: bool = False
) -> Iterator[ForeignFile | ForeignUpload | Skipped]:
    """Yield the uploads in the data directory of a tusd with its file store.

    A finished upload becomes a file. Its name is tusd's id, so that its address keeps its
    last part; or the name that the client gave it, if *named_by_client*.
    """
    for path in _entries(directory):
        if path.endswith(".info"):
            yield _tusd_upload(path, named_by_client)


def _tusd_upload(
    info_path: str, named_by_client: bool
) -> ForeignFile | ForeignUpload | Skipped:
    try:
        with open(info_path, "rb") as file:
            info = json.loads(file.read(_MOST_INFO))
        upload, size, metadata = _understood(info)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return Skipped(info_path, f"tusd's description cannot be read: {exc}")
    path = info_path.removesuffix(".info")
    storage = info.get("Storage")
    if not os.path.isfile(path) and isinstance(storage, dict):
        path = os.path.join(os.path.dirname(path), Path(str(storage.get("Path"))).name)
    if not os.path.isfile(path):
        return Skipped(info_path, "it has no content")
    about = representation_fields(metadata)
    stored = os.stat(path).st_size
    if info.get("IsPartial"):
        return Skipped(path, "it is a part of another upload")
    if size is None or stored < size:
        if info.get("IsFinal"):
            return Skipped(path, "it was being joined from parts")
        if not _TUSD_ID.fullmatch(upload):
            return Skipped(
                path, "its id has other characters than here, or is too short"
            )
        said = {"tus-resumable": "1.0.0", **about}
        if metadata:
            said["upload-metadata"] = format_metadata(metadata)
        return ForeignUpload(
            path=path, id=upload[:ID_LENGTH], fields=Fields(said.items()), length=size
        )
    disposition = about.pop("content-disposition", "")
    filename = parse_content_disposition_filename(disposition)
    if filename is not None and not named_by_client:
        about["filename"] = filename
    name = filename if named_by_client and filename is not None else upload
    return ForeignFile(path=path, name=name, owner=None, fields=Fields(about.items()))


def _understood(info: Mapping[str, Any]) -> tuple[str, int | None, dict[str, bytes]]:
    """Return the id, the size and the metadata of an upload of tusd."""
    upload, size = info["ID"], info["Size"]
    if not isinstance(upload, str) or not isinstance(size, int):
        raise ValueError("ID or Size has another type")
    metadata = {
        str(key): str(value).encode()
        for key, value in (info.get("MetaData") or {}).items()
    }
    try:
        parse_metadata(format_metadata(metadata), strict=True)
    except PeerError as exc:
        raise ValueError(str(exc)) from exc
    return upload, None if info.get("SizeIsDeferred") else size, metadata
