"""Keeps connections for the next request to the same origin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trioresume.client.http.connection import ClientConnection
from trioresume.client.http.connector import Connector
from trioresume.errors import CallerError
from trioresume.protocol.urls import Origin

__all__ = ["Pool"]

MAX_IDLE_PER_ORIGIN = 8


class Pool:
    """Idle connections: a few for each origin, the most recently used first.

    *connector* makes them, and *strange* those to an origin that is not a request's own.
    """

    def __init__(self, connector: Connector, strange: Connector | None = None) -> None:
        self._connector = connector
        self._strange = strange or connector
        self._idle: defaultdict[tuple[Origin, bool], list[ClientConnection]] = (
            defaultdict(list)
        )
        self._closed = False

    @asynccontextmanager
    async def connection(
        self, origin: Origin, *, own: bool = True
    ) -> AsyncIterator[ClientConnection]:
        """Provide a connection for one exchange, and keep it if it can serve another.

        *own* says that the request is for its own origin, so that a client's certificate
        may be shown. Raises :class:`OSError` if no connection can be made. An exception
        in the block, also cancellation, closes the connection.
        """
        idle = self._idle[origin, own]
        connection = await self._take(origin, idle, own)
        keep = False
        try:
            yield connection
            keep = self._has_room(idle) and connection.make_reusable()
        finally:
            if keep:
                idle.append(connection)
            else:
                await connection.aclose()

    async def _take(
        self, origin: Origin, idle: list[ClientConnection], own: bool
    ) -> ClientConnection:
        if self._closed:
            raise CallerError("the client is closed; use it inside its `async with`")
        while idle:
            connection = idle.pop()
            if not connection.stale:
                return connection
            await connection.aclose()
        connector = self._connector if own else self._strange
        return ClientConnection(await connector.connect(origin), origin)

    def _has_room(self, idle: list[ClientConnection]) -> bool:
        return not self._closed and len(idle) < MAX_IDLE_PER_ORIGIN

    async def aclose(self) -> None:
        """Close idle connections now, and those in use as soon as they are given back."""
        self._closed = True
        connections = [
            connection for idle in self._idle.values() for connection in idle
        ]
        self._idle.clear()
        for connection in connections:
            await connection.aclose()
