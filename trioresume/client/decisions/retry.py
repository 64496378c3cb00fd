"""When to try again, and when to stop: backoff with jitter, under a budget.

The budget counts *failures without progress*. An upload of a terabyte over a link that
breaks every minute never uses it up, as long as each connection gets some new bytes
through. A server that stays away uses it up soon. The clock starts with the first
failure after progress, so an hour of undisturbed sending does not count.

Jitter is full: a delay is drawn evenly between zero and the exponential bound. If a
restarting server cuts many clients at the same instant, they come back at different
times. With equal delays they would come back together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trioresume.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RetryBudget", "RetryPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient the client is. Times are in seconds."""

    attempts: int = 20
    """The most consecutive failures without progress."""
    seconds: float = 300.0
    """The longest time from the first failure without progress to the last attempt."""
    first_delay: float = 0.2
    """The bound of the first delay. It doubles with each further failure."""
    longest_delay: float = 20.0
    """The bound of every delay, except one that a server asks for with Retry-After."""
    restarts: int = 3
    """How often one request may begin again because the server forgot it."""

    def __post_init__(self) -> None:
        if self.attempts < 0 or self.seconds < 0 or self.restarts < 0:
            raise CallerError("a retry policy's limits cannot be negative")
        if not 0 <= self.first_delay <= self.longest_delay:
            raise CallerError("a retry policy needs 0 <= first_delay <= longest_delay")


class RetryBudget:
    """The rest of a :class:`RetryPolicy` for one request.

    *draw* returns a random number from 0 up to 1. Times are on any monotonic clock.
    """

    def __init__(self, policy: RetryPolicy, draw: Callable[[], float]) -> None:
        self._policy = policy
        self._draw = draw
        self._failures = 0
        self._failing_since: float | None = None

    def note_progress(self) -> None:
        """Note progress: count failures from zero again."""
        self._failures = 0
        self._failing_since = None

    def delay(self, now: float, retry_after: float | None = None) -> float | None:
        """Return the seconds to wait after a failure at *now*; None if the budget is used up.

        *retry_after* is the server's wish and a lower bound. A wish beyond the budget
        uses it up, because the server would refuse an earlier attempt again. A short
        wish, or a date in the past, does not shorten the delays of repeated failures.
        """
        policy = self._policy
        if self._failing_since is None:
            self._failing_since = now
        left = policy.seconds - (now - self._failing_since)
        self._failures += 1
        if self._failures > policy.attempts or left <= 0:
            return None
        # 1 << 40 is beyond every bound, and still a small number to compute with.
        bound = policy.first_delay * (1 << min(self._failures - 1, 40))
        drawn = self._draw() * min(bound, policy.longest_delay)
        if retry_after is None:
            return min(drawn, left)
        if retry_after > left:
            return None
        return max(retry_after + min(drawn, 1.0), min(drawn, left))
