"""Request content that can be read again: bytes and files.

A *source* gives the content from any offset that it can still start at, as a series
of pieces: ``memoryview`` pieces are in memory, a :class:`FileSpan` is a part of a
file that the sender moves as cheaply as it can (``sendfile`` where there is one).

Content that cannot be read twice has its own module, ``window``.
"""

from __future__ import annotations

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
from trioresume.errors import CallerError

__all__ = [
    "BodyInput",
    "BytesSource",
    "FileSource",
    "FileSpan",
    "Identity",
    "Piece",
    "SeekableSource",
    "Source",
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
        """The bytes; blocks on the disk. Raises :class:`CallerError` if they are gone."""
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


class Source(ContentFacts, Protocol):
    """Content that can be sent."""

    async def gather(self, offset: int, size: int) -> None:
        """Wait until *size* bytes from *offset* on are at hand, or all there will be.

        No more than the window has room for. Raises what the producer raised.
        """
        ...

    def pieces(self, offset: int) -> AsyncGenerator[Piece]:
        """The content from *offset* on. Raises :class:`CallerError` if it changed."""
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


def shrunk() -> CallerError:
    """The error for a file that has fewer bytes than it had."""
    return CallerError("the file became shorter while it was being sent")


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

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Nothing to do: the bytes are the caller's."""


class FileSource:
    """A regular file, by descriptor, from position *base* to its end."""

    window = None
    waits_for_peer = False

    def __init__(self, fd: int, base: int = 0, path: str | None = None) -> None:
        self._fd = fd
        self._base = base
        status = os.fstat(fd)
        self._stamp = _stamp(status)
        self._size = max(0, status.st_size - base)
        self.path = path

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
            self.path, status.st_size, status.st_mtime_ns, status.st_ino, head
        )

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
            # Before the last piece too: a mixture of two versions stays incomplete,
            # and so is never processed.
            self._check_unchanged()

    def _check_unchanged(self) -> None:
        if _stamp(os.fstat(self._fd)) != self._stamp:
            raise CallerError("the file was changed while it was being sent")

    def _read_ahead(self, offset: int) -> None:
        """Have the kernel fetch what comes next, so that sendfile finds it in memory."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self._fd, self._base + offset, 4 * BLOCK_BYTES, os.POSIX_FADV_WILLNEED
            )

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Nothing to do: the bytes are on disk."""


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


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

    def _read(self, offset: int) -> bytes:
        # One thread call for both, so that nothing comes between them.
        self._file.seek(self._base + offset)
        return self._file.read(min(BLOCK_BYTES, self._size - offset))

    def release(self, offset: int, *, acknowledged: bool) -> None:
        """Nothing to do: the file can be read again."""


# ------------------------------------------------------------------------- opening


@asynccontextmanager
async def opened(body: BodyInput, window_bytes: int) -> AsyncIterator[Source]:
    """The source for *body*; files given by path are closed in the end.

    Raises :class:`CallerError` for what cannot be content, :class:`OSError` for a path
    that cannot be opened.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        yield BytesSource(body)
    elif isinstance(body, str | os.PathLike):
        fd, source = await trio.to_thread.run_sync(_open_path, os.fspath(body))
        try:
            yield source
        finally:
            os.close(fd)
    elif isinstance(body, AsyncIterable):
        yield IterableSource(body, window_bytes)
    elif hasattr(body, "read"):
        yield await trio.to_thread.run_sync(_open_file, body, window_bytes)
    else:
        raise CallerError(f"content cannot be a {type(body).__name__}")


def _open_path(path: str) -> tuple[int, FileSource]:
    # Not blocking, so that a named pipe without a writer cannot hang the thread.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CallerError(
                f"{path!r} is not a regular file; open it and pass the file"
            )
        return fd, FileSource(fd, path=os.path.realpath(path))
    except BaseException:
        os.close(fd)
        raise


def _open_file(file: BinaryIO, window_bytes: int) -> Source:
    if "encoding" in dir(file):  # a text file, whatever its annotation said
        raise CallerError("the file must be opened in binary mode")
    raw = getattr(file, "raw", file)
    # Only these are what their descriptor is: GzipFile.fileno(), for one, is the
    # descriptor of the compressed file.
    plain = type(file) in (io.BufferedReader, io.BufferedRandom, io.FileIO)
    if (
        plain
        and type(raw) is io.FileIO
        and stat.S_ISREG(os.fstat(raw.fileno()).st_mode)
    ):
        if isinstance(file, io.BufferedRandom):
            file.flush()
        return FileSource(raw.fileno(), file.tell())
    if file.seekable():
        return SeekableSource(file)
    return IterableSource(_read_on(file), window_bytes)


async def _read_on(file: BinaryIO) -> AsyncIterator[bytes]:
    """A pipe or the like, as an iterable. A read that blocks is not interrupted."""
    while data := await trio.to_thread.run_sync(file.read, BLOCK_BYTES // 4):
        yield data
