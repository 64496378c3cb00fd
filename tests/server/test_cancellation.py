"""A connection that is cancelled, broken or hung at each of its steps, and what is left.

An instrument counts the steps of the connection's own task and cancels it before one
of them, so that every await is met: those on the network and those on the store.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    MemoryService,
    Recorder,
    byterange,
    chunked,
    head,
    memory_service,
)
from tests.server.seed import BODY, MULTIPART, multipart
from trioresume import Config
from trioresume.store.port import OperationId
from trioresume.testing import MemoryTransport, memory_transport_pair

Clock = trio.testing.MockClock


class _CancelsAtStep(trio.abc.Instrument):
    """Cancels *scope* before the n-th step of the task it is given."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def _serve_cancelled(
    service: MemoryService, transport: MemoryTransport, instrument: _CancelsAtStep
) -> None:
    with instrument.scope:
        instrument.task = trio.lowlevel.current_task()
        await service._doorman.serve_transport(transport)


async def _check_what_is_left(service: MemoryService, handler: Recorder) -> None:
    """No tasks, no users; the offset is right; the upload can be completed, once."""
    await trio.testing.wait_all_tasks_blocked()
    assert service.used == 0
    assert service._doorman._connections == set()
    for token in list(service.store._operations):
        location = f"/operations/{token}/content"
        client = service.connect()
        shown = await client.request("HEAD", location)
        if shown.status in (404, 410):
            continue  # forgotten, or not to be kept
        at = int(shown["upload-offset"])
        if shown["upload-complete"] == "?0":
            prefix = await client.request("GET", location)
            assert prefix.body == BODY[:at]
            reply = await client.patch(location, at, BODY[at:], len(BODY))
        else:
            reply = await client.request(
                "PATCH", location, BYTERANGE, b"Content-Range: bytes */512\r\n\r\n"
            )
        assert (reply.status, reply.body) == (200, b"got 512 bytes")
        assert handler.bodies == [BODY]
        await client.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert service.used == 0


REQUESTS = {
    "resumable": head("POST", "/", RESUME, length=len(BODY)) + BODY,
    "acknowledged": head(
        "POST", "/", {"Prefer": "resume, acknowledge"}, length=len(BODY)
    )
    + BODY,
    "chunked": head("POST", "/", {**RESUME, "Transfer-Encoding": "chunked"})
    + chunked(BODY, 100),
    "not kept": head(
        "POST", "/", {"Prefer": "resume=ignore-incomplete"}, length=len(BODY)
    )
    + BODY,
    "plain": head("POST", "/", length=len(BODY)) + BODY,
}


async def _send_in_pieces(ours: MemoryTransport, request: bytes) -> None:
    """Send *request* with pauses, and its end; whatever becomes of the connection."""
    try:
        for start in range(0, len(request), 150):
            await ours.send_all(request[start : start + 150])
            await trio.sleep(1)
        await ours.send_eof()
    except trio.BrokenResourceError:
        pass
    await trio.sleep(1)


@pytest.mark.parametrize("kind", REQUESTS)
async def test_upload_cancelled_at_each_step_is_left_in_order(
    kind: str, autojump_clock: Clock
) -> None:
    """R22, R23, R31: from the first step to the last one."""
    request = REQUESTS[kind]
    step = 0
    finished = False
    while not finished:
        step += 1
        instrument = _CancelsAtStep(step)
        async with memory_service(
            handler := Recorder(), Config(acknowledge_interval=0.5)
        ) as service:
            ours, theirs = memory_transport_pair()
            trio.lowlevel.add_instrument(instrument)
            service.connections.start_soon(
                _serve_cancelled, service, theirs, instrument
            )
            await _send_in_pieces(ours, request)
            trio.lowlevel.remove_instrument(instrument)
            finished = instrument.left > 0
            assert theirs.closed
            await _check_what_is_left(service, handler)
            assert len(handler.bodies) <= 1
    assert step > 10


@pytest.mark.parametrize("method", ["PATCH", "multipart", "HEAD", "GET", "DELETE"])
async def test_visit_cancelled_at_each_step_leaves_the_upload_in_order(
    method: str, autojump_clock: Clock
) -> None:
    """R21, B8: the resource's own requests, cancelled anywhere."""
    step = 0
    finished = False
    while not finished:
        step += 1
        instrument = _CancelsAtStep(step)
        async with memory_service(handler := Recorder()) as service:
            client = service.connect()
            interim = await client.start(512, BODY[:100])
            location = interim.fields.get("request-content-location") or ""
            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
            if method == "PATCH":
                patch = byterange(100, BODY[100:], 512)
                data = head("PATCH", location, BYTERANGE, length=len(patch)) + patch
            elif method == "multipart":
                patch = multipart(100, BODY[100:300], BODY[300:], total=512)
                data = head("PATCH", location, MULTIPART, length=len(patch)) + patch
            else:
                data = head(method, location)
            ours, theirs = memory_transport_pair()
            trio.lowlevel.add_instrument(instrument)
            service.connections.start_soon(
                _serve_cancelled, service, theirs, instrument
            )
            await _send_in_pieces(ours, data)
            trio.lowlevel.remove_instrument(instrument)
            finished = instrument.left > 0
            await trio.testing.wait_all_tasks_blocked()
            record = service.store.operation(OperationId(location.split("/")[2]))
            assert record is not None
            if method == "multipart" and record.response is None:
                client = service.connect()
                shown = await client.request("HEAD", location)
                # All or nothing: 512 would be complete.
                assert shown["upload-offset"] in ("100", "512")
                await client.aclose()
            await _check_what_is_left(service, handler)
    assert step > 3


class _Faulty(MemoryTransport):
    """A transport whose n-th awaited call breaks, or never returns."""

    calls = 0
    fault_at = 0
    hangs = False

    async def _count(self) -> None:
        self.calls += 1
        if self.calls == self.fault_at:
            if self.hangs:
                await trio.sleep_forever()
            raise trio.BrokenResourceError("as told")

    async def wait_readable(self) -> None:
        await self._count()
        await super().wait_readable()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._count()
        await super().send_all(data)


def _faulty_pair(at: int, *, hangs: bool) -> tuple[MemoryTransport, _Faulty]:
    ours, plain = memory_transport_pair()
    theirs = _Faulty(plain._incoming, plain._outgoing, plain.peer)
    theirs.fault_at = at
    theirs.hangs = hangs
    return ours, theirs


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("kind", ["resumable", "chunked"])
async def test_transport_that_fails_at_each_call_costs_one_connection(
    kind: str, hangs: bool, autojump_clock: Clock
) -> None:
    """Promise 10: broken or hung in each call; a newcomer can always go on."""
    request = REQUESTS[kind]
    for at in range(1, 15):
        async with memory_service(handler := Recorder()) as service:
            ours, theirs = _faulty_pair(at, hangs=hangs)
            service.connections.start_soon(service._doorman.serve_transport, theirs)
            try:
                for start in range(0, len(request), 150):
                    await ours.send_all(request[start : start + 150])
                    await trio.testing.wait_all_tasks_blocked()
                await ours.send_eof()
            except trio.BrokenResourceError:
                pass
            await trio.testing.wait_all_tasks_blocked()
            if hangs:
                # The timeouts of a hung peer, whichever applies, are all below this.
                for token in list(service.store._operations):
                    shown = await service.connect().request(
                        "HEAD", f"/operations/{token}/content"
                    )
                    assert shown.status == 200
                await trio.sleep(200)
            assert theirs.closed
            await _check_what_is_left(service, handler)


async def test_cancelled_service_keeps_what_it_received(autojump_clock: Clock) -> None:
    """Promise 6: everything cut at once; the upload is there for the next start."""
    handler = Recorder()
    async with memory_service(handler) as service:
        client = service.connect()
        interim = await client.start(512, BODY[:300])
        await trio.testing.wait_all_tasks_blocked()
        store = service.store
    location = interim.fields.get("request-content-location") or ""
    after = store.crash(power_loss=False)
    async with memory_service(handler, store=after) as service:
        shown = await service.connect().request("HEAD", location)
        assert shown["upload-offset"] == "300"
        reply = await service.connect().patch(location, 300, BODY[300:], 512)
        assert reply.status == 200
    assert handler.bodies == [BODY]
