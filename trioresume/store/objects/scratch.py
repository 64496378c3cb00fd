"""Where a node keeps the bytes that are no chunk yet: in memory, or in files of its own.

Memory is bounded for all uploads together (promise 5). Bytes of a chunk begin in memory. When
the bound is reached, the chunk that nobody has written to for the longest time moves to a file,
so that stalled uploads do not keep the memory from those that go on. If all other chunks are
in use this very moment, the new bytes go to a file.

The files have no names: the system removes them when the process ends, however it ends. That
is enough, because nothing in them was announced. What is announced is an object before.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
from collections import OrderedDict

from trioresume.errors import StaleWriter, StorageError, StorageFull

__all__ = ["Scratch", "TailBuffer"]

_PAGE = mmap.PAGESIZE
_LARGE = 8
"""A chunk whose first bytes are this part of it gets memory for all of it at once."""
_MOST_SPARE = 4
"""Mappings that are kept for the next chunk, because the system clears new ones."""


class Scratch:
    """The room for unfinished chunks: *memory* bytes, and then files in *directory*.

    *most_bytes* bounds all of it; None means the file system's free space.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        *,
        memory: int,
        most_bytes: int | None = None,
    ) -> None:
        self._directory = directory
        self._memory = memory
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._in_memory: OrderedDict[TailBuffer, int] = OrderedDict()
        """The buffers in memory and their bytes; the one written last is the last."""
        self.memory_used = 0
        self.used = 0
        """Bytes in memory and in files."""
        self._spare: list[mmap.mmap] = []

    def buffer(self, size: int) -> TailBuffer:
        """Return an empty buffer for up to *size* bytes, with one reference."""
        return TailBuffer(self, size)

    # For buffers, which call these under their own lock.

    def claim(self, size: int) -> int:
        """Claim up to *size* bytes of everything; return how many."""
        with self._lock:
            if self.most_bytes is not None:
                size = max(0, min(size, self.most_bytes - self.used))
            self.used += size
            return size

    def unclaim(self, size: int) -> None:
        with self._lock:
            self.used -= size

    def claim_memory(self, buffer: TailBuffer, size: int) -> bool:
        """Make room for *size* more bytes of *buffer* in memory; False if there is none."""
        while True:
            with self._lock:
                if self.memory_used + size <= self._memory:
                    self.memory_used += size
                    self._in_memory[buffer] = self._in_memory.get(buffer, 0) + size
                    self._in_memory.move_to_end(buffer)
                    return True
                others = [each for each in self._in_memory if each is not buffer]
            if not any(other.try_spill() for other in others):
                return False

    def unclaim_memory(self, buffer: TailBuffer) -> None:
        with self._lock:
            self.memory_used -= self._in_memory.pop(buffer, 0)

    def take_mapping(self, size: int, *, may_be_used: bool) -> mmap.mmap:
        """Return a mapping of *size* bytes. One that was used before takes all its memory."""
        with self._lock:
            for at, spare in enumerate(self._spare if may_be_used else ()):
                if len(spare) == size:
                    return self._spare.pop(at)
        return mmap.mmap(-1, size)

    def give_back(self, mapping: mmap.mmap) -> None:
        """Keep *mapping*, which nobody reads any more, for another buffer."""
        with self._lock:
            if len(self._spare) < _MOST_SPARE:
                self._spare.append(mapping)

    def new_file(self) -> int:
        handle, path = tempfile.mkstemp(prefix="trioresume-", dir=self._directory)
        os.unlink(path)
        return handle


class TailBuffer:
    """The bytes of one unfinished chunk. It is freed when the last reference is given up.

    One thread appends at a time; any may read.
    """

    def __init__(self, scratch: Scratch, size: int) -> None:
        self._scratch = scratch
        self._size = size
        self._lock = threading.Lock()
        self._references = 1
        self._mapping: mmap.mmap | None = None
        self._handle: int | None = None
        self._charged = 0
        """The bytes of memory that were claimed for this buffer."""
        self.length = 0

    def append(self, data: memoryview) -> int:
        """Add as much of *data* as there is room for, and return how much that is.

        Raises :class:`StorageFull` only if that is nothing.
        """
        room = self._scratch.claim(min(len(data), self._size - self.length))
        if not room and len(data):
            raise StorageFull("there is no room for unfinished chunks")
        with self._lock:
            written = 0
            try:
                written = self._write(data[:room])
            finally:
                self._scratch.unclaim(room - written)
                self.length += written
        return written

    def _write(self, data: memoryview) -> int:
        if self._handle is None and self._has_memory(len(data)):
            if self._mapping is None:
                self._mapping = self._scratch.take_mapping(
                    self._size, may_be_used=self._charged == self._size
                )
            self._mapping[self.length : self.length + len(data)] = data
            return len(data)
        self._spill()
        assert self._handle is not None
        try:
            return os.pwrite(self._handle, data, self.length)
        except OSError as exc:
            raise _scratch_error(exc) from exc

    def _has_memory(self, size: int) -> bool:
        """Claim memory for *size* more bytes; return whether there is enough."""
        missing = self.length + size - self._charged
        if missing <= 0:
            return True
        claims = [min(self._size - self._charged, -(-missing // _PAGE) * _PAGE)]
        if size * _LARGE >= self._size and not self._charged:
            claims.insert(0, self._size)  # it will be full soon
        for claim in claims:
            if self._scratch.claim_memory(self, claim):
                self._charged += claim
                return True
        return False

    def try_spill(self) -> bool:
        """Move the bytes from memory to a file, unless somebody uses them now."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._mapping is None or self._references != 1:
                return False
            self._spill()
            return True
        except StorageError:
            return False  # the scratch directory is full: who asked tries another way
        finally:
            self._lock.release()

    def _spill(self) -> None:
        if self._handle is not None:
            return
        handle = -1
        try:
            handle = self._scratch.new_file()
            if self._mapping is not None:
                with memoryview(self._mapping)[: self.length] as rest:
                    _write_all(handle, rest)
        except OSError as exc:
            if handle >= 0:
                os.close(handle)
            raise _scratch_error(exc) from exc
        self._handle = handle
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            self._scratch.unclaim_memory(self)
            self._charged = 0
            if self._references == 1:
                self._scratch.give_back(mapping)

    def view(self, start: int, end: int) -> memoryview:
        """Return the bytes from *start* to *end*. The caller holds a reference while it uses them."""
        with self._lock:
            if self._mapping is not None:
                return memoryview(self._mapping)[start:end]
            if self._handle is None or start >= end:
                return memoryview(b"")
            # The file has these bytes, so reading through a mapping cannot meet its end.
            whole = mmap.mmap(self._handle, end, access=mmap.ACCESS_READ)
            return memoryview(whole)[start:]

    def read(self, start: int, end: int) -> bytes:
        """Return a copy of the bytes from *start* to *end*; empty if the buffer was freed."""
        with self._lock:
            end = min(end, self.length)
            if self._mapping is not None:
                return self._mapping[start:end]
            if self._handle is None:
                return b""
            return os.pread(self._handle, max(0, end - start), start)

    def share(self) -> TailBuffer:
        """Take another reference. Raises :class:`StaleWriter` if the buffer was freed."""
        with self._lock:
            if not self._references:
                raise StaleWriter("the content was ended or taken over")
            self._references += 1
        return self

    def release(self) -> None:
        """Give one reference up."""
        with self._lock:
            self._references -= 1
            if self._references:
                return
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
            mapping, self._mapping = self._mapping, None
            if mapping is not None:
                self._scratch.unclaim_memory(self)
                self._scratch.give_back(mapping)
            self._scratch.unclaim(self.length)
            self.length = 0


def _write_all(handle: int, data: memoryview) -> None:
    at = 0
    while at < len(data):
        at += os.pwrite(handle, data[at:], at)


def _scratch_error(exc: OSError) -> StorageError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("the scratch directory is full")
    return StorageError(f"writing to the scratch directory: {exc.strerror or exc}")
