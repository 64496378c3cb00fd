"""``python -m bench.cluster_model simulate`` and ``check``."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace

import click

from bench.cluster_model.figures import Figures
from bench.cluster_model.plan import small_plan
from bench.cluster_model.real import Unavailable, run_real
from bench.cluster_model.scenario import Result, Scenario, run_small, simulate

COMPARED = (
    "bytes put",
    "put chunk",
    "put tail",
    "cuts",
    "sql apply",
    "sql hold_chunks",
    "sql claim",
    "sql release",
    "sql record",
    "sql content",
)
NOTIFIED = "notifications"
TOLERANCE = 0.2

seed_option = click.option("--seed", default=1, show_default=True)


@click.group()
def main() -> None:
    """A model of a large cluster. Its figures are modelled, not measured."""


@main.command("simulate")
@click.option("--nodes", default=20, show_default=True)
@click.option("--open", "open_uploads", default=1_000_000, show_default=True)
@click.option("--seconds", default=30.0, show_default=True, help="Measured seconds.")
@click.option("--warm-up", default=30.0, show_default=True, help="Seconds before.")
@click.option("--threads", type=int, help="Puts at a time on a node.")
@click.option("--prefixes", type=int, help="Partitions of the bucket.")
@click.option("--chunk-mib", type=int, help="MiB of a chunk.")
@click.option("--keep-tails", is_flag=True, help="Put the tail at each cut.")
@click.option("--region-away", is_flag=True, help="A region with the database goes.")
@seed_option
def simulate_command(
    nodes: int,
    open_uploads: int,
    seconds: float,
    warm_up: float,
    threads: int | None,
    prefixes: int | None,
    chunk_mib: int | None,
    keep_tails: bool,
    region_away: bool,
    seed: int,
) -> None:
    """Simulate mobile clients on a cluster, and print what it shows."""
    figures = Figures(keeps_tail_at_cut=keep_tails)
    if threads is not None:
        figures = replace(figures, store_threads=threads)
    if prefixes is not None:
        figures = replace(figures, prefixes=prefixes)
    if chunk_mib is not None:
        figures = replace(figures, chunk_size=chunk_mib << 20)
    scenario = Scenario(
        nodes=nodes,
        open_uploads=open_uploads,
        seconds=seconds,
        warm_up=warm_up,
        seed=seed,
        region_away=region_away,
        figures=figures,
    )
    print(report(simulate(scenario)))


def report(result: Result) -> str:
    """Return *result* as text."""
    scenario = result.scenario
    seconds = scenario.seconds
    node = scenario.figures.database_connections
    lines = [
        (
            f"modelled: {scenario.nodes} nodes, {scenario.open_uploads:,} open uploads,"
            f" {result.connected:,} of them connected at first, seed {scenario.seed}"
        ),
        f"{result.events:,} events; each second of {seconds:g}:",
        f"  received           {result.received / seconds / 1e9:10.2f} GB",
        f"  sent again         {result.lost / max(1, result.received):10.2%} of it",
        f"  uploads ended      {result.ended / seconds:10.1f}",
        f"  cuts               {result.rate('cuts'):10.1f}",
        (
            f"  puts               {result.rate('put '):10.1f}"
            f"  (tails {result.rate('put tail'):.1f})"
        ),
        f"  statements         {result.rate('sql '):10.1f}",
        (
            f"  commits of batches {result.rate('sql apply'):10.1f}"
            f"  (submissions {result.rate('submissions'):.1f})"
        ),
        f"  notifications      {result.rate('notified '):10.1f}",
        f"  answers 503        {result.rate('503'):10.1f}",
        f"  claims by force    {result.rate('claims by force'):10.1f}",
        f"  until data flows   {result.waits[0]:10.3f} s, p99 {result.waits[1]:.3f} s",
        f"  connections to the database: up to {scenario.nodes * node}",
        (
            f"US$ of requests for a TiB: {result.requests_price:.2f};"
            f" of storage for a TiB and month: {result.storage_price:.2f}"
        ),
        "loads, as a share of the limit (mean seconds in the queue):",
    ]
    for name, load in sorted(result.loads.items(), key=lambda each: -each[1]):
        lines.append(f"  {load:8.1%}  {name} ({result.queues[name]:.4f})")
    return "\n".join(lines)


@main.command("check")
@click.option("--nodes", default=2, show_default=True)
@click.option("--uploads", default=16, show_default=True)
@click.option("--clients", default=2, show_default=True)
@seed_option
def check_command(nodes: int, uploads: int, clients: int, seed: int) -> None:
    """Compare the model with a real cluster on this machine, under the same load.

    Needs PostgreSQL and versitygw. Ends with 1 if a figure differs by more than 20 %.
    """
    plans = small_plan(seed, uploads, nodes)
    # The servers are on this machine: no network, and a disk instead of a standby.
    near = Figures(round_trip=0.0005, put_first_byte=0.02, put_rate=400e6)
    modelled = run_small(plans, nodes, clients=clients, figures=near)
    try:
        real = run_real(plans, nodes, clients=clients, seed=seed)
    except Unavailable as exc:
        raise click.ClickException(str(exc)) from exc
    text, is_right = compared(modelled, real)
    print(text)
    sys.exit(0 if is_right else 1)


def compared(modelled: Counter[str], real: Counter[str]) -> tuple[str, bool]:
    """Return a table of both, and whether each figure is within the tolerance."""
    is_right = True
    lines = [f"{'':20} {'model':>12} {'real':>12}"]
    rows = [(name, modelled[name], real[name]) for name in COMPARED]
    rows.append((NOTIFIED, _notified(modelled), _notified(real)))
    for name, ours, theirs in rows:
        close = abs(ours - theirs) <= TOLERANCE * max(theirs, 1)
        is_right = is_right and close
        lines.append(f"{name:20} {ours:12} {theirs:12}{'' if close else '  differs'}")
    lines += [f"{name:20} {'':12} {real[name]:12}" for name in ("errors", "moves")]
    return "\n".join(lines), is_right


def _notified(counts: Counter[str]) -> int:
    return sum(count for name, count in counts.items() if name.startswith("notified "))


if __name__ == "__main__":
    main()
