"""The admin page's data and changes: who gets them, and what they say."""

from __future__ import annotations

import base64
import json
import logging
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.hooks.receivers import Receiver, hooks
from tests.server.harness import Reply, SocketService, socket_service
from tests.server.watch.admin import ask
from tests.ui.pages import make_page
from trioresume import CallerError, FileService, Principal, RequestHead, WatchSettings
from trioresume.server.admin import site
from trioresume.server.admin.recent import MOST, MOST_CHARACTERS, RecentErrors
from trioresume.server.admin.rows import PAGE
from trioresume.server.admin.site import _is_safe
from trioresume.testing import MemoryStore
from trioresume.ui.page import load_admin_page

TUS = {"Tus-Resumable": "1.0.0"}
PATCH = "application/offset+octet-stream"
RESUME = {"Prefer": "resume=save-incomplete"}
HOSTILE = "<img src=x onerror=alert(1)>.html"


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that needs no Node."""
    folder = make_page(tmp_path / "made")
    load = partial(load_admin_page, folder=folder)
    monkeypatch.setattr(site, "load_admin_page", load)


class Admin:
    """The second listener of a service."""

    def __init__(self, service: SocketService, socket: Path) -> None:
        self.service = service
        self.socket = socket

    async def get(self, target: str, method: str = "GET") -> Reply:
        return await ask(self.socket, f"/admin/{target}", method)

    async def rows(self, target: str) -> list[dict[str, Any]]:
        reply = await self.get(f"api/{target}")
        assert reply.status == 200
        found: list[dict[str, Any]] = reply.json["rows"]
        return found

    async def token(self) -> str:
        page = (await self.get("")).body.decode()
        (token,) = re.findall(r'data-token="([^"]+)"', page)
        return str(token)

    async def change(self, wish: object, **fields: str) -> Reply:
        given = {"Csrf-Token": await self.token(), "Change": json.dumps(wish)}
        given |= {name.replace("_", "-"): value for name, value in fields.items()}
        return await ask(self.socket, "/admin/api/change", "POST", given)

    async def begin(self, name: str = "a.txt", **fields: str) -> str:
        """Begin an upload of ten bytes by tus; return its address."""
        encoded = base64.b64encode(name.encode()).decode()
        head = {**TUS, "Upload-Length": "10", "Upload-Metadata": f"filename {encoded}"}
        async with self.service.connect() as client:
            reply = await client.request("POST", "/files/", {**head, **fields})
            assert reply.status == 201
            return reply["location"].partition("//")[2].partition("/")[2]

    async def offset(self, address: str) -> int:
        async with self.service.connect() as client:
            return (await client.request("HEAD", f"/{address}", TUS)).status


@asynccontextmanager
async def admin_of(
    tmp_path: Path, page: str = "change", **settings: Any
) -> AsyncIterator[Admin]:
    socket = tmp_path / "admin"
    watch = WatchSettings(
        admin_bind=[f"unix:{socket}"],
        admin_page=page,  # type: ignore[arg-type]
        admin_names=["Test"],
    )
    async with socket_service(
        FileService("/files/"), tmp_path / "data", watch=watch, **settings
    ) as service:
        yield Admin(service, socket)


async def test_it_is_off_unless_it_is_wanted(tmp_path: Path) -> None:
    """Whoever reads the metrics need not see names of files."""
    async with admin_of(tmp_path, "off") as admin:
        for target in ("", "api/now", "api/uploads"):
            assert (await admin.get(target)).status == 404


async def test_page_has_its_files_and_its_policy(tmp_path: Path) -> None:
    """Its own script and its own server, and nothing else."""
    async with admin_of(tmp_path) as admin:
        page = await admin.get("")
        names = re.findall(r'(?:href|src)="([^"#]+)"', page.body.decode())
        assert {"icon.svg", "style.css", "admin.css", "admin.js"} == set(names)
        for name in ("", *names, "api/now"):
            reply = await admin.get(name)
            assert reply.status == 200
            policy = reply["content-security-policy"]
            assert policy.startswith(
                "default-src 'none'; script-src 'self'; style-src 'self'"
            )
            assert "frame-ancestors 'none'" in policy
            assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
            assert "unsafe" not in policy
            assert reply["x-content-type-options"] == "nosniff"
        assert (await admin.get("api/now"))["cache-control"] == "no-store"
        for target in ("page.js", "words.en.json", "../x", "api/", "api/x"):
            assert (await admin.get(target)).status == 404
        assert (await admin.get("", "POST")).status == 405
        assert (await admin.get("api/uploads", "DELETE")).status == 405
        assert (await admin.get("api/change")).status == 405
        for target in ("/", "/admin"):
            reply = await ask(admin.socket, target)
            assert (reply.status, reply["location"]) == (308, "admin/")
        # The rest of the listener is as it was.
        assert (await ask(admin.socket, "/healthz")).status == 200
        assert (await ask(admin.socket, "/metrics")).status == 200


@pytest.mark.parametrize(
    ("host", "is_safe"),
    [
        ("127.0.0.1:9180", True),
        ("[::1]:9180", True),
        ("192.0.2.7", True),
        ("localhost:9180", True),
        ("LocalHost", True),
        ("admin.example:9180", True),
        ("evil.example:9180", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example@127.0.0.1:x@evil.example", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_name_that_a_stranger_can_point_here_is_refused(
    host: str, is_safe: bool
) -> None:
    """DNS rebinding: the page of that name would be of the same origin."""
    assert _is_safe(host, frozenset({"admin.example"})) is is_safe


async def test_request_by_another_name_learns_nothing(tmp_path: Path) -> None:
    socket = tmp_path / "admin"
    watch = WatchSettings(admin_bind=[f"unix:{socket}"], admin_page="change")
    async with socket_service(FileService(), tmp_path / "data", watch=watch):
        for target in ("/admin/", "/admin/api/uploads", "/admin/api/change", "/"):
            reply = await ask(socket, target)
            assert (reply.status, reply.code) == (403, "forbidden")
            assert "--admin-name" in reply.json["detail"]


async def test_uploads_are_shown_and_their_ids_are_not(tmp_path: Path) -> None:
    """An id is all that it takes to go on with an upload."""
    async with admin_of(tmp_path) as admin:
        addresses = [await admin.begin(name) for name in ("one.txt", HOSTILE)]
        reply = await admin.get("api/uploads")
        newest, oldest = reply.json["rows"]
        assert (newest["name"], oldest["name"]) == (HOSTILE, "one.txt")
        assert newest["state"] == "receiving"
        assert (newest["received"], newest["length"]) == (0, 10)
        assert newest["owner"] is None
        assert newest["created"] < newest["expires"]
        assert b"<" not in reply.body or reply["content-type"] == "application/json"
        for address in addresses:
            upload = address.split("/")[1]
            assert upload.encode() not in reply.body
        assert [row["name"] for row in await admin.rows("uploads?search=ONE.T")] == [
            "one.txt"
        ]
        assert await admin.rows("uploads?search=%25") == []


async def test_bytes_that_have_arrived_are_shown_at_once(tmp_path: Path) -> None:
    """Long before the catalog knows of them."""
    async with admin_of(tmp_path) as admin:
        address = await admin.begin()
        head = {**TUS, "Upload-Offset": "0", "Content-Type": PATCH}
        async with admin.service.connect() as client:
            lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            await client.send(
                f"PATCH /{address} HTTP/1.1\r\nHost: test\r\n{lines}"
                "Content-Length: 10\r\n\r\nfour".encode()
            )
            with trio.fail_after(20):
                while (await admin.rows("uploads"))[0]["received"] != 4:
                    pass  # each look waits for an answer


async def test_upload_is_cancelled_once(tmp_path: Path) -> None:
    async with admin_of(tmp_path) as admin:
        address, other = [await admin.begin(name) for name in ("a", "b")]
        row = next(r for r in await admin.rows("uploads") if r["name"] == "a")
        wish = {"act": "cancel", "number": row["number"], "seal": row["seal"]}
        reply = await admin.change(wish)
        assert reply.json == {"done": "The upload is cancelled."}
        assert await admin.offset(address) == 410
        assert await admin.offset(other) == 200
        assert len(await admin.rows("uploads")) == 1
        ended = await admin.rows("uploads?ended=1")
        assert {r["state"] for r in ended} == {"receiving", "gone"}
        assert "error" in (await admin.change(wish)).json


async def test_change_names_an_upload_by_its_seal(tmp_path: Path) -> None:
    """The number of a row that has gone may be that of another upload."""
    async with admin_of(tmp_path) as admin:
        address = await admin.begin()
        (row,) = await admin.rows("uploads")
        for wrong in (
            {"number": row["number"], "seal": "0" * 24},
            {"number": row["number"] + 1, "seal": row["seal"]},
            {"number": -1, "seal": row["seal"]},
            {"number": 2**80, "seal": row["seal"]},
            {"number": True, "seal": row["seal"]},
            {"number": row["number"], "seal": "é"},
            {"number": row["number"]},
            {},
        ):
            reply = await admin.change({"act": "cancel", **wrong})
            assert "error" in reply.json
        assert await admin.offset(address) == 200


async def test_files_are_shown_and_deleted(tmp_path: Path) -> None:
    """With their owners; one of another owner with the same name stays."""

    async def who(head: RequestHead) -> Principal:
        return Principal(head.fields.get("x-name") or "nobody")

    async with admin_of(tmp_path, authenticate=who) as admin:
        async with admin.service.connect() as client:
            for name in ("ann", "bob"):
                reply = await client.request(
                    "PUT", "/files/x.txt", {"X-Name": name}, b"content"
                )
                assert reply.status == 201
        rows = await admin.rows("files")
        assert [(row["owner"], row["name"]) for row in rows] == [
            ("bob", "x.txt"),
            ("ann", "x.txt"),
        ]
        assert [r["owner"] for r in await admin.rows("files?search=ANN")] == ["ann"]
        quotas = await admin.rows("quotas")
        assert {row["owner"] for row in quotas} == {"ann", "bob"}
        assert all(row["bytes"] > 7 for row in quotas)
        wish = {"act": "delete", "name": "x.txt", "owner": "ann"}
        assert (await admin.change(wish)).json == {"done": "The file is deleted."}
        assert [row["owner"] for row in await admin.rows("files")] == ["bob"]
        assert "error" in (await admin.change(wish)).json
        assert "error" in (await admin.change({"act": "delete", "name": 1})).json
        # Half of a character, which JSON may have.
        for wrong in (
            {"name": "\ud800", "owner": "ann"},
            {"name": "x", "owner": "\udfff"},
        ):
            reply = await admin.change({"act": "delete", **wrong})
            assert "is no text" in reply.json["error"]
        async with admin.service.connect() as client:
            reply = await client.request("GET", "/files/x.txt", {"X-Name": "bob"})
            assert reply.body == b"content"


async def test_waiting_and_dead_events_are_shown_sent_and_dropped(
    tmp_path: Path,
) -> None:
    """The same as with the command for hooks."""
    receiver = Receiver()
    async with admin_of(tmp_path, hooks=hooks(receiver)) as admin:
        await admin.begin()
        await receiver.until("post-create")
        with closing(sqlite3.connect(tmp_path / "data/catalog.sqlite3")) as catalog:
            columns = [c[1] for c in catalog.execute("PRAGMA table_info(dead_events)")]
            values: dict[str, object] = {
                "seq": 7,
                "id": "msg_x",
                "operation": "U" * 22,
                "kind": "post-finish",
                "error": "the receiver said <b>no</b>",
                "attempts": 9,
                "payload": b"{}",
            }
            filled = [values.get(name, 1.0) for name in columns]
            marks = ", ".join("?" * len(columns))
            catalog.execute(f"INSERT INTO dead_events VALUES ({marks})", filled)
            catalog.commit()
        waiting = await admin.rows("events")
        assert {row["kind"] for row in waiting} <= {"post-create"}  # until it is noted
        (row,) = await admin.rows("events?dead=1")
        assert (row["kind"], row["attempts"]) == ("post-finish", 9)
        assert row["error"] == "the receiver said <b>no</b>"
        assert "U" * 22 not in json.dumps(row)
        for wrong in ([], [1.5], ["7"], list(range(201)), "7", [2**70]):
            reply = await admin.change({"act": "drop", "events": wrong})
            assert "error" in reply.json
        done = await admin.change({"act": "drop", "events": [7]})
        assert done.json == {"done": "The events are dropped."}
        assert await admin.rows("events?dead=1") == []
        done = await admin.change({"act": "send", "events": [8]})
        assert done.json == {"done": "The events are sent again."}


async def test_finished_request_is_not_tried_again(tmp_path: Path) -> None:
    """Its response is known, so it would be processed twice; the reason is told."""
    async with admin_of(tmp_path) as admin:
        async with admin.service.connect() as client:
            reply = await client.request("POST", "/files/", RESUME, b"hi")
            assert reply.status == 201
        rows = await admin.rows("uploads?ended=1")
        assert (rows[0]["state"], rows[0]["status"]) == ("done", 201)
        wish = {"act": "retry", "number": rows[0]["number"], "seal": rows[0]["seal"]}
        reply = await admin.change(wish)
        assert "processed twice" in reply.json["error"]


@pytest.mark.parametrize(
    ("wish", "fields", "status"),
    [
        ({"act": "drop", "events": [1]}, {"Csrf_Token": "guess"}, 403),
        ({"act": "drop", "events": [1]}, {"Csrf_Token": ""}, 403),
        ({"act": "drop", "events": [1]}, {"Csrf_Token": "\xe9"}, 403),
        ({"act": "drop", "events": [1]}, {"Sec_Fetch_Site": "cross-site"}, 403),
        ({"act": "drop", "events": [1]}, {"Sec_Fetch_Site": "same-site"}, 403),
        ({"act": "drop", "events": [1]}, {"Sec_Fetch_Site": "none"}, 403),
        ({"act": "drop", "events": [1]}, {"Sec_Fetch_Site": "same-origin"}, 200),
        (None, {"Change": "{"}, 400),
        (None, {"Change": "[]"}, 400),
        (None, {"Change": "[" * 9000}, 400),
        ({"act": "format"}, {}, 200),
        ({}, {}, 200),
    ],
)
async def test_change_must_come_from_the_page(
    wish: object, fields: dict[str, str], status: int, tmp_path: Path
) -> None:
    """With the token that only the page has, and from no other site."""
    async with admin_of(tmp_path) as admin:
        reply = await admin.change(wish, **fields)
        assert reply.status == status
        if status == 200:
            known = isinstance(wish, dict) and wish.get("act") == "drop"
            assert ("done" if known else "error") in reply.json


async def test_page_that_may_only_read_changes_nothing(tmp_path: Path) -> None:
    async with admin_of(tmp_path, "read") as admin:
        address = await admin.begin()
        (row,) = await admin.rows("uploads")
        assert b'data-may-change=""' in (await admin.get("")).body
        reply = await admin.change(
            {"act": "cancel", "number": row["number"], "seal": row["seal"]}
        )
        assert (reply.status, reply.code) == (403, "forbidden")
        assert await admin.offset(address) == 200


async def test_figures_are_those_of_the_service(tmp_path: Path) -> None:
    async with admin_of(tmp_path, max_stored_bytes=10**6) as admin:
        await admin.begin()
        async with admin.service.connect() as client:
            await client.request("PUT", "/files/a", {}, b"x" * 1000)
        now = (await admin.get("api/now")).json
        assert now["received"] == 1000
        assert now["created"] == 2
        assert now["stored_limit"] == 10**6
        assert 0 < now["disk_free"] <= now["disk_size"]
        assert set(now["queues"]) >= {"commit", "receive_memory"}
        assert now["stopping"] is False
        assert now["hooks"] is False


async def test_store_elsewhere_has_figures_and_no_tables(tmp_path: Path) -> None:
    async with admin_of(tmp_path, store=MemoryStore()) as admin:
        assert (await admin.get("api/now")).status == 200
        assert (await admin.get("api/errors")).status == 200
        reply = await admin.get("api/uploads")
        assert (reply.status, reply.json["detail"]) == (
            404,
            "this service keeps its data elsewhere",
        )


@pytest.mark.parametrize("place", ["-1", "x", "", "9" * 19, "1.5", "\u0661"])
async def test_place_that_is_no_number_is_refused(place: str, tmp_path: Path) -> None:
    async with admin_of(tmp_path) as admin:
        reply = await admin.get(f"api/uploads?x=1&place={quote(place)}")
        assert reply.status == (200 if place == "" else 400)


async def test_hundred_thousand_uploads_are_turned_page_by_page(
    tmp_path: Path,
) -> None:
    """Each page costs the same, wherever it is; a search goes on where it stopped."""
    async with admin_of(tmp_path) as admin:
        await admin.begin("needle.txt")
        with closing(sqlite3.connect(tmp_path / "data/catalog.sqlite3")) as catalog:
            columns = [c[1] for c in catalog.execute("PRAGMA table_info(operations)")]
            others = ", ".join(name for name in columns if name not in ("id", "fields"))
            catalog.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
                " WHERE i < 100000)"
                f" INSERT INTO operations (id, fields, {others})"
                f" SELECT printf('%022d', i), x'90', {others} FROM operations, n"
            )
            catalog.commit()
        first = (await admin.get("api/uploads")).json
        assert len(first["rows"]) == PAGE
        second = (await admin.get(f"api/uploads?place={first['next']}")).json
        numbers = [row["number"] for row in first["rows"] + second["rows"]]
        assert numbers == list(range(100_001, 100_001 - 2 * PAGE, -1))
        last = (await admin.get("api/uploads?place=30")).json
        assert [row["number"] for row in last["rows"]] == list(range(29, 0, -1))
        assert last["next"] is None
        place: int | None = 0
        looks, found = 0, []
        while place is not None:
            part = f"&place={place}" if looks else ""
            page = (await admin.get(f"api/uploads?search=needle{part}")).json
            found += page["rows"]
            place, looks = page["next"], looks + 1
        assert [row["number"] for row in found] == [1]
        assert looks == 11  # of ten thousand rows each


# The log.


def test_latest_errors_are_kept_and_no_more() -> None:
    errors = RecentErrors()
    log = logging.Logger("trioresume.x")  # noqa: LOG001 - nobody else's
    log.addHandler(errors)
    log.info("nothing")
    for number in range(MOST + 5):
        log.warning("number %d", number)
    try:
        raise ValueError("x" * 5000)
    except ValueError:
        log.exception("it failed")
    log.warning("%d", "no number")  # a bug of whoever logs it
    newest = errors.newest()
    assert len(newest) == MOST
    assert errors.count == MOST + 6
    assert newest[0].level == "ERROR"
    assert len(newest[0].text) == MOST_CHARACTERS + 1
    assert newest[1].text == f"number {MOST + 4}"


def test_error_shows_no_id_of_an_upload() -> None:
    """Whoever may only read could end the upload with it, if the service asks for no token."""
    errors = RecentErrors()
    log = logging.Logger("trioresume.x")  # noqa: LOG001 - nobody else's
    log.addHandler(errors)
    upload = "abcdeFghij0123456789-A"
    try:
        raise FileNotFoundError(2, "No such file", f"/data/tails/{upload}.0")
    except FileNotFoundError:
        log.exception("PATCH /operations/%s/content failed", upload)
    log.error("%s was not written: a_name_of_22_characters", upload)
    last, first = errors.newest()
    assert "/operations/abcdeFghij.../content" in first.text
    assert "/data/tails/abcdeFghij....0" in first.text
    assert upload not in first.text
    assert last.text == "abcdeFghij... was not written: a_name_of_22_characters"


async def test_errors_are_those_since_the_service_began(tmp_path: Path) -> None:
    log = logging.getLogger("trioresume.server")
    log.warning("before")
    async with admin_of(tmp_path) as admin:
        log.warning("disk %s", "<b>full</b>")
        (row,) = await admin.rows("errors")
        assert (row["level"], row["text"]) == ("WARNING", "disk <b>full</b>")
        assert (await admin.get("api/now")).json["errors"] == 1
    assert not [
        h for h in logging.getLogger("trioresume").handlers if type(h) is RecentErrors
    ]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"admin_page": "read"}, "needs admin_bind"),
        ({"admin_page": "yes", "admin_bind": ["127.0.0.1:0"]}, "off, read and change"),
        ({"admin_names": "x", "admin_bind": ["127.0.0.1:0"]}, "sequence of names"),
    ],
)
def test_wrong_setting_is_refused_with_its_reason(
    settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CallerError, match=reason):
        WatchSettings(**settings)
