"""``Incremental`` (RFC 10036): what the client asks of proxies, on real sockets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import trio

from tests.client.transfers import BASE, answered, append, begun, transfer
from tests.server.harness import Recorder, socket_service
from trioresume.client import Client, RetryPolicy
from trioresume.client.content.sources import BytesSource
from trioresume.client.decisions.actions import AskOffset, Finish, Send, Sent
from trioresume.client.decisions.redirects import Redirects
from trioresume.client.http.requests import RequestBuilder
from trioresume.protocol.heads import Fields

ProtocolName = Literal["auto", "seed", "rufh", "tus"]
HEAD = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)
BODY = bytes(300_000)  # nothing in it looks like a head
REFUSAL = (
    b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\nConnection: close\r\n"
    b"Proxy-Status: buffers; error=incremental_refused\r\n\r\n"
)


class Proxy:
    """Passes everything on, and notes the heads of requests.

    If it *buffers*, it refuses what asks it to forward content as it comes.
    """

    def __init__(self, upstream: tuple[str, int], *, buffers: bool) -> None:
        self._upstream = upstream
        self._buffers = buffers
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, target and ``Incremental`` of each request."""

    async def serve(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(*self._upstream)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, server, client, nursery.cancel_scope)
            try:
                async for data in client:
                    if self._refuses(data):
                        await client.send_all(REFUSAL)
                        with trio.move_on_after(0.2):
                            async for _ in client:
                                pass  # so that no reset destroys the answer
                        break
                    await server.send_all(data)
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()

    def _refuses(self, data: bytes | bytearray) -> bool:
        refused = False
        for method, target, lines in HEAD.findall(data):
            found = re.search(rb"(?im)^incremental: (.*?)\r?$", lines)
            value = None if found is None else found[1].decode()
            self.requests.append((method.decode(), target.decode(), value))
            refused = refused or (self._buffers and value is not None)
        return refused

    @staticmethod
    async def _copy(
        source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()


@asynccontextmanager
async def proxied(
    data_dir: Path, handler: Recorder, *, buffers: bool = False
) -> AsyncIterator[tuple[Proxy, str]]:
    """A service behind a proxy; the proxy, and the URL of a collection."""
    async with socket_service(handler, data_dir) as service:
        proxy = Proxy(service.address, buffers=buffers)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1")
            )
            port = listeners[0].socket.getsockname()[1]
            yield proxy, f"http://127.0.0.1:{port}/"
            nursery.cancel_scope.cancel()


def client_of(protocol: ProtocolName) -> Client:
    return Client(protocol=protocol, retry=RetryPolicy(attempts=3, first_delay=0.01))


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 10_000):
        yield data[start : start + 10_000]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("protocol", ["auto", "seed", "rufh", "tus"])
async def test_content_is_marked_and_nothing_else(
    protocol: ProtocolName, streamed: bool, tmp_path: Path
) -> None:
    """C18: each request with content, in each protocol; no question and no creation."""
    handler = Recorder()
    async with proxied(tmp_path / "data", handler) as (proxy, url):
        async with client_of(protocol) as client:
            body = pieces(BODY) if streamed else BODY
            response = await client.request("POST", url, body=body)
            assert response.ok
    assert handler.bodies == [BODY]
    marked = {method for method, _, value in proxy.requests if value == "?1"}
    assert marked == ({"PATCH"} if protocol == "tus" else marked & {"POST", "PATCH"})
    assert marked
    for method, _, value in proxy.requests:
        assert value in (None, "?1")
        if method in ("GET", "HEAD", "OPTIONS", "DELETE"):
            assert value is None


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("protocol", ["auto", "seed", "rufh", "tus"])
async def test_proxy_that_buffers_is_asked_once(
    protocol: ProtocolName, streamed: bool, tmp_path: Path
) -> None:
    """C18: it refuses with 501; the upload goes through it without the mark."""
    handler = Recorder()
    async with proxied(tmp_path / "data", handler, buffers=True) as (proxy, url):
        async with client_of(protocol) as client:
            body = pieces(BODY) if streamed else BODY
            response = await client.request("POST", url, body=body)
            assert response.ok
    assert handler.bodies == [BODY]
    assert [value for _, _, value in proxy.requests].count("?1") == 1


async def test_requests_without_content_are_not_marked(tmp_path: Path) -> None:
    """There is nothing to forward."""
    async with proxied(tmp_path / "data", Recorder()) as (proxy, url):
        async with client_of("auto") as client:
            for method in ("GET", "POST", "DELETE"):
                await client.request(method, url)
    assert proxy.requests
    assert {value for _, _, value in proxy.requests} == {None}


async def test_callers_own_word_counts(tmp_path: Path) -> None:
    """Whoever says ``?0`` wants it collected."""
    async with proxied(tmp_path / "data", Recorder()) as (proxy, url):
        async with client_of("seed") as client:
            await client.request("POST", url, body=BODY, headers={"Incremental": "?0"})
    (posted,) = (value for method, _, value in proxy.requests if method == "POST")
    assert posted == "?0"


# Decisions.

REFUSED = {
    "proxy-status": 'a; received-status=200, b; error=incremental_refused; x="y"'
}


def test_refused_append_asks_how_far_it_came() -> None:
    """The proxy says that it forwarded nothing; only the server knows."""
    made = begun(append(10))
    following = made.after(answered(501, REFUSED, sent=Sent.SOME))
    assert isinstance(following.action, AskOffset)
    assert not made.choice.incremental


def test_refused_request_begins_again_though_it_is_not_idempotent() -> None:
    """Nothing of it was forwarded."""
    made = transfer("POST")
    made.begin()
    following = made.after(answered(501, REFUSED, sent=Sent.ALL))
    assert following.action == Send()
    assert following.delay == 0
    assert not made.all_sent


@pytest.mark.parametrize(
    "value",
    [
        "a; error=incremental_refused_not",
        'a; details="error=incremental_refused"',
        "incremental_refused",
        "a; error=http_request_error",
        "",
    ],
)
def test_other_errors_of_proxies_are_none_of_this(value: str) -> None:
    """501 without that reason stands."""
    made = begun(append(10))
    made.after(answered(501, {"proxy-status": value}, sent=Sent.SOME))
    assert made.choice.incremental


def test_second_refusal_is_final() -> None:
    """A proxy that refuses what was not asked of it is in trouble like any other."""
    made = transfer("POST")
    made.begin()
    made.after(answered(501, REFUSED))
    made.after(answered(501, REFUSED))
    assert isinstance(made._action, Finish)


@pytest.mark.parametrize("resumable", [False, True])
def test_plain_requests_have_no_mark(resumable: bool) -> None:
    """They cannot be resumed, so that it would gain nothing."""
    choice = transfer("POST", protocol="auto").choice
    if not resumable:
        choice.give_up()
    source = BytesSource(b"content")
    builder = RequestBuilder(
        "POST", Redirects(BASE), source, choice, headers=(), standing=Fields(), wait=1
    )
    names = {name.lower() for name, _ in builder.build(Send()).head.headers}
    assert (b"incremental" in names) == resumable
