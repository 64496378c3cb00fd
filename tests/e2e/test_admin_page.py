"""The admin page as an operator uses it: in Chromium, against the command."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.chromium import Browser
from tests.e2e.command import Service, free_port
from tests.e2e.tus_uploads import request

HOSTILE = "<img src=x onerror=alert(1)>\"'.html"
TUS = {"Tus-Resumable": "1.0.0"}


class Served:
    """A service with its admin page."""

    def __init__(self, data: Path, page: str, *options: str) -> None:
        admin = f"127.0.0.1:{free_port()}"
        self.admin = f"http://{admin}"
        self.service = Service(
            data, ("serve", "--admin-bind", admin, "--admin-page", page, *options)
        )
        self.root = self.service.root

    def begin(self, name: str) -> str:
        """Begin an upload of ten bytes; return its address."""
        encoded = base64.b64encode(name.encode()).decode()
        metadata = {"Upload-Length": "10", "Upload-Metadata": f"filename {encoded}"}
        reply, _ = request("POST", f"{self.root}/files/", {**TUS, **metadata})
        assert reply.status == 201
        return reply.getheader("Location") or ""

    def put(self, name: str) -> str:
        address = f"{self.root}/files/{name}"
        assert request("PUT", address, {}, b"content")[0].status == 201
        return address


@pytest.fixture(scope="module")
def shared(
    page_files: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A service whose admin page may change everything."""
    data = tmp_path_factory.mktemp("admin") / "data"
    served = Served(data, "change", "--max-stored-bytes", "1GB")
    served.service.start()
    yield served
    served.service.stop()


def quiet(browser: Browser, root: str) -> None:
    """No complaint in the console, and no request to anywhere but *root*."""
    assert browser.console() == []
    assert all(url.startswith(f"{root}/") for url in browser.requests())


def test_figures_are_live(browser: Browser, shared: Served) -> None:
    browser.goto(shared.admin)
    shown = browser.see("changes are allowed")
    assert "Connections" in shown
    assert "of 1.0 GB" in shown
    assert browser.barriers() == []
    before = browser.see(r"\d+ begun")
    shared.put("live.txt")
    wait = """(async () => { for (let i = 0; i < 200; i++) {
        if (document.body.innerText !== before) return; await new Promise((on) => setTimeout(on, 50)); } })()"""
    browser.run(f"(() => {{ const before = {before!r}; return {wait} }})()")
    assert browser.text() != before
    quiet(browser, shared.admin)


def test_upload_is_found_and_cancelled_with_a_second_click(
    browser: Browser, shared: Served
) -> None:
    """Its name is text, whatever it is."""
    address, other = shared.begin(HOSTILE), shared.begin("other.txt")
    browser.goto(f"{shared.admin}/admin/#uploads")
    browser.see("other.txt")
    shown = browser.text()
    assert HOSTILE in shown
    assert "0 bytes of 10 bytes (0 %)" in shown
    assert address.rpartition("/operations/")[2].partition("/")[0] not in shown
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.barriers() == []
    browser.fill("Search names, owners and paths", "onerror")
    browser.press("Enter")
    browser.miss("other.txt")
    browser.click(f"Cancel {HOSTILE}")
    assert request("HEAD", address, TUS)[0].status == 200
    browser.click(f"Really: Cancel {HOSTILE}?")
    browser.see("The upload is cancelled")
    assert request("HEAD", address, TUS)[0].status == 410
    assert request("HEAD", other, TUS)[0].status == 200
    browser.see("Nothing.")
    quiet(browser, shared.admin)


def test_file_is_deleted(browser: Browser, shared: Served) -> None:
    """One with a name that no header field could have as it is."""
    address = shared.put("%C3%BCbersicht%20%F0%9F%98%80.txt")
    browser.goto(f"{shared.admin}/admin/")
    browser.click("Files", role="link")
    name = "übersicht \N{GRINNING FACE}.txt"
    browser.see(name)
    assert browser.barriers() == []
    browser.click(f"Delete {name}")
    browser.click(f"Really: Delete {name}?")
    browser.see("The file is deleted")
    assert request("GET", address)[0].status == 404
    quiet(browser, shared.admin)


def test_tables_are_turned_page_by_page(browser: Browser, shared: Served) -> None:
    for number in range(60):
        shared.put(f"page-{number:02}.txt")
    browser.goto(f"{shared.admin}/admin/#files")
    browser.see("page-59.txt")
    count = "document.querySelectorAll('tbody tr').length"
    assert browser.run(count) == 50
    browser.click("More")
    browser.see("page-00.txt")
    assert "page-59.txt" not in browser.text()
    browser.click("Back")
    browser.see("page-59.txt")
    for table, title in (
        ("Quotas", "Quotas"),
        ("Hooks", "Those that were given up"),
        ("Errors", "Recent warnings"),
    ):
        browser.click(table, role="link")
        browser.see(title)
        assert browser.barriers() == []
    assert "Nothing." in browser.see("Recent warnings")


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_page_fits_a_small_screen(
    browser: Browser, shared: Served, colors: str
) -> None:
    """A wide table scrolls within itself, with the keyboard, too."""
    shared.begin("w" * 200)
    browser.start(colorScheme=colors, viewport={"width": 360, "height": 740})
    for table in ("overview", "uploads", "files"):
        browser.goto(f"{shared.admin}/admin/#{table}")
        browser.see("up .* s")
        assert browser.barriers() == []
        assert browser.run("document.documentElement.scrollWidth") == 360


def test_page_that_may_only_read_has_no_buttons_for_changes(
    browser: Browser, page_files: None, tmp_path: Path
) -> None:
    served = Served(tmp_path / "data", "read")
    served.service.start()
    try:
        served.begin("a.txt")
        browser.goto(f"{served.admin}/admin/#uploads")
        browser.see("a.txt")
        assert "read-only" in browser.text()
        assert "Cancel" not in browser.text()
        assert browser.barriers() == []
    finally:
        served.service.stop()


def test_page_of_another_site_can_neither_read_nor_change(
    browser: Browser, shared: Served, make_service: Callable[..., Service]
) -> None:
    """The browser itself refuses; the service would, too."""
    address = shared.begin("victim.txt")
    other = make_service("--ui")
    other.start()
    browser.goto(f"{other.root}/files/")  # a page without a policy
    answer = browser.run(
        f"""(async () => {{
          const tried = [];
          for (const [mode, method, headers] of [
            ["cors", "GET", {{}}],
            ["cors", "POST", {{Change: '{{"act": "drop", "events": [1]}}'}}],
            ["no-cors", "POST", {{}}],
          ]) {{
            try {{
              const url = "{shared.admin}/admin/api/" + (method === "GET" ? "uploads" : "change");
              const answer = await fetch(url, {{mode, method, headers}});
              tried.push(answer.type + " " + answer.status);
            }} catch {{ tried.push("refused"); }}
          }}
          return tried;
        }})()"""
    )
    assert answer[:2] == ["refused", "refused"]
    assert answer[2] in ("refused", "opaque 0")
    assert request("HEAD", address, TUS)[0].status == 200
