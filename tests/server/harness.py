"""A service over memory or over sockets, and a client that writes bytes by hand.

``memory_service`` runs everything but the listeners: a store in memory, transports in
memory, trio's clock as the wall clock. Nothing in it blocks or uses a thread, so it
can run in virtual time (``autojump_clock``). ``socket_service`` is the real thing on
a free port of the loopback interface.

The client is deliberately dumb: it sends the bytes it is given, whole or malformed,
and reads interim and final responses with h11.
"""

from __future__ import annotations

import json
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import h11
import trio

import trioresume
from tests.server.held import HeldStore
from trioresume import Config, Fields, Request, Response
from trioresume.errors import StorageConflict, StorageFull
from trioresume.protocol.clock import ServiceClock
from trioresume.server.api.handler import AnyTarget, as_target
from trioresume.server.async_store.storage import Storage
from trioresume.server.async_store.threads import Threads
from trioresume.server.doorman import Doorman
from trioresume.server.http.tls.contexts import ServerContexts
from trioresume.server.routes.router import Service
from trioresume.server.serving import (
    UNTUNED,
    Tuning,
    running_service,
    running_storage,
    serve_tuned,
)
from trioresume.server.uploads.registry import Registry
from trioresume.store.port import Mutation, Store
from trioresume.testing import MemoryTransport, memory_transport_pair
from trioresume.testing.memory_store import MemoryStore

EPOCH = 1_700_000_000.0
"""What the wall clock of a memory service shows at trio's time 0."""

RESUME = {"Prefer": "resume"}


class Stream(Protocol):
    """What the client needs of a transport: a trio stream or one in memory."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, max_bytes: int = ...) -> bytes | bytearray: ...

    async def aclose(self) -> None: ...


@dataclass
class Interim:
    """A 1xx response."""

    status: int
    fields: Fields


@dataclass
class Reply:
    """A final response with the interim ones before it."""

    status: int
    fields: Fields
    body: bytes
    interims: list[Interim] = field(default_factory=list)
    raw: bytes = b""
    """Every byte from the first interim response to the end of the final one."""

    def __getitem__(self, name: str) -> str:
        value = self.fields.get(name)
        assert value is not None, f"{name} is missing in {self}"
        return value

    def get(self, name: str) -> str | None:
        return self.fields.get(name)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The stable code of the problem document; None if it is none."""
        if self.get("content-type") != "application/problem+json":
            return None
        code: str = self.json["code"]
        return code

    @property
    def content(self) -> str:
        """Where the request's content is (RCL), told by an interim or this response."""
        return self._told("request-content-location")

    @property
    def message(self) -> str:
        """Where the response message is (RML)."""
        return self._told("response-message-location")

    @property
    def result(self) -> str:
        """Where the result is (CL)."""
        return self._told("content-location")

    def _told(self, name: str) -> str:
        for fields in (self.fields, *(interim.fields for interim in self.interims)):
            if (value := fields.get(name)) is not None:
                return value
        raise AssertionError(f"{name} was not told")


def head(
    method: str,
    target: str,
    fields: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    *,
    length: int | None = None,
    version: str = "1.1",
) -> bytes:
    """A request head; with *length* it has a ``Content-Length``."""
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    lines = [f"{method} {target} HTTP/{version}", "Host: test"]
    lines += [f"{name}: {value}" for name, value in pairs]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunked(body: bytes, size: int = 7) -> bytes:
    """*body* in chunks of *size* bytes, with the last one."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def byterange(
    first: int, body: bytes, total: int | None, last: int | None = None
) -> bytes:
    """A ``message/byterange`` document."""
    if last is None:
        last = first + len(body) - 1
    said = "*" if total is None else str(total)
    return b"Content-Range: bytes %d-%d/%b\r\n\r\n%b" % (
        first,
        last,
        said.encode(),
        body,
    )


BYTERANGE = {"Content-Type": "message/byterange"}


class Client:
    """A connection to a service, by bytes."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.unparsed = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def request(
        self,
        method: str,
        target: str,
        fields: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        *,
        version: str = "1.1",
    ) -> Reply:
        """Send a whole request at once and read its response."""
        length = None if body is None else len(body)
        start = head(method, target, fields, length=length, version=version)
        await self.send(start + (body or b""))
        return await self.reply(method)

    async def patch(
        self, target: str, first: int, body: bytes, total: int | None
    ) -> Reply:
        """PATCH one ``message/byterange``."""
        return await self.request(
            "PATCH", target, BYTERANGE, byterange(first, body, total)
        )

    async def start(
        self,
        length: int,
        body: bytes = b"",
        *,
        target: str = "/",
        prefer: str = "resume",
        fields: Mapping[str, str] | None = None,
    ) -> Interim:
        """Begin a resumable upload of *length* bytes and send *body* of it."""
        wanted = {"Prefer": prefer, **(fields or {})}
        await self.send(head("POST", target, wanted, length=length) + body)
        return await self.interim()

    async def interim(self) -> Interim:
        """Read the next response, which must be an interim one."""
        parser = _parser("GET", self.unparsed)
        event = await self._event(parser)
        assert isinstance(event, h11.InformationalResponse), event
        self.unparsed = parser.trailing_data[0]
        return Interim(event.status_code, Fields.from_wire(event.headers))

    async def reply(self, method: str = "GET") -> Reply:
        """Read up to the end of the next final response."""
        parser = _parser(method, self.unparsed)
        start = len(self.unparsed)
        self._read = self.unparsed
        interims: list[Interim] = []
        final: h11.Response | None = None
        body = bytearray()
        while True:
            event = await self._event(parser)
            if isinstance(event, h11.InformationalResponse):
                interims.append(
                    Interim(event.status_code, Fields.from_wire(event.headers))
                )
            elif isinstance(event, h11.Response):
                final = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                assert isinstance(event, h11.EndOfMessage), event
                break
        assert final is not None, start
        self.unparsed = parser.trailing_data[0]
        raw = self._read[: len(self._read) - len(self.unparsed)]
        return Reply(
            final.status_code,
            Fields.from_wire(final.headers),
            bytes(body),
            interims,
            raw,
        )

    _read = b""

    async def _event(self, parser: h11.Connection) -> h11.Event:
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = bytes(await self.stream.receive_some(64 * 1024))
                self._read += data
                parser.receive_data(data)
            else:
                assert not isinstance(event, type), event
                return event

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        received = bytearray(self.unparsed)
        while data := await self.stream.receive_some(64 * 1024):
            received += data
        return bytes(received)

    async def is_closed(self) -> bool:
        """Whether the server closed the connection; found out by using it."""
        try:
            reply = await self.request("GET", "/operations/none")
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            return True
        return reply.status != 404

    async def aclose(self) -> None:
        await self.stream.aclose()


def _parser(method: str, data: bytes) -> h11.Connection:
    parser = h11.Connection(h11.CLIENT)
    request = h11.Request(method=method, target="/", headers=[("Host", "test")])
    parser.send(request)
    parser.send(h11.EndOfMessage())
    if data:
        parser.receive_data(data)
    return parser


# Handlers.


@dataclass
class Recorder:
    """A handler that keeps what it was given and answers with it."""

    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    gate: trio.Event | None = None
    """If set, no call goes on before it."""
    started: int = 0
    begun: trio.Event = field(default_factory=trio.Event)
    """Set by the first call."""
    response: Callable[[bytes], Response] = lambda body: Response(
        200, {"Content-Type": "text/plain"}, b"got %d bytes" % len(body)
    )

    async def __call__(self, request: Request) -> Response:
        self.started += 1
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        body = await request.body.read()
        self.requests.append((request.method, request.target, body))
        return self.response(body)

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.requests]


Handler = Callable[[Request], Awaitable[Response]]


# Services.


class FullCatalog(MemoryStore):
    """A store whose catalog has no room for a commit while ``full`` is set."""

    full = False

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        if self.full:
            raise StorageFull("no room in the catalog")
        return super().apply(batch)


class Carrier:
    """How the connections of a memory service speak: HTTP/1.1 in memory, unless derived.

    The tests of a folder run over several carriers if its ``conftest.py`` has the fixture
    ``carrier`` of :mod:`tests.server.carriers`.
    """

    name = "h1"
    scheme = "http"

    def config(self, config: Config) -> Config:
        """*config* with what the carrier needs."""
        return config

    def contexts(self) -> ServerContexts | None:
        """The certificates of the service, if the carrier uses TLS."""
        return None

    def connect(self, service: MemoryService) -> Client:
        """A new connection to *service*."""
        return Client(service.transports()[1])


CARRIER: ContextVar[Carrier] = ContextVar("CARRIER", default=Carrier())  # noqa: B039 - it is immutable


class MemoryService:
    """A running service whose connections and store are in memory."""

    def __init__(
        self,
        store: MemoryStore,
        storage: Storage,
        doorman: Doorman,
        clock: ServiceClock,
        connections: trio.Nursery,
        carrier: Carrier,
    ) -> None:
        self._carrier = carrier
        self.sockets: list[trio.socket.SocketType] = []
        """The clients' ends, closed with the service, if the carrier needs sockets."""
        self.store = store
        self.storage = storage
        self.clock = clock
        self.connections = connections
        self._doorman = doorman

    @property
    def doorman(self) -> Doorman:
        return self._doorman

    @property
    def operations(self) -> Registry:
        service = getattr(self._doorman.front.handle, "__self__", None)
        assert isinstance(service, Service)
        return service._operations

    @property
    def used(self) -> int:
        """How many operations somebody uses."""
        return sum(o.users > 0 for o in self.operations._loaded.values())

    def transports(self) -> tuple[MemoryTransport, MemoryTransport]:
        """A new connection's two ends: the server's, being served, and the client's."""
        ours, theirs = memory_transport_pair()
        self.connections.start_soon(self._doorman.serve_transport, theirs)
        return theirs, ours

    def connect(self) -> Client:
        return self._carrier.connect(self)

    def stop(self) -> None:
        """Cut everything at once, as a cancelled service does."""
        self.connections.cancel_scope.cancel()


@asynccontextmanager
async def memory_service(
    handler: Handler | AnyTarget,
    config: Config | None = None,
    *,
    store: MemoryStore | HeldStore | None = None,
    clock: ServiceClock | None = None,
    tuning: Tuning = UNTUNED,
) -> AsyncIterator[MemoryService]:
    """A service in memory. On exit it is cancelled, as by its caller."""
    carrier = CARRIER.get()
    config = carrier.config(config or Config())
    held = store if isinstance(store, HeldStore) else None
    if held is not None:
        store = held.store
    store = cast("MemoryStore | None", store) or MemoryStore(chunk_size=64)
    port = store if held is None else held.port
    workers = Threads if held is None else held.workers
    target = as_target(handler)
    clock = clock or ServiceClock(_wall, trio.current_time)
    async with (
        running_storage(port, config, workers) as storage,
        trio.open_nursery() as whole,
        running_service(
            target, config, storage, clock, contexts=carrier.contexts(), tuning=tuning
        ) as doorman,
        trio.open_nursery() as connections,
    ):
        service = MemoryService(store, storage, doorman, clock, connections, carrier)
        try:
            yield service
        finally:
            for sock in service.sockets:
                sock.close()
            if held is not None:
                held.let_go()
        whole.cancel_scope.cancel()


def _wall() -> float:
    return EPOCH + trio.current_time()


class SocketService:
    """A running service on the loopback interface."""

    def __init__(self, server: trioresume.Server) -> None:
        self.server = server
        host, _, port = server.urls[0].removeprefix("http://").rpartition(":")
        self.address = host, int(port)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        stream = await trio.open_tcp_stream(*self.address)
        try:
            yield Client(stream)
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def socket_service(
    handler: Handler | AnyTarget, data_dir: Path, **settings: Any
) -> AsyncIterator[SocketService]:
    """``trioresume.serve`` with a store on disk, cancelled in the end.

    *settings* are the configuration's; *store* among them is used instead of its own, and
    *tuning* has the figures that are no settings.
    """
    store: Store | None = settings.pop("store", None)
    tuning: Tuning = settings.pop("tuning", UNTUNED)
    settings = {"durability": "process", "chunk_size": 64 * 1024, **settings}
    config = Config(bind=["127.0.0.1:0"], data_dir=data_dir, **settings)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_tuned, tuning, handler, config, store=store)
        server = await nursery.start(serve)
        try:
            yield SocketService(server)
        finally:
            nursery.cancel_scope.cancel()
