"""The parts that all plots share: colours, axes, layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trioresume.bench.results import Kill

__all__ = ["PALETTE", "Plot", "axis", "colour", "kill_shapes", "layout"]

PALETTE = {
    "text": ("#1f2933", "#e4e7eb"),
    "muted": ("#69727d", "#9aa5b1"),
    "grid": ("#e2e6ea", "#343c46"),
    "sent": ("#8fb8de", "#41688f"),
    "good": ("#0b6e4f", "#4cc38a"),
    "line": ("#2f6fab", "#70b0ec"),
    "cut": ("#d9590b", "#ff9a55"),
    "cut2": ("#b3158c", "#f07fd5"),
    "cut3": ("#8a6a00", "#e6c449"),
    "bad": ("#c4001d", "#ff6b78"),
    "killed": ("#6a3fb5", "#b795f5"),
}
"""Name: light, dark. No meaning depends on colour alone: shapes and texts show it too."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: *figure* has plotly's ``data`` and ``layout``."""

    id: str
    title: str
    reading: str
    figure: dict[str, Any]
    height: int
    half: bool = False


def colour(name: str) -> str:
    """*name* in the light scheme."""
    return PALETTE[name][0]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with *title*, and *more* of its properties."""
    return {
        "title": {"text": title},
        "gridcolor": colour("grid"),
        "zerolinecolor": colour("grid"),
        "automargin": True,
        **more,
    }


def layout(height: int, **more: Any) -> dict[str, Any]:
    """The layout of a plot *height* pixels high."""
    return {
        "height": height,
        "margin": {"l": 10, "r": 14, "t": 58, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": colour("text"), "size": 13},
        "legend": {
            "itemsizing": "constant",
            "orientation": "h",
            "x": 0,
            "y": 1,
            "yanchor": "bottom",
            "xanchor": "left",
        },
        "hovermode": "closest",
        "dragmode": "zoom",
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": colour("muted"),
            "activecolor": colour("text"),
        },
        **more,
    }


def kill_shapes(kills: Sequence[Kill], end: float) -> Iterator[dict[str, Any]]:
    """A shade over each time that the server was down; *end* is the last second."""
    for kill in kills[:200]:
        yield {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": kill.down,
            "x1": kill.up if kill.up is not None else max(end, kill.down),
            "y0": 0,
            "y1": 1,
            "fillcolor": colour("killed"),
            "opacity": 0.22,
            "line": {"width": 0},
            "layer": "below",
        }
