"""The port of hooks: what ``Config.hooks`` is for the server.

:mod:`trioresume.hooks` implements it. A server without hooks uses its own registry and its own
routes, and nothing here costs it anything.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from trioresume.server.api.handler import Services

__all__ = ["AnyHooks", "AttachedHooks"]


class AttachedHooks(Protocol):
    """The hooks of one server."""

    def registry(self, *args: Any, **options: Any) -> Any:
        """Return the registry of operations, made with what the server's own one needs."""
        ...

    def service(self, *args: Any, **options: Any) -> Any:
        """Return the routes, made with what the server's own ones need."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Entered before the first request, and left after the last one."""
        ...

    async def run(self) -> None:
        """Deliver events until cancelled."""
        ...


class AnyHooks(Protocol):
    """The settings of hooks."""

    def attach(self, services: Services) -> AttachedHooks:
        """Return the hooks of one server. Called once, before its first request."""
        ...
