"""Look at the built documentation in a real browser: ``python -m docs.look docs/_build``.

No page may be cut off at the right edge, at two widths. On six pages, at both widths and in
light and dark, axe (an accessibility checker) must find nothing. With ``--pictures DIRECTORY``
it also writes a picture of each of these. It needs chromium, node and npm, and says so if they are missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGES = (
    "index",
    "install",
    "tutorial",
    "comparison",
    "explanation/protocols",
    "reference/problems",
)
WIDTHS = (360, 1400)
THEMES = ("light", "dark")
PACKAGES = ("playwright-core@1.65.1", "axe-core@4.14.1")
NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 240

_SCRIPT = """
const { chromium } = require('playwright-core');
const axe = require.resolve('axe-core/axe.min.js');
const job = JSON.parse(process.argv[2]);

// What of the article's text and pictures is beyond the right edge, and cannot be scrolled to.
function beyond() {
  const root = document.documentElement;
  const found = root.scrollWidth > root.clientWidth ? ['the page itself'] : [];
  const scrolls = (element) => {
    for (let e = element; e && e !== document.body; e = e.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth)
        return true;
    return false;
  };
  const boxes = 'article :is(p, li, dd, dt, h1, h2, h3, img, pre, table)';
  for (const box of document.querySelectorAll(boxes)) {
    const rect = box.getBoundingClientRect();
    if (rect.width && rect.right > root.clientWidth + 1 && !scrolls(box))
      found.push(`${box.tagName} ${box.textContent.trim().slice(0, 50)}`);
  }
  return found;
}

(async () => {
  const browser = await chromium.launch({
    executablePath: job.browser, args: ['--no-sandbox', '--disable-gpu'],
  });
  const found = [];
  for (const theme of job.themes) for (const width of job.widths) {
    const context = await browser.newContext({
      viewport: { width, height: 900 }, colorScheme: theme,
    });
    const page = await context.newPage();
    // The layout is the same in both themes.
    for (const name of theme === job.themes[0] ? job.all : job.pages) {
      await page.goto(`file://${job.site}/${name}.html`);
      const where = `${name}, ${width} px, ${theme}`;
      for (const what of await page.evaluate(beyond))
        found.push(`${where}: cut off at the right: ${what}`);
      if (!job.pages.includes(name)) continue;
      if (job.pictures) {
        const path = `${job.pictures}/${name.replace('/', '-')}-${width}-${theme}.png`;
        await page.screenshot({ path });
      }
      await page.addScriptTag({ path: axe });
      const result = await page.evaluate(() => window.axe.run());
      for (const each of result.violations) {
        const places = each.nodes.slice(0, 3).map((node) => node.target.join(' '));
        found.push(`${where}: ${each.id}: ${each.help}: ${places.join('; ')}`);
      }
    }
    await context.close();
  }
  await browser.close();
  console.log(JSON.stringify(found));
})().catch((error) => { console.error(error); process.exit(1); });
"""


def look(site: Path, pictures: Path | None = None) -> list[str] | None:
    """Return what is wrong with the pages below *site*; None if nobody can look."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None or shutil.which("npm") is None or shutil.which("node") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        done = subprocess.run(
            [*install, "--ignore-scripts", "--prefix", folder, *PACKAGES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode != 0:
            return None
        script = Path(folder, "look.cjs")
        script.write_text(_SCRIPT, "utf-8")
        job = {
            "browser": browser,
            "site": str(site.resolve()),
            "pages": PAGES,
            "all": _all_pages(site),
            "widths": WIDTHS,
            "themes": THEMES,
            "pictures": None if pictures is None else str(pictures.resolve()),
        }
        seen = subprocess.run(
            ["node", str(script), json.dumps(job)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if seen.returncode != 0:
            return [f"the browser failed: {seen.stderr}"]
        found: list[str] = json.loads(seen.stdout)
        return found


def _all_pages(site: Path) -> list[str]:
    """The names of the pages that people read, without those that Sphinx adds."""
    names = (path.relative_to(site).with_suffix("") for path in site.rglob("*.html"))
    added = {"genindex", "py-modindex", "search"}
    return sorted(str(name) for name in names if str(name) not in added)


def main() -> int:
    """Print what is wrong. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    found = look(arguments.site, arguments.pictures)
    if found is None:
        sys.stderr.write("Not looked at: chromium, node or npm is missing.\n")
        return 0
    sys.stderr.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
