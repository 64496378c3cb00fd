"""``python -m tests.e2e.page_throughput``: 200 small files by the page, and by stock Uppy.

Both run in the same Chromium against the same server, by turns, so that the ratio holds on a
busy machine, too. Uppy has its dashboard and its tus plugin, with their defaults. What is
timed is the time from the choice of the files until the last one is uploaded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.chromium import Browser, running_browser
from tests.e2e.command import Service
from tests.e2e.npm import installed

PACKAGES = (
    "@uppy/core@6.3.1",
    "@uppy/dashboard@6.0.3",
    "@uppy/tus@6.0.0",
    "esbuild@0.28.2",
)
FILES = 200
SIZE = 10_000
ROUNDS = 5

_UPPY = """
import Uppy from "@uppy/core";
import Dashboard from "@uppy/dashboard";
import Tus from "@uppy/tus";
window.uppyUpload = async (endpoint, files) => {
  const began = performance.now();
  const uppy = new Uppy({ autoProceed: true })
    .use(Dashboard, { inline: true, target: document.body })
    .use(Tus, { endpoint });
  const done = new Promise((resolve) => uppy.on("complete", resolve));
  uppy.addFiles(files.map((data) => ({ name: data.name, type: data.type, data })));
  const { successful, failed } = await done;
  if (failed.length > 0 || successful.length !== files.length) throw new Error("some failed");
  return performance.now() - began;
};
"""

_WATCH = """
(() => {
  window.took = new Promise((resolve) => {
    addEventListener("change", ({ target }) => {
      if (target.type !== "file") return;
      const began = performance.now();
      const count = target.files.length;
      const timer = setInterval(() => {
        const row = document.querySelector("#finished li");
        if (Number(row?.ariaSetSize) !== count) return;
        clearInterval(timer);
        resolve(performance.now() - began);
      }, 10);
    }, { capture: true });
  });
})()
"""


def bundle_of_uppy(folder: Path) -> str:
    """Return Uppy as one script that defines ``uppyUpload``."""
    packages = installed(*PACKAGES)
    source = folder / "uppy.mjs"
    source.write_text(_UPPY)
    done = subprocess.run(
        [
            str(packages / "node_modules/.bin/esbuild"),
            *(str(source), "--bundle", "--minify", "--format=iife"),
        ],
        env={**os.environ, "NODE_PATH": str(packages / "node_modules")},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def by_the_page(browser: Browser, root: str, files: list[Path]) -> float:
    """Return the seconds."""
    browser.start()
    browser.goto(f"{root}/ui/")
    browser.see("Drop files here")
    browser.run(_WATCH)
    browser.choose(*files)
    return float(browser.run("took")) / 1000


def by_uppy(browser: Browser, root: str, files: list[Path], script: str) -> float:
    """Return the seconds."""
    browser.start()
    browser.goto(f"{root}/files/")  # a page without a policy
    browser.run(f"(0, eval)({json.dumps(script)}), null")
    browser.run(
        "document.body.innerHTML = '<input type=file multiple>',"
        " document.querySelector('input').onchange = (event) => {"
        " window.chosen = [...event.target.files]; }, null"
    )
    browser.choose(*files)
    browser.run("document.body.innerHTML = '', null")
    return float(browser.run(f"uppyUpload('{root}/files/', chosen)")) / 1000


def main() -> None:
    """Print the seconds of each round, the medians, and their ratio."""
    with tempfile.TemporaryDirectory() as name, running_browser() as browser:
        folder = Path(name)
        script = bundle_of_uppy(folder)
        files = [folder / f"photo-{number:03}.jpg" for number in range(FILES)]
        for path in files:
            path.write_bytes(os.urandom(SIZE))
        service = Service(folder / "data", ("serve", "--ui"))
        service.start()
        try:
            page, uppy = [], []
            for turn in range(ROUNDS + 1):
                took = by_the_page(browser, service.root, files)
                other = by_uppy(browser, service.root, files, script)
                if turn:  # the first one warms up
                    page.append(took)
                    uppy.append(other)
                    sys.stdout.write(f"page {took:.2f} s   Uppy {other:.2f} s\n")
                    sys.stdout.flush()
            ours, theirs = statistics.median(page), statistics.median(uppy)
            sys.stdout.write(
                f"medians: page {ours:.2f} s, Uppy {theirs:.2f} s; the page has"
                f" {theirs / ours:.2f} times the throughput\n"
            )
        finally:
            service.stop()


if __name__ == "__main__":
    main()
