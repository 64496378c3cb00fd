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
    """Idle connections: a few for each origin, the most recently used first."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._idle: defaultdict[Origin, list[ClientConnection]] = defaultdict(list)
        self._closed = False

    @asynccontextmanager
    async def connection(self, origin: Origin) -> AsyncIterator[ClientConnection]:
        """Provide a connection for one exchange, and keep it if it can serve another.

        Raises :class:`OSError` if no connection can be made. An exception in the block,
        also cancellation, closes the connection.
        """
        connection = await self._take(origin)
        keep = False
        try:
            yield connection
            keep = self._has_room(origin) and connection.make_reusable()
        finally:
            if keep:
                self._idle[origin].append(connection)
            else:
                await connection.aclose()

    async def _take(self, origin: Origin) -> ClientConnection:
        if self._closed:
            raise CallerError("the client is closed; use it inside its `async with`")
        idle = self._idle[origin]
        while idle:
            connection = idle.pop()
            if not connection.stale:
                return connection
            await connection.aclose()
        return ClientConnection(await self._connector.connect(origin), origin)

    def _has_room(self, origin: Origin) -> bool:
        return not self._closed and len(self._idle[origin]) < MAX_IDLE_PER_ORIGIN

    async def aclose(self) -> None:
        """Close idle connections now, and those in use as soon as they are given back."""
        self._closed = True
        connections = [
            connection for idle in self._idle.values() for connection in idle
        ]
        self._idle.clear()
        for connection in connections:
            await connection.aclose()
