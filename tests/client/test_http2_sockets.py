"""HTTP/2 in the client over real sockets: ALPN, proxies, cuts, and who may say no."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import pytest
import trio
from h2.errors import ErrorCodes

import trioresume
from tests.certificates import authority, client_context, write_server_files
from tests.client.http2_server import Http2Peer
from tests.client.http_proxy import HttpProxy
from tests.client.test_sockets import MIB, PATIENT, Service, file_of
from tests.client.tls import ServerTls, context_for, pem_of, speaking
from trioresume import (
    CallerError,
    Certificate,
    Client,
    ClientTls,
    Config,
    Progress,
    TLSSettings,
    TransferFailed,
)
from trioresume.client import BodyInput
from trioresume.testing import ChaosProxy, MemoryStore, random_faults


@pytest.fixture
def trusting(tmp_path: Path) -> ClientTls:
    """Settings that trust the authority of the tests."""
    return ClientTls(cacert=pem_of(tmp_path))


@asynccontextmanager
async def serving(
    folder: Path, *, http2: bool = True, h2c: bool = False
) -> AsyncIterator[Service]:
    """The real server over TLS, or without it by *h2c*; its store in memory."""
    tls = None
    if not h2c:
        certfile, keyfile = write_server_files(folder)
        tls = TLSSettings(certificates=[Certificate(certfile, keyfile)])
    config = Config(
        bind=["127.0.0.1:0"], grace_timeout=0.1, ssl=tls, http2=http2, h2c=h2c
    )
    service = Service()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **started: trioresume.serve(
                service.handle, config, store=MemoryStore(), **started
            )
        )
        service.url = server.urls[0]
        yield service
        server.shutdown()


async def at_once(client: Client, count: int, url: str, body: BodyInput) -> None:
    """Send the same request *count* times at once; all must succeed."""

    async def once() -> None:
        assert (await client.request("POST", url, body=body)).status == 201

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(once)


def through(proxy: ChaosProxy) -> str:
    return f"https://127.0.0.1:{proxy.address[1]}/"


async def test_files_share_a_connection_that_is_cut(
    tmp_path: Path, trusting: ClientTls
) -> None:
    """All arrive once, and nothing is sent again that the server has acknowledged."""
    path, data = file_of(tmp_path, 3 * MIB)
    attempts: list[int] = []

    def check(progress: Progress) -> None:
        assert progress.sent >= progress.acknowledged

    async def once(client: Client, url: str) -> None:
        response = await client.request("POST", url, body=path, on_progress=check)
        assert response.status == 201
        assert response.body == data[::-1][:5000]
        attempts.append(response.attempts)

    async with serving(tmp_path) as service:
        faults = random_faults(7, mean_bytes=2 * MIB, limit=12)
        async with ChaosProxy(service.address, faults) as proxy:
            async with Client(
                retry=PATIENT, random=random.Random(1), tls=trusting, idle_timeout=5
            ) as client:
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(once, client, through(proxy))
            cuts = proxy.totals.cuts
            assert cuts > 3
            # One at a time: a new one only after a cut.
            assert len(proxy.connections) <= cuts + 1 + proxy.totals.stalls
    assert service.contents == [data] * 5
    assert sum(attempts) > 5


async def test_one_connection_for_all_requests(
    tmp_path: Path, trusting: ClientTls
) -> None:
    """Those that begin together share the first one, too."""
    async with serving(tmp_path) as service, ChaosProxy(service.address) as proxy:
        async with Client(tls=trusting) as client:
            await at_once(client, 8, through(proxy), b"x" * 100_000)
            await at_once(client, 1, through(proxy), b"y")
        assert len(proxy.connections) == 1
    assert len(service.contents) == 9


@pytest.mark.parametrize("wish", [None, True, False])
async def test_wish_decides_what_is_offered(
    tmp_path: Path, trusting: ClientTls, wish: bool | None
) -> None:
    """HTTP/1.1 makes a connection for each request at a time."""
    async with serving(tmp_path) as service, ChaosProxy(service.address) as proxy:
        async with Client(tls=trusting, http2=wish) as client:
            await at_once(client, 2, through(proxy), b"x")
        assert len(proxy.connections) == (2 if wish is False else 1)


async def test_server_without_http2(tmp_path: Path, trusting: ClientTls) -> None:
    """It gets HTTP/1.1, unless HTTP/2 is a must."""
    async with serving(tmp_path, http2=False) as service:
        async with Client(tls=trusting) as client:
            response = await client.request("POST", service.url, body=b"abc")
            assert response.status == 201
        async with Client(tls=trusting, http2=True, retry=PATIENT) as client:
            with pytest.raises(TransferFailed, match="HTTP") as caught:
                await client.request("POST", service.url, body=b"abc")
    assert not caught.value.resumable
    assert len(service.contents) == 1


async def test_context_of_the_caller_decides(tmp_path: Path) -> None:
    """It offers what it was made to offer, and is left as it is."""
    async with serving(tmp_path) as service, ChaosProxy(service.address) as proxy:
        for protocols, connections in ((["http/1.1"], 2), (["h2"], 1)):
            before = len(proxy.connections)
            context = client_context()
            context.set_alpn_protocols(protocols)
            async with Client(tls=context) as client:
                await at_once(client, 2, through(proxy), b"x")
            assert len(proxy.connections) - before == connections
        context = client_context()
        context.set_alpn_protocols(["h2"])
        async with Client(tls=context, http2=False) as client:
            with pytest.raises(TransferFailed, match="is forbidden"):
                await client.request("POST", through(proxy), body=b"x")


async def test_http2_without_tls(tmp_path: Path) -> None:
    """By prior knowledge only; to insist without it is a contradiction."""
    path, data = file_of(tmp_path, MIB)
    async with serving(tmp_path, h2c=True) as service:
        async with ChaosProxy(service.address) as proxy:
            async with Client(h2c=True) as client:
                await at_once(client, 1, proxy.url, path)
                await at_once(client, 1, proxy.url, path)
            assert len(proxy.connections) == 1
        async with Client(http2=True) as client:
            with pytest.raises(CallerError, match="needs h2c"):
                await client.request("POST", service.url, body=path)
    assert service.contents == [data] * 2
    with pytest.raises(CallerError, match="forbidden"):
        Client(http2=False, h2c=True)


@pytest.mark.parametrize("h2c", [False, True])
async def test_proxy_opens_a_tunnel_for_http2(
    tmp_path: Path, trusting: ClientTls, h2c: bool
) -> None:
    """CONNECT, also for HTTP/2 without TLS; one tunnel for all requests."""
    path, data = file_of(tmp_path, MIB)
    async with serving(tmp_path, h2c=h2c) as service:
        async with HttpProxy().serving() as proxy:
            proxies = {"https_proxy": proxy.url, "http_proxy": proxy.url}
            async with Client(tls=trusting, h2c=h2c, proxies=proxies) as client:
                await at_once(client, 3, service.url, path)
        assert proxy.requests == [f"CONNECT 127.0.0.1:{service.address[1]}"]
    assert service.contents == [data] * 3


async def test_server_that_wants_http1_gets_it(trusting: ClientTls) -> None:
    """RFC 9113, section 7: HTTP_1_1_REQUIRED, for example to ask for a certificate."""
    context = context_for()
    context.set_alpn_protocols(["h2", "http/1.1"])
    spoken: list[str | None] = []

    async def picky(stream: ServerTls) -> None:
        spoken.append(stream.socket.selected_alpn_protocol())
        if spoken[-1] == "h2":
            peer = Http2Peer(stream)
            await peer.start()
            request = await peer.request()
            await peer.reset(request.stream, ErrorCodes.HTTP_1_1_REQUIRED)
            await peer.until_closed()
            return
        parser = h11.Connection(h11.SERVER)
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                parser.receive_data(await stream.receive_some())
        await stream.send_all(
            b"HTTP/1.1 201 Created\r\nLocation: /a\r\nConnection: close\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        await stream.receive_some()

    async with speaking(picky, context) as address:
        async with Client(tls=trusting, retry=PATIENT, protocol="seed") as client:
            for _ in range(2):
                url = f"https://127.0.0.1:{address[1]}/"
                response = await client.request("POST", url, headers={"a": "b"})
                assert response.status == 201
    assert spoken[:2] == ["h2", "http/1.1"]
    assert "h2" not in spoken[1:]


async def test_certificate_that_is_asked_for_is_named(trusting: ClientTls) -> None:
    """TLS 1.3 refuses it after the handshake, when HTTP/2 has begun."""
    wanting = context_for()
    wanting.set_alpn_protocols(["h2"])
    wanting.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(wanting)

    async def answer(stream: ServerTls) -> None:
        await Http2Peer(stream).start()

    async with speaking(answer, wanting) as address:
        async with Client(tls=trusting, retry=PATIENT) as client:
            with pytest.raises(TransferFailed, match="--cert") as caught:
                url = f"https://127.0.0.1:{address[1]}/"
                await client.request("POST", url, body=b"x")
    assert not caught.value.resumable
