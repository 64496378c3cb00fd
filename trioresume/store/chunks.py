"""Chunk files: ``chunks/xx/<digest>``, immutable and named by their bytes.

``xx`` is the first byte of the hash, so that the files spread evenly over 256
directories, and ``<digest>`` is the whole multihash; both are hexadecimal.

A chunk file that the catalog names is right: its bytes were made durable before
they got this name. One that the catalog does not name may be anything, such as what
a power loss left, and is replaced rather than trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from trioresume.errors import StorageError
from trioresume.store.disk_io import Descriptor, Disk, translated
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
        self._disk = disk
        self._unsynced: set[str] = set()

    def prepare(self) -> None:
        os.makedirs(self._root, 0o700, exist_ok=True)
        # Directories that a killed process made, but did not live to sync.
        self._disk.sync_directory(self._root)

    def path(self, digest: Digest) -> str:
        return os.path.join(
            self._root, digest[_SHARD_AT : _SHARD_AT + 1].hex(), digest.hex()
        )

    def open(self, digest: Digest) -> Descriptor:
        """Raises :class:`FileNotFoundError`."""
        return self._disk.open(self.path(digest))

    def publish(self, tail: str, digest: Digest, length: int, *, known: bool) -> None:
        """Name the file *tail* as the chunk *digest*; :meth:`sync` makes that durable.

        *known* says that the catalog names the chunk: then the file that is there is
        kept, unless it has lost bytes.
        """
        path = self.path(digest)
        with translated("publishing a chunk"):
            if known and _size(path) == length:
                return
            if os.stat(tail).st_size != length:
                raise StorageError("a sealed tail changed before it was published")
            self._make_shard(os.path.dirname(path))
            try:
                self._disk.link_or_copy(tail, path)
            except FileExistsError:
                self._replace(tail, path)

    def _make_shard(self, directory: str) -> None:
        self._unsynced.add(directory)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            return
        self._unsynced.add(self._root)

    def _replace(self, tail: str, path: str) -> None:
        if os.path.samefile(tail, path):
            return  # linked for a commit that failed; rename() would leave both names
        temporary = path + _TEMPORARY
        self._disk.unlink(temporary)
        self._disk.link_or_copy(tail, temporary)
        self._disk.replace(temporary, path)

    def sync(self) -> None:
        """Make every name published since the last call durable."""
        with translated("syncing the chunks' directories"):
            for directory in list(self._unsynced):
                self._disk.sync_directory(directory)
                self._unsynced.discard(directory)

    def remove(self, digest: Digest) -> None:
        self._disk.unlink(self.path(digest))

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
