"""Doubts: unsynced chunks that may have lost bytes, and checking them.

With ``durability="process"`` a chunk is named before its bytes are on the disk. The bytes
are in the page cache. They outlive the process, but not a reboot, nor a new mount of the
file system. Nothing promises that such a chunk survives a power loss. But wrong bytes must
not be taken for right ones: a file system can keep a file's length and lose its bytes.

So for each of these chunks the catalog records the epoch in which it was published. It also
records the first epoch of the present *mount life*, which ends when the machine boots or
the file system is mounted again. A chunk of an earlier epoch is in doubt. A process reads
and hashes it before it opens it for the first time. If the hash is not the chunk's name,
the chunk is damaged. An unfinished upload that has a damaged chunk is lost.

Where the system cannot tell mounts apart, every start begins a new mount life.

A chunk that ``verify`` reported as damaged is in doubt as well, at once, even if a service
is running (see damage_report.py). It may have been healed since. It is read and compared with its
name until it is found to be right, once for each report.
"""

from __future__ import annotations

from contextlib import closing

from blake3 import blake3

from trioresume.errors import ChunkCorrupt
from trioresume.store.catalog.catalog import CatalogReader
from trioresume.store.disk.damage_report import Reports
from trioresume.store.file_system.disk_io import Descriptor, Disk
from trioresume.store.port.recipes import Digest, wrap_hash

__all__ = ["Doubts", "hash_chunk"]

_READ_SIZE = 1024 * 1024
_MOST_ANSWERS = 65536
"""How many chunks are remembered as right."""


def hash_chunk(file: Descriptor, disk: Disk) -> Digest:
    """Return the digest of *file*'s bytes."""
    hasher = blake3()
    while data := disk.read(file.fileno(), _READ_SIZE):
        hasher.update(data)
    return wrap_hash(hasher.digest())


class Doubts:
    """Tells which chunks are in doubt, and checks them."""

    def __init__(
        self,
        catalog: CatalogReader,
        disk: Disk,
        mount_epoch: int,
        data_dir: str,
    ) -> None:
        self._catalog = catalog
        self._disk = disk
        self._mount_epoch = mount_epoch
        self._right: set[Digest] = set()
        self._reports = Reports(data_dir, self._right.clear)
        self.any_unsynced = catalog.has_unsynced_before(mount_epoch)
        """Whether any chunk may be lost because it was not synced. No chunk is read for this."""

    @property
    def any_reported(self) -> bool:
        """Whether the last ``verify`` reported any chunk as damaged and did not repair it."""
        return bool(self._reports.look())

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
        return self._reports.look().has(digest) or (
            self.any_unsynced
            and self._catalog.is_unsynced_before(digest, self._mount_epoch)
        )

    def forget(self, digest: Digest) -> None:
        """Forget that *digest* was right, because the chunk was published again."""
        self._right.discard(digest)
