"""What a process does with what it owns: it renews it, hands it over whole, and releases it."""

from __future__ import annotations

import pytest
import trio

from tests.server.harness import Recorder, byterange, head
from tests.server.seed import BODY
from tests.server.shared.services import (
    half_patch,
    id_of,
    offset_of,
    shared_services,
    until,
)
from tests.store.helpers import do, record
from trioresume import Config
from trioresume.protocol.operation import OperationState
from trioresume.server.serving import Tuning
from trioresume.store.port import CreateOperation, OperationId

_S = OperationState


async def test_what_is_not_used_belongs_to_nobody() -> None:
    """So another process claims it without asking, and nothing in memory is out of date."""
    async with shared_services(Recorder()) as shared:
        writer = await shared.cut(0, 100)
        assert shared.loaded(0, writer.location) is None
        reply = await shared.connect(1).patch(writer.location, 100, BODY[100:200], 512)
        assert reply.status == 204
        await shared.rest(writer.location)
        assert await offset_of(shared.connect(0), writer.location) == 200
        await shared.rest(writer.location)
        for service in shared.services:
            await until(lambda service=service: not service.operations.loaded)  # type: ignore[misc]


async def test_upload_without_a_promise_leaves_nothing() -> None:
    """No client was told of it: nobody has to release it."""
    async with shared_services(Recorder()) as shared:
        reply = await shared.connect(0).request("POST", "/", {}, BODY)
        assert reply.status == 200
        store = shared.memory.store
        await until(lambda: not store.count_operations())
        assert not any(known.owner for known in shared.memory._world.owned.values())


async def test_owner_that_uses_nothing_answers_a_claim() -> None:
    """It owns what a command has created, without a request for it."""
    name = OperationId("U" * 22)
    async with shared_services(Recorder()) as shared:
        do(shared.stores[0], CreateOperation(record(name, expires_at=2e9)))
        location = f"/operations/{name}/content"
        began = trio.current_time()
        reply = await shared.connect(1).request("DELETE", location)
        assert reply.status == 204
        assert trio.current_time() - began < 2


async def test_content_that_is_not_to_be_kept_ends_with_its_writer() -> None:
    """R23: as in one process; the newcomer finds that it is gone."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.begin(0, 100, prefer="resume=ignore-incomplete")
        reply = await shared.connect(1).patch(writer.location, 100, BODY[100:], 512)
        assert reply.status == 410
        assert (await writer.client.reply()).status in (409, 410)
    assert not handler.bodies


async def test_patch_that_is_judged_as_a_whole_is_given_up_on_the_way() -> None:
    """B8: another process takes over in the middle of it; nothing of it counts."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.cut(0, 100)
        client = shared.connect(0)
        document = byterange(100, BODY[100:], 512)
        fields = {
            "Content-Type": "message/byterange",
            "Prefer": "transaction=atomic",
        }
        start = head("PATCH", writer.location, fields, length=len(document))
        await client.send(start + document[:300])

        def arrived() -> bool:
            operation = shared.loaded(0, writer.location)
            return operation is not None and operation.incoming.offset > 300

        await until(arrived)
        assert await offset_of(shared.connect(1), writer.location) == 100
        assert (await client.reply()).status == 409
        other = shared.connect(1)
        reply = await other.patch(writer.location, 100, BODY[100:], len(BODY))
        assert reply.status == 200
    assert handler.bodies == [BODY]


async def test_missed_notices_are_made_up_for() -> None:
    """An owner that missed its loss sees it, and a view that missed a change looks again."""
    async with shared_services(
        slow := Recorder(gate=trio.Event()),
        takeover_timeout=0.05,
        tuning=Tuning(ask_timeout=0.05),
    ) as shared:
        writer = await shared.begin(0, 100)
        shared.stores[0].is_stopped = True
        client = shared.connect(1)
        await client.patch(writer.location, 50, BODY[50:], len(BODY))
        await half_patch(client := shared.connect(1), writer.location, 100, 10)
        await until(lambda: shared.owner(writer.location) == 1)
        shared.stores[0].miss()
        shared.stores[0].is_stopped = False
        ended = await writer.client.reply()
        assert (ended.status, ended.code) == (409, "superseded")
        await client.send(BODY[110:])
        with trio.fail_after(10):
            await slow.begun.wait()
        viewer = shared.connect(0)
        replies = []
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                asked = {"Prefer": "wait=20"}
                replies.append(await viewer.request("GET", writer.message, asked))

            nursery.start_soon(wait)
            await until(lambda: shared.stores[0].followed)
            await until(
                lambda: (v := shared.loaded(0, writer.message)) and v.is_working
            )
            shared.stores[0].is_stopped = True
            assert slow.gate is not None
            slow.gate.set()
            assert (await client.reply()).status == 200
            shared.stores[0].miss()
            shared.stores[0].is_stopped = False
        assert replies[0].status == 200
    assert slow.bodies == [BODY]


# Expiry.


async def test_owner_renews_what_is_in_use() -> None:
    """G11: no process expires what another one receives, and its death leaves time to resume."""
    config = Config(incomplete_lifetime=0.8, tombstone_lifetime=60)
    async with shared_services(handler := Recorder(), config) as shared:
        writer = await shared.begin(0, 100)
        first = shared.memory.store.operation(id_of(writer.location))
        assert first is not None

        def renewed() -> bool:
            latest = shared.memory.store.operation(id_of(writer.location))
            assert latest is not None
            assert latest.state is _S.RECEIVING
            return latest.expires_at > first.expires_at + 1.0

        await until(renewed)
        await writer.client.send(BODY[100:])
        assert (await writer.client.reply()).status == 200
    assert handler.bodies == [BODY]


@pytest.mark.parametrize("dies", [False, True])
async def test_any_process_expires_what_nobody_owns(dies: bool) -> None:
    """G5: the one that received it, or another one, which learns of the deadline later."""
    config = Config(incomplete_lifetime=0.3, tombstone_lifetime=60)
    tuning = Tuning(shared_load_every=0.1)
    async with shared_services(Recorder(), config, tuning=tuning) as shared:
        writer = await shared.cut(0, 100)
        if dies:
            shared.kill(0)

        def expired() -> bool:
            latest = shared.memory.store.operation(id_of(writer.location))
            assert latest is not None
            return latest.state is _S.GONE

        await until(expired)
        reply = await shared.connect(1).request("HEAD", writer.location)
        assert reply.status == 410


async def test_reading_a_response_renews_it_for_its_owner() -> None:
    """R29: a process that only looks claims it for that, once the renewal is due."""
    config = Config(response_lifetime=2.0)
    async with shared_services(Recorder(), config) as shared:
        writer = await shared.begin(0, 100)
        await writer.client.send(BODY[100:])
        assert (await writer.client.reply()).status == 200
        await shared.rest(writer.location)
        first = shared.memory.store.operation(id_of(writer.location))
        assert first is not None
        await trio.sleep(0.3)  # beyond the tenth by which a renewal may be late
        assert (await shared.connect(1).request("GET", writer.message)).status == 200

        def renewed() -> bool:
            latest = shared.memory.store.operation(id_of(writer.location))
            assert latest is not None
            return latest.expires_at > first.expires_at + 0.2

        await until(renewed)
        await shared.rest(writer.location)
