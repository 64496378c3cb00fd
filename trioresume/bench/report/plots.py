"""The plots of the HTML page, as plotly figures in plain JSON values.

Plotly interprets some markup in its texts. So a plot has only numbers and this
package's own texts, and no text from the network. The colours are those of the light
scheme. In the dark scheme the page replaces them by the second members in
:data:`~.style.PALETTE`.
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
    """Raise :class:`CallerError`, which says what to install, if plotly is missing."""
    try:
        import plotly.graph_objects
    except ImportError as exc:
        raise CallerError(
            "the HTML report needs plotly, which is not installed: "
            "pip install 'trioresume[html]'"
        ) from exc
    del plotly


def plots(results: Results) -> list[Plot]:
    """Return the plots for which this run has data, in the order to read them."""
    made = [
        *rate_plots(results),
        *latency_plots(results),
        *timeline_plots(results),
        *server_plots(results),
    ]
    return [_checked(plot) for plot in made]


def _checked(plot: Plot) -> Plot:
    """Return *plot* as plotly's own model writes it. A misspelt property raises."""
    from plotly.graph_objects import Figure

    figure = json.loads(Figure(plot.figure, skip_invalid=False).to_json())
    # The default template has tens of kilobytes for each plot and is not used.
    figure["layout"].pop("template", None)
    return Plot(plot.id, plot.title, plot.reading, figure, plot.height, plot.half)
