"""``python -m trioresume`` is the command ``trioresume``."""

from __future__ import annotations

from trioresume.cli import main

if __name__ == "__main__":
    main(prog_name="trioresume")
