"""A regular file as content, and the proof of what was sent of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import trio

from trioresume.errors import TransferFailed

__all__ = [
    "BLOCK_BYTES",
    "FileSource",
    "FileSpan",
    "Identity",
    "Piece",
    "Proof",
    "SourceChanged",
    "shrunk",
]

BLOCK_BYTES = 1 << 20
"""The size of a piece, and of a read in a worker thread. For less, the thread costs
more than the read.
"""

_DIGESTED_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FileSpan:
    """*size* bytes of a regular file at *offset*."""

    fd: int
    offset: int
    size: int

    def __len__(self) -> int:
        # h11 does not read content; it only needs its length.
        return self.size

    def __getitem__(self, part: slice) -> FileSpan:
        """Return a part of the span, as a ``memoryview`` does. Steps are ignored."""
        start, stop, _ = part.indices(self.size)
        return FileSpan(self.fd, self.offset + start, max(0, stop - start))

    def read(self) -> bytes:
        """Return the bytes. Blocks on the disk. Raises :class:`SourceChanged` if they are gone."""
        data = os.pread(self.fd, self.size, self.offset)
        if not data:
            raise shrunk()
        return data


Piece = memoryview | FileSpan


@dataclass(frozen=True, slots=True)
class Identity:
    """Values that differ between two files, and between two versions of one file."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    head: bytes
    """A digest of the first bytes, for file systems whose times are coarse."""
    ctime_ns: int = 0
    """When the file's status changed. A program can set back the other time, not this one."""
    device: int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """What was sent of a file: the SHA-256 of its first *size* bytes."""

    size: int
    digest: bytes


class SourceChanged(TransferFailed):
    """The content changed after the request began.

    *useless* says that the file as it is now cannot complete the upload.
    """

    def __init__(self, message: str, *, useless: bool) -> None:
        super().__init__(message, resumable=True)
        self.useless = useless


def shrunk() -> SourceChanged:
    """Return the error for a file that became shorter."""
    return SourceChanged(
        "the file became shorter while it was being sent", useless=True
    )


class FileSource:
    """A regular file, by descriptor, from position *base* to its end.

    With *snapshot* the file may grow. Only the bytes it had at the beginning are sent.
    """

    window = None
    waits_for_peer = False

    def __init__(
        self,
        fd: int,
        base: int = 0,
        path: str | None = None,
        *,
        snapshot: bool = False,
    ) -> None:
        self._fd = fd
        self._base = base
        self._stat = os.fstat(fd)
        self._size = max(0, self._stat.st_size - base)
        self._hash = hashlib.sha256()
        self._hashed = 0
        """How many bytes, from the first on, are in the hash."""
        self.path = path
        self.snapshot = snapshot

    @property
    def length(self) -> int:
        return self._size

    def identity(self) -> Identity | None:
        """Return the file's identity for the journal; None without a path. Blocks."""
        if self.path is None:
            return None
        from blake3 import blake3

        status = os.fstat(self._fd)
        head = blake3(os.pread(self._fd, _DIGESTED_BYTES, 0)).digest()[:16]
        return Identity(
            self.path,
            self._base + self._size,
            status.st_mtime_ns,
            status.st_ino,
            head,
            status.st_ctime_ns,
            status.st_dev,
        )

    def proof(self) -> Proof:
        """Return the proof of the bytes that were sent, from the first on without a gap."""
        return Proof(self._hashed, self._hash.copy().digest())

    def proves(self, proof: Proof) -> bool:
        """Whether the file begins with the bytes of *proof*. Blocks."""
        if not 0 < proof.size <= self._size:
            return False
        while self._hashed < proof.size:
            before = self._hashed
            self._hash_on(min(proof.size, before + BLOCK_BYTES))
            if self._hashed == before:
                return False
        return self._hashed == proof.size and self.proof() == proof

    def part(self, start: int, size: int) -> FileSource:
        """Return a source for *size* bytes from *start* on. It needs this one's descriptor.

        Both notice a change of the file since this source was made.
        """
        part = FileSource(self._fd, self._base + start, snapshot=self.snapshot)
        part._stat = self._stat
        part.shorten(size)
        return part

    def shorten(self, size: int) -> None:
        """Send only the first *size* bytes, because an earlier run began with that length."""
        self._size = min(size, self._size)

    def can_start_at(self, offset: int) -> bool:
        return 0 <= offset <= self._size

    def at_hand(self, offset: int) -> int:
        return self._size - offset

    async def gather(self, offset: int, size: int) -> None:
        """Nothing to wait for."""

    async def pieces(self, offset: int) -> AsyncGenerator[Piece]:
        self._check_unchanged()
        for start in range(offset, self._size, BLOCK_BYTES):
            size = min(BLOCK_BYTES, self._size - start)
            self._read_ahead(start + size)
            yield FileSpan(self._fd, self._base + start, size)
            if start <= self._hashed < start + size:
                # The pages that were just sent are still in memory.
                await trio.to_thread.run_sync(self._hash_on, start + size)
            # Check before the last piece too: a mixture of two versions then stays
            # incomplete and is never processed.
            self._check_unchanged()

    def _hash_on(self, end: int) -> None:
        data = os.pread(self._fd, end - self._hashed, self._base + self._hashed)
        self._hash.update(data)
        self._hashed += len(data)

    async def digest(self) -> bytes:
        """Return the SHA-256. Read again what was not hashed on the way, and all of a snapshot."""
        await self._hash_rest()
        digest = self._hash.digest()
        if self.snapshot:
            # A snapshot's times prove nothing, so compare the bytes themselves.
            self._hash, self._hashed = hashlib.sha256(), 0
            await self._hash_rest()
            if self._hash.digest() != digest:
                raise SourceChanged(
                    "the part of the file that was sent was changed meanwhile",
                    useless=True,
                )
        self._check_unchanged()
        return digest

    async def _hash_rest(self) -> None:
        while self._hashed < self._size:
            before = self._hashed
            end = min(self._size, before + 8 * BLOCK_BYTES)
            await trio.to_thread.run_sync(self._hash_on, end)
            if self._hashed == before:
                raise shrunk()

    def _check_unchanged(self) -> None:
        status = os.fstat(self._fd)
        size = self._base + self._size
        if status.st_size < size:
            raise shrunk()
        if self.snapshot:
            return
        if status.st_size != self._stat.st_size:
            raise SourceChanged(
                f"the file grew from {self._stat.st_size} to {status.st_size} bytes while"
                " it was being sent; --snapshot-size sends what is there at the beginning",
                useless=True,
            )
        if _stamp(status) != _stamp(self._stat):
            raise SourceChanged(
                "the file was changed while it was being sent", useless=False
            )

    def _read_ahead(self, offset: int) -> None:
        """Tell the kernel to read ahead, so that sendfile finds the pages in memory."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self._fd, self._base + offset, 4 * BLOCK_BYTES, os.POSIX_FADV_WILLNEED
            )

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Do nothing: the bytes are on disk."""


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
    )
