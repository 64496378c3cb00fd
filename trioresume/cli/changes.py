"""``rm``, ``mv`` and ``chown``: change files and uploads, beside a running server or without."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import click
import trio

import trioresume
from trioresume.cli.help import Command
from trioresume.cli.maintenance import as_json_option, data_dir_option
from trioresume.cli.options import ExitCode, common_options
from trioresume.cli.output import output
from trioresume.text import printable

__all__ = ["give", "remove", "rename"]

NOBODY = "-"
"""How an owner is written on the command line that is none: of requests without a token."""

Stored = trioresume.StoredFile | trioresume.StoredUpload
Change = Callable[[trioresume.Keeper, Stored], Awaitable[None]]

_owner = click.option(
    "--owner",
    help="Only what belongs to this owner; '-' is for what has no owner.",
)
_glob = click.option(
    "--glob",
    is_flag=True,
    help="Take each NAME as a pattern with * and ?, and everything that fits.",
)
_dry_run = click.option(
    "-n", "--dry-run", is_flag=True, help="Only print what would be changed."
)
_force = click.option(
    "--force", is_flag=True, help="Replace a file that has this name and owner."
)
_names = click.argument("names", metavar="NAME|ID...", nargs=-1, required=True)


@click.command(
    "rm",
    cls=Command,
    examples=(
        "trioresume rm --data-dir /srv/uploads report.pdf",
        "trioresume rm --data-dir /srv/uploads --glob '*.tmp' --dry-run",
    ),
)
@common_options
@data_dir_option
@as_json_option
@_owner
@_glob
@_dry_run
@_names
def remove(
    data_dir: Path,
    as_json: bool,
    owner: str | None,
    glob: bool,
    dry_run: bool,
    names: tuple[str, ...],
) -> ExitCode:
    """Remove files by their NAME, and end uploads by their ID or the name of their content.

    The client of an upload that was ended is told that it is gone. The space is freed by the
    running server, or by trioresume gc.
    """

    async def act(keeper: trioresume.Keeper, what: Stored) -> None:
        await keeper.remove(what)

    found = _find(data_dir, names, owner, glob=glob)
    return _change(data_dir, "Removed", found, act, as_json=as_json, dry_run=dry_run)


@click.command(
    "mv",
    cls=Command,
    examples=("trioresume mv --data-dir /srv/uploads draft.pdf report.pdf",),
)
@common_options
@data_dir_option
@as_json_option
@_owner
@_force
@_dry_run
@click.argument("name", metavar="NAME|ID")
@click.argument("new_name", metavar="NEW_NAME")
def rename(
    data_dir: Path,
    as_json: bool,
    owner: str | None,
    force: bool,
    dry_run: bool,
    name: str,
    new_name: str,
) -> ExitCode:
    """Give a file another name; or an unfinished PUT, whose file will have this name."""

    async def act(keeper: trioresume.Keeper, what: Stored) -> None:
        await keeper.rename(what, new_name, force=force)

    found = _find(data_dir, (name,), owner, glob=False)
    return _change(data_dir, "Renamed", found, act, as_json=as_json, dry_run=dry_run)


@click.command(
    "chown",
    cls=Command,
    examples=(
        "trioresume chown --data-dir /srv/uploads alice report.pdf",
        "trioresume chown --data-dir /srv/uploads --owner - --glob alice '*'",
    ),
)
@common_options
@data_dir_option
@as_json_option
@_owner
@_glob
@_force
@_dry_run
@click.argument("to", metavar="OWNER")
@_names
def give(
    data_dir: Path,
    as_json: bool,
    owner: str | None,
    glob: bool,
    force: bool,
    dry_run: bool,
    to: str,
    names: tuple[str, ...],
) -> ExitCode:
    """Make OWNER the owner of files and uploads; '-' takes the owner away.

    An owner is the name by which the server knows a sender, for example the name in the
    tokens file. A file that was stored while the server asked for no credentials has no
    owner. Once the server asks for credentials, no client can get such a file. To give all
    of these files to OWNER, use --owner - --glob OWNER '*'.
    """

    async def act(keeper: trioresume.Keeper, what: Stored) -> None:
        await keeper.give(what, None if to == NOBODY else to, force=force)

    found = _find(data_dir, names, owner, glob=glob)
    return _change(data_dir, "Given", found, act, as_json=as_json, dry_run=dry_run)


def _find(
    data_dir: Path, names: Sequence[str], owner: str | None, *, glob: bool
) -> list[Stored]:
    """Return what is meant by *names*. Raises :class:`click.ClickException`."""
    found: dict[tuple[str, str | None], Stored] = {}
    with trioresume.Inventory(data_dir) as inventory:
        for name in names:
            fitting = [
                each
                for each in inventory.search(name, glob=glob)
                if owner is None or _owner_of(each) == _meant(owner)
            ]
            if not fitting:
                raise click.ClickException(
                    f"no file and no unfinished upload is called '{printable(name)}'"
                )
            if len(fitting) > 1 and not glob:
                raise click.ClickException(
                    f"{len(fitting)} files and uploads are called '{printable(name)}':"
                    " name one by --owner or by its id, or all of them by --glob"
                )
            for each in fitting:
                is_file = isinstance(each, trioresume.StoredFile)
                known = each.name if is_file else each.id  # type: ignore[union-attr]
                found[str(known), _owner_of(each)] = each
    return list(found.values())


def _owner_of(what: Stored) -> str | None:
    if isinstance(what, trioresume.StoredFile):
        return what.owner
    return what.principal


def _meant(owner: str) -> str | None:
    return None if owner == NOBODY else owner


def _change(
    data_dir: Path,
    done: str,
    found: list[Stored],
    act: Change,
    *,
    as_json: bool,
    dry_run: bool,
) -> ExitCode:
    """Change each of *found*, and print it. Go on after one that cannot be changed."""
    output.is_report()
    code = ExitCode.DONE

    async def run() -> None:
        nonlocal code
        async with trioresume.open_keeper(data_dir) as keeper:
            for each in found:
                try:
                    await act(keeper, each)
                except (trioresume.StorageError, trioresume.CallerError) as exc:
                    click.echo(f"Error: {_named(each)}: {exc}", err=True)
                    code = ExitCode.FAILED
                else:
                    _print(done, each, as_json=as_json)

    if dry_run:
        for each in found:
            _print(f"Not {done.lower()}", each, as_json=as_json)
    else:
        trio.run(run)
    return code


def _print(done: str, what: Stored, *, as_json: bool) -> None:
    if not as_json:
        click.echo(f"{done}: {_named(what)}")
        return
    is_file = isinstance(what, trioresume.StoredFile)
    row = {
        "kind": "file" if is_file else "upload",
        "done": done.lower(),
        "name": what.name,
        "id": None if is_file else what.id,  # type: ignore[union-attr]
        "owner": _owner_of(what),
    }
    click.echo(json.dumps(row))


def _named(what: Stored) -> str:
    owner = _owner_of(what)
    suffix = "" if owner is None else f" of {printable(owner)}"
    if isinstance(what, trioresume.StoredFile):
        return f"file {printable(what.name)}{suffix}"
    return f"upload {what.id}{suffix}"
