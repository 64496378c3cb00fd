"""The port of targets that answer some requests themselves, while they arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.http.exchange import Exchange

__all__ = ["PassingTarget"]


@runtime_checkable
class PassingTarget(Protocol):
    """A target through which requests stream, if nobody wants to resume them."""

    def passes(self, head: RequestHead) -> bool:
        """Whether a request with *head* streams through, and is not recorded."""
        ...

    async def pass_through(self, exchange: Exchange) -> None:
        """Answer the request of *exchange*, as the service does.

        Raises what an :class:`~trioresume.server.http.exchange.Exchange` turns into an
        answer.
        """
        ...
