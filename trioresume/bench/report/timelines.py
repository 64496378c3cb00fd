"""Timelines: a row for each upload, a bar for each connection, marks for how they ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trioresume.bench.report import units
from trioresume.bench.report.series import Timelines, closer_look, timelines
from trioresume.bench.report.style import Plot, axis, colour, kill_shapes, layout
from trioresume.bench.results import Attempt, Ending, Results, Upload
from trioresume.bench.settings import FaultKind

__all__ = ["timeline_plots"]

DETAILED_ROWS = 64
"""Up to this number, each upload's row is thick enough to read."""

LOCKED = 423
"""The status of tus servers while another request has the upload's lock."""

_ENOUGH_FOR_TEXTS = 3000
"""The most connections with a text on hover. More would make the page slow."""


_SYMBOLS = {
    FaultKind.FIN: ("circle-open", "cut"),
    FaultKind.RST: ("x-thin-open", "cut2"),
    FaultKind.SILENCE: ("diamond-open", "cut3"),
}


def timeline_plots(results: Results) -> Iterator[Plot]:
    """Yield a plot of all uploads. If there are many, also one of a few."""
    everything = timelines(results)
    if not everything.rows:
        return
    how = (
        "Each row is one upload, in the order they began. A bar is a connection that sends; "
        "a thin line is waiting, also for a lock of the server. Marks show how a "
        "connection ended."
    )
    if everything.total > len(everything.rows):
        how += (
            f" {len(everything.rows):,} of {everything.total:,} are drawn: failed ones "
            "first, the others chosen evenly."
        )
    if len(everything.rows) <= DETAILED_ROWS:
        yield _timeline("timelines", "Uploads and their cuts", how, everything, results)
        return
    yield _timeline(
        "timelines",
        "All uploads and their cuts",
        f"{how} Drag over a part to enlarge it, double-click to go back.",
        everything,
        results,
    )
    closer = closer_look(results)
    yield _timeline(
        "closer",
        "A closer look at a few",
        "Uploads that failed or are wrong, if any, and the slowest and fastest of those "
        "that finished.",
        closer,
        results,
    )


def _timeline(
    id: str, title: str, reading: str, lines: Timelines, results: Results
) -> Plot:
    rows = lines.rows
    count = len(rows)
    detailed = count <= DETAILED_ROWS
    height = 110 + count * (18 if count > 8 else 30) if detailed else 680
    thick = 9.0 if detailed else max(0.6, 0.75 * 560 / count)
    data = [
        _waits(rows, 1.0 if detailed else max(0.3, thick / 3)),
        # If bars fill the plot, marks have to stand out against them.
        _spans(rows, thick, "line" if detailed else "sent"),
        *_marks(rows, 9.0 if detailed else max(3.0, min(7.0, 5 * thick)), detailed),
    ]
    shape = layout(
        height,
        xaxis=axis(
            "seconds since the load began", range=[0, max(results.seconds, 1e-9)]
        ),
        yaxis=axis(
            "upload" if detailed else f"{count:,} uploads, in the order they began",
            range=[count - 0.4, -0.6],
            zeroline=False,
        ),
        shapes=list(kill_shapes(results.kills, results.seconds)),
    )
    if detailed:
        shape["yaxis"] |= {
            "tickvals": list(range(count)),
            "ticktext": [str(upload.number) for upload in rows],
            "showgrid": False,
            "tickfont": {"size": 11},
        }
    else:
        shape["yaxis"] |= {"showticklabels": False, "showgrid": False}
    return Plot(id, title, reading, {"data": data, "layout": shape}, height)


def _waits(rows: Sequence[Upload], width: float) -> dict[str, Any]:
    """Return one line behind each upload's bars, in one trace for all uploads."""
    x: list[float | None] = []
    y: list[int | None] = []
    for row, upload in enumerate(rows):
        x += [upload.begun, upload.ended, None]
        y += [row, row, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "waiting",
        "x": x,
        "y": y,
        "line": {"color": colour("muted"), "width": width},
        "hoverinfo": "skip",
    }


def _spans(rows: Sequence[Upload], width: float, shade: str) -> dict[str, Any]:
    """Return a bar for each connection, from its first byte of content on, in one trace."""
    texts = sum(len(upload.attempts) for upload in rows) <= _ENOUGH_FOR_TEXTS
    x: list[float | None] = []
    y: list[int | None] = []
    text: list[str] = []
    for row, upload in enumerate(rows):
        for number, attempt in enumerate(upload.attempts, 1):
            if not attempt.sent:
                continue  # it asked, and then waited or was refused
            x += [_sending_from(attempt), attempt.ended, None]
            y += [row, row, None]
            if texts:
                said = _attempt_text(upload, number, attempt)
                text += [said, said, ""]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": "sending",
        "x": x,
        "y": y,
        "line": {"color": colour(shade), "width": width},
        "hoverinfo": "text" if texts else "skip",
    }
    if texts:
        trace["text"] = text
    return trace


def _sending_from(attempt: Attempt) -> float:
    """Return when *attempt* began to send; in results of an older version, when it began."""
    return attempt.begun if attempt.sending is None else attempt.sending


def _attempt_text(upload: Upload, number: int, attempt: Attempt) -> str:
    seconds = units.duration(attempt.ended - attempt.begun)
    lines = [
        f"upload {upload.number}, {units.size(upload.size)}",
        f"connection {number} of {len(upload.attempts)}: {_ending_text(attempt)}",
        f"from {attempt.begun:.3f} s, for {seconds}",
        f"bytes {attempt.first:,} to {attempt.last:,}",
    ]
    if attempt.resume is not None:
        lines.append(f"resumed {units.duration(attempt.resume)} after the cut")
    if attempt.offset_query is not None:
        lines.append(f"offset query {units.duration(attempt.offset_query)}")
    return "<br>".join(lines)


def _ending_text(attempt: Attempt) -> str:
    if attempt.fault is None:
        return attempt.ending.value
    return f"cut by {attempt.fault.kind.value.upper()}, {attempt.fault.place.value}"


def _marks(
    rows: Sequence[Upload], size: float, detailed: bool
) -> Iterator[dict[str, Any]]:
    """Yield how connections ended: a trace for each kind of cut, kill, failure and end."""
    points: dict[str, list[tuple[float, int, str]]] = {}
    styles: dict[str, tuple[str, str]] = {
        f"cut by {kind.value.upper()}": style for kind, style in _SYMBOLS.items()
    }
    styles |= {
        "server killed": ("star-triangle-down-open", "killed"),
        "locked by the server": ("hourglass-open", "muted"),
        "broke otherwise": ("square-open", "bad"),
        "finished": ("line-ns-open", "good"),
        "failed": ("x", "bad"),
        "wrong content": ("star", "bad"),
    }
    for row, upload in enumerate(rows):
        wrong = upload.check is not None and not upload.check.ok
        for number, attempt in enumerate(upload.attempts, 1):
            name = _mark_of(attempt)
            if number == len(upload.attempts) and upload.failed:
                name = None  # it has the mark of the upload itself
            if name is not None:
                said = _attempt_text(upload, number, attempt) if detailed else ""
                points.setdefault(name, []).append((attempt.ended, row, said))
        if wrong or upload.failed:
            name = "wrong content" if wrong else "failed"
            said = f"upload {upload.number}: {name}, {upload.ending.value}"
            points.setdefault(name, []).append((upload.ended, row, said))
        elif detailed and upload.ending is Ending.DONE:
            said = f"upload {upload.number}: finished after {units.duration(upload.seconds)}"
            points.setdefault("finished", []).append((upload.ended, row, said))
    for name, (symbol, shade) in styles.items():
        if name not in points:
            continue
        large = 1.4 if name in ("failed", "wrong content") else 1.0
        marker = {
            "symbol": symbol if detailed or large > 1 else "line-ns-open",
            "color": colour(shade),
            "size": max(size * large, 8.0 if large > 1 else 0),
            "line": {"width": 2 if detailed else 1.5, "color": colour(shade)},
        }
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": f"{name} ({len(points[name]):,})",
            "x": [point[0] for point in points[name]],
            "y": [point[1] for point in points[name]],
            "marker": marker,
            "text": [point[2] for point in points[name]]
            if detailed or large > 1
            else None,
            "hoverinfo": "text" if detailed or large > 1 else "skip",
            "cliponaxis": False,
        }


def _mark_of(attempt: Attempt) -> str | None:
    if attempt.ending is Ending.CUT and attempt.fault is not None:
        return f"cut by {attempt.fault.kind.value.upper()}"
    if attempt.ending is Ending.KILLED:
        return "server killed"
    if attempt.ending in (Ending.DONE, Ending.STOPPED):
        return None
    if attempt.status == LOCKED and not attempt.sent:
        return "locked by the server"
    return "broke otherwise"
