"""``trioresume.asgi.App`` against a server that this test plays, on trio and on asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

import trioresume
import trioresume.asgi
from trioresume import CallerError, Config, FileService
from trioresume.server.http.asgi.exchange import ResponseCut

KIB = 1024
_T = TypeVar("_T")


class Loop:
    """What the tests need of an event loop; asyncio's names."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, function: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        if self.name == "trio":
            return trio.run(function)
        return asyncio.run(function())

    async def pause(self) -> None:
        if self.name == "trio":
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)

    def event(self) -> Any:
        return trio.Event() if self.name == "trio" else asyncio.Event()

    async def together(self, *functions: Callable[[], Awaitable[None]]) -> None:
        if self.name == "trio":
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for function in functions:
                        nursery.start_soon(function)
            return
        async with asyncio.timeout(20):
            async with asyncio.TaskGroup() as group:
                for function in functions:
                    group.create_task(_awaited(function))


async def _awaited(function: Callable[[], Awaitable[None]]) -> None:
    await function()


@pytest.fixture(params=["trio", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Loop:
    return Loop(request.param)


class Conversation:
    """One request, as a server plays it: *blocks* come, then silence or the client's end."""

    def __init__(
        self,
        loop: Loop,
        method: str,
        path: str,
        fields: Mapping[str, str] | None = None,
        blocks: list[bytes] | None = None,
        *,
        ends: bool = True,
        gone: bool = False,
        **scope: Any,
    ) -> None:
        content = b"".join(blocks or [])
        fields = dict(fields or {})
        if blocks is not None and ends and scope.get("http_version", "1.1") < "2":
            fields.setdefault("content-length", str(len(content)))
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "query_string": b"",
            "headers": [
                (b"host", b"test"),
                *((n.lower().encode(), v.encode()) for n, v in fields.items()),
            ],
            "client": ("127.0.0.1", 5),
            **scope,
        }
        self._pause = loop.pause
        self._blocks = list(blocks or [])
        self._ends = ends
        self._is_ended = False
        self.gone = loop.event()
        if gone:
            self.gone.set()
        self.starved = loop.event()
        """Set when the application waits for more content than there is."""
        self.received = 0
        self.status = 0
        self.fields: dict[str, str] = {}
        self.body = b""
        self.is_whole = False
        self.blocked: Any = None
        """If set, sending content waits for it."""

    async def receive(self) -> dict[str, Any]:
        if self._blocks:
            block = self._blocks.pop(0)
            self.received += len(block)
            more = bool(self._blocks) or not self._ends
            self._is_ended = not more
            return {"type": "http.request", "body": block, "more_body": more}
        if self._ends and not self._is_ended:
            self._is_ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        self.starved.set()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            assert not self.status, "two responses"
            self.status = message["status"]
            self.fields = {n.decode(): v.decode() for n, v in message["headers"]}
            return
        assert self.status
        assert not self.is_whole
        if self.blocked is not None and message.get("more_body"):
            await self.blocked.wait()
        await self._pause()
        self.body += message["body"]
        self.is_whole = not message.get("more_body", False)

    async def run(self, app: trioresume.asgi.App) -> Conversation:
        await app(self.scope, self.receive, self.send)
        return self


def app_in(folder: Path, handler: Any = None, **settings: Any) -> trioresume.asgi.App:
    config = Config(data_dir=folder, durability="process", **settings)
    return trioresume.asgi.App(handler or FileService(), config)


PATCH = {"content-type": "application/partial-upload", "upload-complete": "?1"}


def test_a_client_that_vanishes_leaves_a_prefix(loop: Loop, tmp_path: Path) -> None:
    """C5: what came is kept, nothing is answered, and the rest completes the upload."""
    app = app_in(tmp_path)

    async def main() -> None:
        async with app.running():
            created = Conversation(loop, "POST", "/files/", {"upload-complete": "?0"})
            await created.run(app)
            assert created.status == 201
            where = created.fields["location"].removeprefix("http://test")
            cut = Conversation(
                loop,
                "PATCH",
                where,
                {**PATCH, "upload-offset": "0", "content-length": "10"},
                [b"abc"],
                ends=False,
                gone=True,
            )
            await cut.run(app)
            assert cut.status == 0
            asked = await Conversation(loop, "HEAD", where).run(app)
            assert asked.fields["upload-offset"] == "3"
            assert "date" not in asked.fields
            fields = {**PATCH, "upload-offset": "3"}
            done = Conversation(loop, "PATCH", where, fields, [b"defg", b"hij"])
            await done.run(app)
            assert (done.status, done.is_whole) == (201, True)
            stored = Conversation(loop, "GET", done.fields["location"])
            assert (await stored.run(app)).body == b"abcdefghij"

    loop.run(main)


def test_a_silent_writer_is_taken_over(loop: Loop, tmp_path: Path) -> None:
    """R21: a newcomer ends the old request at once, and knows what it had received."""
    app = app_in(tmp_path)

    async def main() -> None:
        async with app.running():
            created = Conversation(loop, "POST", "/files/", {"upload-complete": "?0"})
            await created.run(app)
            where = created.fields["location"].removeprefix("http://test")
            fields = {**PATCH, "upload-offset": "0", "content-length": "10"}
            silent = Conversation(loop, "PATCH", where, fields, [b"abc"], ends=False)

            async def old() -> None:
                await silent.run(app)

            async def new() -> None:
                await silent.starved.wait()
                asked = await Conversation(loop, "HEAD", where).run(app)
                assert asked.fields["upload-offset"] == "3"

            await loop.together(old, new)
            assert silent.status == 409

    loop.run(main)


def test_content_without_a_stated_length_is_told_from_none(
    loop: Loop, tmp_path: Path
) -> None:
    """HTTP/2 and HTTP/3 need no Content-Length: the first message tells."""
    seen: list[int | None] = []

    async def handle(request: trioresume.Request) -> trioresume.Response:
        seen.append(request.head.length)
        return trioresume.Response(200, body=await request.body.read())

    app = app_in(tmp_path, handle)

    async def main() -> None:
        async with app.running():
            two: dict[str, Any] = {"http_version": "2"}
            got = await Conversation(loop, "GET", "/a", **two).run(app)
            assert (got.status, seen) == (200, [0])
            blocks = [b"", b"abc", b"", b"de"]
            put = Conversation(loop, "POST", "/a", {}, blocks, **two)
            assert (await put.run(app)).body == b"abcde"

    loop.run(main)


def test_back_pressure_both_ways(loop: Loop, tmp_path: Path) -> None:
    """A slow reader stops the handler; content is not fetched before it is wanted."""
    made = 0

    async def blocks() -> Any:
        nonlocal made
        for _ in range(100):
            made += 1
            yield bytes(64 * KIB)

    async def handle(request: trioresume.Request) -> trioresume.Response:
        return trioresume.Response(200, body=blocks())

    app = app_in(tmp_path, handle, max_upload_size=5)

    async def main() -> None:
        async with app.running():
            slow = Conversation(loop, "GET", "/")
            slow.blocked = loop.event()

            async def read() -> None:
                await slow.run(app)

            async def release() -> None:
                refused = Conversation(loop, "POST", "/", {}, [b"abc"] * 1000)
                await refused.run(app)
                assert (refused.status, refused.received) == (413, 0)
                assert made <= 3
                slow.blocked.set()

            await loop.together(read, release)
            assert len(slow.body) == 100 * 64 * KIB

    loop.run(main)


def test_a_reader_that_is_gone_ends_the_response(loop: Loop, tmp_path: Path) -> None:
    """Some servers drop what is sent to a client that is gone: the engine notices itself."""

    async def endless() -> Any:
        while True:
            yield bytes(KIB)

    async def handle(request: trioresume.Request) -> trioresume.Response:
        return trioresume.Response(200, body=endless())

    app = app_in(tmp_path, handle)

    async def main() -> None:
        async with app.running():
            gone = Conversation(loop, "GET", "/")

            async def read() -> None:
                await gone.run(app)

            async def leave() -> None:
                await gone.starved.wait()
                gone.gone.set()

            await loop.together(read, leave)
            assert not gone.is_whole

    loop.run(main)


def test_a_response_that_fails_is_shown_to_be_cut(loop: Loop, tmp_path: Path) -> None:
    """The server is told by an exception, so that it closes the connection."""

    async def broken() -> Any:
        yield b"abc"
        raise ValueError("a bug of the handler")

    async def handle(request: trioresume.Request) -> trioresume.Response:
        return trioresume.Response(200, body=broken())

    app = app_in(tmp_path, handle)

    async def main() -> None:
        async with app.running():
            cut = Conversation(loop, "GET", "/")
            with pytest.raises(ResponseCut):
                await cut.run(app)
            assert (cut.status, cut.is_whole) == (200, False)

    loop.run(main)


def test_malformed_heads_are_refused(loop: Loop, tmp_path: Path) -> None:
    """G2, G3, G6: whatever the server below lets through."""
    app = app_in(tmp_path)

    async def main() -> None:
        async with app.running():
            for fields, status in (
                ({"content-length": "12,13"}, 400),
                ({"content-length": "-1"}, 400),
                ({"x": "a\r\nb"}, 400),
                ({"x": "a" * 20 * KIB}, 431),
                ({"expect": "magic"}, 417),
            ):
                bad = Conversation(loop, "POST", "/files/", fields)
                assert (await bad.run(app)).status == status, fields
                assert bad.fields["content-type"] == "application/problem+json"
            odd = Conversation(loop, "GET", "files")
            assert (await odd.run(app)).status == 400
            traced = Conversation(loop, "CONNECT", "/")
            assert (await traced.run(app)).status == 501

    loop.run(main)


def test_the_root_path_is_removed_where_it_is(loop: Loop, tmp_path: Path) -> None:
    """Servers and frameworks differ in whether the path includes it."""
    app = app_in(tmp_path, root_path="/up")

    async def main() -> None:
        async with app.running():
            for scope in (
                {"path": "/up/files/", "root_path": "/up", "raw_path": b"/up/files/"},
                {"path": "/up/files/", "root_path": "/up"},
                {"path": "/files/", "root_path": "/up"},
            ):
                path = scope.pop("path")
                put = Conversation(loop, "POST", str(path), {}, [b"a"], **scope)
                assert (await put.run(app)).status == 201
                assert put.fields["location"].startswith("/up/files/")

    loop.run(main)


def test_the_origin_has_the_scheme_of_the_scope(loop: Loop, tmp_path: Path) -> None:
    """R4: an absolute location goes back to where the request came from."""
    app = app_in(tmp_path)

    async def main() -> None:
        async with app.running():
            fields = {"upload-complete": "?0", "upload-draft-interop-version": "6"}
            created = Conversation(loop, "POST", "/files/", fields, scheme="https")
            await created.run(app)
            assert created.fields["location"].startswith("https://test/operations/")

    loop.run(main)


def test_lifespan(loop: Loop, tmp_path: Path) -> None:
    """The engine has the directory from the start to the end, and no longer."""
    app = app_in(tmp_path)

    async def main() -> None:
        said: list[str] = []
        ends = loop.event()
        asked = [{"type": "lifespan.startup"}]

        async def receive() -> Any:
            if asked:
                return asked.pop()
            put = await Conversation(loop, "POST", "/files/", {}, [b"a"]).run(app)
            assert put.status == 201
            second = app_in(tmp_path)
            with pytest.raises(trioresume.StoreLocked):
                async with second.running():
                    pass
            with pytest.raises(CallerError, match="runs already"):
                async with app.running():
                    pass
            ends.set()
            return {"type": "lifespan.shutdown"}

        async def send(message: Any) -> None:
            said.append(message["type"])

        await app({"type": "lifespan"}, receive, send)
        assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        async with app_in(tmp_path).running():
            pass

    loop.run(main)


def test_a_start_that_fails_is_told(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the lifespan, or to the request that began without one; the next one tries again."""
    app = app_in(tmp_path)

    async def main() -> None:
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            said.append(message)

        async with app_in(tmp_path).running():
            await app({"type": "lifespan"}, receive, send)
            assert said[0]["type"] == "lifespan.startup.failed"
            put = Conversation(loop, "POST", "/files/", {}, [b"a"])
            with pytest.raises(trioresume.StoreLocked):
                await put.run(app)
        put = Conversation(loop, "POST", "/files/", {}, [b"a"])
        assert (await put.run(app)).status == 201

    caplog.set_level(logging.CRITICAL)
    loop.run(main)


def test_running_requests_get_a_grace_period(loop: Loop, tmp_path: Path) -> None:
    """Then they are answered with 503, and what came is kept."""
    app = app_in(tmp_path, grace_timeout=0.1)
    kept: list[str] = []

    async def main() -> None:
        ended = loop.event()
        begun = loop.event()
        made: list[Conversation] = []

        async def serve() -> None:
            async with app.running():
                created = Conversation(
                    loop, "POST", "/files/", {"upload-complete": "?0"}
                )
                await created.run(app)
                kept.append(created.fields["location"].removeprefix("http://test"))
                fields = {**PATCH, "upload-offset": "0", "content-length": "10"}
                made.append(
                    Conversation(loop, "PATCH", kept[0], fields, [b"abc"], ends=False)
                )
                begun.set()
                await made[0].starved.wait()
            ended.set()

        async def upload() -> None:
            await begun.wait()
            await made[0].run(app)
            assert made[0].status == 503

        await loop.together(serve, upload)
        async with app_in(tmp_path).running():
            pass

    loop.run(main)


def test_other_scopes(loop: Loop, tmp_path: Path) -> None:
    """A WebSocket is refused; what nobody knows is an error."""
    app = app_in(tmp_path)

    async def main() -> None:
        said: list[str] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            said.append(message["type"])

        await app({"type": "websocket"}, receive, send)
        assert said == ["websocket.close"]
        with pytest.raises(NotImplementedError):
            await app({"type": "tea"}, receive, send)

    loop.run(main)


def test_tls_is_the_servers_business() -> None:
    """Certificates in the configuration would have no effect, so they are refused."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(CallerError, match="ssl"):
        trioresume.asgi.App(FileService(), Config(ssl=context))
