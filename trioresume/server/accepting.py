"""Taking in connections, several in each round of the event loop.

trio's ``serve_listeners`` takes in one a round. While a thousand uploads keep the loop
busy a round takes some milliseconds, and of a thousand clients that come at once the last
one would wait for seconds before its request is so much as read: among them whoever only
wants to know an offset.
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
"""Connections taken in before others have their turn: some 2 ms of work."""
PAUSE = 0.1
"""Seconds until the next try when there is no descriptor, or no memory, for another one."""

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_CLOSED = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


async def accept_from(
    listener: trio.SocketListener, take: Callable[[trio.socket.SocketType], object]
) -> None:
    """Call *take* with each connection that comes to *listener*, until cancelled.

    A connection that ended before it was taken in is passed over. Raises
    :class:`OSError` if the listener is closed.
    """
    # Its accept without trio's checkpoint; the descriptor stays the listener's.
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
    """Take in those that wait, within bounds; whether there is room for more."""
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
            continue  # it is that connection's trouble
        take(trio.socket.from_stdlib_socket(connection))
    return True
