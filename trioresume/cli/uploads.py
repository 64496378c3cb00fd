"""``trioresume uploads``: the unfinished uploads that this user's runs remember."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path, PurePath
from urllib.parse import urlsplit

import click

from trioresume import CallerError, Journal, RememberedUpload, TrioresumeError
from trioresume.cli import units
from trioresume.cli.help import Command, CommandGroup
from trioresume.cli.options import ExitCode, common_options
from trioresume.cli.output import output
from trioresume.cli.sections import UPLOADS_RESUME
from trioresume.cli.sending import Sending, sending_options
from trioresume.cli.upload_files import Entry, Job
from trioresume.text import printable

__all__ = ["uploads"]


@click.group(cls=CommandGroup)
def uploads() -> None:
    """List, resume or forget uploads that earlier runs have begun and not finished."""


@uploads.command(
    "ls",
    cls=Command,
    examples=("trioresume uploads ls", "trioresume uploads ls --json"),
)
@common_options
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON objects, one per line."
)
def list_(as_json: bool) -> None:
    """List the unfinished uploads of this user: id, age, size, file and URL."""
    for upload in _remembered(Journal()):
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(upload)))
            continue
        age = units.duration(max(0.0, time.time() - upload.used_at))
        sent = f"  in {upload.parts} parts" if upload.parts > 1 else ""
        sent += "  all sent" if upload.all_sent else ""
        click.echo(
            f"{upload.id[:12]}  {age:>8}  {units.size(upload.size):>10}  "
            f"{printable(upload.path)}  {upload.method} {printable(upload.url)}{sent}"
        )


_SELECTION = (
    click.argument("ids", metavar="[ID]...", nargs=-1),
    click.option(
        "--all", "all_of_them", is_flag=True, help="Take all that are remembered."
    ),
)


@uploads.command(
    cls=Command,
    sections=UPLOADS_RESUME,
    examples=(
        "trioresume uploads resume --all",
        "trioresume uploads resume 3f2a9c41d0b7 --token-file token",
    ),
)
@common_options
@_SELECTION[0]
@_SELECTION[1]
@sending_options
def resume(sending: Sending, ids: tuple[str, ...], all_of_them: bool) -> ExitCode:
    """Send the rest of the uploads with these IDs, as the command that began them would.

    The beginning of an ID is enough. The credentials and header fields of the first command
    are not remembered: give them again. They go to one server only, so that uploads to
    several servers need several runs.
    """
    output.never_wait()
    journal = Journal()
    jobs: dict[str, list[Job]] = {}
    for upload in _chosen(_remembered(journal), ids, all_of_them):
        parts = urlsplit(upload.url)
        origin = f"{parts.scheme}://{parts.netloc}"
        jobs.setdefault(origin, []).append(_job(upload))
    if len(jobs) > 1 and sending.fields.has_any:
        raise click.UsageError(
            "these uploads go to several servers, and the credentials or header fields are"
            f" for one: {', '.join(jobs)}"
        )
    codes = [sending.run(each, journal) for each in jobs.values()]
    return max(codes, default=ExitCode.DONE)


@uploads.command(
    cls=Command,
    examples=(
        "trioresume uploads forget 3f2a9c41d0b7",
        "trioresume uploads forget --all",
    ),
)
@common_options
@_SELECTION[0]
@_SELECTION[1]
def forget(ids: tuple[str, ...], all_of_them: bool) -> ExitCode:
    """Forget the uploads with these IDs: the next run of their command begins again.

    The files stay. What the server has of the uploads expires there.
    """
    journal = Journal()
    code = ExitCode.DONE
    for upload in _chosen(_remembered(journal), ids, all_of_them):
        try:
            journal.forget(upload)
        except CallerError as exc:
            click.echo(f"{printable(upload.path)}: {exc}", err=True)
            code = ExitCode.FAILED
        except OSError as exc:
            raise _unreadable(journal, exc) from exc
    return code


def _remembered(journal: Journal) -> list[RememberedUpload]:
    try:
        return journal.uploads()
    except OSError as exc:
        raise _unreadable(journal, exc) from exc


def _unreadable(journal: Journal, exc: OSError) -> TrioresumeError:
    return TrioresumeError(f"{journal.directory}: {exc.strerror or exc}")


def _chosen(
    known: Sequence[RememberedUpload], ids: Sequence[str], all_of_them: bool
) -> list[RememberedUpload]:
    """Return the uploads that are meant. Raises :class:`click.UsageError` if that is unclear."""
    if all_of_them == bool(ids):
        raise click.UsageError("name uploads by their IDs, or use --all")
    if all_of_them:
        return list(known)
    chosen: dict[str, RememberedUpload] = {}
    for word in ids:
        matches = [upload for upload in known if upload.id.startswith(word)]
        if len(matches) != 1:
            problem = "several unfinished uploads begin" if matches else "none begins"
            raise click.UsageError(f"{problem} with the ID {word!r}")
        chosen[matches[0].id] = matches[0]
    return list(chosen.values())


def _job(upload: RememberedUpload) -> Job:
    path = Path(upload.path)
    problem = None if path.exists() else "the file does not exist any more"
    entry = Entry(path, PurePath(path.name), problem=problem)
    size = path.stat().st_size if problem is None else upload.size
    return Job(entry, upload.url, upload.method, size, parallel=upload.parts)
