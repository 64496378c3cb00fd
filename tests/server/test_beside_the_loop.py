"""The event loop changes nothing on the disk and hashes no content: threads do."""

from __future__ import annotations

import functools
import hashlib
import random
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import trioresume
from tests.server.harness import (
    BYTERANGE,
    Recorder,
    Reply,
    SocketService,
    byterange,
    chunked,
    head,
)
from trioresume.protocol.digests import Hashes
from trioresume.store.disk import DiskStore
from trioresume.store.disk_io import Disk
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
    mine = {name for name, thread in found if thread == threading.get_ident()}
    assert mine == set()
    names = {name for name, _ in found}
    assert names >= {"create", "write_some", "sync_data", "commit", "update"}


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
