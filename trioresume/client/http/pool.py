"""Keeps connections for the next request to the same origin, and shares those of HTTP/2."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self

import trio

from trioresume.client.http.carriers import CarrierChoice
from trioresume.client.http.connector import Connector, Route
from trioresume.client.http.exchange import Connection
from trioresume.client.http.http1.connection import Http1Connection
from trioresume.client.http.http2.connection import Http2Connection
from trioresume.errors import CallerError
from trioresume.protocol.urls import Origin

__all__ = ["Pool"]

MAX_IDLE_PER_ORIGIN = 8

Key = tuple[Origin, bool]
"""An origin, and whether it is the request's own."""


class _Attempt:
    """A connection that is being made, for all that could share it."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.failure: OSError | None = None


class Pool:
    """Connections of HTTP/1.1 that are idle, and connections of HTTP/2.

    *connector* makes them, and *strange* those to an origin that is not a request's own.
    *choice* says where HTTP/2 may come about. Connections of HTTP/2 run in the pool's own
    nursery, so they need its ``async with``. *idle_timeout* is for how many seconds they
    may be silent.
    """

    def __init__(
        self,
        connector: Connector,
        strange: Connector | None = None,
        *,
        choice: CarrierChoice | None = None,
        idle_timeout: float = 60.0,
    ) -> None:
        self._connector = connector
        self._strange = strange or connector
        self._choice = choice or CarrierChoice(False)
        self._idle_timeout = idle_timeout
        self._idle: defaultdict[Key, list[Http1Connection]] = defaultdict(list)
        self._shared: defaultdict[Key, list[Http2Connection]] = defaultdict(list)
        self._attempts: dict[Key, _Attempt] = {}
        self._speaks_http1: set[Key] = set()
        """Where the last connection was of HTTP/1.1, so that nobody waits to share one."""
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close idle connections now, and those in use as soon as they are given back."""
        self._closed = True
        connections = [
            connection for idle in self._idle.values() for connection in idle
        ]
        self._idle.clear()
        try:
            for connection in connections:
                await connection.aclose()
        finally:
            assert self._nursery is not None
            assert self._manager is not None
            self._nursery.cancel_scope.cancel()
            # The nursery does not learn of *value*: it would wrap it in a group.
            await self._manager.__aexit__(None, None, None)

    @asynccontextmanager
    async def connection(
        self, origin: Origin, *, own: bool = True
    ) -> AsyncIterator[Connection]:
        """Provide a connection for one exchange, and keep it if it can serve another.

        *own* says that the request is for its own origin, so that a client's certificate
        may be shown. Raises :class:`OSError` if no connection can be made. An exception
        in the block, also cancellation, closes the connection, or resets the stream.
        """
        key = origin, own
        taken = await self._take(key)
        if isinstance(taken, Http2Connection):
            place = taken.take_place()
            try:
                yield place
            finally:
                place.close()
                if taken.wants_http1:
                    self._choice.note_refusal(origin)
            return
        keep = False
        try:
            yield taken
            keep = self._has_room(key) and taken.make_reusable()
        finally:
            if keep:
                self._idle[key].append(taken)
            else:
                await taken.aclose()

    async def _take(self, key: Key) -> Http1Connection | Http2Connection:
        while True:
            if self._closed or self._nursery is None:
                raise CallerError(
                    "the client is closed; use it inside its `async with`"
                )
            ready = await self._ready(key)
            if ready is not None:
                return ready
            waiting = [each for each in self._shared[key] if each.may_get_place]
            if waiting:
                await waiting[0].changed()
                continue
            attempt = self._attempts.get(key)
            if attempt is None:
                return await self._connect(key)
            await attempt.over.wait()
            if attempt.failure is not None:
                # Each request fails with an error of its own.
                raise copy.copy(attempt.failure) from attempt.failure

    async def _ready(self, key: Key) -> Http1Connection | Http2Connection | None:
        """Return a connection that can carry a request now."""
        for shared in self._shared[key]:
            if shared.has_place:
                return shared
        idle = self._idle[key]
        while idle:
            connection = idle.pop()
            if not connection.stale:
                return connection
            await connection.aclose()
        return None

    async def _connect(self, key: Key) -> Http1Connection | Http2Connection:
        origin, own = key
        connector = self._connector if own else self._strange
        attempt = _Attempt()
        if self._choice.may_be_http2(origin) and key not in self._speaks_http1:
            self._attempts[key] = attempt
        try:
            return self._made(key, await connector.connect(origin))
        except OSError as exc:
            attempt.failure = exc
            raise
        finally:
            if self._attempts.get(key) is attempt:
                del self._attempts[key]
            attempt.over.set()

    def _made(self, key: Key, route: Route) -> Http1Connection | Http2Connection:
        origin, _ = key
        if not route.http2:
            self._speaks_http1.add(key)
            return Http1Connection(route, origin)
        self._speaks_http1.discard(key)
        connection = Http2Connection(route.stream, origin, self._idle_timeout)
        self._shared[key].append(connection)
        assert self._nursery is not None
        self._nursery.start_soon(self._run, key, connection)
        return connection

    async def _run(self, key: Key, connection: Http2Connection) -> None:
        try:
            await connection.run()
        finally:
            self._shared[key].remove(connection)

    def _has_room(self, key: Key) -> bool:
        return not self._closed and len(self._idle[key]) < MAX_IDLE_PER_ORIGIN
