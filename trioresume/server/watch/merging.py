"""Metrics of several processes as those of one service.

A worker *reports* its metrics as plain lists, which cross the channel to the parent as JSON.
The parent adds them up. Counters and histograms are sums over all workers that there ever
were: what a worker has counted stays in the sum when the worker has ended, so that a sum never
falls. (A worker that is killed takes with it what it counted after its last report.) Gauges
are sums over the processes that there are now, or the largest value where a sum makes no
sense.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.metrics_core import Metric

__all__ = ["Report", "merge", "packed", "retired"]

Report = list[Any]
"""Metrics as lists: name, help, type, and samples of a name, labels and a value."""

_PREFIX = "trioresume_"
_LARGEST = frozenset(
    {
        f"{_PREFIX}build_info",
        f"{_PREFIX}event_loop_longest_round_seconds",
        f"{_PREFIX}stored_bytes_limit",
        "process_max_fds",
        "process_start_time_seconds",
    }
)
"""Gauges that are not added up."""
_LASTING = frozenset({"counter", "histogram"})


def packed(metrics: Iterable[Metric]) -> Report:
    """Return *metrics* as lists."""
    return [
        [
            metric.name,
            metric.documentation,
            metric.type,
            [
                [sample.name, dict(sample.labels), sample.value]
                for sample in metric.samples
            ],
        ]
        for metric in metrics
    ]


def retired(report: Report) -> Report:
    """Return what stays of the report of a process that has ended."""
    return [metric for metric in report if metric[2] in _LASTING]


def merge(reports: Sequence[Report]) -> Iterator[Metric]:
    """Yield the metrics of all *reports*, added up."""
    merged: dict[str, tuple[Metric, dict[tuple[str, tuple[Any, ...]], float]]] = {}
    for report in reports:
        for name, text, kind, samples in report:
            if name not in merged:
                merged[name] = Metric(name, text, kind), {}
            sums = merged[name][1]
            for sample, labels, value in samples:
                key = sample, tuple(labels.items())
                if key not in sums:
                    sums[key] = value
                elif name in _LARGEST:
                    sums[key] = max(sums[key], value)
                else:
                    sums[key] += value
    for metric, sums in merged.values():
        for (sample, labels), value in sums.items():
            metric.add_sample(sample, dict(labels), value)
        yield metric
