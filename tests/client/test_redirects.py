"""Redirects of a request that has not begun an upload yet."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.client.http2_gateway import carrier
from tests.client.peer import TARGET, Cut, CutStream, Dialogue, Received, scripted
from tests.client.test_client import RECORDED, client
from tests.client.test_sockets import MIB, PATIENT, file_of, serving
from tests.client.tls import CA, ServerTls, context_for, pem_of, speaking
from tests.client.transfers import BASE
from trioresume import Client, ClientTls, Journal, RetryPolicy, TransferFailed
from trioresume.client.decisions.redirects import MOST_REDIRECTS, Redirects
from trioresume.errors import CallerError
from trioresume.protocol.dialects.client import Answer
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url

__all__ = ["carrier"]

Clock = trio.testing.MockClock
OVER_EACH_CARRIER = pytest.mark.parametrize("carrier", ["h1", "h2"], indirect=True)
OTHER = "http://other.test/there"


def to(location: str, status: int = 307) -> Answer:
    return Answer(status, Fields({"location": location}))


@pytest.mark.parametrize(
    ("answer", "where"),
    [
        (to("/b"), "http://peer.test/b"),
        (to("b?c=d", 308), "http://peer.test/b?c=d"),
        (to("http://peer.test/b"), "http://peer.test/b"),
        (to("http://allowed.test:81/b"), "http://allowed.test:81/b"),
        (to(OTHER), None),
        (to("https://peer.test/b"), None),
        (to("http://peer.test:81/b"), None),
        (to("http://allowed.test/b"), None),
        (to("ftp://peer.test/b"), None),
        (to("http://me:secret@peer.test/b"), None),
        (to("/b", 301), None),
        (to("/b", 302), None),
        (to("/b", 303), None),
        (to("/b", 200), None),
        (Answer(307, Fields()), None),
    ],
)
def test_only_these_redirects_are_followed(answer: Answer, where: str | None) -> None:
    """307 and 308, within the origin or to one that is allowed."""
    allowed = {Url.parse("http://allowed.test:81/").origin}
    redirects = Redirects(BASE, allowed)
    assert redirects.follow(answer) == (where is not None)
    assert str(redirects.url) == (where or str(BASE))
    assert (redirects.moved is None) == (where is None)


def test_redirects_in_a_row_are_bounded() -> None:
    """A circle ends; a new attempt may follow as many again."""
    redirects = Redirects(BASE)
    for _ in range(2):
        redirects.restart()
        assert redirects.url == BASE
        for number in range(MOST_REDIRECTS):
            assert redirects.follow(to(f"/{number}"))
    with pytest.raises(TransferFailed, match=r"more than 5 times.*/again"):
        redirects.follow(to("/again"))


@OVER_EACH_CARRIER
@pytest.mark.parametrize("status", [307, 308])
async def test_request_goes_to_the_new_url_with_method_and_content(
    autojump_clock: Clock, status: int
) -> None:
    """Within the origin; the server's own Location is relative to the new URL."""
    seen: list[Received] = []

    async def serve(dialogue: Dialogue) -> None:
        seen.append(await dialogue.read_head())
        await dialogue.respond(status, {"Location": "/new/place"})

    async def take(dialogue: Dialogue) -> None:
        seen.append(await dialogue.read_head())
        await dialogue.interim()
        assert await dialogue.read_body() == b"hello"
        await dialogue.respond(201, {**RECORDED, "Location": "thing"})

    async with (
        scripted(serve, take) as peer,
        client(peer, token="secret", release=False) as c,
    ):
        response = await c.request("POST", TARGET, body=b"hello")
    assert [r.target for r in seen] == ["/target", "/new/place"]
    assert [r.method for r in seen] == ["POST", "POST"]
    assert seen[1].fields.get("authorization") == "Bearer secret"
    assert response.url == "http://peer.test/new/place"
    assert response.attempts == 1


@OVER_EACH_CARRIER
async def test_content_that_is_gone_cannot_be_redirected(
    autojump_clock: Clock,
) -> None:
    """A server that takes content without an offer, and then redirects, is too late."""

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(1000)

    async def late(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(307, {"Location": "/new"})

    async with scripted(late) as peer, client(peer, buffer_size=4000) as c:
        with pytest.raises(TransferFailed, match="no longer at hand"):
            await c.request("PUT", TARGET, body=blocks())


@OVER_EACH_CARRIER
async def test_attempt_after_a_portal_begins_at_the_request_s_own_url(
    autojump_clock: Clock,
) -> None:
    """The client does not believe the page that a portal redirects to."""
    seen: list[str] = []

    async def portal(dialogue: Dialogue) -> None:
        seen.append((await dialogue.read_head()).target)
        await dialogue.respond(307, {"Location": "/login"})

    async def page(dialogue: Dialogue) -> None:
        seen.append((await dialogue.read_head()).target)
        await dialogue.read_body()
        await dialogue.respond(200, {"Content-Type": "text/html"}, b"log in")

    async def server(dialogue: Dialogue) -> None:
        seen.append((await dialogue.read_head()).target)
        await dialogue.interim()
        await dialogue.read_body()
        await dialogue.respond(201, RECORDED)

    async with scripted(portal, page, server) as peer, client(peer, release=False) as c:
        response = await c.request("PUT", TARGET, body=b"hello")
    assert response.status == 201
    assert seen == ["/target", "/login", "/target"]


# Another origin.


@asynccontextmanager
async def redirecting(
    location: str, seen: list[Received], status: int = 307
) -> AsyncIterator[str]:
    """A server that redirects each request to *location*, and its URL."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            dialogue = Dialogue(CutStream(stream))
            try:
                seen.append(await dialogue.read_head())
                await dialogue.respond(status, {"Location": location})
            except Cut:
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
        )
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_another_origin_gets_no_credentials(tmp_path: Path) -> None:
    """Neither token nor cookie nor any field that may be one, in no request."""
    path, _ = file_of(tmp_path, 1000)
    first: list[Received] = []
    second: list[Received] = []

    async def take(stream: trio.SocketStream) -> None:
        async with stream:
            dialogue = Dialogue(CutStream(stream))
            second.append(await dialogue.read_head())
            await dialogue.interim()
            await dialogue.read_body()
            await dialogue.respond(201, {"Response-Message-Location": "/op/message"})
            try:
                second.append(await dialogue.read_head())
                await dialogue.respond(204)
            except Cut:
                pass

    secrets = {
        "authorization": "Basic c2VjcmV0",
        "cookie": "a=secret",
        "x-api-key": "secret",
    }
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, take, 0, host="127.0.0.1")
        )
        there = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with redirecting(f"{there}/x", first) as url:
            async with Client(
                headers=secrets, protocol="seed", redirect_origins=[there]
            ) as c:
                own = {"content-type": "text/plain", "proxy-authorization": "secret"}
                await c.request("PUT", f"{url}/x", body=path, headers=own)
        nursery.cancel_scope.cancel()
    assert first[0].fields.get("x-api-key") == "secret"
    assert [r.method for r in second] == ["PUT", "DELETE"]
    for request in second:
        assert "secret" not in str(request.fields)
        assert "c2VjcmV0" not in str(request.fields)
    assert second[0].fields.get("content-type") == "text/plain"
    assert second[0].fields.get("prefer") == "resume"
    assert second[0].fields.get("host") == there.removeprefix("http://")


async def test_another_origin_that_is_not_allowed_gets_nothing() -> None:
    """In time the redirect is the answer: the network may have sent it."""
    seen: list[Received] = []
    async with serving() as service:
        async with redirecting(service.url, seen) as url, Client(retry=PATIENT) as c:
            with trio.move_on_after(1):
                await c.request("PUT", url, body=b"x")
    assert service.contents == []
    assert seen


async def test_upload_at_another_origin_is_resumed_by_the_next_run(
    tmp_path: Path,
) -> None:
    """The journal knows where it is."""
    path, data = file_of(tmp_path, 4 * MIB)
    seen: list[Received] = []
    journal = Journal(tmp_path / "journal")
    async with serving() as service:
        async with redirecting(service.url + "/", seen, 308) as url:
            with trio.CancelScope() as scope:
                async with Client(
                    journal=journal,
                    limit_rate=8 * MIB,
                    redirect_origins=[service.url],
                ) as c:
                    await c.request(
                        "POST",
                        url,
                        body=path,
                        on_progress=lambda p: scope.cancel() if p.sent > MIB else None,
                    )
            assert scope.cancelled_caught
            begun = len(seen)
            async with Client(journal=journal, redirect_origins=[service.url]) as c:
                response = await c.request("POST", url, body=path)
            assert response.status == 201
            assert len(seen) == begun
    assert service.contents == [data]


async def test_run_that_may_not_go_there_does_not_resume_there(tmp_path: Path) -> None:
    """The journal does not allow what the caller does not."""
    path, _ = file_of(tmp_path, 4 * MIB)
    seen: list[Received] = []
    journal = Journal(tmp_path / "journal")
    async with serving() as service:
        async with redirecting(service.url + "/", seen, 308) as url:
            with trio.CancelScope() as scope:
                async with Client(
                    journal=journal,
                    limit_rate=8 * MIB,
                    redirect_origins=[service.url],
                ) as c:
                    await c.request(
                        "POST",
                        url,
                        body=path,
                        on_progress=lambda p: scope.cancel() if p.sent > MIB else None,
                    )
            begun = len(seen)
            async with Client(journal=journal, retry=RetryPolicy(attempts=0)) as c:
                response = await c.request("POST", url, body=path)
            assert response.status == 308
            assert len(seen) > begun
    assert service.contents == []


async def test_certificate_of_the_client_is_not_shown_to_another_origin(
    tmp_path: Path,
) -> None:
    """It would tell a stranger who the client is."""
    issued = CA.issue_cert("somebody@example.org")
    both = tmp_path / "both.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(both))
    tls = ClientTls(cacert=pem_of(tmp_path), cert=both)
    asking = context_for()
    asking.verify_mode = ssl.CERT_OPTIONAL
    CA.configure_trust(asking)
    shown: list[tuple[str, bool]] = []

    def answering(
        name: str, status: int, fields: Callable[[], dict[str, str]]
    ) -> Callable[[ServerTls], Awaitable[None]]:
        async def answer(stream: ServerTls) -> None:
            shown.append((name, bool(stream.socket.getpeercert())))
            dialogue = Dialogue(CutStream(stream))
            await dialogue.read_head()
            await dialogue.respond(status, fields())

        return answer

    final = answering("second", 204, dict)
    async with speaking(final, asking) as (host, port):
        there = f"https://{host}:{port}"
        first = answering("first", 307, lambda: {"Location": there + "/b"})
        async with speaking(first, asking) as (host, port):
            async with Client(tls=tls, redirect_origins=[there]) as c:
                response = await c.request("GET", f"https://{host}:{port}/a")
    assert response.status == 204
    assert shown == [("first", True), ("second", False)]


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_redirect_within_tls_is_the_server_s_and_is_delivered(
    tmp_path: Path, status: int
) -> None:
    """No portal can send it, so that it is not tried again."""

    async def answer(stream: ServerTls) -> None:
        dialogue = Dialogue(CutStream(stream))
        await dialogue.read_head()
        await dialogue.respond(status, {"Location": "https://elsewhere.test/"})

    async with speaking(answer) as (host, port):
        async with Client(tls=ClientTls(cacert=pem_of(tmp_path))) as c:
            url = f"https://{host}:{port}/a"
            response = await c.request("PUT", url, body=b"x")
    assert response.status == status


def test_origin_that_is_none_is_refused() -> None:
    """When the client is made."""
    with pytest.raises(CallerError, match="is not an absolute http"):
        Client(redirect_origins=["elsewhere.test"])
