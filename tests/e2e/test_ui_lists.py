"""The lists of the page of ``--ui``: many files together, refused ones, finished ones."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import trioresume
from tests.e2e.chromium import Browser
from tests.e2e.command import Service
from tests.e2e.tus_uploads import request

KB = 1000
SLOW = 100 * KB
"""Bytes a second, so that something can be done to uploads of a megabyte."""


@pytest.fixture(scope="module")
def shared(
    page_files: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with the page, for all tests that leave it running."""
    data = tmp_path_factory.mktemp("lists") / "data"
    service = Service(data, ("serve", "--ui", "--max-upload-size", "2MB"))
    service.start()
    yield service
    service.stop()
    service.check_log()


def make_files(folder: Path, count: int, size: int, name: str = "file") -> list[Path]:
    paths = [folder / f"{name}-{number:04}.txt" for number in range(count)]
    for path in paths:
        path.write_bytes(os.urandom(size))
    return paths


def rows(browser: Browser, section: str) -> int:
    """How many rows of a list exist in the page."""
    return int(browser.run(f"document.querySelectorAll('#{section} li').length"))


def listed(browser: Browser, section: str) -> int:
    """How many rows the list says that it has."""
    script = f"document.querySelector('#{section} li')?.getAttribute('aria-setsize')"
    return int(browser.run(script) or 0)


def wait_for(browser: Browser, condition: str) -> None:
    """Wait until the expression *condition* holds in the page."""
    browser.run(
        "(async () => { for (let i = 0; i < 400; i++) {"
        f" if ({condition}) return; await new Promise((on) => setTimeout(on, 50)); }}"
        " throw new Error('it did not happen') })()"
    )


def test_refused_files_stay_until_they_are_dismissed(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """With their reason, while others come and go, and after a reload."""
    good, *large = make_files(tmp_path, 3, 10)
    for path in large:
        path.write_bytes(bytes(3000 * KB))
    browser.goto(f"{shared.root}/ui/")
    browser.see("Up to 2.0 MB each")
    browser.drop(*large)
    browser.drop(good)
    browser.see("file-0000.txt is uploaded")
    shown = browser.see("2 files need your attention")
    assert shown.count("larger than 2.0 MB, the most that this service takes") == 2
    assert browser.barriers() == []
    browser.run(
        "new Promise((on) => setTimeout(on, 600))"
    )  # it is written down by then
    browser.reload()
    assert browser.see("larger than 2.0 MB").count("Not accepted") == 2
    browser.click("Dismiss file-0001.txt")
    browser.miss("file-0001.txt")
    browser.see("1 file needs your attention")
    browser.click("Dismiss all")
    browser.miss("Not accepted")
    browser.reload()
    browser.see("file-0000.txt")
    assert "Not accepted" not in browser.text()


def test_all_are_paused_and_resumed_together(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """The bar above them shows the sum of all, those that are done included."""
    files = make_files(tmp_path, 4, 500 * KB)
    browser.goto(f"{shared.root}/ui/")
    browser.upload_at_most(SLOW)
    browser.drop(*files)
    shown = browser.see(r"0 of 4 files · .* of 2.0 MB · .*B/s · .* left")
    assert "Resume all" not in shown
    browser.click("Pause all")
    browser.see("Resume all")
    assert browser.text().count("· Paused") == 4
    assert "Pause all" not in browser.text()
    assert browser.barriers() == []
    browser.click("Resume file-0000.txt")
    browser.see("Pause all")
    browser.upload_at_most(-1)
    browser.see("1 of 4 files")
    bar = "document.getElementById('total-bar').value"
    assert 0.25 <= float(browser.run(bar)) < 1
    browser.click("Resume all")
    for path in files:
        response, body = request("GET", browser.href(path.name))
        assert (response.status, body) == (200, path.read_bytes())
    assert browser.see("4 files are uploaded")


def test_all_that_failed_are_tried_again_together(
    browser: Browser,
    page_files: None,
    make_service: Callable[..., Service],
    tmp_path: Path,
) -> None:
    token, line = trioresume.new_token("ann")
    tokens = tmp_path / "tokens"
    tokens.write_text(line + "\n")
    service = make_service("--ui", "--tokens-file", str(tokens))
    service.start()
    browser.goto(f"{service.root}/ui/")
    files = make_files(tmp_path, 3, 100)
    browser.drop(*files)
    browser.see("3 files need your attention")
    assert browser.text().count("Credentials are needed") == 3
    browser.run(f"sessionStorage.setItem('trioresume.token', '{token}')")
    browser.click("Retry all")
    for path in files:
        assert browser.href(path.name)


def test_all_are_cancelled_with_a_second_click(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """One click alone changes nothing, and the question goes away by itself."""
    browser.goto(f"{shared.root}/ui/")
    browser.upload_at_most(SLOW)
    browser.drop(*make_files(tmp_path, 8, 500 * KB))
    browser.see("B/s")
    browser.click("Cancel all")
    browser.click("Pause all")  # so the focus goes elsewhere
    browser.see("· Paused")
    browser.click("Cancel all")
    assert listed(browser, "uploads") == 8
    browser.click("Really: Cancel all?")
    browser.miss("file-0003.txt")
    browser.reload()
    browser.see("Drop files here")
    assert "file-" not in browser.text()


def test_finished_files_are_kept_searched_exported_copied_and_deleted(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """However many they are: a browser's reload loses none."""
    count = 130
    files = make_files(tmp_path, count, 20)
    files[7] = files[7].rename(tmp_path / '=1+1,"two".txt')
    browser.start(permissions=["clipboard-read", "clipboard-write"])
    browser.goto(f"{shared.root}/ui/")
    browser.choose(*files)
    browser.see(f"{count} files are uploaded")
    wait_for(browser, f"document.querySelector('#finished li')?.ariaSetSize == {count}")
    assert rows(browser, "finished") < 60
    browser.run(
        "new Promise((on) => setTimeout(on, 1200))"
    )  # it is written down by then
    browser.reload()
    wait_for(browser, f"document.querySelector('#finished li')?.ariaSetSize == {count}")
    assert browser.barriers() == []

    browser.fill("Search finished files", "FILE-0117")
    browser.see("1 file found")
    link = browser.href("file-0117.txt")
    assert rows(browser, "finished") == 1
    assert browser.barriers() == []
    browser.click("Copy link file-0117.txt")
    browser.see("The link to file-0117.txt is copied")
    assert browser.run("navigator.clipboard.readText()") == link
    assert request("GET", link)[1] == files[117].read_bytes()

    browser.fill("Search finished files", "")
    # The outcomes are asked for a few at a time: the list knows all addresses by now.
    wait_for(browser, "document.querySelectorAll('#finished li [href]').length >= 5")
    saved = tmp_path / "list.csv"
    name = browser.download("Export as CSV", saved, role="button")
    assert name == "trioresume.csv"
    table = list(csv.DictReader(io.StringIO(saved.read_text("utf-8-sig"))))
    assert len(table) == count
    assert {row["name"] for row in table} == {
        "'" + path.name if path.name[0] == "=" else path.name for path in files
    }
    assert {row["bytes"] for row in table} == {"20"}
    (row,) = [row for row in table if row["name"] == "file-0117.txt"]
    assert row["link"] == link

    browser.fill("Search finished files", "file-0117")
    browser.click("Delete file-0117.txt")
    assert request("GET", link)[0].status == 200
    browser.click("Really: Delete?")
    browser.see("file-0117.txt is deleted")
    assert request("GET", link)[0].status == 404
    browser.see("Finished")
    browser.reload()
    wait_for(
        browser, f"document.querySelector('#finished li')?.ariaSetSize == {count - 1}"
    )
    browser.click("Clear this list")
    browser.reload()
    browser.see("Drop files here")
    browser.run("new Promise((on) => setTimeout(on, 600))")
    assert rows(browser, "finished") == 0


def test_what_another_tab_finished_is_shown(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """At once: the list is that of the browser, not of the tab."""
    browser.goto(f"{shared.root}/ui/")
    entry = {"id": "1-x", "name": "other.txt", "size": 1, "at": 1, "message": None}
    entry |= {"outcome": {"status": 201, "location": None, "problem": None}}
    browser.see("Drop files here")
    browser.run(
        f"new BroadcastChannel('trioresume').postMessage({{put: [{json.dumps(entry)}]}})"
    )
    browser.see("other.txt")


def test_list_of_an_earlier_version_is_taken_over(
    browser: Browser, shared: Service
) -> None:
    """It was in the other storage of the browser."""
    browser.goto(f"{shared.root}/ui/")
    outcome = {"status": 201, "location": "/files/old", "problem": None}
    entries = [
        {
            "id": f"{n}-file-old",
            "name": f"old-{n}.txt",
            "size": 5,
            "at": 1700000000000 + n,
            "message": None,
            "outcome": outcome,
        }
        for n in range(3)
    ]
    kept = json.dumps(json.dumps(entries))
    browser.run(f"localStorage.setItem('trioresume.finished', {kept})")
    browser.reload()
    for n in range(3):
        assert browser.href(f"old-{n}.txt").endswith("/files/old")


def test_queue_of_two_thousand_files_stays_smooth(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """Few rows exist, wherever one scrolls, and the page is never busy for long."""
    count = 2000
    files = make_files(tmp_path, count, 300, name="photo")
    browser.goto(f"{shared.root}/ui/")
    browser.see("Up to")
    browser.upload_at_most(2 * KB)  # some are sent meanwhile, most wait
    # What the browser itself needs to hand over the files is not the page's.
    browser.run(
        """window.long = []; addEventListener('drop', () => setTimeout(() =>
        new PerformanceObserver((list) => {
          for (const entry of list.getEntries()) long.push(entry.duration);
        }).observe({type: 'longtask'})))"""
    )
    browser.drop(*files)
    browser.see(f"of {count} files")
    assert rows(browser, "uploads") < 60
    adding = browser.run("Math.max(0, ...long)")
    browser.run("long.length = 0")
    frames = browser.run(
        """(async () => {
          const took = [];
          let before = performance.now();
          for (let step = 0; step < 60; step++) {
            window.scrollTo(0, (step * 7919) % document.documentElement.scrollHeight);
            await new Promise(requestAnimationFrame);
            const now = performance.now();
            took.push(now - before);
            before = now;
          }
          return took.sort((a, b) => a - b);
        })()"""
    )
    assert rows(browser, "uploads") < 60
    assert listed(browser, "uploads") > count * 0.9
    # A processor that others use as well makes single tasks long, so the bounds are wide:
    # with all rows in the page, one task takes seconds and a frame over 200 ms.
    assert adding < 500
    assert frames[len(frames) // 2] < 100
    # The end of the list is where the scroll bar's end is.
    browser.press("End")
    browser.see(f"photo-{count - 1:04}.txt")
    # What ends above changes nothing of what is looked at.
    browser.run("window.scrollBy(0, -20000)")
    place = """(() => { const row = [...document.querySelectorAll('#uploads li')].find(
        (row) => row.getBoundingClientRect().top > 0);
        return [row.dataset.id, row.getBoundingClientRect().top]; })()"""
    browser.run("new Promise((on) => setTimeout(on, 300))")
    row, top = browser.run(place)
    size = listed(browser, "uploads")
    browser.upload_at_most(-1)
    script = "document.querySelector('#uploads li').ariaSetSize"
    wait_for(browser, f"{script} < {size - 20}")
    seen = f"document.querySelector('[data-id={json.dumps(row)}]')"
    # Rows above it have gone, each of some 40 pixels: a few pixels are no jump.
    assert abs(browser.run(f"{seen}.getBoundingClientRect().top") - top) < 10
    browser.click("Pause all")
    browser.see("· Paused")
    browser.click("Cancel all")
    browser.click("Really: Cancel all?")
    browser.miss(f"photo-{count - 1:04}.txt")


def test_everything_is_done_with_the_keyboard(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """Tab leads from the files to each upload's buttons; the focus is never lost."""
    browser.goto(f"{shared.root}/ui/")
    browser.upload_at_most(SLOW)
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "chooser"
    browser.choose(*make_files(tmp_path, 40, 500 * KB))
    browser.see("B/s")
    focused = (
        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    )
    browser.press("Tab")
    assert browser.run(focused) == "pause-all"
    browser.press("Tab", "Tab")
    assert browser.run(focused) == "Pause file-0000.txt"
    browser.press("Space")
    browser.see("· Paused")
    browser.press("Space")
    browser.miss("· Paused")
    browser.press("Tab", "Tab")
    assert browser.run(focused) == "Pause file-0001.txt"
    # Scrolled away, the row is still there, and so is the focus.
    browser.run("window.scrollTo(0, document.documentElement.scrollHeight)")
    browser.see("file-0039.txt")
    assert browser.run(focused) == "Pause file-0001.txt"
    browser.press("Tab")
    assert browser.run(focused) == "Cancel file-0001.txt"
    browser.run("document.getElementById('cancel-all').focus()")
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "cancel-all"
    browser.press("Enter")
    browser.miss("file-0001.txt")


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_full_page_has_no_barriers(
    browser: Browser, shared: Service, tmp_path: Path, colors: str, width: int
) -> None:
    """With each kind of row, at both widths, in both color schemes."""
    done, paused, running, large = (
        tmp_path / f"{name}-{'w' * 60}.bin" for name in ("a", "b", "c", "d")
    )
    for path, size in ((done, 10), (paused, 900 * KB), (running, 900 * KB)):
        path.write_bytes(os.urandom(size))
    large.write_bytes(bytes(2001 * KB))
    browser.start(colorScheme=colors, viewport={"width": width, "height": 900})
    browser.goto(f"{shared.root}/ui/")
    browser.see("Up to")
    browser.drop(done, large)
    browser.href(done.name)
    browser.upload_at_most(SLOW)
    browser.drop(paused, running)
    browser.see("B/s")
    browser.click(f"Pause {paused.name}")
    browser.see("· Paused")
    assert browser.barriers() == []
    scrolls = "document.documentElement.scrollWidth"
    assert browser.run(scrolls) == width
    browser.click("Cancel all")
    browser.see("Really")
    assert browser.barriers() == []


def test_page_speaks_german_english_and_what_a_file_says(
    browser: Browser,
    page_files: None,
    make_service: Callable[..., Service],
    tmp_path: Path,
) -> None:
    """The browser's language first, then what the person chose; and it looks as wished."""
    words = tmp_path / "fr.json"
    french = {
        "language": "Français",
        "title": "Envoyer des fichiers",
        "drop": "Déposez des fichiers ici <b>",
        "found": {
            "one": "{count} fichier trouvé.",
            "other": "{count} fichiers trouvés.",
        },
    }
    words.write_text(json.dumps(french), "utf-8")
    service = make_service("--ui", "--ui-color", "#ffd000", "--ui-language", str(words))
    service.start()
    path = tmp_path / "bericht.pdf"
    path.write_bytes(bytes(1500))
    browser.start(locale="de-AT")
    browser.goto(f"{service.root}/ui/")
    browser.see("Dateien hier ablegen oder auswählen")
    assert browser.run("[document.title, document.documentElement.lang]") == [
        "Dateien hochladen",
        "de",
    ]
    browser.drop(path)
    browser.see("bericht.pdf ist hochgeladen")
    browser.see(r"Hochgeladen \d")
    assert "1,5 kB" in browser.text()
    assert browser.barriers() == []
    browser.select("Sprache", "fr")
    browser.see("Déposez des fichiers ici <b>")
    assert "Finished" in browser.text()  # what the file lacks is in English
    assert browser.run("document.title") == "Envoyer des fichiers"
    browser.reload()
    browser.see("Déposez des fichiers ici")
    browser.select("Language", "en")
    browser.see("Drop files here")
    assert browser.barriers() == []  # yellow text on white was made darker
    browser.start(locale="fr-CA", colorScheme="dark")
    browser.goto(f"{service.root}/ui/")
    browser.see("Déposez des fichiers ici")
    assert browser.barriers() == []
    assert browser.console() == []


def test_page_has_the_title_of_the_settings(
    browser: Browser, page_files: None, make_service: Callable[..., Service]
) -> None:
    """In every language, and as text."""
    service = make_service("--ui", "--ui-title", "{{endpoint}} <Müller & Co>")
    service.start()
    browser.start(locale="de-DE")
    browser.goto(f"{service.root}/ui/")
    browser.see("Dateien hier ablegen")
    title = "{{endpoint}} <Müller & Co>"
    assert browser.run("document.title") == title
    assert browser.run("document.querySelector('h1').textContent") == title
