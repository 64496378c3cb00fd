"""No chunk that is named is ever deleted: two nodes, a slow object store, crashes at each step.

The nodes' steps are those of the store: hold, put, commit; condemn, delete, forget; and the
sweep. Each step is a rule of its own, so anything may happen in between. A request to the
object store arrives at any time after it was sent, in any order, also after its sender died.
A node whose lease ended may go on as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.store.helpers import CHUNK, record
from trioresume.store.objects.bucket import CHUNKS, chunk_name, chunk_of
from trioresume.store.objects.collection import Sweep, collect_objects
from trioresume.store.port import (
    ChunkObject,
    Collected,
    CreateOperation,
    EndOperation,
    OperationId,
    SealChunk,
    request_key,
)
from trioresume.store.port.recipes import Digest, digest_of
from trioresume.testing.memory_catalog import (
    MemoryBucket,
    MemoryCatalog,
    MemoryCatalogNode,
)

_PICK = st.integers(0, 10**6)
_DATA = [bytes([number]) * CHUNK for number in range(2)]


@dataclass
class Put:
    """A chunk that a node wants to name, and how far it is."""

    data: bytes
    digest: Digest
    chunk: ChunkObject
    is_stored: bool = False


@dataclass
class Request:
    """What is on its way to the object store."""

    name: str
    put: Put | None = None
    """None for a deletion."""
    deletion: Deletion | None = None


@dataclass
class Deletion:
    """Condemned chunks of one collection, and the requests that are not answered yet."""

    chunks: list[ChunkObject]
    waits_for: int = 0


@dataclass
class Node:
    catalog: MemoryCatalogNode
    puts: list[Put] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)


class CollectionMachine(RuleBasedStateMachine):
    numbers_are_used_again = False

    def __init__(self) -> None:
        super().__init__()
        self.catalog = MemoryCatalog(chunk_size=CHUNK)
        self.bucket = MemoryBucket()
        self.nodes = [Node(self.catalog.join()) for _ in range(2)]
        self.on_the_way: list[Request] = []
        self.operations: list[OperationId] = []
        self.created = 0

    def node(self, number: int) -> Node:
        return self.nodes[number % len(self.nodes)]

    # A writer.

    @rule(number=_PICK, which=st.integers(0, len(_DATA) - 1))
    def hold(self, number: int, which: int) -> None:
        node, data = self.node(number), _DATA[which]
        (chunk,) = node.catalog.hold([digest_of(data)])
        if self.numbers_are_used_again:
            chunk = ChunkObject(chunk.digest, 0)
            self.catalog._objects[chunk.digest] = chunk
            self.catalog._holds[node.catalog, chunk.digest] = chunk
        node.puts.append(Put(data, chunk.digest, chunk))

    @rule(number=_PICK, which=_PICK)
    def send_put(self, number: int, which: int) -> None:
        puts = self.node(number).puts
        if puts:
            put = puts[which % len(puts)]
            self.on_the_way.append(Request(chunk_name(put.chunk), put=put))

    @rule(number=_PICK, which=_PICK)
    def name(self, number: int, which: int) -> None:
        """Commit, once the object store has answered."""
        node = self.node(number)
        stored = [put for put in node.puts if put.is_stored]
        if not stored:
            return
        put = stored[which % len(stored)]
        node.puts.remove(put)
        self.created += 1
        operation = OperationId(f"op{self.created}")
        seal = SealChunk(request_key(operation), 0, put.digest, len(put.data))
        (refusal,) = node.catalog.apply([[CreateOperation(record(operation)), seal]])
        if refusal is None:
            self.operations.append(operation)

    @rule(which=_PICK)
    def release(self, which: int) -> None:
        if self.operations:
            ended = self.operations.pop(which % len(self.operations))
            self.nodes[0].catalog.apply([[EndOperation(ended, 1.0)]])

    # The object store.

    @rule(which=_PICK)
    def arrive(self, which: int) -> None:
        if self.on_the_way:
            self.deliver(self.on_the_way.pop(which % len(self.on_the_way)))

    @rule(which=_PICK)
    def repeat(self, which: int) -> None:
        """A network may deliver a request twice, if its sender tried again."""
        if self.on_the_way:
            request = self.on_the_way[which % len(self.on_the_way)]
            self.on_the_way.append(Request(request.name, request.put))

    def deliver(self, request: Request) -> None:
        if request.put is not None:
            self.bucket.put_absent(request.name, request.put.data)
            request.put.is_stored = True
            return
        self.bucket.delete([request.name])
        if request.deletion is not None:
            request.deletion.waits_for -= 1

    # A collector.

    @rule(number=_PICK, limit=st.integers(1, 3))
    def condemn(self, number: int, limit: int) -> None:
        node = self.node(number)
        node.catalog.release_rows(10)
        chunks = [chunk for chunk, _ in node.catalog.condemn(limit)]
        deletion = Deletion(chunks, len(chunks))
        node.deletions.append(deletion)
        self.on_the_way += [
            Request(chunk_name(chunk), deletion=deletion) for chunk in chunks
        ]

    @rule(number=_PICK)
    def forget(self, number: int) -> None:
        node = self.node(number)
        for deletion in node.deletions:
            if deletion.waits_for <= 0:
                node.catalog.forget(deletion.chunks)
        node.deletions = [each for each in node.deletions if each.waits_for > 0]

    @rule(number=_PICK)
    def sweep(self, number: int) -> None:
        """The look at the catalog, and the deletions that follow some day."""
        chunks = [chunk_of(each.name) for each in self.bucket.list(CHUNKS, "", 100)]
        listed = [chunk for chunk in chunks if chunk is not None]
        known = self.node(number).catalog.known_objects(listed)
        self.on_the_way += [
            Request(chunk_name(chunk)) for chunk in listed if chunk not in known
        ]

    # Faults.

    @rule(number=_PICK)
    def crash(self, number: int) -> None:
        """A node dies with all it had begun; another one takes its place."""
        at = number % len(self.nodes)
        self.nodes[at].catalog.die()
        self.nodes[at] = Node(self.catalog.join())

    @rule(number=_PICK)
    def end_lease(self, number: int) -> None:
        """A node is taken for dead, and does not know it."""
        self.catalog.end_holds(self.node(number).catalog)

    # What holds.

    @invariant()
    def named_chunks_are_there(self) -> None:
        for digest in self.catalog.named_chunks():
            chunk = self.catalog.objects([digest])[digest]
            data = self.bucket.objects.get(chunk_name(chunk))
            assert data is not None, "a chunk was deleted that a content names"
            assert digest_of(data) == digest

    def teardown(self) -> None:
        """At the end nothing leaks."""
        while self.on_the_way:
            self.deliver(self.on_the_way.pop())
        for node in self.nodes:
            node.catalog.die()
        last = self.catalog.join()
        for ended in self.operations:
            last.apply([[EndOperation(ended, 1.0)]])
        while collect_objects(last, self.bucket, 10) != Collected():
            pass
        sweep = Sweep(last, self.bucket)
        while sweep.advance(10) != Collected():
            pass
        assert self.bucket.objects == {}


class NumberlessMachine(CollectionMachine):
    """The same with a chunk's object always under the same name."""

    numbers_are_used_again = True


_SETTINGS = settings(
    deadline=None,
    stateful_step_count=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_no_named_chunk_is_deleted() -> None:
    """In any order of steps, delays and crashes."""
    run_state_machine_as_test(
        CollectionMachine, settings=settings(_SETTINGS, max_examples=120)
    )


def _come_back_while_a_deletion_is_delayed(machine: CollectionMachine) -> None:
    def put_and_name() -> None:
        machine.hold(0, 0)
        machine.send_put(0, 0)
        machine.arrive(len(machine.on_the_way) - 1)
        machine.name(0, 0)
        machine.named_chunks_are_there()

    put_and_name()
    machine.release(0)
    machine.condemn(0, 1)  # this request is delayed, and its node dies
    machine.crash(0)
    machine.condemn(1, 1)  # another node does the same again
    machine.arrive(1)
    machine.forget(1)
    put_and_name()
    machine.arrive(0)
    machine.named_chunks_are_there()
    machine.teardown()


def test_a_delayed_deletion_does_not_meet_a_chunk_that_came_back() -> None:
    """Its object has another number by then."""
    _come_back_while_a_deletion_is_delayed(CollectionMachine())


def test_a_delayed_deletion_would_meet_a_chunk_of_the_same_name() -> None:
    """If names were used again. So the model sees what the numbers are for."""
    with pytest.raises(AssertionError, match="deleted that a content names"):
        _come_back_while_a_deletion_is_delayed(NumberlessMachine())
