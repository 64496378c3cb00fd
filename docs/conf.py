"""Sphinx: `sphinx-build -W -b html docs docs/_build`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs.generate import markdown, without_citations

project = "trioresume"
author = "The trioresume authors"
project_copyright = "2026, The trioresume authors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
# A unit's name within a type, such as 'seconds', is taken for a reference to whatever
# is called so, of which there are several.
suppress_warnings = ["ref.python"]
# Only the package's own names can be resolved: a build must not need the network.
nitpick_ignore_regex = [(r"py:.*", r"(?!trioresume\b).*")]
# Nor can what appears in signatures of public names without being public itself.
nitpick_ignore = [
    ("py:class", f"trioresume.{name}")
    for name in (
        "bench.records.Unit",
        "server.api.handler.Progress",
        "server.api.handler.RecordedWith",
        "server.api.handler.Representation",
        "server.api.handler.Services",
        "server.api.handler._H",
        "server.api.hooks.AnyHooks",
        "server.api.rulebook.Rulebook",
        "server.http.tls.contexts.ServerContexts",
        "store.catalog.catalog.CatalogReader",
        "store.disk.chunks.ChunkFiles",
        "store.file_system.disk_io.Disk",
        "store.disk.unfinished.Survey",
        "store.port.values.Content",
        "store.port.values.FileRecord",
        "store.port.Store",
        "store.disk.tail_files.TailFiles",
        "testing.streams._Pipe",
    )
]

# Quotes and dots, but no dashes: -- is how an option begins.
smartquotes_action = "qe"

html_theme = "furo"
html_title = "trioresume"
html_static_path = ["static"]
# Nobody needs the Markdown beside each page; the link to it is outside all landmarks.
html_copy_source = False
html_show_sourcelink = False
html_js_files = ["access.js"]
html_css_files = ["narrow.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Numbers whose unit is in their type: shown by that name.
autodoc_type_aliases = {
    name: name
    for name in (
        "Bytes",
        "BytesPerSecond",
        "CpuSeconds",
        "EpochSeconds",
        "Offset",
        "Seconds",
        "WholeBytesPerSecond",
    )
}


class Generated(SphinxDirective):
    """``{generated} name argument…``: see docs/generate.py."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        text = markdown(*self.arguments[0].split())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def without_statement_numbers(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Leave out numbers such as (R21) of a docstring: they are for readers of the code."""
    lines[:] = without_citations("\n".join(lines)).split("\n")


def setup(app: Sphinx) -> None:
    """Make the directive known."""
    app.connect("autodoc-process-docstring", without_statement_numbers)
    app.add_directive("generated", Generated)
    app.add_lexer("haproxy", TextLexer)  # Pygments has none for it
