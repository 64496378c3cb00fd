"""Random walks: clients of three processes that share a store, whose processes die and stop.

Whatever the order: no announced offset is taken back, the content is what its client sent, and
its target is called at most once.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import h11
import pytest
import trio

from tests.server.harness import Client, Reply, head
from tests.server.shared.services import PATIENCE, Shared, id_of, shared_services
from trioresume import Request, Response
from trioresume.protocol.operation import OperationState
from trioresume.server.serving import Tuning

UPLOADS = 4
LENGTH = 600
STEPS = 25
"""Requests for each upload, before its client only wants to end it."""


@dataclass
class Walk:
    """What the clients know, and what the target got."""

    draw: random.Random
    shared: Shared
    calls: Counter[bytes] = field(default_factory=Counter)
    alive: list[int] = field(default_factory=lambda: [0, 1, 2])
    """The processes that were not killed."""


@dataclass
class Upload:
    """The client of one upload: it sends to any process, and checks what it is told."""

    walk: Walk
    body: bytes
    location: str = ""
    announced: int = 0
    """The highest offset that a server has announced."""
    outcome: Reply | None = None
    cancelled: bool = False

    def connect(self) -> Client:
        return self.walk.shared.connect(self.walk.draw.choice(self.walk.alive))

    async def begin(self) -> None:
        client = self.connect()
        interim = await client.start(LENGTH, self.body[: self.walk.draw.randrange(200)])
        self.location = interim.fields.get("request-content-location") or ""
        if self.walk.draw.random() < 0.5:
            await client.aclose()

    def believe(self, reply: Reply) -> int | None:
        """Check what an answer says of the offset; return it."""
        told = reply.get("upload-offset")
        if told is None:
            return None
        offset = int(told)
        assert offset >= self.announced, f"{offset} after {self.announced}: {reply}"
        assert offset <= LENGTH
        self.announced = offset
        return offset

    def is_dying(self, reply: Reply) -> bool:
        """Whether a process answers whose store does nothing any more, as it was killed."""
        return reply.status == 500 and len(self.walk.alive) < 3

    async def ask(self) -> int | None:
        reply = await self.connect().request("HEAD", self.location)
        assert reply.status < 300 or reply.status == 410 or self.is_dying(reply), reply
        if reply.status == 410:
            assert self.cancelled, reply
        return self.believe(reply)

    async def patch(self, *, whole: bool) -> None:
        """Send some of the rest, or all of it, in a request that may be cut."""
        offset = await self.ask()
        if offset is None:
            return
        draw, rest = self.walk.draw, self.body[offset:]
        start = b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (offset, LENGTH - 1, LENGTH)
        if not rest:
            start = b"Content-Range: bytes */%d\r\n\r\n" % LENGTH
        fields = {"Content-Type": "message/byterange"}
        client = self.connect()
        length = len(start) + len(rest)
        sent = rest if whole else rest[: draw.randrange(len(rest) + 1)]
        await client.send(head("PATCH", self.location, fields, length=length))
        await client.send(start + sent)
        if len(sent) == len(rest):
            reply = await client.reply()
            self.believe(reply)
            if reply.status == 200 or reply.code == "indeterminate":
                self.end(reply)
            else:
                assert reply.status in (409, 410) or self.is_dying(reply), reply
                if reply.status == 410:
                    assert self.cancelled, reply
        elif draw.random() < 0.5:
            await client.aclose()
        else:
            await trio.sleep(draw.random() / 500)

    def end(self, reply: Reply) -> None:
        if self.outcome is not None:
            assert (reply.status, reply.code) == (
                self.outcome.status,
                self.outcome.code,
            )
        self.outcome = reply

    async def cancel(self) -> None:
        self.cancelled = True
        reply = await self.connect().request("DELETE", self.location)
        assert reply.status in (204, 410) or self.is_dying(reply), reply

    async def run(self) -> None:
        while not self.location:
            await self.try_once(self.begin)
        draw = self.walk.draw
        for _ in range(STEPS):
            step = draw.random()
            if step < 0.5:
                await self.try_once(lambda: self.patch(whole=False))
            elif step < 0.9:
                await self.try_once(self.ask)
            elif step < 0.91:
                await self.try_once(self.cancel)
            else:
                await self.try_once(lambda: self.patch(whole=True))
        with trio.fail_after(3 * PATIENCE):
            while self.outcome is None and not self.cancelled:
                await self.try_once(lambda: self.patch(whole=True))

    async def try_once(self, act: object) -> None:
        try:
            with trio.fail_after(PATIENCE):
                await act()  # type: ignore[operator]
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            pass  # the process was killed


async def disturb(walk: Walk, fault: str) -> None:
    """Stop or kill a process now and then, or have it miss notices."""
    draw = walk.draw
    while True:
        await trio.sleep(draw.random() / 20)
        at = draw.choice(walk.alive)
        store = walk.shared.stores[at]
        if draw.random() < 0.2:
            store.miss()
        elif fault == "kill" and len(walk.alive) > 1:
            walk.alive.remove(at)
            walk.shared.kill(at)
        elif fault == "stop":
            store.is_stopped = True
            await trio.sleep(draw.random() / 5)
            store.is_stopped = False


@pytest.mark.parametrize("fault", ["none", "stop", "kill"])
@pytest.mark.parametrize("seed", range(3))
async def test_no_upload_is_lost_or_processed_twice(seed: int, fault: str) -> None:
    """Three processes, four clients, each request to any of the processes."""

    async def target(request: Request) -> Response:
        body = await request.body.read()
        walk.calls[body] += 1
        await trio.sleep(walk.draw.random() / 100)
        return Response(200, {}, b"%d" % walk.calls[body])

    # An owner that missed a claim does not answer it.
    timeout = 0.05 if fault == "stop" else 1.0
    async with shared_services(
        target,
        processes=3,
        takeover_timeout=timeout,
        tuning=Tuning(ask_timeout=timeout),
    ) as shared:
        walk = Walk(random.Random(seed), shared)
        uploads = [Upload(walk, walk.draw.randbytes(LENGTH)) for _ in range(UPLOADS)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb, walk, fault)
            async with trio.open_nursery() as clients:
                for upload in uploads:
                    clients.start_soon(upload.run)
            nursery.cancel_scope.cancel()
        for upload in uploads:
            calls = walk.calls[upload.body]
            record = shared.memory.store.operation(id_of(upload.location))
            assert record is not None
            if upload.outcome is not None:
                is_known = upload.outcome.code != "indeterminate"
                assert is_known or fault != "none"
                assert upload.outcome.body == b"1" if is_known else calls <= 1
            else:
                assert upload.cancelled
                assert calls <= 1
                assert record.state in (OperationState.GONE, OperationState.ABANDONED)
        assert set(walk.calls) <= {upload.body for upload in uploads}
