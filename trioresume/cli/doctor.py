"""``trioresume doctor``: whether a database and a bucket have what a cluster needs."""

from __future__ import annotations

import dataclasses
import json
import textwrap

import click

import trioresume
from trioresume.cli.help import Command
from trioresume.cli.options import ExitCode, common_options
from trioresume.text import printable

__all__ = ["doctor"]

_MARKS = {
    trioresume.Verdict.GOOD: "good   ",
    trioresume.Verdict.WARNING: "warning",
    trioresume.Verdict.FAULT: "FAULT  ",
}


@click.command(
    "doctor",
    cls=Command,
    examples=(
        "trioresume doctor --objects s3://uploads/production",
        "trioresume doctor --catalog postgresql://uploads@db/uploads --objects s3://uploads",
    ),
)
@common_options
@click.option(
    "--catalog",
    metavar="URL",
    help="The PostgreSQL database of a cluster's catalog, such as postgresql://user@host/name.",
)
@click.option(
    "--objects",
    metavar="URL",
    help=(
        "The bucket of a cluster's content: s3://BUCKET/PREFIX, with ?endpoint=URL&region=NAME"
        " for stores other than Amazon's."
    ),
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON objects, one per line."
)
def doctor(catalog: str | None, objects: str | None, as_json: bool) -> ExitCode:
    """Probe the database and the bucket of a cluster, and say what to do.

    The probes put a few small objects and make a table for the moment, and remove them. The
    credentials of the bucket come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and those
    of the database from PGPASSWORD or the file that PGPASSFILE names, ~/.pgpass by default.

    The exit code is 3 if there is a fault, with which the service cannot keep its promises.
    Warnings do not change it.
    """
    if catalog is None and objects is None:
        raise click.UsageError("give --catalog, --objects or both")
    code = ExitCode.DONE
    for finding in trioresume.examine(catalog=catalog, objects=objects):
        if finding.verdict is trioresume.Verdict.FAULT:
            code = ExitCode.DAMAGED
        if as_json:
            row = dataclasses.asdict(finding) | {"verdict": finding.verdict.value}
            click.echo(json.dumps(row))
            continue
        said = printable(finding.said)
        click.echo(
            f"{_MARKS[finding.verdict]}  {finding.subject}, {finding.probe}: {said}"
        )
        if finding.advice:
            click.echo(textwrap.indent(textwrap.fill(finding.advice, 88), " " * 11))
    return code
