"""The store of a worker: content in the data directory, the catalog in another process.

The bytes are written and read here, by the code of ``store/disk``; see also ``contents.py``
there. The keeper has the rest: see :mod:`trioresume.store.shared_disk_store`.

What has to be in the right order
=================================

*A tail's name.* A sweep in the keeper removes tails that nobody owns. So before the first tail
of new content is created, the keeper knows that this process owns the operation.

*Seals.* In one process a seal is trusted because of the record that ``TailFiles`` keeps: the
seal's tail was not cut since. Here this record is the keeper's. A worker tells it when a tail
begins to be sealed and when it is synced, in the messages' order. If the keeper cuts a tail,
because a new writer is opened, it drops the record. Seals of that tail which are still under
way find no record, as they would in one process: the question that had the writer opened came
after the messages of all older writers, because these were stale before it was asked.

*Names of tails* are synced by the keeper, for all processes; it says why.

*A failed sync* is recorded by the keeper before anybody here is told that it failed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from itertools import count

from blake3 import blake3

from trioresume.errors import StorageError
from trioresume.store.catalog.accountant import Accountant
from trioresume.store.catalog.catalog import namespace_of
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.contents import DiskContents
from trioresume.store.disk.doubts import Doubts
from trioresume.store.disk.opening import Opening
from trioresume.store.disk.tail_files import Hasher, Sealing, TailFiles
from trioresume.store.disk.tails import Writers
from trioresume.store.disk.unfinished import Epoch
from trioresume.store.file_system.disk_io import Descriptor, Disk, translated
from trioresume.store.file_system.free_space import PROBE, FreeSpace
from trioresume.store.port import (
    ContentKey,
    ContentWriter,
    EndOperation,
    ForgetOperation,
    JoinContents,
    Mutation,
    OperationId,
    RecordResponse,
    Sharing,
    Usage,
    check_key,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import AnyRecipe, Digest
from trioresume.store.remote.client import Connection, RemoteCatalog, RemoteSharing
from trioresume.store.remote.wire import (
    Began,
    EpochEnded,
    FullDisk,
    Message,
    Sealed,
    Space,
    Unpin,
)

__all__ = ["WorkerStore", "connect_store"]


def connect_store(
    sock: socket.socket,
    data_dir: str | os.PathLike[str],
    *,
    on_lost: Callable[[], None],
    disk: Callable[[bool], Disk] | None = None,
    new_hasher: Callable[[], Hasher] = blake3,
    pid: int | None = None,
) -> WorkerStore:
    """Return the store in *data_dir*, whose keeper is at the other end of *sock*.

    *on_lost* is called once, in a thread, if the connection ends before
    :meth:`WorkerStore.close`. Then the process has to end: it owns nothing any more, and every
    call of the store raises. *disk* makes the :class:`Disk` for a given ``durable``, and *pid*
    is the process that the keeper ends if it does not answer: for tests.

    Takes *sock* over. Raises :class:`StorageError` if the keeper does not greet, or refuses.
    """
    return WorkerStore(
        sock,
        os.fspath(data_dir),
        on_lost=on_lost,
        make_disk=disk or (lambda durable: Disk(durable=durable)),
        new_hasher=new_hasher,
        pid=os.getpid() if pid is None else pid,
    )


class _Sealing(Sealing):
    """A sealing whose record is the keeper's."""

    def __init__(
        self,
        connection: Connection,
        number: int,
        key: ContentKey,
        index: int,
        length: int,
    ) -> None:
        super().__init__(length)
        self._connection = connection
        self._number = number
        connection.post(Began(number, key, index, length), hasty=False)

    def note(self, digest: Digest) -> None:
        super().note(digest)
        self._connection.post(Sealed(self._number, digest), hasty=False)


class _Tails(TailFiles):
    """The directory of tails, whose record and names are the keeper's."""

    def __init__(
        self,
        root: str,
        disk: Disk,
        epoch: Epoch,
        *,
        connection: Connection,
        sync_names: Callable[[], int],
        take_space: Callable[[int], None],
        look_again: Callable[[], None],
        distrust: Callable[[ContentKey], None],
        new_hasher: Callable[[], Hasher],
    ) -> None:
        super().__init__(
            root,
            disk,
            epoch,
            take_space=take_space,
            look_again=look_again,
            distrust=distrust,
            new_hasher=new_hasher,
        )
        self._connection = connection
        self._sync_names = sync_names
        self._numbers = count(1)
        self.unknown: dict[ContentKey, Callable[[], None]] = {}
        """New keys, with what waits until the keeper knows them."""

    def create(self, key: ContentKey, index: int) -> Descriptor:
        if self.unknown:
            known = self.unknown.pop(key, None)
            if known is not None:
                known()
        return super().create(key, index)

    def begin_sealing(self, key: ContentKey, index: int, length: int) -> Sealing:
        return _Sealing(self._connection, next(self._numbers), key, index, length)

    def sync_names(self) -> None:
        epoch = self._sync_names()
        self.epoch.number = max(self.epoch.number, epoch)


class _Space(FreeSpace):
    """The free space, whose reserve is the keeper's."""

    __slots__ = ("_restore", "_tell")

    def __init__(
        self,
        path: str,
        disk: Disk,
        *,
        min_free: int,
        held: int,
        pid: int,
        restore: Callable[[], bool],
        tell: Callable[[], None],
    ) -> None:
        super().__init__(path, disk, min_free=min_free)
        self._restore = restore
        self._tell = tell
        self._held = held
        self._probe = os.path.join(path, f"{PROBE}{pid}")

    def restore(self) -> bool:
        if self.is_spent and self._restore():
            self.is_spent = False
        return not self.is_spent

    def look_again(self) -> None:
        super().look_again()
        self._tell()


class WorkerStore(RemoteCatalog, DiskContents):
    """See :class:`trioresume.store.port.Store`, and :func:`connect_store`."""

    def __init__(
        self,
        sock: socket.socket,
        data_dir: str,
        *,
        on_lost: Callable[[], None],
        make_disk: Callable[[bool], Disk],
        new_hasher: Callable[[], Hasher],
        pid: int,
    ) -> None:
        path = os.path.abspath(data_dir)
        self._on_lost = on_lost
        self._writers = Writers()
        connection = Connection(sock, pid, take=self._take_message, on_lost=self._lose)
        super().__init__(connection)
        greeting = connection.greeting
        self.number = greeting.number
        """The number of this process among those that share the store."""
        self.chunk_size = greeting.chunk_size
        self.blocking = True
        self.durable_at_once = not greeting.durable
        disk = make_disk(greeting.durable)
        try:
            with translated("opening the data directory"):
                disk.follow_owner(path)
                self._accountant = Accountant.beside_keeper(
                    os.path.join(path, "catalog.sqlite3")
                )
            try:
                self._open(connection, path, disk, new_hasher, pid)
            except BaseException:
                self._accountant.close()
                raise
        except BaseException:
            connection.cut()
            raise

    def _open(
        self,
        connection: Connection,
        path: str,
        disk: Disk,
        new_hasher: Callable[[], Hasher],
        pid: int,
    ) -> None:
        greeting = connection.greeting
        self._epoch = Epoch(greeting.epoch)
        self._space = _Space(
            path,
            disk,
            min_free=greeting.min_free,
            held=greeting.reserve,
            pid=pid,
            restore=lambda: bool(self.ask("restore_space")),
            tell=lambda: connection.post(FullDisk()),
        )
        self._space.is_spent = greeting.is_spent
        self._space.is_limit_hidden = greeting.is_limit_hidden
        self._chunks = ChunkFiles(os.path.join(path, "chunks"), disk)
        self._own_tails = self._tails = _Tails(
            os.path.join(path, "tails"),
            disk,
            self._epoch,
            connection=connection,
            sync_names=lambda: int(self.ask("sync_names")),
            take_space=self._space.take_content,
            look_again=self._space.look_again,
            distrust=self._distrust,
            new_hasher=new_hasher,
        )
        self._contents_catalog = self
        self._sharing = RemoteSharing(connection, self.ask, self._let_go)
        connection.start()
        self._chunks.doubts = Doubts(
            self, disk, greeting.mount_epoch, path, self._chunks.checked
        )

    @property
    def sharing(self) -> Sharing | None:
        return self._sharing

    # What the keeper says by itself.

    def _take_message(self, message: Message) -> None:
        match message:
            case EpochEnded(epoch):
                self._epoch.number = max(self._epoch.number, epoch)
                self._writers.break_all()
            case Space(is_spent, is_limit_hidden):
                self._space.is_spent = is_spent
                self._space.is_limit_hidden = is_limit_hidden
            case _:
                raise StorageError(f"the keeper sent {type(message).__name__}")

    def _lose(self) -> None:
        # Nobody may add bytes to what this process owned: it owns nothing any more.
        self._writers.break_all()
        self._on_lost()

    # Changing.

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> Sequence[StorageError | None]:
        results = super().apply(batch)
        for submission, error in zip(batch, results, strict=True):
            if error is None:
                for key in _ended(submission):
                    self._end_writer(key)
        return results

    def _distrust(self, key: ContentKey) -> None:
        tail = self._writers.tail(key)
        if tail is not None:
            tail.broken = True
        try:
            self.ask("distrust", key)
        except StorageError:
            pass  # the keeper is gone, and this process owns nothing any more

    def _let_go(self, id: OperationId) -> None:
        """End the writers of an operation that this process will own no longer."""
        self._end_writer(request_key(id))
        self._end_writer(response_key(id))

    def _end_writer(self, key: ContentKey) -> None:
        self._own_tails.unknown.pop(key, None)
        self._writers.end(key)

    # Quick looks.

    def check(self) -> None:
        if self._connection.has_ended:
            raise StorageError("the keeper of the store is gone")
        self._accountant.check()

    def usage(self, principal: str | None) -> Usage:
        return self._accountant.usage(namespace_of(principal))

    def total_usage(self) -> Usage:
        return self._accountant.usage("*")

    def take_room(self, size: int) -> None:
        with translated("making a record"):
            self._space.take(size)

    # Content. The methods of the port are in DiskContents.

    def new_writer(self, key: ContentKey) -> ContentWriter:
        check_key(key)
        self._own_tails.unknown[key] = self.opened(key)
        return super().new_writer(key)

    def _find_opening(self, key: ContentKey) -> Opening:
        self._own_tails.unknown.pop(key, None)
        opening: Opening = self.ask("opening", key)
        self._epoch.number = max(self._epoch.number, opening.epoch)
        return opening

    def _offset_without_writer(self, key: ContentKey) -> int:
        offset: int = self.ask("offset", key)
        return offset

    def _pin(self, digest: Digest) -> AnyRecipe:
        recipe: AnyRecipe = self.ask("pinned_recipe", digest)
        return recipe

    def _unpin(self, digest: Digest) -> None:
        self._connection.post(Unpin(digest))

    def close(self) -> None:
        """Close every writer and end the connection. What this process owned is released."""
        self._writers.close()
        self._connection.close()
        self._accountant.close()

    def cut(self) -> None:
        """End the connection without a word, as the end of the process would: for tests."""
        self._writers.close()
        self._connection.cut()
        self._accountant.close()


def _ended(submission: Sequence[Mutation]) -> list[ContentKey]:
    """Return the keys whose content *submission* has dropped: their writers are stale."""
    ended: list[ContentKey] = []
    for mutation in submission:
        match mutation:
            case EndOperation(id) | ForgetOperation(id):
                ended += (request_key(id), response_key(id))
            case RecordResponse(id, keep_content=keeps):
                ended += (
                    [response_key(id)] if keeps else [response_key(id), request_key(id)]
                )
            case JoinContents(id):
                ended.append(request_key(id))
            case _:
                pass
    return ended
