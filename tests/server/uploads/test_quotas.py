"""Quotas: stored bytes and open uploads, reserved at creation, released at the end (G7)."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Client,
    MemoryService,
    Recorder,
    SocketService,
    byterange,
    chunked,
    head,
    memory_service,
    socket_service,
)
from trioresume import Config, FileService, Principal, RequestHead
from trioresume.errors import PeerError, StorageConflict, StorageError
from trioresume.server.uploads.quotas import MOST_FOLLOWED, Quotas
from trioresume.store.port import Mutation, Usage, request_key
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock

ROW = 4096
KIB = 1024
MIB = 1024 * KIB


async def authenticate(request: RequestHead) -> Principal:
    """Whoever says so is believed."""
    return Principal(request.fields.get("x-name") or "nobody")


def _as(name: str, **more: str) -> dict[str, str]:
    return {"X-Name": name, **RESUME, **more}


@asynccontextmanager
async def _files(
    data_dir: Path, **settings: Any
) -> AsyncIterator[tuple[SocketService, Client]]:
    async with socket_service(
        FileService(), data_dir, authenticate=authenticate, **settings
    ) as service:
        async with service.connect() as client:
            yield service, client


# On sockets, with a store on disk.


async def test_principal_cannot_store_more_than_its_quota(tmp_path: Path) -> None:
    """G7: 507 before the content is asked for; others go on; deleting makes room."""
    async with _files(
        tmp_path, max_stored_bytes_per_principal=100 * KIB, response_lifetime=3600
    ) as (service, client):
        plain = {"X-Name": "a"}
        reply = await client.request("PUT", "/files/1", plain, bytes(60 * KIB))
        assert reply.status == 201
        await client.send(
            head(
                "PUT", "/files/2", {**plain, "Expect": "100-continue"}, length=60 * KIB
            )
        )
        reply = await client.reply()
        assert (reply.status, reply.code) == (507, "quota-exceeded")
        assert reply.interims == []
        async with service.connect() as other:
            body = bytes([1]) * 60 * KIB
            assert (
                await other.request("PUT", "/files/2", {"X-Name": "b"}, body)
            ).status == 201
            assert (await other.request("DELETE", "/files/1", plain)).status == 204
            reply = await other.request("PUT", "/files/2", plain, bytes(60 * KIB))
            assert reply.status == 201


@pytest.mark.parametrize("prefer", ["resume", "processing", "respond-async, wait=0"])
async def test_deletion_at_the_quota_leaves_no_record(
    tmp_path: Path, prefer: str
) -> None:
    """G7: it is let through, or nothing could be removed; its preferences are ignored."""
    limits = {"max_stored_bytes": 2 * ROW + 100 * KIB}
    async with _files(tmp_path, **limits) as (service, client):
        long = {"X-Name": "a", "Prefer": prefer, "X-Long": "x" * 10_000}
        for number in range(2):
            body = bytes([number]) * 40 * KIB
            reply = await client.request(
                "PUT", f"/files/{number}", {"X-Name": "a"}, body
            )
            assert reply.status == 201
        upload = head("POST", "/files/", _as("a"), length=ROW)
        await client.send(upload)
        assert (await client.interim()).status == 100
        async with service.connect() as other:
            refused = await other.request(
                "PUT", "/files/x", {"X-Name": "a"}, b"x" * ROW * 5
            )
            assert refused.status == 507
        async with service.connect() as other:
            reply = await other.request("DELETE", "/files/0", long)
            assert reply.status == 204
            assert reply.interims == []
            for name in ("preference-applied", "content-location", "location"):
                assert reply.get(name) is None
            assert (await other.request("HEAD", "/files/0", long)).status == 404


async def test_everybody_together_cannot_store_more_than_the_whole(
    tmp_path: Path,
) -> None:
    """G7: a byte that two keep counts for both, though it is stored once."""
    async with _files(tmp_path, max_stored_bytes=100 * KIB) as (_, client):
        body = bytes(45 * KIB)
        for name, status in (("a", 201), ("b", 201), ("c", 507)):
            fields = {"X-Name": name, "Connection": "keep-alive"}
            reply = await client.request("PUT", "/files/1", fields, body)
            assert reply.status == status


async def test_flood_of_declared_lengths_reserves_no_more_than_there_is(
    tmp_path: Path,
) -> None:
    """G7: a hundred uploads at once, and the sum of what was let in is within the quota."""
    async with _files(tmp_path, max_stored_bytes_per_principal=1000 * KIB) as (
        service,
        _,
    ):
        statuses: list[int] = []

        async def begin(stack: trio.Nursery) -> None:
            async with service.connect() as client:
                await client.send(head("POST", "/files/", _as("a"), length=90 * KIB))
                data = bytes(await client.stream.receive_some())
                statuses.append(int(data[9:12]))
                if len(statuses) == 100:
                    stack.cancel_scope.cancel()
                await trio.sleep_forever()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(begin, nursery)
        assert statuses.count(100) == 10  # each with a row: 94 KiB
        assert statuses.count(507) == 90


async def test_flood_of_uploads_leaves_the_disk_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: with no quota at all, what is to stay free stays free; the service lives on."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _SmallDisk(tmp_path))
    statuses: list[int] = []
    settings = {"min_free_space": 40 * MIB, "chunk_size": MIB}
    async with _files(tmp_path, **settings) as (service, client):

        async def upload(number: int) -> None:
            body = random.Random(number).randbytes(8 * MIB)
            async with service.connect() as other:
                answered = 0
                try:
                    reply = await other.request(
                        "PUT", f"/files/{number}", _as("a"), body
                    )
                    answered = reply.status
                except trio.BrokenResourceError:
                    pass  # refused before all of it was sent
                statuses.append(answered)

        await upload(0)
        async with trio.open_nursery() as nursery:
            for number in range(1, 12):
                nursery.start_soon(upload, number)
        # Less what the catalog took, and what was written between two looks at the disk.
        assert _SmallDisk(tmp_path).free >= 32 * MIB
        assert 1 <= statuses.count(201) <= 7
        assert statuses.count(507) >= 1
        assert set(statuses) <= {201, 507, 0}
        # The catalog has room: what is there is served, and what makes room is done.
        stored = [n for n in range(12) if await _is_there(client, n)]
        assert len(stored) == statuses.count(201)
        reply = await client.request("DELETE", f"/files/{stored[0]}", _as("a"))
        assert reply.status == 204


class _SmallDisk:
    """A disk of 1 GiB with 100 MiB free, less what lies in *directory*."""

    total = 1024 * MIB

    def __init__(self, directory: Path) -> None:
        used: dict[int, int] = {}
        for folder, _, names in os.walk(directory):
            for name in names:
                try:
                    status = os.lstat(os.path.join(folder, name))
                except FileNotFoundError:
                    continue  # it became a chunk
                used[status.st_ino] = status.st_blocks * 512
        self.free = 100 * MIB - sum(used.values())


async def _is_there(client: Client, number: int) -> bool:
    reply = await client.request("GET", f"/files/{number}", _as("a", Range="bytes=0-0"))
    return reply.status == 206


async def test_flood_of_open_uploads_is_capped(tmp_path: Path) -> None:
    """G5: 429 at the limit; an upload that ends makes room for another."""
    async with _files(tmp_path, max_open_uploads_per_principal=5) as (service, client):
        started = []
        for _ in range(5):
            async with service.connect() as other:
                start = head("POST", "/files/", _as("a"), length=9)
                await other.send(start)
                started.append(await other.interim())
        reply = await client.request("POST", "/files/", _as("a"), b"x")
        assert (reply.status, reply.code) == (429, "too-many-uploads")
        async with service.connect() as other:
            assert (
                await other.request("POST", "/files/", _as("b"), b"x")
            ).status == 201
            location = started[0].fields.get("request-content-location") or ""
            assert (await other.request("DELETE", location, _as("a"))).status == 204
            assert (
                await other.request("POST", "/files/", _as("a"), b"x")
            ).status == 201


@pytest.mark.parametrize("kill", [False, True])
async def test_quota_is_the_same_after_a_restart(tmp_path: Path, kill: bool) -> None:
    """G7: what was reserved is still reserved, and what is resumed needs no more."""
    settings: dict[str, Any] = {"max_stored_bytes_per_principal": 100 * KIB}
    async with _files(tmp_path, **settings) as (_, client):
        await client.send(
            head("POST", "/files/", _as("a"), length=90 * KIB) + bytes(KIB)
        )
        interim = await client.interim()
        if not kill:
            await client.aclose()
            await trio.sleep(0.05)
    location = interim.fields.get("request-content-location") or ""
    async with _files(tmp_path, **settings) as (service, client):
        reply = await client.request("POST", "/files/", _as("a"), bytes(20 * KIB))
        assert reply.status == 507
        async with service.connect() as client:
            shown = await client.request("HEAD", location, _as("a"))
            offset = int(shown["upload-offset"])
            rest = byterange(offset, bytes(90 * KIB - offset), 90 * KIB)
            fields = _as("a", **{"Content-Type": "message/byterange"})
            assert (await client.request("PATCH", location, fields, rest)).status == 201


# In memory: what is taken, to the byte.


def _usage(service: MemoryService, principal: str | None = None) -> Usage:
    return service.store.usage(principal)


async def test_reservation_follows_what_is_known_of_the_length(
    autojump_clock: Clock,
) -> None:
    """G7: a step while it is unknown, the length from then on, the content at the end."""
    config = Config(max_stored_bytes=10**9)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        await client.send(
            head("POST", "/", {"Transfer-Encoding": "chunked", **RESUME})
            + b"3\r\nabc\r\n"
        )
        location = (await client.interim()).fields.get("request-content-location") or ""
        assert _usage(service) == Usage(ROW + 1024 * KIB, 1)
        await client.aclose()
        client = service.connect()
        fields = {"Content-Type": "message/byterange"}
        # The length is stated, and the connection ends before it is reached.
        await client.request("PATCH", location, fields, byterange(3, b"de", 10))
        assert _usage(service) == Usage(ROW + 10, 1)
        await client.request("PATCH", location, fields, byterange(5, b"fghij", 10))
        assert _usage(service) == Usage(ROW + 10, 0)
        await client.request("DELETE", location)
        assert _usage(service) == Usage()
        assert service.operations._quotas._pending == {}


async def test_chunked_content_is_cut_where_the_quota_ends(
    autojump_clock: Clock,
) -> None:
    """G7: 507; what arrived is kept, and goes on when there is space."""
    config = Config(max_stored_bytes=2000 * KIB)
    store = MemoryStore(chunk_size=256 * KIB)
    async with memory_service(handler := Recorder(), config, store=store) as service:
        first = await service.connect().request("POST", "/", RESUME, bytes(500 * KIB))
        client = service.connect()
        fields = {"Transfer-Encoding": "chunked", **RESUME}
        body = bytes([1]) * 1600 * KIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_all, client, head("POST", "/", fields), body)
            reply = await client.reply()
            nursery.cancel_scope.cancel()
        assert (reply.status, reply.code) == (507, "quota-exceeded")
        location = reply.content
        client = service.connect()
        offset = int((await client.request("HEAD", location))["upload-offset"])
        assert 1300 * KIB < offset <= 1500 * KIB
        assert _usage(service).bytes <= 2000 * KIB
        patched = await client.patch(location, offset, body[offset:], len(body))
        assert (patched.status, patched.code) == (507, "quota-exceeded")
        assert (await service.connect().request("DELETE", first.content)).status == 204
        reply = await service.connect().patch(
            location, offset, body[offset:], len(body)
        )
        assert reply.status == 200
    assert handler.bodies[-1] == body


async def _send_all(client: Client, start: bytes, body: bytes) -> None:
    try:
        await client.send(start + chunked(body, 64 * KIB))
    except trio.BrokenResourceError:
        pass  # the answer came first


async def test_steps_are_in_the_catalog_before_what_they_are_for(
    autojump_clock: Clock,
) -> None:
    """G7: an announced offset is never beyond what is reserved."""
    store = MemoryStore(chunk_size=256 * KIB)
    async with memory_service(Recorder(), store=store) as service:
        client = service.connect()
        await client.send(head("POST", "/", {"Transfer-Encoding": "chunked", **RESUME}))
        location = (await client.interim()).fields.get("request-content-location") or ""
        for _ in range(5):
            await client.send(b"c0000\r\n" + bytes(768 * KIB) + b"\r\n")
            await trio.testing.wait_all_tasks_blocked()
            (record,) = [
                r for r in service.store._operations.values() if r.id in location
            ]
            assert record.reserved >= service.store.offset(request_key(record.id))
        assert service.operations._quotas._pending == {}


async def test_pending_reservations_end_with_their_uploads(
    autojump_clock: Clock,
) -> None:
    """Whatever becomes of an upload, nothing of it stays behind."""
    config = Config(max_stored_bytes=10**9)
    async with memory_service(Recorder(), config) as service:
        for fields in ({}, RESUME, {"Prefer": "resume=ignore-incomplete"}):
            for body in (b"", b"abc"):
                client = service.connect()
                await client.send(head("POST", "/", fields, length=3) + body)
                await trio.testing.wait_all_tasks_blocked()
                await client.aclose()
                await trio.testing.wait_all_tasks_blocked()
        quotas = service.operations._quotas
        assert (quotas._pending, quotas._uploads, quotas._bytes) == ({}, {}, {})
        assert quotas._all_bytes == 0


async def test_what_is_being_stored_is_not_counted_twice(autojump_clock: Clock) -> None:
    """G7: between a commit and the news of it, too, an upload takes one place."""
    seen: list[tuple[int, int]] = []

    class Slow(MemoryStore):
        """Somebody asks for a place right after each commit."""

        def apply(
            self, submissions: Sequence[Sequence[Mutation]]
        ) -> list[StorageConflict | None]:
            results = super().apply(submissions)
            quotas = service.operations._quotas
            quotas._check_uploads(None)
            quotas._space(None, 500)
            seen.append((quotas._usage(None).open_uploads, quotas._total()))
            return results

    config = Config(max_open_uploads_per_principal=2, max_stored_bytes=ROW + 1600)
    async with memory_service(Recorder(), config, store=Slow()) as service:
        client = service.connect()
        await client.send(head("POST", "/", RESUME, length=1000) + b"abc")
        await client.interim()
        await trio.testing.wait_all_tasks_blocked()
        quotas = service.operations._quotas
        assert seen[0] == (0, 0)
        assert (quotas._usage(None).open_uploads, quotas._total()) == (1, ROW + 1000)
        with pytest.raises(PeerError):
            quotas._space(None, 601)


async def test_accounts_that_cannot_be_read_undo_no_commit(
    autojump_clock: Clock,
) -> None:
    """What was stored is stored: the accounts are asked for again when they matter."""

    class Unread(MemoryStore):
        """Its accounts cannot be read right after a commit."""

        committed = 0
        is_new = False

        def apply(
            self, submissions: Sequence[Sequence[Mutation]]
        ) -> list[StorageConflict | None]:
            self.committed += 1
            self.is_new = True
            return super().apply(submissions)

        def usage(self, principal: str | None) -> Usage:
            if self.is_new:
                self.is_new = False
                raise StorageError("not now")
            return super().usage(principal)

    config = Config(max_open_uploads_per_principal=2)
    store = Unread()
    async with memory_service(Recorder(), config, store=store) as service:
        for _ in range(3):
            reply = await service.connect().request("POST", "/", RESUME, b"abc")
            assert reply.status == 200
        assert store.committed >= 3
        assert store.usage(None).open_uploads == 0


def test_only_some_principals_are_counted_with_each_commit() -> None:
    """Each costs a statement: those who were asked for last."""
    counted: list[str | None] = []

    class Noting(MemoryStore):
        def usage(self, principal: str | None) -> Usage:
            counted.append(principal)
            return super().usage(principal)

    quotas = Quotas(Noting(), Config(max_open_uploads_per_principal=2))
    for number in [*range(MOST_FOLLOWED + 5), 5]:
        quotas._check_uploads(str(number))
    counted.clear()
    quotas.before_batch()()()
    assert counted == [*map(str, range(6, MOST_FOLLOWED + 5)), "5"]
    counted.clear()
    quotas._check_uploads("5")
    assert counted == []
    quotas._check_uploads("0")
    assert counted == ["0"]


async def test_empty_patches_do_not_make_an_upload_immortal(
    autojump_clock: Clock,
) -> None:
    """G5: after max_upload_lifetime no further request is taken, and it is released."""
    config = Config(max_upload_lifetime=1000, incomplete_lifetime=100)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        interim = await client.start(9, b"abc")
        location = interim.fields.get("request-content-location") or ""
        await client.aclose()
        began = trio.current_time()
        statuses: list[int] = []
        while not statuses or statuses[-1] == 204:
            await trio.sleep(50)
            nothing = byterange(3, b"", 9, last=8)
            reply = await service.connect().request(
                "PATCH", location, BYTERANGE, nothing
            )
            statuses.append(reply.status)
            assert len(statuses) < 100
        assert statuses[-1] in (404, 410)
        assert 950 <= trio.current_time() - began <= 1050
        await trio.sleep(2 * config.tombstone_lifetime)
        assert _usage(service) == Usage()


async def test_writer_is_not_cut_by_the_lifetime_but_the_next_one_is_refused(
    autojump_clock: Clock,
) -> None:
    """Promise 9: who sends may go on; who comes back too late is told that it is over."""
    config = Config(max_upload_lifetime=100, min_body_rate=0)
    async with memory_service(handler := Recorder(), config) as service:
        client = service.connect()
        await client.start(9)
        late = await service.connect().start(4)
        for at in range(9):
            await trio.sleep(30)
            await client.send(b"123456789"[at : at + 1])
        assert (await client.reply()).status == 200
        location = late.fields.get("request-content-location") or ""
        assert (await service.connect().request("HEAD", location)).status == 410
    assert handler.bodies == [b"123456789"]
