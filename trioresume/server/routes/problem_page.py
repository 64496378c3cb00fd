"""The page that explains every problem, to which ``type`` of the problem documents leads.

It is the same for everybody and tells nothing about this server, so it needs no credentials: a
person who opens the address of a ``type`` in a browser has none there.
"""

from __future__ import annotations

from functools import cache

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.heads import Fields
from trioresume.protocol.problem_help import problem_page
from trioresume.server.http.exchange import Exchange

__all__ = ["send_problem_page"]

_FIELDS = Fields(
    {
        "content-type": "text/html; charset=utf-8",
        # The page has a style of its own, no script, and links nowhere.
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "max-age=3600",
    }
)


async def send_problem_page(exchange: Exchange) -> None:
    """Answer a request for the page. Raises :class:`PeerError` for a wrong method."""
    if exchange.head.method not in ("GET", "HEAD"):
        raise PeerError(
            ProblemCode.METHOD_NOT_ALLOWED, fields=(("allow", "GET, HEAD"),)
        )
    await exchange.respond(200, _FIELDS, _page())


_page = cache(problem_page)
