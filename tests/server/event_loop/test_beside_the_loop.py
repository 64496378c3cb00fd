"""The event loop changes nothing on the disk and hashes no content: threads do."""

from __future__ import annotations

import functools
import hashlib
import random
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import trioresume
from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Recorder,
    Reply,
    SocketService,
    byterange,
    chunked,
    head,
    socket_service,
)
from tests.server.rufh import NEWEST, says
from trioresume.protocol.digests import Hashes
from trioresume.store.disk.tails import DiskWriter
from trioresume.store.disk_store import DiskStore
from trioresume.store.file_system.disk_io import Disk
from trioresume.store.port import Usage

CHUNK = 256 * 1024
BODY = random.Random(7).randbytes(3 * CHUNK + 1000)
LARGE = random.Random(8).randbytes(2 * 1024 * 1024)
"""Several pieces of the memory for content."""

CHANGES = (
    "create",
    "open",
    "truncate",
    "unlink",
    "link",
    "replace",
    "write_some",
    "write_all",
    "sync_data",
    "sync_directory",
    "make_directory",
    "commit",
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """What was called, and by which thread."""
    found: Counter[tuple[str, int]] = Counter()

    def watch(owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def noting(*args: object, **kwargs: object) -> object:
            found[name, threading.get_ident()] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    for name in CHANGES:
        watch(Disk, name)
    watch(Hashes, "update")
    for name in ("append", "finish"):
        watch(DiskWriter, name)
    return found


def _digest(data: bytes) -> str:
    return f"sha-256=:{b64encode(hashlib.sha256(data).digest()).decode()}:"


async def _upload(service: SocketService, body: bytes) -> str:
    """Begin an upload and leave it with a part of *body*; where its content is."""
    async with service.connect() as client:
        interim = await client.start(len(body), body[: len(body) // 3])
        location = interim.fields.get("request-content-location")
        assert location is not None
        return location


async def _patch(
    service: SocketService, location: str, body: bytes, fields: dict[str, str]
) -> Reply:
    async with service.connect() as client:
        offset = int((await client.request("HEAD", location))["upload-offset"])
        patch = byterange(offset, body[offset:], len(body))
        digest = {"Content-Digest": _digest(patch)} if "digest" in fields else {}
        prefer = {"Prefer": fields["prefer"]} if "prefer" in fields else {}
        return await client.request(
            "PATCH", location, {**BYTERANGE, **digest, **prefer}, patch
        )


@pytest.mark.parametrize("durability", ["disk", "process"])
async def test_threads_write_and_hash(
    tmp_path: Path, calls: Counter[tuple[str, int]], durability: Any
) -> None:
    """Of small and large content, known or chunked, whole, cut, patched or held back."""
    handler = Recorder()
    config = trioresume.Config(
        bind=["127.0.0.1:0"],
        data_dir=tmp_path / "data",
        durability=durability,
        chunk_size=CHUNK,
    )
    sent: list[bytes] = []
    async with trio.open_nursery() as nursery:
        service = SocketService(await nursery.start(trioresume.serve, handler, config))
        calls.clear()
        for body in (b"small", BODY):
            async with service.connect() as client:
                assert (await client.request("POST", "/", (), body)).status == 200
                fields = {"Prefer": "resume", "Repr-Digest": _digest(body)}
                assert (await client.request("POST", "/", fields, body)).status == 200
                fields = {"Transfer-Encoding": "chunked"}
                start = head("POST", "/", {**fields, "Content-Digest": _digest(body)})
                await client.send(start + chunked(body, 50_000))
                assert (await client.reply()).status == 200
                sent += [body] * 3
        for fields in (
            {},
            {"digest": ""},
            {"prefer": "transaction=atomic"},
            {"digest": "", "prefer": "transaction=atomic"},
        ):
            for body in (BODY, LARGE):
                location = await _upload(service, body)
                reply = await _patch(service, location, body, fields)
                assert reply.status == 200, reply
                sent.append(body)
        location = await _upload(service, BODY)
        async with service.connect() as client:
            assert (await client.request("DELETE", location)).status == 204
        found = calls.copy()
        nursery.cancel_scope.cancel()
    assert handler.bodies == sent
    _in_threads(found, names={"create", "write_some", "sync_data", "commit", "update"})


async def _blocks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def _in_threads(calls: Counter[tuple[str, int]], *, names: set[str]) -> None:
    """Assert that the event loop called nothing, and threads called *names*."""
    mine = {name for name, thread in calls if thread == threading.get_ident()}
    assert mine == set()
    assert {name for name, _ in calls} >= names


@pytest.mark.parametrize("durability", ["disk", "process"])
async def test_threads_write_responses(
    tmp_path: Path, calls: Counter[tuple[str, int]], durability: Any
) -> None:
    """Small and large, in one piece, in large blocks and in many small ones."""
    bodies: list[Callable[[], bytes | AsyncIterable[bytes]]] = [
        lambda: b"small",
        lambda: LARGE,
        lambda: _blocks(LARGE, 1024 * 1024),
        lambda: _blocks(BODY, 1000),
        lambda: _blocks(b"", 1),
    ]
    expected = [b"small", LARGE, LARGE, BODY, b""]
    made = iter(bodies)

    async def handler(request: trioresume.Request) -> trioresume.Response:
        return trioresume.Response(200, {}, next(made)())

    async with socket_service(
        handler, tmp_path, durability=durability, chunk_size=CHUNK
    ) as service:
        calls.clear()
        for body in expected:
            async with service.connect() as client:
                reply = await client.request("POST", "/", RESUME, b"x")
                assert (reply.status, reply.body) == (200, body)
                replayed = await client.request("GET", reply.message)
                assert replayed.body.endswith(body)
                result = await client.request("GET", reply.result)
                assert result.body == body
        found = calls.copy()
    _in_threads(found, names={"create", "write_some", "commit", "append", "finish"})


async def test_threads_keep_files(
    tmp_path: Path, calls: Counter[tuple[str, int]]
) -> None:
    """The file service stores, replaces, sends and removes a file."""
    async with socket_service(
        trioresume.FileService(), tmp_path, durability="disk", chunk_size=CHUNK
    ) as service:
        calls.clear()
        async with service.connect() as client:
            for body, status in ((BODY, 201), (LARGE, 204)):
                reply = await client.request("PUT", "/files/a", {}, body)
                assert reply.status == status, reply
                assert (await client.request("GET", "/files/a")).body == body
            assert (await client.request("DELETE", "/files/a")).status == 204
        found = calls.copy()
    _in_threads(found, names={"create", "write_some", "sync_data", "commit", "append"})


@pytest.mark.parametrize(
    "fields", [{"Prefer": "resume, acknowledge"}, says(NEWEST, True)]
)
async def test_threads_sync_for_progress(
    tmp_path: Path, calls: Counter[tuple[str, int]], fields: dict[str, str]
) -> None:
    """A client that is told how much is durable, in the middle of a chunk."""
    config = {"durability": "disk", "chunk_size": CHUNK, "acknowledge_interval": 0.01}
    async with (
        socket_service(Recorder(), tmp_path, **config) as service,
        service.connect() as client,
    ):
        calls.clear()
        part = len(BODY) - 500
        await client.send(head("POST", "/", fields, length=len(BODY)) + BODY[:part])
        told = "0"
        while told != str(part):
            interim = await client.interim()
            told = (
                interim.fields.get("acknowledge")
                or interim.fields.get("upload-offset")
                or "0"
            )
        found = calls.copy()
    _in_threads(found, names={"create", "write_some", "sync_data", "commit", "append"})


async def test_quotas_are_counted_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop looks only for a principal that it has not seen."""
    asked: list[int] = []
    original = DiskStore.usage

    def usage(store: DiskStore, principal: str | None) -> Usage:
        asked.append(threading.get_ident())
        return original(store, principal)

    monkeypatch.setattr(DiskStore, "usage", usage)
    config = trioresume.Config(
        bind=["127.0.0.1:0"],
        data_dir=tmp_path / "data",
        max_open_uploads_per_principal=5,
        max_stored_bytes_per_principal=10 * len(BODY),
    )
    async with trio.open_nursery() as nursery:
        service = SocketService(
            await nursery.start(trioresume.serve, Recorder(), config)
        )
        for _ in range(5):
            location = await _upload(service, BODY)
            assert (await _patch(service, location, BODY, {})).status == 200
        await _upload(service, BODY)
        nursery.cancel_scope.cancel()
    mine = [thread for thread in asked if thread == threading.get_ident()]
    # Once more if that met a commit of the start, after which it may be another answer.
    assert len(mine) <= 2
    assert len(asked) > 10
