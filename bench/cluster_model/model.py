"""Clients, and the requests by which they upload: each step as a node performs it.

The steps of a request were read from ``server/shared`` and ``store/cluster_store.py``. The counts
of statements, notifications and puts are compared with a real cluster's by
``python -m bench.cluster_model check``. The life of an upload is the real table's
(:func:`trioresume.protocol.operation.step`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.cluster_model.plan import Habits, UploadPlan
from bench.cluster_model.servers import NOBODY, Cluster, Node, Refused, Row
from bench.cluster_model.simulation import Gate, Task
from trioresume.protocol.operation import (
    CallPolicy,
    Effect,
    Event,
    OperationState,
    step,
)
from trioresume.store.objects.tails import merged_from
from trioresume.store.port import SealChunk, SetState, request_key
from trioresume.store.port.recipes import wrap_hash

__all__ = ["Bout", "Model", "mobile", "scripted"]

_DIGEST = wrap_hash(bytes(32))
LINGER = 60.0
"""Seconds until a node ends a connection that has silently gone (an assumption)."""


@dataclass(frozen=True, slots=True)
class Bout:
    """What a client does next."""

    away: float
    node: int | None
    """None: any that lives."""
    sends: float
    """Bytes until the connection is cut."""
    is_silent: bool
    """Whether the node does not notice the cut."""


Bouts = Iterator[Bout]


def mobile(habits: Habits, dice: random.Random, rate: float, first: float) -> Bouts:
    """Yield what a mobile client does, for ever. It begins after *first* seconds."""
    away = first
    while True:
        sends = max(1.0, rate * dice.expovariate(1 / habits.mean_connected))
        yield Bout(away, None, sends, dice.random() < habits.silent_share)
        away = habits.away(dice)


def scripted(plan: UploadPlan) -> Bouts:
    """Yield what *plan* says."""
    last = len(plan.bouts) - 1
    for at, bout in enumerate(plan.bouts):
        sends = float("inf") if at == last else bout.sends
        yield Bout(plan.away if at else 0.0, bout.node, sends, bout.is_silent)
    while True:  # only after an error
        yield Bout(plan.away, plan.bouts[-1].node, float("inf"), False)


class Model:
    """Clients that upload to a cluster."""

    def __init__(self, cluster: Cluster, dice: random.Random) -> None:
        self.cluster, self.dice = cluster, dice
        self.simulation = cluster.simulation
        self.rows: list[Row] = []
        self.ended = 0
        self.ended_bytes = 0
        self.on_end: Callable[[], None] | None = None
        self.waits: list[float] = []
        """Seconds from each return of a client until it may send."""

    def new_row(self, size: int, rate: float) -> Row:
        row = Row(len(self.rows), size, rate)
        self.rows.append(row)
        return row

    def upload(self, row: Row, bouts: Bouts, *, is_new: bool = True) -> Task:
        """Upload *row* until all of it is there."""
        simulation, cluster = self.simulation, self.cluster
        retry: float | None = None
        while row.state is not OperationState.DONE:
            bout = next(bouts)
            yield simulation.now + (bout.away if retry is None else retry)
            retry = None
            node = self._node(bout)
            began = simulation.now
            try:
                cluster.check(node)
                if is_new:
                    yield from self._create(node, row)
                    is_new = False
                else:
                    yield from self._head(node, row)
                yield from self._begin_patch(node, row)
                self.waits.append(simulation.now - began)
                yield from self._receive(node, row, bout)
            except Refused:
                self._lose(row)
                retry = cluster.figures.retry_after * self.dice.uniform(0.5, 1.5)
        self.ended += 1
        self.ended_bytes += row.size
        if self.on_end is not None:
            self.on_end()

    def _node(self, bout: Bout) -> Node:
        nodes = self.cluster.nodes
        if bout.node is not None:
            return nodes[bout.node]
        living = [node for node in nodes if node.died_at is None]
        return living[int(self.dice.random() * len(living))]

    # Requests.

    def _create(self, node: Node, row: Row) -> Task:
        row.owner = node.number
        made = self.cluster.submit(node, row, SetState(row.id, row.state))
        yield from self.cluster.committed(node, made)
        self._release(node, row)

    def _head(self, node: Node, row: Row) -> Task:
        """Tell the offset; a writer that is still there ends first, wherever it is."""
        cluster = self.cluster
        if row.writer != NOBODY and self.simulation.now - row.cut_at > LINGER:
            self._leave(cluster.nodes[row.writer], row)
        writer = row.writer
        if writer == NOBODY or cluster.nodes[writer].died_at is not None:
            if writer == NOBODY or not cluster.may_answer(writer):
                yield from self._take(node, row)
            else:
                # It is asked, says nothing, and what is recorded is told.
                yield cluster.tell(node, "follow")
                yield from cluster.ask(node, "record", "record")
                yield cluster.tell(node, "want", "wanted")
                yield self.simulation.now + cluster.figures.ask_timeout
                cluster.tell(node, "unfollow")
            self._lose(row)
        elif writer == node.number:
            yield from cluster.ask(node, "record")
            yield from self._flush(node, row)
        else:
            yield from cluster.ask(node, "record")
            yield cluster.tell(node, "follow")
            row.follower = node.number
            yield from cluster.ask(node, "record")
            yield cluster.tell(node, "want", "wanted")
            owner = cluster.nodes[writer]
            yield from self._flush(owner, row)
            # The writer's end is told, and then the position that was asked for.
            cluster.tell(owner, "tell", "told")
            yield cluster.tell(owner, "tell", "told")
            self._release(owner, row)
            yield from cluster.ask(node, "record", "content", "record", "content")
            row.follower = NOBODY
            cluster.tell(node, "unfollow")
        row.announced = row.durable
        if row.owner == node.number:
            self._release(node, row)

    def _take(self, node: Node, row: Row) -> Task:
        """Look, claim, and look again as the owner."""
        yield from self.cluster.ask(node, "record", "content")
        yield from self.cluster.claim(node, row)
        yield from self.cluster.ask(node, "record", "content")

    def _begin_patch(self, node: Node, row: Row) -> Task:
        yield from self._take(node, row)
        if row.parts:  # the tail is read from its objects
            self.cluster.counts["get"] += len(row.parts)
            size = row.durable - row.chunks
            figures = self.cluster.figures
            yield node.threads.use(figures.put_first_byte + size / figures.put_rate)
            self.cluster.check(node)

    def _release(self, node: Node, row: Row) -> None:
        """Own it no longer: the next request is most likely on another node."""
        told = () if row.follower == NOBODY else ("changed",)
        self.cluster.tell(node, "release", *told)
        if row.owner == node.number:
            row.owner = NOBODY

    def _lose(self, row: Row) -> None:
        """What only a node's memory had is gone."""
        row.lost += row.held
        row.held = 0
        row.bouts += 1
        row.writer = NOBODY

    def _leave(self, node: Node, row: Row) -> None:
        """The node notices that the connection has ended."""
        if node.died_at is None:
            self._release(node, row)
        self._lose(row)

    # Content.

    def _flush(self, node: Node, row: Row) -> Task:
        """Put the bytes that are no chunk, and record the offset."""
        cluster = self.cluster
        end = row.durable + row.held
        new = end - row.chunks - sum(row.parts)
        if new > 0:
            kept = merged_from(row.parts, new)
            size = new + sum(row.parts[kept:])
            yield from cluster.put(node, size, "tail")
            parts = [*row.parts[:kept], size]
            # The submission of a tail needs its owner, like this one.
            recorded = cluster.submit(node, row, SetState(row.id, row.state))
            yield from cluster.committed(node, recorded)
            if row.held:
                row.parts = parts
                row.durable, row.held = row.durable + row.held, 0
        row.writer = NOBODY

    def _receive(self, node: Node, row: Row, bout: Bout) -> Task:
        """Receive the body of one PATCH, and put each chunk as it is full."""
        cluster, simulation = self.cluster, self.simulation
        figures = cluster.figures
        left = min(bout.sends, row.size - row.durable)
        if left < row.size - row.durable:
            left = max(0, min(int(left), row.size - row.durable - 1))
        left = int(left)
        row.writer = node.number
        row.bouts += 1
        tail = row.bouts
        sealing: _Sealing | None = None
        sealings: list[_Sealing] = []
        position = row.durable
        while left:
            count = min(left, figures.chunk_size - position % figures.chunk_size)
            yield simulation.now + count / row.rate
            yield max(
                node.loop.use(count * figures.receive_cpu),
                node.net.use(count / figures.node_rate),
            )
            cluster.check(node)
            position += count
            left -= count
            row.held += count
            row.received += count
            if position % figures.chunk_size == 0 and position < row.size:
                if sealing is not None:
                    yield sealing.put
                sealing = _Sealing(Gate(simulation), Gate(simulation), tail)
                sealings.append(sealing)
                index = position // figures.chunk_size - 1
                simulation.start(self._seal(node, row, index, sealing))
        if position == row.size:
            yield from self._complete(node, row, sealings)
            return
        cluster.counts["cuts"] += 1
        for each in sealings:
            cluster.hurry(node)
            yield each.named
            cluster.check(node)
        if row.bouts != tail:
            raise Refused
        row.cut_at = simulation.now
        if bout.is_silent:
            return
        change = step(row.state, Event.CUT)
        if Effect.KEEP in change.after and figures.keeps_tail_at_cut:
            yield from self._flush(node, row)
        self._leave(node, row)

    def _seal(self, node: Node, row: Row, index: int, sealing: _Sealing) -> Task:
        cluster = self.cluster
        size = cluster.figures.chunk_size
        try:
            yield from cluster.ask(node, "hold_chunks")
            yield from cluster.put(node, size, "chunk")
            sealing.put.open()
            seal = SealChunk(request_key(row.id), index, _DIGEST, size)
            named = cluster.submit(node, row, seal, later=True)
            yield from cluster.committed(node, named)
            if row.bouts != sealing.bout:
                raise Refused  # the store refuses a seal of a tail that was discarded
            self._name(row, size)
        except Refused:
            sealing.failed = True
            if row.bouts == sealing.bout:
                row.bouts += 1  # the tail is broken: no later chunk may be named
        finally:
            sealing.put.open()
            sealing.named.open()

    def _name(self, row: Row, size: int) -> None:
        """The catalog names a chunk: it has the tail's bytes, and the tail's objects can go."""
        new = row.chunks + size - row.durable
        assert 0 <= new <= row.held, "a chunk that was not received"
        row.chunks += size
        row.durable, row.held = row.durable + new, row.held - new
        row.parts = []

    def _complete(self, node: Node, row: Row, sealings: list[_Sealing]) -> Task:
        """Seal the rest, and have the file service take it: one commit."""
        cluster = self.cluster
        for each in sealings:
            cluster.hurry(node)
            yield each.named
            if each.failed:
                raise Refused
        change = step(row.state, Event.CONTENT_ENDED)
        rest = row.size - row.chunks
        yield from cluster.ask(node, "hold_chunks")
        yield from cluster.put(node, rest, "chunk")
        policy = CallPolicy.TRANSACTIONAL
        change = step(change.state, Event.STARTED, policy)
        change = step(change.state, Event.ANSWERED, policy)
        assert Effect.COMMIT in change.before
        seal = SealChunk(request_key(row.id), row.size - 1, _DIGEST, rest)
        ended = cluster.submit(node, row, seal, SetState(row.id, change.state))
        yield from cluster.committed(node, ended)
        row.state = change.state
        row.durable, row.held = row.durable + row.held, 0
        row.chunks += rest
        row.announced = row.size
        row.parts = []
        row.writer = NOBODY
        self._release(node, row)

    # What must hold.

    def audit(self) -> None:
        """Raise :class:`AssertionError` unless each byte is accounted for."""
        for row in self.rows:
            assert row.announced <= row.durable, f"{row.id}: announced and not durable"
            assert row.durable == row.chunks + sum(row.parts), f"{row.id}: objects"
            known = row.begun + row.received
            assert known == row.durable + row.held + row.lost, f"{row.id}: bytes"
            if row.state is OperationState.DONE:
                assert row.durable == row.chunks == row.size, f"{row.id}: not whole"


@dataclass(slots=True, eq=False)
class _Sealing:
    """A chunk on its way."""

    put: Gate
    named: Gate
    bout: int
    failed: bool = False
