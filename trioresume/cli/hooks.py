"""``trioresume hooks``: the events that are still to be delivered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import click
import trio

import trioresume
from trioresume.cli.help import Command
from trioresume.cli.maintenance import as_json_option, data_dir_option
from trioresume.cli.options import ExitCode, common_options
from trioresume.cli.output import output
from trioresume.text import printable

__all__ = ["hooks"]

_LINE = "{:>8}  {:<8}  {:<15}  {:>8}  {:<22}  {}"


@click.command(
    cls=Command,
    examples=(
        "trioresume hooks ls --data-dir /srv/uploads",
        "trioresume hooks retry --all --data-dir /srv/uploads",
        "trioresume hooks drop 17 18 --data-dir /srv/uploads",
    ),
)
@common_options
@data_dir_option
@as_json_option
@click.option("--all", "every", is_flag=True, help="Every dead event.")
@click.argument("action", type=click.Choice(["ls", "retry", "drop"]))
@click.argument("numbers", metavar="[NUMBER]...", nargs=-1, type=click.IntRange(min=1))
def hooks(
    data_dir: Path,
    as_json: bool,
    every: bool,
    action: str,
    numbers: tuple[int, ...],
) -> ExitCode:
    """List the events that no receiver has accepted yet, send them again, or drop them.

    The server itself tries again, for as long as --hooks-give-up-after says. An event that no
    receiver has accepted by then is dead: 'retry' sends it again, after all others, and 'drop'
    removes it. Both also work for events that still wait. The command works whether or not a server
    is running.
    """
    if action == "ls":
        if numbers or every:
            raise click.UsageError("ls lists all events, and takes no numbers")
        _list(data_dir, as_json)
        return ExitCode.DONE
    if bool(numbers) == every:
        raise click.UsageError(f"{action} needs the numbers of events, or --all")
    with trioresume.Inventory(data_dir) as inventory:
        known = {event.number for event in inventory.events(dead=True)}
        chosen = sorted(known)
        if not every:
            known |= {event.number for event in inventory.events()}
            chosen = [number for number in numbers if number in known]
    if chosen:
        wanted: Literal["retry", "drop"] = "retry" if action == "retry" else "drop"
        trio.run(trioresume.change_events, data_dir, wanted, chosen)
    done = "To be sent again" if action == "retry" else "Dropped"
    click.echo(f"{done}: {len(chosen)} events.")
    missing = [str(number) for number in numbers if number not in known]
    if missing:
        click.echo(f"Error: there is no event {', '.join(missing)}", err=True)
        return ExitCode.FAILED
    return ExitCode.DONE


def _list(data_dir: Path, as_json: bool) -> None:
    if not as_json:
        line = _LINE.format("NUMBER", "STATE", "EVENT", "ATTEMPTS", "UPLOAD", "ERROR")
        click.echo(line)
    with trioresume.Inventory(data_dir) as inventory:
        for dead in (True, False):
            for event in inventory.events(dead=dead):
                click.echo(
                    json.dumps({"record": "event", **dataclasses.asdict(event)})
                    if as_json
                    else _LINE.format(
                        event.number,
                        "dead" if dead else "waiting",
                        event.kind,
                        event.attempts,
                        event.upload,
                        printable(event.error) or "-",
                    )
                )
                if output.unread:
                    return
