"""The journal: remembers unfinished uploads across runs.

Each upload has one file. Its name is a digest of method, URL and path, so a run finds
an earlier run's entry without reading all files. A file is msgpack::

    {"v": 3, "method", "url", "path", "size", "mtime_ns", "inode", "head",
     "ctime_ns", "device": more to recognise the file,
     "proof": [size, SHA-256] of the first bytes that were sent, or nil,
     "dialect": the one of the upload's first request, such as "tus" or "rufh-10",
     "moved": the URL to which the request was redirected, or nil,
     "content", "message", "result": the locations, or nil,
     "sent": whether all content was handed over, "created", "used": Unix seconds}

Version 4 is for a file that is sent in parts. It has also::

     "parts": [[start, size, location or nil, "moved" as above, "sent" as above,
                "proof" as above], ...]

A part's proof is of the part's first bytes. Older programs do not read version 4, so they
begin such an upload again.

Version 1 knew only the seed and had no "dialect". Version 2 had no "ctime_ns", no
"device" and no "proof".

A file is written whole under another name, synced, and renamed. After a crash the old
or the new file is there. It has no credentials, but it has unguessable URLs (R34). So
its mode is 0600, in a directory of mode 0700.

Two runs of the same upload would take the operation from each other for ever, because
the newest writer wins (R21). So each entry has a lock (``flock``). The kernel releases
it when the process ends, however it ends.

All functions here block. The client calls them in worker threads.

Statement numbers such as R34 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import platformdirs
from blake3 import blake3

from trioresume.client.content.file_source import Identity, Proof
from trioresume.errors import CallerError
from trioresume.protocol.dialects.client import ClientDialect, Locations
from trioresume.protocol.dialects.rufh.client import RufhClient
from trioresume.protocol.dialects.rufh.versions import VERSIONS
from trioresume.protocol.dialects.seed.client import SEED
from trioresume.protocol.dialects.tus.client import TUS
from trioresume.protocol.urls import Url

__all__ = ["Journal", "JournalEntry", "PartRecord", "RememberedUpload"]

VERSION = 3
_WITHOUT_PROOF = 2
_SEED_ONLY = 1
IN_PARTS = 4
_VERSIONS = (_SEED_ONLY, _WITHOUT_PROOF, VERSION, IN_PARTS)
DAY = 86400.0
_SUFFIX = ".upload"
_MAX_ENTRY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Key:
    method: str
    url: str
    path: str

    @property
    def name(self) -> str:
        text = f"{self.method}\0{self.url}\0{self.path}"
        return blake3(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What is remembered of a part of a file that is sent in parts."""

    start: int
    """The part's position in the file, in bytes."""
    size: int
    content: Url | None = None
    """The location of its upload; None if it has not begun."""
    moved: Url | None = None
    """The URL to which its request was redirected."""
    all_sent: bool = False
    proof: Proof | None = None
    """What was sent of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedUpload:
    """An unfinished upload that :class:`Journal` remembers."""

    id: str
    """Its name in the journal."""
    path: str
    """The absolute path of the file."""
    method: str
    url: str
    """The URL of the request."""
    size: int
    """The file's length in bytes when the upload began."""
    protocol: str
    """``seed``, ``rufh`` or ``tus``; ``unknown`` for one of a later version."""
    all_sent: bool
    """Whether all content was sent, and only the answer is missing."""
    parts: int = 1
    """In how many parts it is sent."""
    begun_at: float
    """When the upload began, in Unix seconds."""
    used_at: float
    """When something of it was last noted, in Unix seconds."""


class Journal:
    """The unfinished uploads in *directory*, by default in the user's state directory.

    Entries that were unused for *max_age* seconds are removed, and the oldest ones
    beyond *max_entries*. *wall_clock* returns Unix seconds.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        max_age: float = 14 * DAY,
        max_entries: int = 1000,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if directory is None:
            directory = _default_directory()
        self.directory = Path(directory)
        self.unsaved: set[Path] = set()
        """The entries of this run whose last change could not be written."""
        self._max_age = max_age
        self._max_entries = max_entries
        self._wall_clock = wall_clock

    def claim(self, method: str, url: str, identity: Identity) -> JournalEntry:
        """Return the entry for this upload, locked until it is closed; empty if it is new.

        An entry for a file that has changed since is not used. Raises
        :class:`CallerError` if another run has the entry, :class:`OSError` if the
        directory cannot be used.
        """
        key = _Key(method, url, identity.path)
        path = self.directory / (key.name + _SUFFIX)
        with self.noting(path):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.prune()
            lock = _lock(path.with_suffix(".lock"))
            entry = JournalEntry(path, lock, key, identity, self)
            try:
                entry.load(oldest=self._wall_clock() - self._max_age)
            except BaseException:
                entry.close()
                raise
        return entry

    def uploads(self) -> list[RememberedUpload]:
        """Return what is remembered, the oldest first. Raises :class:`OSError`."""
        found = []
        for path in self.directory.glob("*" + _SUFFIX):
            with suppress(FileNotFoundError):  # another run has just finished it
                upload = _remembered(path)
                if upload is not None:
                    found.append(upload)
        return sorted(found, key=lambda upload: (upload.begun_at, upload.id))

    def forget(self, upload: RememberedUpload) -> None:
        """Forget *upload*: the next run begins again. What the server has expires there.

        Raises :class:`CallerError` if a run is sending it now, and :class:`OSError`.
        """
        path = self.directory / (upload.id + _SUFFIX)
        lock = _lock(path.with_suffix(".lock"))
        try:
            path.unlink(missing_ok=True)
        finally:
            path.with_suffix(".lock").unlink(missing_ok=True)
            os.close(lock)

    @contextmanager
    def noting(self, path: Path) -> Iterator[None]:
        """Note whether the entry at *path* could be written. Raises what the body raises."""
        try:
            yield
        except OSError:
            self.unsaved.add(path)
            raise
        self.unsaved.discard(path)

    def wall_time(self) -> float:
        """Return the Unix time in seconds."""
        return self._wall_clock()

    def prune(self) -> int:
        """Remove entries that are too old or too many. Return how many were removed."""
        found: list[tuple[float, Path]] = []
        for path in self.directory.glob("*" + _SUFFIX):
            with suppress(OSError):  # another run has just removed it
                found.append((path.stat().st_mtime, path))
        found.sort()
        oldest = self._wall_clock() - self._max_age
        surplus = len(found) - self._max_entries
        doomed = [
            path
            for number, (used, path) in enumerate(found)
            if used < oldest or number < surplus
        ]
        for path in doomed:
            path.unlink(missing_ok=True)
        return len(doomed)


def _remembered(path: Path) -> RememberedUpload | None:
    """Return what the file at *path* remembers; None if it cannot be understood."""
    try:
        with path.open("rb") as file:
            record = msgpack.unpackb(file.read(_MAX_ENTRY_BYTES))
        if record["v"] not in _VERSIONS:
            return None
        seed = record["v"] == _SEED_ONLY
        dialect = SEED if seed else dialect_named(record["dialect"])
        return RememberedUpload(
            id=path.name.removesuffix(_SUFFIX),
            path=os.fsdecode(record["path"]),
            method=str(record["method"]),
            url=str(record["url"]),
            size=int(record["size"]),
            protocol="unknown" if dialect is None else dialect.protocol,
            all_sent=bool(record["sent"]),
            parts=len(record.get("parts", ())) or 1,
            begun_at=float(record["created"]),
            used_at=float(record["used"]),
        )
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        return None


def _default_directory() -> Path:
    """Return the default directory. Raises :class:`CallerError` without a home directory.

    An empty ``HOME`` says that there is none. Some versions of platformdirs take it for
    the root directory, which is not the user's.
    """
    is_homeless = os.environ.get("HOME") == ""
    try:
        directory = platformdirs.user_state_path("trioresume") / "uploads"
        is_chosen = os.path.isabs(os.environ.get("XDG_STATE_HOME", ""))
        if directory.is_absolute() and (is_chosen or not is_homeless):
            return directory
    except (KeyError, RuntimeError):
        pass  # neither HOME nor an entry in the password file
    raise CallerError("there is no home directory to remember unfinished uploads in")


class JournalEntry:
    """One upload's entry. Hold it until the upload is over, then :meth:`close` it."""

    def __init__(
        self,
        path: Path,
        lock: int,
        key: _Key,
        identity: Identity,
        journal: Journal,
    ) -> None:
        self.locations: Locations | None = None
        """The locations that an earlier run was offered; None to begin from the start."""
        self.dialect: ClientDialect | None = None
        """The dialect in which an earlier run began the upload."""
        self.moved: Url | None = None
        """The URL to which an earlier run was redirected."""
        self.all_sent = False
        """Whether all content was sent, so that the target may have processed it."""
        self.size = identity.size
        """The content's length when the upload began."""
        self.doubt: Proof | None = None
        """The bytes with which the file must begin, because it may have changed."""
        self.is_stale = False
        """Whether the entry belongs to another version of the file."""
        self.parts: tuple[PartRecord, ...] = ()
        """The parts in which an earlier run sent the file; empty if it did not."""
        self.is_doubtful = False
        """Whether the file may have changed since, so that each part has to be proven."""
        self._path = path
        self._lock: int | None = lock
        self._key = key
        self._identity = identity
        self._journal = journal
        self._created = journal.wall_time()

    @property
    def directory(self) -> Path:
        """The journal's directory."""
        return self._journal.directory

    @property
    def source(self) -> str:
        """The path of the file that is sent."""
        return self._identity.path

    def load(self, oldest: float) -> None:
        """Read the entry's file. A file that cannot be understood counts as none."""
        try:
            with self._path.open("rb") as file:
                record = msgpack.unpackb(file.read(_MAX_ENTRY_BYTES))
            if record["v"] not in _VERSIONS or record["used"] < oldest:
                return
            seed = record["v"] == _SEED_ONLY
            dialect = SEED if seed else dialect_named(record["dialect"])
            if dialect is None:
                return  # written by a later version of this program
            told = self._describe()
            if record["v"] != VERSION:
                del told["ctime_ns"], told["device"]
            if any(record[name] != told[name] for name in ("method", "url", "path")):
                return
            is_changed = any(record[name] != value for name, value in told.items())
            if record["v"] == IN_PARTS:
                self._load_parts(record["parts"])
                self.dialect, self.is_doubtful = dialect, is_changed
                self.size = sum(part.size for part in self.parts)
                self._created = record["created"]
                return
            if is_changed:
                proof = record.get("proof")
                self.is_stale = proof is None
                self.doubt = None if proof is None else Proof(*proof)
            moved = record.get("moved")
            self.moved = None if moved is None else Url.parse(moved)
            base = self.moved or Url.parse(self._key.url)
            locations = Locations(
                *(
                    None if record[name] is None else base.resolve(record[name])
                    for name in ("content", "message", "result")
                )
            )
            if locations.content is None and locations.message is None:
                return
            self.locations, self.dialect = locations, dialect
            self.all_sent = record["sent"]
            self.size = record["size"]
            self._created = record["created"]
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, CallerError, msgpack.UnpackException):
            # A damaged entry only means that the upload begins again. So does a CallerError
            # for a URL in it.
            self.locations = self.dialect = self.moved = None
            self.doubt, self.is_stale = None, False
            self.parts = ()

    def _load_parts(self, records: list[list[Any]]) -> None:
        base = Url.parse(self._key.url)
        parts = []
        for start, size, content, moved, all_sent, proof in records:
            moved_to = None if moved is None else Url.parse(moved)
            parts.append(
                PartRecord(
                    start,
                    size,
                    None if content is None else (moved_to or base).resolve(content),
                    moved_to,
                    all_sent,
                    None if proof is None else Proof(*proof),
                )
            )
        edges = [0, *(part.start + part.size for part in parts)]
        if any(part.start != edge for part, edge in zip(parts, edges, strict=False)):
            raise ValueError("the parts do not cover the file")
        self.parts = tuple(parts)

    def _describe(self) -> dict[str, object]:
        identity = self._identity
        return {
            "method": self._key.method,
            "url": self._key.url,
            "path": os.fsencode(identity.path),
            "size": identity.size,
            "mtime_ns": identity.mtime_ns,
            "inode": identity.inode,
            "ctime_ns": identity.ctime_ns,
            "device": identity.device,
            "head": identity.head,
        }

    def trust(self) -> None:
        """Accept the file with its new dates: it begins with the bytes that were sent."""
        self._identity = replace(self._identity, size=self.size)

    def save(
        self,
        locations: Locations,
        *,
        all_sent: bool,
        dialect: ClientDialect = SEED,
        proof: Proof | None = None,
        moved: Url | None = None,
    ) -> None:
        """Save the operation, durably. Raises :class:`OSError`."""
        self.locations, self.all_sent, self.dialect = locations, all_sent, dialect
        self.parts = ()
        record = {
            "v": VERSION,
            **self._describe(),
            "dialect": dialect.name,
            "moved": moved and str(moved),
            "content": locations.content and str(locations.content),
            "message": locations.message and str(locations.message),
            "result": locations.result and str(locations.result),
            "sent": all_sent,
            "proof": None if proof is None else [proof.size, proof.digest],
        }
        self._write(record)

    def save_parts(self, parts: tuple[PartRecord, ...]) -> None:
        """Save an upload in parts, durably. Raises :class:`OSError`."""
        self.parts = parts
        record = {
            "v": IN_PARTS,
            **self._describe(),
            "dialect": TUS.name,
            "sent": all(part.all_sent for part in parts),
            "parts": [
                [
                    part.start,
                    part.size,
                    part.content and str(part.content),
                    part.moved and str(part.moved),
                    part.all_sent,
                    part.proof and [part.proof.size, part.proof.digest],
                ]
                for part in parts
            ],
        }
        self._write(record)

    def _write(self, record: dict[str, object]) -> None:
        record |= {
            "created": self._created,
            "used": self._journal.wall_time(),
        }
        with self._journal.noting(self._path):
            _replace(self._path, msgpack.packb(record))

    def end(self, status: int) -> None:
        """Note that the server answered with *status*: the upload is over."""
        del status
        if self.locations is not None:
            self.forget()

    def forget(self) -> None:
        """Remove the entry: the upload is over, or can never be resumed."""
        self.locations, self.all_sent, self.dialect = None, False, None
        self.moved = None
        self.parts, self.is_doubtful = (), False
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the entry for other runs. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            # Unlink the file while the lock is held: see _lock.
            self._path.with_suffix(".lock").unlink(missing_ok=True)
            os.close(lock)


def dialect_named(name: object) -> ClientDialect | None:
    """Return the dialect with that :attr:`~ClientDialect.name`, in which an upload can go on."""
    uploads: list[ClientDialect] = [SEED, TUS, *map(RufhClient, VERSIONS.values())]
    return next((dialect for dialect in uploads if dialect.name == name), None)


def _replace(path: Path, data: bytes) -> None:
    """Write *data* to *path*: durably, with mode 0600, whole or not at all."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _lock(path: Path) -> int:
    """Take an exclusive lock on *path*. Closing the returned descriptor releases it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last owner may have unlinked the file between open and flock. Then no
            # other run can find the locked file, so try again.
            if _same_file(fd, path):
                return fd
        except BlockingIOError as exc:
            os.close(fd)
            raise CallerError(
                "another run is sending the same file to the same URL"
            ) from exc
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
