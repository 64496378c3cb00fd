"""Request content that can be read again: bytes and files.

A *source* gives the content as a series of pieces, from any offset at which it can
still start. A ``memoryview`` is a piece in memory. A :class:`FileSpan` is a part of a
file, which the sender sends as cheaply as it can (by ``sendfile`` if there is one).

Content that cannot be read twice is in the module ``window``.

Statement numbers such as R30 are defined in docs/supported-protocols.md.
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

BodyInput = (
    bytes
    | bytearray
    | memoryview
    | str
    | os.PathLike[str]
    | BinaryIO
    | AsyncIterable[bytes]
)
"""What a caller gives as content: bytes, a path, a binary file or an async iterable of bytes."""


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


class Source(ContentFacts, Protocol):
    """Content that can be sent."""

    async def gather(self, offset: int, size: int) -> None:
        """Wait until *size* bytes from *offset* on are at hand, or all that will come.

        It waits for no more than the window has room for. Raises the producer's errors.
        """
        ...

    def pieces(self, offset: int) -> AsyncGenerator[Piece]:
        """Yield the content from *offset* on. Raises :class:`SourceChanged` if it changed."""
        ...

    async def digest(self) -> bytes | None:
        """Return the SHA-256 of all content as it was sent; None if it is not known.

        Raises :class:`SourceChanged` if the content was a mixture of two versions of a file.
        """
        ...

    @property
    def waits_for_peer(self) -> bool:
        """Whether ``pieces`` waits for the server to acknowledge something."""
        ...

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Release the bytes below *offset*: the server has them, durably.

        *acknowledged* says that an Acknowledge told this (R30), so that more can be expected.
        """
        ...


def shrunk() -> SourceChanged:
    """Return the error for a file that became shorter."""
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
        """Do nothing: the bytes belong to the caller."""


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
        # Both in one thread call, so that nothing comes between them.
        self._file.seek(self._base + offset)
        return self._file.read(min(BLOCK_BYTES, self._size - offset))

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Do nothing: the file can be read again."""


# ------------------------------------------------------------------------- opening


@asynccontextmanager
async def opened(
    body: BodyInput, window_bytes: int, *, snapshot: bool = False
) -> AsyncIterator[Source]:
    """Return the source for *body*. A file that was given by its path is closed at the end.

    Raises :class:`CallerError` if *body* cannot be content, :class:`OSError` if its
    path cannot be opened.
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
    # Non-blocking, so that a named pipe without a writer cannot hang the thread.
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
    """Whether *fd* is a file whose size is true. Blocks.

    Files in /proc, in /sys and on some FUSE file systems state a size of 0 or 4096 but
    have other contents. They are read to their end, like a pipe.
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
    # A file that has just grown also has a new size.
    return not beyond or os.fstat(fd).st_size > status.st_size


async def _read_descriptor(fd: int) -> AsyncIterator[bytes]:
    """Yield a pipe, device or file without a true size, from its position to its end.

    If it is cancelled, it does not wait for a writer.
    """
    while True:
        try:
            await trio.lowlevel.wait_readable(fd)
        except OSError:
            pass  # this kind of file cannot be waited for; its reads do not block
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
    # Only for these types the descriptor has the same bytes. GzipFile.fileno() is the
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
    """Yield the bytes of a pipe or the like. A read that blocks is not interrupted."""
    while data := await trio.to_thread.run_sync(file.read, BLOCK_BYTES // 4):
        yield data
