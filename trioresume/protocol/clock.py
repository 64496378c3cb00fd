"""The service's clock: it counts the time in which the service was running (G11).

A deadline says for how long a client may come back. It outlives the process. Neither of
a machine's two clocks can measure it alone. The wall clock may be set at any moment: a
machine may start in 1970 and learn the time later, or start once in 2076. With
deadlines on that clock everything would expire at once, or nothing ever. The monotonic
clock has no such jumps, but means nothing after a restart.

So this module has two kinds of time:

* **Service time**, :meth:`ServiceClock.now`, is for deadlines. It goes on from where
  the last process left it, by the monotonic clock alone. It stands still while the
  service is down or the machine suspended, because no client could come back then.
* **Dates**, :meth:`ServiceClock.date`, are for people and header fields. They come from
  the wall clock. A deadline becomes a date only when it is shown. So a wrong date
  becomes right as soon as the wall clock is right.

Service time is counted in seconds from the Unix epoch, because it began as a date. It
lags behind the date by the time that the service was down.

Statement numbers such as G11 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["ServiceClock"]


class ServiceClock:
    """Service time and dates, in seconds.

    *wall* and *monotonic* return seconds. *last_seen* is the last value of :meth:`now`
    that an earlier run saved; None if there is none.
    """

    def __init__(
        self,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        last_seen: float | None = None,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ticked = monotonic()
        self._now = wall() if last_seen is None else last_seen

    def now(self) -> float:
        """Return the service time. It never goes back."""
        ticked = self._monotonic()
        # max() keeps this promise even if the injected clock goes back.
        self._now += max(0.0, ticked - self._ticked)
        self._ticked = ticked
        return self._now

    def date(self) -> float:
        """Return the wall clock's time in Unix seconds. It may go back."""
        return self._wall()
