"""A large cluster under the load of mobile clients, and what a run of it shows."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.cluster_model.figures import Figures, Prices
from bench.cluster_model.model import Model, mobile, scripted
from bench.cluster_model.plan import Habits, UploadPlan
from bench.cluster_model.servers import Cluster
from bench.cluster_model.simulation import Server, Simulation, Task

__all__ = ["Result", "Scenario", "run_small", "simulate"]

TIB = 1 << 40


@dataclass(frozen=True, slots=True)
class Scenario:
    """The settings of one simulation. Times are in seconds."""

    nodes: int = 20
    open_uploads: int = 1_000_000
    warm_up: float = 30.0
    seconds: float = 30.0
    """Measured, after the warm-up."""
    seed: int = 1
    region_away: bool = False
    """Half of the nodes, and the database that takes writes, go away after the warm-up."""
    figures: Figures = field(default_factory=Figures)
    habits: Habits = field(default_factory=Habits)
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True, slots=True)
class Result:
    """What happened in the measured seconds."""

    scenario: Scenario
    events: int
    connected: int
    counts: Counter[str]
    loads: dict[str, float]
    """The load of the busiest server of each kind. 1 means that it can take no more."""
    queues: dict[str, float]
    """Mean seconds in the queue of each kind."""
    received: int
    lost: int
    ended: int
    waits: tuple[float, ...]
    """The median and the 99th of a hundred, in seconds, from a client's return to its data."""

    def rate(self, *names: str) -> float:
        """How often a second, of all that is counted under *names*, or that begins with them."""
        found = sum(
            count for name, count in self.counts.items() if name.startswith(names)
        )
        return found / self.scenario.seconds

    @property
    def bottleneck(self) -> str:
        """The server that is closest to its limit, or furthest beyond it."""
        return max(self.loads, key=lambda name: self.loads[name])

    @property
    def requests_price(self) -> float:
        """US dollars of requests to the object store, for a TiB of content."""
        prices, counts = self.scenario.prices, self.counts
        puts = counts["put chunk"] + counts["put tail"]
        paid = puts * prices.put + counts["get"] * prices.get
        return paid * TIB / max(1, self.received - self.lost)

    @property
    def storage_price(self) -> float:
        """US dollars a month for a TiB that lies in the store."""
        return self.scenario.prices.gb_month * TIB / 1e9


def simulate(scenario: Scenario) -> Result:
    """Run *scenario*. Equal scenarios give equal results."""
    dice = random.Random(scenario.seed)
    simulation = Simulation()
    cluster = Cluster(
        simulation, scenario.figures, scenario.nodes, 2 if scenario.region_away else 1
    )
    model = Model(cluster, dice)
    connected = _populate(model, scenario, dice)

    def begin_another() -> None:
        habits = scenario.habits
        row = model.new_row(habits.size(dice), habits.rate(dice))
        bouts = mobile(habits, dice, row.rate, 0.0)
        simulation.start(model.upload(row, bouts))

    model.on_end = begin_another
    simulation.run(scenario.warm_up)
    servers = [cluster.cpu, cluster.notifying, cluster.puts]
    servers += [each for node in cluster.nodes for each in node.servers]
    for server in servers:
        server.forget()
    cluster.counts.clear()
    model.waits.clear()
    before = _sums(model)
    if scenario.region_away:
        simulation.start(_region_goes(cluster))
    simulation.run(scenario.warm_up + scenario.seconds)
    model.audit()
    after = _sums(model)
    waits = sorted(model.waits) or [0.0]
    return Result(
        scenario,
        simulation.events,
        connected,
        Counter(cluster.counts),
        _worst(servers, lambda server: server.load(scenario.seconds)),
        _worst(servers, lambda server: server.waited / max(1, server.used)),
        after[0] - before[0],
        after[1] - before[1],
        after[2] - before[2],
        (waits[len(waits) // 2], waits[len(waits) * 99 // 100]),
    )


def _populate(model: Model, scenario: Scenario, dice: random.Random) -> int:
    """Begin in the middle: return how many uploads are connected.

    Who sleeps beyond the end of the run is not made: the catalog has its rows, and nothing
    happens to them.
    """
    habits, end = scenario.habits, scenario.warm_up + scenario.seconds
    short = (
        habits.short_share * habits.short_median * math.exp(habits.short_sigma**2 / 2)
    )
    is_short = short / habits.mean_away
    connected = 0
    for _ in range(scenario.open_uploads):
        if dice.random() < habits.connected_share:
            connected += 1
            first = dice.uniform(0, scenario.warm_up / 2)
        else:
            # The rest of an absence that is seen by chance: long ones are seen more often.
            is_short_one = dice.random() < is_short
            median = habits.short_median if is_short_one else habits.long_median
            sigma = habits.short_sigma if is_short_one else habits.long_sigma
            whole = median * math.exp(sigma**2 + sigma * dice.gauss(0, 1))
            first = whole * dice.random()
        if first > end:
            continue
        sigma = habits.size_sigma
        size = habits.median_size * math.exp(sigma**2 + sigma * dice.gauss(0, 1))
        row = model.new_row(max(1, min(habits.most_size, int(size))), habits.rate(dice))
        chunk = scenario.figures.chunk_size
        row.begun = int(dice.random() * row.size) // chunk * chunk
        row.durable = row.chunks = row.announced = row.begun
        bouts = mobile(habits, dice, row.rate, first)
        model.simulation.start(model.upload(row, bouts, is_new=False))
    return connected


def _region_goes(cluster: Cluster) -> Task:
    cluster.down_until = cluster.simulation.now + cluster.figures.failover
    for node in cluster.nodes:
        if node.region == 1:
            cluster.kill(node)
    yield cluster.simulation.now


def _sums(model: Model) -> tuple[int, int, int]:
    received = sum(row.received for row in model.rows)
    return received, sum(row.lost for row in model.rows), model.ended


def _worst(
    servers: Sequence[Server], of: Callable[[Server], float]
) -> dict[str, float]:
    worst: dict[str, float] = {}
    for server in servers:
        worst[server.name] = max(worst.get(server.name, 0.0), of(server))
    return worst


def run_small(
    plans: Sequence[UploadPlan], nodes: int, *, clients: int, figures: Figures
) -> Counter[str]:
    """Return what the model counts for *plans*, *clients* of them at a time."""
    simulation = Simulation()
    cluster = Cluster(simulation, figures, nodes)
    model = Model(cluster, random.Random(0))
    waiting = list(reversed(plans))

    def begin_another() -> None:
        if waiting:
            plan = waiting.pop()
            row = model.new_row(plan.size, plan.rate)
            simulation.start(model.upload(row, scripted(plan)))

    model.on_end = begin_another
    for _ in range(clients):
        begin_another()
    simulation.run(1e6)
    model.audit()
    assert model.ended == len(plans), "an upload did not end"
    return cluster.counts
