"""Starting a request: R1 to R11, and R33."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.server.harness import (
    RESUME,
    Client,
    MemoryService,
    Recorder,
    chunked,
    head,
    memory_service,
    socket_service,
)
from trioresume import Config, Principal, Rejection, RequestHead

EXPECT = {"Expect": "100-continue"}
LOCATIONS = (
    "request-content-location",
    "response-message-location",
    "content-location",
)


async def test_expected_100_carries_the_three_locations(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R1, R4: Prefer: resume with Expect gets a 100 with all three, path-absolute."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        await client.send(head("POST", "/", {**EXPECT, **RESUME}, length=5))
        interim = await client.interim()
        assert interim.status == 100
        for name in LOCATIONS:
            value = interim.fields.get(name)
            assert value is not None
            assert value.startswith("/operations/")
        await client.send(b"hello")
        reply = await client.reply("POST")
        assert (reply.status, reply.body) == (200, b"got 5 bytes")
        assert reply.interims == []
    assert handler.bodies == [b"hello"]


async def test_public_url_makes_the_locations_absolute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R4, G13: absolute references come from the settings, never from Host."""
    config = Config(public_url="https://up.example/root")
    async with memory_service(Recorder(), config) as service:
        interim = await service.connect().start(3)
        for name in LOCATIONS:
            value = interim.fields.get(name) or ""
            assert value.startswith("https://up.example/root/operations/")


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("resume", "save"),
        ("Resume", "save"),
        ("RESUME=save-incomplete", "save"),
        ("resume=ignore-incomplete", "ignore"),
        ("resume=ignore-incomplete, resume=save-incomplete", "ignore"),
        ('resume="ignore-incomplete"; x=y', "ignore"),
        ("return=minimal, resume", "save"),
    ],
)
async def test_preference_is_applied_and_said_so(
    prefer: str, applied: str, autojump_clock: trio.testing.MockClock
) -> None:
    """R2, R11: any case, the first of duplicates; the final response tells the mode."""
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request("POST", "/", {"Prefer": prefer}, b"x")
        assert reply["preference-applied"] == f"resume={applied}-incomplete"
        assert [interim.status for interim in reply.interims] == [100]


@pytest.mark.parametrize(
    "prefer", ["resume=never", "resume=never, resume", "resumes", "return=minimal"]
)
async def test_unknown_preference_counts_as_absent(
    prefer: str, autojump_clock: trio.testing.MockClock
) -> None:
    """R11: no locations, no 100, nothing applied for a value that is not known."""
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request("POST", "/", {"Prefer": prefer}, b"x")
        assert reply.status == 200
        assert reply.interims == []
        assert not any(name in reply.fields for name in LOCATIONS)
        assert "preference-applied" not in reply.fields


async def test_cut_before_the_100_leaves_nothing_that_ran(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R3: no handler has run; at most an inert record is left, and it expires."""
    async with memory_service(
        handler := Recorder(), Config(incomplete_lifetime=100)
    ) as service:
        theirs, ours = service.transports()
        await ours.send_all(head("POST", "/", {**EXPECT, **RESUME}, length=5))
        ours.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert theirs.closed
        await trio.sleep(100 + 3600 + 200)
        assert service.store.expiring(10) == []
    assert handler.started == 0


async def test_100_is_sent_without_expect_and_the_fields_repeated(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R5: for clients and proxies that drop 1xx the final response has them too."""
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request("POST", "/", RESUME, b"abc")
        (interim,) = reply.interims
        for name in LOCATIONS:
            assert interim.fields.get(name) == reply[name]


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_request_without_content_is_told_two_locations(
    method: str, autojump_clock: trio.testing.MockClock
) -> None:
    """R5: without content there is no content to locate, before and after."""
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request(method, "/", RESUME)
        (interim,) = reply.interims
        assert "request-content-location" not in interim.fields
        assert "request-content-location" not in reply.fields
        assert reply.message == interim.fields.get("response-message-location")
        assert reply.result == interim.fields.get("content-location")


async def test_early_body_does_not_suppress_the_100(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R6: body bytes in the same packet as the head, and still the 100 comes."""
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request(
            "POST", "/", {**EXPECT, **RESUME}, b"abc"
        )
        assert [interim.status for interim in reply.interims] == [100]
        assert reply.body == b"got 3 bytes"


async def test_plain_expect_gets_a_plain_100(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R9: the owed 100 without the preference carries no locations."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        await client.send(head("PUT", "/", EXPECT, length=1))
        interim = await client.interim()
        assert (interim.status, len(interim.fields)) == (100, 0)
        await client.send(b"x")
        assert (await client.reply()).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        EXPECT,
        {"Expect": "nonsense"},
        RESUME,
        {**RESUME, "Prefer": "resume, acknowledge"},
    ],
)
async def test_http_1_0_gets_no_interim_response(
    fields: dict[str, str], tmp_path: Path
) -> None:
    """R7: whatever it asks for; Expect is ignored, and the connection closes."""
    async with (
        socket_service(Recorder(), tmp_path, acknowledge_interval=0.01) as service,
        service.connect() as client,
    ):
        await client.send(head("POST", "/", fields, length=6, version="1.0") + b"abc")
        await trio.sleep(0.05)
        await client.send(b"def")
        reply = await client.reply()
        assert (reply.status, reply.interims) == (200, [])
        assert await client.rest() == b""


@pytest.mark.parametrize("expectation", ["100-continue, x", "200-ok", "x=y"])
async def test_other_expectations_are_417(expectation: str, tmp_path: Path) -> None:
    """R8, R10: h11 would pass them on; no 100, no record, the connection closes."""
    async with (
        socket_service(handler := Recorder(), tmp_path) as service,
        service.connect() as client,
    ):
        await client.send(
            head("POST", "/", {"Expect": expectation, **RESUME}, length=5)
        )
        reply = await client.reply()
        assert (reply.status, reply.code) == (417, "expectation-failed")
        assert reply.interims == []
        assert reply["connection"] == "close"
        assert await client.rest() == b""
    assert handler.started == 0


async def _nobody(head: RequestHead) -> Principal | Rejection:
    return Rejection(401, detail="no")


async def test_rejection_replaces_the_100(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R10: 401 instead of the 100: no fields, no record, nothing asked for."""
    async with memory_service(
        handler := Recorder(), Config(authenticate=_nobody)
    ) as service:
        client = service.connect()
        await client.send(head("POST", "/", {**EXPECT, **RESUME}, length=5))
        reply = await client.reply()
        assert (reply.status, reply.code, reply.interims) == (401, "unauthorized", [])
        assert not any(name in reply.fields for name in LOCATIONS)
        assert reply["connection"] == "close"  # the content may come or not
        assert service.store.expiring(10) == []
        assert service.used == 0
    assert handler.started == 0


@pytest.mark.parametrize("size", [0, 1000])
async def test_small_refused_content_is_drained_and_the_connection_kept(
    size: int, tmp_path: Path
) -> None:
    """R10: what is below drain_size is read, and the next request is answered."""
    async with (
        socket_service(
            Recorder(), tmp_path, authenticate=_nobody, drain_size=1000
        ) as service,
        service.connect() as client,
    ):
        for _ in range(3):
            reply = await client.request("POST", "/", {}, bytes(size))
            assert reply.status == 401
            assert "connection" not in reply.fields


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_early_refusal_is_readable_while_content_is_still_sent(
    framing: str, tmp_path: Path
) -> None:
    """R10: no reset destroys the answer of a client that sends all before it reads."""
    body = bytes(3_000_000)
    async with (
        socket_service(Recorder(), tmp_path, max_upload_size=1000) as service,
        service.connect() as client,
    ):
        if framing == "length":
            data = head("POST", "/", length=len(body)) + body
        else:
            data = head("POST", "/", {"Transfer-Encoding": "chunked"})
            data += chunked(body, 10_000)
        await client.send(data)
        await trio.sleep(0.1)
        reply = await client.reply()
        assert (reply.status, reply.code) == (413, "content-too-large")
        assert reply["connection"] == "close"
        assert await client.rest() == b""


async def test_refused_client_that_sends_for_ever_is_left_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R10: the drain is bounded in time as well."""
    async with memory_service(
        Recorder(), Config(max_upload_size=10, drain_timeout=2)
    ) as service:
        theirs, ours = service.transports()
        client = Client(ours)
        await client.send(head("POST", "/", length=10**9))
        assert (await client.reply()).status == 413
        started = trio.current_time()
        while not theirs.closed:
            try:
                await ours.send_all(b"x")
            except trio.BrokenResourceError:
                break
            await trio.sleep(0.1)
        assert 1.5 < trio.current_time() - started < 2.5


async def test_chunked_refusal_of_one_request_leaves_the_next_connection_alone(
    tmp_path: Path,
) -> None:
    """R10: a rejected chunked request closes, as where it ends is not known yet."""
    async with socket_service(Recorder(), tmp_path, authenticate=_nobody) as service:
        async with service.connect() as client:
            await client.send(head("POST", "/", {"Transfer-Encoding": "chunked"}))
            reply = await client.reply()
            assert (reply.status, reply["connection"]) == (401, "close")
        async with service.connect() as client:
            assert (await client.request("GET", "/")).status == 401


async def _pipeline(service: MemoryService, requests: bytes, count: int) -> list[bytes]:
    client = service.connect()
    await client.send(requests)
    return [(await client.reply("POST")).body for _ in range(count)]


async def test_pipelined_requests_are_answered_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R33: request N+1 starts after the final response of N, in every framing."""
    handler = Recorder()
    requests = (
        head("POST", "/1", RESUME, length=3)
        + b"abc"
        + head("POST", "/2", {"Transfer-Encoding": "chunked"})
        + chunked(b"chunked body")
        + head("POST", "/3", length=0)
        + b"\r\n"
        + head("POST", "/4", RESUME, length=1)
        + b"x"
    )
    async with memory_service(handler) as service:
        bodies = await _pipeline(service, requests, 4)
    assert bodies == [b"got %d bytes" % n for n in (3, 12, 0, 1)]
    assert [target for _, target, _ in handler.requests] == ["/1", "/2", "/3", "/4"]


async def test_pipelined_request_waits_for_the_response_before_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R33: while the first handler runs the second request has not begun."""
    handler = Recorder(gate=trio.Event())
    async with memory_service(handler) as service:
        client = service.connect()
        await client.send(2 * (head("POST", "/", length=1) + b"x"))
        await trio.testing.wait_all_tasks_blocked()
        assert handler.started == 1
        assert handler.gate is not None
        handler.gate.set()
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 200
    assert handler.started == 2


async def test_unread_pipelined_request_does_not_destroy_the_last_response(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R10, R33: a close on unread bytes is a reset; so they are read before it."""
    async with memory_service(Recorder()) as service:
        theirs, ours = service.transports()
        last = head("POST", "/", {"Connection": "close"}, length=1) + b"x"
        await ours.send_all(last + bytes(50_000))
        await trio.sleep(5)
        assert theirs.closed
        client = Client(ours)
        reply = await client.reply()
        assert (reply.status, reply.body) == (200, b"got 1 bytes")
