"""Tails: the bytes of content under construction that are not a chunk yet.

``tails/<key>.<index>`` holds the bytes of chunk *index* of *key*. The file's length gives
the offset; there is no separate counter that could disagree with it. A tail that has
reached the chunk size is *full*. It is sealed, published under its chunk name (a hard
link: the same inode) and unlinked.

A published chunk may share its inode with a tail that a crash left. So a tail is never
opened for writing over a file that was there before: :meth:`TailFiles.create` always
makes a new inode. The only exception is to append to a partial tail at its end.

Proofs
======

Only the process that wrote a tail can rely on its length. A file system can keep the
length of a file and lose its bytes, even without a reboot: it may be shut down after an
error, or detached and mounted again. So each tail has a *proof*: a length, and the BLAKE3
hash of that many bytes from the tail's start. It is an attribute of the file. Where there
are no attributes, it is the file ``tails/<key>.<index>.proof``. :meth:`Tail.append` writes
the proof after the bytes and before it returns. The proof is never synced, because it may
be wrong: a later process believes it only if the tail's bytes have this hash. So no crash,
whatever it does to either file, makes anybody believe wrong bytes.

A proof proves that bytes are right, not that they count. Bytes that were cut off must not
come back with their proof: see ``Recovery._cut`` in recovery.py.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NoReturn

from blake3 import blake3

from trioresume.errors import CallerError, StorageError
from trioresume.store.disk_io import Descriptor, Disk, storage_error, translated
from trioresume.store.extent import Epoch
from trioresume.store.port import (
    ContentKey,
    RecordOffset,
    Seal,
    SealChunk,
    check_key,
    is_response_key,
)
from trioresume.store.recipe import Digest, wrap_hash
from trioresume.store.room import Room

__all__ = [
    "PROOF",
    "DiskFlush",
    "DiskSeal",
    "KnownSeal",
    "Proof",
    "Sealing",
    "Tail",
    "TailFiles",
]

PROOF = ".proof"
"""The suffix of a proof's file name."""

_PROOF = struct.Struct(">Q32s")
_CHECK_SIZE = 8
_RECORD_SIZE = _PROOF.size + _CHECK_SIZE
_READ_SIZE = 1024 * 1024


def _ignore(key: ContentKey | None = None) -> None:
    """Do nothing: the default where the directory is only read."""


@dataclass(slots=True)
class Sealing:
    """A chunk that waits for the catalog's commit: its tail has its last byte."""

    length: int
    digest: Digest | None = None
    """The chunk's digest, once the tail is synced."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The *hash* of the first *length* bytes of a tail."""

    length: int
    hash: bytes

    def record(self) -> bytes:
        """Return the proof as it is stored, with a check of its own bytes.

        A power loss can leave half of a proof. Without the check it would look like a tail
        with wrong bytes.
        """
        packed = _PROOF.pack(self.length, self.hash)
        return packed + _check(packed)

    @classmethod
    def parse(cls, record: bytes) -> Proof | None:
        """Return the proof of a *record*, or None if the record is not whole."""
        packed, check = record[: _PROOF.size], record[_PROOF.size :]
        if len(record) != _RECORD_SIZE or check != _check(packed):
            return None
        return cls(*_PROOF.unpack(packed))


def _check(packed: bytes) -> bytes:
    return blake3(packed).digest(length=_CHECK_SIZE)


class TailFiles:
    """The directory of tails, and the record of which tails are being sealed.

    This record makes a :class:`SealChunk` trustworthy: the tail's name alone does not say
    that the file still has the bytes that were sealed.
    """

    def __init__(
        self,
        root: str,
        disk: Disk,
        epoch: Epoch,
        *,
        min_free: int = 0,
        distrust: Callable[[ContentKey], None] = _ignore,
        distrust_all: Callable[[], None] = _ignore,
    ) -> None:
        self._root = root
        self.disk = disk
        self.write = disk.write_some
        self.room = Room(root, min_free)
        self.epoch = epoch
        self.distrust = distrust
        """Called when a sync failed: unrecorded bytes of this key no longer count."""
        self._distrust_all = distrust_all
        self.doubted = False
        """Whether a sync of the directory failed. An earlier removal may then be undone,
        even if later syncs succeed, so the store's end is no longer clean."""
        self._lock = threading.Lock()
        self._sealings: dict[ContentKey, dict[int, Sealing]] = {}

    def prepare(self) -> None:
        self.disk.make_directory(self._root)

    def path(self, key: ContentKey, index: int) -> str:
        check_key(key)
        return os.path.join(self._root, f"{key}.{index}")

    def length(self, key: ContentKey, index: int) -> int | None:
        """Return how many bytes the tail has; None if there is no tail."""
        try:
            return os.stat(self.path(key, index)).st_size
        except FileNotFoundError:
            return None

    def create(self, key: ContentKey, index: int) -> Descriptor:
        """Create an empty tail. The module docstring says why a leftover is not reused."""
        path = self.path(key, index)
        try:
            return self.disk.create(path)
        except FileExistsError:
            self.remove(key, index)
            return self.disk.create(path)

    def open(self, key: ContentKey, index: int) -> Descriptor:
        return self.disk.open(self.path(key, index), write=True)

    def cut(self, key: ContentKey, index: int, length: int) -> None:
        """Cut the tail back to *length* bytes; with a length of 0 or less, remove it.

        The new length is durable on return. A removal is durable only after
        :meth:`sync_names`. Proofs that cover bytes which are cut off are removed.
        """
        if length <= 0:
            self.remove(key, index)
            return
        proof = self.proof(key, index)
        with closing(self.open(key, index)) as file:
            if proof is not None and proof.length > length:
                self.disk.unlink(self.path(key, index) + PROOF)
                self.disk.detach(file)
            self.disk.truncate(file, length)
            self.disk.sync_data(file)

    def remove(self, key: ContentKey, index: int) -> None:
        """Remove the tail and its proof, if they exist."""
        path = self.path(key, index)
        self.disk.unlink(path)
        self.disk.unlink(path + PROOF)

    def write_proof(
        self, key: ContentKey, index: int, file: Descriptor, proof: Proof
    ) -> None:
        """Keep *proof* of the bytes of *file*, the tail. Raises :class:`OSError`."""
        if not self.disk.attach(file, proof.record()):
            self.disk.overwrite(self.path(key, index) + PROOF, proof.record())

    def prove(self, key: ContentKey, index: int) -> None:
        """Write a proof of all the bytes that the tail has. Raises :class:`OSError`."""
        with closing(self.open(key, index)) as file:
            hasher = _hash_file(file, self.disk)
            length = os.fstat(file.fileno()).st_size
            self.write_proof(key, index, file, Proof(length, hasher.digest()))

    def copy_proofs(self) -> None:
        """Also write the proofs that are attributes of tails to files.

        A copy of the directory often lacks the attributes.
        """
        for path, key, index in self.names():
            if path.endswith(PROOF):
                continue
            try:
                proof = self.proof(key, index)
                if proof is not None:
                    self.disk.overwrite(path + PROOF, proof.record())
            except OSError:
                continue  # the attribute still has the proof

    def proof(self, key: ContentKey, index: int) -> Proof | None:
        """Return the proof that was written last, without a look at the tail's bytes.

        The proof is in the tail's inode or in a separate file. Both can exist: see
        :meth:`copy_proofs`, or the attribute could not be written at some point. Then the
        proof of more bytes is the later one.
        """
        path = self.path(key, index)
        records = []
        for name in (path, path + PROOF):
            try:
                with closing(self.disk.open(name)) as file:
                    records.append(
                        self.disk.attached(file)
                        if name == path
                        else self.disk.read(file.fileno(), _RECORD_SIZE)
                    )
            except FileNotFoundError:
                continue
        proofs = filter(None, map(Proof.parse, records))
        return max(proofs, key=lambda proof: proof.length, default=None)

    def proven(self, key: ContentKey, index: int) -> int:
        """Read the tail, and return how many of its first bytes are proven.

        Returns 0 if the bytes cannot be read.
        """
        try:
            proof = self.proof(key, index)
            if proof is None:
                return 0
            with closing(self.disk.open(self.path(key, index))) as file:
                return proof.length if _has(file, self.disk, proof) else 0
        except OSError:
            return 0

    def claimed(self, key: ContentKey, index: int) -> int:
        """Return how many bytes the proof covers, without reading the tail to check it."""
        try:
            proof, length = self.proof(key, index), self.length(key, index)
        except OSError:
            return 0
        if proof is None or length is None or length < proof.length:
            return 0
        return proof.length

    def remove_from(self, key: ContentKey, first: int, last_sealed: int) -> None:
        """Remove the tails from *first* on; those up to *last_sealed* may be missing."""
        index = first
        while index <= last_sealed or self.length(key, index) is not None:
            self.remove(key, index)
            index += 1

    def sync_names(self) -> None:
        """Make the names of all tails durable. Raises :class:`OSError`.

        After an error the epoch ends: a later sync that succeeds would prove nothing about
        the names that were not synced before.
        """
        try:
            self.disk.sync_directory(self._root)
        except OSError:
            self.doubted = True
            self.epoch.end()
            self._distrust_all()
            raise

    def names(self) -> Iterator[tuple[str, ContentKey, int]]:
        """Yield the path, key and index of every tail, without a list of all in memory.

        The file of a tail's proof is yielded as well, with the tail's key and index.
        """
        with os.scandir(self._root) as entries:
            for entry in entries:
                key, _, index = entry.name.removesuffix(PROOF).rpartition(".")
                if index.isdecimal():
                    yield entry.path, ContentKey(key), int(index)

    # Sealings.

    def begin_sealing(self, key: ContentKey, index: int, length: int) -> Sealing:
        """Return the sealing of a tail. A full tail that two writers sealed has only one."""
        with self._lock:
            return self._sealings.setdefault(key, {}).setdefault(index, Sealing(length))

    def is_sealed(self, seal: SealChunk) -> bool:
        with self._lock:
            sealing = self._sealings.get(seal.key, {}).get(seal.index)
        return (
            sealing is not None
            and sealing.digest == seal.digest
            and sealing.length == seal.length
        )  # fmt: skip

    def is_being_sealed(self, key: ContentKey, index: int) -> bool:
        with self._lock:
            return index in self._sealings.get(key, {})

    def end_sealing(self, key: ContentKey, index: int) -> None:
        with self._lock:
            sealings = self._sealings.get(key, {})
            sealings.pop(index, None)
            if not sealings:
                self._sealings.pop(key, None)

    def end_sealings(self, key: ContentKey, first: int = 0) -> None:
        """Forget the sealings from *first* on, because their tails are given up."""
        with self._lock:
            sealings = self._sealings.get(key, {})
            for index in [index for index in sealings if index >= first]:
                del sealings[index]
            if not sealings:
                self._sealings.pop(key, None)

    def short_sealing(self, key: ContentKey, chunk_size: int) -> int | None:
        """Return the index of the last, shorter chunk, if it is being sealed."""
        with self._lock:
            sealings = self._sealings.get(key, {})
            return next((i for i, s in sealings.items() if s.length < chunk_size), None)


class DiskSeal:
    """Makes one tail durable. *hasher* is None when its bytes must be read again."""

    __slots__ = ("_file", "_files", "_hasher", "_key", "_sealing", "index")

    def __init__(
        self,
        files: TailFiles,
        key: ContentKey,
        index: int,
        file: Descriptor,
        length: int,
        hasher: blake3 | None = None,
    ) -> None:
        self.index = index
        self._key = key
        self._files = files
        self._file = file
        self._hasher = hasher
        self._sealing = files.begin_sealing(key, index, length)

    def run(self) -> SealChunk:
        try:
            hasher = self._hasher or _hash_file(self._file, self._files.disk)
            digest = wrap_hash(hasher.digest())
            self._files.disk.sync_data(self._file)
        except OSError as exc:
            self._files.distrust(self._key)
            raise storage_error(exc, "syncing a chunk") from exc
        finally:
            self._file.close()
        self._sealing.digest = digest
        return SealChunk(self._key, self.index, digest, self._sealing.length)

    def duplicate(self) -> Descriptor:
        """Return a duplicate of the tail's descriptor, for a flush that must cover it."""
        return self._file.duplicate()

    def close(self) -> None:
        """Give up the seal before a caller got it. The tail's bytes stay."""
        self._file.close()


class KnownSeal:
    """The seal of a chunk that was sealed already, although a chunk before it was not.

    A writer that opens the content gets seals for all chunks from the first gap on. These
    are among them, so that its seals continue the catalog's prefix without a gap.
    """

    __slots__ = ("_seal", "index")

    def __init__(self, seal: SealChunk) -> None:
        self.index = seal.index
        self._seal = seal

    def run(self) -> SealChunk:
        return self._seal

    def duplicate(self) -> None:
        """Return None: no tail is left that a flush would have to cover."""

    def close(self) -> None:
        pass  # this seal holds nothing


class DiskFlush:
    """Makes tails durable, through duplicated descriptors.

    The writer may seal its tails and close its own descriptors meanwhile.
    """

    __slots__ = ("_epoch", "_files", "_sync_names", "_tail", "offset")

    def __init__(
        self, tail: Tail, files: list[Descriptor], *, sync_names: bool
    ) -> None:
        self.offset = tail.offset
        self._tail = tail
        self._files = files
        self._sync_names = sync_names
        self._epoch = tail.files.epoch.number

    def run(self) -> RecordOffset:
        tails = self._tail.files
        try:
            for file in self._files:
                tails.disk.sync_data(file)
            if self._sync_names:
                tails.sync_names()
                if tails.epoch.number != self._epoch:
                    raise OSError(errno.EIO, "names of tails were lost meanwhile")
        except OSError as exc:
            tails.distrust(self._tail.key)
            raise storage_error(exc, "syncing a tail") from exc
        finally:
            for file in self._files:
                file.close()
        self._tail.flushed(self.offset)
        return RecordOffset(self._tail.key, self.offset)


class Tail:
    """The end of content under construction. A writer holds it and hands it to the next.

    *waiting* are seals of full chunks that no caller has got yet: of chunks found on disk
    when the tail was opened, and of chunks completed by an append that then failed.
    """

    __slots__ = (
        "_base",
        "_file",
        "_hasher",
        "_index",
        "_length",
        "_names_synced",
        "_proven",
        "_proves",
        "_synced",
        "_waiting",
        "broken",
        "chunk_size",
        "files",
        "finished",
        "key",
    )

    def __init__(
        self,
        files: TailFiles,
        key: ContentKey,
        chunk_size: int,
        *,
        index: int = 0,
        synced: int = 0,
        waiting: list[DiskSeal | KnownSeal] | None = None,
    ) -> None:
        self.files = files
        self.key = key
        self.chunk_size = chunk_size
        self.broken = False
        """Whether a sync failed: no bytes may be added after suspect ones."""
        self.finished = False
        self._index = index
        self._base = index * chunk_size
        self._length = 0
        self._file: Descriptor | None = None
        self._hasher: blake3 | None = None
        """The hash state of the file's bytes; None if they would have to be read again."""
        self._names_synced = False
        self._proves = not is_response_key(key)  # response content is never resumed
        self._proven = 0
        """How many bytes of the file the proof covers: all, except during an append."""
        self._synced = synced
        self._waiting: list[DiskSeal | KnownSeal] = waiting or []

    @property
    def offset(self) -> int:
        return self._base + self._length

    def resume(self, length: int) -> None:
        """Continue the partial tail on disk, which has *length* bytes."""
        self._file = self.files.open(self.key, self._index)
        self._length = self._proven = length
        self._hash_again(self._file)

    def relax(self) -> None:
        """Free the hash state while nothing arrives: it can be made again from the file."""
        if self._file is not None:
            self._hasher = None

    def _hash_again(self, file: Descriptor) -> blake3:
        hasher = _hash_file(file, self.files.disk)
        if os.lseek(file.fileno(), 0, os.SEEK_CUR) != self._length:
            raise StorageError("a tail is not as it was left")
        self._hasher = hasher
        return hasher

    def append(self, data: memoryview) -> list[Seal]:
        if self.broken or self.finished:
            self._refuse()
        try:
            try:
                self._write(data)
            finally:
                self._prove()
        except OSError as exc:
            raise storage_error(exc, "writing a tail") from exc
        return self._take() if self._waiting else []

    def _write(self, data: memoryview) -> None:
        position, size = 0, len(data)
        while position < size:
            file = self._file or self._begin()
            hasher = self._hasher or self._hash_again(file)
            part = data[position : position + self.chunk_size - self._length]
            self.files.room.take(len(part))
            written = self.files.write(file, part, self._length)
            # Hash only the bytes that were written, so that hash and file agree after an
            # error.
            hasher.update(part if written == len(part) else part[:written])
            self._length += written
            position += written
            if self._length == self.chunk_size:
                self._prove()
                self._seal(file)

    def _prove(self) -> None:
        """Write a proof of all bytes in the file, unless it was written already."""
        file, hasher = self._file, self._hasher
        if file is None or hasher is None or self._length == self._proven:
            return
        if self._proves:
            try:
                proof = Proof(self._length, hasher.digest())
                self.files.write_proof(self.key, self._index, file, proof)
            except OSError:
                if self.files.disk.durable:
                    return  # an offset is recorded before it is announced: no proof needed
                # Accepted bytes may be announced at once, so they must be proven. These
                # are not: take them back.
                self._length, self._hasher = self._proven, None
                self.files.disk.truncate(file, self._length)
                raise
        self._proven = self._length

    def _refuse(self) -> NoReturn:
        if self.broken:
            raise StorageError("a sync of this content failed; open a new writer")
        raise CallerError("the content was finished")

    def _begin(self) -> Descriptor:
        self._hasher = blake3()
        self._names_synced = False
        self._proven = 0
        self._file = self.files.create(self.key, self._index)
        return self._file

    def _seal(self, file: Descriptor) -> None:
        seal = DiskSeal(
            self.files, self.key, self._index, file, self._length, self._hasher
        )
        self._waiting.append(seal)
        self._file = None
        self._base += self._length
        self._index += 1
        self._length = 0

    def _take(self) -> list[Seal]:
        seals: list[Seal] = list(self._waiting)
        self._waiting = []
        return seals

    def finish(self) -> list[Seal]:
        if self.broken or self.finished:
            self._refuse()
        self.finished = True
        if self._file is not None:
            if self._length:
                self._seal(self._file)
            else:
                self._abandon(self._file)
        return self._take()

    def _abandon(self, file: Descriptor) -> None:
        """Remove a tail that is empty because the disk was full at its first byte."""
        file.close()
        self._file = None
        with translated("removing an empty tail"):
            self.files.remove(self.key, self._index)

    def flush(self) -> DiskFlush | None:
        if not self.files.disk.durable or self.offset <= self._synced:
            return None
        if self.broken:
            self._refuse()
        with translated("syncing a tail"):
            duplicates = [seal.duplicate() for seal in self._waiting]
            files = [file for file in duplicates if file is not None]
            if self._file is not None:
                files.append(self._file.duplicate())
        # Sync the names, too, if this process made new ones since the last flush, or an
        # earlier process may have made some.
        return DiskFlush(self, files, sync_names=bool(files) and not self._names_synced)

    def flushed(self, offset: int) -> None:
        self._synced = max(self._synced, offset)
        if offset > self._base:
            self._names_synced = (
                True  # the present tail began before the flush, so its name is synced
            )

    def close(self) -> None:
        for seal in self._waiting:
            seal.close()
        self._waiting = []
        if self._file is not None:
            self._file.close()
            self._file = None


def _has(file: Descriptor, disk: Disk, proof: Proof) -> bool:
    """Return whether *file* begins with the bytes that *proof* covers."""
    hasher, left = blake3(), proof.length
    while left and (data := disk.read(file.fileno(), min(left, _READ_SIZE))):
        hasher.update(data)
        left -= len(data)
    return not left and hasher.digest() == proof.hash


def _hash_file(file: Descriptor, disk: Disk) -> blake3:
    """Hash the file from its start, and leave its position at its end."""
    hasher = blake3()
    file.bypass_cache(False)  # direct reads would need aligned memory
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    while data := disk.read(file.fileno(), _READ_SIZE):
        hasher.update(data)
    return hasher
