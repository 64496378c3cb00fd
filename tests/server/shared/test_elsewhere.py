"""Each kind of request, in each state of an upload, here and in another process."""

from __future__ import annotations

import pytest
import trio

from tests.server.harness import Recorder
from tests.server.seed import BODY
from tests.server.shared.services import (
    empty_patch,
    half_patch,
    id_of,
    offset_of,
    shared_services,
    until,
)
from trioresume import Config, Principal
from trioresume.protocol.heads import RequestHead
from trioresume.protocol.operation import OperationState
from trioresume.server.serving import Tuning

_S = OperationState


async def test_upload_is_continued_in_another_process() -> None:
    """Cut in one, asked for and ended in the other: the content is whole, processed once."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.cut(0, 100)
        client = shared.connect(1)
        assert await offset_of(client, writer.location) == 100
        reply = await client.patch(writer.location, 100, BODY[100:], len(BODY))
        assert (reply.status, reply.body) == (200, b"got 512 bytes")
        for at in (0, 1):
            again = await shared.connect(at).request("GET", writer.message)
            assert again.status == 200
            assert b"got 512 bytes" in again.body
        await shared.rest(writer.location)
    assert handler.bodies == [BODY]


async def test_offset_is_asked_while_another_process_receives() -> None:
    """R12: the running writer ends there, and all that has arrived counts."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.begin(0, 300)
        client = shared.connect(1)
        assert await offset_of(client, writer.location) == 300
        ended = await writer.client.reply()
        assert (ended.status, ended.code) == (409, "superseded")
        record = shared.memory.store.operation(id_of(writer.location))
        assert record is not None
        assert record.durable_offset == 300
        reply = await client.patch(writer.location, 300, BODY[300:], len(BODY))
        assert reply.status == 200
    assert handler.bodies == [BODY]


async def test_newest_patch_wins_wherever_it_arrives() -> None:
    """R21: it claims the upload, and the writer of the other process is superseded."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.begin(0, 100)
        client = shared.connect(1)
        reply = await client.patch(writer.location, 100, BODY[100:], len(BODY))
        assert reply.status == 200
        ended = await writer.client.reply()
        assert (ended.status, ended.code) == (409, "superseded")
        assert ended["connection"] == "close"
    assert handler.bodies == [BODY]


async def test_writers_take_turns_between_processes() -> None:
    """Each PATCH goes on where the one before was ended; nothing is lost or written twice."""
    async with shared_services(handler := Recorder(), processes=3) as shared:
        writer = await shared.begin(0, 10)
        earlier, offset = writer.client, 10
        for turn in range(1, 24):
            client = shared.connect(turn % 3)
            assert await offset_of(client, writer.location) == offset
            assert (await earlier.reply()).status == 409
            await half_patch(client, writer.location, offset, 20)
            offset += 20

            def arrived(turn: int = turn, offset: int = offset) -> bool:
                operation = shared.loaded(turn % 3, writer.location)
                return operation is not None and operation.incoming.offset == offset

            await until(arrived)
            assert shared.owner(writer.location) == turn % 3
            earlier = client
        last = shared.connect(0)
        reply = await last.patch(writer.location, offset, BODY[offset:], len(BODY))
        assert reply.status == 200
    assert handler.bodies == [BODY]


async def test_both_cancel_what_another_process_receives() -> None:
    """R25: the writer is told, and the upload is gone everywhere."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.begin(0, 100)
        assert (
            await shared.connect(1).request("DELETE", writer.location)
        ).status == 204
        ended = await writer.client.reply()
        assert ended.status in (409, 410)
        for at in (0, 1):
            reply = await shared.connect(at).request("HEAD", writer.location)
            assert reply.status == 410
    assert not handler.bodies


async def test_wrong_offset_is_refused_after_the_claim() -> None:
    """The offset that the refusal tells is that of all that has arrived elsewhere."""
    async with shared_services(Recorder()) as shared:
        writer = await shared.begin(0, 100)
        reply = await shared.connect(1).patch(writer.location, 50, BODY[50:], len(BODY))
        assert (reply.status, reply["upload-offset"]) == (409, "100")
        assert (await writer.client.reply()).status == 409
        assert await offset_of(shared.connect(0), writer.location) == 100


async def test_prefix_is_read_while_another_process_receives() -> None:
    """R13: reading ends no writer."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.begin(0, 200)
        reply = await shared.connect(1).request("GET", writer.location)
        assert reply.body == BODY[:200]
        await writer.client.send(BODY[200:])
        assert (await writer.client.reply()).status == 200
    assert handler.bodies == [BODY]


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
async def test_strangers_upload_does_not_exist(method: str) -> None:
    """R35: and its owner is not disturbed."""

    async def principal(head: RequestHead) -> Principal:
        return Principal("me" if head.method == "POST" else "other")

    config = Config(authenticate=principal)
    async with shared_services(Recorder(), config) as shared:
        writer = await shared.begin(0, 200)
        reply = await shared.connect(1).request(method, writer.location, body=b"")
        assert reply.status == 404
        assert shared.owner(writer.location) == 0
        assert not shared.stores[1].followed


# While the target is being called.


@pytest.fixture
def slow() -> Recorder:
    """A handler that waits for its gate."""
    return Recorder(gate=trio.Event())


def open_gate(handler: Recorder) -> None:
    assert handler.gate is not None
    handler.gate.set()


async def test_patch_waits_for_the_outcome_of_another_process(slow: Recorder) -> None:
    """R24: an empty PATCH at the end gets the target's response, which is called once."""
    async with shared_services(slow) as shared:
        writer = await shared.processed(0, slow)
        async with trio.open_nursery() as nursery:
            replies = []

            async def ask() -> None:
                replies.append(await empty_patch(shared.connect(1), writer.location))

            nursery.start_soon(ask)
            await until(lambda: shared.loaded(1, writer.location))
            open_gate(slow)
        assert [reply.status for reply in replies] == [200]
        assert (await writer.client.reply()).status == 200
    assert slow.bodies == [BODY]


async def test_content_after_the_end_is_refused(slow: Recorder) -> None:
    """R24: also if the end was in another process."""
    async with shared_services(slow) as shared:
        writer = await shared.processed(0, slow)
        reply = await shared.connect(1).patch(writer.location, 100, BODY[100:], 512)
        assert (reply.status, reply.code) == (409, "upload-complete")
        assert reply["upload-offset"] == "512"
        open_gate(slow)
        assert (await writer.client.reply()).status == 200
    assert slow.bodies == [BODY]


async def test_offset_of_what_another_process_processes(slow: Recorder) -> None:
    """All bytes are there, and its owner goes on."""
    async with shared_services(slow) as shared:
        writer = await shared.processed(0, slow)
        reply = await shared.connect(1).request("HEAD", writer.location)
        assert reply["upload-offset"] == "512"
        assert reply["upload-complete"] == "?1"
        open_gate(slow)
        assert (await writer.client.reply()).status == 200
    assert slow.bodies == [BODY]


async def test_message_is_followed(slow: Recorder) -> None:
    """R27: it waits for the outcome that another process records."""
    async with shared_services(slow) as shared:
        writer = await shared.processed(0, slow)
        early = await shared.connect(1).request("GET", writer.message)
        assert (early.status, early.json["state"]) == (202, "processing")
        client = shared.connect(1)
        async with trio.open_nursery() as nursery:
            replies = []

            async def wait() -> None:
                replies.append(
                    await client.request("GET", writer.message, {"Prefer": "wait=20"})
                )

            nursery.start_soon(wait)
            await until(lambda: shared.stores[1].followed)
            open_gate(slow)
        assert replies[0].status == 200
        assert b"got 512 bytes" in replies[0].body
        await until(lambda: not shared.stores[1].followed)
    assert slow.bodies == [BODY]


async def test_cancellation_reaches_the_process_that_processes(slow: Recorder) -> None:
    """R25: the upload is gone at once; the target ends, and its answer is dropped."""
    async with shared_services(slow) as shared:
        writer = await shared.processed(0, slow)
        reply = await shared.connect(1).request("DELETE", writer.location)
        assert reply.status == 204
        record = shared.memory.store.operation(id_of(writer.location))
        assert record is not None
        assert record.state is _S.ABANDONED
        for at in (0, 1):
            gone = await shared.connect(at).request("GET", writer.message)
            assert gone.status == 410
        open_gate(slow)
        assert (await writer.client.reply()).status == 410
        await shared.rest(writer.location)
    assert slow.bodies == [BODY]


async def test_response_is_deleted_in_another_process() -> None:
    """R29: nobody owns it any more, so the process that is asked claims it."""
    async with shared_services(Recorder()) as shared:
        writer = await shared.begin(0, 100)
        await writer.client.send(BODY[100:])
        assert (await writer.client.reply()).status == 200
        await shared.rest(writer.location)
        assert (await shared.connect(1).request("DELETE", writer.message)).status == 204
        for at in (0, 1):
            reply = await shared.connect(at).request("GET", writer.message)
            assert reply.status == 410


# Owners that do not answer.


async def test_offset_of_a_stopped_owner_is_what_it_has_recorded() -> None:
    """Within a bounded time, and never less than it has announced."""
    tuning = Tuning(ask_timeout=0.05)
    async with shared_services(Recorder(), tuning=tuning) as shared:
        writer = await shared.begin(0, 200)
        store, key = shared.memory.store, id_of(writer.location)
        await until(lambda: getattr(store.operation(key), "durable_offset", 0) == 192)
        shared.stores[0].is_stopped = True
        assert await offset_of(shared.connect(1), writer.location) == 192  # 3 chunks
        shared.stores[0].is_stopped = False


async def test_stopped_owner_is_fenced_off() -> None:
    """Its writer is superseded as soon as it wants to commit, and writes nothing."""
    async with shared_services(
        handler := Recorder(), takeover_timeout=0.05, tuning=Tuning(ask_timeout=0.05)
    ) as shared:
        writer = await shared.begin(0, 200)
        shared.stores[0].is_stopped = True
        client = shared.connect(1)
        assert await offset_of(client, writer.location) < 200
        reply = await client.patch(writer.location, 50, BODY[50:], len(BODY))
        offset = int(reply["upload-offset"])  # what lies in the files counts as well
        client = shared.connect(1)
        await half_patch(client, writer.location, offset, 10)
        await until(lambda: shared.owner(writer.location) == 1)
        await writer.client.send(BODY[200:300])
        ended = await writer.client.reply()
        assert (ended.status, ended.code) == (409, "superseded")
        shared.stores[0].is_stopped = False
        await client.send(BODY[offset + 10 :])
        last = await client.reply()
        assert last.status == 200, last
    assert handler.bodies == [BODY]


async def test_dead_owner_is_followed_by_the_next_writer() -> None:
    """What it has recorded is there; nobody waits for it."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.begin(0, 200)
        first = await offset_of(shared.connect(1), writer.location)
        assert (first, (await writer.client.reply()).status) == (200, 409)
        client = shared.connect(0)
        await half_patch(client, writer.location, 200, 50)
        await until(lambda: shared.owner(writer.location) == 0)
        shared.kill(0)
        client = shared.connect(1)
        offset = await offset_of(client, writer.location)
        assert offset >= 200
        reply = await client.patch(writer.location, offset, BODY[offset:], len(BODY))
        assert reply.status == 200
    assert handler.bodies == [BODY]


async def test_call_of_a_dead_process_is_indeterminate(slow: Recorder) -> None:
    """R31: another process takes it up at once, and tells whoever waits."""
    other = Recorder()
    async with shared_services([slow, other]) as shared:
        writer = await shared.processed(0, slow)
        client = shared.connect(1)
        async with trio.open_nursery() as nursery:
            replies = []

            async def wait() -> None:
                replies.append(
                    await client.request("GET", writer.message, {"Prefer": "wait=20"})
                )

            nursery.start_soon(wait)
            await until(lambda: shared.stores[1].followed)
            shared.kill(0)
        assert replies[0].status == 200
        assert b"indeterminate" in replies[0].body
    assert not other.bodies


async def test_fenced_off_process_records_no_response(slow: Recorder) -> None:
    """It was stopped while its target was called: what another process recorded stands."""
    other = Recorder()
    async with shared_services(
        [slow, other], takeover_timeout=0.05, tuning=Tuning(ask_timeout=0.05)
    ) as shared:
        writer = await shared.processed(0, slow)
        shared.stores[0].is_stopped = True
        reply = await empty_patch(shared.connect(1), writer.location)
        assert reply.code == "indeterminate"
        open_gate(slow)
        answer = await writer.client.reply()
        assert answer.code == "indeterminate"
        shared.stores[0].is_stopped = False
        message = await shared.connect(0).request("GET", writer.message)
        assert b"indeterminate" in message.body
    assert (slow.bodies, other.bodies) == ([BODY], [])
