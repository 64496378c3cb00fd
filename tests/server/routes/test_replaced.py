"""Stored content that another request replaces or removes before it is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Client,
    Recorder,
    head,
    memory_service,
)
from tests.server.rufh import NEWEST, appends, path_of, says
from tests.server.tus import MARK, append, create, result
from trioresume import FileService
from trioresume.errors import ContentLost
from trioresume.protocol.operation import OperationState
from trioresume.store.port import Content, ContentReader, OperationId
from trioresume.testing.memory_store import MemoryStore


def on_open(
    store: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    do: Callable[[], object],
) -> list[Content]:
    """Have *do* happen *times* between an answer and its reading; what was asked for."""
    opened: list[Content] = []
    open_reader = store.open_reader

    def changed(content: Content) -> ContentReader:
        opened.append(content)
        if len(opened) <= times:
            do()
            raise ContentLost("the content was released")
        return open_reader(content)

    monkeypatch.setattr(store, "open_reader", changed)
    return opened


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("replaced", [True, False])
async def test_file_is_read_as_it_is_now(
    method: str, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PUT or DELETE in that moment is seen, and is not an error of the server."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        for name, content in (("a", b"old"), ("b", b"newer")):
            await client.request("PUT", f"/files/{name}", {}, content)
        files = service.store._files

        def change() -> None:
            newer = files.pop((None, "b"))
            del files[None, "a"]
            if replaced:
                files[None, "a"] = newer

        on_open(service.store, monkeypatch, 1, change)
        reply = await client.request(method, "/files/a")
        if replaced:
            assert (reply.status, reply["content-length"]) == (200, "5")
            assert reply.body == (b"newer" if method == "GET" else b"")
        else:
            assert reply.status == 404


async def test_content_that_is_really_lost_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The target is asked a few times, and not for ever."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        await client.request("PUT", "/files/a", {}, b"old")
        opened = on_open(service.store, monkeypatch, 1000, lambda: None)
        reply = await client.request("GET", "/files/a")
        assert (reply.status, reply.code) == (500, "internal-error")
        assert len(opened) == 10


@pytest.mark.parametrize("what", ["message", "result"])
async def test_response_that_is_ended_while_it_is_read_is_gone(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R29: a DELETE that comes between has its effect."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        made = await client.request("POST", "/", RESUME, b"x")
        path = made.message if what == "message" else made.content
        path = path.removesuffix("content") + ("" if what == "message" else "result")
        operation = service.operations._loaded.get(OperationId(path.split("/")[2]))

        def end() -> None:
            for each in service.operations._loaded.values():
                each.record = replace(each.record, state=OperationState.GONE)

        assert operation is None
        on_open(service.store, monkeypatch, 1, end)
        assert (await client.request("GET", path)).status == 410


async def complete_upload(client: Client, dialect: str) -> tuple[str, dict[str, str]]:
    """A complete upload of 5 bytes, and the fields of an append to it at 0."""
    if dialect == "tus":
        path = await create(client, 5)
        assert (await append(client, path, 0, b"12345")).status == 204
        await result(client, path)
        octets = {"Content-Type": "application/offset+octet-stream"}
        return path, {**MARK, **octets, "Upload-Offset": "0"}
    begun = await client.request("POST", "/", says(NEWEST, False), b"")
    path = path_of(begun["location"])
    done = await client.request("PATCH", path, appends(NEWEST, 0, True), b"12345")
    assert done.status == 200
    return path, appends(NEWEST, 0, True)


@pytest.mark.parametrize("expects", [False, True])
@pytest.mark.parametrize("dialect", ["tus", "rufh"])
async def test_content_for_a_complete_upload_is_not_waited_for(
    dialect: str, expects: bool
) -> None:
    """R24: the head alone says that it is refused; a silent sender is told at once."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path, fields = await complete_upload(client, dialect)
        expect = {"Expect": "100-continue"} if expects else {}
        lines = {**fields, **expect, "Content-Length": "5"}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await client.send(f"PATCH {path} HTTP/1.1\r\nHost: a\r\n{text}\r\n".encode())
        reply = await client.reply("PATCH")
        assert (reply.status, reply.interims) == (409, [])
        assert reply["upload-offset"] == "5"
    assert handler.bodies == [b"12345"]


OPEN = b"Content-Offset: 5\r\n\r\n"
CHUNKED = {"Transfer-Encoding": "chunked"}


def as_chunk(data: bytes) -> bytes:
    """One chunk, and no last one: the sender has not ended its content."""
    return b"%x\r\n%b\r\n" % (len(data), data)


WRONG_PATCHES: dict[str, tuple[str, dict[str, str], bytes]] = {
    "tus elsewhere": ("tus", CHUNKED, b""),
    "rufh elsewhere": ("rufh", CHUNKED, b""),
    "rufh to go on": (
        "rufh",
        {**CHUNKED, **appends(NEWEST, 5, False)},
        b"",
    ),
    "rufh of another length": (
        "rufh",
        {**CHUNKED, "Upload-Offset": "5", "Upload-Length": "7"},
        b"",
    ),
    "tus with a byte": ("tus", {**CHUNKED, "Upload-Offset": "5"}, as_chunk(b"x")),
    "long": ("seed", {"Content-Length": "100000"}, b""),
    "range": (
        "seed",
        {"Content-Length": "35"},
        b"Content-Range: bytes 0-4/5\r\n\r\n",
    ),
    "rest": ("seed", {"Content-Length": "100"}, OPEN),
    "chunked range": (
        "seed",
        CHUNKED,
        as_chunk(b"Content-Range: bytes 0-4/5\r\n\r\n"),
    ),
    "another length": (
        "seed",
        CHUNKED,
        as_chunk(b"Content-Offset: 5;complete-length=7\r\n\r\n"),
    ),
    "chunked rest": ("seed", CHUNKED, as_chunk(OPEN + b"x")),
    "multipart": (
        "seed",
        {**CHUNKED, "Content-Type": "multipart/byteranges; boundary=b"},
        as_chunk(b"--b\r\nContent-Range: bytes 0-4/5\r\n\r\n"),
    ),
}


@pytest.mark.parametrize("name", WRONG_PATCHES)
async def test_wrong_patch_of_a_complete_upload_is_refused_when_it_shows_itself(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """R24: by its head, by a part's fields, or by its first byte of content."""
    dialect, more, sent = WRONG_PATCHES[name]
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        if dialect == "seed":
            path = (await client.request("POST", "/", RESUME, b"12345")).content
            fields = BYTERANGE
        else:
            path, fields = await complete_upload(client, dialect)
        started = trio.current_time()
        await client.send(head("PATCH", path, {**fields, **more}) + sent)
        reply = await client.reply("PATCH")
        assert (reply.status, reply.code) == (409, "upload-complete")
        assert reply["upload-offset"] == "5"
        assert trio.current_time() == started
    assert handler.bodies == [b"12345"]


@pytest.mark.parametrize("sent", [OPEN, b"Content-Range: bytes */5\r\n\r\n"])
async def test_empty_patch_at_the_end_of_a_complete_upload_is_right(
    sent: bytes,
) -> None:
    """R24: it changes nothing, and gets the response."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = (await client.request("POST", "/", RESUME, b"12345")).content
        reply = await client.request("PATCH", path, BYTERANGE, sent)
        assert reply.status == 200
    assert handler.bodies == [b"12345"]
