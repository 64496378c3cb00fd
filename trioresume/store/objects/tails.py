"""Content under construction whose bytes lie in memory, in scratch files, and in objects.

The order in which bytes become known
=====================================

A full chunk: :meth:`Sealing.run` holds the chunk in the catalog and puts its object; the commit
names it. Bytes that are no chunk yet stay on this node until somebody is to be told of them.
Then :meth:`TailFlush.run` puts them as objects, and the commit of its :class:`RecordTail` makes
them count. A crash at any step leaves objects that the catalog does not name, which the sweep
removes, and never a name without an object.

How many objects a tail has
===========================

A flush puts the bytes that no object has yet. It puts bytes that an object has already again
with them, as long as the last object is smaller than twice the new bytes, or than
:data:`SMALL`. So the sizes of a chunk's objects fall by half at least from one to the next:
there are never more than a dozen in a chunk of 64 MiB. And each time that a byte above
:data:`SMALL` is put again, its object is half as large again: a byte is put 14 times at most in
a chunk of 64 MiB, and usually twice. Below :data:`SMALL` the price of a put is that of the
request, not of its bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from blake3 import blake3

from trioresume.errors import CallerError, StaleWriter, StorageError
from trioresume.store.objects.bucket import (
    Bucket,
    chunk_name,
    get_whole,
    new_tail_name,
)
from trioresume.store.objects.holds import Holds
from trioresume.store.objects.scratch import Scratch, TailBuffer
from trioresume.store.port import (
    ChunkObject,
    ContentKey,
    RecordTail,
    Seal,
    SealChunk,
    TailPart,
    is_response_key,
)
from trioresume.store.port.recipes import Digest, wrap_hash

__all__ = [
    "SMALL",
    "Sealing",
    "Tail",
    "TailFlush",
    "TailRoom",
    "load_part",
    "merged_from",
]

SMALL = 128 * 1024
"""Bytes of an object that is put again with whatever follows it."""


def merged_from(lengths: list[int], new: int) -> int:
    """Return how many of a chunk's objects stay when *new* bytes follow them.

    *lengths* are the objects' bytes, in order. The others are put again with the new bytes.
    """
    kept = len(lengths)
    while kept and lengths[kept - 1] < 2 * max(new, SMALL):
        kept -= 1
        new += lengths[kept]
    return kept


@dataclass(frozen=True, slots=True)
class TailRoom:
    """What all tails of a node share."""

    bucket: Bucket
    holds: Holds
    scratch: Scratch


class Sealing:
    """One full chunk, or the last one, until the catalog names it. Its seal may run many times."""

    def __init__(
        self, tail: Tail, index: int, buffer: TailBuffer, digest: Callable[[], Digest]
    ) -> None:
        self.index = index
        self.length = buffer.length
        self.is_applied = False
        self.is_cancelled = False
        """Whether the content went on without it: the chunk must not be named."""
        self.buffer: TailBuffer | None = buffer
        """The chunk's bytes, until its object has them."""
        self.object: ChunkObject | None = None
        self.result: SealChunk | None = None
        self._tail = tail
        self._digest = digest
        self._running = threading.Lock()
        self._state = threading.Lock()
        self._held: Digest | None = None

    def run(self) -> SealChunk:
        tail = self._tail
        with self._running:
            if self.result is None:
                digest = self._digest()
                if not self.is_cancelled:
                    self._put(digest)
                self.result = SealChunk(tail.key, self.index, digest, self.length)
            return self.result

    def _put(self, digest: Digest) -> None:
        tail, buffer = self._tail, self.buffer
        if buffer is None:
            raise StaleWriter("the content was ended or taken over")
        chunk = None
        buffer.share()  # so that nobody frees the bytes before they are put
        try:
            chunk = tail.room.holds.take(digest)
            view = buffer.view(0, self.length)
            tail.room.bucket.put_absent(chunk_name(chunk), view)
        except BaseException:
            tail.broken = True
            if chunk is not None:
                tail.room.holds.give_up(digest)
            raise
        finally:
            buffer.release()
        with self._state:
            if self.is_cancelled:
                tail.room.holds.give_up(digest)
                return
            self.object, self._held = chunk, digest
        if self.length == tail.chunk_size:
            self.free()  # a short chunk's bytes may be needed again, see Tail.unfinish

    def cancel(self) -> None:
        """Have the chunk not named. A run in another thread may go on, and changes nothing."""
        with self._state:
            self.is_cancelled = True
            if self._held is not None and not self.is_applied:
                self._tail.room.holds.give_up(self._held)
                self.object = self._held = None

    def free(self) -> None:
        buffer, self.buffer = self.buffer, None
        if buffer is not None:
            buffer.release()

    def read(self, start: int, end: int) -> bytes:
        """Return the chunk's bytes from *start* to *end*; empty if they are not known here."""
        buffer, chunk = self.buffer, self.object
        data = b"" if buffer is None else buffer.read(start, end)
        if data or chunk is None:
            return data
        return self._tail.room.bucket.get(chunk_name(chunk), start, end - start) or b""


class Tail:
    """The end of content under construction, on this node. One thread at a time changes it."""

    def __init__(
        self,
        room: TailRoom,
        key: ContentKey,
        chunk_size: int,
        *,
        generation: int,
        index: int = 0,
        flushed: int = 0,
    ) -> None:
        self.room = room
        self.key = key
        self.chunk_size = chunk_size
        self.generation = generation
        """The generation of the operation's owner, which this node was when it began the tail."""
        self.broken = False
        """Whether bytes could not be put: what counts is in the catalog."""
        self.finished = False
        self.flushed = flushed
        """The bytes below need no flush: they are in objects, and their record was handed out."""
        self.recorded = flushed
        """The bytes below are recorded: the commit of their record succeeded."""
        self.sealings: dict[int, Sealing] = {}
        """The chunks that are full, from the first one on that the catalog may not name."""
        self._index = index
        self._buffer: TailBuffer | None = None
        self._hasher: blake3 | None = None
        self._waiting: list[Sealing] = []
        self._parts: dict[int, list[TailPart]] = {}
        self._changing = threading.Lock()
        """Held while sealings and parts change."""
        self._flushing = threading.Lock()

    @property
    def offset(self) -> int:
        buffer = self._buffer
        if buffer is None and self.finished and self.sealings:
            last = self.sealings[max(self.sealings)]
            return last.index * self.chunk_size + last.length
        return self._index * self.chunk_size + (0 if buffer is None else buffer.length)

    def load(self, data: bytes, parts: list[TailPart]) -> None:
        """Take the next bytes, up to a chunk, which lie in *parts* already."""
        self._parts[self._index] = parts
        self._add(memoryview(data))

    def relax(self) -> None:
        self._hasher = None

    def append(self, data: memoryview) -> list[Seal]:
        self._check_open()
        self._add(data)
        return self._take()

    def _add(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            buffer = self._buffer
            if buffer is None:
                buffer = self.room.scratch.buffer(self.chunk_size)
                self._hasher = blake3()
            hasher = self._hasher or _hash_of(buffer)
            self._hasher = hasher
            written = buffer.append(data[at : at + self.chunk_size - buffer.length])
            self._buffer = buffer
            hasher.update(data[at : at + written])
            at += written
            if buffer.length == self.chunk_size:
                self._seal(buffer)

    def _check_open(self) -> None:
        if self.broken or self.finished:
            self._refuse()

    def _refuse(self) -> NoReturn:
        if self.broken:
            raise StorageError("this content could not be stored; open a new writer")
        raise CallerError("the content was finished")

    def _seal(self, buffer: TailBuffer) -> None:
        hasher = self._hasher or _hash_of(buffer)
        sealing = Sealing(self, self._index, buffer, lambda: wrap_hash(hasher.digest()))
        with self._changing:
            self.sealings[self._index] = sealing
            self._waiting.append(sealing)
            self._buffer = self._hasher = None
            self._index += 1

    def _take(self) -> list[Seal]:
        seals: list[Seal] = list(self._waiting)
        self._waiting = []
        return seals

    def finish(self) -> list[Seal]:
        self._check_open()
        self.finished = True
        if self._buffer is not None:
            self._seal(self._buffer)
        return self._take()

    def unfinish(self) -> bool:
        """Go on after :meth:`finish`, if nothing of the end was named; return whether it is."""
        last = self.sealings.get(self._index - 1)
        if last is None or last.length == self.chunk_size:
            self.finished = False
            return True
        if last.is_applied or last.buffer is None:
            return False
        last.cancel()
        with self._changing:
            del self.sealings[last.index]
            self._waiting = [each for each in self._waiting if each is not last]
            self._index = last.index
            self._buffer, last.buffer = last.buffer, None
            self._hasher = None
            self.finished = False
        return True

    def hand_out_again(self, prefix: int) -> None:
        """Return the seals of all chunks from *prefix* on with the next append."""
        with self._changing:
            self._waiting = [
                sealing for index, sealing in self.sealings.items() if index >= prefix
            ]

    def record_again(self) -> None:
        """Have the next flush record, for a new writer, what was put and not recorded.

        The commit of the last record may have failed: then nothing names its objects. A
        flush puts no object twice.
        """
        with self._changing:
            self.flushed = min(self.flushed, self.recorded)

    def applied(self, index: int) -> None:
        """Note that the catalog names chunk *index*."""
        with self._changing:
            sealing = self.sealings.get(index)
            if sealing is None:
                return
            sealing.is_applied = True
            if sealing.object is not None:
                sealing.free()
            # A sealing after a gap stays: the next writer is handed its seal again.
            for at in list(self.sealings):
                if not self.sealings[at].is_applied:
                    break
                if self.sealings[at].length == self.chunk_size:
                    del self.sealings[at]
                self._parts.pop(at, None)

    # Flushing.

    def flush(self) -> TailFlush | None:
        if is_response_key(self.key) or self.offset <= self.flushed:
            return None
        if self.broken:
            self._refuse()
        with self._changing:
            sealings = [each for each in self.sealings.values() if not each.is_applied]
            buffer = self._buffer
            return TailFlush(
                self,
                self.offset,
                [
                    (each, None if each.buffer is None else each.buffer.share())
                    for each in sealings
                ],
                None
                if buffer is None
                else (self._index, buffer.share(), buffer.length),
            )

    def put_part(
        self, index: int, length: int, bytes_of: Callable[[int], memoryview | bytes]
    ) -> list[TailPart]:
        """Put what no object has of the first *length* bytes of a chunk; return the parts.

        *bytes_of* returns the bytes from a position in the chunk on. One thread at a time.
        """
        start = index * self.chunk_size
        with self._changing:
            parts = list(self._parts.get(index, ()))
        end = parts[-1].end - start if parts else 0
        if end < length:
            kept = merged_from([part.length for part in parts], length - end)
            parts = parts[:kept]
            at = parts[-1].end - start if parts else 0
            name = new_tail_name(self.key, self.generation)
            self.room.bucket.put(name, bytes_of(at))
            parts.append(TailPart(name, start + at, length - at))
            with self._changing:
                self._parts[index] = parts
        return [
            TailPart(
                part.name, part.offset, min(part.length, start + length - part.offset)
            )
            for part in parts
            if part.offset < start + length
        ]

    def run_flush(self, flush: TailFlush) -> RecordTail:
        with self._flushing:
            parts: list[TailPart] = []
            for sealing, buffer in flush.sealings:
                if sealing.is_applied:
                    continue  # its bytes are in a chunk that the catalog names
                parts += self.put_part(
                    sealing.index,
                    sealing.length,
                    lambda at, s=sealing, b=buffer: _rest_of(s, b, at),  # type: ignore[misc]
                )
            if flush.current is not None:
                index, last, length = flush.current
                parts += self.put_part(index, length, lambda at: last.view(at, length))
            with self._changing:
                self.flushed = max(self.flushed, flush.offset)
        return RecordTail(self.key, flush.offset, tuple(parts))

    # Looking and ending.

    def read(self, index: int, start: int, end: int) -> bytes:
        """Return bytes of chunk *index*; empty if this tail does not know them."""
        with self._changing:
            sealing = self.sealings.get(index)
            buffer = self._buffer if index == self._index else None
        if sealing is not None:
            return sealing.read(start, end)
        return b"" if buffer is None else buffer.read(start, end)

    @property
    def is_flushed(self) -> bool:
        """Whether nothing is lost if this tail is forgotten."""
        return self.offset <= self.flushed and not self.sealings

    def discard(self) -> None:
        """Free everything. Chunks that were not named are named no more."""
        self.broken = True
        with self._changing:
            sealings = list(self.sealings.values())
            self.sealings.clear()
            self._waiting = []
            buffer, self._buffer = self._buffer, None
        for sealing in sealings:
            sealing.cancel()
            sealing.free()
        if buffer is not None:
            buffer.release()


class TailFlush:
    """Puts the bytes below ``offset`` that are in no object yet. Run it once."""

    def __init__(
        self,
        tail: Tail,
        offset: int,
        sealings: list[tuple[Sealing, TailBuffer | None]],
        current: tuple[int, TailBuffer, int] | None,
    ) -> None:
        self.offset = offset
        self.sealings = sealings
        self.current = current
        self._tail = tail

    def run(self) -> RecordTail:
        try:
            return self._tail.run_flush(self)
        except StorageError:
            self._tail.broken = True
            raise
        finally:
            for _, buffer in self.sealings:
                if buffer is not None:
                    buffer.release()
            if self.current is not None:
                self.current[1].release()


def _rest_of(
    sealing: Sealing, buffer: TailBuffer | None, at: int
) -> memoryview | bytes:
    """Return a chunk's bytes from *at* on, from where they are."""
    if buffer is not None:
        return buffer.view(at, sealing.length)
    data = sealing.read(at, sealing.length)
    if len(data) != sealing.length - at:
        raise StorageError("the bytes of a chunk are gone; open a new writer")
    return data


def _hash_of(buffer: TailBuffer) -> blake3:
    hasher = blake3()
    buffer.share()
    try:
        hasher.update(buffer.view(0, buffer.length))
    finally:
        buffer.release()
    return hasher


def load_part(bucket: Bucket, part: TailPart, key: ContentKey) -> bytes:
    """Return the bytes of *part*. Raises :class:`ChunkCorrupt`."""
    return get_whole(bucket, part.name, 0, part.length, f"announced content of {key}")
