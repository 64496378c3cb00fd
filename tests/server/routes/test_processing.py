"""What a client is told while its request is processed: B10 and B11."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    Interim,
    Recorder,
    byterange,
    head,
    memory_service,
)
from tests.server.tus import BODY, MARK, append, create
from trioresume import Config, Request, Response

PROCESSING = {"Prefer": "processing"}
Clock = trio.testing.MockClock


class Steps:
    """A handler that takes ten seconds for each of its steps."""

    def __init__(self, *steps: tuple[int, int | None, str]) -> None:
        self.steps = steps
        self.calls = 0

    async def __call__(self, request: Request) -> Response:
        self.calls += 1
        for step in self.steps:
            await request.progress(*step)
            await trio.sleep(10)
        body = await request.body.read()
        return Response(201, {"Location": "/photos/42"}, b"got %d\n" % len(body))


def cats() -> Steps:
    return Steps((0, 3, "herding"), (1, 3, "knitting"), (2, 3, "grüßen"))


def told(interims: Sequence[Interim]) -> list[str | None]:
    """What each 102 says."""
    return [i.fields.get("progress") for i in interims if i.status == 102]


CATS = ["0/", '0/3 "herding"', '1/3 "knitting"', "2/3 UTF-8''gr%C3%BC%C3%9Fen"]


async def test_progress_is_told_in_102s(autojump_clock: Clock) -> None:
    """B10, C19: on receipt, with where the status is; at each update; then the response."""
    async with memory_service(cats()) as service:
        client = service.connect()
        reply = await client.request("POST", "/", PROCESSING, BODY)
        assert (reply.status, reply["location"]) == (201, "/photos/42")
        assert told(reply.interims) == CATS
        first, *others = reply.interims
        status = first.fields.get("response-message-location") or ""
        assert status.endswith("/message")
        # The final response has one, and a second one is an error for libcurl.
        assert not any("location" in interim.fields for interim in reply.interims)
        assert not any("response-message-location" in i.fields for i in others)
        recorded = await client.request("GET", status)
        assert b"HTTP/1.1 201 Created" in recorded.body
        assert b"progress" not in recorded.body.lower()


async def test_nobody_is_told_who_did_not_ask(autojump_clock: Clock) -> None:
    """E7: many clients take an unasked 102 for the final response; nor does HTTP/1.0."""
    async with memory_service(cats()) as service:
        client = service.connect()
        assert (await client.request("POST", "/", {}, BODY)).interims == []
        old = await client.request("POST", "/", PROCESSING, BODY, version="1.0")
        assert (old.status, old.interims) == (201, [])


async def test_owed_100_comes_first(autojump_clock: Clock) -> None:
    """R9, B10: with both preferences the message is the same."""
    fields = {"Prefer": "resume, processing", "Expect": "100-continue"}
    async with memory_service(cats()) as service:
        client = service.connect()
        await client.send(head("POST", "/", fields, length=len(BODY)))
        hundred = await client.interim()
        assert hundred.status == 100
        first = await client.interim()
        assert first.status == 102
        message = hundred.fields.get("response-message-location")
        assert first.fields.get("response-message-location") == message
        await client.send(BODY)
        reply = await client.reply()
        assert told(reply.interims) == CATS[1:]
        assert reply["preference-applied"] == "resume=save-incomplete"


async def test_the_completing_patch_is_told(autojump_clock: Clock) -> None:
    """B10: as the first request would have been."""
    async with memory_service(cats()) as service:
        client = service.connect()
        begun = await client.start(len(BODY), BODY[:50])
        await client.aclose()
        path = begun.fields.get("request-content-location") or ""
        client = service.connect()
        part = byterange(50, BODY[50:], len(BODY))
        reply = await client.request("PATCH", path, BYTERANGE | PROCESSING, part)
        assert (reply.status, told(reply.interims)) == (201, CATS)
        status = reply.interims[0].fields.get("response-message-location")
        assert status == path.removesuffix("content") + "message"


async def test_steps_that_are_fast_are_told_together(autojump_clock: Clock) -> None:
    """B10: of a thousand in a second the latest is told, and the numbers never fall."""

    async def handler(request: Request) -> Response:
        for done in range(1000):
            # Two tasks of it might overtake each other.
            await request.progress(done - done % 2 * 5 if done > 5 else done, 1000)
        await trio.sleep(5)
        await request.progress(7, 8, "late")
        await trio.sleep(5)
        return Response(200)

    async with memory_service(handler) as service:
        reply = await service.connect().request("POST", "/", PROCESSING, BODY)
        assert len(reply.interims) < 10
        lines = told(reply.interims)
        numbers = [int((line or "").partition("/")[0]) for line in lines]
        assert numbers == sorted(numbers)
        assert lines[-1] == '998/998 "late"'


async def test_message_is_followed_to_its_end(autojump_clock: Clock) -> None:
    """B10, R27: a GET of the status is told from where it is, and gets the result."""
    async with memory_service(cats()) as service:
        client = service.connect()
        begun = await client.start(len(BODY), BODY)
        await client.aclose()
        message = begun.fields.get("response-message-location") or ""
        await trio.sleep(15)
        client = service.connect()
        started = trio.current_time()
        reply = await client.request("GET", message, PROCESSING)
        assert reply.status == 200
        assert told(reply.interims) == CATS[2:]
        assert trio.current_time() - started == pytest.approx(15, abs=1)
        assert b"HTTP/1.1 201 Created" in reply.body
        again = await client.request("GET", message, PROCESSING)
        assert (again.status, again.interims) == (200, [])


async def test_upload_that_never_ends_is_not_followed_for_ever(
    autojump_clock: Clock,
) -> None:
    """R27: while content is missing the wait is bounded, as any wait."""
    async with memory_service(Recorder(), Config(max_wait=30)) as service:
        client = service.connect()
        begun = await client.start(len(BODY), BODY[:50])
        await client.aclose()
        message = begun.fields.get("response-message-location") or ""
        started = trio.current_time()
        reply = await service.connect().request("GET", message, PROCESSING)
        assert (reply.status, reply.json["state"]) == (202, "receiving")
        assert trio.current_time() - started == pytest.approx(30, abs=1)


async def test_tus_is_answered_without_the_target(autojump_clock: Clock) -> None:
    """D8, B10, B11: its 204 does not wait, so there is nothing to tell."""
    async with memory_service(cats()) as service:
        client = service.connect()
        path = await create(client)
        asked = {"Prefer": "processing, respond-async"}
        reply = await append(client, path, 0, BODY, {**MARK, **asked})
        assert (reply.status, reply.interims) == (204, [])


# B11.


async def test_whoever_does_not_want_to_wait_gets_a_202(autojump_clock: Clock) -> None:
    """B11: after the seconds it named, with the 102's message; the operation goes on."""
    prefer = {"Prefer": "processing, respond-async, wait=15"}
    handler = cats()
    async with memory_service(handler) as service:
        client = service.connect()
        started = trio.current_time()
        reply = await client.request("POST", "/", prefer, BODY)
        assert trio.current_time() - started == pytest.approx(15, abs=1)
        assert reply.status == 202
        status = reply.interims[0].fields.get("response-message-location")
        assert reply["location"] == reply["response-message-location"] == status
        assert reply["preference-applied"] == "wait=15, respond-async"
        assert int(reply["retry-after"]) >= 1
        assert reply["cache-control"] == "no-store"
        assert reply.json["state"] == "processing"
        assert reply.json["progress"]["remark"] == "knitting"
        recorded = await client.request("GET", reply["location"], PROCESSING)
        assert b"HTTP/1.1 201 Created" in recorded.body
        assert b"respond-async" not in recorded.body
    assert handler.calls == 1


async def test_fast_target_is_answered_as_ever(autojump_clock: Clock) -> None:
    """B11: within the time the response is the target's, and no preference was applied."""
    async with memory_service(cats()) as service:
        prefer = {"Prefer": "respond-async, wait=60"}
        reply = await service.connect().request("POST", "/", prefer, BODY)
        assert reply.status == 201
        assert reply.get("preference-applied") is None


async def test_without_a_time_there_is_no_waiting(autojump_clock: Clock) -> None:
    """B11: and with the seed's preference the 202 has its fields, too (R5, R11)."""
    async with memory_service(cats()) as service:
        client = service.connect()
        started = trio.current_time()
        prefer = {"Prefer": "resume, respond-async"}
        reply = await client.request("POST", "/", prefer, BODY)
        assert trio.current_time() - started < 1
        assert reply.status == 202
        applied = "resume=save-incomplete, respond-async"
        assert reply["preference-applied"] == applied
        assert reply["location"] == reply.message
        recorded = await client.request("GET", reply.message, PROCESSING)
        assert b"resume=save-incomplete" in recorded.body


async def test_append_of_rufh_may_be_answered_with_a_202(
    autojump_clock: Clock,
) -> None:
    """B11, C11: the upload is complete, its response is to come."""
    rufh = {"Upload-Draft-Interop-Version": "8"}
    async with memory_service(cats()) as service:
        client = service.connect()
        fields = {**rufh, "Upload-Complete": "?0"}
        created = await client.request("POST", "/", fields, BODY[:50])
        path = created["location"].removeprefix("http://test")
        fields = {
            **rufh,
            "Upload-Complete": "?1",
            "Upload-Offset": "50",
            "Content-Type": "application/partial-upload",
            "Prefer": "respond-async, wait=1",
        }
        reply = await client.request("PATCH", path, fields, BODY[50:])
        assert (reply.status, reply["upload-complete"]) == (202, "?1")
        recorded = await client.request("GET", reply["location"], PROCESSING)
        assert b"HTTP/1.1 201 Created" in recorded.body
