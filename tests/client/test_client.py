"""The whole client against servers in memory, in virtual time."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from tests.client.http2_gateway import carrier, over_each_carrier
from tests.client.peer import (
    BASE,
    OFFER,
    PLAIN,
    TARGET,
    Cut,
    CutStream,
    Dialogue,
    Model,
    Peer,
    Received,
    modelled,
    scripted,
)
from trioresume.client import BodyInput, Client, Progress, RetryPolicy
from trioresume.errors import CallerError, TransferFailed, UploadForgotten

pytest_generate_tests = over_each_carrier
__all__ = ["carrier"]

Clock = trio.testing.MockClock

RECORDED = {"Preference-Applied": "resume=save-incomplete"}


def client(peer: Peer, *, attempts: int = 20, **config: object) -> Client:
    """A client of the seed; what it speaks beyond is tested elsewhere."""
    config = {
        "protocol": "seed",
        "connector": peer,
        "retry": RetryPolicy(attempts=attempts),
        "random": random.Random(0),
        **config,
    }
    return Client(**config)  # type: ignore[arg-type]


async def blocks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# What is on the wire.


async def test_request_asks_to_resume_and_waits_for_the_100(
    autojump_clock: Clock,
) -> None:
    """R1: Expect and Prefer; not a byte of content before the 100."""
    seen: list[Received] = []

    async def serve(dialogue: Dialogue) -> None:
        seen.append(await dialogue.read_head())
        with trio.move_on_after(0.5) as silence:
            await dialogue.stream.receive_some()
        assert silence.cancelled_caught
        await dialogue.interim()
        assert await dialogue.read_body() == b"hello"
        await dialogue.respond(201, {"Location": "/thing"}, b"stored")
        seen.append(await dialogue.read_head())
        await dialogue.respond(204)

    async with scripted(serve) as peer, client(peer) as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert (response.status, response.body) == (201, b"stored")
    assert response.headers.get("location") == "/thing"
    assert (response.attempts, response.bytes_resent) == (1, 0)
    fields = seen[0].fields
    assert fields.get("expect") == "100-continue"
    assert fields.get("prefer") == "resume"
    assert fields.get("content-length") == "5"
    assert fields.get("host") == "peer.test"
    # R29: on the same connection.
    assert (seen[1].method, seen[1].target) == ("DELETE", "/op/0/message")


async def test_first_offer_counts(autojump_clock: Clock) -> None:
    """C19: a second address in the same exchange is not followed."""
    seen: list[Received] = []
    other = {name: path.replace("/op/0/", "/op/1/") for name, path in OFFER.items()}

    async def begin(dialogue: Dialogue) -> None:
        seen.append(await dialogue.read_head())
        await dialogue.interim()
        await dialogue.interim(fields=other)
        await dialogue.stream.cut()

    async def refuse(dialogue: Dialogue) -> None:
        seen.append(await dialogue.read_head())
        await dialogue.respond(400)

    async with scripted(begin, refuse) as peer, client(peer) as c:
        with pytest.raises(TransferFailed):
            await c.request("POST", TARGET, body=b"hello")
    assert [request.target for request in seen] == ["/target", "/op/0/content"]


async def test_release_is_optional() -> None:
    """R29: the caller may want the record to stay."""
    model = Model()
    async with modelled(model) as peer, client(peer, release=False) as c:
        await c.request("POST", TARGET, body=b"hello")
    assert [request.method for request in model.requests] == ["POST"]


async def test_request_without_content_expects_nothing() -> None:
    """RFC 9110, section 10.1.1: no Expect without content."""
    seen: list[Received] = []

    async def serve(dialogue: Dialogue) -> None:
        for _ in range(2):
            seen.append(await dialogue.read_head())
            await dialogue.read_body()
            await dialogue.respond(201, PLAIN, b"x")

    async with scripted(serve) as peer, client(peer) as c:
        assert (await c.request("GET", f"{BASE}/a%20b?q=1")).body == b"x"
        assert (await c.request("POST", f"{BASE}/é ")).body == b"x"
    assert "expect" not in seen[0].fields
    assert "content-length" not in seen[0].fields
    assert seen[0].target == "/a%20b?q=1"
    assert seen[1].target == "/%C3%A9%20"
    assert seen[1].fields.get("content-length") == "0"


async def test_credentials_go_to_the_operations_resources_too() -> None:
    """R35: every resource checks who asks; other fields of the request stay with it."""
    model = Model(plan=lambda number: (400 if number == 0 else None, None))
    async with (
        modelled(model) as peer,
        client(peer, token="t", headers={"X-Every": "1"}) as c,
    ):
        response = await c.request(
            "POST", TARGET, body=pattern(1000), headers={"X-Once": "1"}
        )
    assert response.body == pattern(1000)
    assert {request.method for request in model.requests} >= {"HEAD", "PATCH", "DELETE"}
    for request in model.requests:
        assert request.fields.get("authorization") == "Bearer t"
        assert request.fields.get("x-every") == "1"
        assert ("x-once" in request.fields) == (request.target == "/target")


async def test_request_may_bring_other_credentials() -> None:
    """The request's own field replaces the client's, everywhere."""
    model = Model()
    async with modelled(model) as peer, client(peer, token="t") as c:
        await c.request(
            "POST", TARGET, body=b"x", headers={"Authorization": "Basic eA=="}
        )
    assert [r.fields.get_all("authorization") for r in model.requests] == [
        ["Basic eA=="]
    ] * 2


@pytest.mark.parametrize(
    "headers",
    [{"Content-Length": "3"}, {"Expect": "x"}, {"Bad Name": "x"}, {"X": "a\r\nY: b"}],
)
async def test_fields_that_cannot_be_sent_are_the_callers_error(
    headers: dict[str, str],
) -> None:
    """Framing is the client's; a line break would smuggle (G4)."""
    async with scripted() as peer, client(peer) as c:
        with pytest.raises(CallerError):
            await c.request("POST", TARGET, body=b"x", headers=headers)


@pytest.mark.parametrize(
    "url", ["/path", "ftp://peer/", "http://", "http://u:p@peer/", "http://peer:x/"]
)
async def test_urls_that_cannot_be_requested_are_the_callers_error(url: str) -> None:
    """Before anything is connected."""
    async with scripted() as peer, client(peer) as c:
        with pytest.raises(CallerError):
            await c.request("GET", url)


async def test_closed_client_sends_nothing() -> None:
    """Its lifetime is its `async with`."""
    async with scripted() as peer:
        async with client(peer) as c:
            pass
        with pytest.raises(CallerError, match="closed"):
            await c.request("GET", TARGET)


# Before the 100.


async def test_cut_before_the_100_is_sent_again(autojump_clock: Clock) -> None:
    """R3: the target is unchanged and the request may be re-issued, whatever its method."""

    async def refuse(dialogue: Dialogue) -> None:
        await dialogue.read_head()

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim()
        assert await dialogue.read_body() == b"hello"
        await dialogue.respond(200, RECORDED)

    async with scripted(refuse, refuse, serve) as peer:
        peer.down = 2
        async with client(peer, release=False) as c:
            response = await c.request("POST", TARGET, body=b"hello")
    assert (response.status, response.attempts) == (200, 5)
    assert response.bytes_resent == 0


async def test_server_that_never_says_100_gets_the_content_anyway(
    autojump_clock: Clock,
) -> None:
    """A plain upload to a plain server, after the bounded wait."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        start = trio.current_time()
        assert await dialogue.read_body() == b"hello"
        assert 1.0 <= trio.current_time() - start < 1.1
        await dialogue.respond(201, PLAIN, b"plain")

    async with scripted(serve) as peer, client(peer) as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert response.body == b"plain"


@pytest.mark.parametrize("offers", [True, False])
async def test_bare_100_may_be_a_proxy_s_and_the_offer_yet_to_come(
    offers: bool, autojump_clock: Clock
) -> None:
    """R1, R5: what is sent before the offer could not be resumed; nor is it waited long."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        start = trio.current_time()
        await dialogue.interim(100, {})
        if offers:
            with trio.move_on_after(0.2) as silence:
                await dialogue.stream.receive_some()
            assert silence.cancelled_caught
            await dialogue.interim()
        assert await dialogue.read_body() == b"hello"
        waited = trio.current_time() - start
        assert waited == pytest.approx(0.2 if offers else 0.25)
        await dialogue.respond(201, PLAIN)

    async with scripted(serve) as peer, client(peer, release=False) as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert response.status == 201


async def test_server_that_refuses_expect_gets_a_plain_request() -> None:
    """RFC 9110, section 10.1.1: 417 is no answer to the request itself."""

    async def refuse(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.respond(417)

    async def serve(dialogue: Dialogue) -> None:
        assert "expect" not in (await dialogue.read_head()).fields
        assert await dialogue.read_body() == b"hello"
        await dialogue.respond(201, PLAIN, b"plain")

    async with scripted(refuse, serve) as peer, client(peer) as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert response.body == b"plain"


async def test_cut_plain_upload_is_not_repeated_unless_allowed(
    autojump_clock: Clock,
) -> None:
    """A server that offers nothing may have acted on what it got."""

    async def cut_after_content(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        assert await dialogue.read_body() == b"hello"

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(201, PLAIN)

    async with scripted(cut_after_content) as peer, client(peer) as c:
        with pytest.raises(TransferFailed) as caught:
            await c.request("POST", TARGET, body=b"hello")
        assert not caught.value.resumable
    for method, allowed in [("PUT", False), ("POST", True)]:
        async with scripted(cut_after_content, serve) as peer, client(peer) as c:
            response = await c.request(
                method, TARGET, body=b"hello", retry_unsafe=allowed
            )
        assert (response.status, response.bytes_resent) == (201, 5)


async def test_origin_known_to_resume_is_waited_for(autojump_clock: Clock) -> None:
    """R5: it always sends the 100, so its absence is a slow link, not a plain server."""

    async def slow(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim()
        await dialogue.read_body()
        await dialogue.respond(200)
        await dialogue.read_head()
        with trio.move_on_after(30) as silence:
            await dialogue.stream.receive_some()
        assert silence.cancelled_caught
        await dialogue.interim()
        await dialogue.read_body()
        await dialogue.respond(200)

    async with scripted(slow) as peer, client(peer, release=False) as c:
        for _ in range(2):
            assert (await c.request("POST", TARGET, body=b"x")).status == 200


async def test_early_answer_stops_the_sending() -> None:
    """R10: a rejection replaces the 100 and is the answer."""

    async def reject(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.respond(413, {}, b"too large")
        dialogue.stream.up = 0  # not a byte of content may follow
        await dialogue.stream.stream.receive_some(1)

    async with scripted(reject) as peer, client(peer) as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert (response.status, response.body) == (413, b"too large")


async def test_early_answer_in_the_middle_of_the_content_is_read() -> None:
    """R10: though the server stops reading and closes."""

    async def reject(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim()
        await dialogue.stream.receive_some(100)
        await dialogue.stream.send_all(
            b"HTTP/1.1 507 Full\r\nContent-Length: 4\r\n"
            b"Response-Message-Location: /op/0/message\r\n\r\nfull"
        )

    async with scripted(reject) as peer, client(peer, release=False) as c:
        response = await c.request("POST", TARGET, body=pattern(5_000_000))
    assert (response.status, response.body) == (507, b"full")


# After the 100.


async def test_rest_is_patched_after_a_cut(autojump_clock: Clock) -> None:
    """R12, R15: HEAD tells the offset, PATCH brings what follows it, and no more."""
    data = pattern(300_000)
    seen: list[tuple[str, str]] = []

    async def cut(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim()
        dialogue.stream.up = 100_000
        await dialogue.read_body()

    async def resume(dialogue: Dialogue) -> None:
        request = await dialogue.read_head()
        seen.append((request.method, request.target))
        await dialogue.read_body()
        await dialogue.respond(200, {"Content-Length": "100000"})
        request = await dialogue.read_head()
        seen.append((request.method, request.target))
        assert request.fields.get("content-type") == "message/byterange"
        assert "expect" not in request.fields
        head, _, rest = (await dialogue.read_body()).partition(b"\r\n\r\n")
        assert b"content-range: bytes 100000-299999/300000" in head.lower()
        assert rest == data[100_000:]
        await dialogue.respond(201, RECORDED, b"done")

    async with scripted(cut, resume) as peer, client(peer, release=False) as c:
        response = await c.request("POST", TARGET, body=data)
    assert seen == [("HEAD", "/op/0/content"), ("PATCH", "/op/0/content")]
    assert (response.status, response.body, response.attempts) == (201, b"done", 2)


async def test_lost_response_is_fetched_as_a_message(autojump_clock: Clock) -> None:
    """R26, R27: 202 first, then the recorded response with its own fields."""

    async def cut(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim()
        await dialogue.read_body()

    async def replay(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200, {"Upload-Offset": "5", "Upload-Complete": "?1"})
        for _ in range(3):
            request = await dialogue.read_head()
            assert request.fields.get("prefer") == "wait=20"
            await dialogue.read_body()
            state = b'{"state": "processing"}'
            fields = {"Retry-After": "2", "Content-Type": "application/json"}
            await dialogue.respond(202, fields, state)
        await dialogue.read_head()
        await dialogue.read_body()
        message = (
            b"HTTP/1.1 303 See Other\r\nX-It: yes\r\nContent-Length: 4\r\n\r\nover"
        )
        await dialogue.respond(200, {"Content-Type": "message/http"}, message)

    async with scripted(cut, replay) as peer, client(peer, release=False) as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert (response.status, response.body) == (303, b"over")
    assert response.headers.get("x-it") == "yes"


@pytest.mark.parametrize(
    "message",
    [
        b"nonsense",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000,
    ],
)
async def test_recorded_response_that_is_none_is_an_error(message: bytes) -> None:
    """Whatever the server sends, it ends in one of the errors promised."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim()
        await dialogue.read_body()
        await dialogue.respond(503)
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200, {"Content-Length": "5"})
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200, {"Content-Type": "message/http"}, message)

    async with scripted(serve) as peer, client(peer) as c:
        with pytest.raises(TransferFailed, match="recorded"):
            await c.request("POST", TARGET, body=b"hello")


async def test_locations_elsewhere_are_not_followed(autojump_clock: Clock) -> None:
    """Credentials and content go to the origin that the caller named, only."""

    async def cut(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim(
            100, {name: f"http://evil.test{path}" for name, path in OFFER.items()}
        )
        await dialogue.read_body()

    async with scripted(cut) as peer, client(peer) as c:
        with pytest.raises(TransferFailed):
            await c.request("POST", TARGET, body=b"hello", headers={"Cookie": "c"})


async def test_relative_locations_resolve_against_the_request(
    autojump_clock: Clock,
) -> None:
    """R4."""
    seen: list[str] = []

    async def cut(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim(100, {"Request-Content-Location": "../r?c#f"})
        await dialogue.read_body()

    async def gone(dialogue: Dialogue) -> None:
        seen.append((await dialogue.read_head()).target)
        await dialogue.read_body()
        await dialogue.respond(404)

    async with scripted(cut, gone) as peer, client(peer) as c:
        with pytest.raises(UploadForgotten):
            await c.request("POST", f"{BASE}/a/b/c", body=b"hello")
    assert seen == ["/a/r?c"]


@pytest.mark.parametrize("knows_offsets", [True, False])
async def test_iterable_is_acknowledged_free_and_completed(
    knows_offsets: bool, autojump_clock: Clock
) -> None:
    """R18, R30: more content than buffer, of unknown length, over several cuts."""
    data = pattern(500_000)

    def plan(number: int) -> tuple[int | None, int | None]:
        return (60_000 + number if number < 20 else None, None)

    model = Model(plan=plan, acknowledges=True, knows_offsets=knows_offsets)
    async with modelled(model) as peer, client(peer, buffer_size=50_000) as c:
        response = await c.request("POST", TARGET, body=blocks(data))
    assert response.body == data
    assert model.processed == [data]
    assert response.attempts > 5
    offsets = [part for part in model.parts if b"Content-Offset: " in part]
    ranges = [part for part in model.parts if re.search(rb"bytes \d+-/\*", part)]
    if knows_offsets:
        # B13: the end of what follows is not known.
        assert offsets
        assert not ranges
    else:
        # It was refused once, nothing was lost, and the older form was used from then on.
        assert len(offsets) == 1
        assert ranges
    posts = [r for r in model.requests if r.method == "POST"]
    assert "acknowledge" in (posts[0].fields.get("prefer") or "")
    assert posts[0].fields.get("transfer-encoding") == "chunked"


async def test_iterable_that_raises_ends_the_request_with_its_error() -> None:
    """The caller's error is the caller's, without a group around it."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise KeyError("mine")

    async with modelled(Model()) as peer, client(peer) as c:
        with pytest.raises(KeyError, match="mine"):
            await c.request("POST", TARGET, body=broken())


async def test_cut_does_not_cancel_the_callers_iterator(autojump_clock: Clock) -> None:
    """A generator that was cancelled would be finished for good."""
    finished: list[str] = []

    async def slow() -> AsyncIterator[bytes]:
        try:
            for _ in range(20):
                await trio.sleep(1)
                yield b"x" * 1000
            finished.append("end")
        finally:
            finished.append("closed")

    model = Model(plan=lambda number: (3000 if number < 4 else None, None))
    async with modelled(model) as peer, client(peer) as c:
        response = await c.request("POST", TARGET, body=slow())
    assert response.body == b"x" * 20_000
    assert finished == ["end", "closed"]


async def test_slow_producer_is_not_taken_for_a_silent_peer(
    autojump_clock: Clock,
) -> None:
    """The idle timeout is about the peer; the caller may take its time."""

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await trio.sleep(1000)
            yield b"x"

    async with modelled(Model()) as peer, client(peer, idle_timeout=5) as c:
        response = await c.request("POST", TARGET, body=slow())
    assert (response.body, response.attempts) == (b"xxx", 1)


async def test_silent_peer_is_left_after_the_idle_timeout(
    autojump_clock: Clock,
) -> None:
    """An open connection on which nothing moves is a cut."""
    data = pattern(1000)

    async def stall(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.interim()
        await dialogue.read_body()
        await dialogue.silence()

    async def resume(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200, {"Content-Length": "0"})
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200, RECORDED)

    start = trio.current_time()
    async with scripted(stall, resume) as peer:
        async with client(peer, idle_timeout=30, release=False) as c:
            response = await c.request("POST", TARGET, body=data)
    assert (response.status, response.bytes_resent) == (200, 1000)
    assert 30 <= trio.current_time() - start < 35


async def test_patience_has_an_end(autojump_clock: Clock) -> None:
    """A server that stays away: TransferFailed, resumable, with the cause."""
    async with scripted() as peer:
        peer.down = 10**6
        async with client(peer, attempts=7) as c:
            with pytest.raises(TransferFailed) as caught:
                await c.request("POST", TARGET, body=b"x")
    assert caught.value.resumable
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_connection_closed_while_idle_is_replaced(autojump_clock: Clock) -> None:
    """The next request of the same client does not fail for it."""

    async def once(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200)

    async with scripted(once, once) as peer, client(peer) as c:
        for _ in range(2):
            assert (await c.request("GET", TARGET)).status == 200
            await trio.testing.wait_all_tasks_blocked()


# Responses.


async def test_long_response_does_not_fill_memory() -> None:
    """It is bounded, and the bound is an error."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200, {}, bytes(10_000))

    async with scripted(serve) as peer, client(peer, max_response_size=9_999) as c:
        with pytest.raises(TransferFailed, match="9999"):
            await c.request("GET", TARGET)


async def test_response_goes_to_a_file_and_is_completed_there(tmp_path: Path) -> None:
    """R28, and only whole files get their name."""
    data = pattern(3_000_000)
    model = Model(
        lambda _: data,
        lambda number: (None, 1_500_000 if number == 0 else None),
    )
    path = tmp_path / "saved"
    retry = RetryPolicy(first_delay=0.001, longest_delay=0.001)
    async with modelled(model) as peer, Client(connector=peer, retry=retry) as c:
        response = await c.request("POST", TARGET, body=b"x", save_to=path)
    assert (response.saved_to, response.body) == (path, b"")
    assert files_in(tmp_path) == {"saved": data}


async def test_failed_response_leaves_no_file(tmp_path: Path) -> None:
    """Nor does an error's content go to it."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(404, {}, b"no")
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
        )
        raise Cut

    async with scripted(serve) as peer, client(peer, attempts=0) as c:
        response = await c.request("POST", TARGET, save_to=tmp_path / "saved")
        assert (response.body, response.saved_to) == (b"no", None)
        with pytest.raises(TransferFailed):
            await c.request("POST", TARGET, save_to=tmp_path / "saved")
    assert files_in(tmp_path) == {}


# Progress.


async def test_progress_tells_offsets_and_attempts(autojump_clock: Clock) -> None:
    """What is sent may fall after a cut, what is acknowledged never does."""
    told: list[Progress] = []
    model = Model(plan=lambda number: (100_300 if number == 0 else None, None))
    data = pattern(3_000_000)
    async with modelled(model) as peer, client(peer) as c:
        await c.request("POST", TARGET, body=data, on_progress=told.append)
    assert told[0] == Progress(0, 0, 3_000_000, 1)
    assert told[-1].sent == 3_000_000
    assert told[-1].attempt == 2
    acknowledged = [progress.acknowledged for progress in told]
    assert acknowledged == sorted(acknowledged)
    assert acknowledged[-1] > 100_000 - 1000


async def test_error_in_on_progress_ends_the_request() -> None:
    """It is the caller's, and comes out as it is."""

    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    async with modelled(Model()) as peer, client(peer) as c:
        with pytest.raises(ZeroDivisionError):
            await c.request("POST", TARGET, body=b"x", on_progress=fail)


async def test_rate_limit_holds_for_all_requests_together(
    autojump_clock: Clock,
) -> None:
    """20 kB at 1 kB/s take twenty seconds, however many connections share it."""
    start = trio.current_time()
    async with modelled(Model()) as peer, client(peer, limit_rate=1000) as c:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(partial(c.request, "POST", TARGET, body=bytes(5000)))
    assert 18 <= trio.current_time() - start <= 21


# Any cut, anywhere.

cuts = st.lists(
    st.tuples(
        st.none() | st.integers(0, 3000),
        st.none() | st.integers(1, 900),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    plan=cuts,
    size=st.integers(0, 4000),
    kind=st.sampled_from(["bytes", "iterable", "small window"]),
    repeats_fields=st.booleans(),
    acknowledges=st.booleans(),
)
def test_any_cuts_give_one_processing_and_the_right_answer(
    plan: list[tuple[int | None, int | None]],
    size: int,
    kind: str,
    repeats_fields: bool,
    acknowledges: bool,
) -> None:
    """R3, R12 to R31: the target sees the content once, the caller its answer.

    The only other end is an error, and only where it is promised: a request that was
    all sent and whose 100 was lost, or content that left its window.
    """
    data = pattern(size)

    async def run() -> None:
        model = Model(
            lambda content: content[::-1] + b"!" * 300,
            lambda number: plan[number] if number < len(plan) else (None, None),
            repeats_fields=repeats_fields,
            acknowledges=acknowledges,
        )
        body: BodyInput = data if kind == "bytes" else blocks(data, 170)
        window = 500 if kind == "small window" else 100_000
        failed = False
        async with modelled(model) as peer, client(peer, buffer_size=window) as c:
            try:
                response = await c.request("POST", TARGET, body=body)
            except UploadForgotten:
                assert kind == "small window"
                assert not acknowledges
                failed = True
            except TransferFailed:
                # Without content, or with a first connection that got no 100 through.
                assert size == 0 or plan[0][1] is not None or kind == "small window"
                failed = True
            else:
                assert response.status == 200
                assert response.body == data[::-1] + b"!" * 300
        await assert_all_closed(peer)
        assert model.processed == ([] if failed and not model.processed else [data])

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


async def assert_all_closed(peer: Peer) -> None:
    for stream in peer.clients:
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


# Cancellation.


class CancelAtStep(trio.abc.Instrument):
    """Cancels *scope* when the task that made this has been stepped *steps* times."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self.steps = steps
        self.scope = scope
        self.client_tasks = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps -= 1
        if self.steps == 0:
            self.scope.cancel()


@pytest.mark.parametrize(
    "make_body", [pattern, lambda size: blocks(pattern(size), 400)]
)
def test_cancelled_at_any_step_it_leaves_nothing(
    make_body: Callable[[int], BodyInput],
) -> None:
    """No task, no open connection; and what is at the server can be gone on with."""
    plan = [(900, None), (None, 150), (None, 700), (None, 200)]

    async def run(steps: int) -> bool:
        model = Model(
            plan=lambda number: plan[number] if number < len(plan) else (None, None)
        )
        async with modelled(model) as peer:
            async with client(peer) as c:
                with trio.CancelScope() as scope:
                    instrument = CancelAtStep(steps, scope)
                    trio.lowlevel.add_instrument(instrument)
                    try:
                        await c.request("POST", TARGET, body=make_body(3000))
                    finally:
                        trio.lowlevel.remove_instrument(instrument)
            await assert_all_closed(peer)
        assert len(model.processed) <= 1
        return scope.cancelled_caught

    steps = 1
    while trio.run(run, steps, clock=trio.testing.MockClock(autojump_threshold=0)):
        steps += 1 + steps // 40
    assert steps > 60


# What the server says of the content that it stored.


def digest_field(content: bytes) -> dict[str, str]:
    value = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return {"Repr-Digest": f"sha-256=:{value}:"}


@pytest.mark.parametrize("kind", ["bytes", "path", "file", "iterable"])
@pytest.mark.parametrize(
    ("stored", "believed"),
    [(b"hello", True), (b"hellO", False), (b"the answer", True)],
)
async def test_digest_of_what_is_stored_is_compared(
    tmp_path: Path, kind: str, stored: bytes, believed: bool
) -> None:
    """RFC 9530: asked for with the request; one of the answer's own content says nothing."""

    async def serve(dialogue: Dialogue) -> None:
        request = await dialogue.read_head()
        assert request.fields.get("want-repr-digest") == "sha-256=10"
        await dialogue.interim()
        assert await dialogue.read_body() == b"hello"
        fields = {**RECORDED, **digest_field(stored)}
        await dialogue.respond(201, fields, b"the answer")

    path = tmp_path / "file"
    path.write_bytes(b"hello")
    bodies: dict[str, Callable[[], BodyInput]] = {
        "bytes": lambda: b"hello",
        "path": lambda: path,
        "file": lambda: io.BytesIO(b"hello"),
        "iterable": lambda: blocks(b"hello", 2),
    }
    async with scripted(serve) as peer, client(peer, release=False) as c:
        if believed:
            response = await c.request("POST", TARGET, body=bodies[kind]())
            assert response.status == 201
        else:
            with pytest.raises(TransferFailed, match="something else") as caught:
                await c.request("POST", TARGET, body=bodies[kind]())
            assert caught.value.resumable


async def test_surplus_response_answers_no_later_request() -> None:
    """RFC 9112, section 9.2: what nobody asked for makes the connection useless."""

    async def surplus(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        own = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown"
        other = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"
        await dialogue.stream.send_all(own + other)
        await dialogue.read_head()

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200, {}, b"right")

    async with scripted(surplus, serve) as peer, client(peer) as c:
        assert (await c.request("GET", TARGET)).body == b"own"
        assert (await c.request("GET", TARGET)).body == b"right"


@pytest.mark.parametrize("protocol", ["seed", "rufh", "tus"])
async def test_server_that_stays_at_one_offset_is_given_up(
    protocol: Literal["seed", "rufh", "tus"], autojump_clock: Clock
) -> None:
    """It takes each append, says so, and never has a byte more."""
    appends = 0

    async def serve(dialogue: Dialogue) -> None:
        nonlocal appends
        await dialogue.read_head()
        marks = {"Upload-Offset": "3", "Upload-Complete": "?0"}
        if protocol == "tus":
            marks = {"Upload-Offset": "3", "Tus-Resumable": "1.0.0"}
        if dialogue.request.method == "POST":
            if protocol == "seed":
                await dialogue.interim()
                await dialogue.read_body()
                await dialogue.cut()
            if protocol == "rufh":
                offer = {"Location": "/up", "Upload-Draft-Interop-Version": "10"}
                await dialogue.interim(104, offer)
                await dialogue.read_body()
                await dialogue.cut()
            await dialogue.read_body()
            await dialogue.respond(201, {**marks, "Location": "/up"})
        elif dialogue.request.method == "HEAD":
            await dialogue.read_body()
            await dialogue.respond(200, marks)
        else:
            appends += 1
            assert appends < 20
            await dialogue.read_body()
            await dialogue.respond(204, marks)

    async def serve_all(number: int, stream: trio.abc.Stream) -> None:
        dialogue = Dialogue(CutStream(stream))
        while True:
            await serve(dialogue)

    async with trio.open_nursery() as nursery:
        peer = Peer(nursery, serve_all)
        async with client(peer, protocol=protocol, attempts=6) as c:
            with pytest.raises(TransferFailed, match="retries are used up") as caught:
                await c.request("POST", TARGET, body=b"hello")
        assert caught.value.resumable
        nursery.cancel_scope.cancel()
    assert 5 <= appends <= 8


async def test_endless_interim_responses_are_a_cut(autojump_clock: Clock) -> None:
    """A server that sends nothing else is left, and the reason is told."""

    async def script(d: Dialogue) -> None:
        await d.read_head()
        await d.read_body()
        while True:
            await d.interim(102, {})

    async with scripted(script) as peer:
        async with client(peer, attempts=0) as c:
            with pytest.raises(TransferFailed) as caught:
                await c.request("PUT", TARGET, body=b"abc")
    assert "interim responses" in str(caught.value.__cause__)
