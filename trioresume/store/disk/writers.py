"""Writers: one writer per key may append, and a newer writer takes over.

At most one writer per key holds the :class:`Tail`; a writer without a tail is stale.
Taking over moves the Tail from the old writer to the new one under the old writer's
lock. An ``append`` that is running ends first; the next one finds no tail and raises.
So the new writer continues at once, with the present hash state, and reads nothing from
disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from trioresume.errors import StaleWriter
from trioresume.store.disk.tails import Tail
from trioresume.store.port import ContentKey, Flush, Seal

__all__ = ["DiskWriter", "Writers"]


class DiskWriter:
    """See :class:`trioresume.store.port.ContentWriter`."""

    __slots__ = ("_chunk_size", "_key", "_lock", "_offset", "_tail", "_writers")

    def __init__(self, writers: Writers, key: ContentKey) -> None:
        self._writers = writers
        self._key = key
        self._lock = threading.Lock()
        self._tail: Tail | None = None
        self._offset = 0
        self._chunk_size = 0

    @property
    def chunk_size(self) -> int:
        return self._chunk_size

    @property
    def offset(self) -> int:
        tail = self._tail
        return self._offset if tail is None else tail.offset

    @property
    def tail(self) -> Tail | None:
        return self._tail

    def append(self, data: bytes | bytearray | memoryview) -> list[Seal]:
        with self._lock:
            return self._held().append(memoryview(data))

    def flush(self) -> Flush | None:
        with self._lock:
            return self._held().flush()

    def finish(self) -> list[Seal]:
        with self._lock:
            return self._held().finish()

    def relax(self) -> None:
        with self._lock:
            if self._tail is not None:
                self._tail.relax()

    def close(self) -> None:
        tail = self.give_up()
        if tail is not None:
            tail.close()
        self._writers.discard(self)

    @property
    def key(self) -> ContentKey:
        return self._key

    def _held(self) -> Tail:
        if self._tail is None:
            raise StaleWriter("a newer writer took over, or the operation ended")
        return self._tail

    def give_up(self) -> Tail | None:
        """Become stale, and return the tail if this writer held it.

        Waits for a running append.
        """
        with self._lock:
            tail, self._tail = self._tail, None
            if tail is not None:
                self._offset = tail.offset
            return tail

    def take_over(
        self, old: DiskWriter | None, recover: Callable[[Tail | None], Tail]
    ) -> None:
        """Begin with the tail that *recover* returns for the tail of *old*.

        The caller took :attr:`lock` before others could find this writer. So a still newer
        writer waits until this one is ready.
        """
        tail = recover(old.give_up() if old is not None else None)
        self._tail = tail
        self._chunk_size = tail.chunk_size

    @property
    def lock(self) -> threading.Lock:
        return self._lock


class Writers:
    """The open writers: the newest one of each key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[ContentKey, DiskWriter] = {}

    def open(
        self, key: ContentKey, recover: Callable[[Tail | None], Tail]
    ) -> DiskWriter:
        """Return a writer that replaces the newest one of *key*, if there is one.

        *recover* gets the tail that the older writer held, or None, and returns the tail
        for the new writer.
        """
        writer = DiskWriter(self, key)
        with writer.lock:
            with self._lock:
                old = self._newest.get(key)
                self._newest[key] = writer
            try:
                writer.take_over(old, recover)
            except BaseException:
                self.discard(writer)
                raise
        return writer

    def tail(self, key: ContentKey) -> Tail | None:
        """Return the tail of the newest writer of *key*, or None."""
        writer = self._newest.get(key)
        return None if writer is None else writer.tail

    def break_all(self) -> list[ContentKey]:
        """Mark the tails of all writers as broken, and return the writers' keys.

        Their bytes are suspect, so no bytes may be added to them.
        """
        with self._lock:
            for writer in self._newest.values():
                tail = writer.tail
                if tail is not None:
                    tail.broken = True
            return list(self._newest)

    def discard(self, writer: DiskWriter) -> None:
        with self._lock:
            if self._newest.get(writer.key) is writer:
                del self._newest[writer.key]

    def end(self, key: ContentKey) -> None:
        """Make every writer of *key* stale."""
        with self._lock:
            writer = self._newest.pop(key, None)
        tail = None if writer is None else writer.give_up()
        if tail is not None:
            tail.close()

    def unless_open(
        self, key: ContentKey, act: Callable[[], None], otherwise: Callable[[], None]
    ) -> None:
        """Call *act* if *key* has no writer, else *otherwise*; no writer opens meanwhile."""
        with self._lock:
            if key in self._newest:
                otherwise()
            else:
                act()

    def close(self) -> None:
        for key in list(self._newest):
            self.end(key)
