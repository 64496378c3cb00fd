"""A connection to a server, and the state of its HTTP/1.1 parser."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import h11
import trio

if TYPE_CHECKING:
    from trioresume.protocol.urls import Origin

__all__ = ["MAX_HEAD_BYTES", "ClientConnection"]

MAX_HEAD_BYTES = 64 * 1024
"""The longest response head that is read."""


class ClientConnection:
    """A connection and the parser's state for it."""

    def __init__(self, stream: trio.abc.Stream, origin: Origin) -> None:
        self.stream = stream
        self.origin = origin
        self.parser = h11.Connection(
            h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES
        )

    def make_reusable(self) -> bool:
        """Prepare for the next exchange. Return False if the connection cannot be used again."""
        unread, _ = self.parser.trailing_data
        if unread:
            return False
        try:
            self.parser.start_next_cycle()
        except h11.LocalProtocolError:
            return False
        return True

    @property
    def stale(self) -> bool:
        """Whether the server closed the idle connection meanwhile."""
        if not isinstance(self.stream, trio.SocketStream):
            return False
        poll = select.poll()
        poll.register(self.stream.socket.fileno(), select.POLLIN)
        # Between exchanges the server sends nothing, so readable means closed.
        return bool(poll.poll(0))

    async def aclose(self) -> None:
        """Close at once, also if the exchange is unfinished."""
        await trio.aclose_forcefully(self.stream)
