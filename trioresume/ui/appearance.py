"""What an operator may change of the page: its title, its color and its languages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trioresume.errors import CallerError

__all__ = ["PageAppearance"]

_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_TAG = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
MAX_TITLE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAppearance:
    """How the upload page looks, for ``Config.ui_appearance``.

    Raises :class:`~trioresume.CallerError` for a value that cannot be used. The files of
    words are read when the service begins.
    """

    title: str = ""
    """The title of the page; empty: "Upload files" in the language that is shown."""
    color: str | None = None
    """The color of buttons, links and bars, as ``#1f6f5c``; None: the page's own green.

    Where it would be hard to read it is made darker or, in dark mode, lighter."""
    languages: Sequence[str | os.PathLike[str]] = ()
    """Files with the words of more languages, beside English and German.

    A file ``fr.json`` or ``pt-BR.json`` has the words of the language that its name says. It
    is chosen if the person's browser prefers it, or by hand."""

    def __post_init__(self) -> None:
        if len(self.title) > MAX_TITLE or not self.title.isprintable():
            raise CallerError(
                f"the page's title must be printable and have at most {MAX_TITLE} characters"
            )
        if self.color is not None and _COLOR.fullmatch(self.color) is None:
            raise CallerError(
                f"the page's color must look like #1f6f5c: {self.color!r}"
            )
        if isinstance(self.languages, str):
            raise CallerError("the page's languages are a sequence of files")
        self.language_files()

    def language_files(self) -> Mapping[str, Path]:
        """Return the files by the tags of their languages."""
        files: dict[str, Path] = {}
        for path in map(Path, self.languages):
            tag = path.stem
            if path.suffix != ".json" or _TAG.fullmatch(tag) is None:
                raise CallerError(
                    f"{path} must be named after its language: fr.json, pt-BR.json"
                )
            if tag in files:
                raise CallerError(f"{path}: this language has a file already")
            files[tag] = path
        return files
