"""``trioresume bench diff``: two results of ``trioresume bench --json`` side by side."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from trioresume.bench import BadRecord, Results, from_json
from trioresume.bench.report import diff_page, print_diff
from trioresume.cli.help import Command
from trioresume.cli.options import ExitCode, common_options
from trioresume.cli.output import output

__all__ = ["bench_diff"]

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(
    "bench diff",
    cls=Command,
    examples=(
        "trioresume bench diff before.json after.json",
        "trioresume bench diff --html diff.html before.json after.json",
    ),
)
@common_options
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option(
    "--html",
    "html_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with the comparison to this file, too.",
)
def bench_diff(before: Path, after: Path, html_path: Path | None) -> ExitCode:
    """Compare two results of 'trioresume bench --json': BEFORE and AFTER.

    The last column says how many times the second figure is of the first, and its colour
    whether that is better. What makes the runs hard to compare is said below.
    """
    output.is_report()
    first, second = _read(before), _read(after)
    print_diff(first, second, Console())
    if html_path is not None:
        try:
            html_path.write_text(diff_page(first, second), "utf-8")
        except OSError as exc:
            raise click.ClickException(f"{html_path}: {exc.strerror}") from exc
    return ExitCode.DONE


def _read(path: Path) -> Results:
    try:
        return from_json(path.read_bytes())
    except OSError as exc:
        raise click.UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    except (BadRecord, ValueError) as exc:
        raise click.UsageError(
            f"{path} is no result of 'trioresume bench --json': {exc}"
        ) from exc
