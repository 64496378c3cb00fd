"""The hooks of hatchling: the page goes into the wheel, and the README's links to the index.

hatchling runs these, named in pyproject.toml, in an environment without trioresume.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

SWITCH = "TRIORESUME_BUILD_UI"
"""``0`` in this variable leaves the page out."""

REPOSITORY = "Source"
"""The entry of ``[project.urls]`` with the address of the repository."""

FILES = "blob/HEAD"
"""Where GitHub and GitLab show the files, below that; the hook's option ``files`` replaces it."""

_LINK = re.compile(r"(\]\()(?!#|[a-z][a-z0-9+.-]*:)(?=[^)\s]+\))")
_FENCED = re.compile(r"(^```.*?^```[ \t]*$)", re.MULTILINE | re.DOTALL)


class ReadmeHook(MetadataHookInterface):
    """The ``custom`` metadata hook: the description that an index shows.

    There, links relative to the repository lead nowhere. They are made absolute if
    ``[project.urls]`` says where the repository is. Otherwise the README stays as it is.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text("utf-8")
        if repository := metadata.get("urls", {}).get(REPOSITORY):
            files = self.config.get("files", FILES)
            text = absolute_links(text, f"{repository.rstrip('/')}/{files.strip('/')}/")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute_links(text: str, place: str) -> str:
    """Return *text* with its relative links below *place*, but for what is in code blocks."""
    parts = _FENCED.split(text)
    parts[::2] = [
        _LINK.sub(lambda match: match[0] + place, part) for part in parts[::2]
    ]
    return "".join(parts)


class PageBuildHook(BuildHookInterface[Any]):
    """The ``custom`` build hook of the wheel, editable or not."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = Path(self.root) / "trioresume" / "ui"
        building = _load(folder / "build.py")
        try:
            if os.environ.get(SWITCH) == "0":
                raise building.CannotBuild(f"{SWITCH} is 0")
            if not building.is_built(folder):
                building.build(folder)
        except building.CannotBuild as exc:
            self.app.display_warning(f"The page of --ui is left out: {exc}")
            return
        # git ignores the folder, so hatchling would leave it out.
        build_data["artifacts"].append("/trioresume/ui/dist/")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("trioresume_ui_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
