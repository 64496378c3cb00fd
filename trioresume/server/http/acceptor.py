"""Accept connections, several in each round of the event loop.

trio's ``serve_listeners`` accepts one connection in each round. A thousand busy uploads make
a round last some milliseconds. If a thousand clients connect at once, the last one would
wait for seconds before the server reads its request, even if it only asks for an offset.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

import trio

__all__ = ["accept_from"]

logger = logging.getLogger("trioresume.server")

MOST_AT_ONCE = 32
"""Connections accepted before other tasks get their turn: some 2 ms of work."""
PAUSE = 0.1
"""Seconds until the next try when there is no descriptor or no memory for a connection."""

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_CLOSED = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


async def accept_from(
    listener: trio.SocketListener, take: Callable[[trio.socket.SocketType], object]
) -> None:
    """Call *take* with each connection that comes to *listener*, until cancelled.

    A connection that ended before it was accepted is skipped. Raises :class:`OSError` if
    the listener is closed.
    """
    # A socket of our own, to accept without trio's checkpoint. The listener owns the descriptor.
    raw = socket.socket(fileno=listener.socket.fileno())
    raw.setblocking(False)
    try:
        while True:
            await trio.lowlevel.wait_readable(raw)
            if not _accept_some(raw, take):
                logger.error(
                    "no descriptor or memory for another connection; trying again"
                )
                await trio.sleep(PAUSE)
    finally:
        raw.detach()


def _accept_some(
    raw: socket.socket, take: Callable[[trio.socket.SocketType], object]
) -> bool:
    """Accept waiting connections, at most ``MOST_AT_ONCE``.

    Returns False if there is no descriptor or no memory for another one.
    """
    for _ in range(MOST_AT_ONCE):
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
