"""Request content that can be read again: bytes and files.

A *source* gives the content as a series of pieces, from any offset at which it can
still start. A ``memoryview`` is a piece in memory. A :class:`~trioresume.client.content.file_source.FileSpan` is a part of a
file, which the sender sends as cheaply as it can (by ``sendfile`` if there is one).

Files are in the module ``file_source``, and content that cannot be read twice in
``window``.

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
from typing import BinaryIO, Protocol

import trio

from trioresume.client.content.file_source import BLOCK_BYTES, FileSource, Piece, shrunk
from trioresume.client.content.window import IterableSource
from trioresume.client.decisions.resumption import ContentFacts
from trioresume.errors import CallerError

__all__ = [
    "BodyInput",
    "BytesSource",
    "SeekableSource",
    "Source",
    "opened",
]

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


class Source(ContentFacts, Protocol):
    """Content that can be sent."""

    async def gather(self, offset: int, size: int) -> None:
        """Wait until *size* bytes from *offset* on are at hand, or all that will come.

        It waits for no more than the window has room for. Raises the producer's errors.
        """
        ...

    def pieces(self, offset: int) -> AsyncGenerator[Piece]:
        """Yield the content from *offset* on. Raises :class:`~trioresume.client.content.file_source.SourceChanged` if it changed."""
        ...

    async def digest(self) -> bytes | None:
        """Return the SHA-256 of all content as it was sent; None if it is not known.

        Raises :class:`~trioresume.client.content.file_source.SourceChanged` if the content was a mixture of two versions of a file.
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
