"""The real command in front of a backend: killed, restarted, and what the backend saw (R31).

The backend runs in the test's process and keeps every byte it was sent.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from tests.e2e.command import Service, free_port
from tests.server.harness import RESUME, Client, Reply, head
from tests.targets.upstream.backend import Backend, Seen, backend, ok

MakeService = Callable[..., Service]

BODY = bytes(range(256)) * 40_000  # more than two chunks


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[Client]:
    """A connection to *service*, which is waited for."""
    with trio.fail_after(60):
        stream = await trio.open_tcp_stream(*service.address)
    try:
        yield Client(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def in_thread(call: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(call)


async def send_all_but_the_answer(
    service: Service, behind: Backend, method: str = "POST"
) -> str:
    """Send BODY, wait until the backend has it, and return where the message will be."""
    async with connected(service) as client:
        await client.send(head(method, "/x", RESUME, length=len(BODY)))
        begun = await client.interim()
        await client.send(BODY)
        with trio.fail_after(60):
            await behind.got.wait()
    return begun.fields.get("response-message-location") or ""


async def message(service: Service, place: str) -> Reply:
    async with connected(service) as client:
        with trio.fail_after(60):
            return await client.request("GET", place, {"Prefer": "wait=20"})


def id_of(place: str) -> str:
    return place.split("/")[-2]


async def retry(service: Service, place: str) -> subprocess.CompletedProcess[str]:
    """Run ``trioresume retry``."""
    command = [sys.executable, "-m", "trioresume", "retry"]
    command += ["--data-dir", str(service.data_dir), id_of(place)]
    return await trio.to_thread.run_sync(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False)
    )


@pytest.mark.parametrize("begun", [b"HTTP/1.1 201 Created\r\nContent-Le", None])
async def test_kill_between_sending_and_recording_is_indeterminate(
    begun: bytes | None, make_service: MakeService
) -> None:
    """In the head of the response, and in its content. Then the administrator retries it."""
    partial = (
        b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\n12345"
        if begun is None
        else begun
    )

    async def hold(seen: Seen, stream: trio.abc.Stream) -> None:
        await stream.send_all(partial)
        await trio.sleep_forever()

    async with backend(hold) as behind:
        service = make_service("--upstream", behind.url)
        await in_thread(service.start)
        place = await send_all_but_the_answer(service, behind)
        await in_thread(service.kill)
        behind.answer = ok(b"at last", "201 Created")
        await in_thread(service.start)
        told = await message(service, place)
        assert told.body.startswith(b"HTTP/1.1 500 ")
        assert b'"code": "indeterminate"' in told.body
        assert len(behind.seen) == 1

        done = await retry(service, place)
        assert (done.returncode, done.stdout) == (0, "The target answered 201.\n"), done
        told = await message(service, place)
        assert told.body.startswith(b"HTTP/1.1 201 ")
        assert told.body.endswith(b"at last")
        assert [seen.body for seen in behind.seen] == [BODY] * 2
        assert len({seen.get("idempotency-key") for seen in behind.seen}) == 1

        refused = await retry(service, place)  # now its outcome is known
        assert refused.returncode == 1
        assert "its response is known" in refused.stderr
        assert len(behind.seen) == 2
        await in_thread(service.stop)


async def test_kill_in_the_middle_of_an_idempotent_request_repeats_it(
    make_service: MakeService,
) -> None:
    """RFC 9110, section 9.2.2: the client finds the response, as if nothing had happened."""

    async def hold(seen: Seen, stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with backend(hold) as behind:
        service = make_service("--upstream", behind.url)
        await in_thread(service.start)
        place = await send_all_but_the_answer(service, behind, "PUT")
        await in_thread(service.kill)
        behind.answer = ok(b"stored")
        await in_thread(service.start)
        told = await message(service, place)
        assert told.body.startswith(b"HTTP/1.1 200 ")
        assert [seen.body for seen in behind.seen] == [BODY] * 2
        await in_thread(service.stop)


async def test_kill_while_a_request_waits_loses_nothing(
    make_service: MakeService,
) -> None:
    """The backend is down, the service is killed, and the backend comes back."""
    port = free_port()
    service = make_service(
        "--upstream", f"http://127.0.0.1:{port}", "--retry-interval", "100ms"
    )
    await in_thread(service.start)
    async with connected(service) as client:
        reply = await client.request("POST", "/x", RESUME, BODY)
        assert (reply.status, reply.code) == (503, "service-unavailable")
    assert service.rows("SELECT state FROM operations") == [("waiting",)]
    listed = await retry(service, reply.message)
    assert listed.returncode == 75, listed
    await in_thread(service.kill)
    async with backend(ok(b"done", "201 Created"), port=port) as behind:
        await in_thread(service.start)
        with trio.fail_after(60):
            await behind.got.wait()
        told = await message(service, reply.message)
        assert told.body.startswith(b"HTTP/1.1 201 ")
        assert [seen.body for seen in behind.seen] == [BODY]
        await in_thread(service.stop)


async def test_retry_says_why_not(make_service: MakeService) -> None:
    """No service, no such upload, an upload that is still receiving."""
    async with backend() as behind:
        service = make_service("--upstream", behind.url)
        place = "/operations/AAAAAAAAAAAAAAAAAAAAAA/message"
        done = await retry(service, place)
        assert done.returncode == 1
        assert "no server is running" in done.stderr
        await in_thread(service.start)
        done = await retry(service, place)
        assert done.returncode == 1
        assert "no operation of this name" in done.stderr
        async with connected(service) as client:
            begun = await client.start(100, b"abc")
            done = await retry(
                service, begun.fields.get("response-message-location") or ""
            )
            assert done.returncode == 1
            assert "receiving" in done.stderr
        assert bytes(behind.received) == b""
        await in_thread(service.stop)
