"""The commands that inspect a data directory: ``ls``, ``show``, ``verify``, ``gc``, ``retry``.

They also work while a server is running. They print one row at a time, so that a million
rows need no memory. Therefore columns have fixed widths, and the column that may be long
comes last. With ``--json`` each row is a JSON object on its own line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

import trioresume
from trioresume.cli.help import Command
from trioresume.cli.options import ExitCode, common_options
from trioresume.cli.output import output
from trioresume.cli.units import size
from trioresume.text import printable

__all__ = [
    "as_json_option",
    "data_dir_option",
    "gc",
    "list_",
    "print_verification",
    "retry",
    "show",
    "verify",
]

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(str(trioresume.Config().data_dir)),
    help="Directory where uploads and files are stored.",
)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON objects, one per line."
)


@click.command(
    "ls",
    cls=Command,
    examples=(
        "trioresume ls --data-dir /srv/uploads",
        "trioresume ls --data-dir /srv/uploads '*.pdf'",
    ),
)
@common_options
@data_dir_option
@as_json_option
@click.option("--files/--no-files", default=True, help="List files.")
@click.option("--uploads/--no-uploads", default=True, help="List unfinished uploads.")
@click.option(
    "--ended",
    is_flag=True,
    help="Also list uploads that are finished, cancelled or expired but not yet forgotten.",
)
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
def list_(
    data_dir: Path,
    as_json: bool,
    files: bool,
    uploads: bool,
    ended: bool,
    patterns: tuple[str, ...],
) -> None:
    """List files and unfinished uploads: all of them, or those with a name like PATTERN.

    A PATTERN may have * and ?. It is compared with the name of a file, with the name that
    the client gave its content, and with the id of an upload.

    Treat the id of an upload as a password: anybody who knows it can continue the upload,
    unless the server asks for credentials.
    """
    with trioresume.Inventory(data_dir) as inventory:
        if not as_json:
            click.echo(_line("STATE", "BYTES", "OF", "EXPIRES", "OWNER", "NAME"))
        for file in inventory.files() if files else ():
            if not _fits(patterns, file.name, file.filename):
                continue
            click.echo(_json("file", file) if as_json else _file_line(file))
            if output.unread:
                return  # the reader is gone, for example "| head"
        for upload in inventory.uploads(ended=ended) if uploads else ():
            if not _fits(patterns, upload.id, upload.name):
                continue
            click.echo(_json("upload", upload) if as_json else _upload_line(upload))
            if output.unread:
                return


def _fits(patterns: tuple[str, ...], *names: str | None) -> bool:
    return not patterns or any(
        name is not None and fnmatchcase(name, pattern)
        for pattern in patterns
        for name in names
    )


def _line(
    state: str, size: str, length: str, expires: str, owner: str, name: str
) -> str:
    return f"{state:<10}  {size:>10}  {length:>10}  {expires:<20}  {owner:<12}  {name}"


def _file_line(file: trioresume.StoredFile) -> str:
    length = size(file.length)
    return _line(
        "file" if file.pending is None else f"to {file.pending.split()[0]}",
        length,
        length,
        _time(file.expires_at),
        _text(file.owner),
        _text(file.name) + _called(file.filename),
    )


def _upload_line(upload: trioresume.StoredUpload) -> str:
    return _line(
        "lost" if upload.lost else upload.state,
        size(upload.received),
        size(upload.length),
        _time(upload.expires_at),
        _text(upload.principal),
        f"{upload.id}  {_text(upload.method)} {_text(upload.target)}"
        + ("" if upload.method == "PUT" else _called(upload.name)),
    )


def _called(name: str | None) -> str:
    return "" if name is None else f"  ({_text(name)})"


@click.command(
    cls=Command,
    examples=(
        "trioresume show --data-dir /srv/uploads",
        "trioresume show --data-dir /srv/uploads report.pdf",
    ),
)
@common_options
@data_dir_option
@as_json_option
@click.argument("what", metavar="[ID|NAME]", required=False)
def show(data_dir: Path, as_json: bool, what: str | None) -> ExitCode:
    """Show everything that is known about an upload or a file; without one, show totals.

    Name an upload by its id, and a file by its name; or give the name that the client gave
    its content. If there are several of this name, all are shown.
    """
    with trioresume.Inventory(data_dir) as inventory:
        found: list[tuple[str, object]] = []
        if what is None:
            found.append(("totals", inventory.totals()))
        else:
            found += [
                ("file" if isinstance(each, trioresume.StoredFile) else "upload", each)
                for each in inventory.search(what, ended=True)
            ]
    for number, (kind, value) in enumerate(found):
        if as_json:
            click.echo(_json(kind, value))
            continue
        if number:
            click.echo()
        for name, text in _details(kind, value):
            click.echo(f"{name:<14}  {text}")
    if not found:
        click.echo(f"Error: no upload and no file is called '{_text(what)}'", err=True)
        return ExitCode.FAILED
    return ExitCode.DONE


_SIZES = frozenset(
    {
        *("received", "durable", "length"),
        *("file_bytes", "chunk_bytes", "unheld_bytes"),
    }
)


def _details(kind: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield names and values in the form that people read."""
    yield "kind", kind
    for name, member in _members(value).items():
        if name == "fields":
            for field, text in member if isinstance(member, list) else ():
                yield "field", f"{_text(field)}: {_text(text)}"
        elif name == "uploads" and isinstance(member, dict):
            for state, count in sorted(member.items()):
                yield "uploads", f"{count} {state}"
        elif name.endswith("_at"):
            yield name, _time(member if isinstance(member, float) else None)
        elif name in _SIZES and isinstance(member, int):
            yield name, f"{size(member)} ({member} bytes)"
        elif isinstance(member, bool):
            yield name, "yes" if member else "no"
        else:
            yield name, _text(None if member is None else str(member))


@click.command(cls=Command, examples=("trioresume verify --data-dir /srv/uploads",))
@common_options
@data_dir_option
@as_json_option
@click.option(
    "--repair-from",
    "sources",
    metavar="PATH",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Repair damaged chunks with bytes from this file, or from any file below this "
    "directory; may be repeated.",
)
def verify(data_dir: Path, as_json: bool, sources: tuple[Path, ...]) -> ExitCode:
    """Read all stored bytes again and compare them with their digests.

    Prints each damaged part, and the files and uploads that need it. Also names each
    chunk that an earlier run reported as damaged and that is right again, because the
    same content was stored since. Nothing is repaired without --repair-from. The exit
    code is 3 if there is damage that was not repaired.
    """
    output.is_report()
    with trioresume.Inventory(data_dir) as inventory:
        verification = inventory.verify(repair_from=sources)
        return print_verification(inventory, verification, as_json=as_json)


def print_verification(
    inventory: trioresume.Inventory,
    verification: trioresume.Verification,
    *,
    as_json: bool,
) -> ExitCode:
    """Run *verification*, and print its findings and a summary."""

    def print_healed(name: str, date: float) -> None:
        row = {"kind": "healed", "name": name, "reported_at": date}
        text = f"chunk {name}: is right again, was reported at {_time(date)}"
        click.echo(json.dumps(row) if as_json else text)

    def print_repaired(name: str, source: str) -> None:
        row = {"kind": "repaired", "name": name, "source": _text(source)}
        text = f"chunk {name}: repaired from {_text(source)}"
        click.echo(json.dumps(row) if as_json else text)

    def print_trouble(text: str) -> None:
        click.echo(f"Warning: {_text(text)}", err=True)

    verification.on_healed = print_healed
    verification.on_repaired = print_repaired
    verification.on_trouble = print_trouble
    with _progress(inventory, verification):
        for damage in verification:
            click.echo(_json(None, damage) if as_json else _damage_line(damage))
    read = {
        "kind": "summary",
        "chunks": verification.chunks,
        "bytes": verification.bytes,
        "files": verification.files,
        "uploads": verification.uploads,
        "damages": verification.damages,
        "healed": verification.healed,
        "repaired": verification.repaired,
    }
    click.echo(
        json.dumps(read)
        if as_json
        else f"Chunks: {verification.chunks}, {size(verification.bytes)}. Files: "
        f"{verification.files}. Uploads: {verification.uploads}. "
        f"Damages: {verification.damages}."
        + (f" Healed: {verification.healed}." if verification.healed else "")
        + (f" Repaired: {verification.repaired}." if verification.repaired else "")
    )
    is_damaged = verification.damages > verification.repaired
    return ExitCode.DAMAGED if is_damaged else ExitCode.DONE


def _damage_line(damage: trioresume.Damage) -> str:
    owner = "" if damage.owner is None else f" of {_text(damage.owner)}"
    line = f"{damage.kind} {_text(damage.name)}{owner}: {_text(damage.problem)}"
    return line if damage.path is None else f"{line} ({damage.path})"


@contextmanager
def _progress(
    inventory: trioresume.Inventory, verification: trioresume.Verification
) -> Iterator[None]:
    """Show a progress bar while chunks are read, if standard error is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("chunks", total=inventory.totals().chunks)
        verification.on_progress = lambda: bars.advance(bar)
        yield


@click.command(cls=Command, examples=("trioresume gc --data-dir /srv/uploads",))
@common_options
@data_dir_option
@as_json_option
def gc(data_dir: Path, as_json: bool) -> ExitCode:
    """Free the space of deleted, replaced and expired content at once.

    A running server frees it by itself, a little at a time. This command also looks for
    files that a crash left behind, and waits until there is nothing left to free. If a
    server is running, the command asks the server to do the work. If none is running, no
    server can be started until the command is done.
    """
    output.is_report()
    try:
        done = trio.run(trioresume.collect, data_dir)
    except trioresume.CollectionCut as exc:
        click.echo(f"Error: {exc}", err=True)
        return ExitCode.UNFINISHED
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(done)))
    else:
        click.echo(f"Released: {done.chunks} chunks, {size(done.bytes)}.")
    return ExitCode.DONE


@click.command(
    cls=Command, examples=("trioresume retry --data-dir /srv/uploads 4sYQ0hcG1vTbN2mZ",)
)
@common_options
@data_dir_option
@as_json_option
@click.argument("id", metavar="ID")
def retry(data_dir: Path, as_json: bool, id: str) -> ExitCode:
    """Have the request of the upload ID processed again by the running server.

    Only two kinds of request can be tried again: one that waits for its target, and one
    of which nobody knows whether it took effect, because the target or the server was lost
    in the middle. A request of the second kind may take effect twice: ask the target first.
    'trioresume ls --ended' names the uploads.
    """
    try:
        status = trio.run(trioresume.retry, data_dir, id)
    except OSError as exc:
        raise click.ClickException(
            f"no server is running on {data_dir}: {exc.strerror}"
        ) from exc
    if as_json:
        click.echo(json.dumps({"kind": "response", "status": status}))
    elif status is None:
        click.echo("The target cannot take the request now; it waits.")
    else:
        click.echo(f"The target answered {status}.")
    return ExitCode.UNFINISHED if status is None else ExitCode.DONE


# Formatting.


def _members(value: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(value)
    members = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(members.get("fields"), Iterable):
        members["fields"] = [list(line) for line in members["fields"]]
    return members


def _json(kind: str | None, value: object) -> str:
    return json.dumps(({} if kind is None else {"kind": kind}) | _members(value))


def _text(text: str | None) -> str:
    """Return *text* without control characters: text from the network must not control
    the terminal. Empty text and None become ``-``."""
    if not text:
        return "-"
    return printable(text)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
