"""The way out: stored content goes from its files to the socket, by the kernel.

Why it looks like this
======================

What is stored lies in files that never change, and nobody here has to see it. So the
kernel is told to send from the file (``sendfile``): nothing is copied into the process,
and a peer that stops reading holds none of its memory; what waits in the socket's buffer
are the page cache's own pages.

``sendfile`` waits for the disk when the bytes are not in memory, and so may opening a
chunk's file. Both are done in threads, never in the event loop. The socket does not
block: a thread sends what the socket takes, :data:`MOST` bytes at most, and is free
again. Only the task waits for the peer, for ``Config.send_timeout`` and anew whenever
something was sent. Downloads take turns that way, a piece each, in the order in which
their sockets had room. Uploads have other threads: many downloads from a slow disk must
not stand in line before what a writer has to do.

**A file stays open for as long as a thread sends from it.** A task that is cancelled
meanwhile waits for the thread, which at most waits for the disk: a number that meant
another file by then would send somebody else's bytes.

The first bytes are read and go out with the head. So what is small takes one call, and
content that is missing or unreadable from its start is answered with an error. Later
only closing the connection can tell, because the length was announced: in place of bytes
that are lost nothing is sent, never others.

What lies in no file, or in one that may still change, is read in blocks and sent from
memory; so is everything where the transport cannot send files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from trioresume.errors import ChunkCorrupt
from trioresume.server.messages import BLOCK_SIZE

if TYPE_CHECKING:
    from trioresume.server.storage import Storage
    from trioresume.server.transport import FileSender
    from trioresume.store.port import ContentReader

__all__ = ["StoredBody", "StoredPart"]

MOST = 4 * 1024 * 1024
"""Bytes that a connection may send in one turn: a chunk, as it is by default."""

WITH_HEAD = 64 * 1024
"""Bytes of the content that go out with the response's head."""


@dataclass(frozen=True, slots=True)
class StoredPart:
    """The bytes from *start* to before *stop* of what *reader* reads."""

    reader: ContentReader
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class StoredBody:
    """The content of a response: parts of what is stored, and bytes between them.

    Its readers are the caller's, who closes them when the response was sent.
    """

    def __init__(self, storage: Storage, *pieces: bytes | StoredPart) -> None:
        self._storage = storage
        self._pieces = pieces

    @property
    def length(self) -> int:
        """Bytes."""
        return sum(
            len(piece) if isinstance(piece, bytes) else piece.length
            for piece in self._pieces
        )

    async def begin(self) -> tuple[bytes, StoredBody]:
        """The first bytes of it, read, and the rest.

        Raises :class:`~trioresume.errors.StorageError` if they cannot be read.
        """
        begun = bytearray()
        for index, piece in enumerate(self._pieces):
            if isinstance(piece, bytes):
                begun += piece
            elif piece.length:
                size = min(WITH_HEAD, piece.length)
                data = await self._storage.run(piece.reader.read, piece.start, size)
                rest = StoredPart(piece.reader, piece.start + len(data), piece.stop)
                left = (rest, *self._pieces[index + 1 :])
                return bytes(begun + data), StoredBody(self._storage, *left)
        return bytes(begun), StoredBody(self._storage)

    async def send(
        self,
        files: FileSender | None,
        send: Callable[[bytes], Awaitable[None]],
        seconds: float,
    ) -> None:
        """Send all of it: with *files* what lies in files, with *send* the rest.

        Raises :class:`~trioresume.errors.StorageError` if some of it cannot be read, and
        :class:`trio.BrokenResourceError` if the peer is gone or reads nothing for
        *seconds*. When cancelled, an unknown part was sent.
        """
        for piece in self._pieces:
            if isinstance(piece, bytes):
                await send(piece)
                continue
            passage = _Passage(piece, files)
            while not passage.is_over:
                block = await self._storage.send(passage.step)
                if block:
                    await send(block)
                elif not passage.is_over:
                    assert files is not None
                    await _room(files, seconds)


class _Passage:
    """A part on its way to one socket. Its steps are made in threads."""

    def __init__(self, part: StoredPart, files: FileSender | None) -> None:
        self._reader = part.reader
        self._at = part.start
        self._stop = part.stop
        self._files = files

    @property
    def is_over(self) -> bool:
        return self._at >= self._stop

    def step(self) -> bytes:
        """Send as much as the socket takes, within :data:`MOST` bytes.

        What has to be read and sent by others is returned; then nothing was sent.
        """
        if self._files is None:
            return self._read()
        end = min(self._stop, self._at + MOST)
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
        """What is wrong with the file that could not be sent."""
        try:
            self._reader.read(self._at, min(BLOCK_SIZE, self._stop - self._at))
        except ChunkCorrupt as exc:
            return exc  # it knows the file's name
        return ChunkCorrupt("a chunk's file could not be sent")


async def _room(files: FileSender, seconds: float) -> None:
    with trio.move_on_after(seconds) as scope:
        await files.wait_writable()
    if scope.cancelled_caught:
        raise trio.BrokenResourceError("the peer does not read its response")
