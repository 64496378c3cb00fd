"""HTTP/2 for the servers of the client's tests, which speak HTTP/1.1.

:class:`Gateway` is the server's end of an HTTP/2 connection. It gives each request to a
connection of HTTP/1.1, and the response back. As a client of HTTP/1.1 does, it uses a
connection again that is idle, and makes another one if none is. If a server cuts its
connection, the stream is reset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11
import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

__all__ = ["SPEAKS_HTTP2", "Gateway", "carrier", "over_each_carrier"]

SPEAKS_HTTP2: ContextVar[bool] = ContextVar("SPEAKS_HTTP2", default=False)
"""Whether the peers of a test speak HTTP/2."""

Accept = Callable[[trio.abc.Stream], None]


def over_each_carrier(metafunc: pytest.Metafunc) -> None:
    """Run a test over both versions; to be called as ``pytest_generate_tests``."""
    if metafunc.definition.get_closest_marker("h1_only") is None:
        metafunc.parametrize("carrier", ["h1", "h2"], indirect=True)


@pytest.fixture(autouse=True)
def carrier(request: pytest.FixtureRequest) -> Iterator[None]:
    """The version of HTTP of this test's peers."""
    token = SPEAKS_HTTP2.set(getattr(request, "param", "h1") == "h2")
    yield
    SPEAKS_HTTP2.reset(token)


class _Backend:
    """A connection of HTTP/1.1 to the server. It carries one request at a time."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self.number = 0
        """The stream of HTTP/2 whose request it carries; 0 if it is idle."""
        self.is_chunked = False
        self.request_ended = False
        self.to_send: trio.MemorySendChannel[bytes]


class Gateway:
    """Serves one connection of HTTP/2 on *wire*. *accept* takes those of HTTP/1.1."""

    def __init__(self, wire: trio.abc.Stream, accept: Accept) -> None:
        self._wire = wire
        self._accept = accept
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self._h2 = h2.connection.H2Connection(config)
        self._idle: list[_Backend] = []
        self._busy: dict[int, _Backend] = {}
        self._lock = trio.Lock()
        self._changed = trio.Event()

    async def run(self) -> None:
        self._h2.initiate_connection()
        async with trio.open_nursery() as self._nursery:
            try:
                await self._flush()
                await self._read()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            for backend in [*self._idle, *self._busy.values()]:
                await trio.aclose_forcefully(backend.stream)
            self._nursery.cancel_scope.cancel()

    async def _flush(self) -> None:
        async with self._lock:
            data = self._h2.data_to_send()
            if data:
                await self._wire.send_all(data)

    async def _read(self) -> None:
        while data := await self._wire.receive_some(65536):
            for event in self._h2.receive_data(bytes(data)):
                await self._take(event)
            await self._flush()
            self._changed.set()
            self._changed = trio.Event()

    async def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=number):
                await self._begin(number, event.headers)
            case h2.events.DataReceived(stream_id=number, data=data):
                size = event.flow_controlled_length or 0
                if size:
                    self._h2.acknowledge_received_data(size, number)
                backend = self._busy.get(number)
                if backend is not None and data:
                    framed = b"%x\r\n%b\r\n" % (len(data), data)
                    await self._give(backend, framed if backend.is_chunked else data)
            case h2.events.StreamEnded(stream_id=number):
                backend = self._busy.get(number)
                if backend is not None:
                    backend.request_ended = True
                    if backend.is_chunked:
                        await self._give(backend, b"0\r\n\r\n")
            case h2.events.StreamReset(stream_id=number):
                backend = self._busy.pop(number, None)
                if backend is not None:
                    await trio.aclose_forcefully(backend.stream)

    async def _give(self, backend: _Backend, data: bytes) -> None:
        try:
            await backend.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the task that reads finds it, too

    async def _begin(self, number: int, pairs: list[tuple[bytes, bytes]]) -> None:
        backend = self._idle.pop() if self._idle else self._connect()
        backend.number = number
        self._busy[number] = backend
        pseudo = {n: v for n, v in pairs if n.startswith(b":")}
        fields = [(b"Host", pseudo[b":authority"])]
        fields += [(n.title(), v) for n, v in pairs if not n.startswith(b":")]
        backend.is_chunked = False
        backend.request_ended = False
        names = {n for n, _ in fields}
        ended = self._h2.streams[number].state_machine.state.name != "OPEN"
        if not ended and b"Content-Length" not in names:
            fields.append((b"Transfer-Encoding", b"chunked"))
            backend.is_chunked = True
        # h11 only checks the head: content goes past it.
        backend.parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        head = backend.parser.send(
            h11.Request(
                method=pseudo[b":method"], target=pseudo[b":path"], headers=fields
            )
        )
        await self._give(backend, head)

    def _connect(self) -> _Backend:
        ours, theirs = trio.testing.memory_stream_pair()
        backend = _Backend(ours)
        self._accept(theirs)
        self._nursery.start_soon(self._return, backend)
        return backend

    async def _return(self, backend: _Backend) -> None:
        """Give the responses back that come from *backend*, until it ends."""
        try:
            while True:
                data = await backend.stream.receive_some(65536)
                if not backend.number:
                    break  # it closed while it was idle
                backend.parser.receive_data(bytes(data))
                if not await self._pass_on(backend):
                    break
        except (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            h11.RemoteProtocolError,
            h2.exceptions.ProtocolError,  # the client has left
        ):
            pass
        if backend in self._idle:
            self._idle.remove(backend)
        number = backend.number
        if self._busy.get(number) is backend:
            del self._busy[number]
            await self._reset(number)
        await trio.aclose_forcefully(backend.stream)

    async def _reset(self, number: int) -> None:
        try:
            self._h2.reset_stream(number, ErrorCodes.CANCEL)
            await self._flush()
        except (h2.exceptions.ProtocolError, trio.BrokenResourceError):
            pass
        except trio.ClosedResourceError:
            pass

    async def _pass_on(self, backend: _Backend) -> bool:
        """Pass on what has come. Return whether the connection can go on."""
        number = backend.number
        while True:
            event = backend.parser.next_event()
            if event is h11.NEED_DATA:
                return True
            if isinstance(event, h11.InformationalResponse | h11.Response):
                status = b"%d" % event.status_code
                lines = [
                    (n, v)
                    for n, v in event.headers
                    if n not in (b"transfer-encoding", b"connection")
                ]
                self._h2.send_headers(number, [(b":status", status), *lines])
                await self._flush()
            elif isinstance(event, h11.Data):
                await self._send(number, bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._busy.pop(number, None)
                self._h2.end_stream(number)
                await self._flush()
                closing = backend.parser.their_state is not h11.DONE
                backend.number = 0
                if closing or not backend.request_ended:
                    return False
                self._idle.append(backend)
                return True
            else:
                return False

    async def _send(self, number: int, data: bytes) -> None:
        while data:
            room = self._h2.local_flow_control_window(number)
            if not room:
                await self._changed.wait()
                continue
            part = data[: min(room, self._h2.max_outbound_frame_size)]
            self._h2.send_data(number, part)
            await self._flush()
            data = data[len(part) :]
