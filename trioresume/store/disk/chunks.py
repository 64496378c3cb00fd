"""Chunk files: ``chunks/xx/<digest>``, immutable and named by their bytes.

``xx`` is the first byte of the hash, so that the files spread evenly over 256
directories, and ``<digest>`` is the whole multihash; both are hexadecimal.

If the catalog names a chunk file, the file's bytes were durable before it got this name.
A file that the catalog does not name may have any bytes, for example after a power loss.

When the same bytes arrive again, the chunk file that is there is not believed, because
disks lose bits. The new bytes are right: they were just hashed and synced. So the new file
takes the name. This costs no read, and it heals a chunk that is damaged or missing. It
also takes the same time whether or not the chunk was there, so the time tells a client
nothing. With ``durability="process"`` the new file is not synced and must not replace a
synced one. Then the old file is read, and kept if it has the right bytes.

When a directory cannot be synced, the names that the sync was for are removed. The next
attempt creates and syncs them again. A second sync of the same names would prove nothing:
it may succeed because the system has given them up, and reports an error only once.

Chunks *in doubt* are checked before they are opened: see doubts.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from itertools import count

from blake3 import blake3

from trioresume.errors import StorageError
from trioresume.store.disk.doubts import Doubts, hash_chunk
from trioresume.store.file_system.disk_io import Descriptor, Disk, translated
from trioresume.store.port.recipes import DIGEST_LENGTH, Digest, wrap_hash

__all__ = ["SHARDS", "ChunkFiles"]

SHARDS = tuple(f"{number:02x}" for number in range(256))

_SHARD_AT = 2
"""Where the hash begins in a multihash. The bytes before it are the same in every digest."""

_TEMPORARY = ".new"
_ASIDE = ".directory"
"""The suffix of a directory that was found under the name of a chunk."""


class ChunkFiles:
    """The directory of chunks. Calls that change it are serialised by the store."""

    def __init__(self, root: str, disk: Disk) -> None:
        self._root = root
        self.disk = disk
        self._unsynced: set[str] = set()
        self._published: list[str] = []
        self._made: list[str] = []
        self._fresh: set[str] = set()
        """The paths of the chunks whose file was put there since the last sync."""
        self.checked: set[Digest] = set()
        """Chunks that were in doubt and are right; published ones have to be checked again."""
        self.doubts: Doubts | None = None
        self._removed_from: set[str] = set()
        self.doubted = False
        """Whether a directory could not be synced: see ``TailFiles.doubted``."""

    def prepare(self) -> None:
        self.disk.make_directory(self._root)
        # A killed process may have made directories that it did not sync.
        self.disk.sync_directory(self._root)

    def path(self, digest: Digest) -> str:
        return os.path.join(
            self._root, digest[_SHARD_AT : _SHARD_AT + 1].hex(), digest.hex()
        )

    def open(self, digest: Digest) -> Descriptor:
        """Open the chunk's file. Raises :class:`FileNotFoundError`.

        Raises :class:`ChunkCorrupt` if the chunk was in doubt and has wrong bytes.
        """
        path = self.path(digest)
        if self.doubts is not None:
            self.doubts.check(digest, path)
        return self.disk.open(path)

    def publish(self, tail: str, digest: Digest, length: int, *, known: bool) -> bool:
        """Name the file *tail* as the chunk *digest*; :meth:`sync` makes the name durable.

        *known* says that the catalog names the chunk. Returns whether the chunk is the
        file *tail* now, and not a file that was there before.
        """
        path = self.path(digest)
        with translated("publishing a chunk"):
            if known and self._is_right(path, digest, length):
                return False
            if os.stat(tail).st_size != length:
                raise StorageError(
                    "the file of a finished chunk has another length than expected, so another"
                    " program changed it; send the content again"
                )
            shard = os.path.dirname(path)
            if not os.path.isdir(shard):
                self.disk.make_directory(shard)
                self._made.append(shard)
                self._unsynced.add(self._root)
            self._unsynced.add(shard)
            if not known:
                self._published.append(path)
            try:
                self.disk.link_or_copy(tail, path)
            except FileExistsError:
                self._replace(tail, path, known=known)
            self._fresh.add(path)
            self.checked.discard(digest)
        return True

    def _is_right(self, path: str, digest: Digest, length: int) -> bool:
        """Return whether the present chunk file may be kept; see the module docstring."""
        if path in self._fresh:
            return True
        if self.disk.durable or _size(path) != length:
            return False
        try:
            with closing(self.disk.open(path)) as file:
                return hash_chunk(file, self.disk) == digest
        except OSError:
            return False

    def _replace(self, tail: str, path: str, *, known: bool) -> None:
        temporary = path + _TEMPORARY
        self.disk.unlink(temporary)
        if not os.path.samestat(os.stat(tail), os.lstat(path)):
            self.disk.link_or_copy(tail, temporary)
        elif known:
            # The tail was linked for a commit that failed. rename() does nothing to two
            # names of one file, so a copy takes the name: it must be created anew, and the
            # chunk must never be without a name.
            self.disk.copy(tail, temporary)
        else:
            self.disk.unlink(path)
            self.disk.link_or_copy(tail, path)
            return
        self._rename(temporary, path)

    def _rename(self, temporary: str, path: str) -> None:
        """Give the file *temporary* the name *path*, even if a directory has that name."""
        if os.path.isdir(path) and not os.path.islink(path):
            # Somebody made this directory and may want its files, so keep it.
            aside = (f"{path}.{number}{_ASIDE}" for number in count(1))
            self.disk.replace(path, next(n for n in aside if not os.path.lexists(n)))
        self.disk.replace(temporary, path)

    def restore(self, digest: Digest, blocks: Iterable[bytes]) -> bool:
        """Put the chunk *digest* in its place durably, with or without a running service.

        Returns False and changes nothing if *blocks* are not the chunk's bytes. Raises
        :class:`OSError`.
        """
        path = self.path(digest)
        shard = os.path.dirname(path)
        if not os.path.isdir(shard):
            self.disk.make_directory(shard)
            with closing(self.disk.open_directory(shard)) as directory:
                self.disk.give_to_owner_of(self._root, directory)
            self.disk.sync_directory(self._root)
        temporary = f"{path}.{os.getpid()}{_TEMPORARY}"
        self.disk.unlink(temporary)
        hasher = blake3()
        try:
            with closing(self.disk.create(temporary)) as file:
                self.disk.give_to_owner_of(self._root, file)
                for block in blocks:
                    hasher.update(block)
                    self.disk.write_all(file, memoryview(block))
                self.disk.sync_data(file)
            if wrap_hash(hasher.digest()) != digest:
                return False
            self._rename(temporary, path)
        finally:
            self.disk.unlink(temporary)
        self.disk.sync_directory(shard)
        return True

    def sync(self) -> None:
        """Make every name published since the last call durable.

        Raises :class:`StorageError`; all of these names are removed then.
        """
        with translated("syncing the chunks' directories"):
            try:
                self.disk.sync_directories(self._unsynced)
            except BaseException:
                self.doubted = True
                self._take_back()
                raise
            finally:
                self._unsynced.clear()
                self._published.clear()
                self._fresh.clear()
                self._made.clear()

    def _take_back(self) -> None:
        """Remove the names that were published since the last sync.

        The names of chunks that the catalog names stay: their earlier files are gone, and
        would be no better. But in a directory that was made since, there were no earlier
        files. It goes with all its names, so that the next attempt makes and syncs it again.
        """
        made = set(self._made)
        new = {path for path in self._fresh if os.path.dirname(path) in made}
        for path in {*self._published, *new}:
            with suppress(OSError):  # the others have to go all the same
                self.disk.unlink(path)
        for directory in self._made:
            with suppress(OSError):
                self.disk.remove_directory(directory)

    def remove(self, digest: Digest) -> None:
        self.remove_file(self.path(digest))

    def remove_file(self, path: str) -> None:
        """Remove the file *path*, which is in the chunk directory."""
        self._removed_from.add(os.path.dirname(path))
        self.disk.unlink(path)

    def sync_removals(self) -> None:
        """Make all removals durable. This is needed only before a clean end."""
        self.disk.sync_directories(self._removed_from)
        self._removed_from.clear()

    def are_none(self) -> bool:
        """Whether no chunk was ever published, or all were removed."""
        walk = os.walk(self._root)
        return not any(_parse(name) for _, _, names in walk for name in names)

    def names(self, shard: str) -> Iterator[tuple[str, Digest | None]]:
        """Yield the paths in *shard* with their digests: None for a file that is no chunk."""
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
