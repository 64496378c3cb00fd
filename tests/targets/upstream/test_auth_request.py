"""Another service says who may send a request: before its content, and at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.server.harness import RESUME, head, socket_service
from tests.targets.upstream.backend import Backend, Seen, backend, ok, raw
from tests.targets.upstream.test_once import BODY, dead_end, front
from trioresume import AuthRequest, CallerError, UpstreamTarget

CHALLENGE = raw(
    b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 8\r\nSet-Cookie: a=b\r\n\r\nwho then"
)


def allow(name: str) -> Any:
    return ok(b"", "204 No Content", (f"X-User: {name}",))


def asking(guard: Backend, **settings: Any) -> dict[str, Any]:
    """The configuration that asks *guard*."""
    url = f"{guard.url}/check?x"
    return {"authenticate": AuthRequest(url, principal_field="x-user", **settings)}


async def test_question_has_the_head_and_no_content(tmp_path: Path) -> None:
    """It comes before the 100: no byte of content was asked for."""
    async with backend(CHALLENGE) as guard, backend() as behind:
        async with front(tmp_path, behind.url, config=asking(guard)) as service:
            async with service.connect() as client:
                fields = {
                    "Expect": "100-continue",
                    "Cookie": "c=d",
                    "X-Forwarded-For": "203.0.113.1",
                    "Content-Type": "text/x",
                    **RESUME,
                }
                await client.send(head("POST", "/a?b", fields, length=10**9))
                reply = await client.reply()
                assert (reply.status, reply.body) == (401, b"who then")
                assert reply["www-authenticate"] == "Basic realm=x"
                assert reply["content-type"] == "text/plain"
                assert reply["set-cookie"] == "a=b"
                assert reply.interims == []
        (seen,) = guard.seen
        assert (seen.line, seen.body) == ("GET /check?x HTTP/1.1", b"")
        assert seen.get("x-original-method") == "POST"
        assert seen.get("x-original-uri") == "/a?b"
        assert seen.get("cookie") == "c=d"
        assert seen.get("x-forwarded-for") == "127.0.0.1"
        assert seen.get("content-type") is None
        assert bytes(behind.received) == b""


async def test_forbidden_is_passed_on(tmp_path: Path) -> None:
    """A 403 too, for a request that streams through."""
    async with backend(ok(b"no", "403 Forbidden")) as guard, backend() as behind:
        async with front(tmp_path, behind.url, config=asking(guard)) as service:
            async with service.connect() as client:
                reply = await client.request("GET", "/")
                assert (reply.status, reply.body) == (403, b"no")
        assert behind.seen == []


async def test_field_of_the_answer_is_the_principal(tmp_path: Path) -> None:
    """R35: for anybody else the upload does not exist."""
    async with backend(allow("ann")) as guard, backend() as behind:
        async with front(tmp_path, behind.url, config=asking(guard)) as service:
            async with service.connect() as client:
                begun = await client.start(len(BODY), BODY[:10])
                place = begun.fields.get("request-content-location") or ""
            async with service.connect() as client:
                guard.answer = allow("bob")
                assert (await client.request("HEAD", place)).status == 404
                guard.answer = allow("ann")
                shown = await client.request("HEAD", place)
                assert shown["upload-offset"] == "10"
                assert (
                    await client.patch(place, 10, BODY[10:], len(BODY))
                ).status == 200
        assert behind.seen[0].body == BODY


@pytest.mark.parametrize("answer", [CHALLENGE, allow("bob")])
async def test_sender_is_asked_for_again_at_the_end(
    answer: Any, tmp_path: Path
) -> None:
    """C16: content may take hours. The received bytes are kept for a sender who may go on."""
    async with backend(allow("ann")) as guard, backend() as behind:
        async with front(tmp_path, behind.url, config=asking(guard)) as service:
            async with service.connect() as client:
                begun = await client.start(len(BODY), BODY[:-1])
                place = begun.fields.get("request-content-location") or ""
                guard.answer = answer
                await client.send(BODY[-1:])
                assert (await client.reply()).status in (401, 403)
            assert bytes(behind.received) == b""
            guard.answer = allow("ann")
            async with service.connect() as client:
                shown = await client.request("HEAD", place)
                assert shown["upload-offset"] == str(len(BODY))
                with trio.fail_after(10):
                    await behind.got.wait()
        assert [seen.body for seen in behind.seen] == [BODY]


async def test_answer_is_remembered_for_the_same_question(tmp_path: Path) -> None:
    """Other credentials, another target or another method are another question."""
    async with backend(allow("ann")) as guard, backend() as behind:
        config = asking(guard, cache=1000.0)
        async with front(tmp_path, behind.url, config=config) as service:
            async with service.connect() as client:
                for _ in range(3):
                    await client.request("GET", "/", {"Cookie": "1"})
                assert len(guard.seen) == 1
                await client.request("GET", "/", {"Cookie": "2"})
                await client.request("GET", "/x", {"Cookie": "1"})
                await client.request("DELETE", "/", {"Cookie": "1"})
                await client.request("GET", "/", {"X-Token": "1"})
                assert len(guard.seen) == 5
                guard.answer = CHALLENGE
                for _ in range(2):  # a refusal is not remembered
                    reply = await client.request("GET", "/new")
                    assert reply.status == 401
                assert len(guard.seen) == 7


async def hang_up(seen: Seen, stream: trio.abc.Stream) -> None:
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    "answer",
    [
        hang_up,
        ok(b"", "204 No Content"),  # it names nobody
        ok(b"", "500 Internal Server Error"),
        ok(b"", "302 Found", ("Location: /login",)),
        raw(b"nonsense\r\n\r\n"),
    ],
)
async def test_service_that_fails_lets_nobody_in(answer: Any, tmp_path: Path) -> None:
    """502, and the backend gets nothing."""
    async with backend(answer) as guard, backend() as behind:
        async with front(tmp_path, behind.url, config=asking(guard)) as service:
            async with service.connect() as client:
                reply = await client.request("POST", "/", RESUME, BODY)
                assert (reply.status, reply.code) == (502, "bad-gateway")
        assert behind.seen == []


async def test_service_that_is_down_lets_nobody_in(tmp_path: Path) -> None:
    """503, and try again."""
    auth = AuthRequest(await dead_end())
    target = UpstreamTarget(await dead_end())
    async with socket_service(target, tmp_path, authenticate=auth) as service:
        async with service.connect() as client:
            reply = await client.request("GET", "/")
            assert (reply.status, reply.code) == (503, "service-unavailable")
            assert reply.get("retry-after") is not None


@pytest.mark.parametrize(
    ("url", "settings"),
    [("nowhere", {}), ("http://x/", {"cache": -1}), ("http://x/", {"timeout": 0})],
)
def test_settings_that_make_no_sense_are_refused(
    url: str, settings: dict[str, float]
) -> None:
    """At the start."""
    with pytest.raises(CallerError):
        AuthRequest(url, **settings)  # type: ignore[arg-type]
