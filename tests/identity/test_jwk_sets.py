"""A JWK set at a URL: cached, rotated, used on for a while when the URL is down."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel

from tests.certificates import server_context
from tests.identity.heads import bearer, head
from tests.identity.tokens import jwks, public, secret_key, signed
from tests.targets.upstream.backend import Backend, backend, ok, raw
from trioresume import CallerError, Client, Config, JsonWebTokens, Principal, Rejection
from trioresume.identity import jwk_sets
from trioresume.identity.jwk_sets import JwkSetUrl, KeysUnavailable


class Scripted(JwkSetUrl):
    """A set whose URL says what a test wants, and how often it was asked."""

    def __init__(self, text: str | Exception) -> None:
        super().__init__("http://localhost/keys")
        self.text = text
        self.asked = 0

    async def _get(self, client: Client) -> str:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if isinstance(self.text, Exception):
            raise self.text
        return self.text

    @property
    def names(self) -> list[str | None]:
        return [key.kid for key in self.keys]


DOWN = OSError("down")


async def test_set_is_fetched_at_the_start_and_now_and_then(
    autojump_clock: object,
) -> None:
    """The first request waits for it; nobody waits for the later ones."""
    source = Scripted(jwks("p256"))
    async with source.running():
        await source.ready()
        assert (source.names, source.asked, source.version) == (["p256"], 1, 1)
        source.text = jwks("p384")
        await trio.sleep(jwk_sets.REFRESH_INTERVAL + 1)
        assert (source.names, source.asked, source.version) == (["p384"], 2, 2)
        await trio.sleep(jwk_sets.REFRESH_INTERVAL)
        assert (source.asked, source.version) == (3, 2)


async def test_unknown_key_fetches_anew_once_a_minute(autojump_clock: object) -> None:
    """Anybody can invent names of keys; many at once are one fetch."""
    source = Scripted(jwks("p256"))
    async with source.running():
        await source.ready()
        await source.look_again()
        assert source.asked == 1
        await trio.sleep(jwk_sets.UNKNOWN_INTERVAL)
        source.text = jwks("p384")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(source.look_again)
        assert (source.names, source.asked) == (["p384"], 2)
        for _ in range(20):
            await source.look_again()
        assert source.asked == 2


async def test_old_set_is_used_while_the_url_is_down(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """For a day. Then nobody is let in, until the URL answers."""
    source = Scripted(jwks("p256"))
    async with source.running():
        await source.ready()
        source.text = DOWN
        await trio.sleep(jwk_sets.MOST_STALE - 1)
        await source.ready()
        assert "down" in caplog.text
        await trio.sleep(2)
        with pytest.raises(KeysUnavailable):
            await source.ready()
        source.text = jwks("p256")
        await trio.sleep(jwk_sets.MOST_RETRY_INTERVAL)
        await source.ready()


async def test_request_is_not_held_up_by_a_url_that_was_down_at_the_start(
    autojump_clock: object,
) -> None:
    """503 at once, and the set is fetched as soon as possible."""
    source = Scripted(DOWN)
    async with source.running():
        with pytest.raises(KeysUnavailable):
            await source.ready()
        started = trio.current_time()
        with pytest.raises(KeysUnavailable):
            await source.ready()
        assert trio.current_time() == started
        source.text = jwks("p256")
        await trio.sleep(jwk_sets.RETRY_INTERVAL + 1)
        await source.ready()


async def test_reload_fetches_soon(autojump_clock: object) -> None:
    """From trio's thread; from another one, as SIGHUP does, see the test with a server."""
    source = Scripted(jwks("p256"))
    async with source.running():
        await source.ready()
        source.text = jwks("p384")
        source.reload()
        await trio.sleep(1)
        assert source.names == ["p384"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "[]",
        "{}",
        json.dumps({"keys": [public("hs")]}),
        json.dumps({"keys": [secret_key("p256").as_dict(private=True)]}),
    ],
    ids=lambda text: text[:9],
)
async def test_set_that_cannot_be_used_changes_nothing(
    text: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A page of a proxy, or a set that gives secrets away."""
    source = Scripted(jwks("p256"))
    async with source.running():
        await source.ready()
        source.text = text
        await trio.sleep(jwk_sets.REFRESH_INTERVAL + 1)
        assert source.names == ["p256"]
    assert "cannot be fetched" in caplog.text
    assert "AyM" not in caplog.text


@pytest.mark.parametrize("url", ["https://", "http:///x", "https://a:b@c/"])
def test_url_that_makes_no_sense_is_refused(url: str) -> None:
    """At the start."""
    with pytest.raises(CallerError):
        JsonWebTokens(url)


def test_fetching_without_tls_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Unless it is this machine."""
    JsonWebTokens("http://127.0.0.1/keys")
    JsonWebTokens("https://id.example/keys")
    assert caplog.text == ""
    JsonWebTokens("http://id.example/keys")
    assert "without TLS" in caplog.text


@asynccontextmanager
async def issuer(
    *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Backend, str]]:
    async with backend(ok(jwks("p256").encode()), tls=tls) as server:
        yield server, f"{server.url}/jwks?x=1"


async def test_tokens_of_a_real_url() -> None:
    """Fetched by the project's own client: a GET, then again after ``reload()`` in a thread."""
    async with issuer() as (server, url):
        known = JsonWebTokens(url)
        async with known.running(Config()):
            fields = bearer(signed("p256"))
            assert await known(head(fields=fields)) == Principal("ann")
            (seen,) = server.seen
            assert (seen.line, seen.body) == ("GET /jwks?x=1 HTTP/1.1", b"")
            server.answer = ok(jwks("p384").encode())
            assert isinstance(known._source, JwkSetUrl)
            ended = known._source._ended
            await trio.to_thread.run_sync(known.reload)
            await ended.wait()
            assert isinstance(await known(head(fields=fields)), Rejection)
            fields = bearer(signed("p384"))
            assert await known(head(fields=fields)) == Principal("ann")


async def test_certificate_of_the_url_is_checked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever could answer in its place could let himself in: 503."""
    async with issuer(tls=server_context()) as (server, url):
        known = JsonWebTokens(url)
        async with known.running(Config()):
            verdict = await known(head(fields=bearer(signed("p256"))))
            assert isinstance(verdict, Rejection)
            assert verdict.status == 503
        assert server.seen == []
    assert "cannot be fetched" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"x" * (jwk_sets.MOST_BYTES + 1)),
        ok(b"", "404 Not Found"),
        ok(b"", "302 Found", ("Location: /other",)),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx"),
        raw(b"garbage"),
        ok(b"\xff"),
    ],
    ids=["large", "404", "302", "cut", "garbage", "no text"],
)
async def test_answer_that_is_no_set_lets_nobody_in(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    """And ends nothing else."""
    async with issuer() as (server, url):
        server.answer = answer  # type: ignore[assignment]
        server.limit = 1
        known = JsonWebTokens(url)
        async with known.running(Config()):
            with trio.fail_after(5):
                verdict = await known(head(fields=bearer(signed("p256"))))
            assert isinstance(verdict, Rejection)
            assert verdict.status == 503
    assert "cannot be fetched" in caplog.text
