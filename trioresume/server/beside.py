"""Something that goes on beside a request, in the server's nursery."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec

import trio

__all__ = ["beside"]

logger = logging.getLogger("trioresume.connection")

_P = ParamSpec("_P")


@asynccontextmanager
async def beside(
    nursery: trio.Nursery,
    function: Callable[_P, Awaitable[None]],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> AsyncIterator[None]:
    """Run *function* while the block runs, and no longer.

    In a *nursery* of others, so that what it raises is no concern of the block: a bug
    in it reaches the log, and ends neither the request nor the server.
    """
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            try:
                await function(*args, **kwargs)
            except Exception:
                logger.exception("%s failed", function)

    nursery.start_soon(run)
    try:
        yield
    finally:
        scope.cancel()
