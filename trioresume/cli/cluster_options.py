"""What ``trioresume serve`` does with the options of a cluster."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import click

__all__ = ["CLUSTER_CHUNK_SIZE", "check_cluster", "without_password"]

CLUSTER_CHUNK_SIZE = 8 * 1024 * 1024
"""The size of chunks in a cluster, in bytes: object stores compose parts of 5 MiB or more."""


def without_password(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | None:
    """Return the URL, which has no password: other processes can see a command line."""
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        has_password = bool(parts.password) or "password" in parse_qs(parts.query)
    except ValueError as exc:
        raise click.BadParameter("it is no URL", ctx=context, param=option) from exc
    if has_password:
        raise click.BadParameter(
            "it has a password, which other processes can see. Put it into the file that"
            " PGPASSFILE names, or into ~/.pgpass.",
            ctx=context,
            param=option,
        )
    return value


def check_cluster(*, workers: int) -> None:
    """Refuse what a server of a cluster cannot do."""
    if workers > 1:
        raise click.UsageError(
            "--workers is for a data directory. In a cluster run one service more on the"
            " machine, with a --data-dir of its own."
        )
