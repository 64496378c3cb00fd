"""``python -m bench.gate``: see :mod:`bench.gate`."""

from __future__ import annotations

import sys
import tempfile
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
import trio

from bench.gate import counts, syscalls, trace
from bench.options import work_dir_option
from bench.peers import find
from bench.server import Server
from trioresume.bench import Protocol, Settings, Sizes, Verify, run

__all__ = ["BOUNDS", "judge", "main", "render"]

BOUNDS = Path(__file__).with_name("bounds.toml")
SLACK = 1.1
"""A new bound is the measured figure times this."""
SLACK_OF_SYSTEM_CALLS = 1.3
"""Wider, because an idle machine wakes the loop and its threads more often, each time for
less work, than a busy one."""
SLACK_PER_MIB = 1.3
"""Wider, because these figures depend on how many bytes a socket has at each read."""
SLACK_RESIDENT = 1.3
"""Wider, because the system counts pages, and an allocator keeps some that are free."""
BLOCKS_LEFT = 5.0
"""A fixed bound: caches that fill make this figure vary around 0, and a leak exceeds it."""
FAR_BELOW = 0.7
"""A figure below this part of its bound asks for a lower bound."""
RATIO = "CPU, in bare loops"
RATIO_SLACK = 1.5
UPLOADS = 16
SIZE = 16 << 20
ROUNDS = 3

HEAD = """\
# The bounds that `python -m bench.gate` checks; made by `python -m bench.gate --write`.
# A commit that raises a bound says in its message what that buys.
"""


def judge(
    figures: Mapping[str, float], bounds: Mapping[str, float]
) -> tuple[list[str], bool]:
    """Return a line for each bound, and whether all bounds are kept.

    A bound without a figure, and a figure without a bound, count as failures.
    """
    lines, kept = [], True
    for name, bound in bounds.items():
        figure = figures.get(name)
        if figure is None:
            lines.append(f"{name:28} {'not measured':>12}  at most {bound:g}: FAILED")
            kept = False
            continue
        line = f"{name:28} {figure:12.1f}  at most {bound:g}"
        if figure > bound:
            line += ": FAILED"
            kept = False
        elif figure < FAR_BELOW * bound and not _wavers(name):
            line += ": far below its bound, lower the bound"
        lines.append(line)
    for name in figures.keys() - bounds.keys():
        lines.append(f"{name:28} {figures[name]:12.1f}  without a bound: FAILED")
        kept = False
    return lines, kept


def _wavers(name: str) -> bool:
    if name.startswith("resident"):
        return True
    return name.startswith("blocks left") or name.endswith("MiB") or name == RATIO


def render(figures: Mapping[str, float]) -> str:
    """Return the text of bounds.toml for *figures*."""
    lines = [HEAD]
    for name, figure in figures.items():
        if name.startswith("blocks left"):
            bound = BLOCKS_LEFT
        elif name == RATIO:
            bound = round(RATIO_SLACK * figure, 2)
        elif name.endswith("MiB"):
            bound = float(round(SLACK_PER_MIB * figure))
        elif name.startswith("resident"):
            bound = float(round(SLACK_RESIDENT * figure))
        elif name.startswith("system calls"):
            bound = float(round(SLACK_OF_SYSTEM_CALLS * figure))
        else:
            bound = float(round(SLACK * figure))
        lines.append(f'"{name}" = {bound:g}\n')
    return "".join(lines)


def _load(server: Server, number: int) -> float:
    """Return the CPU seconds that *server* uses for some uploads."""
    settings = Settings(
        url=server.url,
        protocol=Protocol.PLAIN,
        seed=number + 1,
        at_once=UPLOADS,
        total=UPLOADS,
        sizes=Sizes(minimum=SIZE, maximum=SIZE),
        verify=Verify.LENGTH,
        method=None if server.peer.plain_method == "POST" else "PUT",
    )
    before = server.busy()
    results = trio.run(partial(run, settings))
    if not results.ok:
        raise click.ClickException(f"uploads into {server.peer.name} failed")
    return server.busy() - before


def cpu_ratio(directory: Path) -> float:
    """Return the best of a few ratios: other programs can only make a ratio worse."""
    with (
        Server(find("raw-write"), directory / "bare") as bare,
        Server(find("trioresume"), directory / "own") as own,
    ):
        pairs = [(_load(own, n), _load(bare, n)) for n in range(ROUNDS)]
    return min(mine / yardstick for mine, yardstick in pairs)


@click.command(help=sys.modules["bench.gate"].__doc__)
@click.option("--write", is_flag=True, help="Make new bounds from the figures.")
@click.option("--trace", "is_tracing", is_flag=True, help="Only follow three requests.")
@click.option("--names", is_flag=True, help="List the functions that they enter.")
@work_dir_option
def main(write: bool, is_tracing: bool, names: bool, work_dir: Path | None) -> None:
    bounds: dict[str, float] = {}
    if BOUNDS.exists():
        bounds = tomllib.loads(BOUNDS.read_text(encoding="utf-8"))
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        directory = Path(name)
        ways = trace.trace(directory)
        for request, way in ways.items():
            figures |= way.figures(request)
            if names:
                click.echo("\n".join([f"{request}:", *way.functions, ""]))
        if is_tracing:
            click.echo("\n".join([*trace.table(ways), ""]))
            bounds = {n: b for n, b in bounds.items() if n in figures}
            lines, kept = judge(figures, bounds)
            click.echo("\n".join(lines))
            sys.exit(0 if kept else 1)
        figures |= counts.count(directory)
        if syscalls.available():
            figures |= syscalls.count(directory)
        elif write:
            raise click.ClickException("bounds for system calls need strace")
        else:
            click.echo("system calls are not counted: strace does not work here")
            bounds = {n: b for n, b in bounds.items() if "system calls" not in n}
        figures[RATIO] = cpu_ratio(directory)
    if write:
        BOUNDS.write_text(render(figures), encoding="utf-8")
        click.echo(BOUNDS.read_text(encoding="utf-8"), nl=False)
        return
    lines, kept = judge(figures, bounds)
    click.echo("\n".join(lines))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
