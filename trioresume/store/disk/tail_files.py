"""Tails: the bytes of content under construction that are not a chunk yet.

``tails/<key>.<index>`` holds the bytes of chunk *index* of *key*. The file's length gives
the offset; there is no separate counter that could disagree with it. A tail that has
reached the chunk size is *full*. It is sealed, published under its chunk name (a hard
link: the same inode) and unlinked.

Shared files
============

A published chunk may share its inode with a tail: a crash, or a commit that failed, leaves
both names. The chunk can belong to others, because equal bytes that arrive again take the
chunk's name (see chunks.py). So no byte of a file that has a second name ever changes:

* :meth:`TailFiles.create` makes a new inode, also where a tail was left;
* :meth:`TailFiles.cut` replaces a shared tail by a copy of the bytes that stay;
* a shared tail that goes on is replaced by a copy first (:meth:`TailFiles.unshare`).

The copy is made and synced under a name of its own, and is then renamed. So the tail's
bytes never lack a name. The next sweep removes a copy that a crash left.

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
from typing import Protocol

from blake3 import blake3

from trioresume.store.disk.unfinished import Epoch
from trioresume.store.file_system.disk_io import (
    Descriptor,
    Disk,
)
from trioresume.store.port import (
    ContentKey,
    SealChunk,
    check_key,
)
from trioresume.store.port.recipes import Digest

__all__ = [
    "FRESH",
    "PROOF",
    "Hasher",
    "Proof",
    "Sealing",
    "TailFiles",
    "hash_tail",
    "pack_proof",
    "parse_proof",
]

PROOF = ".proof"
"""The suffix of a proof's file name."""

FRESH = ".new"
"""The suffix of the copy of a tail, until it takes the tail's place."""

_PROOF = struct.Struct(">Q32s")
_CHECK_SIZE = 8
_RECORD_SIZE = _PROOF.size + _CHECK_SIZE
_READ_SIZE = 1024 * 1024


def _ignore(about: object = None) -> None:
    """Do nothing: the default where the directory is only read."""


@dataclass(slots=True, weakref_slot=True)
class Sealing:
    """A chunk that waits for the catalog's commit: its tail has its last byte."""

    length: int
    digest: Digest | None = None
    """The chunk's digest, once the tail is synced."""

    def note(self, digest: Digest) -> None:
        """Note that the tail is synced, and that its bytes have this digest."""
        self.digest = digest


@dataclass(frozen=True, slots=True)
class Proof:
    """The *hash* of the first *length* bytes of a tail."""

    length: int
    hash: bytes


def pack_proof(proof: Proof) -> bytes:
    """Return *proof* as it is stored, with a check of its own bytes.

    A power loss can leave half of a proof. Without the check it would look like a tail
    with wrong bytes.
    """
    packed = _PROOF.pack(proof.length, proof.hash)
    return packed + blake3(packed).digest(length=_CHECK_SIZE)


def parse_proof(record: bytes) -> Proof | None:
    """Return the proof in *record*, or None if the record is not whole."""
    if len(record) != _RECORD_SIZE:
        return None
    proof = Proof(*_PROOF.unpack(record[: _PROOF.size]))
    return proof if pack_proof(proof) == record else None


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
        take_space: Callable[[int], None] = _ignore,
        look_again: Callable[[], None] = _ignore,
        distrust: Callable[[ContentKey], None] = _ignore,
        distrust_all: Callable[[], None] = _ignore,
        new_hasher: Callable[[], Hasher] = blake3,
    ) -> None:
        self._root = root
        self.disk = disk
        self.write = disk.write_some
        self.new_hasher = new_hasher
        self.take_space = take_space
        """Claims the bytes that are written next, see :meth:`FreeSpace.take_content`."""
        self._look_again = look_again
        self.epoch = epoch
        self.distrust = distrust
        """Called when a sync failed: unrecorded bytes of this key no longer count."""
        self._distrust_all = distrust_all
        self.doubted = False
        """Whether a sync of the directory failed. An earlier removal may then be undone,
        even if later syncs succeed, so the store's end is no longer clean. Nor is it after
        a copy of a tail that could not be removed."""
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

    def note_failed_write(self, exc: OSError) -> None:
        """Note that a write failed with *exc*: the disk may be full although it seems not so.

        EFBIG is no sign of this: it is a limit of one file's size.
        """
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            self._look_again()

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

        The new length is durable on return, but that of a shared tail and a removal are
        durable only after :meth:`sync_names`. Proofs that cover bytes which are cut off are
        removed.
        """
        if length <= 0:
            self.remove(key, index)
            return
        if self.is_shared(key, index):
            self.unshare(key, index, length)
            return
        proof = self.proof(key, index)
        with closing(self.open(key, index)) as file:
            if proof is not None and proof.length > length:
                self.disk.unlink(self.path(key, index) + PROOF)
                self.disk.detach(file)
            self.disk.truncate(file, length)
            self.disk.sync_data(file)

    def is_shared(self, key: ContentKey, index: int) -> bool:
        """Return whether the tail's file has another name, which may be a chunk's."""
        try:
            return os.stat(self.path(key, index)).st_nlink > 1
        except FileNotFoundError:
            return False

    def unshare(self, key: ContentKey, index: int, length: int) -> None:
        """Replace the tail by a copy of its first *length* bytes, and keep its proof.

        The copy's bytes are durable on return, its name after :meth:`sync_names`. A proof of
        more bytes is removed.
        """
        path = self.path(key, index)
        fresh = path + FRESH
        proof = self.proof(key, index)
        with closing(self.disk.open(path)) as shared:
            in_inode = self.disk.attached(shared) != b""
        self.disk.unlink(fresh)
        try:
            self.disk.copy(path, fresh, length)
            if proof is not None and proof.length > length:
                self.disk.unlink(path + PROOF)
            elif proof is not None and in_inode:
                with closing(self.disk.open(fresh, write=True)) as file:
                    self.write_proof(key, index, file, proof)
            self.disk.replace(fresh, path)
        except OSError:
            self._discard(fresh)
            raise

    def _discard(self, path: str) -> None:
        try:
            self.disk.unlink(path)
        except OSError:
            self.doubted = True  # the end is not clean, so that the next start sweeps

    def remove(self, key: ContentKey, index: int) -> None:
        """Remove the tail and its proof, if they exist."""
        path = self.path(key, index)
        self.disk.unlink(path)
        self.disk.unlink(path + PROOF)

    def write_proof(
        self, key: ContentKey, index: int, file: Descriptor, proof: Proof
    ) -> None:
        """Keep *proof* of the bytes of *file*, the tail. Raises :class:`OSError`."""
        record = pack_proof(proof)
        if not self.disk.attach(file, record):
            self.disk.overwrite(self.path(key, index) + PROOF, record)

    def prove(self, key: ContentKey, index: int) -> None:
        """Write a proof of all the bytes that the tail has. Raises :class:`OSError`."""
        with closing(self.open(key, index)) as file:
            hasher = hash_tail(file, self.disk)
            length = os.fstat(file.fileno()).st_size
            self.write_proof(key, index, file, Proof(length, hasher.digest()))

    def copy_proofs(self) -> None:
        """Also write the proofs that are attributes of tails to files.

        A copy of the directory often lacks the attributes.
        """
        for path, key, index in self.tails():
            try:
                proof = self.proof(key, index)
                if proof is not None:
                    self.disk.overwrite(path + PROOF, pack_proof(proof))
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
        proofs = filter(None, map(parse_proof, records))
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

    def tails(self) -> Iterator[tuple[str, ContentKey, int]]:
        """Yield the path, key and index of every tail, without a list of all in memory."""
        for path, key, index in self.names():
            if not path.endswith((PROOF, FRESH)):
                yield path, key, index

    def names(self) -> Iterator[tuple[str, ContentKey, int]]:
        """Yield the same as :meth:`tails`, and also the files of proofs and copies.

        They have the keys and indexes of their tails.
        """
        with os.scandir(self._root) as entries:
            for entry in entries:
                name = entry.name.removesuffix(PROOF).removesuffix(FRESH)
                key, _, index = name.rpartition(".")
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


def _has(file: Descriptor, disk: Disk, proof: Proof) -> bool:
    """Return whether *file* begins with the bytes that *proof* covers."""
    hasher, left = blake3(), proof.length
    while left and (data := disk.read(file.fileno(), min(left, _READ_SIZE))):
        hasher.update(data)
        left -= len(data)
    return not left and hasher.digest() == proof.hash


class Hasher(Protocol):
    """Hashes the bytes of a chunk, as blake3 does."""

    def update(self, data: memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


def hash_tail(file: Descriptor, disk: Disk) -> blake3:
    """Hash the file from its start, and leave its position at its end."""
    hasher = blake3()
    file.bypass_cache(False)  # direct reads would need aligned memory
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    while data := disk.read(file.fileno(), _READ_SIZE):
        hasher.update(data)
    return hasher
