"""``GET /healthz``: the event loop lives, and says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.heads import Fields
from trioresume.server.api.watching import HEALTH_PATH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trioresume.server.http.exchange import Exchange

__all__ = ["answer_health", "check_method", "with_health"]

_TEXT = Fields(
    {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store"}
)


async def answer_health(exchange: Exchange) -> None:
    """Answer that the event loop lives: it has just proven that. Raises :class:`PeerError`."""
    check_method(exchange)
    await exchange.respond(200, _TEXT, b"ok\n")


def check_method(exchange: Exchange) -> None:
    """Raise :class:`PeerError` 405 unless the request only reads."""
    if exchange.head.method not in ("GET", "HEAD"):
        raise PeerError(
            ProblemCode.METHOD_NOT_ALLOWED, fields=(("allow", "GET, HEAD"),), close=True
        )


def with_health(
    handle: Callable[[Exchange], Awaitable[None]],
) -> Callable[[Exchange], Awaitable[None]]:
    """Return *handle*, with ``/healthz`` before it."""

    async def handle_or_answer(exchange: Exchange) -> None:
        if exchange.head.path == HEALTH_PATH:
            await answer_health(exchange)
        else:
            await handle(exchange)

    return handle_or_answer
