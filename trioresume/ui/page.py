"""The page's files, as a browser gets them."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trioresume.errors import CallerError
from trioresume.ui.build import HERE, is_built, missing_programs

__all__ = ["PageFile", "load_page"]

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "licences.txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page."""

    content_type: str
    content: bytes

    @property
    def etag(self) -> str:
        """A strong validator, with its quotes."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def load_page(endpoint: str, folder: Path = HERE) -> Mapping[str, PageFile]:
    """Return the files by name; "" is the page itself, which uploads to *endpoint*.

    Raises :class:`~trioresume.errors.CallerError` if the page was not built.
    """
    if not is_built(folder):
        lacking = " and ".join(missing_programs())
        here = f"; {lacking} cannot be found here" if lacking else ""
        raise CallerError(
            "the page of --ui is not built. Build it once with 'python -m trioresume.ui "
            f"build', which needs Node 18 or newer, npm and a network{here}"
        )
    files = {
        name: PageFile(kind, (folder / "dist" / name).read_bytes())
        for name, kind in _TYPES.items()
    }
    index = files.pop("index.html")
    said = html.escape(endpoint).encode()
    files[""] = PageFile(
        index.content_type, index.content.replace(b"{{endpoint}}", said)
    )
    return files
