"""Each call of the store, in turn, fails or waits while something else happens.

One upload goes through all that can happen to an upload: begun, cut, asked for, continued by
a patch of each kind, completed. In each run another one of its calls of the store is the
one that fails, or that waits until another request was made. What must hold
afterwards is always the same: see :func:`check`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
import trio
import trio.testing

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    MemoryService,
    Recorder,
    Reply,
    byterange,
    head,
    memory_service,
)
from tests.server.held import HeldStore, Hold
from tests.server.seed import BODY, MULTIPART, multipart
from trioresume.errors import StorageError, StorageFull
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock

CALLS = (
    "apply",
    "operation",
    "offset",
    "open_writer",
    "writer.append",
    "writer.finish",
    "seal.run",
    "flush.run",
    "open_prefix",
    "reader.read",
    "sealed_content",
)
"""Those that a disk can fail, or keep waiting."""
MAYBE = {"operation", "offset", "sealed_content"}
"""Those that a story may do without, in one order of its tasks or the other."""


class Numbered(HeldStore):
    """Does something at its *number*-th call of *name*."""

    def __init__(
        self, name: str, number: int, act: Callable[[Numbered], object]
    ) -> None:
        super().__init__(MemoryStore(chunk_size=64))
        self.name = name
        self.is_met = False
        self._left = number
        self._act = act

    def finish(self) -> None:
        """What comes now is not part of the story any more."""
        self._left = 0
        self.let_go()

    def make(self, name: str, function: Callable[..., Any], args: Any) -> Any:
        if name == self.name and self._left:
            self._left -= 1
            if not self._left:
                self.is_met = True
                self._act(self)
        return super().make(name, function, args)


@dataclass
class Story:
    """What clients were told of one upload."""

    location: str = ""
    offsets: list[int] = field(default_factory=list)
    final: Reply | None = None
    deleted: bool = False

    def note(self, reply: Reply) -> Reply:
        told = reply.get("upload-offset")
        if reply.status in (200, 204) and told is not None:
            self.offsets.append(int(told))
        if reply.body.startswith(b"got "):
            self.final = reply
        return reply

    async def ask(
        self,
        service: MemoryService,
        method: str,
        fields: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply | None:
        """A request for the upload, on a connection of its own; None if that was cut."""
        client = service.connect()
        try:
            with trio.fail_after(1000):
                reply = await client.request(method, self.location, fields or {}, body)
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            return None
        finally:
            await client.aclose()
        return self.note(reply)

    async def where(self, service: MemoryService) -> int:
        reply = await self.ask(service, "HEAD")
        told = None if reply is None else reply.get("upload-offset")
        return 0 if told is None else int(told)

    async def go_on(self, service: MemoryService, end: int) -> None:
        """Append what is missing up to *end*, as one part; then cut the connection."""
        at = await self.where(service)
        if at < end:
            client = service.connect()
            patch = byterange(at, BODY[at:end], 512, last=511)
            fields = head("PATCH", self.location, BYTERANGE, length=len(patch) + 1)
            try:
                await client.send(fields + patch)
                await trio.testing.wait_all_tasks_blocked()
            except trio.BrokenResourceError:
                pass
            await client.aclose()
            await trio.testing.wait_all_tasks_blocked()

    async def live(self, service: MemoryService) -> None:
        """All of an upload's life, as far as nothing prevents it."""
        await self.begin(service)
        await self.end(service)

    async def begin(self, service: MemoryService) -> None:
        client = service.connect()
        await client.send(head("POST", "/", RESUME, length=512) + BODY[:100])
        data = bytes(await client.stream.receive_some())
        if not data.startswith(b"HTTP/1.1 100"):
            return
        fields = data.decode().lower()
        start = fields.index("request-content-location: ") + 26
        self.location = data.decode()[start:].partition("\r\n")[0]
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await self.go_on(service, 300)

    async def end(self, service: MemoryService) -> None:
        if not self.location:
            return
        at = await self.where(service)
        parts = BODY[at:400], BODY[400:450]
        if at < 400:
            patch = multipart(at, *parts, total=512)
            await self.ask(service, "PATCH", MULTIPART, patch)
        await self.ask(service, "GET")
        at = await self.where(service)
        patch = byterange(at, BODY[at:], 512)
        await self.ask(service, "PATCH", BYTERANGE, patch)


async def check(
    story: Story, service: MemoryService, handler: Recorder, *, unread: bool = False
) -> None:
    """What was told is true, nothing comes back, and the target is called once.

    *unread* says that the target may have found its content unreadable.
    """
    if not story.location:
        return
    reply = await story.ask(service, "HEAD")
    assert reply is not None
    if story.deleted:
        assert reply.status in (404, 410)
        return
    assert reply.status == 200
    at = int(reply["upload-offset"])
    assert at >= max(story.offsets, default=0)
    if reply["upload-complete"] == "?0":
        prefix = await story.ask(service, "GET")
        assert prefix is not None
        assert prefix.body == BODY[:at]
    rest = byterange(at, BODY[at:], 512)
    if at == 512:
        rest = b"Content-Range: bytes */512\r\n\r\n"
    done = await story.ask(service, "PATCH", BYTERANGE, rest)
    assert done is not None
    assert handler.started == 1
    if unread and done.status == 500:
        return  # it is not called again: nobody knows what it had done by then
    assert (done.status, done.body) == (200, b"got 512 bytes")
    assert handler.bodies == [BODY]


async def for_each_call(run: Callable[[str, int], Awaitable[bool]]) -> None:
    """Run a story for each call: the first of a name, the second, and so on.

    *run* is given the name and the number, and says whether its story had such a call.
    """
    for name in CALLS:
        number = 1
        while await run(name, number):
            number += 1
        assert number > 1 or name in MAYBE, name


FAULTS: list[Exception] = [StorageError("broken"), StorageFull("full")]


@pytest.mark.parametrize("performed", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize("fault", FAULTS, ids=["broken", "full"])
async def test_any_call_may_fail(
    fault: Exception,
    performed: bool,
    autojump_clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether or not it was done: the service goes on, and every word it said holds."""

    def fail(store: Numbered) -> None:
        store.fail(store.name, fault, performed=performed)

    async def run(name: str, number: int) -> bool:
        story, handler = Story(), Recorder()
        store = Numbered(name, number, fail)
        async with memory_service(handler, store=store) as service:
            await story.begin(service)
        async with memory_service(handler, store=store) as service:  # nothing is loaded
            await story.end(service)
            store.finish()
            await trio.sleep(100)
            unread = name == "reader.read"
            await check(story, service, handler, unread=unread)
        return store.is_met

    await for_each_call(run)


async def test_power_may_fail_before_any_call(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Promises 1 and 2: what was told by then is there at the next start."""

    async def run(name: str, number: int) -> bool:
        story, handler = Story(), Recorder()
        left: list[tuple[MemoryStore, int, bool]] = []

        def lose_power(store: Numbered) -> None:
            told = max(story.offsets, default=0)
            after = store.store.crash(power_loss=True)
            left.append((after, told, story.final is not None))

        store = Numbered(name, number, lose_power)
        async with memory_service(handler, store=store) as service:
            await story.live(service)
        if not left or not story.location:
            return store.is_met
        after, told, answered = left[0]
        again = Recorder()
        async with memory_service(again, store=after) as service:
            await trio.sleep(1)
            reply = await story.ask(service, "HEAD")
            assert reply is not None
            if reply.status == 404:
                assert (told, answered) == (0, False)
                return store.is_met
            assert int(reply["upload-offset"]) >= told
            if answered:
                message = story.location.replace("/content", "/message")
                shown = await service.connect().request("GET", message)
                assert shown.body.endswith(b"got 512 bytes")
                assert again.started == 0
        return store.is_met

    await for_each_call(run)


@pytest.mark.parametrize("meanwhile", ["HEAD", "GET", "PATCH", "DELETE", "message"])
async def test_any_call_may_wait_while_another_request_is_made(
    meanwhile: str, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The newcomer is answered sooner or later, and truly; neither breaks the other."""

    async def interfere(story: Story, service: MemoryService) -> None:
        reply: Reply | None
        if meanwhile == "PATCH":
            at = await story.where(service)
            patch = byterange(at, BODY[at : at + 10], 512)
            reply = await story.ask(service, "PATCH", BYTERANGE, patch)
        elif meanwhile == "message":
            location = story.location.replace("/content", "/message")
            wait = {"Prefer": "wait=5"}
            reply = await service.connect().request("GET", location, wait)
            assert reply.status in (200, 202)
        else:
            reply = await story.ask(service, meanwhile)
        if meanwhile == "DELETE":
            story.deleted = reply is not None and reply.status == 204

    async def run(name: str, number: int) -> bool:
        story, handler = Story(), Recorder()
        holds: list[Hold] = []
        store = Numbered(name, number, lambda s: holds.append(s.hold(name)))
        async with memory_service(handler, store=store) as service:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(story.live, service)
                await trio.sleep(100)  # it ends, or waits for the call that is held
                if holds:
                    if story.location:
                        nursery.start_soon(interfere, story, service)
                    await trio.sleep(0.2)
                    holds[0].release()
            store.finish()
            await trio.sleep(100)
            await check(story, service, handler)
        return store.is_met

    await for_each_call(run)
