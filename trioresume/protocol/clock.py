"""The service's clock: how long the service was there to serve (G11).

A deadline says for how long a client may come back. It outlives the process, and the two
clocks of a machine are both of no use for it alone. The wall clock may be set at any
moment: a machine starts in 1970 and is told the time later, or starts in 2076 once. If
deadlines followed, everything would expire at once, or nothing ever. The monotonic clock
does neither, but means nothing after a restart.

So there are two kinds of time here:

* **Service time**, :meth:`ServiceClock.now`, is for deadlines. It goes on from where the
  last process left it, by the monotonic clock alone. Time does not pass for a deadline
  while the service is down, or the machine suspended: nobody could have come back then.
* **Dates**, :meth:`ServiceClock.date`, are for people and header fields. They are what the
  wall clock says now. A deadline becomes a date only when it is shown, so that a date that
  was too high is right again as soon as the wall clock is.

Service time is counted in seconds from the Unix epoch, because it began as a date. It falls
behind the date by as long as the service was down.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["ServiceClock"]


class ServiceClock:
    """Service time and dates, in seconds.

    *wall* and *monotonic* give seconds; *last_seen* is what :meth:`now` last gave in an
    earlier run, as far as that was remembered.
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
        """The service time. Never less than it was before."""
        ticked = self._monotonic()
        # max: the promise above must not rest on an injected clock's.
        self._now += max(0.0, ticked - self._ticked)
        self._ticked = ticked
        return self._now

    def date(self) -> float:
        """What the wall clock says, in Unix seconds. It may go back."""
        return self._wall()
