"""``python -m trioresume.ui build``: make the page after an installation that could not."""

from __future__ import annotations

import sys

from trioresume.ui.build import CannotBuild, build, is_built


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    if arguments != ["build"]:
        sys.stderr.write("Usage: python -m trioresume.ui build\n")
        return 2
    try:
        if not is_built():
            build()
    except CannotBuild as exc:
        sys.stderr.write(f"Error: {exc}\n")
        return 1
    sys.stdout.write("The page is built: trioresume serve --ui\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
