"""The service's clock: wall time that never steps while the service runs (G11).

Deadlines outlive the process, so they are Unix seconds. The wall clock that gives
those may be set at any moment: forward, and everything would expire at once;
backward, and things would be kept too long. The monotonic clock does neither, but
means nothing after a restart. So one is steered by the other:

* at start, the service's time is the wall's, or the last time an earlier run had
  seen if that is later: time never goes back over a restart;
* from then on it advances with the monotonic clock, made up to :data:`SLEW_RATE`
  faster or slower while it differs from the wall clock.

At one per cent, a deadline a day away moves by at most fifteen minutes, whatever is
done to the wall clock; a wrong hour is made good in about four days. If an earlier
run had seen a time far in the future, the service goes on from there: deadlines
already given keep their meaning, new ones are counted from the same time, and
nothing is kept for ever because the time advances, if one per cent slow.

What this cannot see is a wall clock that was wrong while the service was not
running; and on systems whose monotonic clock stands still during suspension, that
time is made good at the slew rate.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["SLEW_RATE", "ServiceClock"]

SLEW_RATE = 0.01
"""How much faster or slower than the monotonic clock time may pass: one per cent."""


class ServiceClock:
    """Unix seconds that only ever advance, at very nearly one per second.

    *wall* and *monotonic* give seconds; *last_seen* is what :meth:`now` last gave
    in an earlier run, as far as that was remembered.
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
        self._now = wall() if last_seen is None else max(wall(), last_seen)

    def now(self) -> float:
        """The time, in Unix seconds. Never less than it was before."""
        ticked = self._monotonic()
        # max: the promise below must not rest on an injected clock's.
        elapsed = max(0.0, ticked - self._ticked)
        self._ticked = ticked
        on_time = self._now + elapsed
        most = elapsed * SLEW_RATE
        self._now = on_time + min(max(self._wall() - on_time, -most), most)
        return self._now
