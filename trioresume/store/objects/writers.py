"""The writers of a node: at most one of each key holds its tail, and the others are stale.

Taking over moves the :class:`~.tails.Tail` from the old writer to the new one under the old
writer's lock. An ``append`` that is running ends first; the next one finds no tail and raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from trioresume.errors import StaleWriter
from trioresume.store.objects.tails import Tail
from trioresume.store.port import ContentKey, Flush, Seal
from trioresume.store.port.recipes import Digest

__all__ = ["ObjectWriter", "Writers"]


class ObjectWriter:
    """See :class:`trioresume.store.port.ContentWriter`."""

    __slots__ = ("_offset", "_writers", "chunk_size", "key", "lock", "tail")

    def __init__(self, writers: Writers, key: ContentKey) -> None:
        self._writers = writers
        self.key = key
        self.lock = threading.Lock()
        self.tail: Tail | None = None
        """What this writer appends to; None while it is stale."""
        self.chunk_size = 0
        self._offset = 0

    @property
    def offset(self) -> int:
        tail = self.tail
        return self._offset if tail is None else tail.offset

    def append(self, data: bytes | bytearray | memoryview) -> list[Seal]:
        with self.lock:
            return self._held().append(memoryview(data))

    def flush(self) -> Flush | None:
        with self.lock:
            return self._held().flush()

    def finish(self) -> list[Seal]:
        with self.lock:
            return self._held().finish()

    def relax(self) -> None:
        with self.lock:
            if self.tail is not None:
                self.tail.relax()

    def close(self) -> None:
        self.give_up()
        self._writers.discard(self)

    def _held(self) -> Tail:
        if self.tail is None:
            raise StaleWriter("a newer writer took over, or the operation ended")
        return self.tail

    def give_up(self) -> None:
        """Become stale. Waits for a running append."""
        with self.lock:
            tail, self.tail = self.tail, None
            if tail is not None:
                self._offset = tail.offset


class Writers:
    """The open writers, and the tails of all content that this node has begun or taken over.

    A tail outlives its writer: the bytes stay when a writer is closed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[ContentKey, ObjectWriter] = {}
        self._tails: dict[ContentKey, Tail] = {}

    def open(
        self, key: ContentKey, recover: Callable[[Tail | None, bool], Tail]
    ) -> ObjectWriter:
        """Return a writer that replaces the newest one of *key*, if there is one.

        *recover* gets the tail that is there, or None, and whether a writer held it until now.
        It returns the tail for the new writer, and discards the other one.
        """
        writer = ObjectWriter(self, key)
        with writer.lock:  # others can find the writer now, and must wait
            with self._lock:
                old = self._newest.get(key)
                self._newest[key] = writer
            try:
                if old is not None:
                    old.give_up()
                tail = writer.tail = recover(self._tails.get(key), old is not None)
                with self._lock:
                    self._tails[key] = tail
                writer.chunk_size = tail.chunk_size
            except BaseException:
                writer.tail = None
                self.discard(writer)
                raise
        return writer

    def tail(self, key: ContentKey) -> Tail | None:
        return self._tails.get(key)

    def is_open(self, key: ContentKey) -> bool:
        return key in self._newest

    def known(self) -> list[ContentKey]:
        """Return the keys of all tails that are here."""
        with self._lock:
            return list(self._tails)

    def parked(self) -> list[ContentKey]:
        """Return the keys whose tails have no writer, the oldest first."""
        with self._lock:
            return [key for key in self._tails if key not in self._newest]

    def discard(self, writer: ObjectWriter) -> None:
        with self._lock:
            if self._newest.get(writer.key) is writer:
                del self._newest[writer.key]

    def end(self, key: ContentKey) -> None:
        """Make every writer of *key* stale, and free its tail."""
        with self._lock:
            writer = self._newest.pop(key, None)
            tail = self._tails.pop(key, None)
        if writer is not None:
            writer.give_up()
        if tail is not None:
            tail.discard()

    def forget_parked(self, key: ContentKey) -> None:
        """Free the tail of *key* unless it has a writer."""
        with self._lock:
            tail = None if key in self._newest else self._tails.pop(key, None)
        if tail is not None:
            tail.discard()

    def break_sealings(self, digest: Digest) -> None:
        """Break the tails that have sealed a chunk of *digest* which nothing has named."""
        with self._lock:
            tails = list(self._tails.values())
        for tail in tails:
            for sealing in list(tail.sealings.values()):
                result = sealing.result
                if result is not None and result.digest == digest:
                    tail.broken = tail.broken or not sealing.is_applied
                    sealing.is_cancelled = (
                        sealing.is_cancelled or not sealing.is_applied
                    )

    def close(self) -> None:
        for key in list(self._tails):
            self.end(key)
