"""Collects a response's content while it arrives, in memory or in a file.

The content of one final response may arrive in several exchanges: it is cut in the
first, and Range requests the rest in the second (R28). Only this module holds it, so
there is one count of what has arrived.

Statement numbers such as R28 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import trio

from trioresume.errors import TransferFailed

__all__ = ["ResponseContent"]

_WRITE_BYTES = 1 << 20


class ResponseContent:
    """The content of the final response that has arrived so far.

    Content of a 2xx response goes to *save_to*, if given: first into ``NAME.part``
    beside it, which is renamed when it is whole. All other content goes to memory, up
    to *limit* bytes.
    """

    def __init__(self, save_to: Path | None, limit: int) -> None:
        self._save_to = save_to
        self._limit = limit
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._written = 0

    @property
    def received(self) -> int:
        """The number of bytes that have arrived."""
        return self._written + len(self._memory)

    @property
    def in_memory(self) -> bytes:
        """The content, or its part that is not yet in a file."""
        return bytes(self._memory)

    async def begin(self, status: int) -> None:
        """Begin the content of a final response with *status*, and forget any earlier content."""
        self._memory.clear()
        self._written = 0
        if self._save_to is not None and 200 <= status <= 299:
            if self._file is None:
                part = self._save_to.with_name(self._save_to.name + ".part")
                self._file = await trio.to_thread.run_sync(_create, part)
            else:
                await trio.to_thread.run_sync(_empty, self._file)
        elif self._file is not None:
            await self.discard()

    async def restart(self) -> None:
        """Begin again: the same content comes again from its first byte."""
        self._memory.clear()
        self._written = 0
        if self._file is not None:
            await trio.to_thread.run_sync(_empty, self._file)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add *data*. Raises :class:`TransferFailed` beyond the limit, and the disk's errors."""
        if self._file is None and len(self._memory) + len(data) > self._limit:
            raise TransferFailed(
                f"the response's content is longer than {self._limit} bytes"
            )
        self._memory += data
        if self._file is not None and len(self._memory) >= _WRITE_BYTES:
            await self._flush(self._file)

    async def _flush(self, file: BinaryIO) -> None:
        block = bytes(self._memory)
        # Shielded: one bounded disk write. The file and the counts below must agree.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(file.write, block)
        self._memory.clear()
        self._written += len(block)

    async def finish(self) -> tuple[bytes, Path | None]:
        """Return the whole content: the bytes, or empty bytes and the path of the file."""
        file, self._file = self._file, None
        if file is None or self._save_to is None:
            return bytes(self._memory), None
        await self._flush(file)
        await trio.to_thread.run_sync(_publish, file, self._save_to)
        return b"", self._save_to

    async def discard(self) -> None:
        """Remove a file that is not whole. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_remove, file)


def _create(path: Path) -> BinaryIO:
    return path.open("wb", buffering=0)


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _publish(file: BinaryIO, path: Path) -> None:
    file.close()
    os.replace(file.name, path)


def _remove(file: BinaryIO) -> None:
    file.close()
    Path(file.name).unlink(missing_ok=True)
