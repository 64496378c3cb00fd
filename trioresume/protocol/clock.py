"""Service time: the time in which the service was running, and the deadlines in it (G11).

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

:class:`Schedule` knows the next deadline without holding all of them.

Statement numbers such as G11 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable

__all__ = ["Schedule", "ServiceClock"]


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


# Deadlines.

_FEW = 64
"""Up to this number of stale entries the heap is not rebuilt."""


class Schedule:
    """The soonest deadlines by token, in Unix seconds; at most *window* of them.

    The catalog has an index of all deadlines. This schedule holds the soonest of them in
    memory. So its user can sleep until the next deadline and never polls. Memory does not
    grow with the number of uploads: with 1,000,000 deadlines a change costs O(log n), and
    the memory is that of one window.

    Write a deadline to the catalog first and then here, so that a load that begins
    later finds it there.

    **The horizon.** One number makes a partial view trustworthy: *every deadline before the
    horizon is held here*. Deadlines at or beyond it may be in the catalog alone. Hence:

    * a new deadline at or beyond the horizon is not held;
    * when too many are held, the schedule drops the later half, and the first dropped
      deadline becomes the horizon. Spread over the additions before, this costs O(log n)
      for each;
    * when none is held and the horizon is finite, the catalog has to be asked for its
      soonest deadlines (``needs_load``). The last deadline of the answer becomes the
      horizon, unless the answer had all deadlines.

    An answer is as old as its question. So between ``begin_load`` and ``load`` the horizon
    is infinite: deadlines that are added meanwhile are held, and the answer does not
    replace them.

    **Hints.** A token that is ``due`` is only a *hint*. The answer of a load may be out of
    date. And the catalog may move a deadline to a later time without telling the schedule.
    So the catalog decides what expires. An operation that it keeps must get a later deadline
    there, or each load would return the same token again.

    Deletion is lazy. The heap keeps the stale entry of a discarded or moved token until it
    surfaces, or until stale entries outnumber live ones and the heap is rebuilt. Each
    rebuild removes at least half of the heap, so it too costs O(log n) for each change.
    """

    def __init__(self, window: int = 4096) -> None:
        if window < 2:
            raise ValueError("a window holds at least two deadlines")
        self.window = window
        self._heap: list[tuple[float, str]] = []
        self._held: dict[str, float] = {}
        # Before the first load no deadline is certain to be held.
        self._horizon = -math.inf
        self._loading = False

    def __len__(self) -> int:
        """Return how many deadlines are held."""
        return len(self._held)

    @property
    def pending(self) -> int:
        """The number of entries in the heap, with the stale ones."""
        return len(self._heap)

    # ------------------------------------------------------------ changes

    def add(self, token: str, deadline: float) -> None:
        """Set the deadline of *token*, which replaces its earlier one."""
        if deadline < self._horizon:
            self._held[token] = deadline
            heapq.heappush(self._heap, (deadline, token))
        else:
            self._held.pop(token, None)
        self._tidy()

    def discard(self, token: str) -> None:
        """Remove the deadline of *token*, if it is held."""
        self._held.pop(token, None)
        self._tidy()

    # ------------------------------------------------------------ loading

    @property
    def needs_load(self) -> bool:
        """Whether the next deadline is unknown until the catalog is asked."""
        return not self._held and self._horizon < math.inf and not self._loading

    def begin_load(self) -> None:
        """Note that the catalog will now be asked for its ``window`` soonest deadlines."""
        self._loading = True
        self._horizon = math.inf

    def load(self, entries: Iterable[tuple[float, str]], *, complete: bool) -> None:
        """Take the catalog's answer: its soonest deadlines, ascending.

        *complete* says that the catalog has no others. Raises ValueError for an answer
        that is not complete and has no entry.
        """
        latest = math.inf if complete else -math.inf
        for deadline, token in entries:
            if token not in self._held:
                self._held[token] = deadline
                heapq.heappush(self._heap, (deadline, token))
            if not complete:
                latest = deadline
        if latest == -math.inf:
            raise ValueError("an incomplete answer without an entry")
        self._draw_in(latest)
        self._loading = False
        self._tidy()

    def abandon_load(self) -> None:
        """Note that the catalog could not be asked. ``needs_load`` is true again."""
        self._loading = False
        self._held.clear()
        self._heap.clear()
        self._horizon = -math.inf

    # ------------------------------------------------------------ what is due

    def next_deadline(self) -> float | None:
        """Return when to call :meth:`due` next; None if nothing is held (see ``needs_load``)."""
        heap = self._heap
        while heap and self._held.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[str]:
        """Remove and return the tokens whose deadline is not after *now*, soonest first."""
        tokens: list[str] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, token = heapq.heappop(self._heap)
            del self._held[token]
            tokens.append(token)
        return tokens

    # ------------------------------------------------------------ keeping it small

    def _tidy(self) -> None:
        if len(self._held) > self.window:
            kept = self.window // 2
            soonest = heapq.nsmallest(kept + 1, self._held.values())
            self._draw_in(soonest[-1], most=kept)
        elif len(self._heap) > 2 * len(self._held) + _FEW:
            self._rebuild()

    def _draw_in(self, horizon: float, *, most: int | None = None) -> None:
        """Drop the deadlines beyond *horizon*, and all but the *most* soonest ones."""
        self._horizon = min(self._horizon, horizon)
        ordered = sorted(
            (deadline, token)
            for token, deadline in self._held.items()
            if deadline <= self._horizon
        )
        self._held = {token: deadline for deadline, token in ordered[:most]}
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(deadline, token) for token, deadline in self._held.items()]
        heapq.heapify(self._heap)
