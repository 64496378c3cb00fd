"""The option ``--workers``, and how a worker process is started from the command line.

A worker reads the same command line, environment and configuration file as its parent, when it
starts. So what an administrator has changed until then is in force.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import click

from trioresume.cli.options import ARGUMENTS
from trioresume.cli.service.processors import usable_processors

__all__ = ["MOST_WORKERS", "Workers", "own_seat", "worker_command"]

MOST_WORKERS = 64
AUTO = -1
"""The value for ``auto``."""


class Workers(click.ParamType[int]):
    """A number of processes, or ``auto``: as many as there are processors."""

    name = "number or auto"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if value in ("auto", AUTO):
            return AUTO
        text = str(value)
        if (
            text.isascii()
            and text.isdigit()
            and len(text) < 4
            and 1 <= int(text) <= MOST_WORKERS
        ):
            return int(text)
        return self.fail(
            f"{value!r} is neither a number from 1 to {MOST_WORKERS} nor 'auto'",
            param,
            ctx,
        )

    def text(self, value: int) -> str:
        return "auto" if value == AUTO else str(value)

    @staticmethod
    def number(value: int) -> int:
        """Return how many workers *value* stands for."""
        return min(MOST_WORKERS, usable_processors()) if value == AUTO else value


def own_seat() -> object | None:
    """Return the seat, if the running command is a worker's; None for any other command."""
    seat: object | None = click.get_current_context().find_root().obj
    return seat


def worker_command() -> Callable[[int], Sequence[str]]:
    """Return what makes a worker's command line from its channel, for the running command."""
    arguments = click.get_current_context().find_root().meta[ARGUMENTS]

    # Found without an import: that would take the time that the program has to save.
    program = os.path.join(os.path.dirname(__file__), "start_worker.py")

    def command(channel: int) -> list[str]:
        own = [sys.executable, program, str(os.getpid())]
        return [*own, str(channel), *arguments]

    return command
