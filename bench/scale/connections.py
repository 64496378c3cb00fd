"""``python -m bench.scale.connections``: the memory that each connection needs.

It opens thousands of connections to ``trioresume serve``, in steps, and reads the resident
memory of the process after each step. There are two kinds. *Idle* connections have had an
answer and wait to be used again. *Stalled* connections have begun an upload, sent some of
it and then nothing more, but they stay open. It prints how much memory one more connection
takes, as the median of the steps. So memory that the service needs anyway does not count,
such as the memory that all uploads share, which it touches one page of 2 MiB at a time.

The kernel's memory for sockets is not included: silent sockets have hardly any.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import click

from bench.options import durability_option, human, work_dir_option
from bench.peers.own import trioresume
from bench.server import Server
from trioresume.bench.usage import raise_file_limit

__all__ = ["main", "measure"]

SENT = 50_000
"""Bytes: so few that they need no more of the memory that all uploads share."""
SETTLE = 1.5
"""Seconds after each step: longer than the service puts off its work."""


def idle(server: Server, number: int) -> socket.socket:
    """Open a connection that has had an answer."""
    sock = socket.create_connection((server.host, server.port), timeout=30)
    sock.sendall(f"OPTIONS {server.path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    _answer(sock, b"HTTP/1.1 204 ")
    return sock


def stalled(server: Server, number: int) -> socket.socket:
    """Open a connection in the middle of an upload."""
    sock = socket.create_connection((server.host, server.port), timeout=30)
    sock.sendall(
        f"POST {server.path} HTTP/1.1\r\nHost: bench\r\nPrefer: resume\r\n"
        "Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n".encode()
    )
    _answer(sock, b"HTTP/1.1 100 ")
    sock.sendall(os.urandom(SENT))
    return sock


def _answer(sock: socket.socket, start: bytes) -> None:
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        data = sock.recv(4096)
        if not data:
            raise click.ClickException(f"the connection was closed after {answer!r}")
        answer += data
    if not answer.startswith(start):
        raise click.ClickException(f"not the expected answer: {answer!r}")


def measure(
    server: Server,
    connect: Callable[[Server, int], socket.socket],
    count: int,
    steps: int,
) -> tuple[float, int]:
    """Return the bytes per connection, and the resident bytes with *count* of them."""
    found = []
    with ExitStack() as stack:
        for step in range(steps + 1):
            for number in range(count // steps if step else 10):
                sock = connect(server, number)
                stack.callback(sock.close)
            time.sleep(SETTLE)
            found.append(server.use().resident)
    grown = [after - before for before, after in pairwise(found)]
    return statistics.median(grown) / (count // steps), found[-1]


@click.command(help=__doc__)
@click.option("--connections", default=4000, show_default=True, help="Of each kind.")
@click.option("--steps", default=8, show_default=True)
@durability_option
@work_dir_option
def main(connections: int, steps: int, durability: str, work_dir: Path | None) -> None:
    raise_file_limit()
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if connections > most - 100:
        raise click.UsageError(f"this process may open {most} files")
    options = ("--max-connections-per-address", str(connections + 100))
    for what, connect in (("idle", idle), ("stalled", stalled)):
        with (
            tempfile.TemporaryDirectory(dir=work_dir) as name,
            Server(trioresume(durability, options), Path(name) / "data") as server,
        ):
            each, all_ = measure(server, connect, connections, steps)
            click.echo(
                f"{what}: {human(each)} each; with {connections} of them"
                f" {human(all_)} resident"
            )


if __name__ == "__main__":
    main()
