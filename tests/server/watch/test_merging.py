"""Metrics of several processes are added up."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from trioresume.server.watch.merging import merge, packed, retired


def _metrics(number: int) -> list[Metric]:
    requests = CounterMetricFamily(
        "trioresume_requests", "Requests.", labels=["status"]
    )
    requests.add_metric(["200"], number)
    requests.add_metric([str(200 + number)], 1)
    seconds = HistogramMetricFamily("trioresume_seconds", "Seconds.")
    seconds.add_metric([], [("1.0", number), ("+Inf", 2 * number)], 0.5 * number)
    return [
        requests,
        seconds,
        GaugeMetricFamily("trioresume_connections", "Open.", number),
        GaugeMetricFamily("trioresume_event_loop_longest_round_seconds", "L.", number),
    ]


def _values(metrics: Any) -> dict[str, float]:
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_report_survives_json_and_is_the_same() -> None:
    """One process alone is its own sum, help and types included."""
    report = json.loads(json.dumps(packed(_metrics(3))))
    again = list(merge([report]))
    assert packed(again) == packed(_metrics(3))
    assert _values(again) == _values(_metrics(3))


def test_counts_of_all_processes_are_added() -> None:
    """Each label and each range by itself; some gauges are the largest value."""
    values = _values(merge([packed(_metrics(1)), packed(_metrics(2))]))
    assert values == {
        'trioresume_requests_total{"status": "200"}': 3,
        'trioresume_requests_total{"status": "201"}': 1,
        'trioresume_requests_total{"status": "202"}': 1,
        'trioresume_seconds_bucket{"le": "1.0"}': 3,
        'trioresume_seconds_bucket{"le": "+Inf"}': 6,
        "trioresume_seconds_count{}": 6,
        "trioresume_seconds_sum{}": 1.5,
        "trioresume_connections{}": 3,
        "trioresume_event_loop_longest_round_seconds{}": 2,
    }


def test_what_an_ended_process_has_counted_stays() -> None:
    """Its counters and histograms do; its gauges go."""
    left = retired(packed(_metrics(5)))
    values = _values(merge([left, packed(_metrics(1))]))
    assert values['trioresume_requests_total{"status": "200"}'] == 6
    assert values["trioresume_seconds_sum{}"] == 3.0
    assert values["trioresume_connections{}"] == 1
