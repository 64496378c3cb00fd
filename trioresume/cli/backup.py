"""``backup`` and ``restore``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

import trioresume
from trioresume.cli.help import Command
from trioresume.cli.maintenance import (
    as_json_option,
    data_dir_option,
    print_verification,
)
from trioresume.cli.options import ExitCode, common_options
from trioresume.cli.output import output
from trioresume.cli.units import size

__all__ = ["backup", "restore"]

NICENESS = 10
"""By how much a backup gives way to a server on the same processors."""

_links = click.option(
    "--copy/--link",
    "copies",
    default=False,
    help="Copy every chunk, or make a chunk another name of the same file (a hard link)"
    " where both directories are in one file system.",
)


@click.command(
    cls=Command,
    examples=(
        "trioresume backup --data-dir /srv/uploads --keep 7 /backups",
        "trioresume backup --data-dir /srv/uploads --verify /backups",
    ),
)
@common_options
@data_dir_option
@as_json_option
@_links
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    help="Remove all but this many of the newest backups, after the new one is made.",
)
@click.option("--verify", is_flag=True, help="Read the new backup again, and check it.")
@click.argument(
    "directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False)
)
def backup(
    data_dir: Path,
    as_json: bool,
    copies: bool,
    keep: int | None,
    verify: bool,
    directory: Path,
) -> ExitCode:
    """Copy the data directory as it is at one instant into DIR; the server may run.

    DIR keeps any number of backups, which share their chunks: only chunks that no backup has
    yet are copied. If the command is killed, the earlier backups stay as they are; run it
    again. Other commands, such as 'trioresume ls --data-dir DIR', can read a backup.

    The exit code is 3 if a chunk is missing or damaged.
    """
    output.is_report()
    with suppress(AttributeError, OSError):
        os.nice(NICENESS)
    with _progress() as on_progress:
        make = partial(
            trioresume.backup,
            data_dir,
            directory,
            keep=keep,
            links=not copies,
            on_progress=on_progress,
        )
        report = trio.run(make)
    return _print_report("Made", report, as_json=as_json, verify=verify)


@click.command(
    cls=Command,
    examples=(
        "trioresume restore --data-dir /srv/restored /backups",
        "trioresume restore --data-dir /srv/restored --backup 12 /backups",
    ),
)
@common_options
@data_dir_option
@as_json_option
@_links
@click.option(
    "--backup", "name", help="The name or number of the backup.  [default: the newest]"
)
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Read everything again after it was restored, and check it.",
)
@click.argument(
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
)
def restore(
    data_dir: Path,
    as_json: bool,
    copies: bool,
    name: str | None,
    verify: bool,
    directory: Path,
) -> ExitCode:
    """Make a data directory from a backup in DIR.

    The data directory must be empty, or not exist. Unfinished uploads continue from the offset
    that they had in the backup. If the command is
    killed, no server can be started on the data directory: run it again. If you run it as
    root, make the directory first: everything gets the owner of this directory.

    The exit code is 3 if a chunk is missing or damaged. The command names the files and
    uploads that need it, and the server does not serve them.
    """
    output.is_report()
    with _progress() as on_progress:
        make = partial(
            trioresume.restore,
            directory,
            data_dir,
            name=name,
            links=not copies,
            on_progress=on_progress,
        )
        report = trio.run(make)
    return _print_report("Restored", report, as_json=as_json, verify=verify)


def _print_report(
    done: str, report: trioresume.BackupReport, *, as_json: bool, verify: bool
) -> ExitCode:
    if as_json:
        click.echo(json.dumps({"kind": "backup"} | dataclasses.asdict(report)))
    else:
        click.echo(
            f"{done}: {report.name}. New: {report.chunks} chunks, {size(report.bytes)}."
            f" Present: {report.present} chunks. Unfinished: {report.tails} tails,"
            f" {size(report.tail_bytes)}."
        )
        for name in report.missing:
            click.echo(f"chunk {name}: is missing or cannot be read")
        for name in report.removed:
            click.echo(f"Removed: {name}.")
    code = ExitCode.DAMAGED if report.missing else ExitCode.DONE
    if verify:
        with trioresume.Inventory(report.path) as inventory:
            verification = inventory.verify()
            code = max(
                code, print_verification(inventory, verification, as_json=as_json)
            )
    return code


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar while chunks are copied, if standard error is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("chunks", total=None)

        def show(looked: int, total: int) -> None:
            bars.update(bar, completed=looked, total=total)

        yield show
