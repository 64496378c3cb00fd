"""The command-line options that the commands share."""

from __future__ import annotations

import os
from pathlib import Path

import click

from trioresume.bench import usage

__all__ = [
    "cache_option",
    "durability_option",
    "human",
    "machine",
    "work_dir_option",
]

cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TRIORESUME_BENCH_CACHE",
    help="Directory of installed peers. [default: below the user's cache directory]",
)

durability_option = click.option(
    "--durability",
    type=click.Choice(["disk", "process"]),
    default="disk",
    show_default=True,
    help="Durability that trioresume promises.",
)

work_dir_option = click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory for the data directories. [default: the temporary directory]",
)


def human(size: float) -> str:
    """Return *size* as text, in the unit that reads best."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def machine(work_dir: Path | None) -> dict[str, str]:
    """Return the facts about the machine that a reader of the figures needs."""
    found = usage.machine()
    return {
        "cpu": f"{found.cpus} x {found.cpu}",
        "kernel": found.kernel,
        "python": found.python,
        "data": _filesystem(work_dir or Path(os.environ.get("TMPDIR", "/tmp"))),
    }


def _filesystem(path: Path) -> str:
    """Return the type of the filesystem at *path*: that of the longest mount point above."""
    place = path.resolve()
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if place.is_relative_to(mount) and len(Path(mount).parts) >= len(best.parts):
            best, kind = Path(mount), found
    return kind
