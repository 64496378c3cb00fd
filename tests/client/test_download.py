"""Downloads through cuts and over several runs, from the service and from other servers."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from trioresume import (
    CallerError,
    Client,
    ClientResponse,
    Config,
    FileService,
    Progress,
    RetryPolicy,
    TransferFailed,
    serve,
)
from trioresume.testing import (
    ChaosProxy,
    ConnectionPlan,
    Direction,
    Fault,
    FaultKind,
    MemoryStore,
    no_faults,
)

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(3 * MIB)


@pytest.fixture
async def proxy() -> AsyncIterator[ChaosProxy]:
    """The service with one file, behind a proxy that cuts."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **started: serve(
                FileService(),
                Config(bind=["127.0.0.1:0"]),
                store=MemoryStore(),
                **started,
            )
        )
        host, _, port = server.urls[0].removeprefix("http://").partition(":")
        async with Client() as client:
            await client.request("PUT", f"{server.urls[0]}/files/a.bin", body=CONTENT)
        async with ChaosProxy((host, int(port))) as made:
            yield made
        nursery.cancel_scope.cancel()


def _cut_each(size: int) -> Callable[[int], ConnectionPlan]:
    plan = ConnectionPlan((Fault(FaultKind.RST, Direction.DOWN, size),))
    return lambda index: plan


def _names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def _impatient() -> Client:
    return Client(retry=RetryPolicy(attempts=0), proxies={})


def _patient() -> Client:
    return Client(retry=RetryPolicy(first_delay=0.01, longest_delay=0.01), proxies={})


async def test_download_goes_on_after_cuts(proxy: ChaosProxy, tmp_path: Path) -> None:
    proxy.schedule = _cut_each(2 * MIB)
    path = tmp_path / "a.bin"
    seen: list[Progress] = []
    async with _patient() as client:
        response = await client.download(
            f"{proxy.url}/files/a.bin", path, on_progress=seen.append
        )
    assert path.read_bytes() == CONTENT
    assert (response.ok, response.attempts, response.saved_to) == (True, 2, path)
    assert response.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert response.is_confirmed
    assert seen[-1].sent == seen[-1].total == len(CONTENT)
    assert seen[-1].transferred < len(CONTENT) + MIB
    assert _names(tmp_path) == ["a.bin"]


async def test_later_run_goes_on_behind_what_is_there(
    proxy: ChaosProxy, tmp_path: Path
) -> None:
    proxy.schedule = _cut_each(2 * MIB)
    path = tmp_path / "a.bin"
    async with _impatient() as client:
        with pytest.raises(TransferFailed, match="are kept") as caught:
            await client.download(f"{proxy.url}/files/a.bin", path)
    assert caught.value.resumable
    assert not path.exists()
    kept = (tmp_path / "a.bin.part").stat().st_size
    assert MIB < kept < 3 * MIB
    proxy.schedule = no_faults
    seen: list[Progress] = []
    async with _impatient() as client:
        await client.download(f"{proxy.url}/files/a.bin", path, on_progress=seen.append)
    assert path.read_bytes() == CONTENT
    assert seen[-1].transferred == len(CONTENT) - kept


async def test_another_version_begins_again(proxy: ChaosProxy, tmp_path: Path) -> None:
    proxy.schedule = _cut_each(2 * MIB)
    path = tmp_path / "a.bin"
    async with _impatient() as client:
        with pytest.raises(TransferFailed):
            await client.download(f"{proxy.url}/files/a.bin", path)
        proxy.schedule = no_faults
        other = CONTENT[::-1]
        await client.request("PUT", f"{proxy.url}/files/a.bin", body=other)
        await client.download(f"{proxy.url}/files/a.bin", path)
    assert path.read_bytes() == other


async def test_bytes_that_are_not_certain_are_not_kept(
    proxy: ChaosProxy, tmp_path: Path
) -> None:
    """As after a loss of power: the file is longer than what was synced, and wrong there."""
    proxy.schedule = _cut_each(2 * MIB)
    path = tmp_path / "a.bin"
    async with _impatient() as client:
        with pytest.raises(TransferFailed):
            await client.download(f"{proxy.url}/files/a.bin", path)
        proxy.schedule = no_faults
        state = tmp_path / "a.bin.part.json"
        record = json.loads(state.read_text())
        record["synced"] = 1000
        state.write_text(json.dumps(record))
        with (tmp_path / "a.bin.part").open("r+b") as part:
            part.seek(1000)
            part.write(bytes(MIB))
        await client.download(f"{proxy.url}/files/a.bin", path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("state", [b"", b"{}", b"[1]", b'{"url": 1, "synced": "x"}'])
async def test_record_that_cannot_be_read_begins_again(
    state: bytes, proxy: ChaosProxy, tmp_path: Path
) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"wrong")
    (tmp_path / "a.bin.part.json").write_bytes(state)
    path = tmp_path / "a.bin"
    async with _impatient() as client:
        await client.download(f"{proxy.url}/files/a.bin", path)
    assert path.read_bytes() == CONTENT


async def test_refusal_leaves_the_old_file(proxy: ChaosProxy, tmp_path: Path) -> None:
    path = tmp_path / "b.bin"
    path.write_bytes(b"old")
    async with _impatient() as client:
        response = await client.download(f"{proxy.url}/files/none.bin", path)
    assert response.status == 404
    assert b"not-found" in response.body or b"404" in response.body
    assert response.saved_to is None
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["b.bin"]


async def test_two_runs_do_not_write_one_file(
    proxy: ChaosProxy, tmp_path: Path
) -> None:
    proxy.schedule = lambda index: ConnectionPlan(
        (Fault(FaultKind.STALL, Direction.DOWN, MIB),)
    )
    path = tmp_path / "a.bin"
    url = f"{proxy.url}/files/a.bin"
    async with _impatient() as client, trio.open_nursery() as nursery:
        begun = trio.Event()
        nursery.start_soon(
            lambda: client.download(url, path, on_progress=lambda _: begun.set())
        )
        await begun.wait()
        with pytest.raises(CallerError, match="another run is downloading"):
            await client.download(url, path)
        nursery.cancel_scope.cancel()


# Servers of other kinds: each answer is written out.


class Scripted:
    """A server that gives one answer for each connection, and notes the requests."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self.requests: list[str] = []
        self.url = ""

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._answer, [listener])

    async def _answer(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = await stream.receive_some()
            if not more:
                return
            head += more
        self.requests.append(head.decode())
        answer = self._answers.pop(0)
        try:
            await stream.send_all(answer)
            await stream.aclose()
        except trio.BrokenResourceError:
            pass


def _answer(
    status: int, body: bytes = b"", length: int | None = None, **fields: str
) -> bytes:
    lines = {"content-length": str(len(body) if length is None else length), **fields}
    head = "".join(
        f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items()
    )
    return f"HTTP/1.1 {status} X\r\nconnection: close\r\n{head}\r\n".encode() + body


def _digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def _downloaded(
    answers: list[bytes], path: Path, *, kept: bytes = b""
) -> tuple[ClientResponse, list[str]]:
    """Download from a server with *answers*; *kept* is there of version ``"1"``."""
    async with trio.open_nursery() as nursery:
        server = Scripted(answers)
        await nursery.start(server.serve)
        url = f"{server.url}/a"
        if kept:
            path.with_name(f"{path.name}.part").write_bytes(kept)
            state = {"url": url, "validator": '"1"', "synced": len(kept)}
            path.with_name(f"{path.name}.part.json").write_text(json.dumps(state))
        try:
            async with _patient() as client:
                with trio.fail_after(20):
                    return await client.download(url, path), server.requests
        finally:
            nursery.cancel_scope.cancel()
    raise AssertionError


async def test_the_rest_is_asked_for_of_the_same_version(tmp_path: Path) -> None:
    path = tmp_path / "a"
    rest = _answer(206, b"def", content_range="bytes 3-5/6", etag='"1"')
    _, requests = await _downloaded([rest], path, kept=b"abc")
    assert path.read_bytes() == b"abcdef"
    assert "range: bytes=3-\r\n" in requests[0].lower()
    assert 'if-range: "1"\r\n' in requests[0].lower()


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (_answer(206, b"xyz", content_range="bytes 0-2/6"), "another part"),
        (_answer(206, b"xyz"), "no range"),
        (_answer(503, retry_after="0"), "busy"),
        (_answer(200, b"<p>Log in", content_type="text/html"), "a portal's page"),
        (b"", "no answer"),
        (b"garbage\r\n\r\n", "garbage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_answer_that_does_not_fit_is_tried_again(
    first: bytes, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    rest = _answer(206, b"def", content_range="bytes 3-5/6")
    _, requests = await _downloaded([first, rest], path, kept=b"abc")
    assert path.read_bytes() == b"abcdef"
    assert len(requests) == 2


async def test_server_without_ranges_sends_all_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    whole = _answer(200, b"ABCDEF", etag='"2"')
    await _downloaded([whole], path, kept=b"abc")
    assert path.read_bytes() == b"ABCDEF"


async def test_all_was_there_already(tmp_path: Path) -> None:
    path = tmp_path / "a"
    await _downloaded([_answer(416, content_range="bytes */3")], path, kept=b"abc")
    assert path.read_bytes() == b"abc"


async def test_more_was_there_than_the_server_has(tmp_path: Path) -> None:
    path = tmp_path / "a"
    answers = [_answer(416, content_range="bytes */2"), _answer(200, b"AB")]
    await _downloaded(answers, path, kept=b"abc")
    assert path.read_bytes() == b"AB"


async def test_wrong_digest_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a"
    answer = _answer(200, b"abc", repr_digest=_digest(b"abd"))
    with pytest.RaisesGroup(
        pytest.RaisesExc(TransferFailed, match="the content is damaged")
    ):
        await _downloaded([answer], path)
    assert _names(tmp_path) == []


async def test_content_without_a_length_ends_with_the_connection(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
    response, _ = await _downloaded([answer], path)
    assert path.read_bytes() == b"abc"
    assert not response.is_confirmed


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_followed(status: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    answers = [_answer(status, location="/b"), _answer(200, b"abc")]
    response, requests = await _downloaded(answers, path)
    assert path.read_bytes() == b"abc"
    assert requests[1].startswith("GET /b ")
    assert response.url.endswith("/b")


async def test_redirect_to_a_stranger_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    answer = _answer(302, location="http://127.0.0.2:9/")
    response, _ = await _downloaded([answer], path)
    assert response.status == 302
    assert not path.exists()


@pytest.mark.parametrize("size", [1, MIB])
async def test_cut_content_is_never_taken_for_whole(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    body = bytes(size)
    cut = _answer(200, body, length=size + 3, etag='"1"')
    rest = _answer(206, b"end", content_range=f"bytes {size}-{size + 2}/{size + 3}")
    _, requests = await _downloaded([cut, rest], path)
    assert path.read_bytes() == body + b"end"
    assert f"range: bytes={size}-\r\n" in requests[1].lower()
