"""What a worker process runs: the command of its parent, with the seat that the parent tells.

``trioresume serve`` starts it by :mod:`trioresume.cli.service.start_worker`, with the number of
the channel's descriptor and then the words of its own command line.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

import trioresume
from trioresume.cli import main as group
from trioresume.cli.options import ExitCode
from trioresume.cli.output import guard

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Serve with the seat from the channel that the first word names. Returns the exit code."""
    if not words or not words[0].isdigit():
        click.echo("Error: only 'trioresume serve' starts this program", err=True)
        return ExitCode.USAGE
    guarded = guard()
    try:
        seat = trioresume.take_seat(int(words[0]))
    except trioresume.CallerError as exc:
        click.echo(f"Error: {exc}", err=True)
        return ExitCode.FAILED
    code = _run(seat, words[1:])
    guarded.finish()
    return code


def _run(seat: trioresume.Seat, words: Sequence[str]) -> int:
    """Run the command. The parent is told why it fails, and tells the administrator."""
    try:
        group.main(list(words), prog_name="trioresume", standalone_mode=False, obj=seat)
    except click.ClickException as exc:
        seat.fail(exc.format_message())
        return exc.exit_code
    except trioresume.TrioresumeError as exc:
        seat.fail(str(exc))
        return ExitCode.FAILED
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except BaseException as exc:
        seat.fail(f"{type(exc).__name__}: {exc}")
        raise
    return ExitCode.DONE
