"""Lays content out as DATA frames in one block of memory, to be sent with one call.

The block has a gap for a frame's head before each piece of payload, and a file is read
straight into the pieces. So content is copied once at most, and only if it was in memory
before. When the server's window ends within a frame, the head of the rest is written over
payload that was sent already.
"""

from __future__ import annotations

import os

from trioresume.client.content.file_source import FileSpan, shrunk

__all__ = ["FRAME_HEAD", "MOST_PAYLOAD", "FrameBlock"]

FRAME_HEAD = 9
MOST_PAYLOAD = 256 * 1024
"""The longest payload that is sent, even if the server takes longer ones."""

_MOST_PARTS = 1024  # IOV_MAX of Linux


class FrameBlock:
    """Content of one stream as frames with payloads of *payload* bytes."""

    def __init__(self, stream: int, payload: int, capacity: int) -> None:
        payload = min(payload, MOST_PAYLOAD)
        frames = -(-capacity // payload)
        if frames > _MOST_PARTS:
            frames, capacity = _MOST_PARTS, _MOST_PARTS * payload
        self._stream = stream.to_bytes(4, "big")
        self._payload = payload
        self._memory = bytearray(capacity + frames * FRAME_HEAD)
        self._view = memoryview(self._memory)
        self.capacity = capacity
        """How many bytes of content fit."""

    def _parts(self, size: int) -> list[memoryview]:
        step = FRAME_HEAD + self._payload
        whole, rest = divmod(size, self._payload)
        parts = [
            self._view[start + FRAME_HEAD : start + step]
            for start in range(0, whole * step, step)
        ]
        if rest:
            start = whole * step + FRAME_HEAD
            parts.append(self._view[start : start + rest])
        return parts

    def read(self, span: FileSpan) -> int:
        """Read the beginning of *span*; return how many bytes. Blocks on the disk.

        Raises :class:`SourceChanged` if they are gone.
        """
        parts = self._parts(min(len(span), self.capacity))
        if hasattr(os, "preadv"):
            count = os.preadv(span.fd, parts, span.offset)
        else:
            count = self.copy(memoryview(span[: self.capacity].read()))
        if not count:
            raise shrunk()
        return count

    def copy(self, data: memoryview) -> int:
        """Copy the beginning of *data*; return how many bytes."""
        data = data[: self.capacity]
        at = 0
        for part in self._parts(len(data)):
            part[:] = data[at : at + len(part)]
            at += len(part)
        return at

    def frames(self, start: int, size: int) -> memoryview:
        """Return the content from *start* on as frames, *size* bytes of it.

        All content before *start* has been sent: this overwrites some of it.
        """
        memory, payload = self._memory, self._payload
        first = at = start + (start // payload) * FRAME_HEAD
        end = start + size
        while start < end:
            length = min(payload - start % payload, end - start)
            memory[at : at + FRAME_HEAD] = (
                length.to_bytes(3, "big") + b"\0\0" + self._stream
            )
            at += FRAME_HEAD + length
            start += length
        return self._view[first:at]
