"""A Python function as the receiver."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from trioresume.hooks.answers import HookFailed

if TYPE_CHECKING:
    from trioresume.hooks.events import HookEvent
    from trioresume.hooks.transports.transport import HookFunction

__all__ = ["FunctionHooks"]

logger = logging.getLogger("trioresume.hooks")


class FunctionHooks:
    """Calls *function* with each event."""

    forwarded_fields: Collection[str] = ()

    def __init__(self, function: HookFunction) -> None:
        self._function = function

    async def call(self, event: HookEvent, date: float) -> Mapping[str, Any] | None:
        try:
            return await self._function(event)
        except HookFailed:
            raise
        except Exception as exc:
            logger.exception("the hook function failed at %s", event.kind)
            raise HookFailed(f"the function raised {type(exc).__name__}") from exc

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield
