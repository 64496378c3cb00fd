"""The command-line options that the commands share."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import click

__all__ = [
    "ByteSize",
    "cache_option",
    "durability_option",
    "human",
    "machine",
    "raise_file_limit",
    "work_dir_option",
]

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class ByteSize(click.ParamType[int]):
    """A size such as ``4GiB``, ``64MiB`` or a plain count of bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)\s*([KMG]iB|B?)", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not a size such as 64MiB", param, ctx)
        return int(match[1]) * _UNITS[match[2].upper()]


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
    return {
        "cpu": f"{os.cpu_count()} x {_cpu_model()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "data": _filesystem(work_dir or Path(os.environ.get("TMPDIR", "/tmp"))),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(path: Path) -> str:
    """Return the type of the filesystem at *path*: that of the longest mount point above."""
    place = path.resolve()
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if place.is_relative_to(mount) and len(Path(mount).parts) >= len(best.parts):
            best, kind = Path(mount), found
    return kind


def raise_file_limit() -> None:
    """Let this process and its children open as many files as the hard limit allows.

    The usual soft limit is 1024, but a thousand uploads need a socket and a file each.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
