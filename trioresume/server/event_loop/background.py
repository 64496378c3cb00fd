"""Run a task in the server's nursery for as long as a block runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec

import trio

__all__ = ["in_background"]

logger = logging.getLogger("trioresume.connection")

_P = ParamSpec("_P")


@asynccontextmanager
async def in_background(
    nursery: trio.Nursery,
    function: Callable[_P, Awaitable[None]],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> AsyncIterator[None]:
    """Run *function* in *nursery* while the block runs, and cancel it at the block's end.

    *nursery* is not the block's own. So an exception of *function* does not reach the block:
    it is logged, and ends neither the request nor the server.
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
