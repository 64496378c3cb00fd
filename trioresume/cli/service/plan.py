"""What ``trioresume serve`` is going to do, as the result of its options."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import click

import trioresume
from trioresume.cli.service.reloads import Reloads
from trioresume.cli.service.systemd import ServiceManager

__all__ = ["PLAN_TAKER", "Plan", "is_look"]

PLAN_TAKER = "trioresume.plan_taker"
"""Key of click's ``Context.meta``: a function that gets the plan, instead of its start."""


def is_look() -> bool:
    """Return whether the command only looks at the plan: then no file may be made."""
    return PLAN_TAKER in click.get_current_context().meta


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A service that was not started yet. Nothing is open but the log file."""

    config: trioresume.Config
    base_path: str
    target: trioresume.Target | trioresume.FileService | trioresume.UpstreamTarget
    run: Callable[..., Awaitable[None]]
    """:func:`trioresume.serve`, or a function like it."""
    reloads: Reloads = field(default_factory=Reloads)
    manager: ServiceManager
    senders: str | None
    """Who may use the service, in words; None: anybody."""
    downloads: str = "owner"
    """The value of ``--downloads``."""
    keeps_files: bool
    """Whether the uploads become files here: no backend or application decides by itself."""
    has_workers: bool = False
    """Whether several processes serve."""
    log_file: Path | None = None
    config_file: Path | None = None
    """The file that the rules are in, if it has any."""
