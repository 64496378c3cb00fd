"""How a connection to an origin is made: a port, and TCP behind it."""

from __future__ import annotations

from typing import Protocol

import trio

from trioresume.client.locations import Origin
from trioresume.errors import CallerError

__all__ = ["Connector", "TcpConnector"]


class Connector(Protocol):
    """Makes connections. TLS, proxies or Unix sockets are other implementations."""

    async def connect(self, origin: Origin) -> trio.abc.Stream:
        """A fresh stream to *origin*.

        Raises :class:`OSError` when it cannot be had now, which is tried again, and
        :class:`CallerError` when it never can. When cancelled, nothing is left open.
        """
        ...


class TcpConnector:
    """Plain TCP to the origin itself, within *timeout* seconds (name lookup included)."""

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
