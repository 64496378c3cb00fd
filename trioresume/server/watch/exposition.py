"""The metrics, in the words of Prometheus.

Names follow Prometheus's rules (base units, ``_total``), and tusd's names where tusd has the
same thing: docs/howto/metrics.md has both. They begin with ``trioresume_``, because tusd's
own names break these rules, and because two programs must not share a name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from trioresume.protocol.dialects import DIALECTS
from trioresume.protocol.operation import OperationState
from trioresume.server.watch.merging import Report, merge, packed

if TYPE_CHECKING:
    from trioresume.server.watch.tally import Histogram
    from trioresume.server.watch.view import View

__all__ = ["encode", "encode_all", "families", "report"]

_PREFIX = "trioresume_"
_ONLY_OF_KEEPERS = frozenset(
    {f"{_PREFIX}commit_duration_seconds", f"{_PREFIX}commit_submissions"}
)
"""What a worker counts of commits is its time to reach the process that commits."""
_ONLY_OF_OTHERS = frozenset(
    {f"{_PREFIX}receive_memory_bytes", f"{_PREFIX}receive_memory_used_bytes"}
)

_Labels = TypeVar("_Labels", bound=tuple[object, ...])


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, help, value=value)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, help, value=value)


def _counters(
    name: str,
    help: str,
    labels: tuple[str, ...],
    values: Mapping[_Labels, int],
) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, help, labels=labels)
    for key, value in values.items():
        family.add_metric([str(part) for part in key], value)
    return family


def _by_dialect(name: str, help: str, values: Mapping[str, int]) -> Metric:
    # From 0 on, so that the first event is an increase.
    counts = {(dialect,): values.get(dialect, 0) for dialect in DIALECTS}
    return _counters(name, help, ("dialect",), counts)


def _gauges(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, help, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histograms(
    name: str, help: str, label: str | None, histograms: Mapping[str, Histogram]
) -> Metric:
    labels = [] if label is None else [label]
    family = HistogramMetricFamily(_PREFIX + name, help, labels=labels)
    for key, histogram in histograms.items():
        counts, total = histogram.read()
        buckets, below = [], 0
        for bound, count in zip((*histogram.bounds, float("inf")), counts, strict=True):
            below += count
            buckets.append((_bound(bound), float(below)))
        family.add_metric([] if label is None else [key], buckets, total)
    return family


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)


def _histogram(name: str, help: str, histogram: Histogram) -> Metric:
    return _histograms(name, help, None, {"": histogram})


def families(view: View) -> Iterator[Metric]:
    """Yield the metrics of *view*, as they are now. Called in the event loop."""
    yield from _of_requests(view)
    yield from _of_uploads(view)
    yield from _of_disk(view)
    yield from _of_process(view)


def _of_requests(view: View) -> Iterator[Metric]:
    tally = view.tally
    yield _counters(
        "requests",
        "Requests that have ended.",
        ("method", "dialect", "status"),
        tally.requests,
    )
    yield _counters(
        "errors",
        "Requests answered with a problem document.",
        ("status", "code"),
        tally.problems,
    )
    yield _histograms(
        "request_duration_seconds",
        "Time from the end of a request's head to the end of its response.",
        "method",
        tally.request_seconds,
    )
    yield _gauge("requests_running", "Requests being answered.", view.requests.running)
    yield _counter(
        "received_bytes",
        "Bytes of content received, also by requests that still run.",
        view.requests.received,
    )
    yield _counter("sent_bytes", "Bytes of content sent in responses.", tally.sent)
    yield _gauges(
        "connections",
        "Open connections, by what they speak.",
        "carrier",
        view.doorman.count_connections(),
    )


def _of_uploads(view: View) -> Iterator[Metric]:
    tally = view.tally
    yield _by_dialect("uploads_created", "Uploads created.", tally.created)
    yield _by_dialect(
        "uploads_finished",
        "Uploads whose content is whole and was taken by the target.",
        tally.finished,
    )
    yield _by_dialect(
        "uploads_terminated",
        "Uploads that a client ended, or whose content was spoilt.",
        tally.terminated,
    )
    yield _by_dialect(
        "uploads_expired", "Uploads and recorded responses that expired.", tally.expired
    )
    yield _by_dialect(
        "upload_resumptions",
        "Requests that went on with content of earlier requests.",
        tally.resumptions,
    )
    yield _by_dialect(
        "upload_takeovers",
        "Requests whose upload was taken over by a newer request.",
        tally.takeovers,
    )
    yield _by_dialect(
        "upload_cuts", "Requests that ended before their content did.", tally.cuts
    )
    stored = view.facts.stored.result
    if stored is not None:
        yield _gauges(
            "uploads",
            "Operations in the catalog, by state.",
            "state",
            {state.value: stored.uploads.get(state, 0) for state in OperationState},
        )
        yield _gauge(
            "stored_bytes",
            "Bytes charged for all uploads and files together.",
            stored.usage.bytes,
        )
        yield _gauge(
            "uploads_open", "Uploads that can be resumed.", stored.usage.open_uploads
        )
        if view.config.hooks is not None:
            yield _gauge(
                "hook_events_waiting",
                "Events of hooks that wait to be told.",
                stored.events,
            )
    if view.config.max_stored_bytes is not None:
        yield _gauge(
            "stored_bytes_limit",
            "Most bytes for all uploads and files together.",
            view.config.max_stored_bytes,
        )


def _of_disk(view: View) -> Iterator[Metric]:
    tally = view.tally
    yield _histogram(
        "hash_duration_seconds", "Time to hash a piece of content.", tally.hash_seconds
    )
    yield _histogram(
        "write_duration_seconds",
        "Time to write a piece of content.",
        tally.write_seconds,
    )
    yield _histogram(
        "sync_duration_seconds",
        "Time to sync a file or a directory.",
        tally.sync_seconds,
    )
    yield _histogram(
        "commit_duration_seconds",
        "Time of a commit of the catalog.",
        tally.commit_seconds,
    )
    yield _histogram(
        "commit_submissions", "Submissions that shared a commit.", tally.commit_sizes
    )
    yield _gauges(
        "queue_length", "Work that waits, by what it waits for.", "queue", view.queues()
    )
    memory = view.doorman.front.memory
    yield _gauge(
        "receive_memory_bytes", "Memory for content that arrives.", memory.size
    )
    yield _gauge(
        "receive_memory_used_bytes",
        "Memory for content that arrives, in use.",
        memory.used,
    )
    space = view.facts.space.result
    if space is not None:
        yield _gauge("disk_free_bytes", "Free bytes of the disk.", space.free)
        yield _gauge("disk_size_bytes", "Bytes of the disk.", space.total)
        yield _gauge(
            "disk_kept_free_bytes", "Bytes that uploads leave free.", space.kept
        )


def _of_process(view: View) -> Iterator[Metric]:
    tally = view.tally
    yield _gauge(
        "event_loop_longest_round_seconds",
        "Longest time in the last minute or two without a look at the network.",
        tally.longest_round.read(time.monotonic()),
    )
    yield _counter(
        "event_loop_busy_seconds",
        "Time that the event loop did not wait.",
        tally.busy_seconds,
    )
    yield _counter("event_loop_rounds", "Rounds of the event loop.", tally.rounds)
    log = view.config.watch.access_log
    if log is not None:
        yield _counter(
            "access_log_written_lines", "Lines of the access log written.", log.written
        )
        yield _counter(
            "access_log_dropped_lines",
            "Lines of the access log that could not be written.",
            log.dropped,
        )
    yield _gauges(
        "build_info",
        "The version of trioresume.",
        "version",
        {version("trioresume"): 1},
    )


class _Gathered(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def encode(metrics: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """Return *metrics* and those of the process as text, and its media type.

    *accept* is the request's field. Called in a worker thread.
    """
    return _encode([*metrics, *_of_system()], accept)


def encode_all(
    metrics: Iterable[Metric], reports: Sequence[Report], accept: str
) -> tuple[bytes, str]:
    """Do as :func:`encode` for this process and the *reports* of others, added up."""
    own = packed([*metrics, *_of_system()])
    # This process receives nothing: its memory for that is none of the service's.
    own = [metric for metric in own if metric[0] not in _ONLY_OF_OTHERS]
    return _encode(merge([own, *reports]), accept)


def report(view: View) -> Report:
    """Return the metrics of *view* and of this process, for another one. Called in a loop."""
    metrics = packed([*families(view), *_of_system()])
    return [metric for metric in metrics if metric[0] not in _ONLY_OF_KEEPERS]


def _of_system() -> Iterable[Metric]:
    return ProcessCollector(registry=None).collect()


def _encode(metrics: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    registry = CollectorRegistry()
    registry.register(_Gathered(metrics))
    try:
        encoder, media_type = choose_encoder(accept)
    except (TypeError, ValueError):  # it stumbles over a version such as "x"
        encoder, media_type = choose_encoder("")
    return encoder(registry), media_type
