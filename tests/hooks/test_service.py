"""The questions: before an upload begins, when its content is whole, before it is cancelled."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.hooks.receivers import Receiver, hooks
from tests.server.harness import Recorder, memory_service
from tests.server.tus import BODY, MARK, append, b64, create, offset_of
from trioresume import Config, FileService, HookEvent


def config(receiver: Receiver, **settings: Any) -> Config:
    return Config(hooks=hooks(receiver), **settings)


@pytest.mark.parametrize(
    "fields", [MARK, {}, {"Prefer": "resume"}, {"Upload-Complete": "?1"}]
)
async def test_refused_upload_leaves_nothing(
    fields: dict[str, str], autojump_clock: MockClock
) -> None:
    """The receiver's own answer is sent, before any content is asked for."""
    response = {"StatusCode": 402, "Body": "pay first", "Header": {"X-Price": ["7"]}}
    receiver = Receiver(pre_create={"RejectUpload": True, "HTTPResponse": response})
    async with memory_service(FileService(), config(receiver)) as service:
        client = service.connect()
        said = {**fields, "Expect": "100-continue"}
        if fields is MARK:
            said |= {
                "Upload-Length": "5",
                "Content-Type": "application/offset+octet-stream",
            }
        await client.send(
            b"POST /files/ HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n"
            + b"".join(f"{n}: {v}\r\n".encode() for n, v in said.items())
            + b"\r\n"
        )
        reply = await client.reply("POST")
        assert (reply.status, reply.body, reply["x-price"]) == (402, b"pay first", "7")
        assert reply.interims == []
        assert service.store.total_usage().bytes == 0
    assert receiver.kinds == ["pre-create"]


async def test_refusal_without_words_is_a_problem(autojump_clock: MockClock) -> None:
    """With a stable code."""
    receiver = Receiver(pre_create={"RejectUpload": True})
    async with memory_service(FileService(), config(receiver)) as service:
        reply = await service.connect().request("POST", "/files/", (), b"content")
    assert (reply.status, reply.code) == (400, "upload-rejected")


async def test_metadata_are_what_the_receiver_makes_of_them(
    autojump_clock: MockClock,
) -> None:
    """In tus's words and in HTTP's, for the target and for later events."""
    change = {"MetaData": {"filename": "new.txt", "filetype": "text/csv", "by": "hook"}}
    receiver = Receiver(pre_create={"ChangeFileInfo": change})
    async with memory_service(FileService(), config(receiver)) as service:
        client = service.connect()
        for fields in ({}, {**MARK, "Upload-Metadata": f"filename {b64(b'old')}"}):
            if fields:
                path = await create(client, len(BODY), fields)
                await append(client, path, 0, BODY)
            else:
                await client.request("POST", "/files/", fields, b"content")
        finished = await receiver.until("post-finish", 2)
        assert finished.upload["MetaData"] == change["MetaData"]
        for event in receiver.events:
            if event.kind == "post-finish":
                stored = event.upload["Storage"]["Path"]
                file = await client.request("GET", f"/files/{stored}")
                assert file["content-type"] == "text/csv"
                assert "new.txt" in file["content-disposition"]


async def test_name_is_what_the_receiver_chooses(autojump_clock: MockClock) -> None:
    """The file service stores under it, and refuses one that is taken before any content."""
    receiver = Receiver(pre_create={"ChangeFileInfo": {"ID": "chosen name.txt"}})
    async with memory_service(FileService(), config(receiver)) as service:
        client = service.connect()
        reply = await client.request("POST", "/files/", (), b"content")
        assert (reply.status, reply["location"]) == (201, "/files/chosen%20name.txt")
        assert (await client.request("GET", reply["location"])).body == b"content"
        again = await client.request("POST", "/files/", (), b"other")
        assert again.status == 412
        # A client that names the file itself is not renamed.
        put = await client.request("PUT", "/files/own", (), b"own")
        assert put.status == 201
    assert (await_kinds := receiver.kinds.count("pre-create")) == 3, await_kinds


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a\0b", "x" * 300])
async def test_name_that_no_file_can_have_is_the_hooks_fault(
    name: str, autojump_clock: MockClock
) -> None:
    """Nothing of it becomes a path; the client is told that the service failed."""
    receiver = Receiver(pre_create={"ChangeFileInfo": {"ID": name}})
    async with memory_service(FileService(), config(receiver)) as service:
        reply = await service.connect().request("POST", "/files/", (), b"content")
        assert (reply.status, reply.code) == (500, "hook-failed")
        assert service.store.total_usage().bytes == 0


async def test_lifetime_is_what_the_receiver_says_and_nobody_else(
    autojump_clock: MockClock,
) -> None:
    """A client cannot set it by the metadata in which it is kept."""
    receiver = Receiver(
        pre_create=lambda event: (
            {"ChangeFileInfo": {"Lifetime": 50}}
            if event.upload["MetaData"].get("filename") == "short"
            else None
        )
    )
    forged = {"Upload-Metadata": f"file-lifetime {b64(b'60')},a {b64(b'b')}"}
    short = {"Upload-Metadata": f"filename {b64(b'short')}"}
    async with memory_service(FileService(), config(receiver)) as service:
        client = service.connect()
        paths = []
        for number, fields in enumerate((forged, short), 1):
            path = await create(client, len(BODY), fields)
            await append(client, path, 0, BODY)
            event = await receiver.until("post-finish", number)
            paths.append(f"/files/{event.upload['Storage']['Path']}")
        assert [(await client.request("GET", path)).status for path in paths] == [
            200,
            200,
        ]
        await trio.sleep(100)
        later = service.connect()
        assert [(await later.request("GET", path)).status for path in paths] == [
            200,
            404,
        ]


@pytest.mark.parametrize("is_tus", [True, False])
async def test_answer_of_pre_finish_is_the_response(
    is_tus: bool, autojump_clock: MockClock
) -> None:
    """It is recorded as any, and tus gets it too."""
    response = {"StatusCode": 200, "Body": "done", "Header": {"X-Url": "/there"}}
    receiver = Receiver(pre_finish={"HTTPResponse": response})
    async with memory_service(FileService(), config(receiver)) as service:
        client = service.connect()
        if is_tus:
            path = await create(client)
            reply = await append(client, path, 0, BODY)
            assert reply["upload-offset"] == str(len(BODY))
        else:
            reply = await client.request("POST", "/files/", {"Prefer": "resume"}, BODY)
        assert (reply.status, reply.body, reply["x-url"]) == (200, b"done", "/there")
        recorded = await client.request("GET", reply["response-message-location"])
        assert recorded.body.startswith(b"HTTP/1.1 200")
        assert b"X-Url: /there" in recorded.body
        assert recorded.body.endswith(b"done")
        finished = await receiver.until("post-finish")
        stored = finished.upload["Storage"]["Path"]
        assert (await client.request("GET", f"/files/{stored}")).body == BODY


async def test_upload_that_pre_finish_refuses_is_not_stored(
    autojump_clock: MockClock,
) -> None:
    """The target is not called."""
    receiver = Receiver(
        pre_finish={
            "RejectUpload": True,
            "HTTPResponse": {"StatusCode": 422, "Body": "no"},
        }
    )
    target = Recorder()
    async with memory_service(target, config(receiver)) as service:
        reply = await service.connect().request("POST", "/", (), b"content")
        assert (reply.status, reply.body) == (422, b"no")
        ended = await receiver.until("post-terminate")
        assert ended.document["Event"]["Reason"] == "refused"
    assert target.requests == []


async def test_unreachable_receiver_of_pre_finish_keeps_the_content(
    autojump_clock: MockClock,
) -> None:
    """503, and the target is called when the receiver is back."""
    receiver = Receiver()
    receiver.failures["pre-finish"] = 2
    target = Recorder()
    async with memory_service(target, config(receiver)) as service:
        client = service.connect()
        reply = await client.request("POST", "/", {"Prefer": "resume"}, b"content")
        assert (reply.status, target.requests) == (503, [])
        await receiver.until("post-finish")  # retried without the client
        again = await client.request("GET", reply.message)
        assert b"got 7 bytes" in again.body
    assert target.bodies == [b"content"]


@pytest.mark.parametrize("answer", [[], {"HTTPResponse": 7}, {"RejectUpload": "yes"}])
async def test_wrong_answer_of_a_question_is_a_500(
    answer: Any, autojump_clock: MockClock
) -> None:
    """And begins nothing."""
    receiver = Receiver(pre_create=answer)
    async with memory_service(FileService(), config(receiver)) as service:
        reply = await service.connect().request("POST", "/files/", (), b"content")
        assert (reply.status, reply.code) == (500, "hook-failed")
        assert service.store.total_usage().bytes == 0


async def test_silent_receiver_of_a_question_is_a_503(
    autojump_clock: MockClock,
) -> None:
    """After the time limit, and its retries."""
    receiver = Receiver()
    receiver.gate = trio.Event()
    started = trio.current_time()
    settings = Config(hooks=hooks(receiver, timeout=3.0, retries=2, backoff=1.0))
    async with memory_service(FileService(), settings) as service:
        reply = await service.connect().request("POST", "/files/", (), b"content")
        assert (reply.status, reply.code) == (503, "service-unavailable")
        assert reply["retry-after"] == "2"
    assert len(receiver.tried) == 3
    assert 11.0 <= trio.current_time() - started < 12.0


async def test_refused_cancellation_leaves_the_upload(
    autojump_clock: MockClock,
) -> None:
    """The receiver may say why."""
    answers: list[dict[str, Any] | None] = [
        {"RejectTermination": True},
        {"RejectTermination": True, "HTTPResponse": {"StatusCode": 403, "Body": "no"}},
        None,
    ]
    receiver = Receiver(pre_terminate=lambda event: answers.pop(0))
    async with memory_service(FileService(), config(receiver)) as service:
        client = service.connect()
        path = await create(client)
        first = await client.request("DELETE", path, MARK)
        assert (first.status, first.code) == (400, "termination-rejected")
        second = await service.connect().request("DELETE", path, MARK)
        assert (second.status, second.body) == (403, b"no")
        assert await offset_of(service.connect(), path) == 0
        third = await service.connect().request("DELETE", path, MARK)
        assert third.status == 204
        await receiver.until("post-terminate")


async def test_post_receive_tells_durable_offsets_and_can_stop(
    autojump_clock: MockClock,
) -> None:
    """The client gets the receiver's answer, and the upload has ended."""
    stop = {"StopUpload": True, "HTTPResponse": {"StatusCode": 418, "Body": "stop"}}

    def judge(event: HookEvent) -> dict[str, Any] | None:
        return stop if event.upload["Offset"] >= 128 else None

    receiver = Receiver(post_receive=judge)
    async with memory_service(FileService(), config(receiver)) as service:
        client = service.connect()
        path = await create(client)
        fields = {**MARK, "Content-Type": "application/offset+octet-stream"}
        fields |= {"Upload-Offset": "0", "Content-Length": str(len(BODY))}
        await client.send(
            f"PATCH {path} HTTP/1.1\r\nHost: test\r\n".encode()
            + b"".join(f"{n}: {v}\r\n".encode() for n, v in fields.items())
            + b"\r\n"
            + BODY[:70]
        )
        first = await receiver.until("post-receive")
        assert first.upload["Offset"] == 70
        await client.send(BODY[70:150])
        reply = await client.reply("PATCH")
        assert (reply.status, reply.body) == (418, b"stop")
        await receiver.until("post-terminate")
        assert (await service.connect().request("HEAD", path, MARK)).status == 410
