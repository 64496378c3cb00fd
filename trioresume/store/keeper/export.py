"""Export: stored files become files in a directory, under their names.

::

    DIR/report.pdf             a file that belongs to nobody
    DIR/@alice/report.pdf      one of alice

A stored name was checked when the file was stored, but it is a key and not a path (G12). So
what has a meaning on disk is written as ``%XX``: an ``@`` at the beginning, and a per cent
sign that would look like such code. This can be undone, so two names never become one. A name
that is too long is cut, and ends in a hash.

The type, the owner and the digest become attributes of the file (``user.…``), or a JSON file
beside it. A file that is there with the same length, date and digest is not written again.
Each file is written under another name, compared with the digests of its chunks, and renamed.

Nothing is written into the data directory. A file that is deleted while it is read is left
out; one that is replaced is exported as it is then.

G12 is a statement of docs/supported-protocols.md.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import BinaryIO

from blake3 import blake3

from trioresume.errors import ContentLost
from trioresume.store.catalog.catalog import CatalogReader
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.file_system.disk_io import translated
from trioresume.store.port import FileRecord
from trioresume.store.port.recipes import Digest, JoinedRecipe, wrap_hash

__all__ = [
    "ATTRIBUTE",
    "DESCRIPTION",
    "Export",
    "ExportState",
    "Exported",
    "Metadata",
    "read_description",
]

ATTRIBUTE = "user.trioresume.file"
"""The attribute of an exported file that describes it, in JSON."""
MEDIA_TYPE = "user.mime_type"
"""The attribute in which file managers keep a media type."""
DESCRIPTION = ".trioresume.json"
"""The suffix of a file that describes the file beside it."""
_TEMPORARY = ".trioresume-"
_MOST_BYTES = 255 - len(DESCRIPTION)
_BLOCK = 1024 * 1024
_ATTEMPTS = 5
_CODE_LIKE = re.compile("%(?=[0-9A-Fa-f]{2})")
_RESERVED = re.compile(
    r'[\x00-\x1f\x7f/\\<>:"|?*]' if os.name == "nt" else r"[\x00-\x1f\x7f/\\]"
)


class ExportState(StrEnum):
    """What was done with a stored file."""

    WRITTEN = "written"
    PRESENT = "present"
    """It was there already."""
    DAMAGED = "damaged"
    """Its content is not whole; what was there before is left as it was."""


class Metadata(StrEnum):
    """Where the type, the owner and the digest of a file are kept."""

    XATTR = "xattr"
    """In attributes of the file; in a JSON file where there are none."""
    JSON = "json"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One file that was exported."""

    name: str
    owner: str | None
    path: str
    length: int
    state: ExportState
    problem: str | None = None


class _Changed(Exception):
    """The file was deleted or replaced while it was read."""


class Export:
    """One run of :meth:`Inventory.export <trioresume.Inventory.export>`; iterate over it.

    It yields each :class:`Exported` when it is done. Iterating blocks on the disk. It raises
    :class:`~trioresume.StorageError` if the directory cannot be written.
    """

    def __init__(
        self,
        catalog: CatalogReader,
        chunks: ChunkFiles,
        records: Iterator[FileRecord],
        directory: str | os.PathLike[str],
        patterns: Sequence[str],
        metadata: Metadata,
    ) -> None:
        self._catalog = catalog
        self._chunks = chunks
        self._records = records
        self._directory = os.path.abspath(directory)
        self._patterns = patterns
        self._metadata = metadata
        self.on_trouble: Callable[[str], None] | None = None
        """Called with a sentence if something about a file cannot be kept."""

    def __iter__(self) -> Iterator[Exported]:
        with translated(f"exporting to {self._directory}"):
            os.makedirs(self._directory, exist_ok=True)
        for record in self._records:
            if self._is_wanted(record):
                done = self._export(record)
                if done is not None:
                    yield done

    def _is_wanted(self, record: FileRecord) -> bool:
        names = (record.name, record.fields.get("filename"))
        return not self._patterns or any(
            name is not None and fnmatchcase(name, pattern)
            for pattern in self._patterns
            for name in names
        )

    def _export(self, record: FileRecord) -> Exported | None:
        path = self._path(record)
        state, problem = ExportState.WRITTEN, None
        for _ in range(_ATTEMPTS):
            try:
                with translated(f"exporting to {path}"):
                    if self._is_present(record, path):
                        state = ExportState.PRESENT
                    else:
                        self._write(record, path)
            except _Changed:
                found = self._catalog.file(record.owner, record.name)
                if found is None:
                    return None
                record = found
                continue
            except ContentLost as exc:
                state, problem = ExportState.DAMAGED, str(exc)
            break
        return Exported(
            name=record.name,
            owner=record.owner,
            path=path,
            length=record.content.length,
            state=state,
            problem=problem,
        )

    def _path(self, record: FileRecord) -> str:
        if record.owner is None:
            return os.path.join(self._directory, _safe(record.name))
        return os.path.join(
            self._directory, "@" + _safe(record.owner, 1), _safe(record.name)
        )

    def _is_present(self, record: FileRecord, path: str) -> bool:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        return (
            stat.S_ISREG(status.st_mode)
            and status.st_size == record.content.length
            and status.st_mtime_ns == _nanoseconds(record)
            and (
                self._metadata is Metadata.NONE
                or read_description(path) == _description(record)
            )
        )

    def _write(self, record: FileRecord, path: str) -> None:
        directory, name = os.path.split(path)
        os.makedirs(directory, exist_ok=True)
        mark = blake3(name.encode()).hexdigest()[:16]
        temporary = os.path.join(directory, f"{_TEMPORARY}{mark}.part")
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            with open(temporary, "xb", buffering=0) as file:
                for block in self._blocks(record):
                    view = memoryview(block)
                    while view:
                        view = view[file.write(view) :]
                described = self._describe(record, file)
                os.utime(file.fileno(), ns=(_nanoseconds(record),) * 2)
                os.fsync(file.fileno())
            beside = path + DESCRIPTION
            if described:
                with suppress(FileNotFoundError):
                    os.unlink(beside)
            else:
                self._describe_beside(record, f"{temporary}.json", beside)
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    # The content.

    def _blocks(self, record: FileRecord) -> Iterator[bytes]:
        content = record.content
        if content.digest is None:
            yield content.inline or b""
            return
        for digest in self._chunks_of(record, content.digest):
            yield from self._chunk(record, digest)

    def _chunks_of(self, record: FileRecord, content: Digest) -> Iterator[Digest]:
        recipe = self._catalog.recipe(content)
        parts = recipe.parts if isinstance(recipe, JoinedRecipe) else (content,)
        for part in parts:
            listed = self._catalog.recipe(part)
            if listed is None or isinstance(listed, JoinedRecipe):
                self._refuse(record, f"its recipe {part.hex()} is missing")
                return
            yield from map(listed.chunk, range(listed.chunk_count))

    def _chunk(self, record: FileRecord, digest: Digest) -> Iterator[bytes]:
        hasher = blake3()
        try:
            with closing(self._chunks.open(digest)) as file:
                while block := self._chunks.disk.read(file.fileno(), _BLOCK):
                    hasher.update(block)
                    yield block
        except FileNotFoundError:
            self._refuse(record, f"chunk {digest.hex()} is missing")
        if wrap_hash(hasher.digest()) != digest:
            self._refuse(
                record,
                f"chunk {digest.hex()} does not have the bytes it is named after",
            )

    def _refuse(self, record: FileRecord, problem: str) -> None:
        """Raise :class:`_Changed` if the file is another one now, else ContentLost."""
        if self._catalog.file(record.owner, record.name) != record:
            raise _Changed
        raise ContentLost(problem)

    # What is known about it.

    def _describe(self, record: FileRecord, file: BinaryIO) -> bool:
        """Keep the description as attributes; return False if it belongs beside the file."""
        if self._metadata is Metadata.NONE:
            return True
        if self._metadata is Metadata.JSON or not hasattr(os, "setxattr"):
            return False
        media_type = record.fields.get("content-type")
        try:
            packed = json.dumps(_description(record)).encode()
            os.setxattr(file.fileno(), ATTRIBUTE, packed)
            if media_type is not None:
                os.setxattr(file.fileno(), MEDIA_TYPE, media_type.encode())
        except OSError as exc:
            if self.on_trouble is not None:
                self.on_trouble(
                    f"there are no attributes in {self._directory}, so they go to"
                    f" files with the suffix {DESCRIPTION}: {exc.strerror}"
                )
            self._metadata = Metadata.JSON
            return False
        return True

    def _describe_beside(self, record: FileRecord, temporary: str, path: str) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(_description(record), file, indent=1)
            file.write("\n")
        os.replace(temporary, path)


def _description(record: FileRecord) -> dict[str, object]:
    """Return what a file on disk cannot say by itself, in JSON's types."""
    digest = record.content.digest
    return {
        "name": record.name,
        "owner": record.owner,
        "digest": None if digest is None else digest.hex(),
        "fields": [list(line) for line in record.fields],
    }


def read_description(path: str) -> dict[str, object] | None:
    """Return the description of the exported file *path*, wherever it is; None without one."""
    packed: str | bytes | None = None
    if hasattr(os, "getxattr"):
        with suppress(OSError):
            packed = os.getxattr(path, ATTRIBUTE)
    if packed is None:
        try:
            with open(path + DESCRIPTION, encoding="utf-8") as file:
                packed = file.read(_BLOCK)
        except (OSError, ValueError):
            return None
    try:
        described = json.loads(packed)
    except ValueError:
        return None
    return described if isinstance(described, dict) else None


def _nanoseconds(record: FileRecord) -> int:
    # In microseconds, because a float has no more digits of a date.
    return round(record.modified_at * 1e6) * 1000


def _safe(name: str, prefix: int = 0) -> str:
    """Return *name* as the name of a file on disk; *prefix* bytes come before it."""
    safe = _CODE_LIKE.sub("%25", name)
    safe = _RESERVED.sub(lambda match: f"%{ord(match[0]):02X}", safe)
    if safe.startswith("@") and not prefix:
        safe = "%40" + safe[1:]
    if safe.startswith(_TEMPORARY):
        safe = "%2E" + safe[1:]
    if safe.endswith(DESCRIPTION):
        safe = safe.removesuffix(DESCRIPTION) + "%2E" + DESCRIPTION[1:]
    if safe in (".", "..") and not prefix:
        safe = safe.replace(".", "%2E")
    if len(safe.encode()) + prefix > _MOST_BYTES:
        mark = blake3(name.encode()).hexdigest()[:16]
        room = _MOST_BYTES - prefix - len(mark) - 1
        safe = f"{safe.encode()[:room].decode(errors='ignore')}~{mark}"
    return safe
