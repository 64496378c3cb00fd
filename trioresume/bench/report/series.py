"""The curves behind the plots: plain numbers from :class:`Results`, without a library.

Goodput over time
    Each byte of an upload counts at the moment when it *stayed*: the last time it was
    sent. Bytes that a cut lost do not count, although they were sent. The time of each
    single byte is not recorded. So a connection's bytes are spread over its time in the
    same way as the bytes of all connections in the series. The sum of the curve is
    exactly the run's goodput times its duration.

Bounds
    For a run of any length, a curve has at most :data:`MAX_BINS` points; the timelines
    have at most :data:`MAX_ROWS` uploads and :data:`MAX_SPANS` connections.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

from trioresume.bench.report.words import unhappy
from trioresume.bench.results import Attempt, Ending, Results, Series, Upload

__all__ = [
    "MAX_BINS",
    "MAX_POINTS",
    "MAX_ROWS",
    "MAX_SPANS",
    "Bins",
    "Timelines",
    "bins",
    "closer_look",
    "ecdf",
    "timelines",
]

MAX_BINS = 180
"""The most points of a curve over time: about as many as a page can show."""

MAX_POINTS = 800
"""The most points of a distribution."""

MAX_ROWS = 1000
MAX_SPANS = 20_000

CLOSER_ROWS = 24
"""The number of uploads in the closer look: few enough to read one by one."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Rates in bytes a second, and cuts, in each interval between two *edges*.

    There is one edge more than there are values. Edges are in seconds.
    """

    edges: tuple[float, ...]
    throughput: tuple[float, ...]
    goodput: tuple[float, ...]
    cuts: tuple[int, ...]
    finished: tuple[int, ...]


def bins(results: Results) -> Bins:
    """Return the series of *results* in at most :data:`MAX_BINS` intervals."""
    series = results.series
    longest = max(len(series.sent), len(series.finished), len(series.cuts))
    # The series may end before the run's last interval, or after it.
    needed = max(longest, ceil(results.seconds / series.interval - 1e-9))
    merged = max(1, ceil(needed / MAX_BINS))
    width = merged * series.interval
    if not needed:
        return Bins((0.0,), (), (), (), ())
    # The last interval ends with the run and is not shorter than the others: in a short
    # rest a late tick would look like a spike. So the rest joins the last interval.
    count = max(1, int(results.seconds / width + 1e-9))
    edges = [index * width for index in range(count)]
    edges.append(results.seconds if results.seconds > edges[-1] else edges[-1] + width)
    sent = _merge(series.sent, merged, count)
    stayed = _stayed(results, edges)
    spans = [edges[index + 1] - edges[index] for index in range(count)]
    return Bins(
        edges=tuple(edges),
        throughput=tuple(b / span for b, span in zip(sent, spans, strict=True)),
        goodput=tuple(b / span for b, span in zip(stayed, spans, strict=True)),
        cuts=tuple(_merge(series.cuts, merged, count)),
        finished=tuple(_merge(series.finished, merged, count)),
    )


def _merge(values: Sequence[int], merged: int, count: int) -> list[int]:
    """Return the sums of *values*, *merged* at a time. The last sum has the rest."""
    starts = [index * merged for index in range(count)]
    return [
        sum(values[start:end])
        for start, end in zip(starts, [*starts[1:], None], strict=True)
    ]


def _stayed(results: Results, edges: Sequence[float]) -> list[float]:
    """Return the bytes of finished, right uploads in each interval (see the module)."""
    clock = _SentClock(results.series)
    totals = [0.0] * (len(edges) - 1)
    wrong = {upload.number for upload in results.wrong}
    for upload in results.done:
        if upload.number in wrong:
            continue
        for attempt, kept in _kept(upload):
            _spread(totals, edges, attempt, kept, clock)
    return totals


class _SentClock:
    """A clock that counts sent bytes instead of seconds."""

    def __init__(self, series: Series) -> None:
        self._interval = series.interval
        self._sums = [0, *accumulate(series.sent)]

    def at(self, seconds: float) -> float:
        """Return how many bytes all connections had sent by then."""
        place = max(0.0, seconds / self._interval)
        index = min(int(place), len(self._sums) - 1)
        if index == len(self._sums) - 1:
            return float(self._sums[-1])
        before, after = self._sums[index : index + 2]
        return before + (after - before) * (place - index)


def _kept(upload: Upload) -> Iterable[tuple[Attempt, int]]:
    """Yield how many bytes of each attempt were not sent again later."""
    lowest = upload.size
    for attempt in reversed(upload.attempts):
        if kept := max(0, min(attempt.last, lowest) - attempt.first):
            yield attempt, kept
        if attempt.sent:
            lowest = min(lowest, attempt.first)


def _spread(
    totals: list[float],
    edges: Sequence[float],
    attempt: Attempt,
    amount: int,
    clock: _SentClock,
) -> None:
    """Spread *amount* over the intervals of *attempt*, by the bytes sent in each."""
    if not totals:
        return
    last = len(totals) - 1
    first_bin = max(0, min(last, bisect_right(edges, attempt.begun) - 1))
    last_bin = max(first_bin, min(last, bisect_right(edges, attempt.ended) - 1))
    begun, ended = clock.at(attempt.begun), clock.at(attempt.ended)
    if first_bin == last_bin or ended <= begun:
        totals[last_bin] += amount
        return
    left, position = float(amount), begun
    for index in range(first_bin, last_bin):
        until = clock.at(edges[index + 1])
        part = min(left, amount * (until - position) / (ended - begun))
        totals[index] += part
        left -= part
        position = until
    totals[last_bin] += left


def ecdf(samples: Iterable[float]) -> tuple[list[float], list[float]]:
    """Return sorted samples, and for each the part, 0 to 1, not above it; thinned evenly."""
    ordered = sorted(samples)
    n = len(ordered)
    step = max(1, ceil(n / MAX_POINTS))
    ranks = sorted({*range(step - 1, n, step), 0, n - 1}) if n else []
    return [ordered[r] for r in ranks], [(r + 1) / n for r in ranks]


@dataclass(frozen=True, slots=True)
class Timelines:
    """The uploads to draw, in the order they began, out of *total*."""

    rows: tuple[Upload, ...]
    total: int


def timelines(results: Results) -> Timelines:
    """Return all uploads. If there are too many, keep failed ones and thin the rest evenly."""
    rows = _thin(results, list(results.uploads), MAX_ROWS)
    while len(rows) > 1 and sum(len(u.attempts) for u in rows) > MAX_SPANS:
        rows = _thin(results, rows, len(rows) // 2)
    return Timelines(_in_order(rows), len(results.uploads))


def _thin(results: Results, uploads: list[Upload], most: int) -> list[Upload]:
    if len(uploads) <= most:
        return uploads
    bad = {upload.number for upload, _ in unhappy(results)}
    first = [upload for upload in uploads if upload.number in bad][: most // 2]
    chosen = {upload.number for upload in first}
    rest = [upload for upload in uploads if upload.number not in chosen]
    room = most - len(first)
    return first + [rest[index * len(rest) // room] for index in range(room)]


def closer_look(results: Results) -> Timelines:
    """Return the few most interesting uploads: failed and wrong, slowest, and fastest."""
    bad = {upload.number: upload for upload, _ in unhappy(results)}
    chosen = dict(list(bad.items())[: CLOSER_ROWS // 3])
    by_time = sorted(
        (u for u in results.uploads if u.number not in bad and u.ending is Ending.DONE),
        key=lambda upload: upload.ended - upload.begun,
        reverse=True,
    )
    room = CLOSER_ROWS - len(chosen)
    slow = by_time[: room - room // 3]
    fast = by_time[len(slow) :][-(room // 3) :]
    chosen |= {upload.number: upload for upload in [*slow, *fast]}
    rows = list(chosen.values())
    while len(rows) > 1 and sum(len(u.attempts) for u in rows) > MAX_SPANS:
        rows = rows[: len(rows) // 2]
    return Timelines(_in_order(rows), len(results.uploads))


def _in_order(uploads: Iterable[Upload]) -> tuple[Upload, ...]:
    return tuple(sorted(uploads, key=lambda upload: (upload.begun, upload.number)))
