"""The settings of hooks, as an embedding program sees them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trioresume.errors import CallerError
from trioresume.hooks.engine import HookEngine
from trioresume.hooks.events import DEFAULT_EVENTS, HookKind
from trioresume.hooks.transports.function import FunctionHooks
from trioresume.hooks.transports.transport import HookFunction, HookTransport

if TYPE_CHECKING:
    from trioresume.server.api.handler import Services

__all__ = ["Hooks"]

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told of uploads and asked about them, and how: for ``Config.hooks``.

    Times are in seconds. Raises :class:`~trioresume.CallerError` for a value out of bounds and
    an event that does not exist.
    """

    receiver: HookTransport | HookFunction
    """:class:`~trioresume.HTTPHooks`, :class:`~trioresume.ExecutableHooks`, or an async
    function from a :class:`~trioresume.HookEvent` to the answer."""
    events: Collection[str] = DEFAULT_EVENTS
    """The names of the events, as ``post-finish``."""
    timeout: float = 15.0
    """How long one attempt may take."""
    retries: int = 3
    """How often a question is asked again while a client waits, if that may help."""
    backoff: float = 1.0
    """How long to wait before a question is asked again, and before the first new attempt to
    deliver an event. This doubles with each attempt to deliver it, up to five minutes."""
    give_up_after: float = 3 * DAY
    """How long to try to deliver an event; after that it is a dead one."""
    progress_interval: float = 1.0
    """The shortest time between two ``post-receive`` of one upload."""
    max_waiting: int = 100_000
    """The most events that wait. Beyond this, new uploads are refused (503)."""
    concurrency: int = 16
    """The most events that are delivered at a time, and the most questions."""

    def __post_init__(self) -> None:
        try:
            for name in self.events:
                HookKind(name)
        except ValueError as exc:
            known = ", ".join(HookKind)
            raise CallerError(f"{exc}; the events are {known}") from exc
        times = (self.timeout, self.progress_interval)
        if not all(0 < value < 1e10 for value in times) or self.concurrency < 1:
            raise CallerError(
                "timeout, progress_interval and concurrency must be positive"
            )
        others = (self.backoff, self.give_up_after, self.retries, self.max_waiting)
        if not all(0 <= value < 1e10 for value in others):
            raise CallerError("the settings of hooks must not be negative")

    def attach(self, services: Services) -> HookEngine:
        """Return the hooks of one server. The server calls this once."""
        receiver = self.receiver
        if not isinstance(receiver, HookTransport):
            receiver = FunctionHooks(receiver)
        return HookEngine(self, receiver, services)
