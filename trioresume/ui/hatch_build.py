"""Builds the page into the wheel. Without Node and npm it only prints that it cannot.

hatchling runs this hook, named in pyproject.toml, in an environment without trioresume.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "TRIORESUME_BUILD_UI"
"""``0`` in this variable leaves the page out."""


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
