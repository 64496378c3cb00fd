"""``python -m bench.peers``: list, install, check and run the servers to compare with."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.options import cache_option
from bench.peers import PEERS, Peer, find
from bench.peers.cache import Cache, InstallFailed
from bench.peers.peer import ToolMissing
from bench.peers.prove import Disproved, prove
from bench.server import Server, ServerFailed

__all__ = ["main"]

_FAILURES = (InstallFailed, ToolMissing, ServerFailed, Disproved, OSError)


def _peer(_ctx: click.Context, _param: click.Parameter, name: str) -> Peer:
    try:
        return find(name)
    except LookupError as exc:
        raise click.BadParameter(str(exc)) from exc


def _peers(
    ctx: click.Context, param: click.Parameter, names: Sequence[str]
) -> list[Peer]:
    """Return the peers called *names*, or all peers."""
    return [_peer(ctx, param, name) for name in names] or list(PEERS.values())


@click.group(help=__doc__)
def main() -> None:
    """Do nothing: this is the group of the commands."""


@main.command("list")
@cache_option
def list_peers(cache: Path | None) -> None:
    """List the servers that can be measured, and show which are installed."""
    place = Cache(cache)
    table = Table()
    for heading in ("peer", "version", "speaks", "hashes", "syncs", "installed"):
        table.add_column(heading)
    for peer in PEERS.values():
        missing = peer.missing_tools()
        state = f"needs {', '.join(missing)}" if missing else "no"
        table.add_row(
            peer.name,
            peer.version,
            " ".join(peer.protocols),
            peer.hashes,
            peer.syncs,
            "yes" if place.installed(peer) else state,
        )
    Console().print(table)


@main.command()
@cache_option
@click.argument("peers", nargs=-1, callback=_peers)
def install(cache: Path | None, peers: list[Peer]) -> None:
    """Install PEERS, or all. Installed ones stay as they are."""
    place = Cache(cache)

    def one(peer: Peer) -> str:
        return f"{peer.resolved_version(place.get(peer))} installed"

    _each(peers, one)


@main.command()
@cache_option
@click.argument("peers", nargs=-1, callback=_peers)
def check(cache: Path | None, peers: list[Peer]) -> None:
    """Check that PEERS, or all, take, keep and resume small uploads."""
    place = Cache(cache)

    def one(peer: Peer) -> str:
        with (
            tempfile.TemporaryDirectory(prefix="bench-peer-") as directory,
            Server(peer, Path(directory, "data"), cache=place) as server,
        ):
            return ", ".join(prove(server))

    _each(peers, one)


@main.command()
@cache_option
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory for the uploads.",
)
@click.argument("peer", callback=_peer)
def serve(cache: Path | None, data_dir: Path, peer: Peer) -> None:
    """Run PEER on a free port until Enter is pressed or the input ends."""
    with Server(peer, data_dir.resolve(), cache=Cache(cache)) as server:
        click.echo(f"{server.url} (process {server.pid})")
        sys.stdin.readline()


def _each(peers: Sequence[Peer], action: Callable[[Peer], str]) -> None:
    """Print the result of *action* for each peer; exit with 1 if any failed."""
    failed = False
    for peer in peers:
        try:
            click.echo(f"{peer.name}: {action(peer)}")
        except _FAILURES as exc:
            failed = True
            click.echo(f"{peer.name}: {type(exc).__name__}: {exc}", err=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
