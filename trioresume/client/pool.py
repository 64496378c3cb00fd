"""Keeps connections for the next request to the same origin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trioresume.client.connector import Connector
from trioresume.client.exchange import Link
from trioresume.errors import CallerError
from trioresume.protocol.urls import Origin

__all__ = ["Pool"]

MAX_IDLE_PER_ORIGIN = 8


class Pool:
    """Idle connections: a few for each origin, the most recently used first."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._idle: defaultdict[Origin, list[Link]] = defaultdict(list)
        self._closed = False

    @asynccontextmanager
    async def link(self, origin: Origin) -> AsyncIterator[Link]:
        """Provide a connection for one exchange, and keep it if it can serve another.

        Raises :class:`OSError` if no connection can be made. An exception in the block,
        also cancellation, closes the connection.
        """
        link = await self._take(origin)
        keep = False
        try:
            yield link
            keep = self._has_room(origin) and link.make_reusable()
        finally:
            if keep:
                self._idle[origin].append(link)
            else:
                await link.aclose()

    async def _take(self, origin: Origin) -> Link:
        if self._closed:
            raise CallerError("the client is closed; use it inside its `async with`")
        idle = self._idle[origin]
        while idle:
            link = idle.pop()
            if not link.stale:
                return link
            await link.aclose()
        return Link(await self._connector.connect(origin), origin)

    def _has_room(self, origin: Origin) -> bool:
        return not self._closed and len(self._idle[origin]) < MAX_IDLE_PER_ORIGIN

    async def aclose(self) -> None:
        """Close idle connections now, and those in use as soon as they are given back."""
        self._closed = True
        links = [link for idle in self._idle.values() for link in idle]
        self._idle.clear()
        for link in links:
            await link.aclose()
