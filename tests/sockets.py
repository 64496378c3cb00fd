"""When the other end of a connection on this machine has read what was sent.

The kernel tells it. A test that needs a request to have reached the service waits for this,
and not for a moment to have passed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import trio

__all__ = ["until_read", "wait_until_read"]

_Socket: TypeAlias = socket.socket | trio.socket.SocketType

SECONDS = 20.0
_TABLE = Path("/proc/net/tcp")
_ELSEWHERE = 0.3
"""Seconds to wait where no table of connections tells. Only Linux has it."""


def wait_until_read(*socks: _Socket) -> None:
    """Return when the peers have read all that was sent on *socks*; fail after 20 seconds."""
    if not _TABLE.exists():
        time.sleep(_ELSEWHERE)
        return
    deadline = time.monotonic() + SECONDS
    while unread := _unread(socks):
        assert time.monotonic() < deadline, f"{unread} bytes are not read"
        time.sleep(0.005)


async def until_read(*socks: trio.socket.SocketType) -> None:
    """Do the same as :func:`wait_until_read`."""
    await trio.to_thread.run_sync(wait_until_read, *socks)


def _unread(socks: Sequence[_Socket]) -> int:
    """Bytes that are still on their way on *socks*, or that wait for their peers to read."""
    ours = {(_name(s.getsockname()), _name(s.getpeername())) for s in socks}
    unread = 0
    for line in _TABLE.read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        to_send, to_read = (int(size, 16) for size in queues.split(":"))
        if (local, remote) in ours:
            unread += to_send
        if (remote, local) in ours:
            unread += to_read
    return unread


def _name(address: tuple[str, int]) -> str:
    """An IPv4 address as the kernel's table has it."""
    host, port = address
    number = int.from_bytes(socket.inet_aton(host), "little")
    return f"{number:08X}:{port:04X}"
