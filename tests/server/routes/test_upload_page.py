"""The page for browsers: who gets it, what it may do, and that it is off by default."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from tests.server.harness import Reply, SocketService, socket_service
from tests.ui.pages import make_page
from trioresume import FileService
from trioresume.server.api.config import Principal, Rejection
from trioresume.server.routes import upload_page as served_page
from trioresume.ui.page import load_page


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page that needs no Node."""
    folder = make_page(tmp_path / "made")
    monkeypatch.setattr(served_page, "load_page", partial(load_page, folder=folder))
    return folder


async def ask(service: SocketService, method: str, path: str, **fields: str) -> Reply:
    async with service.connect() as client:
        lines = {name.replace("_", "-"): value for name, value in fields.items()}
        return await client.request(method, path, lines)


async def nobody(head: object) -> Principal | Rejection:
    """Lets nobody in."""
    return Rejection(401)


async def test_page_is_for_everybody_and_uploads_are_not(tmp_path: Path) -> None:
    """R35: a browser cannot send a token with an address that was typed in."""
    async with socket_service(
        FileService(), tmp_path / "data", ui="/files/", authenticate=nobody
    ) as service:
        page = await ask(service, "GET", "/ui/")
        assert (page.status, page["content-type"]) == (200, "text/html; charset=utf-8")
        assert b'data-endpoint="../files/"' in page.body
        for path in ("/files/", "/uix", "/operations/x/content", "//ui/"):
            assert (await ask(service, "POST", path)).status == 401


async def test_every_file_that_the_page_names_is_there(tmp_path: Path) -> None:
    """With its type, which the browser does not guess; nothing else is."""
    async with socket_service(
        FileService(), tmp_path / "data", ui="/files/"
    ) as service:
        page = await ask(service, "GET", "/ui/")
        names = re.findall(r'(?:href|src)="([^"]+)"', page.body.decode())
        assert {"icon.svg", "style.css", "page.js"} <= set(names)
        for name in names:
            reply = await ask(service, "GET", f"/ui/{name}")
            assert reply.status == 200
            assert reply["x-content-type-options"] == "nosniff"
            head = await ask(service, "HEAD", f"/ui/{name}")
            assert (head.status, head.body) == (200, b"")
            assert head["content-length"] == str(len(reply.body))
        for name in (
            "index.html",
            "sources",
            "../build.py",
            "..%2fbuild.py",
            "src/main.js",
        ):
            assert (await ask(service, "GET", f"/ui/{name}")).status == 404


async def test_policy_allows_the_page_s_own_and_nothing_else(tmp_path: Path) -> None:
    """G14: whatever a file is called, it can neither be markup nor send anything away."""
    async with socket_service(
        FileService(), tmp_path / "data", ui="/files/"
    ) as service:
        for name in ("", "page.js"):
            reply = await ask(service, "GET", f"/ui/{name}")
            assert reply["content-security-policy"] == (
                "default-src 'none'; script-src 'self'; style-src 'self'; "
                "img-src 'self'; connect-src 'self'; base-uri 'none'; "
                "form-action 'none'; frame-ancestors 'none'; "
                "require-trusted-types-for 'script'; trusted-types 'none'"
            )
            assert reply["referrer-policy"] == "no-referrer"


async def test_page_may_talk_to_the_public_address(tmp_path: Path) -> None:
    """R4: that is where the locations lead, however the page was reached."""
    async with socket_service(
        FileService(),
        tmp_path / "data",
        ui="/files/",
        public_url="https://up.example:8443/root",
    ) as service:
        policy = (await ask(service, "GET", "/ui/"))["content-security-policy"]
        assert "connect-src 'self' https://up.example:8443;" in policy


async def test_page_is_asked_for_anew_and_sent_once(tmp_path: Path) -> None:
    """A newer version is seen at once, the same one costs a 304."""
    async with socket_service(
        FileService(), tmp_path / "data", ui="/files/"
    ) as service:
        first = await ask(service, "GET", "/ui/page.js")
        assert first["cache-control"] == "no-cache"
        again = await ask(service, "GET", "/ui/page.js", If_None_Match=first["etag"])
        assert (again.status, again.body) == (304, b"")
        other = await ask(service, "GET", "/ui/page.js", If_None_Match='"x"')
        assert other.status == 200
        failed = await ask(service, "GET", "/ui/page.js", If_Match='"x"')
        assert failed.status == 412


async def test_page_is_only_read(tmp_path: Path) -> None:
    """405, and the connection is as good as before."""
    async with (
        socket_service(FileService(), tmp_path / "data", ui="/files/") as service,
        service.connect() as client,
    ):
        reply = await client.request("POST", "/ui/", {}, b"x")
        assert (reply.status, reply["allow"]) == (405, "GET, HEAD")
        assert (await client.request("GET", "/ui/")).status == 200


async def test_slash_may_be_left_out(tmp_path: Path) -> None:
    """The location is relative: a proxy may have taken something off the path."""
    async with socket_service(
        FileService(), tmp_path / "data", ui="/files/"
    ) as service:
        reply = await ask(service, "GET", "/ui")
        assert (reply.status, reply["location"]) == (308, "ui/")
        assert (await ask(service, "PUT", "/ui")).status == 405


async def test_file_may_have_the_page_s_name(tmp_path: Path) -> None:
    """Where files live beside the page."""
    async with (
        socket_service(FileService("/"), tmp_path / "data", ui="/") as service,
        service.connect() as client,
    ):
        assert (await client.request("PUT", "/ui", {}, b"x")).status == 201
        assert (await client.request("GET", "/ui")).body == b"x"
        page = await client.request("GET", "/ui/")
        assert b'data-endpoint="../"' in page.body


async def test_off_by_default(tmp_path: Path) -> None:
    """Then the path is the target's, as any other."""
    async with socket_service(FileService(), tmp_path / "data") as service:
        assert (await ask(service, "GET", "/ui/")).status == 404
