"""What ``trioresume serve`` is going to do, as the result of its options."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trioresume
from trioresume.cli.service.reloads import Reloads
from trioresume.cli.service.systemd import ServiceManager

__all__ = ["Plan"]


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
    config_file: Path | None = None
    """The file that the rules are in, if it has any."""
