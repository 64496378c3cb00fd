"""``python -m tests.e2e.picture FILE``: a picture of the page of ``--ui``, for the docs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.e2e.chromium import running_browser
from tests.e2e.command import Service

MB = 1_000_000
SIZE = {"width": 760, "height": 860}


def main(place: Path) -> None:
    """Three uploads: one is done, one is paused, one is on its way."""
    with tempfile.TemporaryDirectory() as name, running_browser() as browser:
        folder = Path(name)
        sizes = {"minutes.pdf": MB // 3, "survey.csv": 7 * MB, "interview.mp4": 28 * MB}
        done, paused, running = (folder / name for name in sizes)
        for path, size in zip((done, paused, running), sizes.values(), strict=True):
            path.write_bytes(os.urandom(size))
        service = Service(folder / "data", ("serve", "--ui"))
        service.start()
        try:
            browser.start(viewport=SIZE, deviceScaleFactor=2)
            browser.goto(f"{service.root}/ui/")
            browser.drop(done)
            browser.href(done.name)
            browser.upload_at_most(4 * MB)
            browser.drop(paused)
            browser.see(r"[3-9]\d %")
            browser.click(f"Pause {paused.name}")
            browser.see("Paused")
            browser.drop(running)
            browser.see(r"[3-9]\d %, .* left")
            browser.picture(place)
        finally:
            service.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
