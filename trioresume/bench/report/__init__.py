"""Shows a run: during the load, at its end, and as a page to keep.

During a run :func:`watching` shows the snapshots. Then :func:`print_results` or
:func:`html_page` shows the results. These modules are apart from
:mod:`trioresume.bench` because the load generator's processes do not need them.
"""

from trioresume.bench.report.diff import diff_page, figure_text, print_diff
from trioresume.bench.report.live import watching
from trioresume.bench.report.page import html_page
from trioresume.bench.report.plots import require_plotly
from trioresume.bench.report.table import print_results

__all__ = [
    "diff_page",
    "figure_text",
    "html_page",
    "print_diff",
    "print_results",
    "require_plotly",
    "watching",
]
