"""The tail of content under construction, its writers, and the steps that make it durable.

At most one writer per key holds the :class:`Tail`; a writer without a tail is stale.
Taking over moves the Tail from the old writer to the new one under the old writer's
lock. An ``append`` that is running ends first; the next one finds no tail and raises.
So the new writer continues at once, with the present hash state, and reads nothing from
disk.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import NoReturn

from trioresume.errors import CallerError, StaleWriter, StorageError
from trioresume.store.disk.tail_files import Hasher, Proof, TailFiles, hash_tail
from trioresume.store.file_system.disk_io import (
    Descriptor,
    storage_error,
    translated,
)
from trioresume.store.port import (
    ContentKey,
    Flush,
    RecordOffset,
    Seal,
    SealChunk,
    is_response_key,
)
from trioresume.store.port.recipes import wrap_hash

__all__ = ["DiskFlush", "DiskSeal", "DiskWriter", "KnownSeal", "Tail", "Writers"]


class DiskSeal:
    """Makes one tail durable. *hasher* is None when its bytes must be read again."""

    __slots__ = ("_file", "_files", "_hasher", "_key", "_sealing", "index")

    def __init__(
        self,
        files: TailFiles,
        key: ContentKey,
        index: int,
        file: Descriptor,
        length: int,
        hasher: Hasher | None = None,
    ) -> None:
        self.index = index
        self._key = key
        self._files = files
        self._file = file
        self._hasher = hasher
        self._sealing = files.begin_sealing(key, index, length)

    def run(self) -> SealChunk:
        try:
            hasher = self._hasher or hash_tail(self._file, self._files.disk)
            digest = wrap_hash(hasher.digest())
            self._files.disk.sync_data(self._file)
        except OSError as exc:
            self._files.distrust(self._key)
            raise storage_error(exc, "syncing a chunk") from exc
        finally:
            self._file.close()
        self._sealing.note(digest)
        return SealChunk(self._key, self.index, digest, self._sealing.length)

    def duplicate(self) -> Descriptor:
        """Return a duplicate of the tail's descriptor, for a flush that must cover it."""
        return self._file.duplicate()

    def close(self) -> None:
        """Give up the seal before a caller got it. The tail's bytes stay."""
        self._file.close()


class KnownSeal:
    """The seal of a chunk that was sealed already, although a chunk before it was not.

    A writer that opens the content gets seals for all chunks from the first gap on. These
    are among them, so that its seals continue the catalog's prefix without a gap.
    """

    __slots__ = ("_seal", "index")

    def __init__(self, seal: SealChunk) -> None:
        self.index = seal.index
        self._seal = seal

    def run(self) -> SealChunk:
        return self._seal

    def duplicate(self) -> None:
        """Return None: no tail is left that a flush would have to cover."""

    def close(self) -> None:
        pass  # this seal holds nothing


class DiskFlush:
    """Makes tails durable, through duplicated descriptors.

    The writer may seal its tails and close its own descriptors meanwhile.
    """

    __slots__ = ("_epoch", "_files", "_sync_names", "_tail", "offset")

    def __init__(
        self, tail: Tail, files: list[Descriptor], *, sync_names: bool
    ) -> None:
        self.offset = tail.offset
        self._tail = tail
        self._files = files
        self._sync_names = sync_names
        self._epoch = tail.files.epoch.number

    def run(self) -> RecordOffset:
        tails = self._tail.files
        try:
            for file in self._files:
                tails.disk.sync_data(file)
            if self._sync_names:
                tails.sync_names()
                if tails.epoch.number != self._epoch:
                    raise OSError(errno.EIO, "names of tails were lost meanwhile")
        except OSError as exc:
            tails.distrust(self._tail.key)
            raise storage_error(exc, "syncing a tail") from exc
        finally:
            for file in self._files:
                file.close()
        self._tail.flushed(self.offset)
        return RecordOffset(self._tail.key, self.offset)


class Tail:
    """The end of content under construction. A writer holds it and hands it to the next.

    *waiting* are seals of full chunks that no caller has got yet: of chunks found on disk
    when the tail was opened, and of chunks completed by an append that then failed.
    """

    __slots__ = (
        "_base",
        "_file",
        "_hasher",
        "_index",
        "_length",
        "_names_synced",
        "_proven",
        "_proves",
        "_synced",
        "_waiting",
        "broken",
        "chunk_size",
        "files",
        "finished",
        "key",
    )

    def __init__(
        self,
        files: TailFiles,
        key: ContentKey,
        chunk_size: int,
        *,
        index: int = 0,
        synced: int = 0,
        waiting: list[DiskSeal | KnownSeal] | None = None,
    ) -> None:
        self.files = files
        self.key = key
        self.chunk_size = chunk_size
        self.broken = False
        """Whether a sync failed: no bytes may be added after suspect ones."""
        self.finished = False
        self._index = index
        self._base = index * chunk_size
        self._length = 0
        self._file: Descriptor | None = None
        self._hasher: Hasher | None = None
        """The hash state of the file's bytes; None if they would have to be read again."""
        self._names_synced = False
        self._proves = not is_response_key(key)  # response content is never resumed
        self._proven = 0
        """How many bytes of the file the proof covers: all, except during an append."""
        self._synced = synced
        self._waiting: list[DiskSeal | KnownSeal] = waiting or []

    @property
    def offset(self) -> int:
        return self._base + self._length

    def resume(self, length: int) -> None:
        """Continue the partial tail on disk, which has *length* bytes."""
        self._file = self.files.open(self.key, self._index)
        self._length = self._proven = length
        self._hash_again(self._file)

    def relax(self) -> None:
        """Free the hash state while nothing arrives: it can be made again from the file."""
        if self._file is not None:
            self._hasher = None

    def _hash_again(self, file: Descriptor) -> Hasher:
        hasher = hash_tail(file, self.files.disk)
        if os.lseek(file.fileno(), 0, os.SEEK_CUR) != self._length:
            raise StorageError(
                "the file of the unfinished chunk has another length than expected, so another"
                " program changed it; open a new writer"
            )
        self._hasher = hasher
        return hasher

    def append(self, data: memoryview) -> list[Seal]:
        if self.broken or self.finished:
            self._refuse()
        try:
            try:
                self._write(data)
            finally:
                self._prove()
        except OSError as exc:
            raise storage_error(exc, "writing a tail") from exc
        return self._take() if self._waiting else []

    def _write(self, data: memoryview) -> None:
        position, size = 0, len(data)
        while position < size:
            file = self._file or self._begin()
            hasher = self._hasher or self._hash_again(file)
            part = data[position : position + self.chunk_size - self._length]
            self.files.take_space(len(part))
            try:
                written = self.files.write(file, part, self._length)
            except OSError as exc:
                self.files.note_failed_write(exc)
                raise
            # Hash only the bytes that were written, so that hash and file agree after an
            # error.
            hasher.update(part if written == len(part) else part[:written])
            self._length += written
            position += written
            if self._length == self.chunk_size:
                self._prove()
                self._seal(file)

    def _prove(self) -> None:
        """Write a proof of all bytes in the file, unless it was written already."""
        file, hasher = self._file, self._hasher
        if file is None or hasher is None or self._length == self._proven:
            return
        if self._proves:
            try:
                proof = Proof(self._length, hasher.digest())
                self.files.write_proof(self.key, self._index, file, proof)
            except OSError:
                if self.files.disk.durable:
                    return  # an offset is recorded before it is announced: no proof needed
                # Accepted bytes may be announced at once, so they must be proven. These
                # are not: take them back.
                self._length, self._hasher = self._proven, None
                self.files.disk.truncate(file, self._length)
                raise
        self._proven = self._length

    def _refuse(self) -> NoReturn:
        if self.broken:
            raise StorageError("a sync of this content failed; open a new writer")
        raise CallerError("the content was finished")

    def _begin(self) -> Descriptor:
        self._hasher = self.files.new_hasher()
        self._names_synced = False
        self._proven = 0
        self._file = self.files.create(self.key, self._index)
        return self._file

    def _seal(self, file: Descriptor) -> None:
        seal = DiskSeal(
            self.files, self.key, self._index, file, self._length, self._hasher
        )
        self._waiting.append(seal)
        self._file = None
        self._base += self._length
        self._index += 1
        self._length = 0

    def _take(self) -> list[Seal]:
        seals: list[Seal] = list(self._waiting)
        self._waiting = []
        return seals

    def finish(self) -> list[Seal]:
        if self.broken or self.finished:
            self._refuse()
        self.finished = True
        if self._file is not None:
            if self._length:
                self._seal(self._file)
            else:
                self._abandon(self._file)
        return self._take()

    def _abandon(self, file: Descriptor) -> None:
        """Remove a tail that is empty because the disk was full at its first byte."""
        file.close()
        self._file = None
        with translated("removing an empty tail"):
            self.files.remove(self.key, self._index)

    def flush(self) -> DiskFlush | None:
        if not self.files.disk.durable or self.offset <= self._synced:
            return None
        if self.broken:
            self._refuse()
        with translated("syncing a tail"):
            duplicates = [seal.duplicate() for seal in self._waiting]
            files = [file for file in duplicates if file is not None]
            if self._file is not None:
                files.append(self._file.duplicate())
        # Sync the names, too, if this process made new ones since the last flush, or an
        # earlier process may have made some. The last chunks of finished content have only
        # these names until the commit that freezes it.
        has_tails = bool(files) or self.finished
        return DiskFlush(self, files, sync_names=has_tails and not self._names_synced)

    def flushed(self, offset: int) -> None:
        self._synced = max(self._synced, offset)
        if offset > self._base:
            self._names_synced = (
                True  # the present tail began before the flush, so its name is synced
            )

    def close(self) -> None:
        for seal in self._waiting:
            seal.close()
        self._waiting = []
        if self._file is not None:
            self._file.close()
            self._file = None


# Writers.


class DiskWriter:
    """See :class:`trioresume.store.port.ContentWriter`."""

    __slots__ = ("_offset", "_writers", "chunk_size", "key", "lock", "tail")

    def __init__(self, writers: Writers, key: ContentKey) -> None:
        self._writers = writers
        self.key = key
        self.lock = threading.Lock()
        """Held in each call that changes the tail."""
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
        tail = self.give_up()
        if tail is not None:
            tail.close()
        self._writers.discard(self)

    def _held(self) -> Tail:
        if self.tail is None:
            raise StaleWriter("a newer writer took over, or the operation ended")
        return self.tail

    def give_up(self) -> Tail | None:
        """Become stale, and return the tail if this writer held it.

        Waits for a running append.
        """
        with self.lock:
            tail, self.tail = self.tail, None
            if tail is not None:
                self._offset = tail.offset
            return tail


class Writers:
    """The open writers: the newest one of each key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[ContentKey, DiskWriter] = {}

    def open(
        self, key: ContentKey, recover: Callable[[ContentKey, Tail | None], Tail]
    ) -> DiskWriter:
        """Return a writer that replaces the newest one of *key*, if there is one.

        *recover* gets *key* and the tail that the older writer held, or None, and returns
        the tail for the new writer.
        """
        writer = DiskWriter(self, key)
        # Taken before others can find the writer: a still newer one waits for this one.
        with writer.lock:
            with self._lock:
                old = self._newest.get(key)
                self._newest[key] = writer
            try:
                held = None if old is None else old.give_up()
                tail = writer.tail = recover(key, held)
                writer.chunk_size = tail.chunk_size
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
