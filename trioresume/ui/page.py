"""The page's files, as a browser gets them."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trioresume.errors import CallerError
from trioresume.ui.appearance import PageAppearance
from trioresume.ui.build import HERE, is_built, missing_programs
from trioresume.ui.colors import color_sheet
from trioresume.ui.words import read_words

__all__ = ["PageFile", "load_admin_page", "load_page"]

_TYPES = {
    "page.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "licences.txt": "text/plain; charset=utf-8",
}
_ADMIN_TYPES = {
    "admin.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "admin.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HTML = "text/html; charset=utf-8"
_TITLE = "Upload files"


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page."""

    content_type: str
    content: bytes

    @property
    def etag(self) -> str:
        """A strong validator, with its quotes."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def load_page(
    endpoint: str, appearance: PageAppearance | None = None, folder: Path = HERE
) -> Mapping[str, PageFile]:
    """Return the files by name; "" is the page itself, which uploads to *endpoint*.

    Raises :class:`~trioresume.errors.CallerError` if the page was not built, or if a file of
    words cannot be used.
    """
    _check_built(folder)
    if appearance is None:
        appearance = PageAppearance()
    dist = folder / "dist"
    files = {
        name: PageFile(kind, (dist / name).read_bytes())
        for name, kind in _TYPES.items()
    }
    files["colors.css"] = PageFile(
        _TYPES["style.css"], color_sheet(appearance.color).encode()
    )
    languages = {}
    english = json.loads((dist / "words.en.json").read_text("utf-8"))
    for tag, path in appearance.language_files().items():
        words = read_words(path, english)
        languages[tag] = words.get("language", tag)
        files[f"words.{tag}.json"] = PageFile(
            "application/json", json.dumps(words).encode()
        )
    said = {
        "endpoint": endpoint,
        "title": appearance.title or _TITLE,
        "own-title": appearance.title,
        "languages": json.dumps(languages),
    }
    index = (dist / "index.html").read_text("utf-8")
    # One pass: a value that looks like a placeholder stays as it is.
    files[""] = PageFile(_HTML, _filled(index, said).encode())
    return files


def load_admin_page(
    token: str, *, may_change: bool, folder: Path = HERE
) -> Mapping[str, PageFile]:
    """Return the files of the admin page by name; "" is the page itself.

    It sends *token* with each change. Raises :class:`~trioresume.errors.CallerError` if the
    page was not built.
    """
    _check_built(folder, "--admin-page")
    dist = folder / "dist"
    files = {
        name: PageFile(kind, (dist / name).read_bytes())
        for name, kind in _ADMIN_TYPES.items()
    }
    said = {"token": token, "may-change": "yes" if may_change else ""}
    index = (dist / "admin.html").read_text("utf-8")
    files[""] = PageFile(_HTML, _filled(index, said).encode())
    return files


def _check_built(folder: Path, option: str = "--ui") -> None:
    if not is_built(folder):
        lacking = " and ".join(missing_programs())
        here = f"; {lacking} cannot be found here" if lacking else ""
        raise CallerError(
            f"the page of {option} is not built. Build it once with 'python -m trioresume.ui "
            f"build', which needs Node 18 or newer, npm and a network{here}"
        )


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Return *text* with *values*, escaped, in place of ``{{name}}``."""
    first, *others = text.split("{{")
    parts = [first]
    for other in others:
        name, _, rest = other.partition("}}")
        parts += [html.escape(values[name]), rest]
    return "".join(parts)
