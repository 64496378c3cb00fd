"""A worker's seat: what the parent tells a worker process that it starts.

The seat is the first line on the *channel*, a Unix socket between both, whose descriptor the
worker inherits and knows from its command line. The line has the numbers of the other
descriptors that the worker inherits: its listening sockets, its connection to the keeper of
the catalog, and the memory for the counts of connections.

The worker's program may be newer than the parent's: an administrator installs a version and
sends SIGHUP. So the line has a version, and a worker that does not know it does not start.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from trioresume.errors import CallerError

__all__ = ["MAX_LINE", "Seat", "take_seat"]

VERSION = 1
MAX_LINE = 64 * 1024
MOST_REASON = 2000
"""Characters of the reason why a worker does not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a worker was told by its parent. Descriptors are open in the worker."""

    number: int
    """The worker's number, from 1 on. Its successor has the same."""
    workers: int
    """How many workers the service has."""
    bind: Sequence[str]
    """The addresses to listen on: inherited descriptors, as ``http://fd:5``."""
    slot: int
    """The slot of the worker in the counts of connections."""
    counts: int
    """The descriptor of these counts."""
    catalog: int
    """The descriptor of the connection to the keeper of the catalog."""
    lock: int
    """The lock of the data directory. No other service starts there as long as it is open."""
    data_dir: str
    """The absolute path of the data directory."""
    durability: str
    parent: int
    """The process id of the parent."""
    version: int = VERSION
    channel: int = -1
    """The descriptor of the channel."""

    def fail(self, reason: str) -> None:
        """Tell the parent why this worker cannot start. Blocks for a moment."""
        line = json.dumps({"failed": reason[:MOST_REASON]}).encode() + b"\n"
        try:
            with socket.socket(fileno=os.dup(self.channel)) as sock:
                sock.settimeout(1.0)
                sock.sendall(line)
        except OSError:
            pass  # the parent is gone

    def line(self) -> bytes:
        """Return the line that tells the seat."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def take_seat(channel: int) -> Seat:
    """Read the seat from the descriptor *channel*, which this process inherited. Blocks.

    The descriptors of the seat are not inherited by programs that this process starts.
    Raises :class:`~trioresume.errors.CallerError` if nobody tells a seat there.
    """
    try:
        with socket.socket(fileno=os.dup(channel)) as sock:
            line = b""
            # Not a byte beyond the line: the rest is for others to read.
            while not line.endswith(b"\n") and len(line) < MAX_LINE:
                byte = sock.recv(1)
                if not byte:
                    break
                line += byte
        told = json.loads(line)
    except (OSError, ValueError) as exc:
        raise CallerError("no parent process tells this worker its seat") from exc
    if not isinstance(told, dict) or told.get("version") != VERSION:
        raise CallerError(
            "the parent process runs another version of trioresume: restart the service"
        )
    try:
        seat = Seat(**(told | {"channel": channel}))
    except TypeError as exc:
        raise CallerError(f"the parent process tells no seat: {exc}") from exc
    for descriptor in (channel, seat.counts, seat.catalog, seat.lock):
        os.set_inheritable(descriptor, False)
    return seat
