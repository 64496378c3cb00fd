"""The way out: the kernel sends stored content from its files to the socket.

Why it looks like this
======================

Stored content lies in files that never change, and the process does not need to see it. So
the kernel sends it from the file (``sendfile``). Nothing is copied into the process, and a
peer that stops reading holds none of its memory: the socket's buffer refers to pages of the
page cache.

``sendfile`` waits for the disk if the bytes are not in memory, and opening a chunk's file may
wait, too. Both are done in threads, never in the event loop. The socket does not block: a
thread sends as much as the socket takes, :data:`MOST` bytes at most, and is free again. Only
the task waits for the peer, for ``Config.send_timeout``, and the time starts anew whenever
something was sent. So downloads take turns, a piece each, in the order in which their sockets
had room. Uploads have other threads: a writer's work must not wait behind many downloads from
a slow disk.

**A file stays open for as long as a thread sends from it.** A task that is cancelled
meanwhile waits for the thread, which waits at most for the disk. Otherwise the descriptor
might mean another file by then, and the thread would send bytes of another client.

The first bytes are read and sent with the head. So small content takes one call, and content
that is missing or unreadable at its start is answered with an error. Later the length has
been announced, so the only way to report an error is to close the connection. Nothing is ever
sent in place of lost bytes.

Content that lies in no file, or in a file that may still change, is read in blocks and sent
from memory. The same is done for all content if the transport cannot send files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from trioresume.errors import ChunkCorrupt
from trioresume.server.api.handler import BLOCK_SIZE

if TYPE_CHECKING:
    from trioresume.server.async_store.storage import Storage
    from trioresume.store.port import ContentReader

__all__ = ["FileSender", "StoredBody", "StoredPart"]

MOST = 4 * 1024 * 1024
"""Bytes that a connection may send in one turn: a chunk of the default size."""

WITH_HEAD = 64 * 1024
"""Bytes of the content that are sent with the response's head."""


class FileSender(Protocol):
    """Sends bytes from a file without copying them into the process."""

    async def wait_writable(self) -> None:
        """Return when ``send_file_nowait`` is likely to send something. A checkpoint.

        Raises :class:`trio.BrokenResourceError` if the connection is closed.
        """
        ...

    def send_file_nowait(self, descriptor: int, offset: int, size: int) -> int | None:
        """Send up to *size* bytes of a file; return the count, None if that would block.

        0 is the end of the file. This waits for the disk, but not for the peer: call it in a
        thread, unless the bytes are in memory. Nothing else may be sent meanwhile. Raises
        :class:`trio.BrokenResourceError` if the connection broke, and :class:`OSError` if the
        file cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredPart:
    """The bytes of *reader* from *start* up to, but not including, *stop*."""

    reader: ContentReader
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class StoredBody:
    """The content of a response: parts of stored content, and bytes between them.

    *with_head* bytes of it are sent with the response's head, *most* bytes in one turn. The
    caller closes the readers when the response was sent.
    """

    def __init__(
        self,
        storage: Storage,
        *pieces: bytes | StoredPart,
        with_head: int = WITH_HEAD,
        most: int = MOST,
    ) -> None:
        self._storage = storage
        self._pieces = pieces
        self._with_head = with_head
        self._most = most

    @property
    def length(self) -> int:
        """The length in bytes."""
        return sum(
            len(piece) if isinstance(piece, bytes) else piece.length
            for piece in self._pieces
        )

    async def begin(self) -> tuple[bytes, StoredBody]:
        """Read the first bytes; return them and the rest.

        Raises :class:`~trioresume.errors.StorageError` if they cannot be read.
        """
        begun = bytearray()
        for index, piece in enumerate(self._pieces):
            if isinstance(piece, bytes):
                begun += piece
            elif piece.length:
                size = min(self._with_head, piece.length)
                data = await self._storage.run(piece.reader.read, piece.start, size)
                rest = StoredPart(piece.reader, piece.start + len(data), piece.stop)
                left = (rest, *self._pieces[index + 1 :])
                return bytes(begun + data), self._rest(*left)
        return bytes(begun), self._rest()

    def _rest(self, *pieces: bytes | StoredPart) -> StoredBody:
        return StoredBody(
            self._storage, *pieces, with_head=self._with_head, most=self._most
        )

    async def send(
        self,
        files: FileSender | None,
        send: Callable[[bytes], Awaitable[None]],
        seconds: float,
    ) -> None:
        """Send all of it: through *files* if it lies in a file, else through *send*.

        Raises :class:`~trioresume.errors.StorageError` if some of it cannot be read, and
        :class:`trio.BrokenResourceError` if the peer is gone or reads nothing for
        *seconds*. When cancelled, an unknown part was sent.
        """
        for piece in self._pieces:
            if isinstance(piece, bytes):
                await send(piece)
                continue
            passage = _Passage(piece, files, self._most)
            while not passage.is_over:
                block = await self._storage.send(passage.step)
                if block:
                    await send(block)
                elif not passage.is_over:
                    assert files is not None
                    await _room(files, seconds)


class _Passage:
    """A part on its way to one socket. Its steps run in threads."""

    def __init__(self, part: StoredPart, files: FileSender | None, most: int) -> None:
        self._reader = part.reader
        self._at = part.start
        self._stop = part.stop
        self._files = files
        self._most = most

    @property
    def is_over(self) -> bool:
        return self._at >= self._stop

    def step(self) -> bytes:
        """Send as much as the socket takes, at most as many bytes as in one turn.

        Returns bytes that the caller has to send instead; nothing was sent then.
        """
        if self._files is None:
            return self._read()
        end = min(self._stop, self._at + self._most)
        begin = self._at
        while self._at < end:
            extent = self._reader.extent(self._at, end - self._at)
            if extent is None:
                return b"" if self._at > begin else self._read()
            try:
                sent = self._files.send_file_nowait(
                    extent.descriptor, extent.offset, extent.length
                )
            except OSError as exc:
                raise self._lost() from exc
            if sent is None:
                break
            if sent == 0:
                raise self._lost()
            self._at += sent
        return b""

    def _read(self) -> bytes:
        block = self._reader.read(self._at, min(BLOCK_SIZE, self._stop - self._at))
        self._at += len(block)
        return block

    def _lost(self) -> ChunkCorrupt:
        """Return the error about the file that could not be sent."""
        try:
            self._reader.read(self._at, min(BLOCK_SIZE, self._stop - self._at))
        except ChunkCorrupt as exc:
            return exc  # it has the file's name
        return ChunkCorrupt("a chunk's file could not be sent")


async def _room(files: FileSender, seconds: float) -> None:
    with trio.move_on_after(seconds) as scope:
        await files.wait_writable()
    if scope.cancelled_caught:
        raise trio.BrokenResourceError("the peer does not read its response")
