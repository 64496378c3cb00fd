"""What a run is shown as: while it goes on, at its end, and as a page to keep.

A run is :func:`watching` that is given the snapshots, then :func:`print_results` or
:func:`html_page` of what was found. They are apart from :mod:`trioresume.bench`
because the load generator's processes need none of it.
"""

from trioresume.bench.report.live import watching
from trioresume.bench.report.page import html_page
from trioresume.bench.report.plots import require_plotly
from trioresume.bench.report.table import print_results

__all__ = ["html_page", "print_results", "require_plotly", "watching"]
