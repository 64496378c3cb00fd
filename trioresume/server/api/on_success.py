"""An action on success: ``copy:DIR``, ``link:DIR`` or ``move:DIR``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, cast

from trioresume.errors import CallerError

__all__ = ["Action"]

_ACTIONS = ("copy", "link", "move")


@dataclass(frozen=True, slots=True)
class Action:
    """What is done, and the absolute path of the directory."""

    name: Literal["copy", "link", "move"]
    directory: str

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read ``copy:DIR``. Raises :class:`ValueError` with the reason."""
        name, colon, directory = text.partition(":")
        if not colon or name not in _ACTIONS or not directory:
            raise ValueError(f"{text!r} is not like copy:DIR, link:DIR or move:DIR")
        return cls(
            cast("Literal['copy', 'link', 'move']", name), os.path.abspath(directory)
        )

    def check(self, data_dir: str | os.PathLike[str]) -> None:
        """Raise :class:`CallerError` unless files can be put into the directory now."""
        path = self.directory
        if os.open not in os.supports_dir_fd or os.link not in os.supports_dir_fd:
            raise CallerError("on_success: this system cannot do it")
        if not os.path.isdir(path):
            raise CallerError(f"on_success: {path} is not a directory")
        if not os.access(path, os.W_OK | os.X_OK):
            raise CallerError(f"on_success: {path} cannot be written")
        ours, theirs = os.path.realpath(data_dir), os.path.realpath(path)
        if os.path.commonpath((ours, theirs)) in (ours, theirs):
            raise CallerError(
                f"on_success: neither of {path} and the data directory may be in the other"
            )
