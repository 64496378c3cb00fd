"""Which events the life of an upload has, in each dialect, and what they say."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.hooks.receivers import Receiver, hooks
from tests.server.harness import head, memory_service
from tests.server.tus import BODY, MARK, append, b64, create, upload
from trioresume import Config, FileService, PeerError, ProblemCode, Response
from trioresume.store.port import EventRecord
from trioresume.testing.memory_store import MemoryStore

METADATA = {
    "Upload-Metadata": f"filename {b64(b'a b.txt')},filetype {b64(b'text/plain')},x"
}


def waiting(store: MemoryStore) -> list[EventRecord]:
    return store.events(dead=False, after=0, limit=100)


async def test_tus_upload_is_told_from_its_creation_to_its_end(
    autojump_clock: MockClock,
) -> None:
    """The events come in order, and say what tusd's say."""
    receiver = Receiver()
    async with memory_service(FileService(), Config(hooks=hooks(receiver))) as service:
        client = service.connect()
        path = await create(client, len(BODY), METADATA)
        await append(client, path, 0, BODY[:10])
        await append(client, path, 10, BODY[10:], {"Cookie": "secret=1"})
        finished = await receiver.until("post-finish")
    assert receiver.kinds[:2] == ["pre-create", "post-create"]
    assert receiver.kinds[-2:] == ["pre-finish", "post-finish"]
    created = receiver.of("post-create")
    name = path.split("/")[2]
    assert created.upload == {
        "ID": name,
        "Size": len(BODY),
        "SizeIsDeferred": False,
        "Offset": 0,
        "MetaData": {"filename": "a b.txt", "filetype": "text/plain", "x": ""},
        "IsPartial": False,
        "IsFinal": False,
        "PartialUploads": None,
        "Storage": None,
    }
    request = created.document["Event"]["HTTPRequest"]
    assert (request["Method"], request["URI"]) == ("POST", "/files/")
    assert request["Header"]["Tus-Resumable"] == ["1.0.0"]
    assert finished.upload["Offset"] == finished.upload["Size"] == len(BODY)
    assert finished.upload["Storage"]["Type"] == "trioresume"
    assert finished.document["Event"]["HTTPRequest"]["Method"] == "PATCH"
    # What is stored has no credentials; a question that is asked at once has them.
    assert "Cookie" not in finished.request_fields
    assert receiver.of("pre-finish").request_fields["Cookie"] == ["secret=1"]
    assert receiver.of("pre-create").upload["ID"] == ""
    assert len({event.id for event in receiver.events}) == len(receiver.events)


@pytest.mark.parametrize(
    "prefer", [{}, {"Prefer": "resume"}, {"Upload-Complete": "?1"}]
)
async def test_plain_request_is_an_upload_in_every_dialect(
    prefer: dict[str, str], autojump_clock: MockClock
) -> None:
    """Seed, RUFH, and a client that knows neither."""
    receiver = Receiver()
    async with memory_service(FileService(), Config(hooks=hooks(receiver))) as service:
        fields = {**prefer, "Content-Disposition": 'attachment; filename="n.txt"'}
        reply = await service.connect().request("POST", "/files/", fields, b"content")
        assert reply.status == 201
        finished = await receiver.until("post-finish")
    # What is told afterwards comes in order; a question does not wait for it.
    order = ["pre-create", "pre-finish"], ["post-create", "post-finish"]
    for kinds in order:
        assert [kind for kind in receiver.kinds if kind in kinds] == kinds
    assert finished.upload["MetaData"] == {"filename": "n.txt"}
    stored = reply["location"].rpartition("/")[2]
    assert finished.upload["Storage"]["Path"] == stored


async def test_removing_a_file_is_no_upload(autojump_clock: MockClock) -> None:
    """Neither are requests that only read."""
    receiver = Receiver()
    async with memory_service(FileService(), Config(hooks=hooks(receiver))) as service:
        client = service.connect()
        assert (await client.request("PUT", "/files/a", (), b"a")).status == 201
        await receiver.until("post-finish")
        before = len(receiver.tried)
        assert (await client.request("GET", "/files/a")).status == 200
        assert (await client.request("DELETE", "/files/a")).status == 204
    assert len(receiver.tried) == before


async def test_cancelled_upload_is_told_once(autojump_clock: MockClock) -> None:
    """With the reason; a released response is no news."""
    receiver = Receiver()
    async with memory_service(FileService(), Config(hooks=hooks(receiver))) as service:
        client = service.connect()
        path = await create(client)
        assert (await client.request("DELETE", path, MARK)).status == 204
        ended = await receiver.until("post-terminate")
        assert ended.document["Event"]["Reason"] == "cancelled"
        done = await upload(client, BODY)
        await receiver.until("post-finish")
        assert (await client.request("DELETE", done, MARK)).status == 204
        await trio.sleep(1)  # virtual: what was delivered is dropped
        assert waiting(service.store) == []
    assert receiver.kinds.count("post-terminate") == 1
    assert receiver.kinds.count("pre-terminate") == 1


async def test_cut_upload_is_interrupted_at_its_durable_offset(
    autojump_clock: MockClock,
) -> None:
    """And one that is not kept has ended."""
    receiver = Receiver()
    async with memory_service(FileService(), Config(hooks=hooks(receiver))) as service:
        path = await create(service.connect())
        cut = service.connect()
        fields = {**MARK, "Content-Type": "application/offset+octet-stream"}
        fields["Upload-Offset"] = "0"
        await cut.send(head("PATCH", path, fields, length=len(BODY)) + BODY[:100])
        await cut.aclose()
        told = await receiver.until("interrupted")
        assert told.upload["Offset"] == 100
        plain = service.connect()
        await plain.send(head("POST", "/files/", length=100) + b"some")
        await plain.aclose()
        ended = await receiver.until("post-terminate")
        assert ended.document["Event"]["Reason"] == "cut"


async def test_interruptions_do_not_fill_the_outbox(autojump_clock: MockClock) -> None:
    """One upload that is cut again and again, while nobody takes its events."""
    receiver = Receiver()
    receiver.gate = trio.Event()
    config = Config(hooks=hooks(receiver, ["interrupted"], max_waiting=3))
    async with memory_service(FileService(), config) as service:
        path = await create(service.connect())
        for number in range(3):
            cut = service.connect()
            fields = {**MARK, "Content-Type": "application/offset+octet-stream"}
            fields["Upload-Offset"] = str(number)
            await cut.send(head("PATCH", path, fields, length=9) + BODY[number:][:1])
            await cut.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert len(waiting(service.store)) == number + 1
        refused = await append(service.connect(), path, 3, BODY[3:])
        assert (refused.status, refused.code) == (503, "service-unavailable")
        asked = await service.connect().request("HEAD", path, MARK)
        assert asked["upload-offset"] == "3"
        receiver.gate.set()
        await receiver.until("interrupted", 3)
        await trio.sleep(2)
        assert (await append(service.connect(), path, 3, BODY[3:])).status == 204


async def test_refused_patch_and_takeover_are_no_interruption(
    autojump_clock: MockClock,
) -> None:
    """The connection was not lost, or the content goes on."""
    receiver = Receiver()
    async with memory_service(FileService(), Config(hooks=hooks(receiver))) as service:
        path = await create(service.connect())
        assert (await append(service.connect(), path, 7, b"x")).status == 409
        cut = service.connect()
        fields = {**MARK, "Content-Type": "application/offset+octet-stream"}
        fields["Upload-Offset"] = "0"
        await cut.send(head("PATCH", path, fields, length=len(BODY)) + BODY[:100])
        await trio.testing.wait_all_tasks_blocked()
        assert (await append(service.connect(), path, 100, BODY[100:])).status == 204
        await receiver.until("post-finish")
    assert "interrupted" not in receiver.kinds


async def test_expired_upload_is_told(autojump_clock: MockClock) -> None:
    """It has ended without a client."""
    receiver = Receiver()
    config = Config(hooks=hooks(receiver), incomplete_lifetime=100.0)
    async with memory_service(FileService(), config) as service:
        await create(service.connect())
        await trio.sleep(200)
        await receiver.until("expired")
    assert "post-terminate" not in receiver.kinds


async def test_upload_that_the_target_refuses_is_not_finished(
    autojump_clock: MockClock,
) -> None:
    """A receiver must not take a failed upload for a stored one."""

    async def refuse(request: object) -> Response:
        raise PeerError(ProblemCode.FORBIDDEN)

    receiver = Receiver()
    async with memory_service(refuse, Config(hooks=hooks(receiver))) as service:
        reply = await service.connect().request("POST", "/", (), b"content")
        assert reply.status == 403
        ended = await receiver.until("post-terminate")
        assert ended.document["Event"]["Reason"] == "refused"
    assert "post-finish" not in receiver.kinds


async def test_parts_are_told_as_parts(autojump_clock: MockClock) -> None:
    """And the upload that joins them names them."""
    receiver = Receiver()
    async with memory_service(FileService(), Config(hooks=hooks(receiver))) as service:
        client = service.connect()
        part = await upload(client, BODY, {"Upload-Concat": "partial"})
        finished = await receiver.until("post-finish")
        assert finished.upload["IsPartial"] is True
        fields = {**MARK, "Upload-Concat": f"final;{part}"}
        assert (await client.request("POST", "/files/", fields, b"")).status == 201
        whole = await receiver.until("post-finish", 2)
        assert whole.upload["IsFinal"] is True
        assert whole.upload["PartialUploads"] == [part.split("/")[2]]
        assert whole.upload["Size"] == len(BODY)
    assert receiver.kinds.count("pre-finish") == 1  # parts call no target


async def test_event_is_in_the_commit_of_its_change(autojump_clock: MockClock) -> None:
    """Promise 12: nothing is told that did not happen, and what happened is told."""
    receiver = Receiver()
    receiver.gate = trio.Event()
    store = MemoryStore(chunk_size=64)
    batches: list[list[str]] = []
    apply = store.apply

    def watch(batch):  # type: ignore[no-untyped-def]
        for submission in batch:
            names = [type(mutation).__name__ for mutation in submission]
            batches.append(names)
        return apply(batch)

    store.apply = watch  # type: ignore[method-assign]
    config = Config(hooks=hooks(receiver, ["post-create", "post-finish"]))
    async with memory_service(FileService(), config, store=store) as service:
        await upload(service.connect(), BODY)
        await receiver.until_true(lambda: len(receiver.tried) > 0)
        assert [event.kind for event in waiting(store)] == [
            "post-create",
            "post-finish",
        ]
    with_events = [names for names in batches if "RecordEvent" in names]
    assert with_events[0] == ["CreateOperation", "RecordEvent"]
    assert {"RecordResponse", "PublishFile"} <= set(with_events[1])
    assert len(with_events) == 2


async def test_events_that_nobody_wants_are_not_recorded(
    autojump_clock: MockClock,
) -> None:
    """The outbox has only the enabled ones."""
    receiver = Receiver()
    config = Config(hooks=hooks(receiver, ["post-finish"]))
    async with memory_service(FileService(), config) as service:
        await upload(service.connect(), BODY)
        await receiver.until("post-finish")
    assert receiver.kinds == ["post-finish"]


async def test_upload_of_somebody_is_told_with_the_name(
    autojump_clock: MockClock,
) -> None:
    """``Principal`` is a member that tusd does not have."""
    from trioresume import Principal

    async def authenticate(_: object) -> Principal:
        return Principal("alice")

    receiver = Receiver()
    config = Config(hooks=hooks(receiver), authenticate=authenticate)
    async with memory_service(FileService(), config) as service:
        await upload(service.connect(), BODY)
        finished = await receiver.until("post-finish")
    assert finished.document["Event"]["Principal"] == "alice"
