"""``serve`` through hypercorn: its trio worker carries the requests, and our listener feeds it.

hypercorn 0.18 has faults by which one client can end a whole server: an exception in its code
for one connection leaves the nursery of all connections. An example is DATA that comes after
an early final response over HTTP/2. So hypercorn does not listen here. Each connection that we
accept gets an instance of hypercorn's connection in a nursery of its own. What escapes ends
this connection, and is logged.

HTTP/3 has one UDP socket for all connections. An exception while a datagram is handled is
logged, and the next datagram is read. If the endpoint itself fails, it begins anew on the same
socket: the connections over HTTP/3 are lost, and their clients come back.

This stays a front for those who need HTTP/3 or know hypercorn: a stalled application still
stalls its own connection, and its windows stay at 64 KiB.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import RawData
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.udp_server import UDPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from trioresume.asgi.engines import TrioEngine
from trioresume.errors import CallerError
from trioresume.server.api.config import Config
from trioresume.server.api.handler import as_target
from trioresume.server.api.tls import TLSSettings
from trioresume.server.http.front import affordable
from trioresume.server.http.listeners import accept_from, open_listeners
from trioresume.server.http.tls.contexts import ServerContexts
from trioresume.server.routes.upload_page import UploadPage
from trioresume.server.serving import Server, running_engine

if TYPE_CHECKING:
    import ssl

    from trioresume.asgi.channels import Receive, Send
    from trioresume.asgi.engines import Scope
    from trioresume.server.api.handler import AnyTarget, Handler
    from trioresume.server.http.listeners import Listener
    from trioresume.store.port import Store

__all__ = ["serve"]

logger = logging.getLogger("trioresume.hypercorn")

PROTOCOLS = ("h2", "http/1.1")
"""The application protocols that a handshake offers (ALPN), the best one first."""

LAST_SECONDS = 1.0
"""Seconds after the last request in which connections may send what they have."""

MOST_BYTES = 64 * 1024
"""A datagram is not longer."""

RESTART_PAUSE = 0.1
"""Seconds until the endpoint of HTTP/3 begins anew after a failure."""


async def serve(
    handler: Handler | AnyTarget,
    config: Config | None = None,
    *,
    http3: bool = False,
    store: Store | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a service as :func:`trioresume.serve` does, with hypercorn for HTTP.

    With *http3*, HTTP/3 is spoken on the UDP port of each address that has TLS; this needs the
    extra ``http3``.

    Raises as :func:`trioresume.serve`, and :class:`~trioresume.errors.CallerError` if *http3*
    has no certificate, or if aioquic is not installed.
    """
    config = config or Config()
    target = as_target(handler)
    page = None if config.ui is None else UploadPage(config)
    contexts = None
    if config.ssl is not None:
        protocols = PROTOCOLS if config.http2 else PROTOCOLS[1:]
        contexts = await trio.to_thread.run_sync(ServerContexts, config.ssl, protocols)
    settings = _settings(config)
    if http3:
        _prepare_http3(settings, config)
    async with (
        open_listeners(config) as listeners,
        running_engine(target, config, store=store, page=page) as doorman,
    ):
        engine = TrioEngine(doorman, config.grace_timeout)
        front = _Front(engine, settings, affordable(config.max_connections), contexts)
        if http3:
            front.add_http3(listeners)
        server = Server(
            [each.url for each in listeners],
            doorman.stopping,
            doorman.recovered,
            contexts,
            doorman.rulebook,
        )
        started = partial(task_status.started, server)
        await front.run(listeners, doorman.stopping, started)


def _settings(config: Config) -> HypercornConfig:
    """Return hypercorn's settings that mean what ours mean."""
    settings = HypercornConfig()
    settings.errorlog = logger
    settings.include_server_header = False
    settings.keep_alive_timeout = config.keep_alive_timeout
    settings.graceful_timeout = config.grace_timeout
    settings.ssl_handshake_timeout = config.header_timeout
    settings.h2_max_concurrent_streams = config.max_streams
    settings.h2_max_header_list_size = config.max_header_size
    settings.h11_max_incomplete_size = config.max_header_size
    settings.max_app_queue_size = 2  # blocks of content that wait for the engine
    return settings


def _prepare_http3(settings: HypercornConfig, config: Config) -> None:
    if not isinstance(config.ssl, TLSSettings):
        raise CallerError("HTTP/3 needs the files of a certificate in Config.ssl")
    certificate = config.ssl.certificates[0]
    if certificate.password is not None or config.ssl.client_auth != "none":
        raise CallerError(
            "hypercorn's HTTP/3 knows no passwords of keys and no clients' certificates"
        )
    if find_spec("aioquic") is None:
        raise CallerError("HTTP/3 needs aioquic: pip install 'trioresume[http3]'")
    settings.certfile = str(certificate.certfile)
    settings.keyfile = str(certificate.keyfile or certificate.certfile)


class _Front:
    """Accepts connections, and has hypercorn serve each of them alone."""

    def __init__(
        self,
        engine: TrioEngine,
        settings: HypercornConfig,
        most: int,
        contexts: ServerContexts | None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._most = most
        self._contexts = contexts
        # hypercorn's types name each message; ours are those of any server.
        self._app = ASGIWrapper(cast("Any", self._answer))
        self._context = WorkerContext(None)
        self._connections = 0
        self._datagrams: list[socket.socket] = []

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._engine.answer(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    def add_http3(self, listeners: Sequence[Listener]) -> None:
        """Open a UDP socket beside each listener that has TLS, and tell clients of it.

        Raises :class:`OSError` for an address that cannot be bound.
        """
        for listener in listeners:
            if listener.is_secure:
                name = listener.listener.socket.getsockname()
                datagrams = socket.socket(
                    listener.listener.socket.family, socket.SOCK_DGRAM
                )
                self._datagrams.append(datagrams)
                datagrams.setblocking(False)
                datagrams.bind(name)
                self._settings.alt_svc_headers = [f'h3=":{name[1]}"; ma=3600']

    async def run(
        self,
        listeners: Sequence[Listener],
        stopping: trio.Event,
        started: Callable[[], None],
    ) -> None:
        """Serve until *stopping*, and then until the connections are closed or time is up."""
        try:
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as listening:
                    for listener in listeners:
                        listening.start_soon(self._accept, listener, connections)
                    for datagrams in self._datagrams:
                        connections.start_soon(self._serve_datagrams, datagrams)
                    started()
                    await stopping.wait()
                    listening.cancel_scope.cancel()
                for listener in listeners:
                    listener.close()
                logger.info("shutting down, %d connections open", self._connections)
                await self._context.terminated.set()  # idle connections close at once
                await self._engine.finish()
                # The last answers are still to be sent. Nothing tells of the end of HTTP/3.
                deadline = trio.current_time() + LAST_SECONDS
                connections.cancel_scope.deadline = deadline
        finally:
            for datagrams in self._datagrams:
                datagrams.close()

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> None:
        def take(sock: trio.socket.SocketType) -> None:
            if self._connections >= self._most:
                sock.close()  # a flood must cost as little as possible
                return
            self._connections += 1
            connections.start_soon(self._serve_alone, sock, listener.is_secure)

        await accept_from(listener.listener, take)

    async def _serve_alone(self, sock: trio.socket.SocketType, is_secure: bool) -> None:
        """Serve one connection. Whatever fails in it is logged, and ends nothing else."""
        stream: Any = trio.SocketStream(sock)
        if is_secure:
            assert self._contexts is not None
            context: ssl.SSLContext = self._contexts.first
            stream = trio.SSLStream(
                stream, context, server_side=True, https_compatible=True
            )
        try:
            await self._guarded(
                _Connection(
                    self._app,
                    self._settings,
                    self._context,
                    ConnectionState({}),
                    stream,
                ).run,
                "a connection failed in hypercorn",
            )
        finally:
            self._connections -= 1
            sock.close()

    async def _serve_datagrams(self, datagrams: socket.socket) -> None:
        while True:
            # Its own copy, since hypercorn's endpoint may close it.
            endpoint = _Http3(
                self._app,
                self._settings,
                self._context,
                ConnectionState({}),
                datagrams.dup(),
            )
            try:
                await self._guarded(endpoint.run, "the endpoint of HTTP/3 failed")
            finally:
                endpoint.socket.close()
            if self._context.terminated.is_set():
                return
            await trio.sleep(RESTART_PAUSE)

    async def _guarded(
        self, function: Callable[[], Awaitable[None]], said: str
    ) -> None:
        try:
            await function()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as group:
            logger.debug("%s: %r", said, group.exceptions)
        except* Exception:
            logger.exception("%s", said)


class _Connection(TCPServer):
    """hypercorn's connection, which ends when its peer has ended it.

    Otherwise one without a request would last for ``keep_alive_timeout``, and hold its place.
    """

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _Http3(UDPServer):
    """hypercorn's endpoint of HTTP/3, whose datagrams fail alone."""

    async def run(
        self, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        from hypercorn.protocol.quic import QuicProtocol  # it needs aioquic

        name = parse_socket_addr(self.socket.family, self.socket.getsockname())
        async with TaskGroup() as tasks:
            protocol = QuicProtocol(
                self.app,
                self.config,
                self.context,
                tasks,
                ConnectionState({}),
                name,
                self.protocol_send,
            )
            while not (self.context.terminated.is_set() and protocol.idle):
                data, address = await self.socket.recvfrom(MOST_BYTES)
                try:
                    await protocol.handle(RawData(data=data, address=address))
                except Exception:
                    logger.exception("a datagram of HTTP/3 failed in hypercorn")
