"""Pages of other origins, over sockets: every dialect, and whoever is not allowed (G15)."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server.browser import Blocked, Page
from tests.server.harness import (
    BYTERANGE,
    Recorder,
    Reply,
    byterange,
    head,
    socket_service,
)
from trioresume import Fields, FileService, Principal, Rejection, RequestHead, Response
from trioresume.protocol.dialects.rufh.versions import VERSIONS, Version

APP = "https://app.example"
BODY = bytes(range(256)) * 4
MARK = {"Tus-Resumable": "1.0.0"}
OCTETS = {**MARK, "Content-Type": "application/offset+octet-stream"}


def place(reply: Reply, name: str = "location") -> str:
    """The path that a location names."""
    return urlsplit(reply[name]).path


async def test_page_uploads_with_the_seed_s_preferences(tmp_path: Path) -> None:
    """G15: a cut is not in a browser's power, so the upload is resumed by a page."""
    async with socket_service(FileService(), tmp_path, cors_origins=[APP]) as service:
        page = Page(service, APP)
        async with service.connect() as client:
            start = await client.start(len(BODY), BODY[:100], target="/files/")
        content = start.fields.get("request-content-location") or ""
        shown = await page.fetch("HEAD", content)
        assert (shown["upload-offset"], shown["upload-complete"]) == ("100", "?0")
        rest = byterange(100, BODY[100:], len(BODY))
        done = await page.fetch("PATCH", content, BYTERANGE, rest)
        assert done.status == 201
        assert done["response-message-location"].endswith("/message")
        file = await page.fetch("GET", done["location"], {"Range": "bytes=0-9"})
        assert (file.status, file.body) == (206, BODY[:10])
        assert file["content-range"] == f"bytes 0-9/{len(BODY)}"
        message = await page.fetch("GET", place(done, "response-message-location"))
        assert message.body.startswith(b"HTTP/1.1 201 Created")
        # What is recorded is the target's own answer, for whoever asks for it.
        assert b"access-control" not in message.body.lower()


async def test_whole_request_with_a_preference(tmp_path: Path) -> None:
    """G15: the final response repeats the three locations, which a page can read."""
    async with socket_service(Recorder(), tmp_path, cors_origins=[APP]) as service:
        page = Page(service, APP)
        reply = await page.fetch("POST", "/", {"Prefer": "resume"}, BODY)
        assert reply["preference-applied"] == "resume=save-incomplete"
        for name in ("request-content-location", "content-location"):
            assert reply[name].startswith("/operations/")


@pytest.mark.parametrize("version", VERSIONS.values(), ids=lambda v: v.number)
async def test_page_uploads_with_resumable_uploads(
    version: Version, tmp_path: Path
) -> None:
    """G15, C4, C6, C8: each version's fields may be sent, and be seen."""

    def fields(complete: bool, **further: str) -> dict[str, str]:
        said = complete != version.says_incomplete
        lines = {
            "Upload-Draft-Interop-Version": str(version.number),
            version.completeness_field: "?1" if said else "?0",
        }
        if version.needs_media_type:
            lines["Content-Type"] = "application/partial-upload"
        return lines | {name.replace("_", "-"): v for name, v in further.items()}

    async with socket_service(FileService(), tmp_path, cors_origins=[APP]) as service:
        page = Page(service, APP)
        created = await page.fetch("POST", "/files/", fields(False), BODY[:100])
        path = place(created)
        named = {"Upload-Draft-Interop-Version": str(version.number)}
        assert (await page.fetch("HEAD", path, named))["upload-offset"] == "100"
        wrong = await page.fetch("PATCH", path, fields(False, Upload_Offset="5"), b"x")
        assert (wrong.status, wrong["upload-offset"]) == (409, "100")
        rest = fields(True, Upload_Offset="100")
        done = await page.fetch("PATCH", path, rest, BODY[100:])
        assert done.status == 201
        assert version.completeness_field.lower() in done.fields
        assert (await page.fetch("GET", place(done))).body == BODY


async def test_page_uploads_with_tus(tmp_path: Path) -> None:
    """G15, D2 to D8: what Uppy and tus-js-client send and read."""
    async with socket_service(FileService(), tmp_path, cors_origins=[APP]) as service:
        page = Page(service, APP)
        known = await page.fetch("OPTIONS", "/files/")
        assert known["tus-version"] == "1.0.0"
        assert "creation" in known["tus-extension"]
        new = {
            **MARK,
            "Upload-Length": str(len(BODY)),
            "Upload-Metadata": "filename YS5iaW4=",
            "X-Request-ID": "1",
        }
        created = await page.fetch("POST", "/files/", new, b"")
        path = place(created)
        assert "upload-expires" in created.fields
        checked = {"Upload-Checksum": "md5 " + "A" * 22 + "==", "Upload-Offset": "0"}
        refused = await page.fetch("PATCH", path, OCTETS | checked, BODY)
        assert refused.status == 460
        part = {**OCTETS, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
        assert (await page.fetch("POST", path, part, BODY[:9]))["upload-offset"] == "9"
        shown = await page.fetch("HEAD", path, MARK)
        assert shown["upload-metadata"] == "filename YS5iaW4="
        rest = {**OCTETS, "Upload-Offset": "9"}
        done = await page.fetch("PATCH", path, rest, BODY[9:])
        assert done["response-message-location"].endswith("/message")
        deferred = {**MARK, "Upload-Defer-Length": "1", "Upload-Concat": "partial"}
        assert (await page.fetch("POST", "/files/", deferred, b"")).status == 201
        gone = await page.fetch("DELETE", path, MARK)
        assert (gone.status, gone["tus-resumable"]) == (204, "1.0.0")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://app.exampl"]
)
async def test_other_pages_may_neither_ask_nor_see(origin: str, tmp_path: Path) -> None:
    """G15: nothing of theirs comes back; the answer is one that a cache keeps apart."""
    async with socket_service(FileService(), tmp_path, cors_origins=[APP]) as service:
        page = Page(service, origin)
        with pytest.raises(Blocked, match="403"):
            await page.fetch("POST", "/files/", {}, b"x")
        async with service.connect() as client:
            for method in ("POST", "OPTIONS", "GET"):
                fields = {"Origin": origin}
                reply = await client.request(method, "/files/", fields, b"")
                assert not [
                    n for n, _ in reply.fields if n.startswith("access-control")
                ]
                assert origin.encode() not in reply.raw
                assert "Origin" in reply["vary"]


async def test_off_by_default(tmp_path: Path) -> None:
    """G15: no field of it, no Vary, and a preflight is an OPTIONS like any other."""
    async with socket_service(FileService(), tmp_path) as service:
        with pytest.raises(Blocked, match="allows"):
            await Page(service, APP).preflight("POST", "/files/", [])
        async with service.connect() as client:
            fields = {"Origin": APP, "Access-Control-Request-Method": "PATCH"}
            reply = await client.request("OPTIONS", "/files/", fields)
            assert reply["allow"] == "OPTIONS, POST"
            assert "vary" not in reply.fields
            assert b"access-control" not in reply.raw.lower()


async def only_ann(head: RequestHead) -> Principal | Rejection:
    """Knows one token, and lets nobody else ask anything."""
    if head.fields.get("authorization") == "Bearer ann":
        return Principal("ann")
    return Rejection(401, Fields({"WWW-Authenticate": "Bearer"}))


async def test_preflight_comes_before_authentication(tmp_path: Path) -> None:
    """G15, R35: a browser asks without credentials, and what it asks for needs them."""
    async with socket_service(
        FileService(), tmp_path, cors_origins=[APP], authenticate=only_ann
    ) as service:
        page = Page(service, APP)
        # A page may see that it was refused, and how to do better.
        refused = await page.fetch("POST", "/files/", {}, b"x")
        assert (refused.status, refused["www-authenticate"]) == (401, "Bearer")
        known = {"Authorization": "Bearer ann"}
        stored = await page.fetch("POST", "/files/", known, b"x")
        assert stored.status == 201
        # It tells nothing of what is there: the same answer for every path.
        there = await page.preflight("GET", place(stored), ["Authorization"])
        nothing = await page.preflight("GET", "/none", ["Authorization"])
        assert there.status == nothing.status == 204
        assert there.fields.without("date") == nothing.fields.without("date")


async def test_errors_of_any_kind_can_be_read(tmp_path: Path) -> None:
    """G15: a page that sees no status cannot tell a refusal from a dead network."""

    async def broken(request: object) -> Response:
        raise RuntimeError("a bug")

    async with socket_service(broken, tmp_path, cors_origins=[APP]) as service:
        page = Page(service, APP)
        assert (await page.fetch("POST", "/", {}, b"x")).status == 500
        assert (await page.fetch("GET", "/operations/none")).status == 404
        async with service.connect() as client:
            fields = {"Origin": APP, "Expect": "miracles"}
            reply = await client.request("POST", "/", fields, b"")
            assert reply.status == 417
            assert reply["access-control-allow-origin"] == APP


async def test_further_fields_of_the_settings(tmp_path: Path) -> None:
    """A handler's own fields can be sent and seen, and its own CORS is replaced."""
    said = {"X-Mine": "1", "Access-Control-Allow-Origin": "*"}
    recorder = Recorder(response=lambda body: Response(200, said))
    async with socket_service(
        recorder,
        tmp_path,
        cors_origins=["*"],
        cors_request_fields=["X-Csrf"],
        cors_response_fields=["X-Mine"],
        cors_max_age=60.0,
    ) as service:
        page = Page(service, "https://anybody.example")
        reply = await page.fetch("POST", "/", {"X-Csrf": "2"}, b"x")
        assert reply["x-mine"] == "1"
        with pytest.raises(Blocked, match="x-other"):
            await page.fetch("POST", "/", {"X-Other": "2"}, b"x")
        asked = await page.preflight("POST", "/", [])
        assert asked["access-control-max-age"] == "60"


async def test_preflight_leaves_the_connection_usable(tmp_path: Path) -> None:
    """R33: one connection carries the question and what was asked about."""
    async with (
        socket_service(Recorder(), tmp_path, cors_origins=[APP]) as service,
        service.connect() as client,
    ):
        fields = {"Origin": APP, "Access-Control-Request-Method": "POST"}
        await client.send(
            head("OPTIONS", "/", fields) + head("POST", "/", {"Origin": APP}, length=1)
        )
        await client.send(b"x")
        assert (await client.reply("OPTIONS")).status == 204
        reply = await client.reply("POST")
        assert (reply.status, reply.body) == (200, b"got 1 bytes")
