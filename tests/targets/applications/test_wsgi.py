"""WSGI applications as targets (PEP 3333)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
import trio

from tests.server.harness import RESUME, chunked, head, socket_service
from tests.targets.applications.test_asgi import ask
from trioresume import CallerError, CallPolicy, Principal, WSGITarget

KIB = 1024
Start = Callable[..., Callable[[bytes], object]]
TEXT = [("Content-Type", "text/plain")]


async def test_the_environment_is_that_of_an_ordinary_request(tmp_path: Path) -> None:
    """T1, PEP 3333: the validator of the standard library has nothing to object to."""
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        seen.append(dict(environ))
        size = int(environ["CONTENT_LENGTH"])
        body = environ["wsgi.input"].read(size)
        start_response("201 Created", [*TEXT, ("Content-Length", str(len(body)))])
        return [body]

    async def authenticate(head: Any) -> Principal:
        return Principal("ann")

    async with socket_service(
        WSGITarget(validator(app)), tmp_path, root_path="/up", authenticate=authenticate
    ) as service:
        async with service.connect() as client:
            fields = [
                ("Prefer", "resume"),
                ("Expect", "100-continue"),
                ("Transfer-Encoding", "chunked"),
                ("Content-Type", "text/x"),
                ("X-Own", "a"),
                ("X-Own", "b"),
                ("X_Own", "c"),
            ]
            await client.send(head("POST", "/a%20%C3%A4?c=d%20", fields))
            await client.interim()
            await client.send(chunked(b"hello"))
            reply = await client.reply("POST")
    assert (reply.status, reply.body) == (201, b"hello")
    (environ,) = seen
    assert environ["SCRIPT_NAME"] == "/up"
    assert environ["PATH_INFO"] == "/a ä".encode().decode("latin-1")
    assert environ["QUERY_STRING"] == "c=d%20"
    assert (environ["CONTENT_LENGTH"], environ["CONTENT_TYPE"]) == ("5", "text/x")
    assert environ["HTTP_X_OWN"] == "a,b"
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("test", "80")
    assert "HTTP_PREFER" not in environ
    assert "HTTP_EXPECT" not in environ
    assert environ["trioresume.principal"] == "ann"
    assert environ["trioresume.operation"] in reply.content


def _raises(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    raise ValueError("a bug of the application")


def _raises_late(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
    start_response("200 OK", TEXT)
    yield b"abc"
    raise ValueError("a bug of the application")


def _exits(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    raise SystemExit(3)


def _forgets(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    return [b"abc"]


def _forgets_all(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    return []


def _twice(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    start_response("201 Created", TEXT)
    return []


def _odd_status(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    start_response("OK", TEXT)
    return []


def _short(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "4")])
    return [b"abc"]


def _too_late(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
    start_response("200 OK", TEXT)
    yield b"abc"
    try:
        raise ValueError("a bug of the application")
    except ValueError as exc:
        start_response("500 Sorry", TEXT, (ValueError, exc, exc.__traceback__))


FAULTS = [
    _raises,
    _raises_late,
    _exits,
    _forgets,
    _forgets_all,
    _twice,
    _odd_status,
    _short,
    _too_late,
]


@pytest.mark.parametrize("resumes", [False, True])
async def test_a_failing_application_is_a_500_with_its_traceback_in_the_log(
    resumes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No part of a response is taken for the whole, and the next request is served."""
    faults = {fault.__name__: fault for fault in FAULTS}

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        fault = faults.get(environ["PATH_INFO"].removeprefix("/"))
        if fault is not None:
            return fault(environ, start_response)
        start_response("200 OK", TEXT)
        return [b"works"]

    fields = RESUME if resumes else {}
    async with socket_service(WSGITarget(app, threads=1), tmp_path) as service:
        for name in faults:
            caplog.clear()
            reply = await ask(service, "POST", f"/{name}", fields, b"content")
            assert (reply.status, reply.code) == (500, "internal-error"), name
            assert len([r for r in caplog.records if r.exc_info is not None]) == 1, name
            assert (await ask(service, "POST", "/", fields, b"a")).body == b"works"


async def test_each_way_to_write_a_response(tmp_path: Path) -> None:
    """The callable, an iterator, and an error page that replaces a response before its first byte."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        way = environ["PATH_INFO"]
        if way == "/write":
            write = start_response("200 OK", TEXT)
            write(b"one ")
            return [b"two"]
        if way == "/none":
            start_response("200 OK", TEXT)
            return []
        if way == "/file":
            start_response("200 OK", TEXT)
            wrapper: Iterable[bytes] = environ["wsgi.file_wrapper"](
                environ["wsgi.input"], 64 * KIB
            )
            return wrapper
        start_response("200 OK", TEXT)
        try:
            raise ValueError
        except ValueError as exc:
            start_response("409 Conflict", TEXT, (ValueError, exc, exc.__traceback__))
        return iter([b"an ", b"", b"error"])

    content = bytes(range(256)) * 4 * KIB
    async with socket_service(WSGITarget(app), tmp_path) as service:
        assert (await ask(service, "POST", "/write", {}, b"a")).body == b"one two"
        assert (await ask(service, "POST", "/none", {}, b"a")).body == b""
        reply = await ask(service, "POST", "/file", RESUME, content)
        assert reply.body == content
        reply = await ask(service, "POST", "/error", {}, b"a")
        assert (reply.status, reply.body) == (409, b"an error")


async def test_only_so_many_requests_run_at_a_time(tmp_path: Path) -> None:
    """The others wait in line, and each is answered."""
    lock = threading.Lock()
    running = most = 0
    both = threading.Barrier(2)

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(10)
        with lock:
            running -= 1
        start_response("200 OK", TEXT)
        return [b"ok"]

    async with socket_service(WSGITarget(app, threads=2), tmp_path) as service:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask, service, "POST", "/", {}, b"a")
    assert most == 2


async def test_an_application_is_stopped_when_its_client_is_gone(
    tmp_path: Path,
) -> None:
    """An endless response waits for its reader; then its iterable is closed."""
    closed = trio.Event()
    token = trio.lowlevel.current_trio_token()
    sent = 0

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        nonlocal sent
        start_response("200 OK", TEXT)
        try:
            while True:
                yield bytes(64 * KIB)
                sent += 1
        finally:
            token.run_sync_soon(closed.set)

    async with socket_service(WSGITarget(app), tmp_path) as service:
        async with service.connect() as client:
            await client.send(head("GET", "/"))
            with trio.fail_after(20):
                count = -1
                while count != sent or not sent:
                    count = sent
                    await trio.sleep(0.2)
        with trio.fail_after(20):
            await closed.wait()
    assert sent * 64 * KIB < 64 * 1024 * KIB


async def test_progress_is_told(tmp_path: Path) -> None:
    """B10: what the application reports is in the 202 at the message's location."""
    go_on = threading.Event()
    reported = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        environ["trioresume.progress"](1, 3, "checking")
        token.run_sync_soon(reported.set)
        go_on.wait(20)
        start_response("200 OK", TEXT)
        return [b"done"]

    async with socket_service(WSGITarget(app), tmp_path) as service:
        async with service.connect() as client:
            started = await client.start(3, b"abc")
            with trio.fail_after(20):
                await reported.wait()
            message = started.fields.get("response-message-location")
            state = await ask(service, "GET", message or "")
            assert (state.status, b"checking" in state.body) == (202, True)
            go_on.set()
            assert (await client.reply("POST")).body == b"done"


def test_settings_are_checked() -> None:
    """The policy follows the setting; no thread is too few."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        return []

    assert WSGITarget(app).policy is CallPolicy.AT_MOST_ONCE
    assert WSGITarget(app, idempotent=True).policy is CallPolicy.IDEMPOTENT
    with pytest.raises(CallerError, match="threads"):
        WSGITarget(app, threads=0)
