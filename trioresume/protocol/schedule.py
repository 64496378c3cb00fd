"""The expiry schedule: which deadline comes next, without holding all of them.

The catalog has an index of every deadline. This schedule holds the soonest of them
in memory, so that whoever waits can sleep until the next one and never polls, and
so that memory does not grow with the number of uploads (DESIGN: 1,000,000
deadlines, O(log n) each, memory independent of how many there are).

The horizon
===========

One number makes a partial view trustworthy: **every deadline before the horizon is
held here**; what lies at or beyond it may be in the catalog alone. Hence:

* a new deadline at or beyond the horizon need not be held, and is not;
* when too many are held, the later half is let go and the horizon drawn in to the
  first of those; that costs each of the additions that led there O(log n);
* when none is held and the horizon is finite, the catalog has to be asked for its
  soonest deadlines (``needs_load``). The last of the answer becomes the horizon,
  unless the answer was everything.

An answer is as old as its question, so between ``begin_load`` and ``load`` the
horizon is infinite: what is added meanwhile is held, and the answer does not
replace what is held.

Hints
=====

A token that is ``due`` is a *hint*. The answer of a load may be out of date, and
deadlines may be moved in the catalog without a word here, if only to later times.
So the catalog decides what expires; whatever it keeps must get a later deadline
there, or each load would bring the same token again.

Deletion is lazy: the heap keeps an entry whose token was discarded or moved until it
surfaces, or until such entries outnumber the live ones and the heap is rebuilt.
Each rebuild removes at least half of it, which again is O(log n) for each change.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

__all__ = ["Schedule"]

_FEW = 64
"""Stale entries of which there are no more than this do not call for a rebuild."""


class Schedule:
    """The soonest deadlines, in Unix seconds, by token; at most *window* of them.

    A deadline is told to the catalog first and then here, so that a load begun
    later finds it there.
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
        """How many deadlines are held."""
        return len(self._held)

    @property
    def pending(self) -> int:
        """How many entries the heap has, stale ones included."""
        return len(self._heap)

    # ------------------------------------------------------------ changes

    def add(self, token: str, deadline: float) -> None:
        """*token* is due at *deadline*, which replaces an earlier one of its."""
        if deadline < self._horizon:
            self._hold(token, deadline)
        else:
            self._held.pop(token, None)
        self._tidy()

    def discard(self, token: str) -> None:
        """*token* has no deadline any more. Does nothing if none is held."""
        self._held.pop(token, None)
        self._tidy()

    def _hold(self, token: str, deadline: float) -> None:
        self._held[token] = deadline
        heapq.heappush(self._heap, (deadline, token))

    # ------------------------------------------------------------ loading

    @property
    def needs_load(self) -> bool:
        """Whether the next deadline is unknown until the catalog is asked."""
        return not self._held and self._horizon < math.inf and not self._loading

    def begin_load(self) -> None:
        """The catalog is about to be asked for its ``window`` soonest deadlines."""
        self._loading = True
        self._horizon = math.inf

    def load(self, entries: Iterable[tuple[float, str]], *, complete: bool) -> None:
        """Take the catalog's answer: its soonest deadlines, ascending.

        *complete* says that it has no others. Raises ValueError for an answer that
        is neither complete nor has an entry, since it says nothing.
        """
        latest = math.inf if complete else -math.inf
        for deadline, token in entries:
            if token not in self._held:
                self._hold(token, deadline)
            if not complete:
                latest = deadline
        if latest == -math.inf:
            raise ValueError("an incomplete answer without an entry")
        self._draw_in(latest)
        self._loading = False
        self._tidy()

    def abandon_load(self) -> None:
        """The catalog could not be asked. ``needs_load`` wants it asked again."""
        self._loading = False
        self._held.clear()
        self._heap.clear()
        self._horizon = -math.inf

    # ------------------------------------------------------------ what is due

    def next_deadline(self) -> float | None:
        """When to call :meth:`due` next; None if nothing is held (see ``needs_load``)."""
        heap = self._heap
        while heap and self._held.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[str]:
        """The tokens whose deadline is not after *now*, soonest first; they are let go."""
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
        """Let go of what lies beyond *horizon*, and of all but the *most* soonest."""
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
