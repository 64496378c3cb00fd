"""The doorman: lets connections in, has each one served, and ends them at a shutdown."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError
from trioresume.server.http.front import Front
from trioresume.server.http.http1.connection import Http1Connection
from trioresume.server.http.http2.connection import Http2Connection
from trioresume.server.http.listeners import accept_from
from trioresume.server.http.tls.handshake import Arrival, Handshakes
from trioresume.server.http.transport import SocketTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.api.config import Config
    from trioresume.server.api.rulebook import Rulebook
    from trioresume.server.http.connection_counts import SharedCounts
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.http.listeners import Listener
    from trioresume.server.http.tls.contexts import ServerContexts
    from trioresume.server.http.transport import Transport
    from trioresume.store.port import OperationId

__all__ = ["Doorman"]

logger = logging.getLogger("trioresume.server")

MOST_TURNED_AWAY = 32
"""Connections over the limit that are answered at a time; others are closed at once."""


class Doorman:
    """Listens, accepts connections, and ends them at a shutdown."""

    def __init__(
        self,
        handle: Callable[[Exchange], Awaitable[None]],
        config: Config,
        clock: ServiceClock,
        contexts: ServerContexts | None = None,
        rulebook: Rulebook | None = None,
        counts: SharedCounts | None = None,
    ) -> None:
        self.contexts = contexts
        self.rulebook = rulebook
        """The rules in force, if the service has any."""
        self.front = Front(handle, config, clock, counts)
        self._counts = counts
        self._handshakes = Handshakes(self.front.admission, config.header_timeout)
        self._connections: set[Http1Connection | Http2Connection] = set()
        self._turned_away = 0
        self.grace = config.grace_timeout
        """Seconds for the running requests once a shutdown begins."""
        self.deadline = float("inf")
        """The end of a shutdown's grace period, on trio's clock."""
        self.retry: Callable[[OperationId], Awaitable[int | None]] | None = None
        """Has a request processed again: :meth:`Retries.retry`."""
        self._scope: trio.CancelScope | None = None
        self.recovered = trio.Event()
        """Set when what an earlier run left unprocessed was taken up again."""
        self.stopping = trio.Event()
        """Set to ask for a shutdown."""
        self._listens = False

    def count_connections(self) -> Counter[str]:
        """Return how many connections there are, by what they speak.

        If another server carries the requests, each request counts as a connection.
        """
        if not self._listens:
            return Counter({"asgi": self.front.admission.connections})
        counts = Counter({Http1Connection.carrier: 0, Http2Connection.carrier: 0})
        counts.update(connection.carrier for connection in self._connections)
        return counts

    def end_within(self, seconds: float) -> None:
        """Begin a shutdown of at most so many *seconds*, or shorten the running one."""
        if not self.stopping.is_set():
            self.grace = seconds
            self.stopping.set()
            return
        self.grace = min(self.grace, seconds)
        deadline = trio.current_time() + seconds
        if self._scope is not None and deadline < self.deadline:
            self._end_by(deadline, self._scope)

    def _end_by(self, deadline: float, scope: trio.CancelScope) -> None:
        self.deadline = scope.deadline = deadline
        for connection in list(self._connections):
            connection.stop(deadline)

    async def run(
        self, listeners: Sequence[Listener], started: Callable[[], None]
    ) -> None:
        """Serve until a shutdown was asked for and every connection is closed.

        Calls *started* once connections are accepted.
        """
        self._listens = True
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as listening:
                for listener in listeners:
                    listening.start_soon(self._accept, listener, connections)
                if self._counts is not None:
                    self._counts.begin()
                started()
                await self.stopping.wait()
                listening.cancel_scope.cancel()
                if self._counts is not None:
                    self._counts.end()
            # At once: a new client should go to another server and not wait here.
            for listener in listeners:
                listener.close()
            logger.info("shutting down, %d connections open", len(self._connections))
            self._handshakes.stop()
            self._scope = connections.cancel_scope
            self._end_by(trio.current_time() + self.grace, self._scope)

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> None:
        serve = self.serve_secured if listener.is_secure else self.serve_transport

        async def serve_alone(sock: trio.socket.SocketType) -> None:
            # Whatever a client does, or a bug: it ends this connection and no other.
            transport = SocketTransport(sock)
            try:
                await serve(transport)
            except Exception:
                logger.exception("the connection of %s failed", transport.peer)
                await transport.aclose()

        await accept_from(
            listener.listener,
            lambda sock: connections.start_soon(serve_alone, sock),
            self._counts,
        )

    async def serve_secured(self, plain: SocketTransport) -> None:
        """Shake hands, and serve the connection until it ends."""
        assert self.contexts is not None
        arrival = Arrival(self.front.gateway.address_of(plain.peer))
        refusal: PeerError | None = None
        plain_request: PeerError | None = None
        try:
            self.front.admission.enter(arrival)
        except PeerError as exc:
            if self._turned_away >= MOST_TURNED_AWAY:
                await plain.aclose()  # a flood must cost as little as possible
                return
            refusal = exc
            self._turned_away += 1
        transport: Transport = plain
        try:
            transport = await self._handshakes.secure(
                plain, self.contexts.first, arrival
            )
        except PeerError as exc:
            plain_request = exc
        except trio.BrokenResourceError as exc:
            logger.debug("%s: %s", plain.peer, exc)
            return
        finally:
            self.front.admission.leave(arrival)
            if refusal is not None:
                self._turned_away -= 1
        await self.serve_transport(transport, plain_request or refusal)

    async def serve_transport(
        self, transport: Transport, refusal: PeerError | None = None
    ) -> None:
        """Serve one connection until it ends, and close it.

        With *refusal* nothing is served: that is the answer to whatever comes.
        """
        chosen = None if transport.tls is None else transport.tls.protocol
        connection: Http1Connection | Http2Connection
        if chosen == "h2":
            connection = Http2Connection(transport, self.front)
        else:
            connection = Http1Connection(transport, self.front)
        try:
            if refusal is not None:
                raise refusal
            self.front.admission.enter(connection)
        except PeerError as exc:
            await self._turn_away(connection, transport, exc)
            return
        await self._run(connection)
        if isinstance(connection, Http1Connection) and connection.preface is not None:
            # It takes the place that the other one has just left.
            spoken = Http2Connection(transport, self.front, connection.preface)
            self.front.admission.enter(spoken)
            await self._run(spoken)

    async def _run(self, connection: Http1Connection | Http2Connection) -> None:
        """Run a connection that admission has let in."""
        self._connections.add(connection)
        if self.deadline < float("inf"):
            connection.stop(self.deadline)  # it was accepted at the last moment
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self.front.admission.leave(connection)

    async def _turn_away(
        self,
        connection: Http1Connection | Http2Connection,
        transport: Transport,
        error: PeerError,
    ) -> None:
        if self._turned_away >= MOST_TURNED_AWAY:
            await transport.aclose()  # a flood must cost as little as possible
            return
        logger.debug("%s is turned away: %s", transport.peer, error)
        self._turned_away += 1
        try:
            await connection.turn_away(error)
        finally:
            self._turned_away -= 1
