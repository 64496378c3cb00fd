"""The page that ``trioresume serve --ui`` serves: its source, and how it is built.

``src`` is what a person wrote, in JavaScript on top of Uppy; ``dist`` is what a browser
is sent. npm and esbuild make the one of the other: when trioresume is installed, if they
are there (``hatch_build``), or by ``python -m trioresume.ui build``. Nothing else in the
package needs them, and nothing is fetched when the page is served.
"""
