"""``trioresume serve --ui`` as a person uses it: in Chromium, against the command.

Without node, npm or chromium the tests are skipped and say so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import trioresume
from tests.e2e.carriers import HTTP2
from tests.e2e.chromium import Browser
from tests.e2e.command import Service
from tests.e2e.test_behind_a_proxy import running
from tests.e2e.tus_uploads import request
from trioresume.ui.page import load_page

MB = 1_000_000
SMALL = 2 * MB
LARGE = 68 * MB
"""More than the page keeps of a file in the browser."""
SLOW = SMALL // 10
"""Bytes a second: ten seconds in which something can be done to an upload."""


@pytest.fixture(scope="module")
def shared(
    page_files: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with the page, for all tests that leave it running."""
    data = tmp_path_factory.mktemp("ui") / "data"
    limits = ("--max-upload-size", "100MB", "--max-stored-bytes", "95MB")
    service = Service(data, ("serve", "--ui", *limits))
    service.start()
    yield service
    service.stop()
    service.check_log()


def make_file(folder: Path, size: int, name: str = "report.pdf") -> Path:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


def check_file(browser: Browser, path: Path, name: str | None = None) -> None:
    """The page links a file that is *path*, byte for byte, under its name."""
    name = name or path.name
    response, body = request("GET", browser.href(name))
    assert response.status == 200
    assert body == path.read_bytes()
    assert "attachment" in (response.getheader("Content-Disposition") or "")


def check_quiet(browser: Browser, root: str) -> None:
    """No complaint in the console, and no request to anywhere but *root*."""
    assert browser.console() == []
    assert all(url.startswith(f"{root}/") for url in browser.requests())


def resumed(browser: Browser) -> bool:
    """Whether there was one upload in all, of more than one request."""
    return (
        len(browser.requests("POST")) == 1
        and len(set(browser.requests("PATCH"))) == 1
        and len(browser.requests("PATCH")) > 1
    )


def check_pause_and_resume(browser: Browser, path: Path) -> None:
    """Drop *path* on the page, stop it in the middle, go on, and find the same bytes."""
    browser.upload_at_most(SLOW)
    browser.drop(path)
    browser.see("B/s")
    browser.click("Pause report.pdf")
    browser.see("Paused")
    browser.upload_at_most(-1)
    browser.click("Resume report.pdf")
    check_file(browser, path)
    assert resumed(browser)


def test_drop_pause_resume_find(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """A person sees how far it is, stops it, goes on, and finds the same bytes."""
    path = make_file(tmp_path, SMALL)
    browser.goto(f"{shared.root}/ui/")
    assert "Up to 100 MB each" in browser.see("Up to")
    assert browser.barriers() == []
    browser.upload_at_most(SLOW)
    browser.drop(path)
    browser.see("B/s")
    browser.click("Pause report.pdf")
    shown = browser.see("Paused")
    assert "2.0 MB" in shown
    (upload,) = set(browser.requests("PATCH"))
    stopped = request("HEAD", upload, {"Tus-Resumable": "1.0.0"})[0]
    assert 0 <= int(stopped.getheader("Upload-Offset") or "") < SMALL
    assert browser.barriers() == []
    browser.upload_at_most(-1)
    browser.click("Resume report.pdf")
    check_file(browser, path)
    assert resumed(browser)
    assert browser.barriers() == []
    check_quiet(browser, shared.root)
    # The list survives the page, until it is cleared.
    browser.reload()
    check_file(browser, path)
    browser.click("Clear this list")
    browser.reload()
    browser.see("Drop files here")
    time.sleep(1)  # what the page wrote down comes back a moment later
    assert "report.pdf" not in browser.text()


def test_goes_on_when_the_network_is_back(
    browser: Browser,
    page_files: None,
    make_service: Callable[..., Service],
    tmp_path: Path,
) -> None:
    """By itself, and from where it was; so it does when the service was killed."""
    service = make_service("--ui")
    service.start()
    path = make_file(tmp_path, SMALL)
    browser.goto(f"{service.root}/ui/")
    browser.upload_at_most(SLOW)
    browser.choose(path)
    browser.see("B/s")
    service.kill()
    browser.see("No answer, trying again")
    service.start()
    browser.see("B/s")
    # A connection that is open survives Chromium's idea of offline, so it is cut first.
    service.kill()
    browser.see("No answer, trying again")
    browser.go_offline()
    browser.see("You are offline")
    browser.see("Offline, goes on by itself")
    service.start()
    browser.upload_at_most(-1)
    assert "report.pdf is uploaded" not in browser.text()
    browser.go_online()
    check_file(browser, path)
    assert resumed(browser)
    assert "offline" not in browser.text()


def test_goes_on_over_http2_when_the_service_was_killed(
    browser: Browser,
    page_files: None,
    make_service: Callable[..., Service],
    tmp_path: Path,
) -> None:
    """The browser chooses HTTP/2, and its uploads go on by themselves."""
    service = make_service("--ui", *HTTP2.options(tmp_path))
    service.start()
    path = make_file(tmp_path, SMALL)
    browser.start(ignoreHTTPSErrors=True)
    browser.goto(f"{service.root}/ui/")
    entry = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
    assert browser.run(entry) == "h2"
    browser.upload_at_most(SLOW)
    browser.drop(path)
    browser.see("B/s")
    service.kill()
    browser.see("No answer, trying again")
    browser.upload_at_most(-1)
    service.start()
    check_file(browser, path)
    assert resumed(browser)


def test_goes_on_after_a_reload(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """The browser kept the file; what was paused stays paused."""
    path = make_file(tmp_path, SMALL)
    waiting = make_file(tmp_path, 1000, "later.txt")
    browser.goto(f"{shared.root}/ui/")
    browser.upload_at_most(SLOW)
    browser.drop(path, waiting)
    browser.see("later.txt is uploaded")
    browser.click("Pause report.pdf")
    browser.see("Paused")
    time.sleep(1)  # the page writes down what it knows twice a second
    browser.reload()
    browser.see("Paused")
    browser.click("Resume report.pdf")
    browser.see("B/s")
    time.sleep(1)
    browser.reload()
    browser.upload_at_most(-1)
    check_file(browser, path)
    check_file(browser, waiting)
    assert len(browser.requests("POST")) == 2
    check_quiet(browser, shared.root)


def test_what_is_over_does_not_come_back(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """Finished or cancelled, and the page left before it had written that down."""
    path = make_file(tmp_path, SMALL)
    unwanted = make_file(tmp_path, SMALL, "unwanted.txt")
    browser.goto(f"{shared.root}/ui/")
    browser.upload_at_most(SLOW)
    browser.drop(path, unwanted)
    browser.see("B/s")
    time.sleep(1)  # the page writes down what it knows twice a second
    browser.run("IDBObjectStore.prototype.put = IDBObjectStore.prototype.delete = null")
    browser.click("Cancel unwanted.txt")
    browser.miss("unwanted.txt")
    browser.upload_at_most(-1)
    check_file(browser, path)
    browser.reload()
    check_file(browser, path)
    time.sleep(1)
    shown = browser.text()
    assert shown.count("report.pdf") == 1
    assert "unwanted.txt" not in shown


def test_large_file_goes_on_when_it_is_dropped_again(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """It is too large for the browser to keep: after a reload, and in another tab."""
    path = make_file(tmp_path, LARGE, "film.mkv")
    browser.goto(f"{shared.root}/ui/")
    browser.upload_at_most(LARGE // 10)
    browser.drop(path)
    browser.see("B/s")
    browser.reload()
    browser.see("Choose this file again, and it goes on")
    browser.drop(path)
    browser.see("B/s")
    browser.tab()
    browser.upload_at_most(-1)
    browser.goto(f"{shared.root}/ui/")
    browser.see("Drop files here")
    assert "film.mkv" not in browser.text()
    browser.drop(path)
    check_file(browser, path)
    assert resumed(browser)
    check_quiet(browser, shared.root)


def test_cancelled_upload_is_gone(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """From the page and from the service."""
    browser.goto(f"{shared.root}/ui/")
    browser.upload_at_most(SLOW)
    browser.drop(make_file(tmp_path, SMALL))
    browser.see("B/s")
    (upload,) = browser.requests("PATCH")
    browser.click("Cancel report.pdf")
    browser.run(
        f"(async () => {{ while ((await fetch('{urlsplit(upload).path}',"
        " {method: 'HEAD'})).status !== 410); })()"
    )
    browser.miss("report.pdf")


def test_file_names_are_text(browser: Browser, shared: Service, tmp_path: Path) -> None:
    """G4, G14: markup in a name is shown as it is, kept as it is, and does nothing."""
    name = "<img src=x onerror=alert(1)> & \"'.html"
    path = make_file(tmp_path, 1000, name)
    browser.goto(f"{shared.root}/ui/")
    browser.drop(path)
    check_file(browser, path)
    assert name in browser.text()
    assert browser.run("document.querySelectorAll('img').length") == 0
    # And where a script of the page did make markup of it, the browser would refuse.
    assert (
        browser.run(
            "(() => { try { document.body.innerHTML = '<b>'; return 'markup'; }"
            " catch (error) { return error.name; } })()"
        )
        == "TypeError"
    )
    assert len(browser.console()) == 1  # of that refusal
    assert "TrustedHTML" in browser.console()[0]


def test_what_cannot_be_sent_is_said_at_once(
    browser: Browser, shared: Service, tmp_path: Path
) -> None:
    """Too large, no space for it now, or on its way already."""
    path = make_file(tmp_path, SMALL)
    browser.goto(f"{shared.root}/ui/")
    browser.see("Up to 100 MB each")
    for name, size in (("huge.bin", 101 * MB), ("large.bin", 99 * MB)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        browser.drop(tmp_path / name)
    browser.see("Not accepted: it is larger than 100 MB")
    browser.see("leaves no room .*, trying again")
    browser.click("Cancel large.bin")
    browser.miss("large.bin")
    browser.upload_at_most(SLOW)
    browser.drop(path)
    browser.see("B/s")
    browser.drop(path)
    browser.see("Not accepted: it is in the list already.")
    assert len(set(browser.requests("PATCH"))) == 1


def test_token_is_asked_for_sent_and_forgotten(
    browser: Browser,
    page_files: None,
    make_service: Callable[..., Service],
    tmp_path: Path,
) -> None:
    """R35: nothing without it, everything with it, and it is kept in the tab alone."""
    token, line = trioresume.new_token("ann")
    tokens = tmp_path / "tokens"
    tokens.write_text(line + "\n")
    service = make_service("--ui", "--tokens-file", str(tokens))
    service.start()
    path = make_file(tmp_path, SMALL)
    browser.start(colorScheme="dark", viewport={"width": 320, "height": 640})
    browser.goto(f"{service.root}/ui/")
    browser.see("This service asks who you are")
    assert browser.barriers() == []
    browser.drop(path)
    browser.see("Credentials are needed")
    assert browser.barriers() == []
    assert browser.run("document.documentElement.scrollWidth") == 320
    browser.fill("Token", "wrong")
    browser.click("Use it")
    browser.see("The service does not accept this token")
    assert browser.run("document.activeElement.id") == "token"
    assert browser.barriers() == []
    browser.fill("Token", token)
    browser.click("Use it")
    link = browser.href("report.pdf")
    assert "does not accept" not in browser.text()
    assert request("GET", link)[0].status == 401
    saved = tmp_path / "saved"
    assert browser.download("report.pdf", saved) == "report.pdf"
    assert saved.read_bytes() == path.read_bytes()
    kept = "JSON.stringify([{...localStorage}, document.cookie])"
    assert token not in browser.run(kept)
    browser.tab()
    browser.goto(f"{service.root}/ui/")
    browser.see("This service asks who you are")


def test_page_under_a_path_of_a_proxy(
    browser: Browser, page_files: None, tmp_path: Path
) -> None:
    """R4: nginx takes the path off, and all that the page asks for has it."""
    path = make_file(tmp_path, SMALL)
    with running("nginx", "a path of a name", tmp_path, "--ui") as front:
        root = f"{front.origin}{front.prefix}"
        browser.goto(f"{root}/ui")
        check_pause_and_resume(browser, path)
        check_quiet(browser, root)


# Pages of another origin, as they might be in any application.


class Application:
    """Another web server, with the page; it uploads to *endpoint*."""

    def __init__(self) -> None:
        self.endpoint = ""
        application = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                file = load_page(application.endpoint)[self.path.removeprefix("/")]
                self.send_response(200)
                self.send_header("Content-Type", file.content_type)
                self.send_header("Content-Length", str(len(file.content)))
                self.end_headers()
                self.wfile.write(file.content)

            def log_message(self, format: str, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def application(page_files: None) -> Iterator[Application]:
    made = Application()
    with made.server:
        thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.server.shutdown()
        thread.join()


def test_page_of_an_allowed_origin_uploads(
    browser: Browser,
    application: Application,
    make_service: Callable[..., Service],
    tmp_path: Path,
) -> None:
    """G15: it pauses and resumes, and reads what became of it."""
    service = make_service("--cors-origin", application.origin)
    service.start()
    application.endpoint = f"{service.root}/files/"
    path = make_file(tmp_path, SMALL)
    browser.goto(f"{application.origin}/")
    check_pause_and_resume(browser, path)
    assert browser.console() == []


def test_page_of_another_origin_is_refused(
    browser: Browser,
    application: Application,
    make_service: Callable[..., Service],
    tmp_path: Path,
) -> None:
    """G15: the browser does not even let it ask, and nothing was stored."""
    service = make_service()
    service.start()
    application.endpoint = f"{service.root}/files/"
    browser.goto(f"{application.origin}/")
    browser.drop(make_file(tmp_path, 1000))
    browser.see("The service does not answer")
    browser.see("No answer, trying again")
    assert any("CORS policy" in line for line in browser.console())
    service.stop()
    assert service.file_names() == set()
    assert service.unfinished() == []
