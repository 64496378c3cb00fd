"""Request content that can be read again: bytes and files.

A *source* gives the content from any offset that it can still start at, as a series
of pieces: ``memoryview`` pieces are in memory, a :class:`FileSpan` is a part of a
file that the sender moves as cheaply as it can (``sendfile`` where there is one).

Content that cannot be read twice has its own module, ``window``.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import trio

from trioresume.client.resuming import ContentFacts
from trioresume.client.window import IterableSource
from trioresume.errors import CallerError, TransferFailed

__all__ = [
    "BodyInput",
    "BytesSource",
    "FileSource",
    "FileSpan",
    "Identity",
    "Piece",
    "SeekableSource",
    "Source",
    "SourceChanged",
    "opened",
]

BLOCK_BYTES = 1 << 20
"""The size of a piece, and of a read in a worker thread: below it the thread costs more."""

_DIGESTED_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FileSpan:
    """*size* bytes of a regular file at *offset*."""

    fd: int
    offset: int
    size: int

    def __len__(self) -> int:
        # h11 passes objects with a length through, unread.
        return self.size

    def __getitem__(self, part: slice) -> FileSpan:
        """A part of it, as of a ``memoryview``; steps make no sense."""
        start, stop, _ = part.indices(self.size)
        return FileSpan(self.fd, self.offset + start, max(0, stop - start))

    def read(self) -> bytes:
        """The bytes; blocks on the disk. Raises :class:`SourceChanged` if they are gone."""
        data = os.pread(self.fd, self.size, self.offset)
        if not data:
            raise shrunk()
        return data


Piece = memoryview | FileSpan

BodyInput = (
    bytes
    | bytearray
    | memoryview
    | str
    | os.PathLike[str]
    | BinaryIO
    | AsyncIterable[bytes]
)
"""Content as a caller gives it: bytes, a path, a binary file, an async iterable of bytes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a file from another, or from itself before it was changed."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    head: bytes
    """A digest of the first bytes, for file systems whose times are coarse."""
    ctime_ns: int = 0
    """When its status changed: no program can set that back, as it can the other time."""
    device: int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """What was read of a file and sent: the SHA-256 of its first *size* bytes."""

    size: int
    digest: bytes


class SourceChanged(TransferFailed):
    """The content is not any more what it was when the request began.

    *useless* says that the upload cannot become whole with the file as it is now.
    """

    def __init__(self, message: str, *, useless: bool) -> None:
        super().__init__(message, resumable=True)
        self.useless = useless


class Source(ContentFacts, Protocol):
    """Content that can be sent."""

    async def gather(self, offset: int, size: int) -> None:
        """Wait until *size* bytes from *offset* on are at hand, or all there will be.

        No more than the window has room for. Raises what the producer raised.
        """
        ...

    def pieces(self, offset: int) -> AsyncGenerator[Piece]:
        """The content from *offset* on. Raises :class:`SourceChanged` if it changed."""
        ...

    async def digest(self) -> bytes | None:
        """The SHA-256 of all the content, as it was sent; None if it is not known.

        Raises :class:`SourceChanged` if it is not one version of a file.
        """
        ...

    @property
    def waits_for_peer(self) -> bool:
        """Whether ``pieces`` gives nothing because the server must acknowledge first."""
        ...

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """The bytes below *offset* are safe at the server and not needed again.

        *acknowledged* says that this is known from an Acknowledge (R30), so that more
        of them can be expected.
        """
        ...


def shrunk() -> SourceChanged:
    """The error for a file that has fewer bytes than it had."""
    return SourceChanged(
        "the file became shorter while it was being sent", useless=True
    )


class BytesSource:
    """Content in memory."""

    window = None
    waits_for_peer = False

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).cast("B").toreadonly()

    @property
    def length(self) -> int:
        return len(self._view)

    def can_start_at(self, offset: int) -> bool:
        return 0 <= offset <= len(self._view)

    def at_hand(self, offset: int) -> int:
        return len(self._view) - offset

    async def gather(self, offset: int, size: int) -> None:
        """Nothing to wait for."""

    async def pieces(self, offset: int) -> AsyncGenerator[Piece]:
        for start in range(offset, len(self._view), BLOCK_BYTES):
            yield self._view[start : start + BLOCK_BYTES]

    async def digest(self) -> bytes:
        made = await trio.to_thread.run_sync(hashlib.sha256, self._view)
        return made.digest()

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Nothing to do: the bytes are the caller's."""


class FileSource:
    """A regular file, by descriptor, from position *base* to its end.

    With *snapshot* the file may grow: what is sent is what was there at the beginning.
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
        """How many of the first bytes are in the hash."""
        self.path = path
        self.snapshot = snapshot

    @property
    def length(self) -> int:
        return self._size

    def identity(self) -> Identity | None:
        """What the journal knows the file by; None for one without a path. Blocks."""
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
        """What was sent so far, from the first byte on without a gap."""
        return Proof(self._hashed, self._hash.copy().digest())

    def proves(self, proof: Proof) -> bool:
        """Whether the file begins with what *proof* tells of. Blocks."""
        if not 0 < proof.size <= self._size:
            return False
        while self._hashed < proof.size:
            before = self._hashed
            self._hash_on(min(proof.size, before + BLOCK_BYTES))
            if self._hashed == before:
                return False
        return self._hashed == proof.size and self.proof() == proof

    def shorten(self, size: int) -> None:
        """Send only the first *size* bytes: an earlier run began with no more."""
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
            # Before the last piece too: a mixture of two versions stays incomplete,
            # and so is never processed.
            self._check_unchanged()

    def _hash_on(self, end: int) -> None:
        data = os.pread(self._fd, end - self._hashed, self._base + self._hashed)
        self._hash.update(data)
        self._hashed += len(data)

    async def digest(self) -> bytes:
        """What was not hashed on the way is read again, and all of a snapshot is."""
        await self._hash_rest()
        digest = self._hash.digest()
        if self.snapshot:
            # Its times tell nothing, so the file itself has to be the same still.
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
        """Have the kernel fetch what comes next, so that sendfile finds it in memory."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self._fd, self._base + offset, 4 * BLOCK_BYTES, os.POSIX_FADV_WILLNEED
            )

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Nothing to do: the bytes are on disk."""


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
    )


class SeekableSource:
    """A binary file object without a plain descriptor, such as BytesIO or GzipFile."""

    window = None
    waits_for_peer = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._base = file.tell()
        self._size = file.seek(0, os.SEEK_END) - self._base

    @property
    def length(self) -> int:
        return self._size

    def can_start_at(self, offset: int) -> bool:
        return 0 <= offset <= self._size

    def at_hand(self, offset: int) -> int:
        return self._size - offset

    async def gather(self, offset: int, size: int) -> None:
        """Nothing to wait for."""

    async def pieces(self, offset: int) -> AsyncGenerator[Piece]:
        while offset < self._size:
            data = await trio.to_thread.run_sync(self._read, offset)
            if not data:
                raise shrunk()
            offset += len(data)
            yield memoryview(data)

    async def digest(self) -> bytes:
        made, offset = hashlib.sha256(), 0
        while offset < self._size:
            data = await trio.to_thread.run_sync(self._read, offset)
            if not data:
                raise shrunk()
            made.update(data)
            offset += len(data)
        return made.digest()

    def _read(self, offset: int) -> bytes:
        # One thread call for both, so that nothing comes between them.
        self._file.seek(self._base + offset)
        return self._file.read(min(BLOCK_BYTES, self._size - offset))

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Nothing to do: the file can be read again."""


# ------------------------------------------------------------------------- opening


@asynccontextmanager
async def opened(
    body: BodyInput, window_bytes: int, *, snapshot: bool = False
) -> AsyncIterator[Source]:
    """The source for *body*; files given by path are closed in the end.

    Raises :class:`CallerError` for what cannot be content, :class:`OSError` for a path
    that cannot be opened.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        yield BytesSource(body)
    elif isinstance(body, str | os.PathLike):
        path = os.fspath(body)
        fd = await trio.to_thread.run_sync(_open_path, path)
        try:
            file = await trio.to_thread.run_sync(_file_source, fd, path, snapshot)
            yield file or IterableSource(_read_descriptor(fd), window_bytes)
        finally:
            os.close(fd)
    elif isinstance(body, AsyncIterable):
        yield IterableSource(body, window_bytes)
    elif hasattr(body, "read"):
        yield await trio.to_thread.run_sync(_open_file, body, window_bytes, snapshot)
    else:
        raise CallerError(f"content cannot be a {type(body).__name__}")


def _open_path(path: str) -> int:
    # Not blocking, so that a named pipe without a writer cannot hang the thread.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return fd


def _file_source(fd: int, path: str, snapshot: bool) -> FileSource | None:
    if not _has_true_size(fd):
        return None
    return FileSource(fd, path=os.path.realpath(path), snapshot=snapshot)


def _has_true_size(fd: int) -> bool:
    """Whether *fd* is a file that has as many bytes as it says. Blocks.

    Files in /proc and /sys, and of some FUSE file systems, say 0 or 4096 and have
    something else: they are read to their end, as a pipe is.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return False
    try:
        if status.st_size and not os.pread(fd, 1, status.st_size - 1):
            return False
        beyond = bool(os.pread(fd, 1, status.st_size))
    except OSError:
        return False  # it cannot be read at a position
    # A file that has just grown says so.
    return not beyond or os.fstat(fd).st_size > status.st_size


async def _read_descriptor(fd: int) -> AsyncIterator[bytes]:
    """A pipe, a device or a file without a true size, from its position to its end.

    Cancelling it does not wait for a writer.
    """
    while True:
        try:
            await trio.lowlevel.wait_readable(fd)
        except OSError:
            pass  # the system has no such wait for this file: its reads do not block
        try:
            data = await trio.to_thread.run_sync(os.read, fd, BLOCK_BYTES // 4)
        except BlockingIOError:
            continue
        if not data:
            return
        yield data


def _open_file(file: BinaryIO, window_bytes: int, snapshot: bool) -> Source:
    if "encoding" in dir(file):  # a text file, whatever its annotation said
        raise CallerError("the file must be opened in binary mode")
    raw = getattr(file, "raw", file)
    # Only these are what their descriptor is: GzipFile.fileno(), for one, is the
    # descriptor of the compressed file.
    plain = type(file) in (io.BufferedReader, io.BufferedRandom, io.FileIO)
    if type(file) is io.FileIO and not _has_true_size(file.fileno()):
        return IterableSource(_read_descriptor(file.fileno()), window_bytes)
    if plain and type(raw) is io.FileIO and _has_true_size(raw.fileno()):
        if isinstance(file, io.BufferedRandom):
            file.flush()
        return FileSource(raw.fileno(), file.tell(), snapshot=snapshot)
    if file.seekable():
        return SeekableSource(file)
    return IterableSource(_read_on(file), window_bytes)


async def _read_on(file: BinaryIO) -> AsyncIterator[bytes]:
    """A pipe or the like, as an iterable. A read that blocks is not interrupted."""
    while data := await trio.to_thread.run_sync(file.read, BLOCK_BYTES // 4):
        yield data
