"""A connection to a server, and the state of its HTTP/1.1 parser."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import h11
import trio

from trioresume.client.http.exchange import MAX_HEAD_BYTES
from trioresume.client.http.http1.exchange import Http1Exchange
from trioresume.client.http.tls_stream import TlsStream

if TYPE_CHECKING:
    from trioresume.client.http.connector import Route
    from trioresume.client.http.exchange import Moved
    from trioresume.protocol.urls import Origin

__all__ = ["Http1Connection"]


class Http1Connection:
    """A connection and the parser's state for it."""

    def __init__(self, route: Route, origin: Origin) -> None:
        self.stream = route.stream
        self.origin = origin
        self._proxy = route.proxy
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
        descriptor = _descriptor(self.stream)
        if descriptor is None:
            return False
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        # Between exchanges the server sends nothing, so readable means closed.
        return bool(poll.poll(0))

    def begin(self, request: h11.Request, on_moved: Moved) -> Http1Exchange:
        return Http1Exchange(
            self.stream, self.parser, self._addressed(request), on_moved
        )

    def _addressed(self, request: h11.Request) -> h11.Request:
        """Return *request* in the form for the other end: with the whole URL for a proxy."""
        if self._proxy is None:
            return request
        scheme = self.origin.scheme.encode("ascii")
        authority = self.origin.authority.encode("ascii")
        return h11.Request(
            method=request.method,
            target=scheme + b"://" + authority + request.target,
            headers=[*request.headers, *self._proxy.fields],
        )

    async def aclose(self) -> None:
        """Close at once, also if the exchange is unfinished."""
        await trio.aclose_forcefully(self.stream)


def _descriptor(stream: trio.abc.Stream) -> int | None:
    """Return the descriptor of the connection; None if it has none."""
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream | TlsStream):
        return stream.socket.fileno()
    return None
