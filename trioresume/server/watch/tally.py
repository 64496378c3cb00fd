"""What is counted while a service runs, as plain numbers.

The event loop counts in ordinary attributes and dictionaries. Worker threads, too, note how
long their work took, so a :class:`Histogram` has a lock. Nothing here has a label whose values
a client chooses: methods that are not HTTP's own are ``OTHER``, and the rest come from tables
of this program.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["METHODS", "Histogram", "Longest", "Tally", "known_method"]

METHODS = frozenset(
    "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT".split()  # noqa: SIM905
)
OTHER = "OTHER"

_LONG = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)
"""Bounds for requests, in seconds: an upload may take hours."""
_SHORT = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Bounds for steps of the disk, in seconds."""
_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Bounds for the submissions of a commit."""

WINDOW = 60.0
"""Seconds for which at least the longest round is remembered, and at most twice that."""


def known_method(method: str) -> str:
    """Return *method* if HTTP defines it, else ``OTHER``."""
    return method if method in METHODS else OTHER


class Histogram:
    """Counts values in ranges. Usable from any thread."""

    __slots__ = ("_lock", "bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        """The upper bound of each range but the last one, which has none."""
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._lock = threading.Lock()

    def note(self, value: float) -> None:
        """Count *value*."""
        place = bisect_left(self.bounds, value)
        with self._lock:
            self.counts[place] += 1
            self.sum += value

    def read(self) -> tuple[list[int], float]:
        """Return the counts and the sum of one moment."""
        with self._lock:
            return list(self.counts), self.sum


class Longest:
    """The largest of the values noted lately: in the last *window* seconds or a little more.

    Several readers see the same, however often each of them looks.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self.until = 0.0
        """The end of this window."""
        self.now = 0.0
        """The largest value of this window."""
        self._before = 0.0

    def note(self, value: float, now: float) -> None:
        """Note *value*; *now* is in seconds of any clock that does not go back."""
        if now >= self.until:
            self._turn(now)
        if value > self.now:
            self.now = value

    def read(self, now: float) -> float:
        """Return the largest value."""
        if now >= self.until:
            self._turn(now)
        return max(self.now, self._before)

    def _turn(self, now: float) -> None:
        is_next = now < self.until + self._window
        self._before = self.now if is_next else 0.0
        self.now = 0.0
        self.until = now + self._window


def _durations() -> Histogram:
    return Histogram(_SHORT)


@dataclass(slots=True)
class Tally:
    """Everything that is counted. The dictionaries' keys are the labels' values."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By method, dialect and status."""
    problems: Counter[tuple[int, str]] = field(default_factory=Counter)
    """By status and code."""
    request_seconds: dict[str, Histogram] = field(default_factory=dict)
    """By method."""
    received: int = 0
    """Bytes of content of requests that have ended."""
    sent: int = 0
    created: Counter[str] = field(default_factory=Counter)
    """Uploads, by dialect; so are the next ones."""
    finished: Counter[str] = field(default_factory=Counter)
    terminated: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    resumptions: Counter[str] = field(default_factory=Counter)
    takeovers: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    hash_seconds: Histogram = field(default_factory=_durations)
    write_seconds: Histogram = field(default_factory=_durations)
    sync_seconds: Histogram = field(default_factory=_durations)
    commit_seconds: Histogram = field(default_factory=_durations)
    commit_sizes: Histogram = field(default_factory=lambda: Histogram(_SIZES))
    committed_at: float = float("-inf")
    """When the last commit ended, on the monotonic clock."""
    rounds: int = 0
    busy_seconds: float = 0.0
    longest_round: Longest = field(default_factory=Longest)

    def note_request(self, method: str, dialect: str, status: int, took: float) -> None:
        """Count a request that has ended after *took* seconds."""
        self.requests[method, dialect, status] += 1
        histogram = self.request_seconds.get(method)
        if histogram is None:
            histogram = self.request_seconds[method] = Histogram(_LONG)
        histogram.note(took)

    def note_commit(self, began: float, size: int) -> None:
        """Count a commit of *size* submissions that has ended now."""
        self.committed_at = time.monotonic()
        self.commit_seconds.note(self.committed_at - began)
        self.commit_sizes.note(size)
