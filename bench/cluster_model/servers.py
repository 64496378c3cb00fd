"""The database, the object store and the nodes of the model.

Real: who may change an upload (:func:`~trioresume.store.port.sharing.changed_operations`), how
submissions are gathered (``LONGEST_DELAY``, ``MOST_DELAYED``, ``MOST_AT_ONCE``), how the parts of a
tail are put (:func:`~trioresume.store.objects.tails.merged_from`). The rules of a claim follow the
SQL function ``claim``. Model: how long everything takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.cluster_model.figures import Figures
from bench.cluster_model.simulation import Gate, Server, Simulation, Task
from trioresume.errors import StaleWriter
from trioresume.protocol.operation import OperationState
from trioresume.server.async_store.storage import LONGEST_DELAY, MOST_DELAYED
from trioresume.store.port import Mutation, OperationId
from trioresume.store.port.sharing import changed_operations
from trioresume.store.postgres.sharing import LOOK_AGAIN

__all__ = ["Cluster", "Node", "Refused", "Row"]

NOBODY = -1


class Refused(Exception):
    """The answer is 503, or the connection is gone: the client comes again."""


@dataclass(slots=True, eq=False)
class Row:
    """One upload, as the catalog has it, and what its owner holds of it."""

    number: int
    size: int
    rate: float
    state: OperationState = OperationState.RECEIVING
    owner: int = NOBODY
    generation: int = 0
    follower: int = NOBODY
    durable: int = 0
    """The recorded offset."""
    announced: int = 0
    chunks: int = 0
    """Bytes in chunks that the catalog names."""
    parts: list[int] = field(default_factory=list)
    """Lengths of the tail's objects."""
    held: int = 0
    """Bytes that were received and are in the memory of :attr:`writer` only."""
    writer: int = NOBODY
    """The node that believes that it still has a connection."""
    cut_at: float = 0.0
    lost: int = 0
    """Bytes that were received, and have to be sent again."""
    received: int = 0
    bouts: int = 0
    """How often a tail was begun or lost: a seal of an earlier one is refused."""
    begun: int = 0
    """Bytes that were there when the model began."""

    @property
    def id(self) -> OperationId:
        return OperationId(f"u{self.number}")


@dataclass(slots=True, eq=False)
class _Submission:
    row: Row
    mutations: Sequence[Mutation]
    gate: Gate
    error: bool = False


class Node:
    """One node: its event loop, its threads, its connections, its committer."""

    def __init__(self, cluster: Cluster, number: int, region: int) -> None:
        simulation, figures = cluster.simulation, cluster.figures
        self.number, self.region = number, region
        self.died_at: float | None = None
        self.loop = Server(simulation, "event loops of the nodes", 1)
        self.net = Server(simulation, "networks of the nodes", 1)
        self.threads = Server(
            simulation, "threads that put chunks", figures.store_threads
        )
        self.links = Server(
            simulation, "connections for questions", figures.connections
        )
        self.teller = Server(simulation, "threads that notify", 1)
        self.claims = Server(simulation, "claims", figures.claims)
        self.committer = Server(simulation, "committers", 1)
        self.queue: list[_Submission] = []
        self.due = float("inf")
        self.is_committing = False
        self.token = 0

    @property
    def servers(self) -> list[Server]:
        return [
            self.loop,
            self.net,
            self.threads,
            self.links,
            self.teller,
            self.claims,
            self.committer,
        ]


class Cluster:
    """All servers, and what passes between them."""

    def __init__(
        self, simulation: Simulation, figures: Figures, nodes: int, regions: int = 1
    ) -> None:
        self.simulation, self.figures = simulation, figures
        self.counts: Counter[str] = Counter()
        self.cpu = Server(
            simulation, "processors of the database", figures.database_cores
        )
        self.notifying = Server(simulation, "commits that notify (one at a time)", 1)
        self.puts = Server(simulation, "puts at the object store", 1)
        self.nodes = [Node(self, at, at % regions) for at in range(nodes)]
        self.down_until = 0.0

    # The database.

    def reach(self) -> Task:
        """Wait until the database answers. Raises :class:`Refused` after the node's patience."""
        away = self.down_until - self.simulation.now
        if away > self.figures.patience:
            self.counts["503"] += 1
            yield self.simulation.now + self.figures.patience
            raise Refused
        if away > 0:
            yield self.down_until

    def ask(self, node: Node, *names: str) -> Task:
        """Ask questions, one after the other, on one of the node's connections."""
        yield from self.reach()
        figures = self.figures
        for name in names:
            self.counts[f"sql {name}"] += 1
        ends = self.cpu.use(len(names) * figures.statement_cpu)
        away = len(names) * figures.round_trip
        alone = len(names) * figures.statement_cpu + away
        yield max(node.links.use(alone), ends + away)
        self.check(node)

    def tell(self, node: Node, name: str, *words: str, writes: bool = True) -> float:
        """Have the node's teller send one statement; return when it has ended."""
        figures = self.figures
        self.counts[f"sql {name}"] += 1
        ends = self.cpu.use(figures.statement_cpu)
        if words:
            ends = max(ends, self.notify(*words))
        elif writes:
            ends += figures.flush
        alone = figures.statement_cpu + figures.round_trip
        alone += figures.flush if words or writes else 0.0
        return max(node.teller.use(alone), ends + figures.round_trip)

    def notify(self, *words: str) -> float:
        """Commit with notifications: PostgreSQL lets such commits through one at a time."""
        for word in words:
            self.counts[f"notified {word}"] += 1
        return self.notifying.use(self.figures.flush)

    def check(self, node: Node) -> None:
        """Raise :class:`Refused` if the node is gone."""
        if node.died_at is not None:
            raise Refused

    def may_answer(self, number: int) -> bool:
        """Whether the database still takes a node for alive: its lease may not be over."""
        died = self.nodes[number].died_at
        return died is None or self.simulation.now < died + self.figures.lease

    def claim(self, node: Node, row: Row) -> Task:
        """Become the owner: as ``PostgresSharing.claim`` and the SQL function do."""
        yield from self.ask(node, "claim")
        if row.owner not in (NOBODY, node.number):
            if self.may_answer(row.owner):
                yield from self._claim_from(node, row)
            row.generation += 1
        row.owner = node.number

    def _claim_from(self, node: Node, row: Row) -> Task:
        """Ask the owner; take the upload by force after the timeout if it says nothing."""
        figures, now = self.figures, self.simulation.now
        self.notify("claimed")
        owner = self.nodes[row.owner]
        if owner.died_at is None:
            yield self.tell(owner, "release", "released")
            yield from self.ask(node, "claim")
            return
        # Each claim waits in a thread, and looks at the catalog every quarter of a second.
        ends = node.claims.use(figures.takeover_timeout)
        while self.simulation.now < ends:
            yield min(ends, self.simulation.now + LOOK_AGAIN)
            yield from self.ask(node, "is elsewhere", "claim")
            if not self.may_answer(row.owner):
                break
        self.counts["claims by force"] += 1
        self.counts["seconds of claims by force"] += int(self.simulation.now - now)

    # Commits.

    def submit(
        self, node: Node, row: Row, *mutations: Mutation, later: bool = False
    ) -> _Submission:
        """Have *mutations* committed with the node's next batch."""
        submission = _Submission(row, mutations, Gate(self.simulation))
        node.queue.append(submission)
        delayed = later and len(node.queue) <= MOST_DELAYED
        due = self.simulation.now + (LONGEST_DELAY if delayed else 0.0)
        if due < node.due:
            node.due = due
            if not node.is_committing:
                node.token += 1
                self.simulation.start(self._commits(node, node.token), due)
        return submission

    def hurry(self, node: Node) -> None:
        """Commit what was delayed, because somebody waits for it."""
        if node.queue and node.due > self.simulation.now and not node.is_committing:
            node.due = self.simulation.now
            node.token += 1
            self.simulation.start(self._commits(node, node.token))

    def _commits(self, node: Node, token: int) -> Task:
        if node.token != token or node.is_committing:
            return
        figures, simulation = self.figures, self.simulation
        node.is_committing = True
        while node.queue and node.due <= simulation.now and node.died_at is None:
            batch = node.queue[: figures.most_at_once]
            del node.queue[: len(batch)]
            node.due = simulation.now if node.queue else float("inf")
            try:
                yield from self.reach()
            except Refused:
                self._end(batch, is_error=True)
                continue
            now = simulation.now
            self.counts["sql apply"] += 1
            self.counts["submissions"] += len(batch)
            work = figures.commit_cpu + len(batch) * figures.submission_cpu
            ends = self.cpu.use(work) + figures.flush
            told = sum(each.row.follower != NOBODY for each in batch)
            if told:
                ends = max(ends, self.notify(*["changed"] * told))
            yield node.committer.use(ends - now + figures.round_trip)
            self._apply(node, batch)
        node.is_committing = False
        if node.queue and node.died_at is None:
            node.token += 1
            simulation.start(
                self._commits(node, node.token), max(node.due, simulation.now)
            )

    def _apply(self, node: Node, batch: list[_Submission]) -> None:
        """Refuse submissions of a node that does not own the upload, as the database does."""
        for each in batch:
            for operation in changed_operations(each.mutations):
                if operation != each.row.id:
                    raise AssertionError("a submission is of one upload")
                if each.row.owner != node.number:
                    each.error = True
                    self.counts[StaleWriter.__name__] += 1
        self._end(batch)

    def _end(self, batch: list[_Submission], *, is_error: bool = False) -> None:
        for each in batch:
            each.error = each.error or is_error
            each.gate.open()

    def committed(self, node: Node, submission: _Submission) -> Task:
        """Wait for a submission. Raises :class:`Refused` if it was not applied."""
        yield submission.gate
        self.check(node)
        if submission.error:
            raise Refused

    # The object store.

    def put(self, node: Node, size: int, kind: str) -> Task:
        """Put an object, in one of the node's threads."""
        figures = self.figures
        self.counts[f"put {kind}"] += 1
        self.counts["bytes put"] += size
        # Beyond the limit the store says SlowDown, and the node comes again: a queue.
        allowed = self.puts.use(1 / (figures.puts_per_prefix * figures.prefixes))
        seconds = figures.put_first_byte + size / figures.put_rate
        yield max(
            node.threads.use(seconds), node.net.use(size / figures.node_rate), allowed
        )
        self.check(node)

    # A node that goes away.

    def kill(self, node: Node) -> None:
        """End a node: what it held is gone, and what it was to commit does not happen."""
        node.died_at = self.simulation.now
        batch, node.queue = node.queue, []
        self._end(batch, is_error=True)
