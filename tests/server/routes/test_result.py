"""The response message and the result: R26 to R32, and R34 to R36."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import h11
import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Recorder,
    byterange,
    head,
    memory_service,
    socket_service,
)
from tests.server.seed import BODY, cut_upload
from trioresume import Config, Principal, Rejection, Request, RequestHead, Response
from trioresume.errors import StorageConflict, StorageError
from trioresume.server.api.handler import idempotent
from trioresume.store.disk_store import open_store
from trioresume.store.port import FreezeContent, Mutation
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock


def _answer(body: bytes) -> Response:
    return Response(
        200,
        [
            ("Content-Type", "text/plain"),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("Connection", "X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
        ],
        b"0123456789",
    )


# R26.


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_message_is_the_final_response_as_message_http(
    version: str, autojump_clock: Clock
) -> None:
    """R26: exact type, HTTP/1.1 whatever the client spoke, no hop-by-hop fields."""
    async with memory_service(Recorder(response=_answer)) as service:
        first = await service.connect().request(
            "POST", "/", RESUME, b"x", version=version
        )
        reply = await service.connect().request("GET", first.message)
        assert (reply.status, reply["content-type"]) == (200, "message/http")
        start, body = reply.body.split(b"\r\n\r\n")
        lines = start.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 200 OK"
        assert body == b"0123456789"
        assert b"Content-Length: 10" in lines
        assert f"Date: {first['date']}".encode() in lines
        assert [line for line in lines if line.startswith(b"Set-Cookie")] == [
            b"Set-Cookie: a=1",
            b"Set-Cookie: b=2",
        ]
        names = {line.partition(b":")[0].lower() for line in lines[1:]}
        assert not names & {
            b"connection",
            b"x-hop",
            b"keep-alive",
            b"transfer-encoding",
        }


async def test_message_parses_as_a_response(autojump_clock: Clock) -> None:
    """R26: what is served is what an HTTP parser takes for the response."""
    async with memory_service(Recorder(response=_answer)) as service:
        first = await service.connect().request("POST", "/", RESUME, b"x")
        reply = await service.connect().request("GET", first.message)
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="POST", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(reply.body)
    response = parser.next_event()
    assert isinstance(response, h11.Response)
    data = parser.next_event()
    assert isinstance(data, h11.Data)
    assert bytes(data.data) == first.body
    assert isinstance(parser.next_event(), h11.EndOfMessage)
    assert parser.trailing_data == (b"", False)


async def test_repeated_gets_of_the_message_are_identical(
    autojump_clock: Clock,
) -> None:
    """R26: the same bytes and ETag at any later time, also after a restart; Range."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(Recorder(response=_answer), store=store) as service:
        first = await service.connect().request("POST", "/", RESUME, b"x")
        one = await service.connect().request("GET", first.message)
        await trio.sleep(1000)
        store = store.crash(power_loss=True)
    async with memory_service(Recorder(), store=store) as service:
        client = service.connect()
        two = await client.request("GET", first.message)
        assert two.body == one.body
        assert two["etag"] == one["etag"]
        assert not two["etag"].startswith("W/")
        half = len(one.body) // 2
        rest = await client.request("GET", first.message, {"Range": f"bytes={half}-"})
        assert (rest.status, rest.body) == (206, one.body[half:])
        same = await client.request(
            "GET", first.message, {"If-None-Match": one["etag"]}
        )
        assert (same.status, same.body) == (304, b"")
        only_head = await client.request("HEAD", first.message)
        assert only_head["content-length"] == str(len(one.body))


@pytest.mark.parametrize("status", [204, 304, 404, 599])
async def test_message_of_any_status(status: int, autojump_clock: Clock) -> None:
    """R26: an error is a final response as well; 204 and 304 have no length."""
    handler = Recorder(response=lambda body: Response(status, {}, b""))
    async with memory_service(handler) as service:
        first = await service.connect().request("POST", "/", RESUME, b"x")
        assert first.status == status
        reply = await service.connect().request("GET", first.message)
        assert reply.body.startswith(b"HTTP/1.1 %d " % status)
        assert (b"content-length" in reply.body.lower()) == (status not in (204, 304))


@pytest.mark.parametrize(("status", "said"), [(204, None), (304, "5")])
async def test_no_content_has_no_length_whatever_the_target_says(
    status: int, said: str | None
) -> None:
    """RFC 9110, section 8.6: a client that believes it would wait for content."""
    given = Response(status, {"content-length": "5"}, b"")
    async with memory_service(Recorder(response=lambda body: given)) as service:
        client = service.connect()
        for _ in range(2):
            reply = await client.request("GET", "/")
            assert reply.status == status
            assert reply.fields.get("content-length") == said


# R27.


async def test_message_is_202_until_there_is_one(autojump_clock: Clock) -> None:
    """R27: receiving, then processing with progress, then the response."""
    gate = trio.Event()

    async def handler(request: Request) -> Response:
        await request.progress(1, 3, "checking")
        await gate.wait()
        return Response(201, {}, b"made")

    async with memory_service(handler) as service:
        client = service.connect()
        interim = await client.start(4, b"ab")
        message = interim.fields.get("response-message-location") or ""
        result = interim.fields.get("content-location") or ""
        content = interim.fields.get("request-content-location") or ""
        await service.connect().request("GET", content)
        reply = await service.connect().request("GET", message)
        assert (reply.status, reply["content-type"]) == (202, "application/json")
        assert reply.json == {"state": "receiving", "offset": 2, "length": 4}
        assert int(reply["retry-after"]) >= 1
        assert reply["cache-control"] == "no-store"
        assert (await service.connect().request("GET", result)).status == 404
        await client.send(b"cd")
        await trio.testing.wait_all_tasks_blocked()
        reply = await service.connect().request("GET", message)
        assert reply.json["state"] == "processing"
        assert reply.json["progress"] == {"done": 1, "total": 3, "remark": "checking"}
        gate.set()
        assert (await client.reply()).status == 201
        reply = await service.connect().request("GET", message)
        assert reply.status == 200


async def test_preferred_wait_holds_the_answer(autojump_clock: Clock) -> None:
    """R27: until there is a response, or the seconds are over; bounded by a setting."""
    handler = Recorder(gate=trio.Event())
    assert handler.gate is not None
    async with memory_service(handler, Config(max_wait=30)) as service:
        client = service.connect()
        interim = await client.start(1, b"x")
        message = interim.fields.get("response-message-location") or ""
        for asked, held in [("5", 5), ("10000", 30), ("0", 0)]:
            started = trio.current_time()
            reply = await service.connect().request(
                "GET", message, {"Prefer": f"wait={asked}"}
            )
            assert reply.status == 202
            assert reply["preference-applied"] == f"wait={held}"
            assert trio.current_time() - started == pytest.approx(held, abs=0.1)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def finish() -> None:
                await trio.sleep(3)
                assert handler.gate is not None
                handler.gate.set()

            nursery.start_soon(finish)
            reply = await service.connect().request(
                "GET", message, {"Prefer": "wait=20"}
            )
        assert reply.status == 200
        assert trio.current_time() - started < 4


async def test_response_expires_to_410_and_then_404(autojump_clock: Clock) -> None:
    """R27: recorded responses, then tombstones, then nothing."""
    config = Config(response_lifetime=1000, tombstone_lifetime=500)
    store = MemoryStore(chunk_size=64)
    async with memory_service(Recorder(), config, store=store) as service:
        first = await service.connect().request("POST", "/", RESUME, BODY)
        locations = (first.content, first.message, first.result)
        await trio.sleep(1200)
        for location in locations:
            reply = await service.connect().request("HEAD", location)
            assert reply.status == 410
        reply = await service.connect().request("GET", first.message)
        assert (reply.status, reply.code) == (410, "gone")
        assert store.stored_bytes == 0
        await trio.sleep(600)
        for location in locations:
            reply = await service.connect().request("GET", location)
            assert reply.status == 404


# R28.


async def test_cut_response_is_completed_with_range(autojump_clock: Clock) -> None:
    """R28: Range on CL, with and without a validator; 416 beyond the end."""
    body = bytes(range(256)) * 300
    handler = Recorder(
        response=lambda _: Response(200, {"Content-Type": "image/x", "X": "y"}, body)
    )
    async with memory_service(handler) as service:
        client = service.connect()
        first = await client.request("POST", "/", RESUME, b"x")
        assert first.body == body
        etag = first["etag"]
        whole = await client.request("GET", first.result)
        assert (whole.status, whole.body) == (200, body)
        assert whole["etag"] == etag
        assert whole["content-type"] == "image/x"
        assert whole["accept-ranges"] == "bytes"
        for fields in ({}, {"If-Range": etag}):
            part = await client.request(
                "GET", first.result, {"Range": "bytes=1000-", **fields}
            )
            assert (part.status, part.body) == (206, body[1000:])
            assert part["content-range"] == f"bytes 1000-{len(body) - 1}/{len(body)}"
        other = await client.request(
            "GET", first.result, {"Range": "bytes=1000-", "If-Range": '"other"'}
        )
        assert (other.status, len(other.body)) == (200, len(body))
        beyond = await client.request(
            "GET", first.result, {"Range": f"bytes={len(body)}-"}
        )
        assert beyond.status == 416
        assert beyond["content-range"] == f"bytes */{len(body)}"


async def test_created_response_keeps_its_own_etag(autojump_clock: Clock) -> None:
    """R28: a 201's ETag is that of what was created; the result has another."""
    for fields in ({}, {"ETag": '"created"'}):
        handler = Recorder(response=lambda _, f=fields: Response(201, f, b"made"))  # type: ignore[misc]
        async with memory_service(handler) as service:
            first = await service.connect().request("POST", "/", RESUME, b"x")
            assert first.get("etag") == fields.get("ETag")
            result = await service.connect().request("GET", first.result)
            assert result["etag"] != '"created"'


@pytest.mark.parametrize("pieces", [0, 1, 5])
async def test_streamed_response_is_recorded_before_it_is_sent(
    pieces: int, autojump_clock: Clock
) -> None:
    """R28: an iterated body has a length, a result, and is the same each time."""

    async def blocks() -> AsyncIterator[bytes]:
        for index in range(pieces):
            await trio.sleep(1)
            yield bytes([index]) * 100

    async with memory_service(
        Recorder(response=lambda _: Response(200, {}, blocks()))
    ) as s:
        first = await s.connect().request("POST", "/", RESUME, b"x")
        expected = b"".join(bytes([index]) * 100 for index in range(pieces))
        assert first.body == expected
        assert first["content-length"] == str(len(expected))
        result = await s.connect().request("GET", first.result)
        assert result.body == expected


# R29.


async def test_delete_of_the_message_releases_everything(autojump_clock: Clock) -> None:
    """R29: 204; record and retained content go."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(Recorder(), store=store) as service:
        first = await service.connect().request("POST", "/", RESUME, BODY)
        reply = await service.connect().request("DELETE", first.message)
        assert reply.status == 204
        for location in (first.content, first.message, first.result):
            assert (await service.connect().request("HEAD", location)).status == 410
        await trio.sleep(10)
        assert store.stored_bytes == 0


@pytest.mark.parametrize("crash", [False, True])
async def test_delete_while_processing_drops_the_result(
    crash: bool, autojump_clock: Clock
) -> None:
    """R29, R25: the handler goes on, nobody sees what it gives, no restart brings it back."""
    handler = Recorder(gate=trio.Event())
    assert handler.gate is not None
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler, store=store) as service:
        client = service.connect()
        interim = await client.start(1, b"x")
        message = interim.fields.get("response-message-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        reply = await service.connect().request("DELETE", message)
        assert reply.status == 204
        assert (await service.connect().request("GET", message)).status == 410
        assert (await client.reply()).status == 410
        if crash:
            store = store.crash(power_loss=True)
        else:
            handler.gate.set()
            await trio.testing.wait_all_tasks_blocked()
            assert handler.bodies == [b"x"]
            assert (await service.connect().request("GET", message)).status == 410
            assert service.used == 0
    if crash:
        async with memory_service(Recorder(), store=store) as service:
            await trio.testing.wait_all_tasks_blocked()
            assert (await service.connect().request("GET", message)).status == 410


@pytest.mark.parametrize("delay", range(25))
async def test_deleted_while_completing_stays_deleted_over_a_crash(
    delay: int, autojump_clock: Clock
) -> None:
    """R25: at whichever step of the completion the DELETE comes."""
    store = MemoryStore(chunk_size=64)
    handler = Recorder(gate=trio.Event())
    async with memory_service(handler, store=store) as service:
        client = service.connect()
        interim = await client.start(512, BODY[:-1])
        content = interim.fields.get("request-content-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        await client.send(BODY[-1:])
        for _ in range(delay):
            await trio.lowlevel.checkpoint()
        reply = await service.connect().request("DELETE", content)
        assert reply.status == 204
        store = store.crash(power_loss=True)
    async with memory_service(Recorder(), store=store) as service:
        await trio.testing.wait_all_tasks_blocked()
        assert (await service.connect().request("HEAD", content)).status == 410


# R30.


async def test_acknowledge_is_cumulative_and_durable(autojump_clock: Clock) -> None:
    """R30: 100s with a count that only grows and that a power loss leaves true."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(
        Recorder(), Config(acknowledge_interval=1), store=store
    ) as service:
        client = service.connect()
        interim = await client.start(512, prefer="resume, acknowledge")
        content = interim.fields.get("request-content-location") or ""
        counts = []
        for sent in range(0, 500, 50):
            await client.send(BODY[sent : sent + 50])
            interim = await client.interim()
            assert interim.status == 100
            counts.append(int(interim.fields.get("acknowledge") or -1))
        assert counts == list(range(50, 501, 50))
        started = trio.current_time()
        await trio.sleep(20)
        assert client.unparsed == b""  # nothing new, nothing said
        assert trio.current_time() - started == 20
        store = store.crash(power_loss=True)
    async with memory_service(Recorder(), store=store) as service:
        reply = await service.connect().request("HEAD", content)
        assert int(reply["upload-offset"]) >= counts[-1]


async def test_acknowledge_is_throttled(autojump_clock: Clock) -> None:
    """R30: at most one in each interval, however many bytes come."""
    async with memory_service(Recorder(), Config(acknowledge_interval=10)) as service:
        client = service.connect()
        await client.start(512, prefer="resume, acknowledge")
        for at in range(512):
            await trio.sleep(0.1)
            await client.send(BODY[at : at + 1])
        reply = await client.reply()
        assert 4 <= len(reply.interims) <= 5


async def test_peer_that_reads_nothing_does_not_block_its_upload(
    autojump_clock: Clock,
) -> None:
    """R30: interim responses are dropped, never waited for."""
    from trioresume.server.doorman import Doorman
    from trioresume.testing import memory_transport_pair

    handler = Recorder()
    config = Config(acknowledge_interval=1, min_body_rate=0)
    async with memory_service(handler, config) as service:
        doorman: Doorman = service._doorman
        ours, theirs = memory_transport_pair(capacity=400)
        service.connections.start_soon(doorman.serve_transport, theirs)
        await ours.send_all(
            head("POST", "/", {"Prefer": "resume, acknowledge"}, length=512)
        )
        for at in range(512):
            await trio.sleep(1.1)
            await ours.send_all(BODY[at : at + 1])
        await trio.sleep(1)
        assert handler.bodies == [BODY]


# R31, R32.


async def test_handler_is_called_once_over_reconnects_and_replays(
    autojump_clock: Clock,
) -> None:
    """R31: cut again and again, completed several times, restarted: one call."""
    handler = Recorder()
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler, store=store) as service:
        location = await cut_upload(service, BODY, 10)
        for at in range(10, 500, 49):
            client = service.connect()
            patch = byterange(at, BODY[at : at + 49], 512)
            await client.send(
                head("PATCH", location, BYTERANGE, length=len(patch) + 5) + patch
            )
            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
        at = int((await service.connect().request("HEAD", location))["upload-offset"])
        reply = await service.connect().patch(location, at, BODY[at:], 512)
        for _ in range(3):
            again = await service.connect().request(
                "PATCH", location, BYTERANGE, b"Content-Range: bytes */512\r\n\r\n"
            )
            assert again.body == reply.body
        store = store.crash(power_loss=False)
    async with memory_service(handler, store=store) as service:
        again = await service.connect().request("GET", reply.message)
        assert again.body.endswith(reply.body)
    assert handler.bodies == [BODY]


async def _crash_while_processing(
    handler: Recorder, store: MemoryStore, config: Config | None = None
) -> tuple[MemoryStore, str, str]:
    async with memory_service(handler.__call__, config, store=store) as service:
        client = service.connect()
        interim = await client.start(len(BODY), BODY)
        await trio.testing.wait_all_tasks_blocked()
        assert handler.started == 1
        after = store.crash(power_loss=True)
    return (
        after,
        interim.fields.get("request-content-location") or "",
        interim.fields.get("response-message-location") or "",
    )


async def test_crash_while_processing_is_shown_as_indeterminate(
    autojump_clock: Clock,
) -> None:
    """R31: never silently run again; a 500 that says so, and the same each time."""
    handler = Recorder(gate=trio.Event())
    store, content, message = await _crash_while_processing(
        handler, MemoryStore(chunk_size=64)
    )
    handler.gate = None
    async with memory_service(handler, store=store) as service:
        await trio.testing.wait_all_tasks_blocked()
        client = service.connect()
        reply = await client.request("GET", message)
        assert reply.body.startswith(b"HTTP/1.1 500 ")
        assert b'"code": "indeterminate"' in reply.body
        replay = await client.request(
            "PATCH", content, BYTERANGE, b"Content-Range: bytes */512\r\n\r\n"
        )
        assert (replay.status, replay.code) == (500, "indeterminate")
    assert handler.started == 1


async def test_idempotent_handler_is_called_again(autojump_clock: Clock) -> None:
    """R31: who declares that a second call does no harm gets one after a crash."""
    gate: trio.Event | None = trio.Event()
    calls: list[bytes] = []

    @idempotent
    async def handler(request: Request) -> Response:
        calls.append(await request.body.read())
        if gate is not None:
            await gate.wait()
        return Response(200, {}, b"done")

    store = MemoryStore(chunk_size=64)
    async with memory_service(handler, store=store) as service:
        interim = await service.connect().start(len(BODY), BODY)
        message = interim.fields.get("response-message-location") or ""
        await trio.testing.wait_all_tasks_blocked()
        store = store.crash(power_loss=True)
    gate = None
    async with memory_service(handler, store=store) as service:
        await trio.testing.wait_all_tasks_blocked()
        reply = await service.connect().request("GET", message)
        assert reply.body.endswith(b"\r\n\r\ndone")
    assert calls == [BODY, BODY]


class _DiesBeforeFreezing(MemoryStore):
    """A store whose process is killed when content is about to be frozen."""

    after: MemoryStore | None = None
    power_loss = False

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        if any(isinstance(m, FreezeContent) for one in batch for m in one):
            self.after = self.crash(power_loss=self.power_loss)
            raise StorageError("the process was killed")
        return super().apply(batch)


@pytest.mark.parametrize("power_loss", [False, True])
async def test_crash_before_the_call_is_completed_by_the_next_visit(
    power_loss: bool, autojump_clock: Clock
) -> None:
    """R31, G9: what is there and announced stays; HEAD is enough to go on if it is all."""
    dying = _DiesBeforeFreezing(chunk_size=64)
    dying.power_loss = power_loss
    async with memory_service(handler := Recorder(), store=dying) as service:
        client = service.connect()
        interim = await client.start(len(BODY), BODY[:500])
        content = interim.fields.get("request-content-location") or ""
        told = (await service.connect().request("HEAD", content))["upload-offset"]
        assert told == "500"
        reply = await service.connect().patch(content, 500, BODY[500:], 512)
        assert reply.status == 500
        assert dying.after is not None
    assert handler.started == 0
    async with memory_service(handler, store=dying.after) as service:
        client = service.connect()
        reply = await client.request("HEAD", content)
        at = int(reply["upload-offset"])
        assert 500 <= at <= 512
        if at < 512:
            await client.patch(content, at, BODY[at:], 512)
        await trio.testing.wait_all_tasks_blocked()
        reply = await client.request(
            "PATCH", content, BYTERANGE, b"Content-Range: bytes */512\r\n\r\n"
        )
        assert (reply.status, reply.body) == (200, b"got 512 bytes")
    assert handler.bodies == [BODY]


async def test_store_on_disk_reopened_without_shutdown_finds_the_upload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R22, R31: a copy of the directory, made in mid-upload, is what kill -9 leaves."""
    import shutil

    before, after = tmp_path / "before", tmp_path / "after"
    body = bytes(range(256)) * 1000
    async with socket_service(Recorder(), before) as service:
        async with service.connect() as client:
            interim = await client.start(len(body), body[:200_000])
            content = interim.fields.get("request-content-location") or ""
            message = interim.fields.get("response-message-location") or ""
            async with service.connect() as other:
                told = 0
                with trio.fail_after(5):
                    while told < 200_000:
                        # Only GET and RML leave the writer alone.
                        shown = await other.request(
                            "GET", content, {"Range": "bytes=0-0"}
                        )
                        told = int(shown["upload-offset"])
            shutil.copytree(before, after, ignore=shutil.ignore_patterns("control"))
    open_store(after).close()  # not locked: the other process is gone
    async with socket_service(handler := Recorder(), after) as service:
        async with service.connect() as client:
            shown = await client.request("HEAD", content)
            at = int(shown["upload-offset"])
            assert at >= told
            reply = await client.patch(content, at, body[at:], len(body))
            assert reply.status == 200
            assert (await client.request("GET", message)).status == 200
    assert handler.bodies == [body]


async def test_processing_goes_on_when_the_client_is_gone(
    autojump_clock: Clock,
) -> None:
    """R32: the response is recorded for whoever asks later."""
    handler = Recorder(gate=trio.Event())
    assert handler.gate is not None
    async with memory_service(handler) as service:
        theirs, ours = service.transports()
        await ours.send_all(head("POST", "/", RESUME, length=1) + b"x")
        await trio.testing.wait_all_tasks_blocked()
        received = await ours.receive_some()
        ours.reset()
        await trio.sleep(1)
        handler.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert theirs.closed
        match = re.search(rb"Response-Message-Location: (\S+)", received)
        assert match is not None
        reply = await service.connect().request("GET", match[1].decode())
        assert reply.body.endswith(b"got 1 bytes")
        assert service.used == 0


async def test_plain_request_is_processed_and_forgotten(autojump_clock: Clock) -> None:
    """R32: also without the preference the handler is not cut with its client."""
    handler = Recorder(gate=trio.Event())
    assert handler.gate is not None
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler, store=store) as service:
        _, ours = service.transports()
        await ours.send_all(head("POST", "/", length=len(BODY)) + BODY)
        await trio.testing.wait_all_tasks_blocked()
        ours.reset()
        await trio.sleep(1)
        handler.gate.set()
        await trio.sleep(10)
        assert store.stored_bytes == 0
        assert store.expiring(10) == []
    assert handler.bodies == [BODY]


# R34 to R36.


async def _by_token(head: RequestHead) -> Principal | Rejection:
    name = head.fields.get("authorization")
    return Rejection(401) if name is None else Principal(name)


MINE, THEIRS = {"Authorization": "me"}, {"Authorization": "you"}


async def test_tokens_are_unguessable_and_never_repeat(autojump_clock: Clock) -> None:
    """R34: 128 bits and more from a CSPRNG, in URL-safe characters."""
    async with memory_service(Recorder()) as service:
        tokens = set()
        for _ in range(50):
            reply = await service.connect().request("POST", "/", RESUME, b"x")
            match = re.fullmatch(
                r"/operations/([A-Za-z0-9_-]{22})/message", reply.message
            )
            assert match is not None
            tokens.add(match[1])
        assert len(tokens) == 50


@pytest.mark.parametrize("state", ["receiving", "processing", "done", "gone"])
@pytest.mark.parametrize(
    "method", ["HEAD", "GET", "PATCH", "DELETE", "OPTIONS", "PUT", "POST"]
)
async def test_stranger_cannot_tell_an_operation_from_none(
    state: str, method: str, autojump_clock: Clock
) -> None:
    """R35: byte-identical answers to those for a token never given out, and no effect."""
    handler = Recorder(gate=trio.Event() if state == "processing" else None)
    async with memory_service(handler, Config(authenticate=_by_token)) as service:
        owner = service.connect()
        sent = BODY[:100] if state in ("receiving", "gone") else BODY
        interim = await owner.start(len(BODY), sent, fields=MINE)
        token = (interim.fields.get("content-location") or "").split("/")[2]
        await trio.testing.wait_all_tasks_blocked()
        if state == "gone":
            where = f"/operations/{token}/content"
            reply = await service.connect().request("DELETE", where, MINE)
            assert reply.status == 204
        body = None
        fields = dict(THEIRS)
        if method == "PATCH":
            fields |= BYTERANGE
            body = byterange(100, BODY[100:], 512)
        for last in ("content", "message", "result"):
            seen = await service.connect().request(
                method, f"/operations/{token}/{last}", fields, body
            )
            none = await service.connect().request(
                method, f"/operations/{'A' * 22}/{last}", fields, body
            )
            assert seen.status == 404
            assert seen.raw == none.raw
        if state == "receiving":
            # Nobody's writer was ended by a stranger.
            await owner.send(BODY[100:])
            assert (await owner.reply()).status == 200


async def test_owner_alone_sees_the_stored_response(autojump_clock: Clock) -> None:
    """R36: no-store, Vary: Authorization; without credentials a 401."""
    async with memory_service(
        Recorder(response=_answer), Config(authenticate=_by_token)
    ) as service:
        first = await service.connect().request("POST", "/", {**RESUME, **MINE}, b"x")
        for location in (first.content, first.message, first.result):
            reply = await service.connect().request("GET", location, MINE)
            assert reply.status == 200
            assert reply["cache-control"] == "no-store"
            assert reply["vary"] == "Authorization"
            assert (await service.connect().request("GET", location)).status == 401


# What a handler sees and what it may give.


async def test_handler_sees_the_request_as_it_was_sent(autojump_clock: Clock) -> None:
    """R31: method, target, fields, principal, content: whole, in blocks, as a file."""
    seen: dict[str, object] = {}

    async def handler(request: Request) -> Response:
        file = await request.body.open()
        with file:
            file.seek(-10, 2)
            seen["end"] = file.read()
            file.seek(5)
            seen["middle"] = file.read(3)
        seen["blocks"] = b"".join([block async for block in request.body])
        seen["length"] = request.body.length
        seen["request"] = (request.method, request.target, request.path)
        seen["field"] = request.headers.get("x-custom")
        seen["principal"] = request.principal
        return Response(200, {}, (request.body.digest or "").encode())

    async with memory_service(handler, Config(authenticate=_by_token)) as service:
        fields = {**RESUME, **MINE, "X-Custom": "value"}
        one = await service.connect().request("PUT", "/a%20b?c=d", fields, BODY)
        two = await service.connect().request("PUT", "/other", fields, BODY)
        assert one.body == two.body != b""
    assert seen == {
        "end": BODY[-10:],
        "middle": BODY[5:8],
        "blocks": BODY,
        "length": 512,
        "request": ("PUT", "/other", "/other"),
        "field": "value",
        "principal": "me",
    }


@pytest.mark.parametrize("resume", [False, True])
async def test_failing_handler_is_a_recorded_500(
    resume: bool, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """R31: problem+json, a log line with the traceback, and the service lives on."""

    async def handler(request: Request) -> Response:
        raise ZeroDivisionError("a bug")

    async with memory_service(handler) as service:
        client = service.connect()
        with caplog.at_level(logging.ERROR):
            reply = await client.request("POST", "/", RESUME if resume else {}, b"x")
        assert (reply.status, reply.code) == (500, "internal-error")
        assert b"bug" not in reply.body
        assert any(
            record.exc_info is not None and record.exc_info[0] is ZeroDivisionError
            for record in caplog.records
        )
        if resume:
            again = await client.request("GET", reply.message)
            assert again.body.endswith(reply.body)
        assert not await client.is_closed()


async def test_bug_in_a_safe_request_is_a_500(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors: the same without an operation, where nothing is recorded."""

    async def handler(request: Request) -> Response:
        raise ZeroDivisionError

    async with memory_service(handler) as service:
        client = service.connect()
        reply = await client.request("GET", "/")
        assert (reply.status, reply.code) == (500, "internal-error")
        assert not await client.is_closed()
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Echo", "a\r\nSet-Cookie: evil"),
        ("X-Echo", "a\nb"),
        ("X-Echo", "a\0b"),
        ("X-Echo", "\u0142"),
        ("X\r\nEvil", "x"),
        ("", "x"),
    ],
)
async def test_echoed_line_ends_never_reach_a_response(
    method: str,
    name: str,
    value: str,
    autojump_clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """G4: a handler that echoes them is answered for with a 500."""

    async def handler(request: Request) -> Response:
        return Response(200, {name: value}, b"")

    async with memory_service(handler) as service:
        client = service.connect()
        reply = await client.request(
            method, "/", RESUME, None if method == "GET" else b"x"
        )
        assert (reply.status, reply.code) == (500, "internal-error")
        assert not await client.is_closed()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_framing_fields_of_a_handler_are_not_believed(
    method: str, autojump_clock: Clock
) -> None:
    """G1: the server frames its responses itself."""
    fields = {"Transfer-Encoding": "chunked", "Content-Length": "3", "Connection": "x"}

    async def handler(request: Request) -> Response:
        return Response(200, fields, b"0123456789")

    async with memory_service(handler) as service:
        client = service.connect()
        reply = await client.request(method, "/", {}, None if method == "GET" else b"x")
        assert reply.body == b"0123456789"
        assert not await client.is_closed()
