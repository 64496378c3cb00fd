"""The clients of a random walk: each sends its upload to any process, and checks what it is told."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import h11
import trio

from tests.server.harness import Client, Reply, head
from tests.server.shared.services import PATIENCE

__all__ = ["Upload", "Walk"]


@dataclass
class Walk:
    """What all clients of a walk share."""

    draw: random.Random
    connect: Callable[[], Awaitable[Client]]
    """Connects to any process that lives."""
    is_dying: Callable[[Reply], bool]
    """Whether a reply may come of the death of the process that was asked."""
    target: str = "/"
    length: int = 600
    steps: int = 25
    """Requests for each upload, before its client only wants to end it."""
    done: int = 200
    """The status of the answer that the target gives."""
    patience: float = PATIENCE


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

    async def connect(self) -> Client:
        return await self.walk.connect()

    async def begin(self) -> None:
        client = await self.connect()
        walk, fields = self.walk, {"Prefer": "resume"}
        await client.send(head("POST", walk.target, fields, length=walk.length))
        await client.send(self.body[: walk.draw.randrange(walk.length // 3)])
        try:
            interim = await client.interim()
        except AssertionError as exc:
            (reply,) = exc.args  # a final response
            assert getattr(reply, "status_code", 0) in (500, 503), reply
            return
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
        assert offset <= self.walk.length
        self.announced = offset
        return offset

    async def ask(self) -> int | None:
        reply = await (await self.connect()).request("HEAD", self.location)
        assert reply.status < 300 or reply.status == 410 or self.walk.is_dying(reply), (
            reply
        )
        if reply.status == 410:
            assert self.cancelled, reply
        return self.believe(reply)

    async def patch(self, *, whole: bool) -> None:
        """Send some of the rest, or all of it, in a request that may be cut."""
        offset = await self.ask()
        if offset is None:
            return
        draw, rest = self.walk.draw, self.body[offset:]
        start = b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (
            offset,
            self.walk.length - 1,
            self.walk.length,
        )
        if not rest:
            start = b"Content-Range: bytes */%d\r\n\r\n" % self.walk.length
        fields = {"Content-Type": "message/byterange"}
        client = await self.connect()
        length = len(start) + len(rest)
        sent = rest if whole else rest[: draw.randrange(len(rest) + 1)]
        await client.send(head("PATCH", self.location, fields, length=length))
        await client.send(start + sent)
        if len(sent) == len(rest):
            reply = await client.reply()
            self.believe(reply)
            if reply.status == self.walk.done or reply.code == "indeterminate":
                self.end(reply)
            else:
                assert reply.status in (409, 410) or self.walk.is_dying(reply), reply
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
        reply = await (await self.connect()).request("DELETE", self.location)
        assert reply.status in (204, 410) or self.walk.is_dying(reply), reply

    async def run(self) -> None:
        while not self.location:
            await self.try_once(self.begin)
        draw = self.walk.draw
        for _ in range(self.walk.steps):
            step = draw.random()
            if step < 0.5:
                await self.try_once(lambda: self.patch(whole=False))
            elif step < 0.9:
                await self.try_once(self.ask)
            elif step < 0.91:
                await self.try_once(self.cancel)
            else:
                await self.try_once(lambda: self.patch(whole=True))
        with trio.fail_after(3 * self.walk.patience):
            while self.outcome is None and not self.cancelled:
                await self.try_once(lambda: self.patch(whole=True))

    async def try_once(self, act: object) -> None:
        try:
            with trio.fail_after(self.walk.patience):
                await act()  # type: ignore[operator]
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            pass  # the process was killed
