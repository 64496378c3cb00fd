"""A real browser, headless, for tests of what a page does in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.npm import installed

__all__ = ["Browser", "chromium", "running_browser"]

PACKAGES = ("playwright-core@1.65.1", "axe-core@4.14.1")
DRIVER = Path(__file__).with_name("browser.mjs")
NAMES = ("chromium", "chromium-browser", "google-chrome")
STOP_SECONDS = 20.0


class Browser:
    """One browser with one tab; :meth:`start` makes it a new one.

    What waits for the page waits for 20 seconds, then the error has what it showed.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._answer()

    def start(self, **options: object) -> None:
        """Nothing is remembered from before. *options* are Playwright's, of a context."""
        self._do("start", options=options)

    def tab(self) -> None:
        """Close the tab and open another."""
        self._do("tab")

    def goto(self, url: str) -> None:
        self._do("goto", url=url)

    def reload(self) -> None:
        self._do("reload")

    def drop(self, *paths: Path) -> None:
        self._do("drop", paths=[str(path) for path in paths])

    def choose(self, *paths: Path) -> None:
        """With the dialog for files."""
        self._do("choose", paths=[str(path) for path in paths])

    def click(self, name: str, role: str = "button") -> None:
        """Click on what has this role and name for assistive technology."""
        self._do("click", role=role, name=name)

    def press(self, *keys: str) -> None:
        """Press keys of the keyboard, named as Playwright names them, one after the other."""
        self._do("press", keys=keys)

    def select(self, label: str, value: str) -> None:
        self._do("select", label=label, value=value)

    def fill(self, label: str, text: str) -> None:
        self._do("fill", label=label, text=text)

    def download(self, name: str, path: Path, role: str = "link") -> str:
        """Follow the link *name*, save what comes; the name it was offered under."""
        return str(self._do("download", role=role, name=name, path=str(path)))

    def see(self, pattern: str) -> str:
        """Wait for text like *pattern*, in JavaScript's grammar; all there is then."""
        return str(self._do("see", pattern=pattern))

    def miss(self, pattern: str) -> None:
        """Wait until nothing is like *pattern*."""
        self._do("miss", pattern=pattern)

    def text(self) -> str:
        return str(self._do("text"))

    def href(self, name: str) -> str:
        """Where the link *name* leads; waits for it."""
        return str(self._do("href", name=name))

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self._do("run", script=script)

    def go_offline(self) -> None:
        self._do("network", change={"offline": True})

    def go_online(self) -> None:
        self._do("network", change={"offline": False})

    def upload_at_most(self, bytes_per_second: int) -> None:
        """How fast the network takes what the page sends; -1: as fast as it can."""
        self._do("network", change={"uploadThroughput": bytes_per_second})

    def console(self) -> list[str]:
        """What was written there since the start, errors and warnings included."""
        return list(self._do("log")["said"])

    def requests(self, method: str | None = None) -> list[str]:
        """The addresses that were asked since the start, with *method*."""
        return [u for m, u in self._do("log")["requests"] if method in (None, m)]

    def barriers(self) -> list[object]:
        """What axe-core has to say about the page as it is."""
        return list(self._do("barriers"))

    def picture(self, path: Path, **options: object) -> None:
        self._do("picture", path=str(path), options=options)

    def _do(self, command: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the browser's driver has ended, see its errors"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]


def chromium() -> str:
    """The browser's program; skips the test where there is none (.ci/run installs it)."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("chromium is not installed (on Debian: apt-get install chromium)")
    return program


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser; skips the tests where there is none, or nothing to drive it."""
    program = chromium()
    packages = installed(*PACKAGES)
    with subprocess.Popen(
        ["node", str(DRIVER), str(packages), program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        try:
            yield Browser(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # then the driver closes the browser, and ends
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
