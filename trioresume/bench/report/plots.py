"""The plots of the HTML page, as plotly figures in plain JSON values.

Plotly reads some markup in its texts, so no text that came from the network is in
a plot: numbers and this package's own words only. Colours are those of the light
scheme; the page exchanges them for the second member in :data:`~.style.PALETTE` in
the dark.
"""

from __future__ import annotations

import json

from trioresume.bench.report.curves import latency_plots, rate_plots, server_plots
from trioresume.bench.report.style import Plot
from trioresume.bench.report.timelines import timeline_plots
from trioresume.bench.results import Results
from trioresume.errors import CallerError

__all__ = ["plots", "require_plotly"]


def require_plotly() -> None:
    """Raises :class:`CallerError` that says what to install where plotly is missing."""
    try:
        import plotly.graph_objects
    except ImportError as exc:
        raise CallerError(
            "the HTML report needs plotly, which is not installed: "
            "pip install 'trioresume[html]'"
        ) from exc
    del plotly


def plots(results: Results) -> list[Plot]:
    """The plots that this run has data for, in the order to read them."""
    made = [
        *rate_plots(results),
        *latency_plots(results),
        *timeline_plots(results),
        *server_plots(results),
    ]
    return [_checked(plot) for plot in made]


def _checked(plot: Plot) -> Plot:
    """*plot* as plotly's own model writes it: a misspelt property raises here."""
    from plotly.graph_objects import Figure

    figure = json.loads(Figure(plot.figure, skip_invalid=False).to_json())
    # The default template is tens of kilobytes for each plot, and not in use.
    figure["layout"].pop("template", None)
    return Plot(plot.id, plot.title, plot.reading, figure, plot.height, plot.half)
