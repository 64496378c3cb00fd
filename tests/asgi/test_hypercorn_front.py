"""``trioresume.asgi.serve``: hypercorn's trio worker behind our listener, and its faults."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from click.testing import CliRunner

import trioresume
import trioresume.asgi
from tests.asgi.clients import AioquicClient, HttpxClient
from tests.asgi.test_servers import rufh, seed_careful, seed_replay, tus
from tests.certificates import client_context, server_context, write_server_files
from tests.server.harness import Client, head
from trioresume import CallerError, Certificate, Config, FileService, TLSSettings
from trioresume.cli import main
from trioresume.testing import ChaosProxy, random_faults

KIB = 1024


@asynccontextmanager
async def service(
    folder: Path, *, http3: bool = False, handler: Any = None, **settings: Any
) -> AsyncIterator[trioresume.Server]:
    """The service with a certificate, shut down in the end."""
    cert, key = write_server_files(folder)
    config = Config(
        bind=["https://127.0.0.1:0", "http://127.0.0.1:0"],
        ssl=TLSSettings(certificates=[Certificate(cert, key)]),
        data_dir=folder / "data",
        durability="process",
        **settings,
    )
    serve = partial(
        trioresume.asgi.serve, handler or FileService(), config, http3=http3
    )
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve)
        yield server
        server.shutdown()


def port_of(server: trioresume.Server, scheme: str = "https") -> int:
    (url,) = (each for each in server.urls if each.startswith(f"{scheme}:"))
    return int(url.rpartition(":")[2])


@pytest.mark.slow
async def test_every_dialect_over_every_version(tmp_path: Path) -> None:
    """HTTP/1.1 and HTTP/2 over TLS, and HTTP/3, told of by Alt-Svc."""
    async with service(tmp_path, http3=True) as server:
        port = port_of(server)
        for trial in (seed_replay, seed_careful, rufh, tus):
            client = HttpxClient(port, http2=False)
            await trio.to_thread.run_sync(trial, client)
        await trio.to_thread.run_sync(rufh, HttpxClient(port, http2=True))
        await trio.to_thread.run_sync(rufh, AioquicClient(port))
        plain = HttpxClient(port, http2=False)
        reply = await trio.to_thread.run_sync(plain.request, "GET", "/files/none")
        assert f':{port}"' in reply.fields["alt-svc"]


async def test_uploads_survive_cuts(tmp_path: Path) -> None:
    """The package's own client, through a bad link."""
    body = bytes(range(256)) * 4 * KIB
    retry = trioresume.RetryPolicy(first_delay=0.01, longest_delay=0.05)
    async with service(tmp_path) as server:
        address = ("127.0.0.1", port_of(server, "http"))
        faults = random_faults(5, mean_bytes=200 * KIB, limit=8)
        async with (
            ChaosProxy(address, faults) as proxy,
            trioresume.Client(protocol="tus", proxies={}, retry=retry) as client,
        ):
            url = "http://{}:{}/files/".format(*proxy.address)
            done = await client.request("POST", url, body=body)
            assert (done.status, done.attempts > 1) == (201, True)
        async with trioresume.Client(proxies={}) as client:
            root = "http://{}:{}".format(*address)
            location = done.headers.get("location") or ""
            assert (await client.request("GET", root + location)).body == body


async def h2_client(port: int) -> tuple[trio.SSLStream[trio.SocketStream], Any]:
    """A connection over HTTP/2, by hand."""
    context = client_context()
    context.set_alpn_protocols(["h2"])
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(plain, context, server_hostname="127.0.0.1")
    await stream.do_handshake()
    protocol = h2.connection.H2Connection(h2.config.H2Configuration())
    protocol.initiate_connection()
    await stream.send_all(protocol.data_to_send())
    return stream, protocol


async def test_data_after_an_early_response_ends_one_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """hypercorn 0.18 ends the whole server then. Here others go on, and the log has it."""
    caplog.set_level(logging.ERROR, "trioresume.hypercorn")
    async with service(tmp_path, max_upload_size=KIB) as server:
        port = port_of(server)
        stream, protocol = await h2_client(port)
        fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "test"),
            (":path", "/files/"),
            ("content-length", "10000"),
        ]
        protocol.send_headers(1, fields)
        await stream.send_all(protocol.data_to_send())
        status, ended = "", False
        with trio.fail_after(20):
            while not ended:
                for event in protocol.receive_data(await stream.receive_some()):
                    if isinstance(event, h2.events.ResponseReceived):
                        status = dict(event.headers)[b":status"].decode()
                    ended = ended or isinstance(event, h2.events.StreamEnded)
            assert status == "413"
            # Frames by hand: a well-behaved client would not send them any more.
            frame = (5).to_bytes(3, "big") + b"\0\0" + (1).to_bytes(4, "big") + b"hello"
            try:
                while True:
                    await stream.send_all(frame)
                    await stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await trio.aclose_forcefully(stream)
        client = HttpxClient(port, http2=True)
        put = await trio.to_thread.run_sync(
            client.request, "PUT", "/files/a", {}, b"after"
        )
        assert put.status == 201
    assert "a connection failed in hypercorn" in caplog.text


async def test_a_stalled_request_stalls_its_own_connection_only(tmp_path: Path) -> None:
    """What hypercorn cannot do within a connection, it can do between connections."""
    gate = trio.Event()

    async def handle(request: trioresume.Request) -> trioresume.Response:
        if request.path == "/slow":
            await gate.wait()
        return trioresume.Response(200, body=b"ok")

    async with service(tmp_path, handler=handle) as server:
        port = port_of(server)
        async with trio.open_nursery() as nursery:
            slow = HttpxClient(port, http2=True)
            ask = partial(slow.request, "GET", "/slow")
            nursery.start_soon(trio.to_thread.run_sync, ask)
            quick = HttpxClient(port, http2=True)
            got = await trio.to_thread.run_sync(quick.request, "GET", "/quick")
            assert got.body == b"ok"
            gate.set()


async def test_garbage_and_floods_end_only_themselves(tmp_path: Path) -> None:
    """Bytes that are no HTTP, no TLS, or no QUIC; and connections beyond the limit."""
    async with service(tmp_path, http3=True, max_connections=2) as server:
        secure, plain = port_of(server), port_of(server, "http")
        for port in (secure, plain):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"\x16\x03\x01garbage\r\n\r\n" * 100)
            with trio.fail_after(20):
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
            await stream.aclose()
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as datagrams:
            for garbage in (b"", b"x", b"\xff" * 1200, b"\xc0" + bytes(1199)):
                await datagrams.sendto(garbage, ("127.0.0.1", secure))
        reply = await trio.to_thread.run_sync(
            AioquicClient(secure).request, "GET", "/files/none"
        )
        assert reply.status == 404
        held = [await trio.open_tcp_stream("127.0.0.1", plain) for _ in range(2)]
        with trio.fail_after(20):
            assert not await is_served(plain)
            for stream in held:
                await stream.aclose()
            while not await is_served(plain):
                await trio.lowlevel.checkpoint()  # the server has not noticed yet


async def is_served(port: int) -> bool:
    """Whether a new connection gets an answer."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        await stream.send_all(head("GET", "/files/none"))
        return (await stream.receive_some()).startswith(b"HTTP/1.1 404")
    except trio.BrokenResourceError:
        return False
    finally:
        await stream.aclose()


async def test_a_shutdown_answers_and_keeps(tmp_path: Path) -> None:
    """A request that is running then gets a 503 after the grace period."""
    async with service(tmp_path, grace_timeout=0.2) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(server, "http"))
        client = Client(stream)
        fields = {"Upload-Complete": "?0"}
        created = await client.request("POST", "/files/", fields)
        where = created["location"].partition("/operations/")[2]
        patch = {
            "Content-Type": "application/partial-upload",
            "Upload-Offset": "0",
            "Upload-Complete": "?1",
            "Expect": "100-continue",
        }
        await client.send(head("PATCH", f"/operations/{where}", patch, length=10))
        assert (await client.interim()).status == 100
        await client.send(b"abc")
        server.shutdown()
        with trio.fail_after(20):
            assert (await client.reply("PATCH")).status == 503
        await stream.aclose()


async def test_http3_needs_files_of_a_certificate(tmp_path: Path) -> None:
    """A context of the program has no files, and plain HTTP has no certificate."""
    for settings in ({}, {"ssl": server_context()}):
        config = Config(
            bind=["127.0.0.1:0"],
            data_dir=tmp_path,
            **settings,  # type: ignore[arg-type]
        )
        with pytest.raises(CallerError, match="HTTP/3"):
            await trioresume.asgi.serve(FileService(), config, http3=True)


def test_the_option_http3_needs_hypercorn() -> None:
    """A usage error: nothing is served."""
    result = CliRunner().invoke(main, ["serve", "--http3"])
    assert (result.exit_code, "--front hypercorn" in result.output) == (2, True)
