"""The second listener: ``/metrics``, ``/healthz`` and ``/readyz``.

It has its own connections, with small limits, so that it answers when the public listeners
are full, and a flood of it takes nothing from them. It accepts no content. It runs until the
last request of a shutdown has ended, and says meanwhile that the service is not ready.
"""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.heads import Fields
from trioresume.server.api.config import Config
from trioresume.server.api.watching import HEALTH_PATH, WatchSettings
from trioresume.server.doorman import Doorman
from trioresume.server.http.listeners import Listener, open_listeners
from trioresume.server.watch.exposition import encode, encode_all, families
from trioresume.server.watch.health import answer_health, check_method

if TYPE_CHECKING:
    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.watch.facts import Lookup
    from trioresume.server.watch.view import View

__all__ = ["AdminPages", "Site", "admin_doorman", "open_admin_listeners"]

MOST_CONNECTIONS = 16
HEAD_TIMEOUT = 5.0
KEEP_ALIVE_TIMEOUT = 75.0
"""Prometheus scrapes over one connection, once a minute by default."""
BACKLOG = 16

METRICS_PATH = "/metrics"
READY_PATH = "/readyz"

OK = "ok"
"""What a check says if nothing is wrong."""

_JSON = Fields({"content-type": "application/json", "cache-control": "no-store"})


def open_admin_listeners(
    config: Config,
) -> AbstractAsyncContextManager[list[Listener]]:
    """Listen on ``config.watch.admin_bind`` while the block runs.

    Raises as :func:`~trioresume.server.http.listeners.open_listeners`.
    """
    own = Config(
        bind=config.watch.admin_bind,
        backlog=BACKLOG,
        unix_socket_mode=config.unix_socket_mode,
    )
    return open_listeners(own)


def admin_doorman(pages: AdminPages, config: Config, clock: ServiceClock) -> Doorman:
    """Return what lets connections in to *pages*."""
    own = replace(
        config,
        bind=("127.0.0.1:0",),
        ssl=None,
        rules=(),
        authenticate=None,
        ui=None,
        http2=False,
        h2c=False,
        trusted_proxies=(),
        cors_origins=(),
        max_connections=MOST_CONNECTIONS,
        max_connections_per_address=None,
        max_header_size=min(config.max_header_size, 16 * 1024),
        header_timeout=HEAD_TIMEOUT,
        keep_alive_timeout=KEEP_ALIVE_TIMEOUT,
        receive_memory=1,
        drain_size=0,
        drain_timeout=1.0,
        send_timeout=10.0,
        watch=WatchSettings(),
    )
    return Doorman(pages.handle, own, clock)


class Site(Protocol):
    """What else the listener has: the admin page."""

    def has(self, path: str) -> bool:
        """Whether it answers requests for *path*."""
        ...

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Raises :class:`PeerError`."""
        ...


class AdminPages:
    """Answers what is asked on the second listener, about the service that *view* shows."""

    def __init__(self, view: View, site: Site | None = None) -> None:
        self._view = view
        self._site = site

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Raises :class:`PeerError`."""
        path = exchange.head.path
        if path == HEALTH_PATH:
            await answer_health(exchange)
        elif path == READY_PATH:
            check_method(exchange)
            await self._answer_readiness(exchange)
        elif path == METRICS_PATH:
            check_method(exchange)
            await self._answer_metrics(exchange)
        elif self._site is not None and self._site.has(path):
            await self._site.handle(exchange)
        else:
            raise PeerError(ProblemCode.NOT_FOUND, close=exchange.head.has_content)

    async def _answer_metrics(self, exchange: Exchange) -> None:
        facts = self._view.facts
        async with trio.open_nursery() as looks:
            looks.start_soon(facts.stored.refresh, facts.patience)
            looks.start_soon(facts.space.refresh, facts.patience)
        metrics = [*families(self._view)]
        accept = exchange.head.fields.get("accept") or ""
        others = self._view.others
        if others is None:
            text, media_type = await trio.to_thread.run_sync(encode, metrics, accept)
        else:
            reports = await others.reports(facts.patience)
            metrics += others.metrics()
            text, media_type = await trio.to_thread.run_sync(
                encode_all, metrics, reports, accept
            )
        fields = Fields({"content-type": media_type, "cache-control": "no-store"})
        await exchange.respond(200, fields, text)

    async def _answer_readiness(self, exchange: Exchange) -> None:
        checks: dict[str, str] = {}
        async with trio.open_nursery() as looks:
            looks.start_soon(self._check_disk, checks)
            looks.start_soon(self._check_catalog, checks)
        stops = self._view.doorman.stopping.is_set()
        checks["shutdown"] = "the service is shutting down" if stops else OK
        is_ready = all(said == OK for said in checks.values())
        told = {"ready": is_ready, "checks": dict(sorted(checks.items()))}
        text = json.dumps(told).encode() + b"\n"
        await exchange.respond(200 if is_ready else 503, _JSON, text)

    async def _check_disk(self, checks: dict[str, str]) -> None:
        checks["disk"] = await self._failure_of(self._view.facts.space)
        space = self._view.facts.space.result
        if checks["disk"] == OK and space is not None and space.is_low:
            checks["disk"] = (
                f"{space.free} bytes are free, and {space.kept} are to stay free"
            )

    async def _check_catalog(self, checks: dict[str, str]) -> None:
        checks["catalog"] = await self._failure_of(self._view.facts.writable)

    async def _failure_of(self, lookup: Lookup[Any]) -> str:
        patience = self._view.facts.patience
        if not await lookup.refresh(patience):
            return f"no answer within {patience:g} s"
        return lookup.failure or OK
