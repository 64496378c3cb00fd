"""``python -m tests.e2e.picture FOLDER``: the pictures of both pages, for the docs.

Each page is shown wide and narrow, light and dark: ``ui-1400-light.png``,
``admin-360-dark.png``, and so on.
"""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import product
from pathlib import Path

from tests.e2e.chromium import Browser, running_browser
from tests.e2e.command import Service, free_port

MB = 1_000_000
SIZES = {360: {"width": 360, "height": 1000}, 1400: {"width": 1400, "height": 1000}}


def show_uploads(browser: Browser, root: str, files: dict[str, Path]) -> None:
    """One upload is done, one is paused, one is on its way, and one was refused."""
    browser.goto(f"{root}/ui/")
    browser.see("Up to")
    browser.drop(files["minutes.pdf"])
    browser.href("minutes.pdf")
    browser.upload_at_most(4 * MB)
    browser.drop(files["survey.csv"])
    browser.see(r"[3-9]\d %, ")
    browser.click("Pause survey.csv")
    browser.see("· Paused")
    browser.drop(files["archive.tar"], files["interview.mp4"])
    browser.see(r"[3-9]\d %, .* left")


def show_admin(browser: Browser, admin: str, table: str, pattern: str) -> None:
    browser.goto(f"{admin}/admin/#{table}")
    browser.see(pattern)
    browser.see("up .* s")


def make_files(folder: Path) -> dict[str, Path]:
    sizes = {
        "minutes.pdf": MB // 3,
        "survey.csv": 7 * MB,
        "interview.mp4": 28 * MB,
    }
    files = {name: folder / name for name in (*sizes, "archive.tar")}
    for name, size in sizes.items():
        files[name].write_bytes(os.urandom(size))
    with files["archive.tar"].open("wb") as file:
        file.truncate(101 * MB)
    return files


def main(place: Path) -> None:
    """Make the pictures."""
    with tempfile.TemporaryDirectory() as name, running_browser() as browser:
        folder = Path(name)
        files = make_files(folder)
        admin = f"127.0.0.1:{free_port()}"
        options = ("--ui", "--max-upload-size", "100MB", "--max-stored-bytes", "2GB")
        watched = ("--admin-bind", admin, "--admin-page", "change")
        service = Service(folder / "data", ("serve", *options, *watched))
        service.start()
        try:
            # The list of uploads grows from one to the next: the widest one is short.
            for width, colors in product((1400, 360), ("dark", "light")):
                browser.start(viewport=SIZES[width], colorScheme=colors)
                show_uploads(browser, service.root, files)
                browser.run("document.activeElement?.blur(), null")
                browser.picture(place / f"ui-{width}-{colors}.png")
                table, pattern = {
                    "light": ("overview", "Connections"),
                    "dark": ("uploads", "interview.mp4|survey.csv"),
                }[colors]
                browser.upload_at_most(-1)
                show_admin(browser, f"http://{admin}", table, pattern)
                browser.picture(place / f"admin-{width}-{colors}.png")
        finally:
            service.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
