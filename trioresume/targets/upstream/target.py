"""``UpstreamTarget``: every request goes to a backend over HTTP.

What is promised
================

* A request with content is received first, resumably, and reaches the backend *whole*, with
  its ``Content-Length``, once. The kernel sends the content from the store's files.
* The backend's response is recorded before its first byte is sent, and can be fetched again.
  A response that was cut never counts as whole.
* At most once: :mod:`~trioresume.targets.upstream.round_trip` has the cases. If the backend
  cannot be reached, the content is kept and the request waits. If nobody knows what came of
  it, the client is told ``indeterminate``, and ``trioresume retry`` may send it again.
* A small request that nobody wants to resume, and a request without content, streams through.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.protocol.dialects import Interim
from trioresume.protocol.heads import Fields
from trioresume.server.api.handler import CallPolicy, Response
from trioresume.server.http.stored_body import StoredBody, StoredPart
from trioresume.server.uploads.locations import root_of
from trioresume.targets.upstream.connections import Pool
from trioresume.targets.upstream.endpoints import Route, parse_endpoint
from trioresume.targets.upstream.heads import (
    conveyed_fields,
    is_upgrade,
    public_fields,
    returned_fields,
    with_sender,
)
from trioresume.targets.upstream.passing import (
    ContentPasser,
    run_tunnel,
    while_client_waits,
)
from trioresume.targets.upstream.round_trip import (
    SAFE,
    AnswerBody,
    Outgoing,
    RoundTrips,
    send_in_time,
)

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import Request, Services
    from trioresume.server.http.exchange import Exchange
    from trioresume.targets.upstream.connections import Connection
    from trioresume.targets.upstream.heads import ForwardedWith
    from trioresume.targets.upstream.round_trip import Answer, SendContent

__all__ = ["UpstreamTarget"]

_IDEMPOTENT = SAFE | {"DELETE", "PUT"}
"""RFC 9110, section 9.2.2."""


class UpstreamTarget:
    """A :class:`~trioresume.Target` that sends each complete request to a backend.

    *urls* are ``http://HOST:PORT``, ``https://…`` or ``unix:PATH``. Several are the same
    backend: requests take turns, and go on to the next one if one cannot be reached. *routes*
    gives other backends for the paths below a prefix; the longest prefix decides.

    Requests without content stream through, and so does a request with at most
    *pass_through_size* bytes that nobody wants to resume. A backend may make no progress for
    *timeout* seconds (504); connecting takes at most *connect_timeout*. A tunnel (``Upgrade``)
    may be silent for *tunnel_timeout*.

    *host* replaces the client's ``Host``. *forwarded* names the fields that say who sent the
    request: ``"x-forwarded"``, ``"forwarded"`` or ``"none"``. *repeats_with_key* says that
    the backend respects ``Idempotency-Key``, so that any request may be sent again after its
    connection was lost. *tls* is the context for ``https://``; the default trusts the
    system's authorities.

    Raises :class:`~trioresume.CallerError` for a URL or a prefix that makes no sense.
    """

    policy = CallPolicy.AT_MOST_ONCE

    def __init__(
        self,
        *urls: str,
        routes: Mapping[str, str | Sequence[str]] | None = None,
        pass_through_size: int = 64 * 1024,
        timeout: float = 300.0,
        connect_timeout: float = 10.0,
        tunnel_timeout: float = 3600.0,
        host: str | None = None,
        forwarded: ForwardedWith = "x-forwarded",
        repeats_with_key: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        given = dict(routes or {})
        if urls:
            given.setdefault("/", urls)
        if not given:
            raise CallerError("an upstream target needs a URL or a route")
        if forwarded not in ("x-forwarded", "forwarded", "none"):
            raise CallerError("forwarded is 'x-forwarded', 'forwarded' or 'none'")
        self._routes = sorted(
            (
                Route(
                    prefix,
                    [
                        parse_endpoint(url)
                        for url in ([to] if isinstance(to, str) else to)
                    ],
                )
                for prefix, to in given.items()
            ),
            key=lambda route: len(route.prefix),
            reverse=True,
        )
        self._pass_through_size = pass_through_size
        self._timeout = timeout
        self._tunnel_timeout = tunnel_timeout
        self._host = host
        self._forwarded = forwarded
        self._repeats_with_key = repeats_with_key
        self._pool = Pool(tls, connect_timeout)
        self._trips = RoundTrips(self._pool, timeout)
        self._services: Services

    def attach(self, services: Services) -> None:
        self._services = services

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Keep connections while the service runs."""
        with self._pool.open():
            yield

    # What may be done with a request.

    def policy_for(self, head: RequestHead) -> CallPolicy:
        """An idempotent request may be sent again (RFC 9110, section 9.2.2)."""
        return (
            CallPolicy.IDEMPOTENT
            if self._may_repeat(head.method)
            else CallPolicy.AT_MOST_ONCE
        )

    def _may_repeat(self, method: str) -> bool:
        return self._repeats_with_key or method in _IDEMPOTENT

    async def admit(self, head: RequestHead, principal: str | None) -> None:
        """Refuse a request that no route covers."""
        self._route(head)

    def _route(self, head: RequestHead) -> Route:
        path = head.path
        for route in self._routes:
            if route.covers(path):
                return route
        raise PeerError(ProblemCode.NOT_FOUND)

    def fields_to_record(self, head: RequestHead) -> Fields:
        """Note who sent the request: later nobody can tell."""
        return with_sender(head, self._forwarded)

    def passes(self, head: RequestHead) -> bool:
        """Whether the request streams through."""
        return head.length is not None and head.length <= self._pass_through_size

    # A complete request.

    async def respond(self, request: Request) -> Response:
        """Send a complete request; return the response, whose content may still come."""
        head, body = request.head, request.body
        fields = request.headers
        if request.operation_id is None:
            fields = with_sender(head, self._forwarded)
        fields = conveyed_fields(fields, is_recorded=True)
        key = request.operation_id
        if key is not None and "idempotency-key" not in fields:
            fields = fields.plus({"idempotency-key": f'"{key}"'})
        has_content = body.length > 0 or head.method not in SAFE | {"DELETE"}
        outgoing = Outgoing(
            method=head.method,
            target=head.target,
            fields=self._framed(head, fields, body.length if has_content else None),
            may_repeat=self._may_repeat(head.method),
            send=self._content(request) if body.length else None,
            waits=request.operation_id is not None,
            on_interim=request.inform,
        )
        answer = await self._run(outgoing, head)
        return Response(answer.status, self._public(answer), answer.body)

    def _framed(self, head: RequestHead, fields: Fields, length: int | None) -> Fields:
        """Put ``Host`` first (RFC 9110, section 7.2), and ``Content-Length`` last."""
        route = self._route(head)
        name = self._host or head.fields.get("host")
        host = name or route.endpoints[0].origin.authority
        framed = Fields({"host": host}).plus(fields)
        return (
            framed if length is None else framed.plus({"content-length": str(length)})
        )

    async def _run(self, outgoing: Outgoing, head: RequestHead) -> Answer:
        answer = await self._trips.run(outgoing, self._route(head).endpoints)
        if answer.switched is not None and "upgrade" not in outgoing.fields:
            answer.switched.close()
            raise PeerError(
                ProblemCode.OUTCOME_UNKNOWN, "it switched to another protocol unasked"
            )
        return answer

    def _public(self, answer: Answer) -> Fields:
        root = root_of(self._services.config)
        return public_fields(returned_fields(answer.fields), answer.endpoint, root)

    def _content(self, request: Request) -> SendContent:
        storage, content = self._services.storage, request.body.content

        async def send(connection: Connection, head: bytes) -> None:
            transport = connection.transport
            reader = await storage.run(storage.store.open_reader, content)
            try:
                stored = StoredBody(storage, StoredPart(reader, 0, reader.length))
                begun, rest = await stored.begin()
                await send_in_time(transport, head + begun, self._timeout)
                await rest.send(
                    connection.files,
                    lambda data: send_in_time(transport, data, self._timeout),
                    self._timeout,
                )
            finally:
                reader.close()

        return send

    # A request that streams through.

    async def pass_through(self, exchange: Exchange) -> None:
        """Answer the request while it arrives; nothing is recorded."""
        head = exchange.head
        fields = with_sender(head, self._forwarded)
        upgrades = exchange.can_switch and is_upgrade(fields)
        conveyed = conveyed_fields(fields, is_recorded=False)
        if upgrades:
            protocol = fields.get("upgrade") or ""
            conveyed = conveyed.plus({"connection": "upgrade", "upgrade": protocol})
        passer = ContentPasser(exchange, self._timeout) if head.has_content else None
        has_length = head.has_content or "content-length" in head.fields
        outgoing = Outgoing(
            method=head.method,
            target=head.target,
            fields=self._framed(head, conveyed, head.length if has_length else None),
            may_repeat=self._may_repeat(head.method) and not upgrades,
            send=None if passer is None else passer.send,
            can_repeat=passer is None,
            on_interim=lambda status, told: exchange.offer_interim(
                Interim(status, told)
            ),
        )

        async def answer() -> None:
            if passer is None:
                await exchange.send_continue()
            got = await self._run(outgoing, head)
            await self._pass_back(exchange, got)

        if upgrades:
            await answer()  # a tunnel reads from the client itself
            return
        ready = None if passer is None else passer.ended
        await while_client_waits(exchange, ready, answer)

    async def _pass_back(self, exchange: Exchange, answer: Answer) -> None:
        fields = self._public(answer)
        if answer.switched is not None:
            protocol = answer.fields.get("upgrade") or ""
            granted = fields.plus({"connection": "upgrade", "upgrade": protocol})
            try:
                tunnel = await exchange.switch(granted)
                await run_tunnel(tunnel, answer.switched, self._tunnel_timeout)
            finally:
                answer.switched.close()
            return
        try:
            await exchange.respond(answer.status, fields, answer.body)
        finally:
            if isinstance(answer.body, AnswerBody):
                await answer.body.aclose()
