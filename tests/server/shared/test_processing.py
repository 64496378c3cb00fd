"""What is processed in one process of several: who hears of it, who goes on with it, and once."""

from __future__ import annotations

import pytest
import trio

from tests.server.dialects.test_tus_extensions import PARTS, concatenate, part
from tests.server.harness import Recorder, Reply
from tests.server.seed import BODY
from tests.server.shared.services import (
    Shared,
    Writer,
    id_of,
    shared_services,
    until,
)
from tests.store.helpers import do
from trioresume import (
    CallPolicy,
    Config,
    Fields,
    FileService,
    Request,
    RequestHead,
    Response,
)
from trioresume.errors import CallerError, StorageError, TargetUnavailable
from trioresume.protocol.operation import OperationState
from trioresume.server.keeper.retries import Retries
from trioresume.store.port import SetState

_S = OperationState
PROCESSING = {"Prefer": "processing"}


class Steps:
    """A handler that goes on from one step to the next as it is told."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.calls = 0
        self._send, self._receive = trio.open_memory_channel[str](10)

    async def __call__(self, request: Request) -> Response:
        self.calls += 1
        self.begun.set()
        async for step in self._receive:
            if step == "end":
                break
            if step == "hint":
                request.inform(103, Fields({"link": "</a.css>"}))
            else:
                await request.progress(int(step), 10, "step")
        return Response(200, {}, b"done")

    async def go(self, step: str) -> None:
        await self._send.send(step)


async def test_progress_and_hints_reach_other_processes() -> None:
    """B10, R27: who waits at another process is told from where the target is, up to the end."""
    handler = Steps()
    async with shared_services(handler) as shared:
        client = shared.connect(0)
        begun = await client.start(len(BODY), BODY)
        message = begun.fields.get("response-message-location") or ""
        await handler.begun.wait()
        await handler.go("3")
        owner = shared.loaded(0, message)
        assert owner is not None
        await until(lambda: owner.progress)
        other = shared.connect(1)
        replies: list[Reply] = []
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                replies.append(await other.request("GET", message, PROCESSING))

            nursery.start_soon(follow)
            await until(lambda: (v := shared.loaded(1, message)) and v.followers)
            viewer = shared.loaded(1, message)
            assert viewer is not None
            await until(lambda: viewer.progress and viewer.progress.done == 3)
            for step in ("4", "5", "6", "hint"):
                await handler.go(step)
            await until(lambda: viewer.progress and viewer.progress.done == 6)
            await handler.go("end")
        (reply,) = replies
        assert reply.status == 200
        statuses = [interim.status for interim in reply.interims]
        assert 103 in statuses
        told = [i.fields.get("progress") for i in reply.interims if i.status == 102]
        assert told[0] == '3/10 "step"'
    assert handler.calls == 1


class Twice:
    """A target that may be called again, whose first call does not end."""

    policy = CallPolicy.IDEMPOTENT

    def __init__(self) -> None:
        self.calls = 0
        self.begun = trio.Event()

    async def admit(self, head: RequestHead, principal: str | None) -> None:
        return None

    async def respond(self, request: Request) -> Response:
        self.calls += 1
        self.begun.set()
        body = await request.body.read()
        if self.calls == 1:
            await trio.sleep_forever()
        return Response(200, {}, b"%d bytes" % len(body))


async def test_target_that_may_run_twice_is_called_by_another_process() -> None:
    """R31: at once, when the process that was calling it has died."""
    target = Twice()
    async with shared_services(target, processes=3) as shared:
        client = shared.connect(0)
        begun = await client.start(len(BODY), BODY)
        message = begun.fields.get("response-message-location") or ""
        await target.begun.wait()
        shared.kill(0)
        reply = await shared.connect(2).request("GET", message, {"Prefer": "wait=20"})
        assert reply.status == 200
        assert b"512 bytes" in reply.body
    assert target.calls == 2


@pytest.mark.parametrize("state", [_S.COMPLETE, _S.PROCESSING])
async def test_one_process_takes_up_what_the_last_run_has_left(
    state: OperationState,
) -> None:
    """R31: of all that start, one goes on, and another one that lives is left alone."""
    slow = Recorder(gate=trio.Event())
    async with shared_services(slow, processes=3) as shared:
        left = await shared.cut(0, 100)
        busy = await shared.processed(1, slow)
        store = shared.stores[0]
        assert store.claim(id_of(left.location))
        do(store, SetState(id_of(left.location), state))
        store.release(id_of(left.location))
        async with trio.open_nursery() as nursery:
            for service in shared.services:
                nursery.start_soon(service.operations.recover)
        assert slow.gate is not None
        slow.gate.set()
        await shared.rest(busy.location)
        await until(
            lambda: (
                (r := shared.memory.store.operation(id_of(left.location)))
                and r.state is _S.DONE
            )
        )
        record = shared.memory.store.operation(id_of(busy.location))
        assert record is not None
        assert record.response is not None
        assert record.response.status == 200
    assert slow.bodies.count(BODY) == 1
    assert slow.started == (2 if state is _S.COMPLETE else 1)


class Away:
    """A target that cannot take a request until it is back."""

    policy = CallPolicy.AT_MOST_ONCE

    def __init__(self) -> None:
        self.is_back = False
        self.calls = 0

    async def admit(self, head: RequestHead, principal: str | None) -> None:
        return None

    async def respond(self, request: Request) -> Response:
        self.calls += 1
        if not self.is_back:
            raise TargetUnavailable("not now")
        return Response(200, {}, b"at last")


async def waiting(shared: Shared) -> Writer:
    """An upload that was complete in the first process, and waits for its target."""
    client = shared.connect(0)
    reply = await client.request("POST", "/", {"Prefer": "resume"}, BODY)
    assert reply.status == 503
    await shared.rest(reply.content)
    return Writer(client, reply.content, reply.message)


async def test_request_has_a_target_tried_again_by_its_own_process() -> None:
    """C16: nobody owns what waits, so whoever is asked claims it."""
    target = Away()
    async with shared_services(target) as shared:
        writer = await waiting(shared)
        target.is_back = True
        client = shared.connect(1)
        reply = await client.request("GET", writer.message, {"Prefer": "wait=20"})
        assert (reply.status, b"at last" in reply.body) == (200, True)
    assert target.calls == 2


async def test_administrator_has_a_request_tried_again_at_any_process() -> None:
    """R31: and it waits for the outcome if another process is trying it."""
    target = Away()
    async with shared_services(target) as shared:
        writer = await waiting(shared)
        operations = shared.services[1].operations
        retries = Retries(operations, 0.0)
        assert await retries.retry(id_of(writer.location)) is None
        target.is_back = True
        assert await retries.retry(id_of(writer.location)) == 200
        first = Retries(shared.services[0].operations, 0.0)
        with pytest.raises(CallerError):
            await first.retry(id_of(writer.location))


async def test_parts_of_several_processes_become_one_upload() -> None:
    """D7: each part was sent to another process, and a third one joins them."""
    async with shared_services(handler := Recorder(), processes=3) as shared:
        paths = [
            await part(shared.connect(number % 2), data)
            for number, data in enumerate(PARTS)
        ]
        reply = await concatenate(shared.connect(2), *paths)
        assert reply.status == 201
        await until(lambda: handler.bodies)
    assert handler.bodies == [b"".join(PARTS)]


async def test_two_processes_create_one_file_once() -> None:
    """The catalog decides which of the two was first, not the processes."""
    async with shared_services(FileService()) as shared:
        replies: list[Reply] = []

        async def put(at: int) -> None:
            client = shared.connect(at)
            fields = {"If-None-Match": "*"}
            replies.append(await client.request("PUT", "/files/a", fields, b"%d" % at))

        async with trio.open_nursery() as nursery:
            for at in (0, 1):
                nursery.start_soon(put, at)
        assert sorted(reply.status for reply in replies) == [201, 412]
        for at in (0, 1):
            assert (await shared.connect(at).request("GET", "/files/a")).status == 200


async def test_full_account_is_full_in_every_process() -> None:
    """G7: what one process has stored counts in the others."""
    config = Config(max_stored_bytes_per_principal=12_000)
    async with shared_services(FileService(), config) as shared:
        first = await shared.connect(0).request("PUT", "/files/a", {}, bytes(3_000))
        assert first.status == 201
        again = await shared.connect(1).request("PUT", "/files/b", {}, bytes(3_000))
        assert again.status == 507


async def test_storage_that_fails_a_claim_fails_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The upload stays where it is, and another try works."""
    async with shared_services(handler := Recorder()) as shared:
        writer = await shared.cut(0, 100)

        def fail(*args: object, **options: object) -> bool:
            raise StorageError("no way to the catalog")

        with monkeypatch.context() as patched:
            patched.setattr(shared.stores[1], "claim", fail)
            client = shared.connect(1)
            reply = await client.patch(writer.location, 100, BODY[100:], len(BODY))
            assert reply.status >= 500
        reply = await client.patch(writer.location, 100, BODY[100:], len(BODY))
        assert reply.status == 200
    assert handler.bodies == [BODY]
