"""Shutting down: in order, with a grace period, losing nothing (promise 6)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

import trioresume
from tests.server.harness import (
    RESUME,
    Client,
    Recorder,
    SocketService,
    head,
)
from tests.sockets import until_read
from trioresume import CallerError, Config, Request, Response, StoreLocked
from trioresume.server.api.handler import as_target
from trioresume.server.doorman import Doorman
from trioresume.server.http.listeners import open_listeners
from trioresume.server.serving import running_engine

BODY = bytes(range(256)) * 1000


def _config(data_dir: Path, **settings: object) -> Config:
    settings = {"durability": "process", "chunk_size": 65536, **settings}
    return Config(bind=["127.0.0.1:0"], data_dir=data_dir, **settings)  # type: ignore[arg-type]


async def _start(
    nursery: trio.Nursery, handler: object, config: Config
) -> tuple[SocketService, trio.Event]:
    ended = trio.Event()

    async def run(*, task_status: trio.TaskStatus[trioresume.Server]) -> None:
        await trioresume.serve(handler, config, task_status=task_status)  # type: ignore[arg-type]
        ended.set()

    return SocketService(await nursery.start(run)), ended


async def _until_read(client: Client) -> None:
    """Return when the service has read all that *client* sent."""
    assert isinstance(client.stream, trio.SocketStream)
    await until_read(client.stream.socket)


async def _until_refused(service: SocketService) -> None:
    """Return when the service listens no longer."""
    with trio.fail_after(5):
        while True:
            try:
                stream = await trio.open_tcp_stream(*service.address)
            except OSError:
                return
            await stream.aclose()


async def test_idle_connections_close_and_serve_returns(tmp_path: Path) -> None:
    """Kept-alive ones at once; nobody waits for the grace period to pass."""
    async with trio.open_nursery() as nursery:
        config = _config(tmp_path, grace_timeout=30)
        service, ended = await _start(nursery, Recorder(), config)
        # Connections are accepted in their order.
        async with service.connect() as unused, service.connect() as used:
            assert (await used.request("GET", "/")).status == 200
            service.server.shutdown()
            with trio.fail_after(2):
                assert await used.rest() == b""
                assert await unused.rest() == b""
                await ended.wait()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(*service.address)


async def test_running_request_gets_the_grace_period(tmp_path: Path) -> None:
    """Its content still arrives, its handler still runs, its response is sent."""

    async def slow(request: Request) -> Response:
        body = await request.body.read()
        await trio.sleep(0.1)  # not at once
        return Response(200, {}, b"got %d" % len(body))

    async with trio.open_nursery() as nursery:
        config = _config(tmp_path, grace_timeout=30)
        service, ended = await _start(nursery, slow, config)
        async with service.connect() as client:
            await client.start(6, b"abc")
            service.server.shutdown()
            await _until_refused(service)
            assert not ended.is_set()
            await client.send(b"def")
            with trio.fail_after(5):
                reply = await client.reply()
                assert (reply.status, reply.body) == (200, b"got 6")
                assert await client.rest() == b""
                await ended.wait()


async def test_upload_cut_by_shutdown_is_resumed_after_the_restart(
    tmp_path: Path,
) -> None:
    """After the grace period: every byte that had arrived is there."""
    async with trio.open_nursery() as nursery:
        config = _config(tmp_path, grace_timeout=0.1)
        service, ended = await _start(nursery, Recorder(), config)
        async with service.connect() as client:
            interim = await client.start(len(BODY), BODY[:150_000])
            location = interim.fields.get("request-content-location") or ""
            await _until_read(client)
            service.server.shutdown()
            with trio.fail_after(5):
                await ended.wait()
    handler = Recorder()
    async with trio.open_nursery() as nursery:
        service, _ = await _start(nursery, handler, _config(tmp_path))
        async with service.connect() as client:
            shown = await client.request("HEAD", location)
            assert shown["upload-offset"] == "150000"
            reply = await client.patch(location, 150_000, BODY[150_000:], len(BODY))
            assert reply.status == 200
        nursery.cancel_scope.cancel()
    assert handler.bodies == [BODY]


async def test_handler_that_outlives_the_grace_period_is_indeterminate(
    tmp_path: Path,
) -> None:
    """R31: it was cancelled, and that is what a later client is told."""
    handler = Recorder(gate=trio.Event())
    async with trio.open_nursery() as nursery:
        config = _config(tmp_path, grace_timeout=0.1)
        service, ended = await _start(nursery, handler.__call__, config)
        async with service.connect() as client:
            await client.send(head("POST", "/", RESUME, length=3) + b"abc")
            interim = await client.interim()
            await handler.begun.wait()
            service.server.shutdown()
            with trio.fail_after(5):
                await ended.wait()
    message = interim.fields.get("response-message-location") or ""
    async with trio.open_nursery() as nursery:
        service, _ = await _start(nursery, handler.__call__, _config(tmp_path))
        async with service.connect() as client:
            reply = await client.request("GET", message, {"Prefer": "wait=5"})
            assert b'"code": "indeterminate"' in reply.body
        nursery.cancel_scope.cancel()
    assert handler.started == 1


async def test_cancelled_serve_cuts_at_once_and_keeps_the_upload(
    tmp_path: Path,
) -> None:
    """As its caller wishes; the directory is free again."""
    async with trio.open_nursery() as nursery:
        config = _config(tmp_path, grace_timeout=30)
        service, _ = await _start(nursery, Recorder(), config)
        async with service.connect() as client:
            interim = await client.start(len(BODY), BODY[:100_000])
            await _until_read(client)
            nursery.cancel_scope.cancel()
    location = interim.fields.get("request-content-location") or ""
    async with trio.open_nursery() as nursery:
        service, _ = await _start(nursery, Recorder(), _config(tmp_path))
        async with service.connect() as client:
            shown = await client.request("HEAD", location)
            assert shown["upload-offset"] == "100000"
        nursery.cancel_scope.cancel()


async def test_second_service_in_one_directory_is_store_locked(tmp_path: Path) -> None:
    """A plain error, not a group; the first one goes on."""
    async with trio.open_nursery() as nursery:
        service, _ = await _start(nursery, Recorder(), _config(tmp_path))
        with pytest.raises(StoreLocked):
            await trioresume.serve(Recorder(), _config(tmp_path))
        async with service.connect() as client:
            assert (await client.request("GET", "/")).status == 200
        nursery.cancel_scope.cancel()


async def test_address_in_use_is_a_plain_oserror(tmp_path: Path) -> None:
    """And nothing was made in the data directory."""
    async with trio.open_nursery() as nursery:
        service, _ = await _start(nursery, Recorder(), _config(tmp_path / "a"))
        host, port = service.address
        config = Config(bind=[f"{host}:{port}"], data_dir=tmp_path / "b")
        with pytest.raises(OSError, match="use"):
            await trioresume.serve(Recorder(), config)
        assert not (tmp_path / "b").exists()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("bind", ["localhost", "127.0.0.1:http", "x:99999", ":-1"])
async def test_address_that_is_none_is_a_caller_error(
    bind: str, tmp_path: Path
) -> None:
    """It says what an address looks like."""
    with pytest.raises(CallerError, match="HOST:PORT"):
        await trioresume.serve(Recorder(), Config(bind=[bind], data_dir=tmp_path))


async def test_service_listens_on_several_addresses(tmp_path: Path) -> None:
    """Each has its URL, with the port that the system chose."""
    config = Config(bind=["127.0.0.1:0", "127.0.0.1:0"], data_dir=tmp_path)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioresume.serve, Recorder(), config)
        assert len(set(server.urls)) == 2
        for url in server.urls:
            host, _, port = url.removeprefix("http://").rpartition(":")
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_shutdown_that_takes_long_can_be_shortened(tmp_path: Path) -> None:
    """A worker that drains has an hour, until its parent ends."""
    config = _config(tmp_path)
    ended = trio.Event()

    async def run(*, task_status: trio.TaskStatus[tuple[Doorman, str]]) -> None:
        async with (
            open_listeners(config) as listeners,
            running_engine(as_target(Recorder()), config) as doorman,
        ):
            begun = (doorman, listeners[0].url)
            await doorman.run(listeners, partial(task_status.started, begun))
        ended.set()

    async with trio.open_nursery() as nursery:
        doorman, url = await nursery.start(run)
        service = SocketService(
            trioresume.Server([url], doorman.stopping, doorman.recovered)
        )
        async with service.connect() as client:
            await client.send(head("POST", "/x", RESUME, length=len(BODY)))
            await client.interim()
            await client.send(BODY[:1000])
            await _until_read(client)
            doorman.end_within(3600)
            await _until_refused(service)
            assert not ended.is_set()
            doorman.end_within(0.1)
            doorman.end_within(3600)  # it stays as short as it is
            with trio.fail_after(30):
                assert (await client.reply()).status == 503
                await ended.wait()
