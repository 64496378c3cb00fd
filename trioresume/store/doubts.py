"""Doubts: chunks that nothing synced, and what may have become of them.

With ``durability="process"`` a chunk is named before its bytes are on the disk. They are
in the page cache, which outlives the process, but neither the machine nor the life of the
mounted file system. Nothing promises that such a chunk survives a power loss. But wrong
bytes must not be taken for right ones: a file system can keep a file's length and lose its
bytes.

So the catalog notes for each of these chunks the epoch it was published in, and the first
epoch of the present *mount life*, which ends when the machine boots or the file system is
mounted anew. A chunk of an earlier epoch is in doubt. It is read and hashed before it is
opened for the first time in a process: it has the bytes that it is named after, or it is
damaged. An unfinished upload that has a damaged chunk is lost.

Where the system cannot tell mounts apart every start begins a new mount life.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from contextlib import closing
from pathlib import Path

from blake3 import blake3

from trioresume.errors import ChunkCorrupt
from trioresume.store.catalog import CatalogReader
from trioresume.store.disk_io import Descriptor, Disk
from trioresume.store.recipe import Digest, wrap_hash

__all__ = ["Doubts", "hash_chunk", "mount_id"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_AT_FDCWD = -100
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_SIZE = 256
_MASK_AT, _MOUNT_AT = 0, 0x90
"""Where ``stx_mask`` and ``stx_mnt_id`` are in ``struct statx`` (linux/stat.h)."""

_READ_SIZE = 1024 * 1024
_MOST_ANSWERS = 65536
"""Chunks whose answer is remembered."""


def mount_id(path: str) -> str | None:
    """What tells the mount that holds *path* from all others, earlier ones included.

    None where the system cannot tell: it takes Linux 6.8. The number of a mount in
    ``/proc/self/mountinfo`` would not do, because it is used again.
    """
    if sys.platform != "linux":
        return None
    statx = getattr(ctypes.CDLL(None), "statx", None)
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if statx is None or statx(
        _AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID_UNIQUE, found
    ):
        return None
    (mask,) = struct.unpack_from("=I", found, _MASK_AT)
    if not mask & _STATX_MNT_ID_UNIQUE:
        return None
    (number,) = struct.unpack_from("=Q", found, _MOUNT_AT)
    try:
        boot = Path(_BOOT_ID).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return f"{boot} {number}"


def hash_chunk(file: Descriptor, disk: Disk) -> Digest:
    """What the bytes of *file* are named after."""
    hasher = blake3()
    while data := disk.read(file.fileno(), _READ_SIZE):
        hasher.update(data)
    return wrap_hash(hasher.digest())


class Doubts:
    """Which chunks are in doubt, and whether they are right after all."""

    def __init__(self, catalog: CatalogReader, disk: Disk, mount_epoch: int) -> None:
        self._catalog = catalog
        self._disk = disk
        self._mount_epoch = mount_epoch
        self._answers: dict[Digest, bool] = {}
        self.any = catalog.has_unsynced_before(mount_epoch)
        """Whether any chunk is in doubt, which needs no look at a chunk to be known."""

    def check(self, digest: Digest, path: str) -> None:
        """Raise :class:`ChunkCorrupt` if the chunk at *path* was in doubt and is wrong.

        Raises :class:`FileNotFoundError` if it is not there. Reads the chunk, once in
        the life of the process.
        """
        if not self.any:
            return
        right = self._answers.get(digest)
        if right is None:
            if not self._catalog.is_unsynced_before(digest, self._mount_epoch):
                return
            with closing(self._disk.open(path)) as file:
                right = hash_chunk(file, self._disk) == digest
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            self._answers[digest] = right
        if not right:
            raise ChunkCorrupt(
                f"chunk {digest.hex()} does not have the bytes it is named after"
            )

    def forget(self, digest: Digest) -> None:
        """The chunk was published anew."""
        self._answers.pop(digest, None)
