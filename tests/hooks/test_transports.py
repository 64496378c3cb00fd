"""The transports, against real receivers: good, slow, wrong, huge, down, and repeating."""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import trio

from tests.hooks.receivers import HTTPReceiver, Posted, hooks, until
from tests.server.harness import SocketService, socket_service
from trioresume import (
    CallerError,
    ExecutableHooks,
    FileService,
    HookEvent,
    HookFailed,
    HookKind,
    HTTPHooks,
)
from trioresume.hooks.answers import parse_answer

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
DOCUMENT = {
    "Type": "post-finish",
    "Event": {
        "Upload": {"ID": "abc", "Offset": 7, "Size": 9},
        "HTTPRequest": {"Header": {"X-A": ["1", "2"], "Cookie": ["c"]}},
    },
}
EVENT = HookEvent(HookKind.POST_FINISH, "msg_1", json.dumps(DOCUMENT).encode())


def ok(post: Posted) -> tuple[int, bytes]:
    return 200, b"{}"


@asynccontextmanager
async def told(
    receiver: HTTPReceiver | Path, tmp_path: Path, **settings: Any
) -> AsyncIterator[SocketService]:
    """A service on sockets, with a catalog on disk, that tells *receiver*."""
    transport = (
        ExecutableHooks(receiver)
        if isinstance(receiver, Path)
        else HTTPHooks(receiver.url)
    )
    told_by = hooks(transport, **{"backoff": 0.05, "timeout": 5.0, **settings})
    async with socket_service(
        FileService(), tmp_path / "data", hooks=told_by
    ) as service:
        yield service


async def test_request_is_signed_as_standard_webhooks_prescribe(tmp_path: Path) -> None:
    """The library of the specification verifies it, with each of the secrets."""
    newer = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    secrets = tmp_path / "secrets"
    secrets.write_text(f"{SECRET}\n{newer}\n")
    async with HTTPReceiver(ok).running() as receiver:
        transport = HTTPHooks(
            receiver.url, secret_file=secrets, forward_headers=["X-A"]
        )
        async with transport.running():
            await transport.call(EVENT, time.time())
    post = receiver.posts[-1]
    assert post.fields.get("webhook-id") == "msg_1"
    assert post.fields.get_all("x-a") == ["1", "2"]
    assert post.fields.get("cookie") is None
    assert post.fields.get("content-type") == "application/json"
    for secret in (SECRET, newer):
        verifier = standardwebhooks.Webhook(secret)
        assert verifier.verify(post.body, dict(post.fields)) == DOCUMENT
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(post.body + b" ", dict(post.fields))


async def test_secrets_are_read_again(tmp_path: Path) -> None:
    """A file that cannot be used changes nothing."""
    secrets = tmp_path / "secrets"
    secrets.write_text(SECRET)
    transport = HTTPHooks("http://127.0.0.1:1/", secret_file=secrets)
    before = transport._signed(EVENT, 1)
    for wrong in ("", "whsec_x", "whsec_" + base64.b64encode(b"short").decode()):
        secrets.write_text(wrong)
        with pytest.raises(CallerError):
            transport.reload()
        assert transport._signed(EVENT, 1) == before
    secrets.write_text(base64.b64encode(bytes(24)).decode())
    transport.reload()
    assert transport._signed(EVENT, 1) != before


@pytest.mark.parametrize(
    "answer",
    [
        (404, b""),
        (500, b""),
        (302, b""),
        (200, b"not json"),
        (200, b"[1]"),
        (200, b'{"x": "' + b"x" * 6000 + b'"}'),
        (200, b" " * 200_000),
        None,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=range(11),
)
async def test_answer_that_is_none_is_a_failed_attempt(answer: Any) -> None:
    """And nothing of it is believed."""
    async with HTTPReceiver(lambda _: answer).running() as receiver:
        transport = HTTPHooks(receiver.url)
        with pytest.raises(HookFailed):
            parse_answer(await transport.call(EVENT, 0.0))


async def test_receiver_that_is_down_gets_everything_once_it_is_back(
    tmp_path: Path,
) -> None:
    """In order, with the same ids for what it has to be told again."""
    receiver = HTTPReceiver(lambda post: None)
    events = ["post-create", "post-finish"]
    async with receiver.running(), told(receiver, tmp_path, events=events) as service:
        async with service.connect() as client:
            reply = await client.request("POST", "/files/", (), b"content")
            assert reply.status == 201  # nobody waits for the receiver
        await receiver.until(lambda: len(receiver.posts) >= 3)
        receiver.answer = ok
        await receiver.until(lambda: "post-finish" in receiver.kinds)
    ids = [post.document["ID"] for post in receiver.posts]
    assert receiver.kinds == ["post-create"] * (len(ids) - 1) + ["post-finish"]
    assert len(set(ids)) == 2


async def test_silent_receiver_of_a_question_is_a_503(tmp_path: Path) -> None:
    """Its client does not wait for ever."""
    receiver = HTTPReceiver(ok)
    receiver.silent = True
    async with (
        receiver.running(),
        told(receiver, tmp_path, events=["pre-create"], timeout=0.2) as service,
        service.connect() as client,
    ):
        reply = await client.request("POST", "/files/", (), b"content")
        assert (reply.status, reply.code) == (503, "service-unavailable")


async def test_receiver_that_repeats_its_answers_is_heard_once(tmp_path: Path) -> None:
    """A second response on the connection belongs to no request."""
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    reject = b'{"RejectUpload":true}'
    two = one + b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n" + reject
    receiver = HTTPReceiver(lambda _: two)
    async with (
        receiver.running(),
        told(receiver, tmp_path, events=["pre-create"]) as service,
    ):
        for _ in range(3):
            async with service.connect() as client:
                reply = await client.request("POST", "/files/", (), b"content")
                assert reply.status == 201


# Executables.


def script(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


async def test_executable_gets_what_tusd_gives(tmp_path: Path) -> None:
    """Its input, its environment, and its output."""
    script(
        tmp_path,
        "post-finish",
        'cat > input; echo "$TUS_ID $TUS_OFFSET $TUS_SIZE" > env;'
        """ echo '{"HTTPResponse": {"StatusCode": 201}}'""",
    )
    answer = await ExecutableHooks(tmp_path).call(EVENT, 0.0)
    assert json.loads((tmp_path / "input").read_text()) == DOCUMENT
    assert (tmp_path / "env").read_text() == "abc 7 9\n"
    response = parse_answer(answer).response
    assert response is not None
    assert response.status == 201


async def test_event_without_executable_is_nobodys(tmp_path: Path) -> None:
    """That is no failure."""
    assert await ExecutableHooks(tmp_path).call(EVENT, 0.0) is None


@pytest.mark.parametrize(
    "text",
    [
        "exit 3",
        "kill -9 $$",
        "yes | head -c 200000",
        "yes | head -c 200000 >&2; exit 0",
    ],
)
async def test_executable_that_fails_is_a_failed_attempt(
    text: str, tmp_path: Path
) -> None:
    """Also one that prints without end."""
    script(tmp_path, "post-finish", text)
    with pytest.raises(HookFailed):
        await ExecutableHooks(tmp_path).call(EVENT, 0.0)


async def test_executable_that_cannot_be_run_is_a_failed_attempt(
    tmp_path: Path,
) -> None:
    """As one without the right to execute it."""
    (tmp_path / "post-finish").write_text("#!/nowhere\n")
    os.chmod(tmp_path / "post-finish", 0o700)
    with pytest.raises(HookFailed):
        await ExecutableHooks(tmp_path).call(EVENT, 0.0)


async def test_executable_that_reads_nothing_is_no_failure(tmp_path: Path) -> None:
    """Whatever the size of its input."""
    script(tmp_path, "post-finish", "exit 0")
    large = HookEvent(
        EVENT.kind, "m", json.dumps({**DOCUMENT, "x": "x" * 300_000}).encode()
    )
    assert await ExecutableHooks(tmp_path).call(large, 0.0) == b""


async def test_cancelled_executable_is_killed_with_its_children(tmp_path: Path) -> None:
    """Nothing of it is left running."""
    script(tmp_path, "post-finish", "sleep 1000 & echo $! > child; echo $$ > own; wait")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await ExecutableHooks(tmp_path).call(EVENT, 0.0)

            nursery.start_soon(call)
            own = tmp_path / "own"
            await until(lambda: own.exists() and own.read_text() != "")
            scope.cancel()
    for name in ("own", "child"):
        pid = int((tmp_path / name).read_text())
        await until(partial(_is_over, pid))


def _is_over(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_service_tells_executables(tmp_path: Path) -> None:
    """A whole upload, through a catalog on disk."""
    directory = tmp_path / "hooks"
    directory.mkdir()
    script(directory, "pre-create", """echo '{"ChangeFileInfo": {"ID": "named"}}'""")
    script(directory, "post-finish", "cat > got.tmp && mv got.tmp got")
    async with told(directory, tmp_path) as service, service.connect() as client:
        reply = await client.request("POST", "/files/", (), b"content")
        assert reply["location"] == "/files/named"
        await until((directory / "got").exists)
    got = json.loads((directory / "got").read_text())
    assert got["Event"]["Upload"]["Storage"]["Path"] == "named"
