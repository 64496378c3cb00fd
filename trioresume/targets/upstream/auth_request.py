"""Ask another service who may send a request: nginx's ``auth_request``.

The question has the head of the request and no content, and comes before any content is asked
for. It is a ``GET`` of one URL, with the end-to-end fields of the request and these:

=======================  ================================================================
``X-Original-Method``    the method, also as ``X-Forwarded-Method``
``X-Original-URI``       path and query, also as ``X-Forwarded-Uri``
``X-Forwarded-For`` …    the sender, as for a backend
=======================  ================================================================

So services work that were made for nginx, Traefik's ForwardAuth or Caddy's ``forward_auth``.
"""

from __future__ import annotations

import logging
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, cast

import trio

from trioresume.errors import CallerError, PeerError, TargetUnavailable
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url
from trioresume.server.api.config import Principal, Rejection
from trioresume.targets.upstream.connections import Pool
from trioresume.targets.upstream.endpoints import Endpoint, parse_endpoint
from trioresume.targets.upstream.heads import (
    conveyed_fields,
    returned_fields,
    with_sender,
)
from trioresume.targets.upstream.round_trip import AnswerBody, Outgoing, RoundTrips

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.targets.upstream.round_trip import Answer

__all__ = ["AuthRequest"]

logger = logging.getLogger("trioresume.upstream")

MOST_CACHED = 4096
"""Answers that are kept; the oldest go first."""
MOST_BODY = 64 * 1024
"""Bytes of a refusal that are passed on."""

_NO_MATTER = frozenset(
    {
        "content-length",
        "content-md5",
        "content-offset",
        "content-range",
        "content-digest",
        "date",
        "expect",
        "idempotency-key",
        "if-match",
        "prefer",
        "repr-digest",
        "traceparent",
        "tracestate",
        "upload-checksum",
        "upload-complete",
        "upload-incomplete",
        "upload-length",
        "upload-offset",
        "want-repr-digest",
        "x-request-id",
    }
)
"""Fields that differ between the requests of one upload, and do not say who sends it."""


class AuthRequest:
    """An ``authenticate`` for :class:`~trioresume.Config` that asks the service at *url*.

    A 2xx lets the request in. The sender is named by the field *principal_field* of that
    answer; without such a setting, all senders are one principal. A 401 or 403 goes to the
    client as it is, its challenge and its content included. Anything else, and a service that
    cannot be reached, is a 502 or 503, and lets nobody in.

    A 2xx is remembered for *cache* seconds, for requests with the same method, target, sender
    and fields. The service is asked again when all content of an upload has arrived.

    Raises :class:`~trioresume.CallerError` for a URL that makes no sense.
    """

    asks_again = True

    def __init__(
        self,
        url: str,
        *,
        principal_field: str | None = None,
        cache: float = 0.0,
        timeout: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if url.startswith("unix:"):
            self._endpoint, self._target = parse_endpoint(url), "/"
        else:
            whole = Url.parse(url)
            self._endpoint = Endpoint(whole.origin)
            self._target = whole.target
        if cache < 0 or timeout <= 0:
            raise CallerError("cache and timeout are seconds")
        self._principal_field = principal_field
        self._cache_seconds = cache
        self._cache: OrderedDict[object, tuple[float, Principal]] = OrderedDict()
        self._pool = Pool(tls, timeout)
        self._trips = RoundTrips(self._pool, timeout)

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        fields = conveyed_fields(with_sender(head, "x-forwarded"), is_recorded=False)
        key = self._key(head, fields)
        known = self._cache.get(key)
        if known is not None and known[0] > trio.current_time():
            return known[1]
        verdict = await self._ask(head, fields)
        if self._cache_seconds and isinstance(verdict, Principal):
            self._cache[key] = trio.current_time() + self._cache_seconds, verdict
            self._cache.move_to_end(key)
            while len(self._cache) > MOST_CACHED:
                self._cache.popitem(last=False)
        return verdict

    def _key(self, head: RequestHead, fields: Fields) -> object:
        if not self._cache_seconds:
            return None
        told = tuple(line for line in fields if line[0] not in _NO_MATTER)
        return hash((head.method, head.target, told)), head.method, head.target, told

    async def _ask(self, head: RequestHead, fields: Fields) -> Principal | Rejection:
        host = Fields({"host": self._endpoint.origin.authority})
        about = {
            "x-original-method": head.method,
            "x-original-uri": head.target,
            "x-forwarded-method": head.method,
            "x-forwarded-uri": head.target,
        }
        of_content = ("content-type", "content-encoding", "content-disposition")
        asked = Outgoing(
            method="GET",
            target=self._target,
            fields=host.plus(fields.without(*of_content, "range", "if-range")).plus(
                about
            ),
            may_repeat=True,
        )
        try:
            answer = await self._trips.run(asked, [self._endpoint])
            body = await _read(answer)
        except TargetUnavailable as exc:
            return Rejection(
                503, Fields(exc.fields), "the authentication cannot be reached"
            )
        except PeerError as exc:
            logger.error("%s: %s", self._endpoint, exc)
            return Rejection(502, detail="the authentication failed")
        return self._judge(answer, body)

    def _judge(self, answer: Answer, body: bytes) -> Principal | Rejection:
        if 200 <= answer.status <= 299:
            if self._principal_field is None:
                return Principal("")
            name = answer.fields.get(self._principal_field)
            if name:
                return Principal(name)
            logger.error(
                "%s names no sender in %s", self._endpoint, self._principal_field
            )
        elif answer.status in (401, 403):
            # Its own connection is not the client's.
            told = returned_fields(answer.fields).without("content-length", "date")
            status = cast("Literal[401, 403]", answer.status)
            return Rejection(status, told, body=body)
        else:
            logger.error("%s answers %d", self._endpoint, answer.status)
        return Rejection(502, detail="the authentication failed")

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Keep connections while the service runs."""
        with self._pool.open():
            yield


async def _read(answer: Answer) -> bytes:
    """Read the content of *answer*, at most :data:`MOST_BODY` bytes."""
    if answer.switched is not None:
        answer.switched.close()
        return b""
    if isinstance(answer.body, bytes):
        return answer.body[:MOST_BODY]
    assert isinstance(answer.body, AnswerBody)
    read = bytearray()
    try:
        async for block in answer.body:
            read += block
            if len(read) > MOST_BODY:
                break
    finally:
        await answer.body.aclose()
    return bytes(read[:MOST_BODY])
