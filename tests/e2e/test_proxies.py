"""What nginx, Caddy and HAProxy do to requests and interim responses, by themselves.

The server behind them says what it is told to, and notes what it gets. The table in
docs/behind-a-proxy.md has what comes out.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.e2e import proxies
from tests.e2e.command import free_port
from tests.e2e.proxies import Proxy

SIZE = 20_000
PATIENCE_SECONDS = 10.0
SILENCE_SECONDS = 0.5
"""How long nothing comes of what is kept back."""
FINAL = b"HTTP/1.1 200 OK\r\nX-Which: final\r\nContent-Length: 3\r\n\r\nok\n"

# As their documentation shows them first, and packages bring them.
UNSET = {
    "nginx": "server {\n listen 80;\n location / {\n"
    "  proxy_pass http://127.0.0.1:8080;\n }\n}\n",
    "caddy": "up.example {\n reverse_proxy 127.0.0.1:8080\n}\n",
    # It has no timeouts by itself, and warns of that.
    "haproxy": "defaults\n mode http\n timeout connect 5s\n timeout client 50s\n"
    " timeout server 50s\nlisten up\n bind :80\n server one 127.0.0.1:8080\n",
}


@dataclass
class Upstream:
    """One request as it arrives behind the proxy."""

    head: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    is_over: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Read all that comes; say what ``X-Say`` asks for, and at its end the rest."""
        while b"\r\n\r\n" not in self.head:
            data = await stream.receive_some()
            if not data:
                return  # the one that tried whether the proxy listens
            self.head += data
        self.head, _, rest = self.head.partition(b"\r\n\r\n")
        said = re.search(rb"(?im)^x-say: ([0-9 ]*)\r?$", self.head)
        for status in said[1].decode().split() if said else []:
            interim = f"HTTP/1.1 {status} Interim\r\nX-Which: {status}\r\n\r\n"
            await stream.send_all(interim.encode())
        self._note(rest)
        while not self._is_whole():
            try:
                data = bytes(await stream.receive_some())
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self.is_over = True
                self._note(b"")
                return
            self._note(data)
        try:
            await stream.send_all(FINAL)
        except trio.BrokenResourceError:
            pass  # it has given up on what came before

    def _is_whole(self) -> bool:
        length = re.search(rb"(?im)^content-length: (\d+)\r?$", self.head)
        if length is None:
            # HAProxy writes field names in lower case.
            ends = (b"\r\n0\r\n\r\n", b"\r\nx-sum: 1\r\n\r\n")
            return self.content.lower().endswith(ends)
        return len(self.content) == int(length[1])

    def _note(self, data: bytes) -> None:
        self.content += data
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, size: int) -> None:
        while len(self.content) < size and not self.is_over:
            await self.changed.wait()

    async def end(self) -> None:
        while not self.is_over:
            await self.changed.wait()


class Bench:
    """A proxy between a client and an upstream that are both here."""

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.proxy = proxy
        self._port = port

    @asynccontextmanager
    async def request(
        self, *lines: str, length: int | None = SIZE
    ) -> AsyncIterator[tuple[trio.SocketStream, Upstream]]:
        """A request of which only the head was sent, and what arrives of it."""
        upstream = Upstream()
        async with trio.open_nursery() as nursery:
            serve = partial(
                trio.serve_tcp, upstream.serve, self._port, host="127.0.0.1"
            )
            await nursery.start(serve)
            stream = await trio.open_tcp_stream(*self.proxy.address)
            framing = (
                "Transfer-Encoding: chunked"
                if length is None
                else f"Content-Length: {length}"
            )
            host = f"Host: 127.0.0.1:{self.proxy.port}"
            head = ["POST /x HTTP/1.1", host, framing, *lines]
            await stream.send_all("\r\n".join([*head, "", ""]).encode())
            try:
                yield stream, upstream
            finally:
                stream.socket.close()
            nursery.cancel_scope.cancel()


async def read_head(stream: trio.SocketStream) -> tuple[str, bytes]:
    """The next response's head, in lower case, and what came with it."""
    received = b""
    with trio.fail_after(PATIENCE_SECONDS):
        while b"\r\n\r\n" not in received:
            data = await stream.receive_some()
            assert data, received
            received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    return head.decode().lower(), rest


@pytest.fixture(scope="module", params=proxies.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def running(name: str, block: str, folder: Path) -> Iterator[Bench]:
    port = free_port()
    with proxies.run(name, block, port, folder) as proxy:
        yield Bench(proxy, port)


@pytest.fixture(scope="module")
def bench(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The proxy as the page says."""
    block = proxies.snippet(name, "a name of its own")
    yield from running(name, block, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def unset(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The proxy without the page's settings."""
    yield from running(name, UNSET[name], tmp_path_factory.mktemp(f"{name}-unset"))


def documented(proxy: Proxy) -> dict[str, str]:
    """What the page's table has of the newest version that is not newer than *proxy*."""
    heads, _, *rows = re.findall(r"^\| (.*) \|$", proxies.MEASURED, re.MULTILINE)
    named = proxies.TITLES[proxy.name]
    known = {
        tuple(map(int, head.removeprefix(named).split("."))): column
        for column, head in enumerate(heads.split(" | "))
        if head.startswith(named)
    }
    version = tuple(map(int, proxy.version.split(".")))
    newest = max([each for each in known if each <= version], default=min(known))
    cells = [row.split(" | ") for row in rows]
    return {row[0]: row[known[newest]] for row in cells}


async def passed_on(bench: Bench) -> str:
    """What becomes of content whose rest has yet to come."""
    async with bench.request() as (stream, upstream):
        await stream.send_all(bytes(SIZE // 2))
        with trio.move_on_after(SILENCE_SECONDS) as silence:
            await upstream.until(SIZE // 2)
        with trio.fail_after(PATIENCE_SECONDS):
            if silence.cancelled_caught and upstream.head:
                await upstream.until(SIZE // 2)  # a slow machine
                silence = trio.CancelScope()
            await stream.send_all(bytes(SIZE - SIZE // 2))
            await upstream.until(SIZE)
        return "kept back" if silence.cancelled_caught else "at once"


async def test_content_of_a_request(bench: Bench, unset: Bench) -> None:
    """Whether half of it arrives before the other half was sent."""
    said = documented(bench.proxy)
    assert await passed_on(bench) == said["content of a request"]
    assert await passed_on(unset) == said["the same without the settings"]


async def test_large_content_without_the_settings(unset: Bench) -> None:
    """Whether there is a limit that nobody has asked for."""
    size = 1024 * 1024 + 1
    async with unset.request(length=size) as (stream, upstream):
        try:
            await stream.send_all(bytes(size))
        except trio.BrokenResourceError:
            pass  # refused in the middle
        head, _ = await read_head(stream)
        found = "taken" if upstream.content else head.split()[1]
    expected = documented(unset.proxy)["more than 1 MiB without the settings"]
    assert found == expected


async def test_client_that_is_cut(bench: Bench) -> None:
    """The server learns of it before any timeout."""
    async with bench.request() as (stream, upstream):
        await stream.send_all(bytes(SIZE // 2))
        with trio.fail_after(PATIENCE_SECONDS):
            await upstream.until(SIZE // 2)
            await trio.aclose_forcefully(stream)
            await upstream.end()
    assert documented(bench.proxy)["a client that is cut"] == "at once"


async def test_expectation(bench: Bench) -> None:
    """Who answers it."""
    async with bench.request("Expect: 100-continue") as (stream, upstream):
        with trio.move_on_after(SILENCE_SECONDS) as silence:
            head, _ = await read_head(stream)
            assert head == "http/1.1 100 continue"
        await stream.send_all(bytes(SIZE))
        with trio.fail_after(PATIENCE_SECONDS):
            await upstream.until(SIZE)
        fate = [] if silence.cancelled_caught else ["answered with a bare `100`"]
        if b"expect: 100-continue" in upstream.head.lower():
            fate.append("and passed on" if fate else "passed on")
        found = ", ".join(fate)
    assert found == documented(bench.proxy)["`Expect`"]


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ("100", "`100` with fields"),
        ("102", "`102`"),
        ("103", "`103`"),
        ("104", "`104`"),
        ("104 104 104 104 104 104", "six of them"),
    ],
)
async def test_interim_responses(bench: Bench, said: str, row: str) -> None:
    """What arrives of them, and whether the final response still does."""
    expected = documented(bench.proxy)[row]
    if expected == "not tried":
        pytest.skip("the page says nothing of this version")
    async with bench.request(f"X-Say: {said}") as (stream, _):
        await stream.send_all(bytes(SIZE))
        found = await interim_fate(stream, said.split())
    assert found == expected


async def interim_fate(stream: trio.SocketStream, said: list[str]) -> str:
    unread = b""
    for status in said:
        while b"\r\n\r\n" not in unread:
            with trio.fail_after(PATIENCE_SECONDS):
                data = await stream.receive_some()
            assert data, unread
            unread += data
        raw, _, unread = unread.partition(b"\r\n\r\n")
        head = raw.decode().lower()
        if "\nconnection:" in head:  # which belongs to a final one
            assert f"x-which: {status}" in head
            return "taken for the final response"
        if head.split()[1] != status:
            return head.split()[1]
        assert f"x-which: {status}" in head
    while b"\r\n\r\n" not in unread:
        with trio.fail_after(PATIENCE_SECONDS):
            unread += await stream.receive_some()
    status = unread.split()[1].decode()
    return "passed on" if status == "200" else status


async def test_trailers_of_a_request(bench: Bench) -> None:
    """D7: checksums might be there."""
    lines = ("Trailer: X-Sum", "TE: trailers")
    async with bench.request(*lines, length=None) as (stream, upstream):
        await stream.send_all(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")
        head, _ = await read_head(stream)
        assert head.startswith("http/1.1 200")
        found = "passed on" if b"x-sum: 1" in upstream.content.lower() else "dropped"
    assert found == documented(bench.proxy)["trailers of a request"]
