"""The page that ``trioresume serve --ui`` serves: its source, and its build.

``src`` is the source, in JavaScript on top of tus-js-client; ``dist`` has the files that a browser
gets. npm and esbuild make ``dist`` from ``src``: during the installation of trioresume, if
they are there (see ../hatch_build.py), or by ``python -m trioresume.ui build``. Nothing else
in the package needs them, and nothing is fetched from elsewhere when the page is served.
"""
