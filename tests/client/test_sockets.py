"""The client over real sockets: files, a link that misbehaves, runs that end early."""

from __future__ import annotations

import errno
import os
import random
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

import trioresume
from tests.client.peer import Dialogue, Model, modelled, scripted
from trioresume import Config, ProcessingProgress, Request, Response
from trioresume.client import BodyInput, Client, Journal, Progress, RetryPolicy
from trioresume.client.client import Client as ClientImplementation
from trioresume.errors import CallerError, TransferFailed
from trioresume.testing import (
    ChaosProxy,
    Direction,
    Fault,
    FaultKind,
    MemoryStore,
    random_faults,
    scripted_faults,
)

MIB = 1 << 20
PATIENT = RetryPolicy(attempts=100, first_delay=0.01, longest_delay=0.05)


class Service:
    """What a handler saw, and where to reach it."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.url = ""

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    async def handle(self, request: Request) -> Response:
        content = b"".join([block async for block in request.body])
        if request.method != "OPTIONS":  # a question what the server speaks
            self.contents.append(content)
        return Response(201, {"X-Length": str(len(content))}, content[::-1][:5000])


@asynccontextmanager
async def serving(service: Service | None = None) -> AsyncIterator[Service]:
    """The real server on a free port, its store in memory."""
    service = service or Service()
    config = Config(bind=["127.0.0.1:0"], grace_timeout=0.1)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **started: trioresume.serve(
                service.handle, config, store=MemoryStore(), **started
            )
        )
        service.url = server.urls[0]
        yield service
        server.shutdown()


def file_of(directory: Path, size: int) -> tuple[Path, bytes]:
    data = random.Random(size).randbytes(size)
    path = directory / f"{size}.bin"
    path.write_bytes(data)
    return path, data


async def test_file_goes_through_a_link_that_is_cut_at_random(tmp_path: Path) -> None:
    """FIN and RST, in head, body and response: every request is processed once."""
    path, data = file_of(tmp_path, 3 * MIB)

    async def once(number: int, url: str) -> None:
        async with Client(retry=PATIENT, random=random.Random(number)) as c:
            response = await c.request("POST", url, body=path)
        assert response.status == 201
        assert response.headers.get("x-length") == str(len(data))
        assert response.body == data[::-1][:5000]

    async with serving() as service:
        faults = random_faults(11, mean_bytes=MIB // 2, limit=60)
        async with ChaosProxy(service.address, faults) as proxy:
            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(once, number, proxy.url)
            assert proxy.totals.cuts > 10
    assert service.contents == [data] * 6


async def test_stalled_connection_is_taken_over(tmp_path: Path) -> None:
    """R21: the old connection stays open and silent; the new one wins."""
    path, data = file_of(tmp_path, MIB)
    stall = scripted_faults([Fault(FaultKind.STALL, Direction.UP, 300_000)])
    async with serving() as service, ChaosProxy(service.address, stall) as proxy:
        async with Client(retry=PATIENT, idle_timeout=0.3) as c:
            response = await c.request("POST", proxy.url, body=path)
        assert response.attempts == 2
        assert proxy.totals.stalls == 1
    assert service.contents == [data]


async def test_only_what_is_missing_is_sent_again(tmp_path: Path) -> None:
    """A cut costs what was on its way, not what had arrived."""
    path, data = file_of(tmp_path, 20 * MIB)
    cuts = [Fault(FaultKind.FIN, Direction.UP, 5 * MIB), None] * 3
    async with serving() as service:
        async with ChaosProxy(service.address, scripted_faults(cuts)) as proxy:
            async with Client(retry=PATIENT) as c:
                response = await c.request("POST", proxy.url, body=path)
    assert service.contents == [data]
    # Socket buffers on both sides of the proxy hold some megabytes at most.
    assert response.bytes_resent < 15 * MIB


async def test_cancelled_upload_goes_on_in_the_next_run(tmp_path: Path) -> None:
    """The journal is up to date at any moment; the rest is all that is sent."""
    path, data = file_of(tmp_path, 4 * MIB)
    journal = Journal(tmp_path / "journal")
    async with serving() as service, ChaosProxy(service.address) as proxy:
        with trio.CancelScope() as scope:
            async with Client(journal=journal, limit_rate=8 * MIB) as c:

                def stop(progress: Progress) -> None:
                    if progress.sent > 2 * MIB:
                        scope.cancel()

                await c.request("POST", proxy.url, body=path, on_progress=stop)
        assert scope.cancelled_caught
        assert service.contents == []
        async with Client(journal=Journal(tmp_path / "journal")) as c:
            response = await c.request("POST", proxy.url, body=path)
        assert response.status == 201
        assert proxy.totals.bytes_up < 5.5 * MIB
        # Finished, so it is forgotten: the same again is another upload.
        async with Client(journal=journal) as c:
            await c.request("POST", proxy.url, body=path)
    assert service.contents == [data, data]
    assert remaining(tmp_path / "journal") == []


async def test_changed_file_is_uploaded_from_its_start(tmp_path: Path) -> None:
    """What an earlier run left is of no use then."""
    path, _ = file_of(tmp_path, 4 * MIB)
    journal = Journal(tmp_path / "journal")
    async with serving() as service:
        with trio.CancelScope() as scope:
            async with Client(journal=journal, limit_rate=8 * MIB) as c:
                await c.request(
                    "POST",
                    service.url,
                    body=path,
                    on_progress=lambda p: p.sent > MIB and scope.cancel(),
                )
        replace(path, b"something else")
        async with Client(journal=journal) as c:
            await c.request("POST", service.url, body=path)
    assert service.contents == [b"something else"]


async def test_same_file_to_the_same_url_twice_at_once_is_refused(
    tmp_path: Path,
) -> None:
    """R21: the two would take the upload from each other."""
    path, _ = file_of(tmp_path, MIB)
    async with serving() as service:
        async with Client(journal=Journal(tmp_path / "j"), limit_rate=MIB) as c:
            async with trio.open_nursery() as nursery:
                began = trio.Event()
                nursery.start_soon(
                    lambda: c.request(
                        "PUT", service.url, body=path, on_progress=lambda _: began.set()
                    )
                )
                await began.wait()
                with pytest.raises(CallerError, match="another run"):
                    await c.request("PUT", service.url, body=path)
                nursery.cancel_scope.cancel()


async def test_failed_run_can_be_resumed(tmp_path: Path) -> None:
    """TransferFailed says so, and the journal keeps the entry."""
    path, data = file_of(tmp_path, 2 * MIB)
    journal = Journal(tmp_path / "journal")
    impatient = RetryPolicy(attempts=2, first_delay=0.0, longest_delay=0.0)
    cuts = [Fault(FaultKind.RST, Direction.UP, MIB)]
    cuts += [Fault(FaultKind.RST, Direction.UP, 0)] * 2
    async with serving() as service:
        async with ChaosProxy(service.address, scripted_faults(cuts)) as proxy:
            async with Client(journal=journal, retry=impatient) as c:
                with pytest.raises(TransferFailed) as caught:
                    await c.request("POST", proxy.url, body=path)
                assert caught.value.resumable
                response = await c.request("POST", proxy.url, body=path)
    assert response.status == 201
    assert service.contents == [data]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_without_sendfile_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Some file systems and some sockets cannot do it."""
    path, data = file_of(tmp_path, 3 * MIB)

    def refuse(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "sendfile", refuse)
    async with serving() as service, Client() as c:
        await c.request("POST", service.url, body=path)
    assert service.contents == [data]


async def test_file_goes_over_streams_that_are_no_sockets(tmp_path: Path) -> None:
    """TLS will be such a one."""
    path, data = file_of(tmp_path, 2 * MIB + 5)
    model = Model(len_of)
    async with modelled(model) as peer, Client(connector=peer) as c:
        response = await c.request("POST", "http://peer.test/target", body=path)
    assert response.body == str(len(data)).encode()
    assert model.processed == [data]


def len_of(content: bytes) -> bytes:
    return str(len(content)).encode()


@pytest.mark.parametrize("kind", ["path", "file", "iterable"])
async def test_memory_does_not_grow_with_the_content(tmp_path: Path, kind: str) -> None:
    """A file, sparse here, is never in memory; an iterable no further than its window."""
    path = tmp_path / "sparse"
    size = 100 * MIB
    make_sparse(path, size)

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(MIB)

    async def discard(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        received = told = 0
        while received < size:
            received += len(await stream.receive_some(65536))
            if received >= told + MIB // 2:
                told = received
                await stream.send_all(
                    b"HTTP/1.1 100 Continue\r\nAcknowledge: %d\r\n\r\n" % told
                )
        await stream.send_all(
            b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 0\r\n\r\n'
        )

    make: dict[str, Callable[[], BodyInput]] = {
        "path": lambda: path,
        "file": lambda: path.open("rb"),
        "iterable": blocks,
    }
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, discard, 0)
        port = listeners[0].socket.getsockname()[1]
        url = f"http://127.0.0.1:{port}/"
        async with Client(protocol="seed", buffer_size=2 * MIB) as c:
            body = make[kind]()
            tracemalloc.start()
            try:
                response = await c.request("PUT", url, body=body)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        nursery.cancel_scope.cancel()
    assert response.status == 200
    assert peak < 8 * MIB
    if not isinstance(body, Path | AsyncIterator):
        body.close()  # type: ignore[union-attr]


async def test_many_requests_share_few_connections() -> None:
    """A connection is used again when its exchange came to a proper end."""
    async with serving() as service:
        async with ChaosProxy(service.address) as proxy, Client() as c:
            for number in range(20):
                body = random.Random(number).randbytes(5000 * number)
                assert (await c.request("POST", proxy.url, body=body)).status == 201
            assert proxy.totals.connections == 1


async def test_server_that_closed_an_idle_connection_costs_no_retry() -> None:
    """Its FIN is seen before the connection is used again."""

    async def once(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200)

    no_retries = RetryPolicy(attempts=0)
    async with serving() as service:
        fault = Fault(FaultKind.FIN, Direction.DOWN, 10**9)
        async with ChaosProxy(service.address, scripted_faults([fault])) as proxy:
            async with Client(retry=no_retries) as c:
                assert (await c.request("GET", proxy.url)).status == 201
                proxy.cut_all(FaultKind.FIN)
                await proxy.wait_idle()
                assert (await c.request("GET", proxy.url)).status == 201
    # In memory nobody can tell beforehand; there a retry is spent.
    async with scripted(once, once) as peer:
        async with ClientImplementation(connector=peer, retry=PATIENT) as c:
            for _ in range(2):
                assert (await c.request("GET", "http://peer.test/")).status == 200


async def test_unknown_host_is_told_at_once() -> None:
    """A typing error is not cured by patience; a name that once existed may be back."""

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *args: object, **kwargs: object) -> list[object]:  # type: ignore[override]
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *args: object, **kwargs: object) -> tuple[str, str]:
            raise AssertionError("no address is looked up backwards")

    trio.socket.set_custom_hostname_resolver(Resolver())
    async with Client() as c:
        with pytest.raises(TransferFailed, match="not known") as caught:
            await c.request("POST", "http://nowhere.test/", body=b"x")
    assert caught.value.resumable


def remaining(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def replace(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


async def test_surplus_response_that_comes_later_answers_no_later_request() -> None:
    """It arrives while the connection is idle, which is closed then."""
    came = trio.Event()
    served = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal served
        served += 1
        await stream.receive_some(65536)
        own = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown"
        await stream.send_all(own)
        if served == 1:
            await trio.sleep(0.1)
            await stream.send_all(own.replace(b"own", b"odd"))
            came.set()
        with suppress(trio.BrokenResourceError):  # it closes with that unread
            await stream.receive_some(65536)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        async with Client(protocol="seed") as c:
            assert (await c.request("GET", url)).body == b"own"
            await came.wait()
            await trio.sleep(0.1)
            assert (await c.request("GET", url)).body == b"own"
        nursery.cancel_scope.cancel()
    assert served == 2


async def test_processing_is_told_across_a_cut(tmp_path: Path) -> None:
    """B10: to the sender of the request, and after a cut to who asks for the answer."""
    path, _ = file_of(tmp_path, MIB)
    seen: list[Progress] = []
    cut, both = trio.Event(), trio.Event()

    async def handle(request: Request) -> Response:
        await request.body.read()
        await request.progress(1, 3, "one")
        await cut.wait()
        await request.progress(2, 3, "zwei \u00fc")
        await both.wait()
        return Response(200, body=b"done")

    def note(progress: Progress) -> None:
        seen.append(progress)
        if progress.processing is not None and not cut.is_set():
            cut.set()
            proxy.cut_all()
        if progress.processing is not None and progress.processing.done == 2:
            both.set()

    config = Config(bind=["127.0.0.1:0"], grace_timeout=0.1, acknowledge_interval=0.01)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **started: trioresume.serve(
                handle, config, store=MemoryStore(), **started
            )
        )
        parts = urlsplit(server.urls[0])
        assert parts.hostname is not None
        assert parts.port is not None
        async with (
            ChaosProxy((parts.hostname, parts.port), scripted_faults([])) as proxy,
            Client(retry=PATIENT) as client,
        ):
            response = await client.request(
                "POST", proxy.url, body=path, on_progress=note
            )
        server.shutdown()
    assert (response.status, response.body) == (200, b"done")
    told = [p.processing for p in seen if p.processing is not None]
    assert ProcessingProgress(1, 3, "one") in told
    assert told[-1] == ProcessingProgress(2, 3, "zwei \u00fc")
    assert all(p.sent == MIB for p in seen if p.processing is not None)


async def test_nobody_is_asked_for_progress_that_is_not_shown() -> None:
    """B10: without *on_progress* the server is not asked to send anything."""
    wishes: list[str | None] = []

    async def handle(request: Request) -> Response:
        wishes.extend(request.headers.get_all("prefer"))
        return Response(200)

    config = Config(bind=["127.0.0.1:0"], grace_timeout=0.1)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **started: trioresume.serve(
                handle, config, store=MemoryStore(), **started
            )
        )
        async with Client() as client:
            await client.request("POST", server.urls[0], body=b"x")
            assert not any("processing" in (wish or "") for wish in wishes)
            await client.request(
                "POST", server.urls[0], body=b"x", on_progress=lambda _: None
            )
            assert "processing" in wishes
        server.shutdown()
