"""Where a response's content goes while it arrives: memory, or a file.

The content of one final response may arrive in several exchanges: cut in the first,
completed by Range in the second (R28). This is the one place that holds it, so that
"how much do we have" has one answer.
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
    """The content of the final response, as far as it arrived.

    Content of a 2xx response goes to *save_to*, if given: into ``NAME.part`` beside it
    first, renamed when it is whole. Everything else goes to memory, up to *limit* bytes.
    """

    def __init__(self, save_to: Path | None, limit: int) -> None:
        self._save_to = save_to
        self._limit = limit
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._written = 0

    @property
    def received(self) -> int:
        """Bytes held."""
        return self._written + len(self._memory)

    @property
    def in_memory(self) -> bytes:
        """The content, or the part of it that is not in a file yet."""
        return bytes(self._memory)

    async def begin(self, status: int) -> None:
        """A final response with *status* begins: forget what was there before."""
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
        """The same content comes again from its first byte."""
        self._memory.clear()
        self._written = 0
        if self._file is not None:
            await trio.to_thread.run_sync(_empty, self._file)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises :class:`TransferFailed` beyond the limit, :class:`OSError` of the disk."""
        if self._file is None and len(self._memory) + len(data) > self._limit:
            raise TransferFailed(
                f"the response's content is longer than {self._limit} bytes"
            )
        self._memory += data
        if self._file is not None and len(self._memory) >= _WRITE_BYTES:
            await self._flush(self._file)

    async def _flush(self, file: BinaryIO) -> None:
        block = bytes(self._memory)
        # Shielded: one bounded disk write. If it were skipped after the count was
        # taken, the file would have a hole.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(file.write, block)
        self._memory.clear()
        self._written += len(block)

    async def finish(self) -> tuple[bytes, Path | None]:
        """The content is whole: the bytes, or empty bytes and the file they are in."""
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
