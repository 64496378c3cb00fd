"""ASGI applications as targets: the requests that they get, and the responses that they send."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sniffio
import trio

import trioresume
from tests.server.harness import (
    RESUME,
    Reply,
    SocketService,
    chunked,
    head,
    socket_service,
)
from tests.server.tus import MARK
from trioresume import ASGITarget, CallerError, CallPolicy, Config, Principal
from trioresume.targets.applications.asgi import Message, Receive, Scope, Send

KIB = 1024
Service = Callable[[Receive, Send, Scope], Awaitable[None]]


def application(
    serve: Callable[[Scope, Receive, Send], Awaitable[None]],
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An application without a lifespan."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        await serve(scope, receive, send)

    return app


async def say(
    send: Send,
    body: bytes,
    status: int = 200,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": headers or []}
    )
    await send({"type": "http.response.body", "body": body})


async def read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        block: bytes = message["body"]
        body += block
        if not message["more_body"]:
            return body


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> Any:
    return request.param


@asynccontextmanager
async def served(
    target: ASGITarget, data_dir: Path, **settings: Any
) -> AsyncIterator[SocketService]:
    """A service that is shut down in the end, and not cancelled."""
    config = Config(
        bind=["127.0.0.1:0"], data_dir=data_dir, durability="process", **settings
    )
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioresume.serve, target, config)
        yield SocketService(server)
        server.shutdown()


async def ask(
    service: SocketService,
    method: str,
    target: str = "/",
    fields: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Reply:
    with trio.fail_after(20):
        async with service.connect() as client:
            return await client.request(method, target, fields or {}, body)


async def test_the_application_sees_an_ordinary_request(
    loop: Any, tmp_path: Path
) -> None:
    """T1: a known length, and no field of the way in which the content came."""
    seen: list[Scope] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        assert sniffio.current_async_library() == loop
        seen.append(scope)
        await say(send, await read(receive))

    async def authenticate(head: Any) -> Principal:
        return Principal("ann")

    target = ASGITarget(application(serve), loop=loop)
    async with socket_service(
        target, tmp_path, root_path="/up", authenticate=authenticate
    ) as service:
        async with service.connect() as client:
            fields = {
                "Prefer": "resume, return=minimal, wait=3",
                "Expect": "100-continue",
                "Transfer-Encoding": "chunked",
                "X-Own": "a",
                "Connection": "x-hop",
                "X-Hop": "b",
            }
            await client.send(head("POST", "/a%20b?c=d%20", fields))
            await client.interim()
            await client.send(chunked(b"hello"))
            reply = await client.reply("POST")
        assert (reply.status, reply.body) == (200, b"hello")
    (scope,) = seen
    headers = dict(scope["headers"])
    assert headers == {
        b"host": b"test",
        b"prefer": b"return=minimal",
        b"content-length": b"5",
        b"x-own": b"a",
    }
    assert (scope["method"], scope["scheme"]) == ("POST", "http")
    assert scope["path"] == "/up/a b"
    assert scope["raw_path"] == b"/up/a%20b"
    assert scope["query_string"] == b"c=d%20"
    assert scope["root_path"] == "/up"
    assert scope["server"] == ("test", 80)
    extension = scope["extensions"]["trioresume"]
    assert extension["principal"] == "ann"
    assert extension["operation"] in reply.content


async def test_tus_fields_become_ordinary_ones(loop: Any, tmp_path: Path) -> None:
    """D6, T1: metadata that names and types the content is told as HTTP does."""
    seen: list[Scope] = []
    called = trio.Event()
    trio_token = trio.lowlevel.current_trio_token()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        trio_token.run_sync_soon(called.set)
        await say(send, await read(receive))

    async with socket_service(
        ASGITarget(application(serve), loop=loop), tmp_path
    ) as service:
        fields = {
            **MARK,
            "Upload-Length": "3",
            "Upload-Metadata": "filename YS50eHQ=,filetype dGV4dC9wbGFpbg==",
        }
        created = await ask(service, "POST", "/", fields)
        patch = {
            **MARK,
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": "0",
        }
        done = await ask(service, "PATCH", created["location"], patch, b"abc")
        assert done.status == 204
        with trio.fail_after(20):
            await called.wait()  # the target is called after this answer
    headers = dict(seen[0]["headers"])
    assert headers[b"content-type"] == b"text/plain"
    assert b"a.txt" in headers[b"content-disposition"]
    assert headers[b"content-length"] == b"3"
    assert not [name for name in headers if name.startswith((b"upload-", b"tus-"))]


async def test_large_content_comes_in_blocks_and_is_replayed(
    loop: Any, tmp_path: Path
) -> None:
    """Neither side holds the whole; the response is recorded with its end."""
    content = bytes(range(256)) * 8 * KIB
    sizes: list[int] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": []})
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
            await send(
                {
                    "type": "http.response.body",
                    "body": message["body"],
                    "more_body": True,
                }
            )
        await send({"type": "http.response.body"})

    async with socket_service(
        ASGITarget(application(serve), loop=loop), tmp_path
    ) as service:
        reply = await ask(service, "POST", "/", RESUME, content)
        assert (reply.status, reply.body) == (201, content)
        again = await ask(service, "GET", reply.message)
        assert again.body.endswith(content)
    assert max(sizes) <= 256 * KIB
    assert sum(sizes) == len(content)


async def test_a_cancelled_receive_loses_nothing(loop: Any, tmp_path: Path) -> None:
    """The next call returns what the cancelled one would have."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if loop == "trio":
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                await receive()
        else:
            task = asyncio.create_task(_awaited(receive))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await say(send, await read(receive))

    content = bytes(range(256)) * 2 * KIB
    async with socket_service(
        ASGITarget(application(serve), loop=loop), tmp_path
    ) as service:
        reply = await ask(service, "POST", "/", {}, content)
        assert reply.body == content


async def _awaited(receive: Receive) -> Message:
    return await receive()


async def _raise(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("a bug of the application")


async def _raise_late(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"abc", "more_body": True})
    raise ValueError("a bug of the application")


async def _exit(scope: Scope, receive: Receive, send: Send) -> None:
    raise SystemExit(3)


async def _silent(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


async def _short(scope: Scope, receive: Receive, send: Send) -> None:
    await say(send, b"abc", headers=[(b"content-length", b"4")])


async def _long(scope: Scope, receive: Receive, send: Send) -> None:
    await say(send, b"abcde", headers=[(b"content-length", b"4")])


async def _headless(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"abc"})


async def _injects(scope: Scope, receive: Receive, send: Send) -> None:
    await say(send, b"", headers=[(b"x", b"a\r\nb: c")])


async def _odd_length(scope: Scope, receive: Receive, send: Send) -> None:
    await say(send, b"", headers=[(b"content-length", b"one")])


async def _odd_message(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


async def _trailers(scope: Scope, receive: Receive, send: Send) -> None:
    await send(
        {"type": "http.response.start", "status": 200, "headers": [], "trailers": True}
    )


FAULTS = [
    _raise,
    _raise_late,
    _exit,
    _silent,
    _short,
    _long,
    _headless,
    _injects,
    _odd_length,
    _odd_message,
    _trailers,
]


@pytest.mark.parametrize("resumes", [False, True])
async def test_a_failing_application_is_a_500_with_its_traceback_in_the_log(
    loop: Any, resumes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No part of a response is taken for the whole, and the next request is served."""
    fields = RESUME if resumes else {}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].removeprefix("/")
        faults = {fault.__name__: fault for fault in FAULTS}
        if name in faults:
            await faults[name](scope, receive, send)
        else:
            await say(send, b"works")

    async with socket_service(
        ASGITarget(application(serve), loop=loop), tmp_path
    ) as service:
        for fault in FAULTS:
            caplog.clear()
            name = fault.__name__
            reply = await ask(service, "POST", f"/{name}", fields, b"content")
            assert (reply.status, reply.code) == (500, "internal-error"), name
            records = [r for r in caplog.records if r.exc_info is not None]
            assert len(records) == 1, name
            assert (await ask(service, "POST", "/", fields, b"a")).body == b"works"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "GET"])
async def test_safe_requests_go_straight_through(
    loop: Any, method: str, tmp_path: Path
) -> None:
    """Nothing is stored, and an application that streams is not left waiting."""
    done = trio.Event()
    scopes: list[Scope] = []
    trio_token = trio.lowlevel.current_trio_token()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send(
                {"type": "http.response.body", "body": b"x" * 1000, "more_body": True}
            )
        await send({"type": "http.response.body"})
        trio_token.run_sync_soon(done.set)

    async with socket_service(
        ASGITarget(application(serve), loop=loop), tmp_path
    ) as service:
        reply = await ask(service, method)
        assert reply.status == 200
        assert reply.body == (b"" if method == "HEAD" else b"x" * 3000)
        with trio.fail_after(10):
            await done.wait()
    assert scopes[0]["extensions"]["trioresume"]["operation"] is None
    host, port = scopes[0]["client"]
    assert host == "127.0.0.1"
    assert port > 0


async def test_an_application_without_options_still_tells_of_uploads(
    tmp_path: Path,
) -> None:
    """C17: its 405 becomes the server's answer, and the application is not left waiting."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await say(send, b"no", 405, [(b"allow", b"POST")])

    async with socket_service(ASGITarget(application(serve)), tmp_path) as service:
        reply = await ask(service, "OPTIONS")
        assert reply.status == 200
        assert "upload-limit" in reply.fields


async def test_a_response_without_content_ends_at_once(
    loop: Any, tmp_path: Path
) -> None:
    """204 has no content, whatever the application sends after it."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await say(send, b"nothing", 204)

    async with socket_service(
        ASGITarget(application(serve), loop=loop), tmp_path
    ) as service:
        reply = await ask(service, "POST", "/", RESUME, b"a")
        assert (reply.status, reply.body) == (204, b"")


async def test_a_slow_client_holds_the_application_back(
    loop: Any, tmp_path: Path
) -> None:
    """An endless response waits for its reader, and ends when the reader is gone."""
    sent = 0
    over = trio.Event()
    trio_token = trio.lowlevel.current_trio_token()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        block = bytes(64 * KIB)
        try:
            while True:
                await send(
                    {"type": "http.response.body", "body": block, "more_body": True}
                )
                sent += 1
        except OSError:
            assert (await receive())["type"] == "http.disconnect"
            trio_token.run_sync_soon(over.set)
            raise

    async with socket_service(
        ASGITarget(application(serve), loop=loop), tmp_path
    ) as service:
        async with service.connect() as client:
            await client.send(head("GET", "/"))
            with trio.fail_after(20):
                count = -1
                while count != sent or not sent:
                    count = sent
                    await trio.sleep(0.2)
            assert sent * 64 * KIB < 64 * 1024 * KIB
        with trio.fail_after(20):
            await over.wait()


async def test_progress_is_told(loop: Any, tmp_path: Path) -> None:
    """B10: what the application reports is in the 202 at the message's location."""
    go_on = trio.Event()
    reported = trio.Event()
    trio_token = trio.lowlevel.current_trio_token()
    waiting: list[Callable[[], object]] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        report = scope["extensions"]["trioresume"]["progress"]
        await report(1, 3, "checking")
        with pytest.raises(CallerError):
            await report(4, 3)
        if loop == "trio":
            reported.set()
            await go_on.wait()
        else:
            event = asyncio.Event()
            running = asyncio.get_running_loop()
            waiting.append(partial(running.call_soon_threadsafe, event.set))
            trio_token.run_sync_soon(reported.set)
            await event.wait()
        await say(send, b"done")

    async with socket_service(
        ASGITarget(application(serve), loop=loop), tmp_path
    ) as service:
        async with service.connect() as client:
            started = await client.start(3, b"abc")
            with trio.fail_after(20):
                await reported.wait()
            message = started.fields.get("response-message-location")
            assert message is not None
            state = await ask(service, "GET", message)
            assert state.status == 202
            assert "checking" in state.body.decode()
            go_on.set()
            for each in waiting:
                each()
            assert (await client.reply("POST")).body == b"done"


# The lifespan.


async def test_the_lifespan_encloses_all_requests(loop: Any, tmp_path: Path) -> None:
    """It starts before the first one, ends after the last one, and shares its state."""
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["pool"] = "open"
            events.append("start")
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            events.append("end")
            await send({"type": "lifespan.shutdown.complete"})
        else:
            events.append(scope["state"]["pool"])
            await say(send, b"")
            events.append("after the response")

    async with served(ASGITarget(app, loop=loop), tmp_path) as service:
        assert (await ask(service, "POST", "/", {}, b"a")).status == 200
    assert events == ["start", "open", "after the response", "end"]


async def test_an_application_that_refuses_to_start_ends_the_service(
    loop: Any, tmp_path: Path
) -> None:
    """Its reason is in the error."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.RaisesGroup(
        pytest.RaisesExc(CallerError, match="no database"), flatten_subgroups=True
    ):
        async with socket_service(ASGITarget(app, loop=loop), tmp_path):
            pass


async def test_a_hanging_application_is_cancelled_after_the_grace_period(
    loop: Any, tmp_path: Path
) -> None:
    """The shutdown is as long as it was configured, and the outcome is indeterminate."""
    begun = trio.Event()
    trio_token = trio.lowlevel.current_trio_token()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        trio_token.run_sync_soon(begun.set)
        if loop == "trio":
            await trio.sleep_forever()
        await asyncio.Event().wait()

    target = ASGITarget(application(serve), loop=loop)
    with trio.fail_after(20):
        async with served(target, tmp_path, grace_timeout=0.1) as service:
            async with service.connect() as client:
                started = await client.start(3, b"abc")
                await begun.wait()
                service.server.shutdown()
                assert (await client.reply("POST")).status == 503
        async with socket_service(target, tmp_path) as service:
            message = started.fields.get("response-message-location")
            reply = await ask(service, "GET", message or "", {"Prefer": "wait=10"})
            assert b"indeterminate" in reply.body


def test_settings_are_checked() -> None:
    """The policy follows the setting; a loop that is none is refused."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        return

    assert ASGITarget(app).policy is CallPolicy.AT_MOST_ONCE
    assert ASGITarget(app, idempotent=True).policy is CallPolicy.IDEMPOTENT
    with pytest.raises(CallerError, match="loop"):
        ASGITarget(app, loop="gevent")  # type: ignore[arg-type]


async def test_a_late_failure_is_logged(
    loop: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The response stands; the log has the traceback."""
    caplog.set_level(logging.ERROR)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await say(send, b"fine")
        raise ValueError("in the background")

    async with served(ASGITarget(application(serve), loop=loop), tmp_path) as service:
        assert (await ask(service, "POST", "/", RESUME, b"a")).body == b"fine"
    assert "in the background" in caplog.text
