"""``trioresume serve --app``: killed while the application runs, and over TLS and HTTP/2."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.carriers import HTTP1_TLS, HTTP2, Carrier
from tests.e2e.command import Service
from tests.server.harness import RESUME, Client, head

MakeService = Callable[..., Service]
Message = MutableMapping[str, Any]

BODY = bytes(range(256)) * 20_000  # more than a chunk
FINISHED = "finished"
"""In the folder of the log: requests are answered."""


async def app(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Log the digest of each request, in the file that it names; answer if that is wanted."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    fields = {bytes(name): bytes(value) for name, value in scope["headers"]}
    log = Path(fields[b"x-log"].decode())
    digest = hashlib.sha256()
    while True:
        message = await receive()
        digest.update(message.get("body", b""))
        if not message.get("more_body"):
            break
    if note(log, f"{scope['method']} {scope['path']} {digest.hexdigest()}"):
        await trio.sleep_forever()
    body = digest.hexdigest().encode()
    start = {"type": "http.response.start", "status": 201, "headers": []}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def note(log: Path, line: str) -> bool:
    """Append *line*; return whether no answer is wanted."""
    with log.open("a") as file:
        file.write(f"{line}\n")
    return not log.with_name(FINISHED).exists()


def calls(log: Path) -> list[str]:
    return log.read_text().splitlines()


def wait_for_a_call(log: Path) -> None:
    deadline = time.monotonic() + 60
    while not calls(log):
        assert time.monotonic() < deadline
        time.sleep(0.02)


WHOLE = f"POST /x {hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app" / "log"
    path.parent.mkdir()
    path.touch()
    return path


def application(make_service: MakeService, *options: str) -> Service:
    return make_service(
        *("--app", "tests.e2e.test_applications:app", "--app-loop", "trio"), *options
    )


async def connect(service: Service) -> trio.SocketStream:
    with trio.fail_after(60):
        return await trio.open_tcp_stream(*service.address)


async def retry(service: Service, id: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trioresume", "retry"]
    command += ["--data-dir", str(service.data_dir), id]
    return await trio.to_thread.run_sync(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False)
    )


async def test_kill_while_the_application_runs_is_indeterminate(
    log: Path, make_service: MakeService
) -> None:
    """R31: it is called once. The administrator may have it called once more."""
    service = application(make_service)
    await trio.to_thread.run_sync(service.start)
    async with await connect(service) as stream:
        client = Client(stream)
        fields = {**dict(RESUME), "X-Log": str(log)}
        await client.send(head("POST", "/x", fields, length=len(BODY)))
        begun = await client.interim()
        await client.send(BODY)
        await trio.to_thread.run_sync(wait_for_a_call, log)
        await trio.to_thread.run_sync(service.kill)
    place = begun.fields.get("response-message-location") or ""
    log.with_name(FINISHED).touch()
    await trio.to_thread.run_sync(service.start)
    for _ in range(2):  # and it stays so
        async with await connect(service) as stream:
            told = await Client(stream).request("GET", place, {"Prefer": "wait=20"})
        assert told.body.startswith(b"HTTP/1.1 500 ")
        assert b'"code": "indeterminate"' in told.body
    assert calls(log) == [WHOLE]

    done = await retry(service, place.split("/")[-2])
    assert (done.returncode, done.stdout) == (0, "The target answered 201.\n"), done
    async with await connect(service) as stream:
        told = await Client(stream).request("GET", place)
    assert told.body.startswith(b"HTTP/1.1 201 ")
    assert calls(log) == [WHOLE] * 2
    await trio.to_thread.run_sync(service.stop)


@pytest.mark.parametrize("carrier", [HTTP1_TLS, HTTP2], ids=str)
async def test_upload_to_an_application_is_resumed_over_any_carrier(
    carrier: Carrier, log: Path, tmp_path: Path, make_service: MakeService
) -> None:
    """With TLS, and with HTTP/2 over it: cut in the middle, then called once."""
    log.with_name(FINISHED).touch()
    service = application(make_service, *carrier.options(tmp_path))
    await trio.to_thread.run_sync(service.start)
    fields = {**dict(RESUME), "X-Log": str(log)}
    plain = await connect(service)
    async with plain:
        client = Client(await carrier.over(plain))
        await client.send(head("POST", "/x", fields, length=len(BODY)))
        begun = await client.interim()
        await client.send(BODY[: len(BODY) // 2])
    place = begun.fields.get("request-content-location") or ""
    plain = await connect(service)
    async with plain:
        client = Client(await carrier.over(plain))
        with trio.fail_after(60):
            shown = await client.request("HEAD", place)
            at = int(shown["upload-offset"])
            reply = await client.patch(place, at, BODY[at:], len(BODY))
        assert reply.status == 201
        assert reply.body.decode() == WHOLE.rsplit(maxsplit=1)[-1]
        try:
            await client.stream.aclose()
        except (trio.BrokenResourceError, ssl.SSLError):
            pass  # the service need not say good-bye
    assert calls(log) == [WHOLE]
    await trio.to_thread.run_sync(service.stop)
