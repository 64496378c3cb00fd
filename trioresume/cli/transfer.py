"""``export`` and ``import``: between stored files and files in a directory."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import click
import trio

import trioresume
from trioresume.cli.help import Command
from trioresume.cli.maintenance import as_json_option, data_dir_option
from trioresume.cli.options import ExitCode, common_options
from trioresume.cli.output import output
from trioresume.cli.units import size
from trioresume.text import printable

__all__ = ["export", "import_"]

_patterns = click.option(
    "--filter",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Take only files with a name that fits this pattern with * and ?; may be repeated.",
)


@click.command(
    cls=Command,
    examples=(
        "trioresume export --data-dir /srv/uploads /srv/files",
        "trioresume export --data-dir /srv/uploads --filter '*.pdf' /srv/files",
    ),
)
@common_options
@data_dir_option
@as_json_option
@_patterns
@click.option(
    "--metadata",
    type=click.Choice([each.value for each in trioresume.Metadata]),
    default=trioresume.Metadata.XATTR.value,
    help="Keep the type, the owner and the digest in attributes of the files, or in JSON files"
    " beside them.",
)
@click.argument(
    "directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False)
)
def export(
    data_dir: Path,
    as_json: bool,
    patterns: tuple[str, ...],
    metadata: str,
    directory: Path,
) -> ExitCode:
    """Write stored files to DIR, under their names and with their dates.

    The files of an owner go to the folder @OWNER. A file that is there already is not written
    again; nothing is removed from DIR. It also works on a backup, and on a data directory that
    can only be read.

    The exit code is 3 if a file is damaged: it is named and left out.
    """
    output.is_report()
    counts: Counter[str] = Counter()
    written = 0

    def print_trouble(text: str) -> None:
        click.echo(f"Warning: {printable(text)}", err=True)

    with trioresume.Inventory(data_dir) as inventory:
        run = inventory.export(
            directory, patterns=patterns, metadata=trioresume.Metadata(metadata)
        )
        run.on_trouble = print_trouble
        for done in run:
            counts[done.state] += 1
            is_new = done.state is trioresume.ExportState.WRITTEN
            written += done.length if is_new else 0
            if as_json:
                click.echo(json.dumps({"kind": "file"} | dataclasses.asdict(done)))
            elif done.problem is not None:
                click.echo(f"file {printable(done.name)}: {printable(done.problem)}")
    states = trioresume.ExportState
    if not as_json:
        click.echo(
            f"Written: {counts[states.WRITTEN]} files, {size(written)}."
            f" Present: {counts[states.PRESENT]}. Damaged: {counts[states.DAMAGED]}."
        )
    return ExitCode.DAMAGED if counts[states.DAMAGED] else ExitCode.DONE


@click.command(
    "import",
    cls=Command,
    examples=(
        "trioresume import --data-dir /srv/uploads /srv/files",
        "trioresume import --data-dir /srv/uploads --from tusd /srv/tusd/data",
    ),
)
@common_options
@data_dir_option
@as_json_option
@_patterns
@click.option(
    "--from",
    "source",
    type=click.Choice([each.value for each in trioresume.ImportSource]),
    default=trioresume.ImportSource.FILES.value,
    help="What DIR holds: files, or the uploads of a tusd, finished and unfinished ones.",
)
@click.option(
    "--owner",
    help="The owner of files that do not say whose they are.  [default: nobody]",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace a stored file that has the name of another file.",
)
@click.option(
    "--names",
    type=click.Choice(["id", "client"]),
    default="id",
    help="With --from tusd: name a finished upload by its id, which keeps its address, or as"
    " its client did.",
)
@click.option(
    "--types/--no-types",
    default=True,
    help="Guess the media type of a file by its suffix, if nothing says it.",
)
@click.argument(
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
)
def import_(
    data_dir: Path,
    as_json: bool,
    patterns: tuple[str, ...],
    source: str,
    owner: str | None,
    force: bool,
    names: str,
    types: bool,
    directory: Path,
) -> ExitCode:
    """Store the files in DIR, under their names and with their dates.

    What trioresume export has written comes back with its owners and types. A file that is
    stored already, with the same length and date, is not read again. If the command is
    killed, run it again: it goes on where it stopped. A running server goes on meanwhile.

    The exit code is 1 if something in DIR could not be stored: it is named.
    """
    output.is_report()
    counts: Counter[str] = Counter()

    def print_done(done: trioresume.Imported) -> None:
        counts[done.state] += 1
        if as_json:
            click.echo(json.dumps({"kind": "import"} | dataclasses.asdict(done)))
        elif done.problem is not None:
            click.echo(
                f"{done.state.capitalize()}: {printable(done.path)}:"
                f" {printable(done.problem)}"
            )

    async def run() -> None:
        await trioresume.import_directory(
            data_dir,
            directory,
            print_done,
            source=trioresume.ImportSource(source),
            owner=owner,
            patterns=patterns,
            replace=force,
            named_by_client=names == "client",
            guesses_types=types,
        )

    trio.run(run)
    states = trioresume.ImportState
    if not as_json:
        click.echo(
            f"Stored: {counts[states.STORED]}. Present: {counts[states.PRESENT]}."
            f" Skipped: {counts[states.SKIPPED]}. Refused: {counts[states.REFUSED]}."
        )
    failed = counts[states.SKIPPED] + counts[states.REFUSED]
    return ExitCode.FAILED if failed else ExitCode.DONE
