"""The sockets that a service listens on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from trioresume.server.api.addresses import parse_address

if TYPE_CHECKING:
    from trioresume.server.api.config import Config

__all__ = ["Listener", "open_listeners"]


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens, with or without TLS."""

    listener: trio.SocketListener
    is_secure: bool

    @property
    def url(self) -> str:
        """``http://HOST:PORT``, or ``https`` if TLS is spoken."""
        host, port = self.listener.socket.getsockname()[:2]
        scheme = "https" if self.is_secure else "http"
        return (
            f"{scheme}://[{host}]:{port}"
            if ":" in host
            else f"{scheme}://{host}:{port}"
        )

    def close(self) -> None:
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
            listeners += [
                Listener(listener, address.scheme == "https")
                for listener in await trio.open_tcp_listeners(
                    address.port, host=address.host or None, backlog=config.backlog
                )
            ]
        yield listeners
    finally:
        for listener in listeners:
            listener.close()
