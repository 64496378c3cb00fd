"""What a restart finds again: everything that was ever announced (G9, R22, R26, R27)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import trio

from tests.e2e.command import Service
from tests.e2e.uploads import Upload
from tests.e2e.wire import Answer, Cut, Wire, ask, request_head

CONTENT = random.Random(0).randbytes(9_000_000)  # two chunks and a tail
RESUMING = (("Expect", "100-continue"), ("Prefer", "resume"))


@dataclass
class Begun:
    """An upload of CONTENT that was cut after some bytes."""

    content_at: str
    message_at: str
    sent: int

    async def head(self, service: Service) -> Answer:
        return await ask(service.address, "HEAD", self.content_at)


async def begin(service: Service, target: str, sent: int) -> Begun:
    """Send *sent* bytes of CONTENT and end the connection; return when they are there."""
    wire = await Wire.connect(service.address)
    length = ("Content-Length", str(len(CONTENT)))
    await wire.send(request_head("PUT", target, [*RESUMING, length]))
    fields = (await wire.next_head()).fields
    await wire.send(CONTENT[:sent])
    await wire.end()
    with pytest.raises(Cut):  # the server closes in its turn, without an answer
        await wire.next_head()
    wire.close()
    return Begun(
        fields["request-content-location"], fields["response-message-location"], sent
    )


async def finish(service: Service, target: str) -> Upload:
    """An upload of CONTENT that came to its end."""
    upload = Upload(service.address, "PUT", target, CONTENT, random.Random(1))
    answer = await upload.run()
    assert answer.status == 201
    return upload


def restart_killed(service: Service) -> None:
    service.kill()
    service.start()


def restart_stopped(service: Service) -> None:
    service.stop()
    service.start()


RESTARTS = [restart_killed, restart_stopped]


@pytest.mark.slow
@pytest.mark.parametrize("restart", RESTARTS)
async def test_every_operation_and_file_is_found_again(
    service: Service, restart: Callable[[Service], None]
) -> None:
    """R22, R26, R27: unfinished, done and cancelled ones are after it what they were."""
    begun = [
        await begin(service, f"/files/begun-{sent}", sent)
        for sent in (0, 1, 4 << 20, (4 << 20) + 1, len(CONTENT) - 1)
    ]
    done = await finish(service, "/files/done")
    cancelled = await begin(service, "/files/cancelled", 5)
    released = await finish(service, "/files/released")
    for place in (cancelled.content_at, released.message_at):
        assert (await ask(service.address, "DELETE", place)).status == 204

    async def look() -> list[tuple[int, dict[str, str], bytes]]:
        places = [("HEAD", one.content_at) for one in begun]
        places += [("GET", begun[3].content_at), ("GET", begun[3].message_at)]
        places += [("GET", done.message_at), ("HEAD", done.content_at)]
        places += [("GET", cancelled.content_at), ("GET", released.message_at)]
        places += [("GET", "/files/done"), ("HEAD", "/files/released")]
        places += [("GET", "/files/cancelled")]
        seen = []
        for method, place in places:
            answer = await ask(service.address, method, place)
            # The Date of a recorded message is inside it; this one is of today.
            fields = {k: v for k, v in answer.fields.items() if k != "date"}
            seen.append((answer.status, fields, answer.body))
        return seen

    before = await look()
    assert [int(fields["upload-offset"]) for _, fields, _ in before[: len(begun)]] == [
        one.sent for one in begun
    ]
    statuses = [status for status, _, _ in before[len(begun) :]]
    assert statuses == [200, 202, 200, 200, 410, 410, 200, 200, 404]
    await trio.to_thread.run_sync(restart, service)
    assert await look() == before
    for one in begun:
        upload = Upload(service.address, "", "", CONTENT, random.Random(2))
        upload.content_at, upload.message_at = one.content_at, one.message_at
        upload.sent = one.sent
        assert (await upload.run()).status == 201
        name = f"/files/begun-{one.sent}"
        assert (await ask(service.address, "GET", name)).body == CONTENT


async def test_an_upload_that_runs_at_sigterm_gets_its_grace_and_goes_on_after_it(
    make_service: Callable[..., Service],
) -> None:
    """A shutdown cuts what does not end in time, and keeps what came of it (R22)."""
    service = make_service("--grace-timeout", "0.3s")
    service.start()
    wire = await Wire.connect(service.address)
    length = ("Content-Length", str(len(CONTENT)))
    await wire.send(request_head("PUT", "/files/x", [*RESUMING, length]))
    fields = (await wire.next_head()).fields
    await wire.send(CONTENT[:5_000_000])
    begun = Begun(
        fields["request-content-location"], fields["response-message-location"], 0
    )
    await trio.to_thread.run_sync(restart_stopped, service)
    wire.close()
    head = await begun.head(service)
    assert 0 < int(head.fields["upload-offset"]) <= 5_000_000
    upload = Upload(service.address, "", "", CONTENT, random.Random(3))
    upload.content_at, upload.message_at = begun.content_at, begun.message_at
    upload.sent = 5_000_000
    assert (await upload.run()).status == 201
    assert (await ask(service.address, "GET", "/files/x")).body == CONTENT


async def test_what_was_cancelled_does_not_come_back_after_a_kill(
    service: Service,
) -> None:
    """R25: once DELETE was answered, no restart brings the upload back."""
    for number in range(5):
        begun = await begin(service, f"/files/{number}", 100_000 * number)
        answer = await ask(service.address, "DELETE", begun.content_at)
        assert answer.status == 204
        await trio.to_thread.run_sync(restart_killed, service)
        assert (await begun.head(service)).status == 410
        wire = await Wire.connect(service.address)
        fields = [("Content-Type", "message/byterange"), ("Content-Length", "0")]
        await wire.send(request_head("PATCH", begun.content_at, fields))
        assert (await wire.answer("PATCH")).status == 410
        wire.close()
    assert service.tails() == []
