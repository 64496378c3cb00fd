"""The newest writer wins: R21, R25 and G10, in memory and timed on sockets."""

from __future__ import annotations

import random
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import h11
import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    Client,
    Recorder,
    byterange,
    head,
    memory_service,
    socket_service,
)
from tests.server.seed import BODY
from tests.stopwatch import Stopwatch
from trioresume import Config, PeerError
from trioresume.errors import ProblemCode
from trioresume.protocol.operation import OperationState
from trioresume.server.http.http1.body import LAST_TIME
from trioresume.server.uploads.incoming_content import IncomingContent
from trioresume.server.uploads.operation import Operation
from trioresume.store.file_system.disk_io import Descriptor, Disk
from trioresume.store.port import OperationId

Clock = trio.testing.MockClock


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
async def test_newcomer_ends_a_silent_open_writer(
    method: str, autojump_clock: Clock
) -> None:
    """R21: no waiting for a dead peer's timeout: no time passes at all."""
    async with memory_service(handler := Recorder()) as service:
        silent = service.connect()
        interim = await silent.start(512, BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        client = service.connect()
        if method == "PATCH":
            reply = await client.patch(location, 100, BODY[100:], 512)
            assert reply.status == 200
        elif method == "HEAD":
            reply = await client.request("HEAD", location)
            assert reply["upload-offset"] == "100"
        else:
            assert (await client.request("DELETE", location)).status == 204
        assert trio.current_time() == started
        ended = await silent.reply()
        cancelled = method == "DELETE"
        expected = (410, "gone") if cancelled else (409, "superseded")
        assert (ended.status, ended.code) == expected
        assert ended["connection"] == "close"
    assert handler.bodies == ([BODY] if method == "PATCH" else [])


@pytest.mark.parametrize("step", ["open_writer", "_begin_flush"])
async def test_offset_is_told_though_the_upload_is_completed_meanwhile(
    step: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """R21: a writer that ends while a HEAD waits for the disk is no failure of the HEAD."""

    late = getattr(IncomingContent, step)

    async def overtaken(*args: object) -> object:
        monkeypatch.undo()
        reply = await service.connect().patch(location, 100, BODY[100:], 512)
        assert reply.status == 200
        return await late(*args)

    async with memory_service(handler := Recorder()) as service:
        interim = await service.connect().start(512, BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(IncomingContent, step, overtaken)
        reply = await service.connect().request("HEAD", location)
        assert reply.status == 200
        assert reply["upload-offset"] == "512"
    assert handler.bodies == [BODY]


async def test_bytes_of_the_old_writer_are_never_written_later(
    autojump_clock: Clock,
) -> None:
    """R21: what it sends after the takeover goes nowhere, also at the right offset."""
    async with memory_service(handler := Recorder()) as service:
        theirs, ours = service.transports()
        old = Client(ours)
        interim = await old.start(512, BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        theirs.never_readable = True
        await old.send(b"\xff" * 200)  # on the wire, not yet accepted
        client = service.connect()
        reply = await client.request("HEAD", location)
        assert reply["upload-offset"] == "100"
        theirs.set_readable()
        await old.send(b"\xff" * 100)
        await trio.testing.wait_all_tasks_blocked()
        reply = await client.request("HEAD", location)
        assert reply["upload-offset"] == "100"
        assert (await client.patch(location, 100, BODY[100:], 512)).status == 200
    assert handler.bodies == [BODY]


async def test_what_arrived_before_the_takeover_counts(autojump_clock: Clock) -> None:
    """R21: the older request's bytes are saved before the newcomer sees the offset."""
    async with memory_service(handler := Recorder()) as service:
        old = service.connect()
        interim = await old.start(512, BODY[:100])
        location = interim.fields.get("request-content-location") or ""
        for at in range(100, 300, 50):
            client = service.connect()
            patch = byterange(at, BODY[at : at + 50], 512, last=511)
            await client.send(
                head("PATCH", location, BYTERANGE, length=len(patch) + 50) + patch
            )
            await trio.testing.wait_all_tasks_blocked()
        shown = await service.connect().request("HEAD", location)
        assert shown["upload-offset"] == "300"
        reply = await service.connect().patch(location, 300, BODY[300:], 512)
        assert reply.status == 200
    assert handler.bodies == [BODY]


@pytest.mark.parametrize("heads", [0, 3])
async def test_storm_of_takeovers_is_won_by_the_newest(
    heads: int, autojump_clock: Clock
) -> None:
    """R21, G10: of many at once the one that came last writes; the bytes are right."""
    for _ in range(20):  # trio wakes tasks in random order
        async with memory_service(handler := Recorder()) as service:
            first = service.connect()
            interim = await first.start(512, BODY[:100])
            location = interim.fields.get("request-content-location") or ""
            await trio.testing.wait_all_tasks_blocked()
            clients = []
            patch = byterange(100, BODY[100:], 512)
            for _ in range(8):
                clients.append(service.connect())
                start = head("PATCH", location, BYTERANGE, length=len(patch))
                await clients[-1].send(start + patch[:-1])
                for _ in range(heads):
                    service.connections.start_soon(
                        service.connect().request, "HEAD", location
                    )
                await trio.testing.wait_all_tasks_blocked()
            # A HEAD that came on its heels may have ended the first one at once.
            at = int(
                (await service.connect().request("HEAD", location))["upload-offset"]
            )
            assert at == 511 if not heads else at in (100, 511)
            reply = await service.connect().patch(location, at, BODY[at:], 512)
            assert reply.status == 200
            for client in clients:
                assert (await client.reply()).status == 409
        assert handler.bodies == [BODY]


async def test_simultaneous_newcomers_leave_one_winner(autojump_clock: Clock) -> None:
    """R21: woken together, an older newcomer does not end a newer one."""
    for _ in range(20):
        async with memory_service(handler := Recorder()) as service:
            first = service.connect()
            interim = await first.start(512, BODY[:100])
            location = interim.fields.get("request-content-location") or ""
            await trio.testing.wait_all_tasks_blocked()
            statuses: list[int] = []

            async def patch() -> None:
                reply = await service.connect().patch(location, 100, BODY[100:], 512)  # noqa: B023
                statuses.append(reply.status)  # noqa: B023

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(patch)
            assert statuses.count(200) == 1
            assert service.used <= 1
        assert handler.bodies == [BODY]


@pytest.mark.alone
async def test_takeover_takes_milliseconds(tmp_path: Path) -> None:
    """R21: under 50 ms on real sockets with a store on disk; the median of several.

    The best of up to three: what else the machine does is not the service's doing.
    """
    body = bytes(range(256)) * 4096
    medians: dict[str, float] = {}
    watch = Stopwatch()
    async with socket_service(Recorder(), tmp_path) as service:
        for method in ["HEAD", "PATCH", "DELETE"] * 3:
            if medians.get(method, 1) < 0.05:
                continue
            times: list[float] = []
            async with AsyncExitStack() as connections, service.connect() as client:
                # All of them at once: each is received only after half a second of silence.
                begun: list[tuple[Client, str]] = []
                for _ in range(7):
                    silent = await connections.enter_async_context(service.connect())
                    interim = await silent.start(len(body), body[:300_000])
                    location = interim.fields.get("request-content-location") or ""
                    begun.append((silent, location))
                for _, location in begun:
                    shown = None
                    while shown != "300000":
                        reply = await client.request(
                            "GET", location, {"Range": "bytes=0-0"}
                        )
                        shown = reply["upload-offset"]
                for silent, location in begun:
                    watch.start()
                    if method == "PATCH":
                        patch = byterange(300_000, body[300_000:400_000], len(body))
                        reply = await client.request(
                            "PATCH", location, BYTERANGE, patch
                        )
                        assert reply.status == 204
                    else:
                        reply = await client.request(method, location)
                        assert reply.status in (200, 204)
                    times.append(watch.seconds())
                    ended = await silent.reply()
                    assert ended.status == (410 if method == "DELETE" else 409)
            medians[method] = statistics.median(times)
    assert max(medians.values()) < 0.05, medians


@pytest.fixture
def slow_clock() -> Clock:
    """A clock by which the time for the last bytes is ten seconds, on a busy machine, too."""
    return Clock(rate=LAST_TIME / 10)


async def test_what_is_on_its_way_is_taken_before_the_takeover(
    tmp_path: Path, slow_clock: Clock
) -> None:
    """R21: what the buffers of both ends hold need not be sent again."""
    body = random.Random(1).randbytes(8 << 20)
    async with (
        socket_service(Recorder(), tmp_path, receive_memory=64 * 1024) as service,
        service.connect() as sender,
        service.connect() as newcomer,
    ):
        interim = await sender.start(2 * len(body))
        location = interim.fields.get("request-content-location") or ""
        await sender.send(body)  # returns when the last of it is in the kernel
        reply = await newcomer.request("HEAD", location)
        assert reply["upload-offset"] == str(len(body))
        reply = await newcomer.request("GET", location, {"Range": "bytes=8000000-"})
        assert reply.body == body[8_000_000:]


async def test_visitor_that_wakes_late_does_not_end_a_newer_writer(
    autojump_clock: Clock,
) -> None:
    """R21: it ended who wrote when it came; who came after it is not its business."""
    async with memory_service(Recorder()) as service:
        for _ in range(20):  # trio wakes the two in random order
            client = service.connect()
            interim = await client.start(512)
            await client.aclose()
            await trio.testing.wait_all_tasks_blocked()
            location = interim.fields.get("request-content-location") or ""
            async with service.operations.use(
                OperationId(location.split("/")[2])
            ) as operation:
                assert operation is not None
                await _race(operation.incoming)


async def _race(incoming: IncomingContent) -> None:
    async def oldest() -> None:
        place = await incoming.turns.end_writer()
        with pytest.raises(PeerError, match="superseded"):
            async with incoming.writing(place):
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(1)

    async def visitor() -> None:
        await incoming.turns.end_writer()

    async def newest() -> None:
        place = await incoming.turns.end_writer()
        async with incoming.writing(place):
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for function in (oldest, visitor, newest):
            nursery.start_soon(function)
            await trio.testing.wait_all_tasks_blocked()


ENDINGS = ("cancel", "cut", "end_overdue")


@pytest.mark.parametrize("ending", ENDINGS)
async def test_ending_ends_a_writer_that_is_newer_than_it(
    ending: str, autojump_clock: Clock
) -> None:
    """R25: both wait for the same writer to leave; whoever wakes first, it is gone.

    The newer one is told 410, and nothing of it fails.
    """
    config = Config(max_upload_lifetime=100)
    async with memory_service(Recorder(), config) as service:
        for _ in range(20):  # trio wakes the two in random order
            client = service.connect()
            interim = await client.start(512)
            await client.aclose()
            await trio.testing.wait_all_tasks_blocked()
            location = interim.fields.get("request-content-location") or ""
            name = OperationId(location.split("/")[2])
            async with service.operations.use(name) as operation:
                assert operation is not None
                operation.record = replace(
                    operation.record, keep_incomplete=ending != "cut"
                )
                await _end_beside_a_newer_writer(operation, ending)
                assert operation.state is OperationState.GONE
            answer = await service.connect().request("HEAD", location)
            assert answer.status == 410


async def _end_beside_a_newer_writer(operation: Operation, ending: str) -> None:
    incoming = operation.incoming

    async def oldest() -> None:
        place = await incoming.turns.end_writer()
        with pytest.raises(PeerError):
            async with incoming.writing(place):
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(1 if ending != "end_overdue" else 200)

    async def end() -> None:
        if ending == "end_overdue":
            await trio.sleep(150)
        await getattr(operation, ending)()

    async def newer() -> None:
        if ending == "end_overdue":
            await trio.sleep(151)
        with pytest.raises(PeerError) as caught:
            async with incoming.writing(await incoming.turns.end_writer()):
                await trio.lowlevel.checkpoint()
                incoming.append(memoryview(b"newer"))
                await trio.sleep(1)
        assert caught.value.problem is ProblemCode.GONE

    async with trio.open_nursery() as nursery:
        for function in (oldest, end, newer):
            nursery.start_soon(function)
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("endings", [1, 3])
async def test_storm_of_endings_beside_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endings: int
) -> None:
    """R25: DELETEs among PATCHes that wait for each other's turn: 204 or 410, never 500.

    The disk is slow, so that who leaves takes a while, and others come meanwhile.
    """
    original = Disk.sync_data

    def slow(disk: Disk, file: Descriptor) -> None:
        time.sleep(0.01)
        original(disk, file)

    monkeypatch.setattr(Disk, "sync_data", slow)
    draw = random.Random(endings)
    body = bytes(range(256)) * 4096
    async with socket_service(Recorder(), tmp_path, chunk_size=64 * 1024) as service:

        async def patch(location: str, seen: list[int]) -> None:
            async with service.connect() as client:
                content = byterange(len(body), body, 2 * len(body))
                request = head("PATCH", location, BYTERANGE, length=len(content))
                await trio.sleep(draw.random() * 0.01)
                try:
                    await client.send(request + content[:100_000])  # and goes on
                    seen.append((await client.reply()).status)
                except (trio.BrokenResourceError, h11.RemoteProtocolError):
                    pass  # refused while it was sending

        async def delete(location: str, seen: list[int]) -> None:
            async with service.connect() as client:
                await trio.sleep(draw.random() * 0.01)
                seen.append((await client.request("DELETE", location)).status)

        for _ in range(25):
            patched: list[int] = []
            deleted: list[int] = []
            async with service.connect() as client, service.connect() as another:
                interim = await client.start(2 * len(body))
                location = interim.fields.get("request-content-location") or ""
                await client.send(body)
                async with trio.open_nursery() as nursery:
                    for _ in range(endings):
                        nursery.start_soon(delete, location, deleted)
                    for _ in range(3):
                        nursery.start_soon(patch, location, patched)
                assert (await another.request("HEAD", location)).status == 410
            assert sorted(deleted) == [204] + [410] * (endings - 1)
            assert set(patched) <= {409, 410}
