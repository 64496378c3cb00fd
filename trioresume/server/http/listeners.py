"""The sockets that a service listens on, and accepting connections from them.

Several connections are accepted in each round of the event loop. trio's ``serve_listeners``
accepts one. A thousand busy uploads make a round last some milliseconds. If a thousand clients
connect at once, the last one would wait for seconds before the server reads its request, even
if it only asks for an offset.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from trioresume.server.api.addresses import (
    InheritedAddress,
    TCPAddress,
    parse_address,
)
from trioresume.server.http.local_sockets import (
    UnixName,
    inherited_socket,
    listen_on_unix,
)

if TYPE_CHECKING:
    from trioresume.server.api.addresses import Address
    from trioresume.server.api.config import Config
    from trioresume.server.http.connection_counts import SharedCounts

__all__ = ["Listener", "accept_from", "open_listeners"]


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens, with or without TLS."""

    listener: trio.SocketListener
    is_secure: bool
    name: UnixName | None = None
    """The name in the file system that has to be removed in the end."""

    @property
    def url(self) -> str:
        """``http://HOST:PORT``, or ``https`` if TLS is spoken; ``http://unix:PATH:``."""
        scheme = "https" if self.is_secure else "http"
        address = self.listener.socket.getsockname()
        if not isinstance(address, tuple):
            return f"{scheme}://unix:{os.fsdecode(address)}:"
        host, port = address[:2]
        return (
            f"{scheme}://[{host}]:{port}"
            if ":" in host
            else f"{scheme}://{host}:{port}"
        )

    def close(self) -> None:
        """Close the socket. Its name goes first: see :mod:`.local_sockets`."""
        if self.name is not None and self.listener.socket.fileno() >= 0:
            self.name.remove()
        self.listener.socket.close()


@asynccontextmanager
async def open_listeners(config: Config) -> AsyncIterator[list[Listener]]:
    """Listen on ``config.bind`` while the block runs.

    Raises :class:`~trioresume.errors.CallerError` for an address that cannot be parsed, and
    :class:`OSError` for one that cannot be bound.
    """
    secure = config.ssl is not None
    addresses = [parse_address(bind, secure=secure) for bind in config.bind]
    listeners: list[Listener] = []
    try:
        for address in addresses:
            listeners += await _listen(address, config)
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


async def _listen(address: Address, config: Config) -> list[Listener]:
    """Listen on *address*. A name of a host may stand for several addresses."""
    is_secure = address.scheme == "https"
    if isinstance(address, TCPAddress):
        opened = await trio.open_tcp_listeners(
            address.port, host=address.host or None, backlog=config.backlog
        )
        return [Listener(listener, is_secure) for listener in opened]
    name = None
    if isinstance(address, InheritedAddress):
        raw = inherited_socket(address.descriptor)
    else:
        raw, name = await trio.to_thread.run_sync(
            listen_on_unix, address.path, config.unix_socket_mode, config.backlog
        )
    sock = trio.socket.from_stdlib_socket(raw)
    return [Listener(trio.SocketListener(sock), is_secure, name)]


logger = logging.getLogger("trioresume.server")

# Accepting.

MOST_AT_ONCE = 32
"""Connections accepted before other tasks get their turn: some 2 ms of work."""
PAUSE = 0.1
"""Seconds until the next try when there is no descriptor or no memory for a connection."""

LEAD = 4
"""Connections that a process may have more than the one that has the fewest."""
POLITE_TIMES = 4
POLITE_PAUSE = 0.001
"""How often, and for how many seconds, a process with more connections waits for another."""

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_CLOSED = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


async def accept_from(
    listener: trio.SocketListener,
    take: Callable[[trio.socket.SocketType], object],
    counts: SharedCounts | None = None,
) -> None:
    """Call *take* with each connection that comes to *listener*, until cancelled.

    A connection that ended before it was accepted is skipped. Other processes may accept from
    the same socket: *counts* tells how many connections each one has. Raises
    :class:`OSError` if the listener is closed.
    """
    # A socket of our own, to accept without trio's checkpoint. The listener owns the descriptor.
    raw = socket.socket(fileno=listener.socket.fileno())
    raw.setblocking(False)
    try:
        while True:
            await trio.lowlevel.wait_readable(raw)
            most = MOST_AT_ONCE if counts is None else await _share_of(counts)
            if not _accept_some(raw, take, most):
                logger.error(
                    "no descriptor or memory for another connection; trying again"
                )
                await trio.sleep(PAUSE)
    finally:
        raw.detach()


async def _share_of(counts: SharedCounts) -> int:
    """Return how many connections to accept, after letting processes with fewer be first.

    Every process is woken for each connection. Without this, the one with the least to do at
    this moment would take most of a crowd, and have the most to do for a long time. A process
    that is stopped does not take its share, so nobody waits for it for long.
    """
    for _ in range(POLITE_TIMES):
        share = counts.least() + LEAD - counts.own()
        if share > 0:
            return min(share, MOST_AT_ONCE)
        await trio.sleep(POLITE_PAUSE)
    return LEAD


def _accept_some(
    raw: socket.socket, take: Callable[[trio.socket.SocketType], object], most: int
) -> bool:
    """Accept waiting connections, at most *most*.

    Returns False if there is no descriptor or no memory for another one.
    """
    for _ in range(most):
        try:
            connection, _address = raw.accept()
        except BlockingIOError:
            break
        except OSError as exc:
            if exc.errno in _NO_ROOM:
                return False
            if exc.errno in _CLOSED:
                raise
            continue  # only this connection has failed
        take(trio.socket.from_stdlib_socket(connection))
    return True
