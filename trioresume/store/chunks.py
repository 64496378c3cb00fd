"""Chunk files: ``chunks/xx/<digest>``, immutable and named by their bytes.

``xx`` is the first byte of the hash, so that the files spread evenly over 256
directories, and ``<digest>`` is the whole multihash; both are hexadecimal.

A chunk file that the catalog names had its bytes made durable before it got this name.
One that the catalog does not name may be anything, such as what a power loss left.

A chunk that is there already is not believed when the same bytes arrive again: disks lose
bits. The bytes in hand are right, because they were just hashed and synced, so the new
file takes the name. This costs no read, and it heals a chunk that is damaged or missing.
Nobody can tell by the time it takes whether the chunk was there. With
``durability="process"`` the new file is not synced and must not replace one that is: then
the old one is read, and kept if it has the right bytes.

When a directory cannot be synced, the names that were to become durable are taken back.
Whoever tries again gives them anew, and syncs that: a second sync of the same names might
succeed because the system has given them up, and reported it once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

from trioresume.errors import StorageError
from trioresume.store.disk_io import Descriptor, Disk, translated
from trioresume.store.doubts import Doubts, hash_chunk
from trioresume.store.recipe import DIGEST_LENGTH, Digest

__all__ = ["SHARDS", "ChunkFiles"]

SHARDS = tuple(f"{number:02x}" for number in range(256))

_SHARD_AT = 2
"""Where the hash begins in a multihash; the bytes before are the same in all."""

_TEMPORARY = ".new"


class ChunkFiles:
    """The directory of chunks. Calls that change it are serialised by the store."""

    def __init__(self, root: str, disk: Disk) -> None:
        self._root = root
        self.disk = disk
        self._unsynced: set[str] = set()
        self._published: list[str] = []
        self._made: list[str] = []
        self._fresh: set[str] = set()
        """The chunks whose file was put there since the last sync."""
        self.doubts: Doubts | None = None
        self._removed_from: set[str] = set()
        self.doubted = False
        """The same as of the tails' directory, see there."""

    def prepare(self) -> None:
        self.disk.make_directory(self._root)
        # Directories that a killed process made, but did not live to sync.
        self.disk.sync_directory(self._root)

    def path(self, digest: Digest) -> str:
        return os.path.join(
            self._root, digest[_SHARD_AT : _SHARD_AT + 1].hex(), digest.hex()
        )

    def open(self, digest: Digest) -> Descriptor:
        """Raises :class:`FileNotFoundError`.

        Raises :class:`ChunkCorrupt` if the chunk was in doubt, and is wrong.
        """
        path = self.path(digest)
        if self.doubts is not None:
            self.doubts.check(digest, path)
        return self.disk.open(path)

    def publish(self, tail: str, digest: Digest, length: int, *, known: bool) -> bool:
        """Name the file *tail* as the chunk *digest*; :meth:`sync` makes that durable.

        *known* says that the catalog names the chunk. Whether the chunk is that file now.
        """
        path = self.path(digest)
        with translated("publishing a chunk"):
            if known and self._is_right(path, digest, length):
                return False
            if os.stat(tail).st_size != length:
                raise StorageError("a sealed tail changed before it was published")
            self._make_shard(os.path.dirname(path))
            if not known:
                self._published.append(path)
            try:
                self.disk.link_or_copy(tail, path)
            except FileExistsError:
                self._replace(tail, path, known=known)
            self._fresh.add(path)
            if self.doubts is not None:
                self.doubts.forget(digest)
        return True

    def _is_right(self, path: str, digest: Digest, length: int) -> bool:
        """Whether the chunk that is there may be kept; see the module's text."""
        if path in self._fresh:
            return True
        if self.disk.durable or _size(path) != length:
            return False
        try:
            with closing(self.disk.open(path)) as file:
                return hash_chunk(file, self.disk) == digest
        except OSError:
            return False

    def _make_shard(self, directory: str) -> None:
        if not os.path.isdir(directory):
            self.disk.make_directory(directory)
            self._made.append(directory)
            self._unsynced.add(self._root)
        self._unsynced.add(directory)

    def _replace(self, tail: str, path: str, *, known: bool) -> None:
        temporary = path + _TEMPORARY
        self.disk.unlink(temporary)
        if not os.path.samefile(tail, path):
            self.disk.link_or_copy(tail, temporary)
        elif known:
            # Linked for a commit that failed; rename() does nothing to two names of one
            # file. The name must be given anew, and the chunk must never be without one.
            self.disk.copy(tail, temporary)
        else:
            self.disk.unlink(path)
            self.disk.link_or_copy(tail, path)
            return
        self.disk.replace(temporary, path)

    def sync(self) -> None:
        """Make every name published since the last call durable.

        Raises :class:`StorageError`; then none of them is there any more.
        """
        with translated("syncing the chunks' directories"):
            try:
                for directory in self._unsynced:
                    self.disk.sync_directory(directory)
            except OSError:
                self.doubted = True
                self._take_back()
                raise
            finally:
                self._unsynced.clear()
                self._published.clear()
                self._fresh.clear()
                self._made.clear()

    def _take_back(self) -> None:
        """Remove the names that were given since the last sync.

        Not those of chunks that the catalog names: what they were before is no better.
        """
        for path in self._published:
            self.disk.unlink(path)
        for directory in self._made:
            if not os.listdir(directory):
                self.disk.remove_directory(directory)

    def remove(self, digest: Digest) -> None:
        self.remove_file(self.path(digest))

    def remove_file(self, path: str) -> None:
        """Remove what lies at *path* among the chunks."""
        self._removed_from.add(os.path.dirname(path))
        self.disk.unlink(path)

    def sync_removals(self) -> None:
        """Make all removals durable, which they need not be before a clean end."""
        for directory in list(self._removed_from):
            self.disk.sync_directory(directory)
            self._removed_from.discard(directory)

    def names(self, shard: str) -> Iterator[tuple[str, Digest | None]]:
        """The paths in *shard*; the digest is None for what is no chunk."""
        directory = os.path.join(self._root, shard)
        if not os.path.isdir(directory):
            return
        for name in sorted(os.listdir(directory)):
            yield os.path.join(directory, name), _parse(name)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _parse(name: str) -> Digest | None:
    try:
        digest = Digest(bytes.fromhex(name))
    except ValueError:
        return None
    return digest if len(digest) == DIGEST_LENGTH and digest.hex() == name else None
