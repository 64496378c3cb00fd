"""Receivers of hooks for tests, which keep what they get."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
import trio

from trioresume import Fields, HookEvent, HookKind, Hooks

ALL = frozenset(HookKind)

Answer = Mapping[str, Any] | None


class Receiver:
    """A hook function: it keeps each event, and answers as *answers* say, by kind."""

    def __init__(self, **answers: Answer | Callable[[HookEvent], Answer]) -> None:
        self.events: list[HookEvent] = []
        self.answers = {name.replace("_", "-"): each for name, each in answers.items()}
        self.failures: dict[str, int] = {}
        """How many calls of a kind still fail."""
        self.tried: list[HookEvent] = []
        self.gate: trio.Event | None = None
        """If set, no call goes on before it."""
        self._came = trio.Event()

    async def __call__(self, event: HookEvent) -> Answer:
        self.tried.append(event)
        self._came.set()
        if self.gate is not None:
            await self.gate.wait()
        left = self.failures.get(event.kind, 0)
        if left:
            self.failures[event.kind] = left - 1
            raise RuntimeError("the receiver is ill")
        self.events.append(event)
        self._came.set()
        answer = self.answers.get(event.kind)
        return answer(event) if callable(answer) else answer

    @property
    def kinds(self) -> list[str]:
        return [str(event.kind) for event in self.events]

    def of(self, kind: str) -> HookEvent:
        """The only event of this kind."""
        (found,) = (event for event in self.events if event.kind == kind)
        return found

    async def until(self, kind: str, count: int = 1) -> HookEvent:
        """Wait until *count* events of this kind have come; return the last one."""
        await self.until_true(lambda: self.kinds.count(kind) >= count)
        return [event for event in self.events if event.kind == kind][count - 1]

    async def until_true(self, is_so: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until *is_so*, which is asked again at each call."""
        with trio.fail_after(seconds):
            while not is_so():
                self._came = trio.Event()
                await self._came.wait()


def hooks(receiver: Any, events: Collection[str] = ALL, **settings: Any) -> Hooks:
    """Hooks that call *receiver* with all events, and do not wait long."""
    return Hooks(receiver, events, **{"backoff": 0.5, "retries": 0, **settings})


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    with trio.fail_after(30):
        while not is_so():  # noqa: ASYNC110 - no event comes from there
            await trio.sleep(0.01)


@dataclass
class Posted:
    """A request that an HTTP receiver got."""

    fields: Fields
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        return str(self.document["Type"])


class HTTPReceiver:
    """A receiver on a free port: it keeps each request, and sends what *answer* returns.

    *answer* returns a status and content, or the raw bytes of a response; None cuts the
    connection. With *tls* it speaks https.
    """

    def __init__(
        self,
        answer: Callable[[Posted], tuple[int, bytes] | bytes | None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self._tls = tls
        self.posts: list[Posted] = []
        self.port = 0
        self.silent = False
        """Whether no answer is sent at all."""
        self._came = trio.Event()

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/hooks?x=1"

    @property
    def kinds(self) -> list[str]:
        return [post.kind for post in self.posts]

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until *is_so*, which is asked again after each request."""
        with trio.fail_after(30):
            while not is_so():
                self._came = trio.Event()
                await self._came.wait()

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[HTTPReceiver]:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            yield self
            nursery.cancel_scope.cancel()

    async def _serve(self, tcp: trio.SocketStream) -> None:
        stream: trio.abc.Stream = tcp
        if self._tls is not None:
            stream = trio.SSLStream(tcp, self._tls, server_side=True)
        connection = h11.Connection(h11.SERVER)
        try:
            while connection.our_state is h11.IDLE:
                await self._serve_one(stream, connection)
                connection.start_next_cycle()
        except (trio.BrokenResourceError, h11.ProtocolError):
            pass

    async def _serve_one(
        self, stream: trio.abc.Stream, connection: h11.Connection
    ) -> None:
        fields, body = Fields(), bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Request):
                fields = Fields.from_wire(event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise trio.BrokenResourceError
        post = Posted(fields, bytes(body))
        self.posts.append(post)
        self._came.set()
        if self.silent:
            await trio.sleep_forever()
        answer = self.answer(post)
        if answer is None:
            raise trio.BrokenResourceError
        if isinstance(answer, bytes):
            await stream.send_all(answer)
            raise trio.BrokenResourceError
        status, content = answer
        length = [("content-length", str(len(content)))]
        for event in (
            h11.Response(status_code=status, headers=length),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            await stream.send_all(connection.send(event) or b"")
