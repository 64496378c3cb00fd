"""The store of a keeper: the store on a disk, shared with other processes.

The keeper has the catalog, publishes chunks, repairs and collects, as a process that is alone
does. Other processes, the *workers*, write tails and read chunks in the same directory: see
``store/remote``. This store is the keeper's own view of it; among the processes the keeper is
:data:`~trioresume.store.remote.ownership.KEEPER`. It differs in this from the store of a process
that is alone:

* :meth:`SharedDiskStore.apply` refuses a submission of a process that does not own what it
  changes. The submissions of workers are :class:`~trioresume.store.remote.ownership.Sent`.
* A tail that has no writer in this process may have one in a worker. So a sweep spares the
  tails of operations that a worker owns.
* The end of an epoch breaks the writers of all processes.
* The bytes that a dead worker has written, and not recorded, count only if they are proven.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from blake3 import blake3

from trioresume.errors import CallerError, StaleWriter, StorageConflict, StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog.chunk_lists import ContentRow
from trioresume.store.disk.opening import Opening
from trioresume.store.disk.readers import pinned_recipe
from trioresume.store.disk.tail_files import Hasher, Sealing
from trioresume.store.disk.tails import Writers
from trioresume.store.disk_store import DEFAULT_CHUNK_SIZE, DiskStore, Durability
from trioresume.store.file_system.disk_io import Disk, translated
from trioresume.store.file_system.free_space import PROBE
from trioresume.store.port import (
    ContentKey,
    ContentWriter,
    Mutation,
    OperationId,
    OperationRecord,
    Sharing,
    operation_of,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import AnyRecipe, Digest
from trioresume.store.remote.ownership import KEEPER, Delivery, Ownership, Sent
from trioresume.store.remote.wire import Greeting

__all__ = ["CALLING", "MisusedStore", "SharedDiskStore", "open_shared_store"]

CALLING = (
    OperationState.COMPLETE,
    OperationState.PROCESSING,
    OperationState.ABANDONED,
)
"""The states in which a target is called."""


def open_shared_store(
    data_dir: str | os.PathLike[str],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    durability: Durability = "disk",
    min_free_space: int = 0,
    reserve: int = 0,
    disk: Disk | None = None,
    new_hasher: Callable[[], Hasher] = blake3,
) -> SharedDiskStore:
    """Open the store in *data_dir* for a keeper.

    The arguments and the errors are those of
    :func:`~trioresume.store.disk_store.open_store`.
    """
    if chunk_size < 1:
        raise CallerError("the chunk size is at least one byte")
    with translated(f"opening the store in {os.fspath(data_dir)}"):
        return SharedDiskStore(
            data_dir,
            chunk_size=chunk_size,
            disk=disk or Disk(durable=durability == "disk"),
            min_free_space=min_free_space,
            reserve=reserve,
            new_hasher=new_hasher,
        )


class MisusedStore(StorageError):
    """A submission made no sense. Its cause is the :class:`CallerError`."""


class _Writers(Writers):
    """The writers of this process, and what the keeper knows of those in workers."""

    def __init__(self, store: SharedDiskStore) -> None:
        super().__init__()
        self._store = store

    def break_all(self) -> list[ContentKey]:
        store = self._store
        broken = super().break_all()
        broken += map(request_key, store.ownership.owned_by_workers())
        store.on_epoch_end()
        return broken

    def unless_open(
        self, key: ContentKey, act: Callable[[], None], otherwise: Callable[[], None]
    ) -> None:
        if self._store.ownership.is_elsewhere(operation_of(key), KEEPER):
            otherwise()
        else:
            super().unless_open(key, act, otherwise)


class SharedDiskStore(DiskStore):
    """See the module, and :func:`open_shared_store`."""

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        chunk_size: int,
        disk: Disk,
        min_free_space: int = 0,
        reserve: int = 0,
        new_hasher: Callable[[], Hasher] = blake3,
    ) -> None:
        self.ownership = Ownership(self._exists)
        self._min_free_space = min_free_space
        self._sharing: Sharing | None = None
        self.deliver: Callable[[Sequence[Delivery]], None] = _drop
        """Given the notices that follow from a commit, in the committing thread."""
        self.on_epoch_end: Callable[[], None] = _nothing
        """Called when the writers of all processes are broken, in any thread."""
        super().__init__(
            data_dir,
            chunk_size=chunk_size,
            disk=disk,
            min_free_space=min_free_space,
            reserve=reserve,
            new_hasher=new_hasher,
            writers=_Writers(self),
        )

    def _exists(self, id: OperationId) -> bool:
        return self._catalog.state_of(id) is not None

    @property
    def sharing(self) -> Sharing | None:
        return self._sharing

    def share(self, sharing: Sharing) -> None:
        """Have *sharing* be how this process shares the store."""
        self._sharing = sharing

    def welcome(self, number: int) -> Greeting:
        """Return what the worker *number* must know to use the directory."""
        doubts = self._chunks.doubts
        return Greeting(
            pid=os.getpid(),
            number=number,
            chunk_size=self.chunk_size,
            durable=self._disk.durable,
            epoch=self._epoch.number,
            mount_epoch=self._epoch.number if doubts is None else doubts.mount_epoch,
            min_free=self._min_free_space,
            reserve=self._space.held,
            is_spent=self._space.is_spent,
            is_limit_hidden=self._space.is_limit_hidden,
        )

    # Changing.

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        ownership = self.ownership
        checked = [ownership.check(_sender(each), each) for each in batch]
        owned = [
            submission
            for submission, check in zip(batch, checked, strict=True)
            if not isinstance(check, StaleWriter)
        ]
        try:
            applied = iter(super().apply(owned) if owned else [])
        except BaseException as exc:
            for check in checked:
                if not isinstance(check, StaleWriter):
                    ownership.undo(check)
            if isinstance(exc, CallerError):
                # It is the fault of one process, and must not end the commits of all.
                raise MisusedStore(str(exc)) from exc
            raise
        results: list[StorageConflict | None] = []
        deliveries: list[Delivery] = []
        for submission, check in zip(batch, checked, strict=True):
            if isinstance(check, StaleWriter):
                results.append(check)
                continue
            error = next(applied)
            results.append(error)
            if error is None:
                deliveries += ownership.note(submission)
            else:
                ownership.undo(check)
        if deliveries:
            self.deliver(deliveries)
        return results

    def calls_among(self, operations: Collection[OperationId]) -> list[OperationId]:
        """Return those of *operations* whose target is being called, as the catalog has it."""
        found: list[OperationId] = []
        after: OperationId | None = None
        while operations and (records := super().operations_in(CALLING, 100, after)):
            after = records[-1].id
            found += [record.id for record in records if record.id in operations]
        return found

    # Reading: the answers say whether another process owns an operation.

    def seen_by(self, number: int, record: OperationRecord) -> OperationRecord:
        """Return *record* as the process *number* sees it."""
        if self.ownership.is_elsewhere(record.id, number):
            return replace(record, is_elsewhere=True)
        return record

    def operation(
        self, id: OperationId, *, number: int = KEEPER
    ) -> OperationRecord | None:
        record = super().operation(id)
        return None if record is None else self.seen_by(number, record)

    def operation_owned_by(
        self, id: OperationId, principal: str | None, *, number: int = KEEPER
    ) -> OperationRecord | None:
        record = super().operation_owned_by(id, principal)
        return None if record is None else self.seen_by(number, record)

    def operations_in(
        self,
        states: Sequence[OperationState],
        limit: int,
        after: OperationId | None,
        *,
        number: int = KEEPER,
    ) -> list[OperationRecord]:
        found = super().operations_in(states, limit, after)
        return [self.seen_by(number, record) for record in found]

    # Content of this process and of workers.

    def let_go(self, id: OperationId) -> None:
        """End the writers of an operation that this process will own no longer."""
        self._writers.end(request_key(id))
        self._writers.end(response_key(id))

    def new_writer(self, key: ContentKey) -> ContentWriter:
        self.ownership.begin_new(operation_of(key), KEEPER)
        return super().new_writer(key)

    def _find_opening(self, key: ContentKey) -> Opening:
        return self.opening(KEEPER, key)

    def opening(self, number: int, key: ContentKey) -> Opening:
        """Repair the content of *key*, and return how the process *number* opens its tail.

        Raises :class:`StaleWriter` if that process does not own the operation; otherwise as
        :meth:`~trioresume.store.port.Store.open_writer`.
        """
        if not self.ownership.begin(operation_of(key), number):
            raise StaleWriter("another process owns the operation, or none does")
        return self._recovery.find(key)

    def begin_sealing(
        self, number: int, key: ContentKey, index: int, length: int
    ) -> Sealing | None:
        """Note that a worker seals a tail. Returns None if it does not own the operation."""
        if self.ownership.owner(operation_of(key)) != number:
            return None
        return self._tails.begin_sealing(key, index, length)

    def content(self, key: ContentKey) -> ContentRow | None:
        """Return the catalog's row of content under construction."""
        return self._catalog.content(key)

    def piece(self, key: ContentKey, index: int) -> Digest | None:
        """Return the digest of a sealed chunk of content under construction."""
        return self._catalog.piece(key, index)

    def recipe(self, digest: Digest) -> AnyRecipe | None:
        return self._catalog.recipe(digest)

    def pinned_recipe(self, digest: Digest) -> AnyRecipe:
        """Return the recipe, pinned until :meth:`unpin`. Raises :class:`ContentLost`."""
        return pinned_recipe(self._catalog, self._pins, digest)

    def unpin(self, digest: Digest) -> None:
        self._pins.unpin(digest)

    def has_unsynced_before(self, epoch: int) -> bool:
        return self._catalog.has_unsynced_before(epoch)

    def is_unsynced_before(self, digest: Digest, epoch: int) -> bool:
        return self._catalog.is_unsynced_before(digest, epoch)

    def sync_names(self) -> int:
        """Make the names of all tails durable, those of workers too; return the epoch after it.

        The keeper does this for all. If each process synced the directory by itself, one of
        them would see an error, and for the next one the same sync would succeed although its
        names were lost. Raises :class:`StorageError`.
        """
        with translated("syncing the names of tails"):
            self._tails.sync_names()
        return self._epoch.number

    def suspect(self, key: ContentKey) -> None:
        """Do what :meth:`distrust` does, for as long as this process lives. Never blocks."""
        self._epoch.suspect([key])

    def distrust(self, key: ContentKey) -> None:
        """Count only the recorded bytes of *key*, because a worker's sync of it failed."""
        self._recovery.distrust(key)

    def orphan(self, operations: Iterable[OperationId]) -> None:
        """Note that the process which owned *operations* died, before anybody else owns them.

        Nobody can tell which of its syncs had failed, nor which of its writes were cut. Only
        bytes that are proven or recorded count from now on.
        """
        self.sweep()  # it may have left tails of uploads that were not recorded
        operations = list(operations)
        self._epoch.orphan(set(map(request_key, operations)))
        for operation in operations:
            self._tails.end_sealings(request_key(operation))

    @property
    def epoch(self) -> int:
        """The number of the present epoch."""
        return self._epoch.number

    # Space.

    @property
    def space(self) -> tuple[bool, bool]:
        """Whether the reserve is spent, and whether a hidden limit was met."""
        return self._space.is_spent, self._space.is_limit_hidden

    def remove_probe(self, pid: int) -> None:
        """Remove the file with which a worker that died has tried how much space there is."""
        with translated("removing a probe of the space"):
            self._disk.unlink(self._dir.join(f"{PROBE}{pid}"))

    def note_full_disk(self) -> None:
        """Look at the disk again, because a worker's write failed."""
        self._space.look_again()

    def restore_space(self) -> bool:
        """Make the reserve again if there is space; return whether it exists."""
        return not self._space.is_spent or self._space.restore()


def _sender(submission: Sequence[Mutation]) -> int:
    return submission.sender if isinstance(submission, Sent) else KEEPER


def _drop(deliveries: Sequence[Delivery]) -> None:
    """Drop what would be delivered, before there are other processes."""


def _nothing() -> None:
    """Do nothing, before there are other processes."""
