"""Makes connections to an origin: an interface, and its implementation for the network.

A connection is direct or through a proxy. To an ``https://`` origin a proxy opens a
tunnel (CONNECT, RFC 9110, section 9.3.6), and TLS is spoken with the origin itself. For
``http://`` the proxy gets the requests, with the whole URL as their target.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import h11
import trio

from trioresume.client.http.carriers import CarrierChoice
from trioresume.client.http.tls import ClientTls, HopelessConnection, explain
from trioresume.client.http.tls_stream import TlsStream

if TYPE_CHECKING:
    from trioresume.client.http.proxies import Proxies, Proxy
    from trioresume.protocol.urls import Origin

__all__ = ["Connector", "NetworkConnector", "Route"]

_TRY_AGAIN = frozenset({408, 425, 429})
"""Statuses below 500 with which a proxy says "not now"."""

_HEAD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    """A new connection."""

    stream: trio.abc.Stream
    proxy: Proxy | None = None
    """The proxy that gets the requests, and passes them on; None if the server does."""
    http2: bool = False
    """Whether HTTP/2 is spoken on it."""


class Connector(Protocol):
    """Makes connections. Other implementations can use Unix sockets, for example."""

    async def connect(self, origin: Origin) -> Route:
        """Return a new connection to *origin*.

        Raises :class:`OSError` if it fails now, which the client tries again,
        :class:`~trioresume.client.http.tls.HopelessConnection` if another attempt makes
        no sense, and :class:`CallerError` if it can never succeed. If cancelled, it
        leaves nothing open.
        """
        ...


class NetworkConnector:
    """Connects by TCP and TLS, within *timeout* seconds with the name lookup.

    *tls* is a context, or the settings from which one is made at the first need. A
    context of the caller says itself which protocols it offers (ALPN). *choice* says when
    HTTP/2 is spoken.
    """

    def __init__(
        self,
        tls: ClientTls | ssl.SSLContext,
        proxies: Proxies,
        timeout: float = 10.0,
        choice: CarrierChoice | None = None,
    ) -> None:
        self._tls = tls
        self._choice = choice or CarrierChoice(False)
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        """A context for each list of protocols to offer."""
        self._proxies = proxies
        self._timeout = timeout

    async def connect(self, origin: Origin) -> Route:
        http2 = self._choice.knows_http2(origin)
        proxy = self._proxies.proxy_for(origin)
        with trio.move_on_after(self._timeout):
            if proxy is None:
                stream: trio.abc.Stream = await trio.open_tcp_stream(
                    origin.host, origin.port
                )
            else:
                stream = await self._to_proxy(proxy)
                if origin.scheme == "http" and not http2:
                    return Route(stream, proxy)
                try:
                    await _open_tunnel(stream, proxy, origin)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
            if origin.scheme == "http":
                return Route(stream, http2=http2)
            return await self._secure(stream, origin, self._choice.alpn(origin))
        raise TimeoutError(
            f"no connection to {origin.authority} in {self._timeout:g} s"
        )

    async def _to_proxy(self, proxy: Proxy) -> trio.abc.Stream:
        origin = proxy.origin
        try:
            stream = await trio.open_tcp_stream(origin.host, origin.port)
        except socket.gaierror as exc:
            if exc.errno != socket.EAI_NONAME:
                raise
            raise HopelessConnection(
                f"the proxy {proxy} cannot be found: {exc.strerror}"
            ) from exc
        if origin.scheme == "http":
            return stream
        return (await self._secure(stream, origin, ("http/1.1",))).stream

    async def _context(self, offer: tuple[str, ...]) -> ssl.SSLContext:
        if isinstance(self._tls, ssl.SSLContext):
            return self._tls
        if offer not in self._contexts:
            context = await trio.to_thread.run_sync(self._tls.context)
            context.set_alpn_protocols(offer)
            self._contexts[offer] = context
        return self._contexts[offer]

    async def _secure(
        self, stream: trio.abc.Stream, origin: Origin, offer: tuple[str, ...]
    ) -> Route:
        """Speak TLS on *stream*, which is closed if that fails. *offer* is for ALPN."""
        secured: TlsStream | trio.SSLStream[trio.abc.Stream] | None = None
        try:
            context = await self._context(offer)
            if isinstance(stream, trio.SocketStream):
                secured = TlsStream(stream, context, origin.host)
                await secured.do_handshake()
                chosen = secured.socket.selected_alpn_protocol()
            else:
                # TLS within the TLS of a proxy: no socket is left to take over.
                secured = trio.SSLStream(stream, context, server_hostname=origin.host)
                await secured.do_handshake()
                chosen = secured.selected_alpn_protocol()
            if (chosen or "http/1.1") not in offer:
                raise HopelessConnection(_why_not_offered(origin, chosen))
        except trio.BrokenResourceError as exc:
            await trio.aclose_forcefully(secured or stream)
            raise explain(exc, origin) or ConnectionError(
                f"TLS with {origin.authority} broke: {exc.__cause__ or exc}"
            ) from exc
        except BaseException:
            await trio.aclose_forcefully(secured or stream)
            raise
        return Route(secured, http2=chosen == "h2")


def _why_not_offered(origin: Origin, chosen: str | None) -> str:
    if chosen == "h2":
        return (
            f"HTTP/2 is forbidden for {origin.authority}, but the TLS context offers it"
        )
    return f"{origin.authority} does not speak HTTP/2 (--http2 insists on it)"


async def _open_tunnel(stream: trio.abc.Stream, proxy: Proxy, origin: Origin) -> None:
    """Have *proxy* connect to *origin*. Raises :class:`OSError` if it does not."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"
    headers = [("Host", target), *proxy.fields]
    parser = h11.Connection(h11.CLIENT)
    request = h11.Request(method="CONNECT", target=target, headers=headers)
    try:
        head = parser.send(request) or b""
        await stream.send_all(head + (parser.send(h11.EndOfMessage()) or b""))
        while not isinstance(event := parser.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                parser.receive_data(bytes(await stream.receive_some(_HEAD_BYTES)))
    except (trio.BrokenResourceError, h11.RemoteProtocolError) as exc:
        raise ConnectionError(f"the proxy {proxy} broke the connection") from exc
    status = event.status_code
    if 200 <= status <= 299:
        return
    if status == 407:
        raise HopelessConnection(
            f"the proxy {proxy} wants a login, or another one: write it into the proxy's"
            " URL, as http://name:password@host"
        )
    said = f"the proxy {proxy} does not connect to {target}: it answered {status}"
    if status >= 500 or status in _TRY_AGAIN:
        raise ConnectionError(said)
    raise HopelessConnection(said)
