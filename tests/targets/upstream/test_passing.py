"""Requests that stream through: nothing is stored, nothing waits for the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.server.harness import chunked, head
from tests.targets.upstream.backend import Seen, backend, ok, raw
from tests.targets.upstream.test_once import BODY, LARGE, dead_end, front, hang_up

UPGRADE = {"Connection": "keep-alive, Upgrade", "Upgrade": "websocket"}
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
)


def files(path: Path) -> int:
    """How many files of content there are."""
    folders = [path / "data" / "tails", path / "data" / "chunks"]
    return sum(len(names) for each in folders for _, _, names in os.walk(each))


async def test_small_request_is_passed_through_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    """No file, no record, no key; a larger one is received first."""
    async with backend() as behind:
        async with front(tmp_path, behind.url, pass_through_size=100) as service:
            async with service.connect() as client:
                for body in (b"", b"x" * 100):
                    reply = await client.request("POST", "/small", {}, body)
                    assert (reply.status, reply.body) == (200, b"done")
                reply = await client.request("DELETE", "/small")
                assert reply.status == 200
                assert files(tmp_path) == 0
                await client.request("POST", "/large", {}, b"x" * 101)
        *small, large = behind.seen
        assert [len(seen.body) for seen in small] == [0, 100, 0]
        assert [seen.get("content-length") for seen in small] == ["0", "100", None]
        assert not any(seen.get("idempotency-key") for seen in small)
        assert large.get("idempotency-key") is not None


async def test_content_is_passed_on_while_it_arrives(tmp_path: Path) -> None:
    """The backend has the head and the first bytes before the last."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            fields = {"Expect": "100-continue"}
            await client.send(head("POST", "/", fields, length=6))
            assert (await client.interim()).status == 100
            await client.send(b"abc")
            while not bytes(behind.received).endswith(b"abc"):
                await behind.came.wait()
            assert behind.seen == []
            await client.send(b"def")
            assert (await client.reply()).status == 200
        assert behind.seen[0].body == b"abcdef"


@pytest.mark.parametrize("framed", [False, True])
async def test_response_streams_as_fast_as_it_is_read(
    framed: bool, tmp_path: Path
) -> None:
    """The head comes before the content, each block as it is made, and no faster."""
    more = trio.Event()
    sent = 0
    block = bytes(64 * 1024)
    total = 64 * 1024 * 1024

    async def stream_out(seen: Seen, stream: trio.abc.Stream) -> None:
        nonlocal sent
        length = f"Content-Length: {total}" if framed else "Transfer-Encoding: chunked"
        await stream.send_all(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
        await more.wait()
        while sent < total:
            data = block if framed else b"10000\r\n" + block + b"\r\n"
            await stream.send_all(data)
            sent += len(block)
        if not framed:
            await stream.send_all(b"0\r\n\r\n")

    async with backend(stream_out) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            await client.send(head("GET", "/events"))
            begun = await client.stream.receive_some(65536)
            assert begun.startswith(b"HTTP/1.1 200 OK\r\n")
            more.set()
            before = -1
            while before != sent:
                before = sent
                await trio.sleep(0.2)  # a reader that pauses: it settles
            assert sent < total / 2
            received = 0
            while received < total:
                received += len(await client.stream.receive_some(1024 * 1024))
        assert sent == total


async def test_client_that_goes_away_ends_the_request_behind(tmp_path: Path) -> None:
    """While the backend thinks, and while it is sending."""

    async def think(seen: Seen, stream: trio.abc.Stream) -> None:
        if seen.target == "/stream":
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        await stream.receive_some(1)
        behind.left.set()

    for target in ("/think", "/stream"):
        async with backend(think) as behind:
            async with front(tmp_path / target[1:], behind.url) as service:
                async with service.connect() as client:
                    await client.send(head("GET", target))
                    await behind.got.wait()
                    if target == "/stream":
                        await client.stream.receive_some(65536)
                await behind.left.wait()


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    """The watch over the client keeps what it reads for the next request."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            await client.send(head("GET", "/1") + head("POST", "/2", length=2) + b"ab")
            await client.send(head("GET", "/3"))
            for _ in range(3):
                assert (await client.reply()).status == 200
        assert [seen.target for seen in behind.seen] == ["/1", "/2", "/3"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PROPFIND", "DELETE"])
async def test_every_method_passes(method: str, tmp_path: Path) -> None:
    """With its fields, and with a response that has no content where that is the rule."""
    answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Own: 1\r\n\r\n")
    full = ok(b"done", fields=("X-Own: 1", "Allow: GET"))
    async with backend(answer if method == "HEAD" else full) as behind:
        async with front(tmp_path, behind.url) as service:
            async with service.connect() as client:
                for _ in range(2):
                    reply = await client.request(method, "/x")
                    assert (reply.status, reply["x-own"]) == (200, "1")
                    assert reply["content-length"] == "4"
        assert [seen.method for seen in behind.seen] == [method] * 2


async def test_options_that_the_backend_does_not_know_is_answered_here(
    tmp_path: Path,
) -> None:
    """C17: what comes of the backend's own answer is dropped, with its connection."""
    large = ok(LARGE, "405 Method Not Allowed", ("Allow: GET",))
    async with backend(large) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            for _ in range(2):
                reply = await client.request("OPTIONS", "/x")
                assert (reply.status, reply["allow"]) == (200, "GET")
                assert reply.get("upload-limit") is not None


@pytest.mark.parametrize("body", [b"", b"small"])
async def test_backend_that_is_down_is_a_503(body: bytes, tmp_path: Path) -> None:
    """Nothing is kept: the client has everything it needs for another try."""
    async with front(tmp_path, await dead_end()) as service:
        async with service.connect() as client:
            reply = await client.request("POST" if body else "GET", "/", {}, body)
            assert (reply.status, reply.code) == (503, "service-unavailable")
            assert reply.get("retry-after") is not None


async def test_safe_request_that_is_lost_is_a_502(tmp_path: Path) -> None:
    """Nothing took effect, so nothing is indeterminate; a small POST is."""
    async with backend(hang_up) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            reply = await client.request("GET", "/")
            assert (reply.status, reply.code) == (502, "bad-gateway")
            reply = await client.request("POST", "/", {}, b"small")
            assert (reply.status, reply.code) == (502, "indeterminate")
        assert [seen.method for seen in behind.seen] == ["GET", "POST"]


async def test_cut_response_is_cut_for_the_client(tmp_path: Path) -> None:
    """It can tell: the connection ends early."""

    async def cut(seen: Seen, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await stream.send_all(b"5\r\nabcde\r\n")
        await stream.aclose()

    async with backend(cut) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            await client.send(head("GET", "/"))
            received = await client.rest()
            assert b"abcde" in received
            assert not received.endswith(b"0\r\n\r\n")


async def test_old_client_gets_a_response_that_ends_with_the_connection(
    tmp_path: Path,
) -> None:
    """HTTP/1.0 knows no chunks."""
    sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(
        BODY, 9999
    )
    async with backend(raw(sent)) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            await client.send(head("GET", "/", version="1.0"))
            answer, _, body = (await client.rest()).partition(b"\r\n\r\n")
            assert b"chunked" not in answer.lower()
            assert body == BODY


async def test_websocket_becomes_a_tunnel(tmp_path: Path) -> None:
    """Both ways, at once, from the first byte after the 101; either end closes it."""

    async def echo(seen: Seen, stream: trio.abc.Stream) -> None:
        assert seen.get("upgrade") == "websocket"
        assert seen.get("connection") == "upgrade"
        await stream.send_all(SWITCHED + b"early")
        while data := await stream.receive_some(65536):
            await stream.send_all(data.upper())
        behind.left.set()

    async with backend(echo) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            await client.send(head("GET", "/ws", UPGRADE) + b"early too")
            received = b""
            while not received.endswith(b"earlyEARLY TOO"):
                received += await client.stream.receive_some(65536)
            assert received.startswith(b"HTTP/1.1 101 ")
            assert b"sec-websocket-accept: x" in received.lower()
            for word in (b"one", b"two"):
                await client.send(word)
                assert await client.stream.receive_some(10) == word.upper()
            await client.aclose()
            await behind.left.wait()


async def test_backend_that_refuses_an_upgrade_answers(tmp_path: Path) -> None:
    """An ordinary response, and the connection goes on."""
    refusal = ok(b"no", "426 Upgrade Required", ("Upgrade: other",))
    async with backend(refusal) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            for _ in range(2):
                reply = await client.request("GET", "/ws", UPGRADE)
                assert (reply.status, reply.body) == (426, b"no")


async def test_silent_tunnel_ends(tmp_path: Path) -> None:
    """It holds a connection, and somebody has forgotten it."""

    async def silent(seen: Seen, stream: trio.abc.Stream) -> None:
        await stream.send_all(SWITCHED)
        await stream.receive_some(1)

    async with backend(silent) as behind:
        async with front(tmp_path, behind.url, tunnel_timeout=0.2) as service:
            async with service.connect() as client:
                await client.send(head("GET", "/ws", UPGRADE))
                received = await client.rest()
                assert received.startswith(b"HTTP/1.1 101 ")


async def test_interim_responses_pass(tmp_path: Path) -> None:
    """As RFC 9110, section 15.2, demands of a proxy."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    last = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with backend(raw(early + last)) as behind:
        async with front(tmp_path, behind.url) as service, service.connect() as client:
            reply = await client.request("GET", "/")
            assert [each.status for each in reply.interims] == [103]
