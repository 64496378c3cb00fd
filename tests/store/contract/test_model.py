"""The stores against a model: any order of writers, seals, endings, crashes, collection.

The model keeps what everybody can know: the bytes, which chunks were applied, which
offset was recorded. What a store must answer follows from these alone.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.store.cluster_stand import ClusterStand
from tests.store.helpers import (
    CHUNK,
    DiskStand,
    MemoryStand,
    Stand,
    collect_all,
    do,
    file_record,
    read_content,
    read_from,
    record,
    response,
    set_part_chunks,
)
from trioresume.errors import StaleWriter, StorageConflict, StorageError, StorageFull
from trioresume.protocol.operation import OperationState
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.port import (
    Content,
    ContentKey,
    ContentWriter,
    CreateOperation,
    EndOperation,
    ForgetOperation,
    FreezeContent,
    JoinContents,
    OperationId,
    PublishFile,
    RecordResponse,
    RemoveFile,
    Seal,
    SealChunk,
    SetReserved,
    SetState,
    Usage,
    request_key,
)

# Few distinct bytes, so that chunks, prefixes and whole contents meet again.
_DATA = st.lists(st.sampled_from([b"a", b"b", b"aaaaaaaa", b"abababab"]), max_size=6)
_PICK = st.integers(0, 10**6)
PRINCIPALS = (None, "a")


@dataclass
class Operation:
    """What the model knows of one operation."""

    id: OperationId
    data: bytes = b""
    durable: int = 0
    applied: set[int] = field(default_factory=set)
    issued: list[Seal] = field(default_factory=list)
    sealed: list[SealChunk] = field(default_factory=list)
    writer: ContentWriter | None = None
    content: Content | None = None
    state: OperationState = OperationState.RECEIVING
    principal: str | None = None
    reserved: int = 0

    @property
    def key(self) -> ContentKey:
        return request_key(self.id)

    def surviving(self) -> int:
        """The first byte that is neither below the durable offset nor in a chunk."""
        for at in range(len(self.data)):
            if at >= self.durable and at // CHUNK not in self.applied:
                return at
        return len(self.data)

    def cut(self, offset: int) -> None:
        self.data = self.data[:offset]
        self.applied = {i for i in self.applied if (i + 1) * CHUNK <= len(self.data)}

    def forget_process(self) -> None:
        self.issued, self.sealed, self.writer = [], [], None


class StoreMachine(RuleBasedStateMachine):
    """The rules; a subclass says which store."""

    stand: Stand

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        set_part_chunks(self._patch.setattr, 2)
        self.operations: dict[OperationId, Operation] = {}
        self.created = 0
        self.files: dict[str, tuple[Content, bytes]] = {}
        self.stale: list[ContentWriter] = []

    def pick(self, number: int, *states: OperationState) -> Operation | None:
        found = [o for o in self.operations.values() if not states or o.state in states]
        return found[number % len(found)] if found else None

    def receiving(self, number: int) -> Operation | None:
        return self.pick(number, OperationState.RECEIVING)

    def writer_of(self, operation: Operation) -> ContentWriter:
        if operation.writer is None:
            operation.writer = self.stand.store.open_writer(operation.key)
            assert operation.writer.offset == len(operation.data)
        return operation.writer

    # Receiving.

    @precondition(lambda self: len(self.operations) < 4)
    @rule(principal=st.sampled_from(PRINCIPALS), reserved=st.integers(0, 9))
    def create(self, principal: str | None, reserved: int) -> None:
        self.created += 1
        operation = Operation(
            OperationId(f"op{self.created}"), principal=principal, reserved=reserved
        )
        self.operations[operation.id] = operation
        created = record(operation.id, principal=principal)
        do(
            self.stand.store,
            CreateOperation(replace(created, reserved=reserved)),
        )

    @rule(number=_PICK, reserved=st.integers(0, 9))
    def reserve(self, number: int, reserved: int) -> None:
        operation = self.pick(number)
        if operation is not None:
            do(self.stand.store, SetReserved(operation.id, reserved))
            if operation.state is not OperationState.GONE:
                operation.reserved = reserved

    @rule(number=_PICK, parts=_DATA)
    def append(self, number: int, parts: list[bytes]) -> None:
        operation = self.receiving(number)
        if operation is not None:
            data = b"".join(parts)
            operation.issued += self.writer_of(operation).append(data)
            operation.data += data

    @rule(number=_PICK, parts=_DATA, space=st.integers(0, 20))
    def append_to_a_full_disk(
        self, number: int, parts: list[bytes], space: int
    ) -> None:
        operation = self.receiving(number)
        if operation is None:
            return
        data = b"".join(parts)
        writer = self.writer_of(operation)
        self.stand.set_space(space)
        try:
            operation.issued += writer.append(data)
        except StorageFull:
            assert len(data) > space
        self.stand.set_space(None)
        operation.data += data[: writer.offset - len(operation.data)]

    @rule(number=_PICK)
    def take_over(self, number: int) -> None:
        operation = self.receiving(number)
        if operation is not None:
            self.stale.append(self.writer_of(operation))
            operation.writer = None
            self.writer_of(operation)

    @rule(number=_PICK)
    def close_writer(self, number: int) -> None:
        operation = self.receiving(number)
        if operation is not None:
            self.writer_of(operation).close()
            operation.writer = None

    @rule()
    def write_late(self) -> None:
        for writer in self.stale:
            with pytest.raises(StaleWriter):
                writer.append(b"late")

    @rule(number=_PICK, which=_PICK)
    def run_a_seal(self, number: int, which: int) -> None:
        operation = self.receiving(number)
        if operation is not None and operation.issued:
            seal = operation.issued.pop(which % len(operation.issued))
            operation.sealed.append(seal.run())

    @rule(number=_PICK, which=_PICK)
    def apply_a_seal(self, number: int, which: int) -> None:
        operation = self.receiving(number)
        if operation is not None and operation.sealed:
            seal = operation.sealed.pop(which % len(operation.sealed))
            do(self.stand.store, seal)
            operation.applied.add(seal.index)

    def settle(self, operation: Operation) -> None:
        """Run and apply all seals of the operation."""
        operation.sealed += [seal.run() for seal in operation.issued]
        do(self.stand.store, *operation.sealed)
        operation.applied |= {seal.index for seal in operation.sealed}
        operation.issued, operation.sealed = [], []

    @rule(number=_PICK)
    def make_durable(self, number: int) -> None:
        operation = self.receiving(number)
        if operation is None:
            return
        flush = self.writer_of(operation).flush()
        self.settle(operation)
        if flush is not None:
            do(self.stand.store, flush.run())
            operation.durable = flush.offset

    @rule(number=_PICK)
    def fail_to_sync(self, number: int) -> None:
        operation = self.receiving(number)
        if operation is None:
            return
        writer = self.writer_of(operation)
        flush = writer.flush()
        if flush is None:
            return
        self.stand.fail_next_sync()
        try:
            flush.run()
        except StorageError:
            with pytest.raises(StorageError):
                writer.append(b"x")
            operation.forget_process()
            operation.cut(operation.surviving())
        else:  # all was in seals, the flush had nothing to sync
            self.stand.fail_no_sync()
            self.settle(operation)
        self.stand.fail_no_sync()

    # Completing and ending.

    @rule(number=_PICK)
    def freeze(self, number: int) -> None:
        operation = self.receiving(number)
        if operation is None:
            return
        store = self.stand.store
        writer = self.writer_of(operation)
        operation.issued += writer.finish()
        self.settle(operation)
        content = store.sealed_content(operation.key)
        assert content.length == len(operation.data)
        writer.close()
        do(
            store,
            FreezeContent(operation.key, content),
            SetState(operation.id, OperationState.COMPLETE),
        )
        operation.content = content
        operation.state = OperationState.COMPLETE
        operation.forget_process()

    @rule(number=_PICK, which=st.lists(_PICK, min_size=1, max_size=4))
    def join(self, number: int, which: list[int]) -> None:
        """As the service does it: what is joined itself is taken apart before."""
        operation = self.receiving(number)
        done = (OperationState.COMPLETE, OperationState.DONE)
        parts = [self.pick(one, *done) for one in which]
        contents = [part.content for part in parts if part is not None]
        if operation is None or not contents or None in contents:
            return
        store = self.stand.store
        plain = [store.parts_of(content) for content in contents if content is not None]
        join = JoinContents(operation.id, tuple(itertools.chain(*plain)))
        do(store, join, SetState(operation.id, OperationState.COMPLETE))
        if operation.writer is not None:
            self.stale.append(operation.writer)
        operation.forget_process()
        operation.data = b"".join(part.data for part in parts if part is not None)
        operation.content = join.content
        operation.state = OperationState.COMPLETE

    @rule(number=_PICK, keep=st.booleans())
    def answer(self, number: int, keep: bool) -> None:
        operation = self.pick(number, OperationState.COMPLETE)
        if operation is not None:
            do(
                self.stand.store,
                RecordResponse(operation.id, response(), 5.0, keep_content=keep),
            )
            operation.state = OperationState.DONE
            if not keep:
                operation.content = None

    @rule(number=_PICK)
    def end(self, number: int) -> None:
        operation = self.pick(number)
        if operation is not None:
            do(self.stand.store, EndOperation(operation.id, 6.0))
            self.drop(operation)
            operation.state = OperationState.GONE

    @rule(number=_PICK)
    def forget(self, number: int) -> None:
        operation = self.pick(number)
        if operation is not None:
            do(self.stand.store, ForgetOperation(operation.id))
            self.drop(operation)
            del self.operations[operation.id]

    def drop(self, operation: Operation) -> None:
        if operation.writer is not None:
            self.stale.append(operation.writer)
        operation.forget_process()
        operation.content = None
        operation.data = b""

    # Files.

    @rule(number=_PICK, name=st.sampled_from(["x", "y"]))
    def publish(self, number: int, name: str) -> None:
        operation = self.pick(number, OperationState.COMPLETE, OperationState.DONE)
        if operation is not None and operation.content is not None:
            expected = self.files[name][0] if name in self.files else None
            file = file_record(name, operation.content)
            do(self.stand.store, PublishFile(file, expected))
            self.files[name] = (operation.content, operation.data)

    @rule(name=st.sampled_from(["x", "y"]))
    def remove(self, name: str) -> None:
        self.files.pop(name, None)
        do(self.stand.store, RemoveFile(None, name))

    # The rest.

    @rule(limit=st.integers(1, 5))
    def collect(self, limit: int) -> None:
        self.stand.store.collect(limit)

    @rule(power_loss=st.booleans())
    def crash(self, power_loss: bool) -> None:
        self.restart(power_loss=power_loss or not self.stand.survives_kill)

    def restart(self, *, power_loss: bool) -> None:
        self.stand.restart(power_loss=power_loss)
        self.stale = []
        for operation in self.operations.values():
            operation.forget_process()
            if power_loss and operation.state is OperationState.RECEIVING:
                offset = self.stand.store.offset(operation.key)
                assert self.may_survive(operation, offset)
                operation.cut(offset)

    def may_survive(self, operation: Operation, offset: int) -> bool:
        """Whether a power loss may leave that much."""
        return offset == operation.surviving()

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        store = self.stand.store
        for operation in self.operations.values():
            found = store.operation(operation.id)
            assert found is not None
            assert found.state is operation.state
            assert found.content == operation.content
            if operation.state is OperationState.RECEIVING:
                length = len(operation.data)
                assert store.offset(operation.key) == length
                prefix = read_from(store.open_prefix(operation.key, length))
                assert prefix == operation.data
            elif operation.content is not None:
                assert read_content(store, operation.content) == operation.data
        for name, (content, data) in self.files.items():
            file = store.file(None, name)
            assert file is not None
            assert file.content == content
            assert read_content(store, content) == data

    @invariant()
    def accounts_add_up(self) -> None:
        """G7: what is counted in passing is what a sum over everything gives."""
        size = uploads = 0
        for principal in PRINCIPALS:
            usage = self.stand.store.usage(principal)
            assert usage == self.usage_of(principal)
            size += usage.bytes
            uploads += usage.open_uploads
        assert self.stand.store.total_usage() == Usage(size, uploads)

    def usage_of(self, principal: str | None) -> Usage:
        operations = [
            operation
            for operation in self.operations.values()
            if operation.principal == principal
            and operation.state is not OperationState.GONE
        ]
        files = self.files if principal is None else {}
        kept = {o.content for o in operations if o.content is not None}
        kept |= {content for content, _ in files.values()}
        receiving = [o for o in operations if o.state is OperationState.RECEIVING]
        waiting = [o for o in operations if o.state is OperationState.WAITING]
        return Usage(
            4096 * (len(operations) + len(files))
            + sum(content.length for content in kept)
            + sum(operation.reserved for operation in receiving),
            len(receiving) + len(waiting),
        )

    def teardown(self) -> None:
        """At the end nothing leaks."""
        try:
            store = self.stand.store
            do(store, *[EndOperation(ended, 1.0) for ended in self.operations])
            do(store, *[RemoveFile(None, name) for name in self.files])
            for ended in self.operations:
                with pytest.raises(StorageConflict):
                    store.open_writer(request_key(ended))
            collect_all(store)
            if not self.stand.survives_kill:  # a node that died may have left objects
                store.sweep()
                collect_all(store)
            assert self.stand.stored_bytes() == 0
            assert store.total_usage() == Usage()
        finally:
            self.stand.close()
            self._patch.undo()


class MemoryMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stand = MemoryStand()


class ClusterMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stand = ClusterStand()


class DiskMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self._path = Path(tempfile.mkdtemp(prefix="trioresume-model-"))
        self._disk_stand = DiskStand(self._path)
        self.stand = self._disk_stand

    def teardown(self) -> None:
        try:
            with Inventory(self._disk_stand.data_dir) as inventory:
                assert list(inventory.verify()) == []
            super().teardown()
        finally:
            shutil.rmtree(self._path)


_SETTINGS = settings(
    deadline=None,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_memory_store_behaves_like_the_model() -> None:
    """Rules 1 to 5 hold in any order of events."""
    run_state_machine_as_test(
        MemoryMachine, settings=settings(_SETTINGS, max_examples=100)
    )


def test_cluster_store_behaves_like_the_model() -> None:
    """Rules 1 to 5 hold in any order of events, with objects and other nodes after a crash."""
    run_state_machine_as_test(
        ClusterMachine, settings=settings(_SETTINGS, max_examples=100)
    )


def test_disk_store_behaves_like_the_model() -> None:
    """Rules 1 to 5 hold in any order of events, with real files."""
    run_state_machine_as_test(
        DiskMachine, settings=settings(_SETTINGS, max_examples=40)
    )
