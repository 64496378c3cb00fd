"""Plots of numbers over time, and of the distribution of times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any

from trioresume.bench.report import units
from trioresume.bench.report.series import bins, ecdf
from trioresume.bench.report.style import Plot, axis, colour, kill_shapes, layout
from trioresume.bench.results import Latency, Results, ServerSample

__all__ = ["latency_plots", "rate_plots", "server_plots"]


# ---------------------------------------------------------------------------- rates


def rate_plots(results: Results) -> Iterator[Plot]:
    """Throughput and goodput, and the cuts below them."""
    curve = bins(results)
    if not curve.throughput:
        return
    # A step line needs the last value at both ends of its interval.
    sent = [value / (1 << 20) for value in curve.throughput]
    stayed = [value / (1 << 20) for value in curve.goodput]
    hover = "%{y:.4~g} MiB/s"
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "sent (throughput)",
            "x": list(curve.edges),
            "y": [*sent, sent[-1]],
            "line": {"shape": "hv", "color": colour("sent"), "width": 1},
            "fill": "tozeroy",
            "fillcolor": colour("sent"),
            "hovertemplate": hover,
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "stayed (goodput)",
            "x": list(curve.edges),
            "y": [*stayed, stayed[-1]],
            "line": {"shape": "hv", "color": colour("good"), "width": 2},
            "hovertemplate": hover,
        },
    ]
    disturbed = any(curve.cuts)
    if disturbed:
        data.append(
            {
                "type": "bar",
                "name": "cuts",
                "x": [
                    (a + b) / 2
                    for a, b in zip(curve.edges, curve.edges[1:], strict=False)
                ],
                "width": [
                    b - a for a, b in zip(curve.edges, curve.edges[1:], strict=False)
                ],
                "y": list(curve.cuts),
                "marker": {"color": colour("cut"), "line": {"width": 0}},
                "yaxis": "y2",
                "hovertemplate": "%{y} cuts",
            }
        )
    height = 440 if disturbed else 340
    shape = layout(
        height,
        hovermode="x",
        xaxis=axis("seconds since the load began", range=[0, curve.edges[-1]]),
        yaxis=axis("MiB/s", rangemode="tozero", domain=[0.3 if disturbed else 0, 1]),
        shapes=list(kill_shapes(results.kills, results.seconds)),
    )
    if disturbed:
        shape["xaxis"]["anchor"] = "y2"
        shape["yaxis2"] = axis("cuts", rangemode="tozero", domain=[0, 0.2], nticks=3)
    killed = " Shaded: the server was down, killed on purpose." if results.kills else ""
    yield Plot(
        "rates",
        "Throughput and goodput over time",
        "The area shows all bytes that were sent. The line shows the bytes that stayed: they "
        "belong to a finished upload and were not sent again later. Where the line "
        "runs below the area, work was lost to cuts or to uploads that never finished. "
        "The time of each single byte is not recorded, so the line is an estimate. "
        "It may sometimes be above the area." + killed,
        {"data": data, "layout": shape},
        height,
    )


# ------------------------------------------------------------------------ latencies


def latency_plots(results: Results) -> Iterator[Plot]:
    """A distribution for each kind of waiting."""
    attempts = [attempt for upload in results.uploads for attempt in upload.attempts]
    yield from _latency(
        "resume",
        "Time to resume",
        [a.resume for a in attempts if a.resume is not None],
        results.resume,
    )
    yield from _latency(
        "offset-query",
        "Offset query",
        [a.offset_query for a in attempts if a.offset_query is not None],
        results.offset_query,
    )
    yield from _latency(
        "upload-duration",
        "Upload duration",
        [upload.seconds for upload in results.done],
        results.upload_seconds,
    )


def _latency(
    id: str, title: str, samples: list[float], latency: Latency | None
) -> Iterator[Plot]:
    if latency is None or latency.count < 2:
        return
    values, parts = ecdf(samples)
    least = 1e-6  # a logarithmic axis has no zero
    marks = [
        ("p50", latency.p50, 50.0),
        ("p90", latency.p90, 90.0),
        ("p99", latency.p99, 99.0),
        ("max", latency.max, 100.0),
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [max(least, value) for value in values],
            "y": [100 * part for part in parts],
            "line": {"shape": "hv", "color": colour("line"), "width": 2},
            "hovertemplate": "%{y:.4~g} % took no longer than %{x:.3~s}s<extra></extra>",
            "showlegend": False,
        },
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [max(least, value) for _, value, _ in marks],
            "y": [percent for _, _, percent in marks],
            "marker": {"color": colour("cut"), "size": 9, "symbol": "diamond"},
            "text": [f"{name} {units.duration(v)} " for name, v, _ in marks],
            "textposition": ["middle left"] * 3 + ["top left"],
            "hoverinfo": "text",
            "cliponaxis": False,
            "showlegend": False,
        },
    ]
    shape = layout(
        320,
        xaxis=_time_axis(max(least, values[0]), max(least, values[-1])),
        yaxis=axis("% of them", range=[0, 112], tickvals=[0, 25, 50, 75, 100]),
        margin={"l": 10, "r": 24, "t": 30, "b": 10},
    )
    named = ", ".join(f"{name} {units.duration(value)}" for name, value, _ in marks)
    yield Plot(
        id,
        title,
        f"{units.plural(latency.count, 'sample')}; marked: {named}. The curve shows how many "
        "per cent took no longer than the time below. A steep curve means even times, "
        "a long tail to the right means a few slow ones. The time scale is logarithmic.",
        {"data": data, "layout": shape},
        320,
        half=True,
    )


def _time_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis of seconds that has room for the labels left of the marks."""
    # In decades; at least one, so that there is something to compare with.
    width = max(1.0, log10(high / low) * 1.1)
    end = log10(high) + 0.04 * width
    begin = end - width * 1.35
    steps = (1, 2, 5) if width < 1.2 else (1, 3) if width < 1.6 else (1,)
    ticks = [
        step * 10.0**decade
        for decade in range(floor(begin) - 1, ceil(end) + 1)
        for step in steps
        if begin <= log10(step * 10.0**decade) <= end
    ]
    return axis(
        "",
        type="log",
        range=[begin, end],
        tickvals=ticks,
        ticktext=[units.short_duration(tick) for tick in ticks],
        tickangle=0,
    )


# --------------------------------------------------------------------------- server


def _apart(samples: Sequence[ServerSample]) -> tuple[ServerSample, ...]:
    """Return the samples that are not much closer to the one before than usual.

    Between two samples at almost the same time, one tick of CPU time would look like many cores.
    """
    gaps = sorted(b.at - a.at for a, b in pairwise(samples))
    least = gaps[len(gaps) // 2] / 2
    kept = [samples[0]]
    kept += [b for a, b in pairwise(samples) if b.at - a.at >= least]
    return tuple(kept)


def server_plots(results: Results) -> Iterator[Plot]:
    """CPU and memory of the server, where they were measured."""
    if results.server is None or len(results.server.samples) < 2:
        return
    samples = results.server.samples
    step = max(1, len(samples) // 400)
    samples = _apart(samples[::step])
    pairs = list(pairwise(samples))
    # A restarted server's CPU time begins again at zero.
    alive = [
        (a, b)
        for a, b in pairs
        if b.at > a.at and b.user >= a.user and b.system >= a.system
    ]
    x = [b.at for _, b in alive]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "cpu",
            "name": name,
            "x": x,
            "y": [
                (getattr(b, field) - getattr(a, field)) / (b.at - a.at)
                for a, b in alive
            ],
            "line": {"width": 0.5, "color": colour(shade)},
            "fillcolor": colour(shade),
            "hovertemplate": "%{y:.2f} cores",
        }
        for name, field, shade in (
            ("user CPU", "user", "sent"),
            ("system CPU", "system", "line"),
        )
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "resident memory",
            "x": [sample.at for sample in samples],
            "y": [sample.resident / (1 << 20) for sample in samples],
            "line": {"width": 2, "color": colour("cut")},
            "yaxis": "y2",
            "hovertemplate": "%{y:.4~g} MiB",
        }
    )
    shape = layout(
        400,
        hovermode="x",
        xaxis=axis("seconds since the load began", anchor="y2"),
        yaxis=axis("cores busy", rangemode="tozero", domain=[0.48, 1]),
        yaxis2=axis("MiB", rangemode="tozero", domain=[0, 0.4]),
        shapes=list(kill_shapes(results.kills, results.seconds)),
    )
    yield Plot(
        "server",
        "The server's CPU and memory",
        "Above: how many cores the server kept busy, with its own code (user) and the kernel's "
        "work for it (system) on top of each other. Below: the memory that it held.",
        {"data": data, "layout": shape},
        400,
    )
