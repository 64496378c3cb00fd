"""Every request is counted once, by what became of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.server.harness import (
    RESUME,
    Client,
    Recorder,
    SocketService,
    head,
    socket_service,
)
from tests.server.rufh import path_of
from tests.server.tus import MARK
from tests.server.watch.admin import metrics, sample
from tests.sockets import until_read
from trioresume import (
    AccessLog,
    Config,
    Principal,
    Rejection,
    RequestHead,
    Response,
    SignedAddresses,
    SigningKey,
    sign_upload,
)
from trioresume.server.api.config import Authenticator
from trioresume.server.api.watching import WatchSettings

BODY = b"0123456789" * 100


class Watched:
    """A running service with its second listener and its access log."""

    def __init__(self, service: SocketService, admin: Path, log: Path) -> None:
        self.service = service
        self.connect = service.connect
        self.admin = admin
        self._log = log

    async def metrics(self) -> dict[str, float]:
        return await metrics(self.admin)

    async def until(self, name: str, value: float, **labels: str) -> dict[str, float]:
        """The metrics, as soon as *name* has this *value*."""
        with trio.fail_after(20):
            while True:
                seen = await self.metrics()
                if sample(seen, name, **labels) == value:
                    return seen
                await trio.sleep(0.01)

    async def lines(self, count: int) -> list[dict[str, Any]]:
        """The lines of the log, as soon as there are *count*."""
        with trio.fail_after(20):
            while len(lines := self._log.read_text().splitlines()) < count:  # noqa: ASYNC110 - a file tells nobody
                await trio.sleep(0.02)
        return [json.loads(line) for line in lines]


@asynccontextmanager
async def watched(
    tmp_path: Path, handler: Any = None, **settings: Any
) -> AsyncIterator[Watched]:
    admin, log = tmp_path / "admin", tmp_path / "log"
    watch = WatchSettings(
        admin_bind=[f"unix:{admin}"], access_log=AccessLog(log, "json")
    )
    data = tmp_path / "data"
    async with socket_service(
        handler or Recorder(), data, watch=watch, **settings
    ) as service:
        yield Watched(service, admin, log)


async def _begin(client: Client, length: int = len(BODY)) -> str:
    """Begin a resumable upload; return where its content is."""
    await client.send(
        head("POST", "/", {**RESUME, "Expect": "100-continue"}, length=length)
    )
    interim = await client.interim()
    told = interim.fields.get("request-content-location")
    assert told is not None
    return told


async def test_plain_request_is_counted_and_logged(tmp_path: Path) -> None:
    """By method, dialect and status; with its bytes in and out, and without its query."""
    async with watched(tmp_path) as service, service.connect() as client:
        reply = await client.request("POST", "/a?secret=1", {"User-Agent": "x"}, BODY)
        seen = await service.until("requests_total", 1)
        assert (
            sample(seen, "requests_total", method="POST", dialect="plain", status="200")
            == 1
        )
        assert sample(seen, "received_bytes_total") == len(BODY)
        assert sample(seen, "sent_bytes_total") == len(reply.body)
        assert sample(seen, "uploads_created_total", dialect="plain") == 1
        assert sample(seen, "uploads_finished_total", dialect="plain") == 1
        assert sample(seen, "commit_duration_seconds_count") > 0
        assert sample(seen, "connections", carrier="http/1.1") == 1
        (line,) = await service.lines(1)
    assert line.pop("seconds") > 0
    assert line.pop("time").endswith("Z")
    assert line.pop("request_id") == reply["x-request-id"]
    assert line == {
        "operation": None,
        "client": "127.0.0.1",
        "principal": None,
        "method": "POST",
        "path": "/a",
        "protocol": "HTTP/1.1",
        "dialect": "plain",
        "status": 200,
        "problem": None,
        "received": len(BODY),
        "sent": len(reply.body),
        "referer": None,
        "user_agent": "x",
        "trace": None,
    }


async def test_cut_and_resumption_are_counted(tmp_path: Path) -> None:
    """The upload that was cut is one upload, of three requests."""
    async with watched(tmp_path) as service:
        async with service.connect() as client:
            content = await _begin(client)
            await client.send(BODY[:400])
            await until_read(client.stream.socket)  # type: ignore[attr-defined]
            # While it runs, too.
            await service.until("received_bytes_total", 400)
        seen = await service.until("upload_cuts_total", 1, dialect="seed")
        assert sample(seen, "upload_resumptions_total") == 0
        async with service.connect() as client:
            asked = await client.request("HEAD", content)
            offset = int(asked["upload-offset"])
            assert (
                await client.patch(content, offset, BODY[offset:], len(BODY))
            ).status == 200
        seen = await service.until("upload_resumptions_total", 1, dialect="seed")
        assert sample(seen, "uploads_created_total", dialect="seed") == 1
        seen = await service.until("uploads_finished_total", 1, dialect="seed")
        assert sample(seen, "received_bytes_total") == len(BODY)
        cut, query, patch = await service.lines(3)
    operation = content.split("/")[2]
    assert [line["operation"] for line in (cut, query, patch)] == [operation] * 3
    assert [line["status"] for line in (cut, query, patch)] == [499, 200, 200]
    assert (cut["received"], patch["received"]) == (offset, len(BODY) - offset)
    assert query["sent"] == 0  # a HEAD has no content


async def test_takeover_and_termination_are_counted(tmp_path: Path) -> None:
    """The old writer's request is an error with its code, the newcomer's DELETE an end."""
    async with watched(tmp_path) as service, service.connect() as old:
        content = await _begin(old)
        async with service.connect() as client:
            assert (await client.request("HEAD", content)).status == 200
            assert (await old.reply()).code == "superseded"
            seen = await service.until("upload_takeovers_total", 1, dialect="seed")
            assert sample(seen, "errors_total", status="409", code="superseded") == 1
            assert sample(seen, "upload_cuts_total") == 0
            assert (await client.request("DELETE", content)).status == 204
        await service.until("uploads_terminated_total", 1, dialect="seed")


async def test_malformed_head_is_counted_and_logged(tmp_path: Path) -> None:
    """It never becomes a request of the service, but an operator wants to see it."""
    async with watched(tmp_path) as service, service.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nbad field\r\n\r\n")
        assert (await client.reply()).status == 400
        seen = await service.until("errors_total", 1, code="malformed-request")
        assert sample(seen, "requests_total", method="OTHER", status="400") == 1
        (line,) = await service.lines(1)
    assert (line["status"], line["problem"]) == (400, "malformed-request")


@pytest.mark.parametrize("trusted", [True, False])
async def test_request_id_of_a_trusted_proxy_only(
    tmp_path: Path, trusted: bool
) -> None:
    """Others get a new one, so that nobody gives his requests the name of another's."""
    proxies = ["127.0.0.1"] if trusted else []
    fields = {"X-Request-Id": "from-the-proxy", "X-Forwarded-For": "192.0.2.7"}
    async with (
        watched(tmp_path, trusted_proxies=proxies) as service,
        service.connect() as client,
    ):
        reply = await client.request("GET", "/", fields)
        strange = await client.request("GET", "/", {"X-Request-Id": 'a"b\\c d'})
        first, second = await service.lines(2)
    assert first["request_id"] == reply["x-request-id"]
    assert (reply["x-request-id"] == "from-the-proxy") is trusted
    assert first["client"] == ("192.0.2.7" if trusted else "127.0.0.1")
    assert second["request_id"] == strange["x-request-id"] != 'a"b\\c d'


def _tokens() -> Authenticator:
    async def authenticate(head: RequestHead) -> Principal | Rejection:
        if head.fields.get("authorization") == "Bearer secret-token":
            return Principal("anna")
        return Rejection()

    return authenticate


async def test_no_secret_reaches_the_log(tmp_path: Path) -> None:
    """No Authorization, no cookie, no query: neither of the target nor of Referer."""
    secrets = {
        "Authorization": "Bearer secret-token",
        "Cookie": "session=secret-cookie",
        "Referer": "https://app.example/page?secret-referer#secret-fragment",
    }
    async with watched(tmp_path, authenticate=_tokens()) as service:
        async with service.connect() as client:
            assert (
                await client.request("GET", "/x?sig=secret-query", secrets)
            ).status == 200
            assert (await client.request("GET", "/x")).status == 401
            allowed, refused = await service.lines(2)
    assert "secret" not in (tmp_path / "log").read_text()
    assert (allowed["principal"], refused["principal"]) == ("anna", None)
    assert allowed["referer"] == "https://app.example/page"
    assert (allowed["status"], refused["status"]) == (200, 401)


def signed(tmp_path: Path) -> tuple[SignedAddresses, str]:
    """An authenticator, and the target of an upload with a signature."""
    key = SigningKey.new("k")
    (tmp_path / "keys").write_text(f"{key.line}\n")
    target = sign_upload("https://up.example/", key).removeprefix("https://up.example")
    return SignedAddresses(tmp_path / "keys"), target


async def test_open_upload_cannot_be_used_from_the_log(tmp_path: Path) -> None:
    """Its location needs no other credential, so the log has only half of it."""
    authenticate, target = signed(tmp_path)
    async with watched(tmp_path, authenticate=authenticate) as service:
        async with service.connect() as client:
            begun = await client.request("POST", target, {**MARK, "Upload-Length": "9"})
            path = path_of(begun["location"])
            assert (await client.request("HEAD", path, MARK)).status == 200
            assert (await client.request("HEAD", f"/up{path}", MARK)).status == 401
            lines = await service.lines(3)
    name = path.split("/")[2]
    assert name[10:] not in (tmp_path / "log").read_text()
    told = f"{name[:10]}..."
    assert [line["operation"] for line in lines] == [told, told, None]
    shown = path.replace(name, told)
    assert [line["path"] for line in lines] == ["/", shown, f"/up{shown}"]


async def test_blocks_without_length_are_counted(tmp_path: Path) -> None:
    """The content that was sent, whatever frames it."""

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000

    async with watched(
        tmp_path, Recorder(response=lambda _: Response(200, {}, blocks()))
    ) as service:
        async with service.connect() as client:
            assert len((await client.request("GET", "/")).body) == 3000
            (line,) = await service.lines(1)
    assert line["sent"] == 3000


def test_nothing_is_watched_by_default() -> None:
    """Every part of it has to be asked for."""
    watch = Config().watch
    assert (watch.admin_bind, watch.access_log) == ((), None)
    assert (watch.public_health, watch.tracing) == (False, False)
