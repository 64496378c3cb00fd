"""Resumable Uploads for HTTP, over memory: section C of the contract."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.server.harness import (
    CARRIER,
    RESUME,
    Carrier,
    Client,
    Recorder,
    Reply,
    chunked,
    head,
    memory_service,
)
from tests.server.rufh import NEWEST, appends, completeness, path_of, says
from trioresume import (
    Config,
    Fields,
    FileService,
    Principal,
    Rejection,
    Request,
    RequestHead,
    Response,
)
from trioresume.protocol.dialects.rufh.versions import VERSIONS, Version
from trioresume.server.api.handler import CallPolicy, HandlerTarget
from trioresume.server.serving import UNTUNED, Tuning
from trioresume.testing.memory_store import MemoryStore

BODY = b"The quick brown fox jumps over the lazy dog."
ALL = pytest.mark.parametrize("version", VERSIONS.values(), ids=lambda v: v.number)


@ALL
async def test_upload_in_one_request_gets_a_104_and_the_target_s_response(
    version: Version,
) -> None:
    """C2, C3, C4: Location at once, absolute; then what the target answers."""
    async with memory_service(handler := Recorder()) as service:
        reply = await service.connect().request(
            "POST", "/things", says(version, complete=True), BODY
        )
    (interim,) = reply.interims
    assert interim.status == 104
    assert interim.fields.get("upload-draft-interop-version") == str(version.number)
    assert path_of(interim.fields.get("location") or "").startswith("/operations/")
    assert (interim.fields.get("upload-limit") is None) == (not version.limits)
    assert reply.status == 200
    assert reply.body == b"got %d bytes" % len(BODY)
    assert completeness(version, reply) is True
    assert reply["upload-offset"] == str(len(BODY))
    assert reply["location"] == interim.fields.get("location")
    assert handler.requests == [("POST", "/things", BODY)]


@ALL
async def test_upload_in_parts_is_completed_by_the_last(version: Version) -> None:
    """C2, C4, C6, C8, C11: 201 with Location, HEAD, appends, the target's response."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        fields = says(version, complete=False)
        created = await client.request("POST", "/", fields, BODY[:10])
        assert created.status == 201
        assert completeness(version, created) is False
        assert created["upload-offset"] == "10"
        (interim,) = created.interims
        assert interim.fields.get("location") == created["location"]
        path = path_of(created["location"])

        shown = await client.request(
            "HEAD", path, {"Upload-Draft-Interop-Version": str(version.number)}
        )
        assert shown.status == version.head_status
        assert ("content-length" in shown.fields) == (version.head_status == 200)
        assert (shown["upload-offset"], shown["cache-control"]) == ("10", "no-store")
        assert completeness(version, shown) is False

        more = await client.request(
            "PATCH", path, appends(version, 10, False), BODY[10:20]
        )
        assert more.status == version.partial_status
        assert more["upload-offset"] == "20"
        assert completeness(version, more) is False

        last = await client.request(
            "PATCH", path, appends(version, 20, True), BODY[20:]
        )
        assert (last.status, last.body) == (200, b"got %d bytes" % len(BODY))
        assert completeness(version, last) is True
    assert handler.bodies == [BODY]


async def begin(
    client: Client,
    version: Version,
    body: bytes = b"",
    *,
    fields: Mapping[str, str] | None = None,
) -> str:
    """Begin an upload with ``?0`` and *body*; the path of its upload resource."""
    sent = {**says(version, complete=False), **(fields or {})}
    reply = await client.request("POST", "/", sent, body)
    assert reply.status == 201, reply
    return path_of(reply["location"])


async def shown(client: Client, version: Version, path: str) -> tuple[int, bool | None]:
    """Offset and completeness, as HEAD tells them."""
    number = {"Upload-Draft-Interop-Version": str(version.number)}
    reply = await client.request("HEAD", path, number)
    assert reply.status == version.head_status, reply
    return int(reply["upload-offset"]), completeness(version, reply)


# Requests.


@pytest.mark.parametrize("value", ["-1", "1.5", '"1"', "?1", "1234567890123456", ""])
async def test_offset_that_is_no_integer_is_as_if_absent(value: str) -> None:
    """C1: an append then lacks what it needs, and changes nothing."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY[:5])
        fields = {**appends(NEWEST, 5, False), "Upload-Offset": value}
        reply = await client.request("PATCH", path, fields, BODY[5:])
        assert (reply.status, reply.code) == (400, "malformed-request")
        assert await shown(client, NEWEST, path) == (5, False)


@pytest.mark.parametrize("value", ["1", "true", "?2", "?1, ?1", '"?1"'])
async def test_completeness_that_is_no_boolean_is_as_if_absent(value: str) -> None:
    """C1: such a request begins nothing that can be resumed."""
    async with memory_service(handler := Recorder()) as service:
        fields = {"Upload-Draft-Interop-Version": "8", "Upload-Complete": value}
        reply = await service.connect().request("POST", "/", fields, BODY)
        assert (reply.status, reply.interims) == (200, [])
        assert "location" not in reply.fields
        assert "upload-complete" not in reply.fields
    assert handler.bodies == [BODY]


async def test_parameters_of_an_item_are_passed_over() -> None:
    """C1: RFC 9651 lets any Item have parameters; none is defined here."""
    async with memory_service(Recorder()) as service:
        fields = {"Upload-Draft-Interop-Version": "8;a=1", "Upload-Complete": "?0;b"}
        reply = await service.connect().request("POST", "/", fields, BODY)
        assert reply.status == 201


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "REPORT"])
async def test_any_method_with_content_begins_an_upload(method: str) -> None:
    """C2: the target gets the method that was sent."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        reply = await client.request(method, "/x", says(NEWEST, True), BODY)
        assert [interim.status for interim in reply.interims] == [104]
    assert handler.requests == [(method, "/x", BODY)]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_methods_without_content_begin_none(method: str) -> None:
    """C2: a marker on them means nothing."""
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request(method, "/", says(NEWEST, True))
        assert reply.interims == []
        assert "upload-complete" not in reply.fields


async def test_empty_creation_only_makes_the_upload() -> None:
    """C2, C13: the careful way; min-append-size does not count for it."""
    config = Config(min_append_size=100)
    async with memory_service(handler := Recorder(), config) as service:
        client = service.connect()
        path = await begin(client, NEWEST)
        assert await shown(client, NEWEST, path) == (0, False)
        reply = await client.request("PATCH", path, appends(NEWEST, 0, True), BODY)
        assert reply.status == 200
    assert handler.bodies == [BODY]


async def test_empty_upload_is_complete_at_once() -> None:
    """C2: ?1 without content is an upload of nothing."""
    async with memory_service(handler := Recorder()) as service:
        reply = await service.connect().request("POST", "/", says(NEWEST, True), b"")
        assert (reply.status, reply["upload-offset"]) == (200, "0")
    assert handler.bodies == [b""]


# 104.


@pytest.mark.parametrize("number", [None, "2", "11", "99", "x"])
async def test_no_104_without_a_known_interop_version(number: str | None) -> None:
    """C3, E1, E7: the upload exists all the same; its final answer says where."""
    fields = {"Upload-Complete": "?0"}
    if number is not None:
        fields["Upload-Draft-Interop-Version"] = number
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request("POST", "/", fields, BODY[:5])
        assert reply.interims == []
        assert (reply.status, reply["upload-complete"]) == (201, "?0")
        assert "upload-draft-interop-version" not in reply.fields
        append = {
            "Upload-Complete": "?1",
            "Upload-Offset": "5",
            "Content-Type": "application/partial-upload",
        }
        path = path_of(reply["location"])
        last = await service.connect().request("PATCH", path, append, BODY[5:])
        assert (last.status, last["upload-complete"]) == (200, "?1")
        assert last.interims == []


async def test_version_check_can_be_turned_off() -> None:
    """C3: as the RFC will have it, a 104 without a version."""
    config = Config(check_interop_version=False)
    async with memory_service(Recorder(), config) as service:
        fields = {"Upload-Complete": "?1"}
        reply = await service.connect().request("POST", "/", fields, BODY)
        (interim,) = reply.interims
        assert interim.status == 104
        assert interim.fields.get("location")
        assert "upload-draft-interop-version" not in interim.fields


@pytest.mark.parametrize("checks", [True, False])
async def test_version_check_is_the_same_on_the_upload(checks: bool) -> None:
    """C3: what began without a version goes on without one, a 104 included or not."""
    config = Config(check_interop_version=checks, acknowledge_interval=0.05)
    async with memory_service(Recorder(), config) as service:
        fields = {"Upload-Complete": "?0"}
        reply = await service.connect().request("POST", "/", fields, BODY[:5])
        path = path_of(reply["location"])
        client = service.connect()
        append = {
            "Upload-Complete": "?0",
            "Upload-Offset": "5",
            "Content-Type": "application/partial-upload",
        }
        await client.send(head("PATCH", path, append, length=10) + BODY[5:10])
        await trio.sleep(0.3)
        await client.send(BODY[10:15])
        last = await client.reply()
        assert (last.status, last["upload-offset"]) == (204, "15")
        assert bool(last.interims) != checks


async def test_104_does_not_replace_an_owed_100() -> None:
    """C3, R9: whoever waits for a 100 gets it, and the 104 as well."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        fields = {**says(NEWEST, True), "Expect": "100-continue"}
        await client.send(head("POST", "/", fields, length=len(BODY)))
        statuses = [(await client.interim()).status for _ in range(2)]
        assert sorted(statuses) == [100, 104]
        await client.send(BODY)
        assert (await client.reply()).status == 200


async def test_104_comes_before_any_content() -> None:
    """C2: a client that is cut at once knows where to go on."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        await client.send(head("POST", "/", says(NEWEST, True), length=len(BODY)))
        interim = await client.interim()
        assert interim.status == 104
        path = path_of(interim.fields.get("location") or "")
        await client.send(BODY[:7])
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        assert await shown(service.connect(), NEWEST, path) == (7, False)


@pytest.mark.h1_only
async def test_http_1_0_gets_no_104_and_can_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """C2, R7: an interim response would be taken for the final one."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        data = head("POST", "/", says(NEWEST, False), length=5, version="1.0")
        await client.send(data + BODY[:5])
        reply = await client.reply()
        assert (reply.status, reply.interims) == (201, [])
        # It may be a proxy that speaks so, and then Host is not what the client knows.
        assert reply["location"].startswith("/operations/")


@ALL
async def test_progress_is_told_by_further_104s(
    version: Version, autojump_clock: trio.testing.MockClock
) -> None:
    """C12: durable offsets, rising, without Location; from interop version 5 on."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await begin(client, version, BODY[:5])
        await client.send(
            head("PATCH", path, appends(version, 5, True), length=len(BODY) - 5)
        )
        for position in range(5, len(BODY), 10):
            await client.send(BODY[position : position + 10])
            await trio.sleep(1.1)
        reply = await client.reply()
    assert reply.status == 200
    offsets = [int(i.fields.get("upload-offset") or 0) for i in reply.interims]
    assert offsets == (sorted(set(offsets)) if version.shows_progress else [])
    assert bool(offsets) == version.shows_progress
    assert all(5 < offset <= len(BODY) for offset in offsets)
    for interim in reply.interims:
        assert interim.status == 104
        assert dict(interim.fields).keys() == {
            "upload-offset",
            "upload-draft-interop-version",
        }


async def test_progress_is_told_of_the_first_request_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """C2, C12, R30: beside Acknowledge, for whoever asks for both."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        fields = {**says(NEWEST, True), "Prefer": "acknowledge"}
        await client.send(head("POST", "/", fields, length=len(BODY)) + BODY[:9])
        await trio.sleep(1.5)
        await client.send(BODY[9:])
        reply = await client.reply()
    said = [(i.status, i.fields.get("upload-offset")) for i in reply.interims]
    assert said == [(104, None), (100, None), (104, "9")]
    assert reply.interims[1].fields.get("acknowledge") == "9"


# Interruption and the offset.


@ALL
async def test_cut_creation_keeps_its_prefix_and_is_not_complete(
    version: Version,
) -> None:
    """C5, C6: also when the client meant to send all of it."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        data = head("POST", "/", says(version, True), length=len(BODY))
        await client.send(data + BODY[:20])
        path = path_of((await client.interim()).fields.get("location") or "")
        await client.aclose()
        client = service.connect()
        number = {"Upload-Draft-Interop-Version": str(version.number)}
        reply = await client.request("HEAD", path, number)
        assert completeness(version, reply) is False
        assert reply["upload-offset"] == "20"
        assert reply["upload-length"] == str(len(BODY))
        assert ("upload-limit" in reply.fields) == version.limits
        last = await client.request(
            "PATCH", path, appends(version, 20, True), BODY[20:]
        )
        assert (last.status, completeness(version, last)) == (200, True)
    assert handler.bodies == [BODY]


async def test_newcomer_ends_a_writer_that_fell_silent() -> None:
    """C7, C14: no lock, no waiting; what it is told is accepted next."""
    async with memory_service(handler := Recorder()) as service:
        silent = service.connect()
        data = head("POST", "/", says(NEWEST, True), length=len(BODY))
        await silent.send(data + BODY[:20])
        path = path_of((await silent.interim()).fields.get("location") or "")
        client = service.connect()
        for _ in range(2):
            assert await shown(client, NEWEST, path) == (20, False)
        await silent.send(BODY[20:30])  # too late: nobody reads it
        last = await client.request("PATCH", path, appends(NEWEST, 20, True), BODY[20:])
        assert last.status == 200
    assert handler.bodies == [BODY]


async def test_get_asks_for_the_offset_as_head_does() -> None:
    """C6, C7: it ends the old writer, or its answer would be out of date."""
    async with memory_service(Recorder()) as service:
        silent = service.connect()
        data = head("POST", "/", says(NEWEST, True), length=len(BODY))
        await silent.send(data + BODY[:20])
        path = path_of((await silent.interim()).fields.get("location") or "")
        client = service.connect()
        number = {"Upload-Draft-Interop-Version": str(NEWEST.number)}
        reply = await client.request("GET", path, number)
        assert (reply.status, reply["upload-offset"]) == (200, "20")
        assert reply["upload-complete"] == "?0"
        assert "upload-limit" in reply.fields
        last = await client.request("PATCH", path, appends(NEWEST, 20, True), BODY[20:])
        assert last.status == 200


@pytest.mark.parametrize("asked_first", ["HEAD", "PATCH"])
async def test_lost_state_deactivates_the_upload(asked_first: str) -> None:
    """C7: an announced offset cannot be taken back, so the upload ends.

    What rests in memory is found lost by the first request that writes.
    """
    tuning = Tuning(most_resting=0) if asked_first == "HEAD" else UNTUNED
    async with memory_service(Recorder(), tuning=tuning) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY)
        while service.used:
            await trio.testing.wait_all_tasks_blocked()
        service.store._tails.clear()
        service.store._writers.clear()
        if asked_first == "HEAD":
            assert (await client.request("HEAD", path)).status == 410
        reply = await client.request("PATCH", path, appends(NEWEST, 0, True), BODY)
        assert reply.status == 410
        assert (await client.request("HEAD", path)).status == 410


# Appends.


@ALL
async def test_wrong_offset_is_refused_with_the_right_one(version: Version) -> None:
    """C8, E5, R16: 409, the problem's registered type, nothing changed."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await begin(client, version, BODY[:10])
        for offset in (9, 11):
            reply = await client.request(
                "PATCH", path, appends(version, offset, True), BODY[offset:]
            )
            assert reply.status == 409
            assert reply["upload-offset"] == "10"
            assert completeness(version, reply) is False
            assert reply.json["type"].endswith("#mismatching-upload-offset")
            assert reply.json["expected-offset"] == 10
            assert reply.json["provided-offset"] == offset
        assert await shown(client, version, path) == (10, False)


@ALL
async def test_media_type_of_an_append(version: Version) -> None:
    """C8: required from interop version 6 on, and unknown before."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await begin(client, version, BODY[:10])
        fields = {**appends(version, 10, False), "Content-Type": "text/plain"}
        reply = await client.request("PATCH", path, fields, BODY[10:])
        assert reply.status == (415 if version.needs_media_type else 201)
        if version.needs_media_type:
            assert "application/partial-upload" in reply["accept-patch"]


@ALL
async def test_append_that_does_not_say_whether_it_is_the_last(
    version: Version,
) -> None:
    """C8: the first drafts let it be the last one; the later ones require the field."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await begin(client, version, BODY[:10])
        fields = appends(version, 10, True)
        del fields[version.completeness_field]
        reply = await client.request("PATCH", path, fields, BODY[10:])
        assert reply.status == (200 if version.defaults_to_complete else 400)
    assert len(handler.bodies) == int(version.defaults_to_complete)


@ALL
async def test_reaching_the_length_is_not_completion(version: Version) -> None:
    """C9, E2: only the client says that it is; an empty append may."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        length = {"Upload-Length": str(len(BODY))}
        path = await begin(client, version, BODY[:10], fields=length)
        fields = appends(version, 10, False)
        reply = await client.request("PATCH", path, fields, BODY[10:])
        assert reply.status == version.partial_status
        for _ in range(2):
            assert await shown(client, version, path) == (len(BODY), False)
        assert handler.started == 0
        fields = appends(version, len(BODY), True)
        last = await client.request("PATCH", path, fields, b"")
        assert (last.status, completeness(version, last)) == (200, True)
    assert handler.bodies == [BODY]


async def test_length_is_not_completion_after_a_restart_either() -> None:
    """C9, E2: the record says so, not the memory of a process."""
    store = MemoryStore(chunk_size=64)
    async with memory_service(handler := Recorder(), store=store) as service:
        length = {"Upload-Length": str(len(BODY))}
        path = await begin(service.connect(), NEWEST, BODY, fields=length)
    async with memory_service(handler, store=store) as service:
        assert await shown(service.connect(), NEWEST, path) == (len(BODY), False)
    assert handler.started == 0


CONTRADICTIONS = {
    "creation": ("POST", {"Upload-Complete": "?1", "Upload-Length": "50"}, BODY),
    "creation in parts": (
        "POST",
        {"Upload-Complete": "?0", "Upload-Length": "3"},
        BODY,
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
async def test_contradicting_lengths_begin_nothing(case: str) -> None:
    """C9: 400 before anything is stored."""
    method, fields, body = CONTRADICTIONS[case]
    async with memory_service(handler := Recorder()) as service:
        fields = {"Upload-Draft-Interop-Version": "8", **fields}
        reply = await service.connect().request(method, "/", fields, body)
        assert reply.status == 400
        assert reply.json["type"].endswith("#inconsistent-upload-length")
        assert (reply["upload-complete"], reply.interims) == ("?0", [])
        assert service.store.expiring(10) == []
    assert handler.started == 0


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_append_that_contradicts_the_length_is_refused(framing: str) -> None:
    """C9: too short to be the last one, whatever the framing."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        length = {"Upload-Length": str(len(BODY))}
        path = await begin(client, NEWEST, BODY[:10], fields=length)
        fields = appends(NEWEST, 10, True)
        if framing == "length":
            reply = await client.request("PATCH", path, fields, BODY[10:15])
        else:
            fields["Transfer-Encoding"] = "chunked"
            await client.send(head("PATCH", path, fields) + chunked(BODY[10:15]))
            reply = await client.reply()
        assert reply.status == 400
        assert reply.json["type"].endswith("#inconsistent-upload-length")
        offset = 10 if framing == "length" else 15  # what came is within the length
        assert await shown(client, NEWEST, path) == (offset, False)
        fields = appends(NEWEST, offset, True)
        assert (
            await client.request("PATCH", path, fields, BODY[offset:])
        ).status == 200
    assert handler.bodies == [BODY]


async def test_creation_of_unknown_length_that_falls_short_can_go_on() -> None:
    """C9: chunked, shorter than the length it stated."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        fields = {
            **says(NEWEST, True),
            "Upload-Length": str(len(BODY)),
            "Transfer-Encoding": "chunked",
        }
        await client.send(head("POST", "/", fields) + chunked(BODY[:10]))
        reply = await client.reply()
        assert reply.status == 400
        path = path_of(reply.interims[0].fields.get("location") or "")
        client = service.connect()
        last = await client.request("PATCH", path, appends(NEWEST, 10, True), BODY[10:])
        assert last.status == 200


@ALL
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_more_than_the_length_is_refused(version: Version, framing: str) -> None:
    """C10, E6: from interop version 7 on the upload is over; before, it is as it was."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await begin(client, version, BODY[:10], fields={"Upload-Length": "20"})
        fields = appends(version, 10, False)
        if framing == "length":
            reply = await client.request("PATCH", path, fields, BODY[10:])
        else:
            fields["Transfer-Encoding"] = "chunked"
            await client.send(head("PATCH", path, fields) + chunked(BODY[10:], 5))
            reply = await client.reply()
        assert (reply.status, reply.code) == (400, "excess-content")
        assert completeness(version, reply) is False
        client = service.connect()
        if version.invalidates:
            assert (await client.request("HEAD", path)).status == 410
        else:
            offset = 10 if framing == "length" else 20
            assert await shown(client, version, path) == (offset, False)
    assert handler.started == 0


# Completion.


@ALL
async def test_lost_response_is_had_again_by_repeating_the_last_append(
    version: Version,
) -> None:
    """C11, R24: any number of times, from one call of the target, errors included."""
    handler = Recorder(response=lambda body: Response(422, {"X-A": "b"}, b"no\n"))
    async with memory_service(handler) as service:
        client = service.connect()
        path = await begin(client, version, BODY[:10])
        replies = [
            await client.request("PATCH", path, appends(version, 10, True), BODY[10:])
        ]
        assert await shown(client, version, path) == (len(BODY), True)
        for _ in range(2):
            fields = appends(version, len(BODY), True)
            replies.append(await client.request("PATCH", path, fields, b""))
    for reply in replies:
        assert (reply.status, reply.body, reply["x-a"]) == (422, b"no\n", "b")
        assert completeness(version, reply) is True
        assert reply["upload-offset"] == str(len(BODY))
    assert len({reply["date"] for reply in replies}) == 1
    assert handler.started == 1


@ALL
@pytest.mark.parametrize("what", ["content", "not the last"])
async def test_complete_upload_takes_no_more(version: Version, what: str) -> None:
    """C11: 400 in interop version 6, else 409; and it stays what it is."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        reply = await client.request("POST", "/", says(version, True), BODY)
        path = path_of(reply["location"])
        more = b"more" if what == "content" else b""
        fields = appends(version, len(BODY), what == "content")
        reply = await client.request("PATCH", path, fields, more)
        assert reply.status == (400 if version.number == 6 else 409)
        assert reply.json["type"].endswith("#completed-upload")
        assert completeness(version, reply) is False
        client = service.connect()
        assert await shown(client, version, path) == (len(BODY), True)
    assert handler.bodies == [BODY]


def makes_a_thing(status: int = 201) -> Recorder:
    """A handler whose response has a Location of its own."""
    response = Response(status, {"Location": "/things/1"})
    return Recorder(response=lambda body: response)


async def test_every_answer_to_one_request_has_the_same_location() -> None:
    """C4, C19: the upload's, as the 104 said; where the target made something is told, too."""
    async with memory_service(makes_a_thing()) as service:
        client = service.connect()
        reply = await client.request("POST", "/", says(NEWEST, True), BODY)
        (early,) = reply.interims
        assert (reply.status, early.status) == (201, 104)
        assert reply.fields.get_all("location") == [early.fields.get("location")]
        assert reply["content-location"] == "/things/1"
        assert reply["upload-complete"] == "?1"
        with_both = {**says(NEWEST, True), **RESUME}
        reply = await client.request("POST", "/", with_both, BODY)
        told = {i.fields.get("location") for i in reply.interims} - {None}
        assert reply.fields.get_all("location") == list(told)
        assert reply["content-location"] == reply.result
        # The target's response as it is stands at RML.
        message = await client.request("GET", reply.message)
        assert b"\r\nLocation: /things/1\r\n" in message.body


@pytest.mark.h1_only  # it tells of HTTP/1.0, too
async def test_location_of_the_target_stays_where_no_other_was_told() -> None:
    """C19: without a 104, and in the answer to an append, it is the only one."""
    complete = says(NEWEST, True)
    unversioned = {"Upload-Complete": "?1"}
    silent = Config(interim_responses="none")
    for fields, version, config in (
        (unversioned, "1.1", None),
        (complete, "1.0", None),
        (complete, "1.1", silent),
    ):
        async with memory_service(makes_a_thing(), config) as service:
            client = service.connect()
            reply = await client.request("POST", "/", fields, BODY, version=version)
            assert (reply["location"], reply.interims) == ("/things/1", [])
            assert "content-location" not in reply.fields
    async with memory_service(makes_a_thing()) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY[:5])
        last = await client.request("PATCH", path, appends(NEWEST, 5, True), BODY[5:])
        assert (last.status, last["location"]) == (201, "/things/1")


async def test_redirect_keeps_its_location() -> None:
    """C19: its meaning depends on it."""
    async with memory_service(makes_a_thing(303)) as service:
        client = service.connect()
        reply = await client.request("POST", "/", says(NEWEST, True), BODY)
        assert (reply.status, reply["location"]) == (303, "/things/1")


async def test_answer_before_the_result_has_the_same_location(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """B11, C19: after a 104 the 202 says in another field where the message is."""
    handler = makes_a_thing()
    handler.gate = trio.Event()
    async with memory_service(handler) as service:
        client = service.connect()
        prefer = {"Prefer": "respond-async, processing, wait=1"}
        fields = {**says(NEWEST, True), **prefer}
        reply = await client.request("POST", "/", fields, BODY)
        handler.gate.set()
        assert (reply.status, reply["upload-complete"]) == (202, "?1")
        told = {i.fields.get("location") for i in reply.interims} - {None}
        assert told == {reply["location"]}
        message = await client.request("GET", reply.message, {"Prefer": "wait=9"})
        assert b"HTTP/1.1 201 Created" in message.body


class Admission:
    """A target that lets a request begin and, once revoked, not end."""

    policy = CallPolicy.AT_MOST_ONCE
    revoked = False
    asked = 0
    responded = 0

    async def admit(self, head: RequestHead, principal: str | None) -> Response | None:
        self.asked += 1
        return Response(403, {}, b"not any more\n") if self.revoked else None

    async def respond(self, request: Request) -> Response:
        self.responded += 1
        return Response(200)


async def test_target_is_asked_again_before_an_upload_that_was_resumed_ends() -> None:
    """C16: what was allowed when it began may not be any more."""
    async with memory_service(target := Admission()) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY[:10])
        target.revoked = True
        for offset, body in ((10, BODY[10:]), (len(BODY), b"")):
            fields = appends(NEWEST, offset, True)
            reply = await client.request("PATCH", path, fields, body)
            assert (reply.status, reply.body) == (403, b"not any more\n")
            assert reply["upload-complete"] == "?1"
    assert (target.asked, target.responded) == (2, 0)


async def test_target_is_asked_once_about_an_upload_in_one_request() -> None:
    """C16: nothing can have changed."""
    async with memory_service(target := Admission()) as service:
        reply = await service.connect().request("POST", "/", says(NEWEST, True), BODY)
        assert reply.status == 200
    assert (target.asked, target.responded) == (1, 1)


async def test_whoever_may_not_any_more_cannot_complete() -> None:
    """C16, R35: every request is authenticated, the last one too."""
    allowed = True

    async def authenticate(head: RequestHead) -> Principal | Rejection:
        return Principal("anna") if allowed else Rejection(401)

    config = Config(authenticate=authenticate)
    async with memory_service(handler := Recorder(), config) as service:
        path = await begin(service.connect(), NEWEST, BODY[:10])
        allowed = False
        fields = appends(NEWEST, 10, True)
        reply = await service.connect().request("PATCH", path, fields, BODY[10:])
        assert reply.status == 401
    assert handler.started == 0


# Limits.


def limits_of(fields: Fields | Reply) -> dict[str, int]:
    """The members of Upload-Limit."""
    value = fields.get("upload-limit") or ""
    pairs = (member.split("=") for member in value.split(", ") if member)
    return {key: int(number) for key, number in pairs}


LIMITED = Config(
    max_upload_size=1000,
    max_append_size=100,
    min_append_size=10,
    min_resumable_size=5,
    incomplete_lifetime=1000.0,
)
SIZES = {
    "max-size": 1000,
    "min-size": 5,
    "max-append-size": 100,
    "min-append-size": 10,
}


@ALL
async def test_limits_are_told_where_the_draft_has_them(version: Version) -> None:
    """C2, C6, C13: in the first 104, with 201 and HEAD; the lifetime by its name."""
    async with memory_service(Recorder(), LIMITED) as service:
        client = service.connect()
        created = await client.request("POST", "/", says(version, False), BODY)
        number = {"Upload-Draft-Interop-Version": str(version.number)}
        looked = await client.request("HEAD", path_of(created["location"]), number)
        answers = [limits_of(x) for x in (created.interims[0].fields, created, looked)]
    if not version.limits:
        assert answers == [{}, {}, {}]
        return
    for answer in answers:
        lifetime = answer.pop("expires" if version.number == 6 else "max-age")
        assert 900 - 1 <= lifetime <= 1000
        assert answer == SIZES


async def test_announced_lifetime_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """C13: nothing expires before max-age says, and it does soon after."""
    config = Config(incomplete_lifetime=1000.0, tombstone_lifetime=10.0)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY[:5])
        for _ in range(3):
            reply = await service.connect().request("HEAD", path)
            assert reply.status == 200
            await trio.sleep(limits_of(reply)["max-age"] - 1)
        await trio.sleep(1100)
        assert (await service.connect().request("HEAD", path)).status == 404


@pytest.mark.parametrize("target", ["/", "*"])
async def test_options_tell_the_limits(target: str) -> None:
    """C13: min-size=0 stands for none; a lifetime is an upload's own."""
    for config, expected in ((Config(), {"min-size": 0}), (LIMITED, SIZES)):
        async with memory_service(Recorder(), config) as service:
            reply = await service.connect().request("OPTIONS", target)
            assert 200 <= reply.status < 300
            assert limits_of(reply) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"Upload-Complete": "?0", "Upload-Length": "1001"},
        {
            "Upload-Complete": "?1",
            "Upload-Length": "1001",
            "Transfer-Encoding": "chunked",
        },
    ],
)
async def test_length_over_the_limit_is_refused_before_any_content(
    fields: dict[str, str],
) -> None:
    """C13: 413 with the limits, no upload."""
    async with memory_service(Recorder(), LIMITED) as service:
        client = service.connect()
        sent = {"Upload-Draft-Interop-Version": "8", **fields}
        length = None if "Transfer-Encoding" in sent else 0
        await client.send(head("POST", "/", sent, length=length))
        reply = await client.reply()
        assert (reply.status, limits_of(reply)) == (413, SIZES)
        assert reply.interims == []
        assert service.store.expiring(10) == []


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_request_over_its_limit_is_refused(framing: str) -> None:
    """C13: 413 with the limits; the upload goes on with smaller ones."""
    async with memory_service(Recorder(), LIMITED) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY)
        fields = appends(NEWEST, len(BODY), True)
        if framing == "length":
            reply = await client.request("PATCH", path, fields, bytes(101))
        else:
            fields["Transfer-Encoding"] = "chunked"
            await client.send(head("PATCH", path, fields) + chunked(bytes(101)))
            reply = await client.reply()
        assert (reply.status, limits_of(reply)) == (413, SIZES)
        client = service.connect()
        offset, complete = await shown(client, NEWEST, path)
        assert (offset >= len(BODY), complete) == (True, False)
        fields = appends(NEWEST, offset, True)
        assert (await client.request("PATCH", path, fields, b"rest")).status == 200


async def test_request_under_its_limit_is_refused_unless_it_is_the_last() -> None:
    """C13: min-append-size, with the limits, and nothing changed."""
    async with memory_service(Recorder(), LIMITED) as service:
        client = service.connect()
        reply = await client.request("POST", "/", says(NEWEST, False), b"too small")
        assert (reply.status, reply.code) == (400, "append-too-small")
        path = await begin(client, NEWEST, BODY)
        fields = appends(NEWEST, len(BODY), False)
        reply = await client.request("PATCH", path, fields, b"too small")
        assert (reply.status, limits_of(reply)) == (400, SIZES)
        fields = appends(NEWEST, len(BODY), True)
        assert (await client.request("PATCH", path, fields, b"last")).status == 200


async def test_small_uploads_get_no_resource_of_their_own() -> None:
    """C13: min-size is from where resuming is worth its cost."""
    async with memory_service(handler := Recorder(), LIMITED) as service:
        reply = await service.connect().request(
            "POST", "/", says(NEWEST, True), b"tiny"
        )
        assert (reply.status, reply.interims) == (200, [])
    assert handler.bodies == [b"tiny"]


# Cancellation.


@ALL
async def test_cancelled_upload_never_comes_back(version: Version) -> None:
    """C14, R25: 204; then gone, which the first drafts call not found."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await begin(client, version, BODY[:10])
        number = {"Upload-Draft-Interop-Version": str(version.number)}
        assert (await client.request("DELETE", path, number)).status == 204
        gone = 404 if version.forgets else 410
        fields = appends(version, 10, True)
        assert (await client.request("PATCH", path, fields, BODY[10:])).status == gone
        client = service.connect()
        for method in ("HEAD", "DELETE"):
            assert (await client.request(method, path, number)).status == gone
    assert handler.started == 0


async def test_cancelling_ends_a_request_that_runs(carrier: Carrier) -> None:
    """C14: its connection is closed, or its stream; nothing of it arrives later."""
    async with memory_service(handler := Recorder()) as service:
        writer = service.connect()
        data = head("POST", "/", says(NEWEST, True), length=len(BODY))
        await writer.send(data + BODY[:10])
        path = path_of((await writer.interim()).fields.get("location") or "")
        client = service.connect()
        assert (await client.request("DELETE", path)).status == 204
        reply = await writer.reply()
        closes = "close" if carrier.name.startswith("h1") else None
        assert (reply.status, reply.fields.get("connection")) == (410, closes)
        assert (await client.request("HEAD", path)).status == 410
    assert handler.started == 0


@ALL
@pytest.mark.parametrize("method", ["HEAD", "DELETE"])
async def test_fields_of_an_append_do_not_belong_elsewhere(
    version: Version, method: str
) -> None:
    """C6, C14: interop versions 3 to 6 want a 400; the later ones say nothing of it."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await begin(client, version, BODY[:10])
        fields = {
            "Upload-Draft-Interop-Version": str(version.number),
            "Upload-Offset": "10",
        }
        reply = await client.request(method, path, fields)
        assert (reply.status == 400) == version.forbids_fields


async def test_nothing_of_an_upload_redirects() -> None:
    """C6, C14: clients would follow a 301 or 302 with another method."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY[:10])
        for suffix in ("", "/", "/x"):
            for method in ("HEAD", "DELETE"):
                reply = await client.request(method, path + suffix)
                assert not 300 <= reply.status < 400


# Digests.

SHA_256 = hashlib.sha256(BODY).digest()
SHA_512 = hashlib.sha512(BODY).digest()


def digest_field(**digests: bytes) -> str:
    """A dictionary of byte sequences: ``sha_256=…``."""
    return ", ".join(
        f"{name.replace('_', '-')}=:{base64.b64encode(value).decode()}:"
        for name, value in digests.items()
    )


@pytest.mark.parametrize(
    "digest",
    [digest_field(sha_256=SHA_256), digest_field(md5=b"x", sha_512=SHA_512)],
)
@pytest.mark.parametrize("field", ["Content-Digest", "Repr-Digest"])
async def test_right_digest_is_no_obstacle(digest: str, field: str) -> None:
    """C15: whole, and as an append; unknown algorithms are passed over."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        fields = {**says(NEWEST, True), field: digest}
        assert (await client.request("POST", "/", fields, BODY)).status == 200
        creation = {field: digest} if field == "Repr-Digest" else {}
        path = await begin(client, NEWEST, fields=creation)
        append = appends(NEWEST, 0, True)
        if field == "Content-Digest":
            append[field] = digest
        assert (await client.request("PATCH", path, append, BODY)).status == 200
    assert handler.bodies == [BODY, BODY]


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_append_with_another_digest_is_not_appended(framing: str) -> None:
    """C15: Content-Digest guards each request on its own; it can be repeated."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY[:10])
        rest = digest_field(sha_256=hashlib.sha256(BODY[10:]).digest())
        fields = {**appends(NEWEST, 10, True), "Content-Digest": rest}
        spoilt = BODY[10:-1] + b"!"
        if framing == "length":
            reply = await client.request("PATCH", path, fields, spoilt)
        else:
            chunks = {**fields, "Transfer-Encoding": "chunked"}
            await client.send(head("PATCH", path, chunks) + chunked(spoilt))
            reply = await client.reply()
        assert (reply.status, reply.code) == (400, "digest-mismatch")
        assert reply["upload-complete"] == "?0"
        client = service.connect()
        assert await shown(client, NEWEST, path) == (10, False)
        assert (await client.request("PATCH", path, fields, BODY[10:])).status == 200
    assert handler.bodies == [BODY]


async def test_checked_append_that_is_cut_keeps_what_came(tmp_path: Path) -> None:
    """C5, C15: a digest can be compared with a complete request only."""
    async with memory_service(Recorder(), Config(data_dir=tmp_path)) as service:
        client = service.connect()
        path = await begin(client, NEWEST, BODY[:10])
        fields = {
            **appends(NEWEST, 10, True),
            "Content-Digest": digest_field(sha_256=SHA_256),
        }
        await client.send(head("PATCH", path, fields, length=30) + BODY[10:25])
        await trio.testing.wait_all_tasks_blocked()
        # A newcomer ends it; what it is told includes what had arrived.
        assert await shown(service.connect(), NEWEST, path) == (25, False)


async def test_first_request_with_another_digest_leaves_nothing() -> None:
    """C15: its bytes were all there was."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        fields = {
            **says(NEWEST, True),
            "Content-Digest": digest_field(sha_512=hashlib.sha512(b"x").digest()),
        }
        reply = await client.request("POST", "/", fields, BODY)
        assert (reply.status, reply.code) == (400, "digest-mismatch")
        path = path_of(reply.interims[0].fields.get("location") or "")
        await trio.testing.wait_all_tasks_blocked()
        assert (await service.connect().request("HEAD", path)).status == 410
    assert handler.started == 0


@pytest.mark.parametrize("policy", list(CallPolicy))
async def test_upload_with_another_digest_is_not_processed(policy: CallPolicy) -> None:
    """C15: whatever the target's policy; the failure is its final response."""
    target = HandlerTarget(handler := Recorder())
    target.policy = policy
    async with memory_service(target) as service:
        client = service.connect()
        digest = {"Repr-Digest": digest_field(sha_256=hashlib.sha256(b"x").digest())}
        path = await begin(client, NEWEST, BODY[:10], fields=digest)
        for offset, body in ((10, BODY[10:]), (len(BODY), b"")):
            fields = appends(NEWEST, offset, True)
            reply = await client.request("PATCH", path, fields, body)
            assert (reply.status, reply.code) == (400, "digest-mismatch")
            assert reply["upload-complete"] == "?1"
        assert await shown(client, NEWEST, path) == (len(BODY), True)
    assert handler.started == 0


async def test_wanted_digests_are_in_the_response() -> None:
    """C15: those of the whole, over however many requests; in its replay too."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        want = {"Want-Repr-Digest": "sha-512=3, sha-256=10, md5=1, unixsum=0"}
        path = await begin(client, NEWEST, BODY[:10], fields=want)
        for offset, body in ((10, BODY[10:]), (len(BODY), b"")):
            reply = await client.request(
                "PATCH", path, appends(NEWEST, offset, True), body
            )
            assert reply["repr-digest"] == digest_field(
                sha_256=SHA_256, sha_512=SHA_512
            )


@pytest.mark.parametrize("want", ["sha-256=0", "md5=5", "sha-256", "sha-256=11"])
async def test_digests_nobody_wants_are_not_computed(
    want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C15: 0 is a refusal, and unknown algorithms ask nothing."""

    def never(*args: object) -> None:
        raise AssertionError("it was computed")

    monkeypatch.setattr("trioresume.server.uploads.hashing._hash_slice", never)
    async with memory_service(Recorder()) as service:
        fields = {**says(NEWEST, True), "Want-Repr-Digest": want}
        reply = await service.connect().request("POST", "/", fields, BODY)
        assert reply.status == 200
        assert "repr-digest" not in reply.fields


# Where the upload is.


@pytest.mark.parametrize(
    ("fields", "public_url", "prefix"),
    [
        ({}, None, "SCHEME://test"),
        ({}, "https://up.example/root", "https://up.example/root"),
        ({"X-Forwarded-Proto": "https"}, None, ""),
        ({"Forwarded": "proto=https"}, None, ""),
        ({"Via": "1.1 proxy"}, None, ""),
        ({"X-Forwarded-Host": "evil.example"}, None, ""),
    ],
)
async def test_location_is_absolute_where_it_can_be_known(
    fields: dict[str, str], public_url: str | None, prefix: str
) -> None:
    """C4, G13, R4: no forwarded name is believed; behind a proxy it is path-absolute."""
    config = Config(public_url=public_url)
    async with memory_service(Recorder(), config) as service:
        sent = {**says(NEWEST, False), **fields}
        reply = await service.connect().request("POST", "/", sent, BODY)
        prefix = prefix.replace("SCHEME", CARRIER.get().scheme)
        assert reply["location"].startswith(f"{prefix}/operations/")
        assert reply.interims[0].fields.get("location") == reply["location"]


async def test_host_of_one_request_is_told_to_nobody_else() -> None:
    """G13: what is recorded of a response holds no name that a client made up."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        fields = {**says(NEWEST, True), **RESUME}
        reply = await client.request("POST", "/files/", fields, BODY)
        root = f"{CARRIER.get().scheme}://test"
        assert reply["location"].startswith(f"{root}/operations/")
        message = await client.request("GET", reply.message)
        assert root.encode() not in message.body
        assert b"\r\nLocation: /files/" in message.body
