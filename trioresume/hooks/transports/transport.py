"""The port of the transports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

from trioresume.hooks.events import HookEvent

__all__ = ["HookFunction", "HookTransport"]

HookFunction = Callable[[HookEvent], Awaitable[Mapping[str, Any] | None]]
"""An async function from an event to the answer: the members of tusd's JSON, or None.

An exception is a failed attempt."""


@runtime_checkable
class HookTransport(Protocol):
    """Calls the receivers. A call may be cancelled; then nobody knows whether it arrived."""

    @property
    def forwarded_fields(self) -> Collection[str]:
        """Fields of requests, in lower case, that it sends on; so events keep them."""
        ...

    async def call(
        self, event: HookEvent, date: float
    ) -> bytes | Mapping[str, Any] | None:
        """Make one attempt at *date*, in Unix seconds; return the answer, JSON or parsed.

        Raises :class:`~trioresume.hooks.answers.HookFailed`.
        """
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Entered before the first call, and left after the last one."""
        ...
