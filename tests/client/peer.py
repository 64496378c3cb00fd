"""Servers for the client's tests, in memory: a scripted one, and a small model.

Both speak HTTP/1.1 by h11 over trio's memory streams, so that tests run in virtual
time. :class:`Peer` is a connector: connection number *i* is handed to a function of
the test, which reads and writes through a :class:`Dialogue`. :class:`Model` is such
a function: the shortest server that keeps the statements R1 to R29, written from
PROTOCOL.md and not from the server in this package.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import h11
import trio
import trio.testing

from tests.client.http2_gateway import SPEAKS_HTTP2, Gateway
from trioresume.client import Origin, Route
from trioresume.protocol.heads import Fields

BASE = "http://peer.test"
TARGET = f"{BASE}/target"

OFFER = {
    "Request-Content-Location": "/op/0/content",
    "Response-Message-Location": "/op/0/message",
    "Content-Location": "/op/0/result",
}


PLAIN = {"Location": "/thing"}
"""What a 201 of a server that speaks no protocol has."""


class Cut(Exception):
    """The connection is over; ends the script of a connection."""


class CutStream:
    """A stream that breaks after so many bytes in either direction."""

    def __init__(
        self, stream: trio.abc.Stream, up: int | None = None, down: int | None = None
    ) -> None:
        self.stream = stream
        self.up = up
        self.down = down

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        if self.up is not None:
            if self.up == 0:
                await self.cut()
            max_bytes = min(max_bytes, self.up)
        data = bytes(await self.stream.receive_some(max_bytes))
        if self.up is not None:
            self.up -= len(data)
        return data

    async def send_all(self, data: bytes) -> None:
        if self.down is not None and len(data) >= self.down:
            await self.stream.send_all(data[: self.down])
            await self.cut()
        await self.stream.send_all(data)
        if self.down is not None:
            self.down -= len(data)

    async def cut(self) -> None:
        await self.stream.aclose()
        raise Cut


@dataclass(frozen=True)
class Received:
    """A request's head."""

    method: str
    target: str
    fields: Fields


class Dialogue:
    """The server's end of a connection."""

    def __init__(self, stream: CutStream) -> None:
        self.stream = stream
        self.parser = h11.Connection(h11.SERVER)
        self.request = Received("", "", Fields())

    async def _event(self) -> object:
        while True:
            event = self.parser.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.parser.receive_data(await self.stream.receive_some())

    async def read_head(self) -> Received:
        """The next request; the connection's end is a :class:`Cut`."""
        if self.parser.our_state is h11.DONE:
            self.parser.start_next_cycle()
        try:
            event = await self._event()
        except h11.RemoteProtocolError as exc:
            raise Cut from exc
        if not isinstance(event, h11.Request):
            raise Cut
        self.request = Received(
            event.method.decode(),
            event.target.decode(),
            Fields.from_wire(event.headers),
        )
        return self.request

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The request's content, as it arrives; a cut within it is a :class:`Cut`."""
        while True:
            try:
                event = await self._event()
            except h11.RemoteProtocolError as exc:
                raise Cut from exc
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise Cut

    async def read_body(self) -> bytes:
        async with aclosing(self.pieces()) as pieces:
            return b"".join([piece async for piece in pieces])

    async def interim(
        self, status: int = 100, fields: Mapping[str, str] | Fields = OFFER
    ) -> None:
        event = h11.InformationalResponse(
            status_code=status, headers=Fields(fields).to_wire()
        )
        await self.stream.send_all(self.parser.send(event) or b"")

    async def respond(
        self, status: int, fields: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        lines = Fields(fields or {})
        bodiless = self.request.method == "HEAD" or status in (204, 304)
        if not bodiless:
            lines = lines.plus({"content-length": str(len(body))})
        event = h11.Response(status_code=status, headers=lines.to_wire())
        data = self.parser.send(event) or b""
        if body and not bodiless:
            data += self.parser.send(h11.Data(data=body)) or b""
        data += self.parser.send(h11.EndOfMessage()) or b""
        await self.stream.send_all(data)

    async def cut(self) -> None:
        """End the connection here."""
        await self.stream.cut()

    async def silence(self) -> None:
        """Keep the connection open, and never read or write again."""
        await trio.sleep_forever()


Script = Callable[[Dialogue], Awaitable[None]]


class Peer:
    """A connector whose connections are served by *serve*, called with their number.

    If :data:`SPEAKS_HTTP2` is set, they are carried by one connection of HTTP/2.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        serve: Callable[[int, trio.abc.Stream], Awaitable[None]],
    ) -> None:
        self._nursery = nursery
        self._serve = serve
        self.connections = 0
        self.clients: list[trio.abc.Stream] = []
        self.down = 0
        """How many connections are refused from now on."""

    async def connect(self, origin: Origin) -> Route:
        await trio.lowlevel.checkpoint()
        if self.down:
            self.down -= 1
            raise ConnectionRefusedError("the peer is down")
        client, server = trio.testing.memory_stream_pair()
        self.clients.append(client)
        if SPEAKS_HTTP2.get():
            self._nursery.start_soon(Gateway(server, self._accept).run)
            return Route(client, http2=True)
        self._accept(server)
        return Route(client)

    def _accept(self, server: trio.abc.Stream) -> None:
        self._nursery.start_soon(self._run, self.connections, server)
        self.connections += 1

    async def _run(self, number: int, server: trio.abc.Stream) -> None:
        try:
            await self._serve(number, server)
        except (Cut, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(server)


@asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[Peer]:
    """A peer whose connection *i* follows ``scripts[i]``; all must have been used."""

    async def serve(number: int, stream: trio.abc.Stream) -> None:
        assert number < len(scripts), "one connection more than the script has"
        await scripts[number](Dialogue(CutStream(stream)))

    async with trio.open_nursery() as nursery:
        peer = Peer(nursery, serve)
        yield peer
        nursery.cancel_scope.cancel()
    assert peer.connections == len(scripts)


# ----------------------------------------------------------------------- the model


@dataclass
class Operation:
    content: bytearray = field(default_factory=bytearray)
    length: int | None = None
    done: bool = False
    released: bool = False


class Model:
    """A server with one target, that keeps its promises through any cut.

    *plan* gives, for each connection, after how many bytes up and down it breaks.
    ``processed`` has the content of each operation that reached the target.
    """

    def __init__(
        self,
        answer: Callable[[bytes], bytes] = bytes,
        plan: Callable[[int], tuple[int | None, int | None]] = lambda _: (None, None),
        *,
        repeats_fields: bool = True,
        acknowledges: bool = False,
        knows_offsets: bool = True,
        bare: bool = False,
    ) -> None:
        self.answer = answer
        self.plan = plan
        self.repeats_fields = repeats_fields
        self.acknowledges = acknowledges
        self.knows_offsets = knows_offsets
        self.parts: list[bytes] = []
        """The field lines of each part of a patch."""
        self.bare = bare
        """Whether an offset is told as the seed's text has it, without a mark."""
        self.operations: list[Operation] = []
        self.processed: list[bytes] = []
        self.requests: list[Received] = []

    async def serve(self, number: int, stream: trio.abc.Stream) -> None:
        dialogue = Dialogue(CutStream(stream, *self.plan(number)))
        while True:
            request = await dialogue.read_head()
            self.requests.append(request)
            if request.target == "/target":
                await self._begin(dialogue)
                continue
            found = re.fullmatch(r"/op/(\d+)/(content|message|result)", request.target)
            assert found is not None
            handler = getattr(self, f"_{request.method.lower()}_{found[2]}")
            await handler(dialogue, int(found[1]))

    def offer(self, number: int) -> dict[str, str]:
        return {
            name: value.replace("/0/", f"/{number}/")
            for name, value in OFFER.items()
            if self.operations[number].length != 0 or not name.startswith("Request")
        }

    async def _begin(self, dialogue: Dialogue) -> None:
        fields = dialogue.request.fields
        operation = Operation()
        if "transfer-encoding" not in fields:
            operation.length = int(fields.get("content-length") or 0)
        self.operations.append(operation)
        number = len(self.operations) - 1
        await dialogue.interim(100, self.offer(number))
        async with aclosing(dialogue.pieces()) as pieces:
            async for piece in pieces:
                await self._append(dialogue, operation, piece)
        operation.length = len(operation.content)
        await self._complete(dialogue, number)

    async def _append(
        self, dialogue: Dialogue, operation: Operation, piece: bytes
    ) -> None:
        operation.content += piece
        if self.acknowledges:
            await dialogue.interim(100, {"Acknowledge": str(len(operation.content))})

    def process(self, number: int) -> None:
        operation = self.operations[number]
        if not operation.done and len(operation.content) == operation.length:
            operation.done = True
            self.processed.append(bytes(operation.content))

    async def _complete(self, dialogue: Dialogue, number: int) -> None:
        self.process(number)
        fields = {"Preference-Applied": "resume=save-incomplete", **self.offer(number)}
        if not self.repeats_fields:
            fields = {}
        body = self.answer(bytes(self.operations[number].content))
        await dialogue.respond(200, {"ETag": '"result"', **fields}, body)

    async def _gone(self, dialogue: Dialogue, number: int) -> bool:
        if not self.operations[number].released:
            return False
        await dialogue.read_body()
        await dialogue.respond(410)
        return True

    async def _head_content(self, dialogue: Dialogue, number: int) -> None:
        await dialogue.read_body()
        if await self._gone(dialogue, number):
            return
        self.process(number)
        offset = str(len(self.operations[number].content))
        told = {"Content-Length": offset}
        if not self.bare:
            told["Upload-Offset"] = offset
        await dialogue.respond(200, told)

    async def _patch_content(self, dialogue: Dialogue, number: int) -> None:
        if await self._gone(dialogue, number):
            return
        operation = self.operations[number]
        head = b""
        started = False
        async with aclosing(dialogue.pieces()) as pieces:
            async for piece in pieces:
                if started:
                    await self._append(dialogue, operation, piece)
                    continue
                head += piece
                if b"\r\n\r\n" in head:
                    started = True
                    fields, _, rest = head.partition(b"\r\n\r\n")
                    self.parts.append(fields)
                    if not self.knows_offsets and b"Content-Offset" in fields:
                        await dialogue.respond(400)
                        await dialogue.cut()
                    self._learn(operation, fields)
                    await self._append(dialogue, operation, rest)
        if len(operation.content) == operation.length:
            await self._complete(dialogue, number)
        else:
            await dialogue.respond(
                204,
                {
                    "Upload-Offset": str(len(operation.content)),
                    "Upload-Complete": "?0",
                },
            )

    def _learn(self, operation: Operation, part: bytes) -> None:
        match = re.search(
            rb"(?i)content-offset: ((\d+))(?:;complete-length=(\d+))?", part
        )
        if match is not None:
            assert int(match[2]) == len(operation.content)
            operation.length = operation.length if match[3] is None else int(match[3])
            return
        match = re.search(rb"(?i)content-range: bytes (\*|(\d+)-\d*)/(\*|\d+)", part)
        assert match is not None
        assert match[2] is None or int(match[2]) == len(operation.content)
        if match[3] != b"*":
            operation.length = int(match[3])

    async def _get_message(self, dialogue: Dialogue, number: int) -> None:
        await dialogue.read_body()
        if await self._gone(dialogue, number):
            return
        self.process(number)
        operation = self.operations[number]
        if not operation.done:
            state = json.dumps({"state": "receiving"}).encode()
            fields = {"Retry-After": "1", "Content-Type": "application/json"}
            await dialogue.respond(202, fields, state)
            return
        body = self.answer(bytes(operation.content))
        head = (
            f'HTTP/1.1 200 OK\r\nETag: "result"\r\nContent-Length: {len(body)}\r\n\r\n'
        )
        await dialogue.respond(
            200, {"Content-Type": "message/http"}, head.encode() + body
        )

    async def _delete_message(self, dialogue: Dialogue, number: int) -> None:
        await dialogue.read_body()
        self.operations[number].released = True
        await dialogue.respond(204)

    async def _get_result(self, dialogue: Dialogue, number: int) -> None:
        await dialogue.read_body()
        body = self.answer(bytes(self.operations[number].content))
        start = int((dialogue.request.fields.get("range") or "0-")[len("bytes=") : -1])
        if start >= len(body):
            await dialogue.respond(416, {"Content-Range": f"bytes */{len(body)}"})
        else:
            range_ = f"bytes {start}-{len(body) - 1}/{len(body)}"
            await dialogue.respond(206, {"Content-Range": range_}, body[start:])


class Served(Protocol):
    """A model of a server."""

    async def serve(self, number: int, stream: trio.abc.Stream) -> None: ...


@asynccontextmanager
async def modelled(model: Served) -> AsyncIterator[Peer]:
    """A peer that is served by *model*."""
    async with trio.open_nursery() as nursery:
        yield Peer(nursery, model.serve)
        nursery.cancel_scope.cancel()
