"""Sphinx: `sphinx-build -W -b html docs docs/_build`."""

from __future__ import annotations

project = "trioresume"
author = "The trioresume authors"
copyright = "2026, The trioresume authors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = "trioresume"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
