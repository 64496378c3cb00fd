"""Uploads into trioresume beside the bare loop: speed, CPU time, peak memory.

A round measures every target at every n; within a round the order is drawn anew,
targets of the same n next to each other, because a machine's speed drifts and
only neighbours compare. The first round is thrown away.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from bench.content import Buffer
from bench.load import LoadFailed
from bench.measure import Bench, Run, VerificationFailed
from bench.options import (
    ByteSize,
    durability_option,
    human,
    machine,
    raise_file_limit,
    work_dir_option,
)
from bench.server import ServerFailed, Target, raw_loop, trioresume
from bench.summary import figures, table
from bench.workspace import Workspace

__all__ = ["main", "rounds"]


def order(
    targets: Sequence[Target], counts: Sequence[int], dice: random.Random
) -> Iterator[tuple[int, Target]]:
    """The runs of one round."""
    for n in dice.sample(counts, len(counts)):
        for target in dice.sample(targets, len(targets)):
            yield n, target


def rounds(
    measure: Callable[[Target, int], Run],
    targets: Sequence[Target],
    counts: Sequence[int],
    *,
    number: int,
    seed: int,
    failed: Callable[[str], None],
) -> list[list[Run]]:
    """*number* rounds after one that is discarded; a run that fails is told and left out."""
    dice = random.Random(seed)
    kept: list[list[Run]] = []
    for index in range(number + 1):
        runs: list[Run] = []
        for n, target in order(targets, counts, dice):
            try:
                runs.append(measure(target, n))
            except (LoadFailed, ServerFailed, VerificationFailed, OSError) as exc:
                failed(
                    f"round {index}, {target.name}, n = {n}: {type(exc).__name__}: {exc}"
                )
        if index:
            kept.append(runs)
    return kept


@click.command(help=__doc__)
@click.option(
    "-n",
    "counts",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 16, 128, 1000),
    show_default=True,
    help="Concurrent uploads; repeat for several.",
)
@click.option(
    "--total",
    type=ByteSize(),
    default="1GiB",
    show_default=True,
    help="Bytes of one run, over all its uploads.",
)
@click.option(
    "--rounds",
    "number",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Rounds that count; one more comes first.",
)
@durability_option
@click.option(
    "--serve-option",
    multiple=True,
    metavar="OPTION",
    help="A further option for trioresume serve, such as --log-level=error.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Ask for the seed's 100 (Prefer: resume) and wait for it.",
)
@work_dir_option
@click.option(
    "--drop-caches",
    is_flag=True,
    help="Drop the page cache before each run (needs root).",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=120.0,
    show_default=True,
    help="Seconds for the uploads of one run.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Of the order and of the content.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write every run here too; - is standard output, without the table.",
)
def main(
    counts: tuple[int, ...],
    total: int,
    number: int,
    durability: str,
    serve_option: tuple[str, ...],
    resume: bool,
    work_dir: Path | None,
    drop_caches: bool,
    timeout: float,
    seed: int,
    json_path: Path | None,
) -> None:
    raise_file_limit()
    console = Console(stderr=json_path == Path("-"))
    if not console.is_terminal:
        console.width = 120  # a file has no width that the table should fit
    baseline = raw_loop()
    targets = [baseline, trioresume((f"--durability={durability}", *serve_option))]
    failures: list[str] = []

    def failed(message: str) -> None:
        failures.append(message)
        console.print(f"[red]failed:[/] {message}", highlight=False)

    with contextlib.ExitStack() as stack:
        buffer = stack.enter_context(contextlib.closing(Buffer(seed)))
        workspace = Workspace(work_dir, drop_caches=drop_caches)
        stack.callback(workspace.close)
        bench = Bench(
            buffer=buffer, workspace=workspace, resume=resume, timeout=timeout
        )

        def measure(target: Target, n: int) -> Run:
            with console.status(f"{n} x {human(total // n)} into {target.name}"):
                return bench.run(target, n, total // n)

        results = rounds(
            measure, targets, counts, number=number, seed=seed, failed=failed
        )
    lines = figures(results, baseline.name)
    console.print(
        f"{machine(work_dir)}, durability {durability}, {human(total)} a run",
        highlight=False,
    )
    console.print(table(lines))
    console.print(
        "[dim]! the load generator may have been the limit (over 90 % of a core)[/]"
    )
    if json_path is not None:
        document = {
            "machine": machine(work_dir),
            "durability": durability,
            "resume": resume,
            "seed": seed,
            "total": total,
            "figures": [asdict(line) for line in lines],
            "rounds": [[run.as_json() for run in group] for group in results],
            "failures": failures,
        }
        with click.open_file(str(json_path), "w") as file:
            json.dump(document, file, indent=1)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
