"""Makes connections to an origin: an interface, and its implementation for TCP."""

from __future__ import annotations

from typing import Protocol

import trio

from trioresume.errors import CallerError
from trioresume.protocol.urls import Origin

__all__ = ["Connector", "TcpConnector"]


class Connector(Protocol):
    """Makes connections. Other implementations can add TLS, proxies or Unix sockets."""

    async def connect(self, origin: Origin) -> trio.abc.Stream:
        """Return a new stream to *origin*.

        Raises :class:`OSError` if it fails now, which the client tries again, and
        :class:`CallerError` if it can never succeed. If cancelled, it leaves nothing
        open.
        """
        ...


class TcpConnector:
    """Connects to the origin by plain TCP, within *timeout* seconds with the name lookup."""

    def __init__(self, timeout: float = 10.0) -> None:
        self._timeout = timeout

    async def connect(self, origin: Origin) -> trio.abc.Stream:
        if origin.scheme != "http":
            raise CallerError(
                f"{origin.scheme}://{origin.authority} cannot be reached: only http:// is"
                " spoken"
            )
        with trio.move_on_after(self._timeout):
            return await trio.open_tcp_stream(origin.host, origin.port)
        raise TimeoutError(
            f"no connection to {origin.authority} in {self._timeout:g} s"
        )
