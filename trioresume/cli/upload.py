"""``trioresume upload``: send files, and resume after broken connections and stopped runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import get_args

import click

from trioresume import Journal, ProtocolName, TrioresumeError
from trioresume.cli.help import Command
from trioresume.cli.options import ExitCode, common_options
from trioresume.cli.output import output
from trioresume.cli.sections import UPLOAD
from trioresume.cli.sending import Sending, sending_options
from trioresume.cli.units import size
from trioresume.cli.upload_files import (
    Chosen,
    Job,
    divide,
    entries_of,
    jobs_of,
    renamed,
)
from trioresume.text import printable

__all__ = ["upload"]


@click.command(
    cls=Command,
    sections=UPLOAD,
    examples=(
        "trioresume upload film.mkv http://127.0.0.1:8080/files/",
        "trioresume upload -r photos https://upload.example.org/files/ --token-file token",
        "pg_dump shop | trioresume upload - https://upload.example.org/files/shop.sql",
    ),
)
@common_options
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
)
@click.argument("url")
@click.option(
    "--recursive",
    "-r",
    is_flag=True,
    help="If FILE is a directory, send the files in it. With PUT their names are "
    "DIRECTORY/NAME. Links to directories are not followed.",
)
@click.option(
    "--include",
    metavar="GLOB",
    multiple=True,
    help="With --recursive, send only files that match; may be repeated. A GLOB without a "
    "slash is compared with the name, else with the path below the directory.",
)
@click.option(
    "--exclude",
    metavar="GLOB",
    multiple=True,
    help="With --recursive, leave out files and directories that match; may be repeated.",
)
@click.option(
    "--name",
    help="Name to store the file under, instead of its own; for a single file.",
)
@click.option(
    "--dry-run",
    "-n",
    is_flag=True,
    help="Only show what would be sent, and where.",
)
@click.option(
    "--snapshot-size",
    is_flag=True,
    help="Send only the bytes that each file has at the beginning. Use this for a file "
    "that grows.",
)
@click.option(
    "--method",
    metavar="METHOD",
    help="HTTP method. With PUT, each file's name is added to a URL that ends with a "
    "slash. [default: POST if the URL ends with a slash, else PUT]",
)
@click.option(
    "--protocol",
    type=click.Choice(get_args(ProtocolName)),
    default="auto",
    help="Protocol. seed: Partial and Resumable Requests in HTTP; rufh: Resumable Uploads "
    "for HTTP; tus: tus 1.0.0, always with POST; auto: the first of seed, tus and rufh "
    "that the server speaks, else a plain request.",
)
@click.option(
    "--parallel",
    metavar="N",
    type=click.IntRange(1, 32),
    default=1,
    help="Send each file in up to N parts at the same time, of at least 1 MiB, and join them. "
    "It needs POST and a server that joins uploads of tus; with another server the file is "
    "sent in one piece. It uses HTTP/1.1, unless --http2 is given.",
)
@sending_options
@click.option(
    "--journal/--no-journal",
    default=True,
    help="Remember unfinished uploads, so that the same command resumes them.",
)
def upload(
    sending: Sending,
    files: tuple[str, ...],
    url: str,
    recursive: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    name: str | None,
    dry_run: bool,
    snapshot_size: bool,
    method: str | None,
    protocol: ProtocolName,
    parallel: int,
    journal: bool,
) -> ExitCode:
    """Send each FILE to URL and print the address of the stored file.

    FILE may be - for standard input. When the connection breaks, the upload continues by
    itself from the last byte that the server has. If retries are used up, or after
    Ctrl-C, run the same command again to continue.
    """
    output.never_wait()
    if (include or exclude) and not recursive:
        raise click.UsageError("--include and --exclude need --recursive")
    entries = list(
        entries_of(files, recursive=recursive, chosen=Chosen(include, exclude))
    )
    if name is not None:
        entries = [renamed(entries, name)]
    jobs = jobs_of(entries, url, method, protocol, recursive=recursive)
    if parallel > 1:
        divide(jobs, parallel, protocol)
    if dry_run:
        _show_plan(jobs, as_json=sending.as_json)
        return ExitCode.DONE
    return sending.run(
        jobs, _journal() if journal else None, protocol=protocol, snapshot=snapshot_size
    )


def _journal() -> Journal | None:
    """Return the journal. If there is no directory for it, warn and return None."""
    try:
        return Journal()
    except TrioresumeError as exc:
        click.echo(
            f"Warning: {exc}. This run works, but a later run cannot resume its uploads. "
            "Set HOME or XDG_STATE_HOME.",
            err=True,
        )
        return None


def _show_plan(jobs: Sequence[Job], *, as_json: bool) -> None:
    """Show what would be sent, one line for each file."""
    for job in jobs:
        if as_json:
            plan = {"file": str(job.path), "method": job.method, "url": job.shown_url}
            click.echo(json.dumps({**plan, "bytes": job.size}))
        else:
            problem = f": {job.entry.problem}" if job.entry.problem else ""
            line = (
                f"{job.method} {job.shown_url}  {job.path}  {size(job.size)}{problem}"
            )
            click.echo(printable(line))
    total = sum(job.size or 0 for job in jobs)
    if not as_json:
        click.echo(f"{len(jobs)} files, {size(total)}; nothing was sent")
