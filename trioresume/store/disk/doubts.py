"""Chunks that are not simply believed: those in doubt, and the report of damaged ones.

:class:`Doubts` says which chunks are in doubt, and checks them before they are opened.

``verify`` writes a report of the damaged chunks: the file ``damaged`` in the data directory. A
later ``verify`` reads it to say which chunks are right again. A service reads it too, because a
reported chunk is in doubt.

The file is text. Each line has a chunk's digest in hexadecimal and the date of the first
report in Unix seconds. It lists at most :data:`MOST_REPORTED` chunks. If there are more, its last
line is ``*``, which stands for every chunk. The file is written under another name, synced
and renamed. Lines that cannot be parsed are ignored: without them chunks are only checked
less often.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from blake3 import blake3

from trioresume.errors import ChunkCorrupt
from trioresume.store.file_system.disk_io import Descriptor, Disk
from trioresume.store.port.recipes import DIGEST_LENGTH, Digest, wrap_hash

__all__ = [
    "MOST_REPORTED",
    "Doubts",
    "Report",
    "UnsyncedChunks",
    "hash_chunk",
    "read_report",
    "write_report",
]

MOST_REPORTED = 10_000
"""The most chunks that a report lists."""

_NAME = "damaged"
_EVERY = b"*"
_MOST_BYTES = MOST_REPORTED * (2 * DIGEST_LENGTH + 24)
_NEVER = (0, 0, 0)

_READ_SIZE = 1024 * 1024
_MOST_ANSWERS = 65536
"""How many chunks are remembered as right."""


@dataclass(frozen=True, slots=True)
class Report:
    """The reported chunks, each with the date of its first report."""

    dates: Mapping[Digest, int] = field(default_factory=dict)
    every: bool = False
    """Whether there were too many chunks to list, so any chunk may be damaged."""

    def __bool__(self) -> bool:
        return bool(self.dates) or self.every

    def has(self, digest: Digest) -> bool:
        return self.every or digest in self.dates


def read_report(data_dir: str) -> Report:
    """Return the report in *data_dir*, or an empty one. Raises :class:`OSError`."""
    try:
        with open(os.path.join(data_dir, _NAME), "rb") as file:
            lines = file.read(_MOST_BYTES).split(b"\n")
    except FileNotFoundError:
        return Report()
    return Report(dict(_parsed(lines)), _EVERY in lines)


def _parsed(lines: list[bytes]) -> Iterator[tuple[Digest, int]]:
    for line in lines:
        name, _, date = line.partition(b" ")
        try:
            digest = Digest(bytes.fromhex(name.decode("ascii")))
            if len(digest) == DIGEST_LENGTH:
                yield digest, int(date)
        except ValueError:
            continue


def write_report(data_dir: str, report: Report, disk: Disk) -> None:
    """Write *report* to *data_dir* durably. An empty report removes the file.

    Raises :class:`OSError`.
    """
    path = os.path.join(data_dir, _NAME)
    if not report:
        if os.path.lexists(path):
            disk.unlink(path)
            disk.sync_directory(data_dir)
        return
    lines = [b"%s %d\n" % (d.hex().encode(), at) for d, at in report.dates.items()]
    lines += [_EVERY + b"\n"] if report.every else []
    temporary = f"{path}.{os.getpid()}"
    disk.unlink(temporary)
    try:
        with closing(disk.create(temporary)) as file:
            disk.give_to_owner_of(data_dir, file)
            disk.write_all(file, memoryview(b"".join(lines)))
            disk.sync_data(file)
        disk.replace(temporary, path)
    except BaseException:
        disk.unlink(temporary)
        raise
    disk.sync_directory(data_dir)


class UnsyncedChunks(Protocol):
    """What the catalog knows of chunks that were published without a sync."""

    def has_unsynced_before(self, epoch: int) -> bool: ...

    def is_unsynced_before(self, digest: Digest, epoch: int) -> bool: ...


class Doubts:
    """Tells which chunks are in doubt, and checks them.

    With ``durability="process"`` a chunk is named before its bytes are on the disk. The bytes
    are in the page cache. They outlive the process, but not a reboot, nor a new mount of the
    file system. Nothing promises that such a chunk survives a power loss. But wrong bytes
    must not be taken for right ones: a file system can keep a file's length and lose its
    bytes.

    So for each of these chunks the catalog records the epoch in which it was published. It
    also records the first epoch of the present *mount life*, which ends when the machine
    boots or the file system is mounted again. A chunk of an earlier epoch is in doubt. A
    process reads and hashes it before it opens it for the first time. If the hash is not the
    chunk's name, the chunk is damaged. An unfinished upload that has a damaged chunk is lost.

    Where the system cannot tell mounts apart, every start begins a new mount life.

    A chunk that ``verify`` reported as damaged is in doubt as well, at once, even if a
    service is running. It may have been healed since. It is read and
    compared with its name until it is found to be right, once for each report.

    *checked* is where the chunks are noted that were found to be right.
    """

    def __init__(
        self,
        catalog: UnsyncedChunks,
        disk: Disk,
        mount_epoch: int,
        data_dir: str,
        checked: set[Digest],
    ) -> None:
        self._catalog = catalog
        self._disk = disk
        self.mount_epoch = mount_epoch
        self._right = checked
        self._data_dir = data_dir
        self._reading = threading.Lock()
        self._report = Report()
        self._seen = _NEVER
        """The state of the report's file when it was read."""
        self.any_unsynced = catalog.has_unsynced_before(mount_epoch)
        """Whether any chunk may be lost because it was not synced. No chunk is read for this."""

    @property
    def any_reported(self) -> bool:
        """Whether the last ``verify`` reported any chunk as damaged and did not repair it."""
        return bool(self._look())

    def check(self, digest: Digest, path: str) -> None:
        """Raise :class:`ChunkCorrupt` if the chunk at *path* is in doubt and has wrong bytes.

        Raises :class:`FileNotFoundError` if the file is missing. Reads the chunk at each
        call until it is found to be right.
        """
        if not (self.any_reported or self.any_unsynced) or digest in self._right:
            return
        if not self._is_in_doubt(digest):
            return
        with closing(self._disk.open(path)) as file:
            right = hash_chunk(file, self._disk) == digest
        if not right:
            raise ChunkCorrupt(
                f"chunk {digest.hex()} does not have the bytes it is named after"
            )
        if len(self._right) >= _MOST_ANSWERS:
            self._right.clear()
        self._right.add(digest)

    def _is_in_doubt(self, digest: Digest) -> bool:
        return self._look().has(digest) or (
            self.any_unsynced
            and self._catalog.is_unsynced_before(digest, self.mount_epoch)
        )

    def _look(self) -> Report:
        """Return the report, read again if another process has changed it.

        If it has not changed, this costs one ``stat``.
        """
        try:
            status = os.stat(os.path.join(self._data_dir, _NAME))
        except OSError:
            seen = _NEVER
        else:
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            with self._reading:
                try:
                    self._report = read_report(self._data_dir)
                except OSError:
                    # The report exists, but this process may not read it. It may name any
                    # chunk.
                    self._report = Report(every=True)
                self._right.clear()
                self._seen = seen
        return self._report


def hash_chunk(file: Descriptor, disk: Disk) -> Digest:
    """Return the digest of *file*'s bytes."""
    hasher = blake3()
    while data := disk.read(file.fileno(), _READ_SIZE):
        hasher.update(data)
    return wrap_hash(hasher.digest())
